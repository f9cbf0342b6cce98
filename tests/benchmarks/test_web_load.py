"""The benchmark of loading pages, with a tiny model of the peer."""

import json

import pytest
from node import CHROMIUM, needs_packages

import web_load
from hf_xtc.native.library import variants
from latency.models import MODELS


@needs_packages
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.skipif(not variants(), reason="the native operator is not built")
def test_both_pages_show_a_label(tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", {**MODELS["tiny"], "vocab_size": 30522})  # that of the tokenizer
    file = tmp_path / "load.json"
    web_load.main([f"--work_dir={tmp_path}", "--model=tiny", "--repeats=1", f"--output_file={file}"])
    ours, peer = json.loads(file.read_text())["rows"]
    assert 2_500_000 < ours["bytes"] <= 2_800_000  # the bar of the page
    assert "/site/model/model.safetensors" in ours["files"]
    assert "/models/model/onnx/model_quantized.onnx" in peer["files"]
    assert ours["seconds"] > 0
    assert peer["seconds"] > 0
