"""Runs a script of this folder in a new process."""

import json
import os
import subprocess
import sys
from pathlib import Path

STRESS = Path(__file__).parent


def run(script, *options, expected=0):
    """Runs a script in a new process, since it forks, and returns the JSON that it prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    words = [sys.executable, str(STRESS / script), *options]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == expected, done.stderr[-2000:] + done.stdout[-2000:]
    return json.loads(done.stdout)
