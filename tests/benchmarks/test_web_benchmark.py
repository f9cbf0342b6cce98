"""The benchmark in WebAssembly, on a tiny model."""

import json
import shutil

import pytest

import web

MISSING = not shutil.which("node") or not (web.WEB / "node_modules" / "onnxruntime-web").exists()


@pytest.mark.skipif(MISSING, reason="needs Node and the npm packages of web/")
def test_both_runtimes_are_timed(tmp_path):
    file = tmp_path / "web.json"
    web.main(["--model=tiny", "--repeats=2", f"--work_dir={tmp_path}", f"--output_file={file}"])
    rows = json.loads(file.read_text())["milliseconds"]
    assert list(rows) == ["1x16", "1x128", "8x32"]
    for row in rows.values():
        assert row["medians"].keys() == row["ratios"].keys() >= {"ours", "onnxruntime_web"}
        assert row["ratios"]["ours"] == pytest.approx(
            row["medians"]["onnxruntime_web"] / row["medians"]["ours"], abs=0.01
        )
