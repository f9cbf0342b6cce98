"""The checkpoint in the repository: its size, its predictions, and that its card is the published one."""

from pathlib import Path

import pytest
import torch
from commands import blocks
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from hf_xtc import ledger
from hf_xtc.hub.card import usage

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples" / "minilm-3l-1bit-sst2"
# Of this file, by the reference backend on another machine; float32 rounds otherwise there, and a level may flip.
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
    assert blocks(path, "python") == [usage("ForSequenceClassification") + "\n"]
    assert "\n- teacher license: apache-2.0\n" in card.text


def test_card_is_the_published_one():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert card == (ROOT / "model_cards" / f"{FOLDER.name}.md").read_text(encoding="utf-8")
