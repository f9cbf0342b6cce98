"""A short slice of `tests/stress/kills.py`: some kills, and the run ends as if there had been none."""

import json
import os
import subprocess
import sys
from pathlib import Path

STRESS = Path(__file__).parent.parent / "stress"


def run(script, *options, expected=0):
    """A harness in a process of its own, which forks; what it found."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    words = [sys.executable, str(STRESS / script), *options]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == expected, done.stderr[-2000:] + done.stdout[-2000:]
    return json.loads(done.stdout)


def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bytes():
    found = run("kills.py", "--kills=7", "--seed=1")
    assert found["kills"] >= 7
    assert len(found["kills_by_phase"]) >= 4
    assert found["runs_finished_and_compared"] >= 1
    assert found["faults"] == []
