"""A short run of the fuzzer of the runtime in JavaScript; `make stress` runs more."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parent / "fuzz_web.py"


@pytest.mark.skipif(not shutil.which("node"), reason="needs Node")
def test_damaged_models_are_loaded_or_refused(tmp_path):
    result = tmp_path / "fuzz.json"
    command = [sys.executable, str(FUZZ), "--count", "200", "--seed", "1", "--output_file", str(result)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(result.read_text())
    assert found["good_outcomes"] == {"loaded": 7, "ModelError": 1}
    assert found["broken"] == 0
    assert {"loaded", "ModelError"} <= found["outcomes"].keys()
