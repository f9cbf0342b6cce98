"""The demo in examples/web is what its script writes today."""

import runpy
from pathlib import Path

import pytest

from hf_xtc.native.library import variants

DEMO = Path(__file__).parent.parent.parent / "examples" / "web"


@pytest.mark.skipif(not variants(), reason="the native operator is not built")
def test_the_demo_is_up_to_date(tmp_path, monkeypatch):
    """If not: python examples/web/make_demo.py"""
    monkeypatch.setattr("sys.argv", ["make_demo.py", f"--output_dir={tmp_path}"])
    runpy.run_path(str(DEMO / "make_demo.py"), run_name="__main__")
    written = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(written) == 11
    for path, content in written.items():
        assert (DEMO / path).read_bytes() == content, path
