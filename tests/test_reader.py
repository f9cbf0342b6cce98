"""The numpy reader: without torch it gives the same logits, and it refuses files that it cannot read."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from families import CELLS, make_batch
from families import make_teacher as make_family
from safetensors.numpy import load_file, save_file
from torch import nn
from transformers import AutoModelForSequenceClassification, BertForMaskedLM

from hf_xtc import ARCHITECTURES, XTCRecipe, compress, pack_model
from hf_xtc.quantization.packing import pack
from hf_xtc.quantization.specs import QUANTIZERS as REGISTERED
from hf_xtc.reader import FAMILIES, QUANTIZERS, PackedEncoder, ReadError, unpack

EXAMPLE = Path(__file__).parent.parent / "examples" / "minilm-3l-1bit-sst2"
READER = Path(__file__).parent.parent / "hf_xtc" / "reader.py"
RECIPES = {
    "default": XTCRecipe(keep_layers=2),
    "ternary per tensor": XTCRecipe("ternary", "per_tensor", embedding_weights="ternary", rest_dtype="bfloat16"),
    "int4 per group": XTCRecipe("int4", "per_group", 2, embedding_weights="int4", position_weights=None),
    "int8 bfloat16 scales": XTCRecipe("int8", embedding_weights="int8", scale_dtype="bfloat16"),
    "binary float32 scales": XTCRecipe(scale_dtype="float32", rest_dtype="float32", position_weights="binary"),
    "ternary per group, asymmetric": XTCRecipe("ternary", "per_group", 2, activation_symmetric=False),
    "static": XTCRecipe(activation_calibration="static"),
    "static asymmetric": XTCRecipe(activation_calibration="static", activation_symmetric=False, activation_bits=4),
    "4-bit activations": XTCRecipe(activation_bits=4),
    "float activations": XTCRecipe(activation_bits=None, quantize_pooler=False),
    "float weights": XTCRecipe(weights=None),
    "all float": XTCRecipe(weights=None, embedding_weights=None, position_weights=None),
    "paper": XTCRecipe.paper(),
}
BATCH = {"input_ids": [[101, 2023, 2003, 1037, 3185, 102], [101, 6659, 102, 0, 0, 0]]}
KNOWN = "xtc_bert, xtc_roberta, xtc_xlm_roberta, xtc_camembert, xtc_electra, xtc_mpnet, xtc_distilbert"
MASK = [[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]


def make_packed(teacher, recipe, batch):
    """A packed model whose logits depend on its input: no small weights, zero biases or LayerNorm weights of one."""
    for name, parameter in teacher.named_parameters():
        nn.init.normal_(parameter, mean=float("LayerNorm.weight" in name), std=0.2)
    student = compress(teacher, recipe)
    if recipe.activation_calibration == "static":
        student.train()(**batch)
    return pack_model(student.eval())


def torch_logits(folder, dtype, **batch):
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype)
    with torch.no_grad():
        return model(**batch).logits.numpy()


@pytest.fixture
def folder(tiny_teacher, tiny_batch, tmp_path):
    """A packed classifier of the default recipe."""
    make_packed(tiny_teacher, RECIPES["default"], tiny_batch).save_pretrained(tmp_path / "packed")
    return tmp_path / "packed"


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.usefixtures("reference_backend")
def test_logits_are_those_of_torch(name, tiny_teacher, tiny_batch, tmp_path):
    """To 1e-9 in float64. In float32 to 1e-4 in most rows: in few, rounding moves an activation to the next level."""
    make_packed(tiny_teacher, RECIPES[name], tiny_batch).save_pretrained(tmp_path)
    batch = {**tiny_batch, "token_type_ids": tiny_batch["input_ids"] % 2}
    arrays = {key: value.numpy() for key, value in batch.items()}
    for dtype, most, all_ in ((np.float64, 1e-9, 1e-9), (np.float32, 1e-4, 0.1)):
        expected = torch_logits(tmp_path, getattr(torch, dtype.__name__), **batch)
        found = PackedEncoder(tmp_path, dtype).logits(**arrays)
        assert found.dtype == dtype
        assert found.shape == (3, 3)
        differences = np.abs(found - expected).max(1)
        assert np.median(differences) <= most
        assert differences.max() <= all_
    assert np.ptp(expected, axis=0).min() > 0.01, "the rows differ by more than the tolerance"


HEADS = ("Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
SERVED = [(f, h) for f, h in CELLS if f"xtc_{f.replace('-', '_')}" in FAMILIES and h.endswith(HEADS)]


def packed(family, head, **recipe):
    return pack_model(compress(make_family(family, head), XTCRecipe(keep_layers=2, **recipe)).eval())


@pytest.mark.parametrize("weights", ["binary", "ternary"])
@pytest.mark.parametrize("family, head", SERVED)
@pytest.mark.usefixtures("reference_backend")
def test_every_family_and_head(family, head, weights, tmp_path):
    """Padding, and padding between tokens; in float64 the reader's numbers are those of torch."""
    packed(family, head, weights=weights, embedding_weights=weights).save_pretrained(tmp_path)
    model = ARCHITECTURES[family].model_classes[head].from_pretrained(tmp_path, dtype=torch.float64)
    batch = make_batch(model.config)
    batch["attention_mask"][0, 4:6] = 0
    reader, arrays = PackedEncoder(tmp_path, np.float64), {key: value.numpy() for key, value in batch.items()}
    with torch.no_grad():
        expected = model(**batch)
    if head.endswith("Model"):
        found, wanted = reader.hidden_states(**arrays), expected[0]
    elif head.endswith("QuestionAnswering"):
        found, wanted = reader.logits(**arrays), torch.stack((expected.start_logits, expected.end_logits), -1)
    else:
        found, wanted = reader.logits(**arrays), expected.logits
    assert found.shape == tuple(wanted.shape)
    assert np.abs(found - wanted.numpy()).max() <= 1e-9
    assert np.ptp(found.reshape(-1, found.shape[-1]), axis=0).min() > 0.01


@pytest.mark.parametrize("tokens", [1, 2, 9, 700])
def test_buckets_of_distances(tokens, tmp_path):
    model = packed("mpnet", "MPNetModel")
    model.save_pretrained(tmp_path)
    expected = model.native_form.parts(model).distances(tokens).detach().numpy()
    assert np.array_equal(PackedEncoder(tmp_path).distances(tokens), expected)


def test_logits_of_the_published_checkpoint():
    batch = {"input_ids": torch.tensor(BATCH["input_ids"]), "attention_mask": torch.tensor(MASK)}
    exact = torch_logits(EXAMPLE, torch.float64, **batch)
    assert np.abs(PackedEncoder(EXAMPLE, np.float64).logits(**BATCH, attention_mask=MASK) - exact).max() <= 1e-6
    found = PackedEncoder(EXAMPLE).logits(**BATCH, attention_mask=MASK)
    assert np.abs(found - torch_logits(EXAMPLE, torch.float32, **batch)).max() <= 0.03
    assert (found.argmax(1) == exact.argmax(1)).all()


def test_weights_are_bit_for_bit_those_of_the_package():
    model, reader = AutoModelForSequenceClassification.from_pretrained(EXAMPLE), PackedEncoder(EXAMPLE)
    packed = [name for name, module in model.named_modules() if hasattr(module, "weight_packed")]
    assert len(packed) == 3 * 6 + 4
    for name in packed:
        assert np.array_equal(reader.weight(name), model.get_submodule(name).dequantize().numpy())


@pytest.mark.parametrize("columns", [1, 7, 8, 10, 11])
@pytest.mark.parametrize("name", REGISTERED)
def test_unpacks_what_the_package_packs(name, columns):
    codes = torch.arange(3 * columns).mul(7).remainder(QUANTIZERS[name].levels).to(torch.uint8).view(3, columns)
    packed = pack(codes, QUANTIZERS[name].levels).numpy()
    assert np.array_equal(unpack(packed, columns, QUANTIZERS[name]), codes.numpy())


def test_shards(folder, tiny_batch, tmp_path):
    ids = tiny_batch["input_ids"].numpy()
    AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(tmp_path / "s", max_shard_size="5KB")
    assert not (tmp_path / "s" / "model.safetensors").exists()
    assert np.array_equal(PackedEncoder(tmp_path / "s").logits(ids), PackedEncoder(folder).logits(ids))


def test_bare_encoder(folder, tiny_batch, tmp_path):
    encoder = AutoModelForSequenceClassification.from_pretrained(folder).bert
    encoder.save_pretrained(tmp_path)
    found = PackedEncoder(tmp_path).hidden_states(tiny_batch["input_ids"].numpy())
    with torch.no_grad():
        expected = encoder(tiny_batch["input_ids"]).last_hidden_state.numpy()
    assert np.abs(found - expected).max() <= 1e-4


def test_it_runs_alone():
    """As a script, in a process that has neither torch, transformers nor hf_xtc."""
    code = f"""
import runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "hf_xtc"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
for arguments in (["101", "6659", "102"], []):
    sys.argv[1:] = [{str(EXAMPLE)!r}, *arguments]
    runpy.run_path({str(READER)!r}, run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["negative", "positive"]
    assert float(lines[0].split()[1]) > 0 > float(lines[1].split()[1])
    name = "bert.encoder.layer.0.intermediate.dense"
    assert f"{name}: 1536 x 384 weights of 2 levels in 73728 bytes" in lines


# What it refuses


def says(text):
    return pytest.raises(ReadError, match=f"^{re.escape(text)}$")


def change_config(folder, **changes):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **changes}))


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"state": "latent"}, f"holds a xtc_bert model in state latent; this reads packed models of: {KNOWN}."),
        ({"model_type": "bert"}, f"holds a bert model in state packed; this reads packed models of: {KNOWN}."),
        ({"xtc": {"format_version": 2}}, "has format version 2; this reads version 1. Use a newer reader."),
        ({"xtc": None}, "has format version None; this reads version 1. Use a newer reader."),
    ],
)
def test_config_of_something_else(changes, text, folder):
    change_config(folder, **changes)
    with says(f"{folder} {text}"):
        PackedEncoder(folder)


def test_config_that_lacks_fields(folder):
    fields = "activation_bits, activation_calibration, activation_symmetric"
    change_config(folder, xtc={"format_version": 1})
    with says(f"The config.json of {folder} lacks {fields}. Download it again."):
        PackedEncoder(folder)


def test_config_of_another_activation(folder):
    change_config(folder, hidden_act="silu")
    with says("This reads encoders with gelu or relu, not with silu."):
        PackedEncoder(folder)


@pytest.mark.parametrize("content", [None, "{", "[1, 2]"], ids=["none", "no JSON", "no object"])
def test_no_config(content, folder):
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_text(content)
    with pytest.raises(ReadError, match=r"holds no config.json that can be read .* Give a model's folder.$"):
        PackedEncoder(folder)


@pytest.mark.parametrize("kept", [None, 100, -1], ids=["no file", "header cut", "data cut"])
def test_damaged_weights(kept, folder):
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.unlink()
    if kept is not None:
        file.write_bytes(data[:kept])
    with pytest.raises(ReadError, match=r"^The weights in .* cannot be read \(.*\). Download them again.$"):
        PackedEncoder(folder)


QUERY = "bert.encoder.layer.0.attention.self.query"


@pytest.mark.parametrize(
    "suffix, value, text",
    [
        ("weight_packed", None, f"no tensor {QUERY}.weight; config.json"),
        ("weight_scale", None, f"no tensor {QUERY}.weight_scale; config.json"),
        (
            "weight_packed",
            np.zeros((36, 4), np.uint8),
            "bytes (36, 4) and scales (36, 1) for 36 columns.",
        ),
        (
            "weight_scale",
            np.zeros((36, 5), np.float16),
            "bytes (36, 5) and scales (36, 5) for 36 columns.",
        ),
        (
            "weight_scale",
            np.full((36, 1), -1, np.float16),
            "invalid bytes or scales.",
        ),
        ("weight_scale", np.full((36, 1), np.nan, np.float16), "NaN, infinite or too large values"),
    ],
)
def test_tensors_that_do_not_fit(suffix, value, text, folder):
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(f"{QUERY}.{suffix}")
    save_file({**tensors, **({} if value is None else {f"{QUERY}.{suffix}": value})}, folder / "model.safetensors")
    with pytest.raises(ReadError, match=re.escape(f"holds {text}")):
        PackedEncoder(folder).logits([[1, 2]])


def test_trit_bytes_beyond_the_last(tiny_teacher, tiny_batch, tmp_path):
    make_packed(tiny_teacher, RECIPES["ternary per tensor"], tiny_batch).save_pretrained(tmp_path)
    reader = PackedEncoder(tmp_path)
    reader.tensors[f"{QUERY}.weight_packed"] = np.full((36, 8), 243, np.uint8)
    with says(f"{QUERY} holds invalid bytes or scales. Download the file again."):
        reader.weight(QUERY)


def test_recipe_with_an_unknown_quantizer(folder):
    reader = PackedEncoder(folder)
    reader.recipe["weights"] = "quinary"
    text = f"{QUERY} is packed, but the recipe says weights='quinary'; known: binary, ternary, int4, int8."
    with says(text):
        reader.weight(QUERY)


@pytest.mark.parametrize(
    "ids, mask, text",
    [
        ([[1, 101]], None, "Ids 1 to 101 do not fit the 101 rows of bert.embeddings.word_embeddings."),
        ([[-1, 1]], None, "Ids -1 to 1 do not fit the 101 rows of bert.embeddings.word_embeddings."),
        ([[1] * 41], None, "Ids 0 to 40 do not fit the 40 rows of bert.embeddings.position_embeddings."),
        ([1, 2], None, "Ids, mask and types must be (batch, tokens): (2,), (2,), (2,)."),
        ([[1, 2]], [[1]], "Ids, mask and types must be (batch, tokens): (1, 2), (1, 1), (1, 2)."),
    ],
)
def test_input_that_does_not_fit(ids, mask, text, folder):
    with says(text):
        PackedEncoder(folder).logits(ids, mask)


def test_the_reader_refuses_logits_of_another_head(tiny_config, tmp_path):
    pack_model(compress(BertForMaskedLM(tiny_config))).save_pretrained(tmp_path)
    reader = PackedEncoder(tmp_path)
    assert reader.hidden_states([[1, 2, 3]]).shape == (1, 3, 36)
    text = (
        "Logits are those of sequence classifiers, token classifiers and question answerers; this is "
        "XTCBertForMaskedLM. Use hidden_states."
    )
    with says(text):
        reader.logits([[1, 2, 3]])


def test_token_types_of_a_family_without_them(tmp_path):
    packed("distilbert", "DistilBertModel").save_pretrained(tmp_path)
    reader = PackedEncoder(tmp_path)
    assert reader.hidden_states([[5, 6]], token_type_ids=[[0, 0]]).shape == (1, 2, 36)
    with says("XTCDistilBertModel knows no token types, but some are not 0. Leave them out."):
        reader.hidden_states([[5, 6]], token_type_ids=[[0, 1]])


def test_a_config_without_the_padding_token_that_positions_are_counted_from(tmp_path):
    packed("roberta", "RobertaModel").save_pretrained(tmp_path)
    change_config(tmp_path, pad_token_id=None)
    with says(f"The config.json of {tmp_path} lacks pad_token_id. Download it again."):
        PackedEncoder(tmp_path)
