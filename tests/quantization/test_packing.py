"""Packing: the bytes of format version 1, there and back, and every refusal with its exact text."""

import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hf_xtc.errors import PackedFileError, RecipeError, StateError, XTCError
from hf_xtc.quantization.packing import (
    FORMAT_VERSION,
    PackedWeight,
    check_packed,
    codes_per_byte,
    pack,
    pack_weight,
    packed_width,
    unpack,
)
from hf_xtc.quantization.quantizers import fake_quantize, get_quantizer
from hf_xtc.quantization.specs import FLOAT_DTYPES, QUANTIZERS, QuantSpec

# On a busy machine a few draws may take a second.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

LEVELS = (2, 3, 16, 256)

every_levels = pytest.mark.parametrize("levels", LEVELS)
quantizers = pytest.mark.parametrize("name", sorted(QUANTIZERS))
grids = pytest.mark.parametrize(
    "granularity, group_size", [("per_tensor", None), ("per_channel", None), ("per_group", 7)]
)


def refuses(text, error=XTCError):
    return pytest.raises(error, match=f"^{re.escape(text)}$")


def codes_of(rows):
    return torch.tensor(rows, dtype=torch.uint8)


def random_weight(rows=5, columns=21):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def codes_below(levels):
    """Codes of any shape, rows or columns of none included."""
    shapes = st.tuples(st.integers(0, 6), st.integers(0, 23))
    return shapes.flatmap(
        lambda shape: hnp.arrays("uint8", shape, elements=st.integers(0, levels - 1)).map(torch.from_numpy)
    )


@pytest.mark.parametrize(
    "levels, codes, packed",
    [
        (2, [1, 0, 1, 0, 1, 1, 0, 1], [0b10110101]),
        (2, [1, 0, 0, 0, 0, 0, 0, 0], [1]),
        (2, [0, 0, 0, 0, 0, 0, 0, 1], [128]),
        (2, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1], [255, 3]),
        (3, [1, 2, 0, 1, 2], [1 + 2 * 3 + 0 * 9 + 1 * 27 + 2 * 81]),
        (3, [2, 2, 2, 2, 2], [242]),
        (3, [0, 0, 0, 0, 1], [81]),
        (3, [0, 0, 0, 0, 0, 2, 1], [0, 2 + 1 * 3]),
        (16, [10, 3], [0x3A]),
        (16, [15, 15, 7], [0xFF, 0x07]),
        (256, [0, 7, 255], [0, 7, 255]),
    ],
)
def test_layout(levels, codes, packed):
    assert pack(codes_of([codes]), levels).tolist() == [packed]
    assert unpack(codes_of([packed]), len(codes), levels).tolist() == [codes]


def test_rows_pack_and_pad_alone():
    codes = codes_of([[1, 1, 1], [0, 0, 1], [1, 0, 0]])
    assert pack(codes, 2).tolist() == [[7], [4], [1]]
    assert pack(codes, 16).tolist() == [[0x11, 1], [0, 1], [1, 0]]


def test_the_padding_of_a_short_byte_is_ignored():
    assert unpack(codes_of([[255]]), 3, 2).tolist() == [[1, 1, 1]]


@every_levels
@given(data=st.data())
@settings(PATIENT, max_examples=60)
def test_unpack_takes_back_what_pack_gives(levels, data):
    codes = data.draw(codes_below(levels))
    before = codes.clone()
    packed = pack(codes, levels)
    assert torch.equal(codes, before)
    assert (packed.dtype, packed.shape) == (torch.uint8, (len(codes), packed_width(codes.shape[1], levels)))
    back = unpack(packed, codes.shape[1], levels)
    assert back.dtype == torch.uint8
    assert torch.equal(back, codes)


@every_levels
def test_every_byte_that_pack_writes(levels):
    """All `levels ** codes_per_byte` bytes are reached, each by its own codes; none beyond."""
    last = levels ** codes_per_byte(levels) - 1
    every = torch.arange(last + 1).to(torch.uint8)[:, None]
    codes = unpack(every, codes_per_byte(levels), levels)
    assert int(codes.max()) == levels - 1
    assert len(codes.unique(dim=0)) == last + 1
    assert torch.equal(pack(codes, levels), every)


@every_levels
def test_devices(levels, device):
    codes = torch.randint(0, levels, (5, 13), generator=torch.Generator().manual_seed(0)).to(device, torch.uint8)
    packed = pack(codes, levels)
    assert packed.device.type == device.type
    assert torch.equal(packed.cpu(), pack(codes.cpu(), levels))
    assert torch.equal(unpack(packed, 13, levels), codes)


@every_levels
def test_layout_in_memory_does_not_matter(levels):
    codes = torch.randint(0, levels, (20, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert not codes.t().is_contiguous()
    assert torch.equal(pack(codes.t(), levels), pack(codes.t().contiguous(), levels))
    assert torch.equal(pack(codes[:, ::2], levels), pack(codes[:, ::2].contiguous(), levels))


@pytest.mark.parametrize("levels, per_byte", [(2, 8), (3, 5), (16, 2), (256, 1)])
def test_widths(levels, per_byte):
    assert codes_per_byte(levels) == per_byte
    assert levels**per_byte <= 256 < levels ** (per_byte + 1)  # no byte holds one code more
    assert [packed_width(columns, levels) for columns in (0, 1, per_byte, per_byte + 1)] == [0, 1, 1, 2]


@pytest.mark.parametrize(
    "levels, width, size", [(2, 96, 294_912), (3, 154, 473_088), (16, 384, 1_179_648), (256, 768, 2_359_296)]
)
def test_bytes_of_a_bert_feed_forward(levels, width, size):
    assert packed_width(768, levels) == width
    assert 3072 * packed_width(768, levels) == size


@quantizers
def test_every_quantizer_has_a_width(name):
    assert codes_per_byte(get_quantizer(name).levels) >= 1


def test_format_version():
    """A change of layout needs another number, and the reader to know both."""
    assert FORMAT_VERSION == 1


@pytest.mark.parametrize("function", [codes_per_byte, lambda levels: pack(codes_of([[0]]), levels)])
def test_unknown_levels(function):
    with refuses("No packed width is defined for 5 levels; there is one for [2, 3, 16, 256]."):
        function(5)


@pytest.mark.parametrize("levels, code", [(2, 2), (2, 255), (3, 3), (16, 16)])
def test_code_too_large(levels, code):
    with refuses(f"Code {code} does not fit {levels} levels (0-{levels - 1})."):
        pack(codes_of([[0, 1], [code, 0]]), levels)


@pytest.mark.parametrize("width", [1, 3])
def test_wrong_width(width):
    with refuses(f"Packed rows of {width} bytes cannot hold 9 codes of 2 levels, which take 2 bytes."):
        unpack(torch.zeros(4, width, dtype=torch.uint8), 9, 2)


@grids
@quantizers
@pytest.mark.parametrize("scale_dtype", FLOAT_DTYPES)
def test_a_packed_weight_decodes_to_what_training_saw(name, granularity, group_size, scale_dtype):
    spec = QuantSpec(name, granularity, group_size, scale_dtype)
    weight = random_weight()
    before = weight.clone()
    packed = pack_weight(weight, spec)
    assert torch.equal(weight, before)
    assert (packed.columns, packed.spec) == (21, spec)
    assert (packed.scale.dtype, packed.scale.shape) == (getattr(torch, scale_dtype), spec.scale_shape(5, 21))
    assert packed.packed.shape == (5, packed_width(21, get_quantizer(name).levels))
    decoded = packed.decode()
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded, fake_quantize(weight, spec))


@grids
@quantizers
@given(index=st.lists(st.integers(0, 4), max_size=9))
@settings(PATIENT, max_examples=20)
def test_rows_of_a_packed_weight(name, granularity, group_size, index):
    packed = pack_weight(random_weight(), QuantSpec(name, granularity, group_size))
    rows = packed.rows(torch.tensor(index, dtype=torch.long))
    assert isinstance(rows, PackedWeight)
    assert rows.packed.shape == (len(index), packed.packed.shape[1])
    assert torch.equal(rows.decode(), packed.decode()[index])


def test_decoding_gives_a_new_tensor():
    packed = pack_weight(random_weight(), QuantSpec("int8"))
    decoded = packed.decode()
    before = decoded.clone()
    decoded.zero_()
    assert torch.equal(packed.decode(), before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@quantizers
def test_a_weight_that_is_not_finite(name, bad):
    weight = random_weight(2, 3)
    weight[0, 1] = weight[1, 2] = bad
    with refuses(
        "encoder.weight holds 2 NaN or infinite values of 6, which cannot be packed. "
        "Go back to an earlier checkpoint and train with a lower learning rate.",
        StateError,
    ):
        pack_weight(weight, QuantSpec(name), "encoder.weight")


@pytest.mark.parametrize(
    "name, largest", [("binary", 6.55e4), ("ternary", 6.55e4), ("int4", 5.24e5), ("int8", 8.38e6)]
)
def test_a_scale_that_overflows(name, largest):
    fits, overflows = torch.full((2, 3), largest), torch.full((2, 3), 1.1 * largest)
    assert bool(torch.isfinite(pack_weight(fits, QuantSpec(name)).decode()).all())
    with refuses("A scale of weight overflows float16. Use scale_dtype='float32'.", StateError):
        pack_weight(overflows, QuantSpec(name))
    packed = pack_weight(overflows, QuantSpec(name, scale_dtype="float32"))
    assert bool(torch.isfinite(packed.decode()).all())


def test_a_group_size_that_does_not_divide():
    with refuses(
        "group_size=4 does not divide the 6 input columns of a 2 x 6 weight, so its last group would be short. "
        "Choose a divisor, or granularity='per_channel'.",
        RecipeError,
    ):
        pack_weight(random_weight(2, 6), QuantSpec("binary", "per_group", 4))


@grids
@quantizers
def test_check_packed_accepts_what_pack_weight_writes(name, granularity, group_size):
    packed = pack_weight(random_weight(), QuantSpec(name, granularity, group_size))
    check_packed(packed.packed, packed.scale, get_quantizer(name).levels, "dense")


@every_levels
def test_check_packed_accepts_the_last_byte_and_scale_zero(levels):
    last = levels ** codes_per_byte(levels) - 1
    check_packed(codes_of([[0, last]]), torch.zeros(1, 1), levels, "dense")
    check_packed(torch.zeros(0, 3, dtype=torch.uint8), torch.zeros(0, 1), levels, "dense")


@pytest.mark.parametrize("byte", range(243, 256))
def test_check_packed_refuses_bytes_that_are_no_trits(byte):
    with refuses(
        f"dense.weight_packed holds the byte {byte}, but bytes of 3-level codes end at 242. "
        "The file is damaged; download or write it again.",
        PackedFileError,
    ):
        check_packed(codes_of([[0, 242], [byte, 1]]), torch.ones(2, 1), 3, "dense")


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("scale", [-1.0, -1e-6, float("nan"), float("inf"), -float("inf")])
def test_check_packed_refuses_scales(scale, dtype):
    with refuses(
        "dense.weight_scale holds a negative, NaN or infinite scale. The file is damaged; download or write it again.",
        PackedFileError,
    ):
        check_packed(codes_of([[0], [1]]), torch.tensor([[1.0], [scale]], dtype=getattr(torch, dtype)), 2, "dense")
