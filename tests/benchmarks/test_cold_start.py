"""The benchmark of cold starts, on a tiny model and without the process that imports PyTorch."""

import json

import pytest

import cold_start
from hf_xtc.native.library import variants
from latency.models import MODELS


@pytest.mark.skipif(not variants(), reason="the native operator is not built")
def test_processes_answer(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", {**MODELS["tiny"], "vocab_size": 30522})  # that of the tokenizer
    monkeypatch.setattr(cold_start, "MODELS", ("tiny",))
    runtimes = {name: cold_start.RUNTIMES[name] for name in ("runtime", "onnxruntime")}
    monkeypatch.setattr(cold_start, "RUNTIMES", runtimes)
    file = tmp_path / "cold.json"
    cold_start.main([f"--work_dir={tmp_path / 'files'}", "--repeats=1", "--threads=1", f"--output_file={file}"])
    rows = json.loads(file.read_text())["rows"]
    assert [row["runtime"] for row in rows] == ["runtime", "onnxruntime"]
    assert all(0 < row["import_seconds"] < row["first_answer_seconds"] for row in rows)
