"""The byte ledger against files on disk, at BERT-base size and for every head at tiny size."""

import json
import re

import pytest
import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification, ErnieConfig, set_seed
from transformers.initialization import no_init_weights

from hf_xtc import ARCHITECTURES, XTCRecipe, compress, ledger, pack_model
from hf_xtc.errors import RecipeError, XTCError

HEADS = ARCHITECTURES["bert"].model_classes
TERNARY = XTCRecipe(weights="ternary", keep_layers=5)
ALL_TERNARY = XTCRecipe(weights="ternary", embedding_weights="ternary", keep_layers=5)


@pytest.fixture(scope="module")
def bert_base():
    """A classifier of BERT-base shape with random weights."""
    set_seed(0)
    with no_init_weights():
        teacher = BertForSequenceClassification(BertConfig())
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.normal_(std=0.02)
    return teacher


def header_bytes(file):
    """Length of a safetensors file's JSON header, its first eight bytes."""
    with open(file, "rb") as reader:
        length = int.from_bytes(reader.read(8), "little")
        json.loads(reader.read(length))
    return length


@pytest.mark.parametrize(
    "recipe, limit",
    [
        (XTCRecipe(), 14_550_000),
        (XTCRecipe(keep_layers=5), 8_100_000),
        (XTCRecipe.paper(), 18_200_000),
        # The word embedding is binary by default, under ternary linears too.
        (TERNARY, 12_560_000),
        # All ternary: 12,560,192 bytes, 192 of them above the floor of 12.56 MB, which counts no header.
        (ALL_TERNARY, 12_546_144 + 8 + 14_100),
    ],
    ids=["binary 12 layers", "binary 5 layers", "paper 12 layers", "ternary 5 layers", "all ternary 5 layers"],
)
def test_bert_base_on_disk(recipe, limit, bert_base, tmp_path):
    pack_model(compress(bert_base, recipe)).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    size, header = file.stat().st_size, header_bytes(file)
    assert size <= limit
    assert size == ledger(bert_base.config, recipe).total_bytes + 8 + header
    assert size == ledger(bert_base.config, recipe).file_bytes
    assert header < 64_000


def test_exact_totals():
    totals = {
        recipe: ledger(BertConfig(), recipe).total_bytes
        for recipe in (XTCRecipe(), XTCRecipe(keep_layers=5), XTCRecipe.paper(), TERNARY, ALL_TERNARY)
    }
    assert list(totals.values()) == [14_492_220, 8_062_524, 18_102_224, 10_775_868, 12_546_144]


def test_bert_base_by_hand():
    """Every part of the binary ledger, counted from the shapes of BERT-base."""
    layers, hidden, wide, words, positions, types, labels = 12, 768, 3072, 30522, 512, 2, 2
    channels = 5 * hidden + wide  # query, key, value, two outputs; intermediate
    found = ledger(BertConfig())
    assert found.parts == {
        "encoder codes": layers * (4 * hidden * hidden + 2 * hidden * wide) // 8,
        "word embeddings codes": words * hidden // 8,
        "position embeddings codes": positions * hidden,
        "biases and LayerNorm": 2 * (layers * (channels + 4 * hidden) + hidden + 2 * hidden),
        "encoder scales": 2 * layers * channels,
        "pooler codes": hidden * hidden // 8,
        "word embeddings scales": 2 * words,
        "head": 2 * (labels * hidden + labels),
        "token type embeddings codes": types * hidden,
        "pooler scales": 2 * hidden,
        "position embeddings scales": 2 * positions,
        "token type embeddings scales": 2 * types,
    }
    assert list(found.parts.values()) == sorted(found.parts.values(), reverse=True)
    assert sum(found.parts.values()) == found.total_bytes
    assert found.float32_bytes == 4 * 109_483_778


RECIPES = {
    "binary": XTCRecipe(),
    "ternary per group": XTCRecipe(weights="ternary", granularity="per_group", group_size=2, scale_dtype="float32"),
    "int4, static ranges": XTCRecipe(weights="int4", embedding_weights="int4", activation_calibration="static"),
    "paper": XTCRecipe.paper(keep_layers=3),
    "bfloat16 rest": XTCRecipe(embedding_weights=None, position_weights=None, rest_dtype="bfloat16"),
    "float": XTCRecipe(weights=None, embedding_weights=None, position_weights=None, activation_bits=None),
}


# Every head with two recipes, two heads (one with a tied decoder) with all.
CASES = [
    (head, name)
    for head in HEADS
    for name in RECIPES
    if head in ("BertForSequenceClassification", "BertForMaskedLM") or name in ("binary", "float")
]


@pytest.mark.parametrize("head, name", CASES)
def test_file_is_ledger_and_header(head, name, tiny_config, tmp_path):
    recipe = RECIPES[name]
    tiny_config.num_labels = 2 if head == "BertForQuestionAnswering" else 3
    student = compress(getattr(transformers, head)(tiny_config), recipe)
    pack_model(student).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    planned = ledger(tiny_config, recipe, model_class=HEADS[head])
    assert file.stat().st_size == planned.total_bytes + 8 + header_bytes(file)
    with open(file, "rb") as reader:
        header = json.loads(reader.read(8 + header_bytes(file))[8:])
    header.pop("__metadata__")
    ends = {name: entry["data_offsets"][1] - entry["data_offsets"][0] for name, entry in header.items()}
    assert {entry.name: entry.bytes for entry in planned.entries} == ends
    codes = {"uint8": "U8", "float16": "F16", "bfloat16": "BF16", "float32": "F32"}
    assert {e.name: codes[e.dtype] for e in planned.entries} == {name: e["dtype"] for name, e in header.items()}
    # The student's own config says the same, without recipe and class.
    student.config.architectures = [type(student).__name__]
    assert ledger(student.config) == planned
    assert planned.float32_bytes == 4 * sum(p.numel() for p in student.parameters())


def test_untied_decoder_is_counted(tiny_config, tmp_path):
    tiny_config.tie_word_embeddings = False
    student = compress(transformers.BertForMaskedLM(tiny_config))
    pack_model(student).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    planned = ledger(tiny_config, model_class=HEADS["BertForMaskedLM"])
    assert file.stat().st_size == planned.total_bytes + 8 + header_bytes(file)
    tiny_config.tie_word_embeddings = True
    tied = ledger(tiny_config, model_class=HEADS["BertForMaskedLM"])
    assert planned.total_bytes - tied.total_bytes == 2 * 101 * 36 + 2 * 101  # decoder.weight, decoder.bias


def test_default_class(tiny_config):
    named = ledger(tiny_config, model_class=HEADS["BertForSequenceClassification"])
    assert ledger(tiny_config) == named
    tiny_config.architectures = ["BertForMaskedLM"]
    assert ledger(tiny_config) == ledger(tiny_config, model_class=HEADS["BertForMaskedLM"])
    assert ledger(tiny_config) != named


def test_parts_of_a_tiny_model(tiny_config):
    static = XTCRecipe(quantize_pooler=False, position_weights=None, activation_calibration="static")
    assert set(ledger(tiny_config, static).parts) == {
        *("encoder codes", "encoder scales", "encoder ranges", "pooler float"),
        *("word embeddings codes", "word embeddings scales", "position embeddings float"),
        *("token type embeddings float", "biases and LayerNorm", "head"),
    }
    parts = ledger(tiny_config, static).parts
    assert parts["encoder ranges"] == 4 * 6 * 2 * 4
    assert parts["head"] == 2 * (3 * 36 + 3)
    assert parts["pooler float"] == 2 * 36 * 36


def test_readable(tiny_config):
    planned = ledger(tiny_config, XTCRecipe(weights=None, embedding_weights=None, position_weights=None))
    assert str(planned).splitlines() == [
        "encoder float                     70,272 B  81.2%",
        "word embeddings float              7,272 B   8.4%",
        "biases and LayerNorm               3,208 B   3.7%",
        "position embeddings float          2,880 B   3.3%",
        "pooler float                       2,592 B   3.0%",
        "head                                 222 B   0.3%",
        "token type embeddings float          144 B   0.2%",
        "total                             86,590 B, 2.0 times smaller than in float32",
    ]
    assert planned.to_dict() == {
        "parts": planned.parts,
        "total_bytes": planned.total_bytes,
        "float32_bytes": planned.float32_bytes,
    }


def test_the_ledger_allocates_no_weights_and_changes_no_config(tiny_config):
    before = tiny_config.to_dict()
    huge = BertConfig(hidden_size=1 << 14, num_attention_heads=8, intermediate_size=1 << 16, vocab_size=1 << 20)
    assert ledger(huge).float32_bytes > 200e9
    ledger(tiny_config)
    assert tiny_config.to_dict() == before


def test_unknown_model_type():
    with pytest.raises(XTCError, match=r"^XTC does not know the model type 'ernie'; it compresses albert, bert, "):
        ledger(ErnieConfig())


def test_too_many_layers(tiny_config):
    text = "keep_layers=5 does not fit a teacher of 4 layers. Keep between 1 and 4."
    with pytest.raises(RecipeError, match=f"^{re.escape(text)}$"):
        ledger(tiny_config, XTCRecipe(keep_layers=5))
