"""benchmarks/int8.py on a tiny teacher: each way to quantize runs, is close, is recorded once; and the docs' table."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

from compress_options import QUICK, folder, sentences  # noqa: F401

import int8
from hf_xtc.cli import main
from latency.files import export_onnx
from latency.runtimes import load_onnxruntime

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def test_each_variant_is_measured_once(folder, tmp_path, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setitem(int8.RUNS, "sst2", {**int8.RUNS["sst2"], "max_length": 32})
    data = tmp_path / "data" / "sst2"
    data.mkdir(parents=True)
    for split, count in (("train", 80), ("validation", 32)):
        sentences(count, count).rename(columns={"text": "sentence"})[["sentence", "label"]].to_parquet(
            data / f"{split}.parquet"
        )
    options = [f"--teacher={folder / 'base'}", f"--output_dir={tmp_path / 'runs' / 'sst2'}", "--fine_tune"]
    options += [f"--train_file={data / 'train.parquet'}", f"--validation_file={data / 'validation.parquet'}"]
    assert main(["compress", *options, "--schedule=direct", "--text_column=sentence", *QUICK]) == 0
    words = [f"--runs_dir={tmp_path / 'runs'}", f"--data_dir={tmp_path / 'data'}", f"--encoders_dir={folder}"]
    words += ["--names", "sst2", "wnut17", f"--work_dir={tmp_path / 'work'}", "--threads=1", "--repeats=2"]
    words += [f"--results_file={tmp_path / 'int8.jsonl'}"]
    for more, count in ((["--times"], 6), ([], 12), ([], 12)):
        monkeypatch.setattr(sys, "argv", ["int8.py", *words, *more])
        int8.main()
        records = [json.loads(line) for line in (tmp_path / "int8.jsonl").read_text().splitlines()]
        assert len(records) == count
    shown = capsys.readouterr().out
    assert "wnut17: not trained yet" in shown
    scores = {record["variant"]: record for record in records if "score" in record}
    assert set(scores) == set(int8.VARIANTS)
    full = json.loads((tmp_path / "runs" / "sst2" / "metrics.json").read_text())["rows"]
    assert scores[int8.FLOAT]["score"] == pytest.approx(full[0]["metrics"]["accuracy"])
    assert scores[int8.OURS]["score"] == pytest.approx(full[-1]["metrics"]["accuracy"])
    assert all(abs(record["score"] - scores[int8.FLOAT]["score"]) < 0.3 for record in scores.values())
    assert scores[int8.OURS]["bytes"] == full[-1]["bytes"]
    assert all(f"{record['bytes']:,}" in shown for record in scores.values())


def test_an_export_leaves_the_model_as_it_was(tiny_teacher, tiny_batch, tmp_path):
    batch = {name: values.numpy() for name, values in tiny_batch.items()}
    before = tiny_teacher(**tiny_batch).logits
    export_onnx(tiny_teacher, batch, tmp_path / "model.onnx", "eager")
    assert not any(module.training for module in tiny_teacher.modules()), "dropout is off"
    assert tiny_teacher.config._attn_implementation == "sdpa"
    found = load_onnxruntime(tmp_path, 1)({name: values[1:, :6] for name, values in batch.items()})
    np.testing.assert_allclose(found, before.detach().numpy()[1:], atol=1e-5)


def test_the_docs_state_the_results():
    lines = (ROOT / "benchmarks" / "results" / "int8.jsonl").read_text(encoding="utf-8").splitlines()
    table = int8.table([json.loads(line) for line in lines])
    assert table in (ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8")
