"""The compressions of `benchmarks/tasks.py`, on small data: rows, their file, the table."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest
from compress_options import SHAPE, VOCAB
from task_cases import table
from transformers import BertConfig, BertModel, BertTokenizerFast, set_seed

import tasks
import texts

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path):
    """A base encoder "base", and rows of tags in "data/wnut17" and of texts in "data/embedding"."""
    set_seed(0)
    BertModel(BertConfig(vocab_size=len(VOCAB), max_position_embeddings=40, **SHAPE)).save_pretrained(
        tmp_path / "base"
    )
    BertTokenizerFast(vocab=VOCAB, model_max_length=40).save_pretrained(tmp_path / "base")
    for name in ("wnut17", "embedding"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for split, count in (("train", 40), ("validation", 16)):
        table("token-classification", count).to_parquet(tmp_path / "data" / "wnut17" / f"{split}.parquet")
    pairs = table("regression", 40).rename(columns={"text": "sentence1"})
    pairs["sentence2"] = pairs["sentence1"][::-1].to_numpy()
    (tmp_path / "data" / "embedding" / "train.txt").write_text("\n".join(pairs["sentence1"]))
    pairs.to_parquet(tmp_path / "data" / "embedding" / "validation.parquet")
    return tmp_path


def run(folder, capsys, monkeypatch, *more, **options):
    quick = {
        "num_train_epochs": 1,
        "fine_tune_epochs": 1,
        "max_length": 24,
        "disable_tqdm": True,
        "bf16": False,
        **options,
    }
    words = [f"--data_dir={folder / 'data'}", f"--teacher={folder / 'base'}", f"--output_dir={folder / 'runs'}"]
    words += [f"--results_file={folder / 'tasks.jsonl'}", "--threads=1", f"--options={json.dumps(quick)}", *more]
    monkeypatch.setattr(sys, "argv", ["tasks.py", *words])
    tasks.main()
    return [json.loads(line) for line in (folder / "tasks.jsonl").read_text().splitlines()], capsys.readouterr().out


def test_a_run_is_recorded_once_and_shown(folder, capsys, monkeypatch):
    records, shown = run(folder, capsys, monkeypatch, "--names", "wnut17")
    (record,) = records
    assert record["rows"][0]["model"] == "teacher"
    assert record["rows"][-1]["bytes"] < record["rows"][0]["bytes"]
    assert record["options"]["train_file"] == "wnut17/train.parquet"
    assert record["options"]["teacher"] == "base"
    assert f"{record['rows'][-1]['bytes']:,}" in shown
    again, table_alone = run(folder, capsys, monkeypatch, "--names", "wnut17")
    assert again == records
    assert shown.endswith(table_alone)


def test_a_trial_is_recorded_and_left_out_of_the_table(folder, capsys, monkeypatch):
    base = {"task": "sentence-embedding", "pooling": "mean"}
    records, shown = run(folder, capsys, monkeypatch, "--names", "embedding", "--label", "trial", **base)
    assert [(record["name"], record["label"], record["metric"]) for record in records] == [
        ("embedding", "trial", "spearmanr")
    ]
    assert "embedding" not in shown


def test_the_docs_state_the_results():
    lines = (ROOT / "benchmarks" / "results" / "tasks.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert tasks.table(records) in (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    teacher, *_, packed = next(record["rows"] for record in records if record["name"] == "sst2")
    families = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    assert (
        f"{teacher['bytes']:,} bytes to {packed['bytes']:,} ({teacher['bytes'] / packed['bytes']:.1f} times)"
        in families
    )
    assert f"accuracy {teacher['metrics']['accuracy']:.3f} to {packed['metrics']['accuracy']:.3f}" in families


def test_texts_of_validation_splits_are_left_out(tmp_path, monkeypatch):
    splits = {
        "glue/stsb": {
            "train": {"sentence1": ["A  plane.", "of pairs"], "sentence2": ["a Plane.", "Held out."], "label": [1, 2]},
            "validation": {"sentence1": ["held out."], "sentence2": ["another"], "label": [3.5]},
        },
        "squad_dev": {"train": {"context": ["One sentence. Two!", "One sentence. Two!"], "question": ["Who?", "on"]}},
        "wnut17": {"train": {"tokens": [["three", "words", "."]]}},
    }
    for name, tables in splits.items():
        (tmp_path / name).mkdir(parents=True)
        for split, columns in tables.items():
            pd.DataFrame(columns).to_parquet(tmp_path / name / f"{split}.parquet")
    monkeypatch.setattr(sys, "argv", ["texts.py", f"--data_dir={tmp_path}", f"--output_dir={tmp_path / 'out'}"])
    texts.main()
    kept = (tmp_path / "out" / "train.txt").read_text().splitlines()
    assert kept == ["A plane.", "of pairs", "One sentence.", "Two!", "Who?", "three words ."]
    pairs = pd.read_parquet(tmp_path / "out" / "validation.parquet")
    assert pairs.to_dict("records") == [{"sentence1": "held out.", "sentence2": "another", "label": 3.5}]
