"""The native operator under the sanitizers: a small part of what `make sanitize` runs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hf_xtc.native.library import variants
from sanitize import gcc


@pytest.mark.skipif(not sys.platform.startswith("linux") or not shutil.which("g++"), reason="needs GCC on Linux")
def test_no_sanitizer_reports(tmp_path):
    if not all(Path(gcc(f"-print-file-name=lib{name}.so")).is_absolute() for name in ("asan", "ubsan", "tsan")):
        pytest.skip("needs the libraries of GCC's sanitizers")
    file = tmp_path / "found.json"
    command = [sys.executable, Path(__file__).with_name("sanitize.py"), "--calls", "60", "--rounds", "1"]
    subprocess.run([*map(str, command), "--output_file", str(file)], check=True, capture_output=True)
    found = json.loads(file.read_text())
    assert found["memory"].endswith(f"variants {', '.join(variants())}")
    served = int(found["memory"].split()[0])
    assert served > 20
    assert [line.split(":")[0] for line in found["races"]] == list(variants())
