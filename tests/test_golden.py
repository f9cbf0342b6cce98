"""A packed checkpoint written once by `fixtures/make_golden.py`: later versions must still read it.

Its bytes are also decoded by hand, in pure Python, from what `hf_xtc.quantization.packing` documents.
"""

import json
import struct
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import hf_xtc.modeling  # noqa: F401  (registers the models with the Auto classes)
from hf_xtc.modeling.layers import PackedEmbedding, PackedLinear

FOLDER = Path(__file__).parent / "fixtures" / "golden_packed"
INPUT_IDS = [[1, 7, 3, 12, 5], [4, 9, 2, 0, 0]]
ATTENTION_MASK = [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
LOGITS = [[-1.203635931, 1.115732431, 0.62184], [-1.229538798, 1.243754864, 0.523830175]]


def read_safetensors(file):
    """Name -> (dtype, shape, bytes): 8 bytes header length, JSON header, then the tensors' bytes."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    header.pop("__metadata__")
    return {name: (e["dtype"], e["shape"], body[slice(*e["data_offsets"])]) for name, e in header.items()}


@pytest.fixture
def golden():
    """The golden model, loaded from the committed folder."""
    return AutoModelForSequenceClassification.from_pretrained(FOLDER)


def test_fixture_is_small_and_of_version_1():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 10_000
    assert sorted(file.name for file in FOLDER.iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((FOLDER / "config.json").read_text())["xtc"]["format_version"] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits(dtype):
    model, info = AutoModelForSequenceClassification.from_pretrained(FOLDER, dtype=dtype, output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        logits = model(torch.tensor(INPUT_IDS), attention_mask=torch.tensor(ATTENTION_MASK)).logits
    # Another CPU may add float32 numbers in another order: a few units in the last place of numbers near 1. That
    # float64 agrees shows that no activation lies so near an 8-bit step that this could move it across.
    assert torch.allclose(logits, torch.tensor(LOGITS, dtype=dtype), rtol=0, atol=1e-6)


def test_saving_again_gives_identical_tensors(golden, tmp_path):
    golden.save_pretrained(tmp_path)
    assert read_safetensors(tmp_path / "model.safetensors") == read_safetensors(FOLDER / "model.safetensors")


def test_config_means_the_same(golden):
    recipe, layer_map = golden.config.recipe, golden.config.layer_map
    assert (recipe.weights, recipe.embedding_weights, recipe.position_weights) == ("binary", "ternary", "int8")
    assert (recipe.granularity, recipe.scale_dtype, recipe.rest_dtype) == ("per_channel", "float16", "float16")
    assert (recipe.activation_bits, recipe.activation_symmetric, recipe.quantize_pooler) == (8, True, True)
    assert (layer_map.layers, layer_map.num_teacher_layers, layer_map.shifted) == ((1,), 2, False)
    assert golden.config.state == "packed"


DIGITS = {"binary": (2, 8), "ternary": (3, 5), "int8": (256, 1)}  # base, codes in a byte
VALUES = {"binary": lambda code: 2 * code - 1, "ternary": lambda code: code - 1, "int8": lambda code: code - 128}


def decode_row(packed, scale, columns, quantizer):
    """Decodes one row: the digits of each byte, the lowest first, as signed multiples of `scale`."""
    base, per_byte = DIGITS[quantizer]
    codes = [byte // base**i % base for byte in packed for i in range(per_byte)][:columns]
    return [VALUES[quantizer](code) * scale for code in codes]


@pytest.mark.parametrize(
    "path, quantizer, width",
    [
        ("bert.encoder.layer.0.intermediate.dense", "binary", 2),  # 10 columns in 2 bytes
        ("bert.encoder.layer.0.output.dense", "binary", 2),  # 14 columns
        ("bert.pooler.dense", "binary", 2),
        ("bert.embeddings.word_embeddings", "ternary", 2),
        ("bert.embeddings.position_embeddings", "int8", 10),
    ],
)
def test_decoding_by_hand(path, quantizer, width, golden):
    tensors = read_safetensors(FOLDER / "model.safetensors")
    code_dtype, (rows, stored_width), codes = tensors[f"{path}.weight_packed"]
    scale_dtype, scale_shape, scales = tensors[f"{path}.weight_scale"]
    assert (code_dtype, stored_width, scale_dtype, scale_shape) == ("U8", width, "F16", [rows, 1])
    module = golden.get_submodule(path)
    weight = module.dequantize()
    assert isinstance(module, PackedLinear | PackedEmbedding)
    assert weight.shape[0] == rows
    for row in range(rows):
        (scale,) = struct.unpack_from("<e", scales, 2 * row)
        # Exact in float32 too: a code of 8 bits times a scale of 11.
        assert weight[row].tolist() == decode_row(codes[row * width :][:width], scale, weight.shape[1], quantizer)


def test_one_row_in_full(golden):
    """Row 0 of the feed-forward's first linear: ten signs in two bytes, the first in the lowest bit."""
    path = "bert.encoder.layer.0.intermediate.dense"
    _, _, codes = read_safetensors(FOLDER / "model.safetensors")[f"{path}.weight_packed"]
    assert [f"{byte:08b}" for byte in codes[:2]] == ["11000010", "00000001"]
    signs = [-1, 1, -1, -1, -1, -1, 1, 1, 1, -1]
    assert golden.get_submodule(path).dequantize()[0].tolist() == [sign * 0.34423828125 for sign in signs]
