"""A soak test of a minute: the memory, files and threads of a training do not grow with its steps."""

import json
import subprocess
import sys
from pathlib import Path

SOAK = Path(__file__).parent.parent / "stress" / "soak.py"


def test_resources_do_not_grow_during_training(tmp_path):
    file = tmp_path / "soak.json"
    options = ["--steps", "400", "--every", "10", "--output_file", str(file)]
    run = subprocess.run([sys.executable, str(SOAK), *options], check=True, capture_output=True, text=True)
    found = json.loads(file.read_text())
    assert set(found["ways"]) == {"teacher", "cache, 2 workers"}
    for name, way in found["ways"].items():
        assert f"{name}: 400 steps" in run.stdout
        for key in ("files", "threads", "processes"):
            assert way[key]["last_fifth"] == way[key]["second_fifth"]
        assert way["bytes"]["last_fifth"] < way["bytes"]["second_fifth"] + 2**23
        assert way["in_use"]["last_fifth"] < way["in_use"]["second_fifth"] + 2**20
    assert found["ways"]["cache, 2 workers"]["processes"]["last_fifth"] > 2
    assert found["command"].startswith("python tests/stress/soak.py")
