"""A short run of the fuzzer, with damaged and malicious files of every kind; `make stress` runs more."""

import json
import subprocess
import sys
from pathlib import Path

FUZZ = Path(__file__).parent.parent / "stress" / "fuzz.py"


def test_damaged_inputs_are_loaded_or_refused(tmp_path):
    result = tmp_path / "fuzz.json"
    command = [sys.executable, str(FUZZ), "--count", "800", "--seed", "1", "--output", str(result)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(result.read_text())
    assert found["inputs"] >= 790
    assert found["broken"] == 0
    for entry in found["kinds"].values():
        assert len(entry["outcomes"]) > 1, "some are loaded, some refused"
