"""Rerankers through the command line, on a tiny teacher, and used as their users do."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from commands import blocks
from compress_options import SHAPE, VOCAB, sentences
from huggingface_hub import ModelCard
from sentence_transformers import CrossEncoder
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast, set_seed

from hf_xtc.cli import main
from hf_xtc.runtime import Pipeline

PAIRS = [("good movie", "a very bad plot"), ("film", "nice actor"), ("film", "film")]
QUICK = [
    "--use_cpu",
    "--max_length=24",
    "--disable_tqdm=True",
    "--schedule=direct",
    "--keep_layers=2",
    "--max_steps=4",
]
COLUMNS = ["--text_column=query", "--text_pair_column=passage"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A cross encoder with one output, and rows of query, passage and label."""
    path = tmp_path_factory.mktemp("rank")
    set_seed(0)
    config = BertConfig(vocab_size=len(VOCAB), max_position_embeddings=40, num_labels=1, **SHAPE)
    BertForSequenceClassification(config).save_pretrained(path / "teacher")
    BertTokenizerFast(vocab=VOCAB, model_max_length=40).save_pretrained(path / "teacher")
    for split, seed in (("train", 1), ("validation", 2)):
        rows = sentences(40, seed).rename(columns={"text": "passage"})
        rows["query"] = [("good film", "bad plot", "nice actor", "movie")[i % 4] for i in range(40)]
        rows["label"] = (rows.score > 0).astype(int)
        rows[["query", "passage", "label"]].to_csv(path / f"{split}.csv", index=False)
    return path


def compress(folder, out, *options):
    data = [f"--{name}_file={folder / name}.csv" for name in ("train", "validation")]
    words = [f"--teacher={folder / 'teacher'}", f"--output_dir={out}", "--task=reranking", *data, *QUICK]
    return main(["compress", *words, *options])


@pytest.fixture(scope="module")
def compressed(folder) -> Path:
    assert compress(folder, folder / "out", *COLUMNS) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def tuned(folder) -> Path:
    """A student of a teacher whose head was trained here, to give the label itself."""
    options = ["--fine_tune", "--fine_tune_epochs=1", f"--teacher_cache={folder / 'cache'}"]
    assert compress(folder, folder / "tuned", *COLUMNS, *options) == 0
    return folder / "tuned"


@pytest.mark.parametrize("name, bounded", [("compressed", True), ("tuned", False)])
def test_cross_encoder_and_runtime_predict_alike(name, bounded, request):
    out = request.getfixturevalue(name)
    scores = CrossEncoder(str(out), device="cpu").predict(PAIRS)
    assert scores.shape == (3,)
    found = [best["score"] for best in Pipeline(out)(PAIRS)]
    np.testing.assert_allclose(found, scores, rtol=1e-4, atol=1e-6)
    logits = Pipeline(out).logits(PAIRS)[:, 0]
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-logits)) if bounded else logits, rtol=1e-4, atol=1e-6)


def test_scores_are_by_query_and_need_no_train_file(compressed, folder, capsys):
    words = [f"--model={compressed}", f"--validation_file={folder / 'validation.csv'}", *COLUMNS, "--max_length=24"]
    assert main(["evaluate", *words]) == 0
    printed = dict(line.split(": ") for line in capsys.readouterr().out.strip().splitlines())
    run = json.loads((compressed / "metrics.json").read_text())
    assert run["metric"] == "mrr@10"
    assert {name: float(value) for name, value in printed.items()} == pytest.approx(
        run["rows"][-1]["metrics"], abs=1e-6
    )
    assert set(printed) == {"loss", "mrr@10", "mrr@10_standard_error", "ndcg@10"}
    with open(folder / "validation.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    scores = Pipeline(compressed, max_length=24).logits([(row["query"], row["passage"]) for row in rows])[:, 0]
    ranks = []
    for query in {row["query"] for row in rows}:
        own = [(score, row["label"]) for score, row in zip(scores, rows, strict=True) if row["query"] == query]
        ranked = [label for _, label in sorted(own, reverse=True)]
        if "1" in ranked:
            ranks.append(1 / (1 + ranked.index("1")) if ranked.index("1") < 10 else 0)
    assert float(printed["mrr@10"]) == pytest.approx(np.mean(ranks), abs=1e-6)


def test_the_card_says_what_it_is_and_its_code_runs(compressed, monkeypatch):
    card = ModelCard.load(compressed / "README.md")
    assert (card.data.pipeline_tag, card.data.library_name) == ("text-ranking", "sentence-transformers")
    monkeypatch.chdir(compressed)
    scope = {}
    exec(blocks(compressed / "README.md", "python")[0], scope)
    assert scope["scores"].shape == (2,)


def test_predict_gives_a_score_for_each_pair(compressed, folder, capsys, tmp_path):
    assert main(["predict", str(compressed), str(folder / "validation.csv"), *COLUMNS]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 40
    assert set(rows[0]) == {"row", "score"}
    (tmp_path / "t.txt").write_text("good\n")
    assert main(["predict", str(compressed), str(tmp_path / "t.txt")]) == 1
    assert "ranks passages for queries, and there are texts alone." in capsys.readouterr().err


def test_texts_alone_are_refused(folder, tmp_path, capsys):
    assert compress(folder, tmp_path / "out", "--text_column=query") == 1
    assert "train" not in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
