"""benchmarks/static.py: what is chosen and shown, on records; a packed embedder; and that the docs hold the table."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from compress_options import SHAPE, VOCAB, sentences
from transformers import AutoModel, BertConfig, BertModel, BertTokenizerFast, set_seed

import static
from hf_xtc import compress
from hf_xtc.files.sentence_files import SentenceSettings
from hf_xtc.hub.publish import write_packed

ROOT = Path(__file__).parents[2]


def record(model, kind, size, score, teacher="t"):
    scores = dict.fromkeys(static.SETS, score)
    return {"teacher": teacher, "model": model, "kind": kind, "bytes": size, "scores": scores}


RECORDS = [
    record("float", "float", 90_000_000, 0.8),
    record("6 layers, packed", "packed", 3_000_000, 0.75),
    record("static, a", "static", 900_000, 0.5),
    record("static, b", "static", 800_000, 0.6),
    record("static, c", "static", 20_000_000, 0.7),
    record("static, d", "static", 20_000_000, 0.77, teacher="u"),
]


def test_the_table_has_the_best_static_model_of_each_teacher_and_budget():
    lines = static.table(RECORDS).splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == [
        "static, b",
        "6 layers, packed",
        "static, c",
        "static, d",
        "float",
    ]
    assert lines[2].endswith("| 0.6000 | 0.6000 | 0.6000 | 0.6000 | 0.6000 |")


def test_the_verdict_says_who_is_ahead():
    assert static.verdict(RECORDS) == (
        "- 6 layers, packed of t, mean 0.7500: 0.1500 ahead of the best static model of at most its bytes (0.6000: t, "
        "800,000); 0.0200 **behind** the best static model of at most ten times its bytes (0.7700: u, 20,000,000)."
    )


@pytest.mark.parametrize("budget", [1, 3, 8])
def test_int8_rows_fill_the_budget(budget):
    rows = 29_525
    dims = static.fitting(budget, rows, 10_000).dims
    assert budget * 0.95e6 < dims * rows < budget * 1e6
    assert static.fitting(budget, rows, 16).dims == 16


@pytest.mark.usefixtures("one_thread")
def test_a_packed_embedder_is_measured_and_not_twice(tmp_path):
    set_seed(0)
    base = BertModel(BertConfig(vocab_size=len(VOCAB), max_position_embeddings=40, **SHAPE)).eval()
    tokenizer = BertTokenizerFast(vocab=VOCAB, model_max_length=40)
    student = compress(base)
    settings = SentenceSettings(pooling="mean", max_length=32, normalize=True)
    student.config.xtc = {**student.config.xtc, "sentences": settings.to_dict()}
    write_packed(student, tmp_path / "student", tokenizer=tokenizer)
    texts = sentences(20, 1)["text"]
    pairs = pd.DataFrame({"sentence1": texts, "sentence2": texts[::-1].to_numpy(), "label": np.arange(20.0)})
    pairs.to_parquet(tmp_path / "stsb.parquet")
    sets = pd.concat([pairs.rename(columns={"label": "score"}).assign(set=name) for name in static.SETS[1:]])
    sets.to_parquet(tmp_path / "sts.parquet")
    args = static.StaticArguments(
        teachers=[],
        students=[str(tmp_path / "student")],
        stsb=str(tmp_path / "stsb.parquet"),
        sts=str(tmp_path / "sts.parquet"),
    )
    (found,) = static.measure(args, [])
    assert list(found["scores"]) == list(static.SETS)
    assert len(set(found["scores"].values())) == 1, "the sets have the same pairs"
    assert found["bytes"] == (tmp_path / "student" / "model.safetensors").stat().st_size
    assert list(static.measure(args, [found])) == []
    model = AutoModel.from_pretrained(tmp_path / "student").eval()
    batch = tokenizer(list(texts[:3]), return_tensors="pt", padding=True)
    states, mask = model(**batch)[0], batch["attention_mask"].unsqueeze(-1)
    mean = ((states * mask).sum(1) / mask.sum(1)).detach().numpy()
    np.testing.assert_allclose(static.encoder(str(tmp_path / "student"))(list(texts[:3])), mean, atol=1e-5)


def test_the_docs_state_the_results():
    lines = (ROOT / "benchmarks" / "results" / "static.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    page = (ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8")
    assert static.table(records) in page
    assert static.verdict(records) in page
    scores = {record["bytes"]: record["scores"]["STS-B dev"] for record in records}
    large, static_ones, teacher = (scores[size] for size in (3_190_120, 15_116_888, 90_868_376))
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"A sentence embedder of 3.2 MB reaches {large:.2f} on STS-B's dev split" in readme
    assert f"its teacher {teacher:.2f}, and static embeddings of the same teacher {static_ones:.2f} in 15 MB" in readme
