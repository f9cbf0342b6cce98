"""Quantizers: equal to DeepSpeed or different as documented, and properties of all quantizers.

`fixtures/oracle.safetensors` holds what DeepSpeed 0.19.4 (`compression/utils.py`, `compression/basic_layer.py`; torch
2.13 on CPU) makes of one random weight `w`, input `x` and upstream gradient `g`; of weight-sized results the first
`ROWS` rows. `_g1` is one scale per tensor, `_g64` one per row; `lin_b<bits>_<calibration>` has one scale per row.
"""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracle import ELEMENTS, LARGEST, ORACLE, PATIENT

from hf_xtc.errors import XTCError
from hf_xtc.modeling.layers import XTCEmbedding, XTCLinear
from hf_xtc.quantization.quantizers import UniformQuantizer, decode_weight, encode_weight, fake_quantize, get_quantizer
from hf_xtc.quantization.specs import FLOAT_DTYPES, QUANTIZERS, ActivationSpec, QuantSpec

ROWS = 16

DEEPSPEED_NAMES = {"binary": "binary", "ternary": "ternary", "int8": "sym8", "int4": "sym4"}
DEEPSPEED_GROUPS = {"per_tensor": "g1", "per_channel": "g64"}
quantizers = pytest.mark.parametrize("name", sorted(QUANTIZERS))
nearest_level = pytest.mark.parametrize(
    "name", [n for n in sorted(QUANTIZERS) if n == "binary" or issubclass(QUANTIZERS[n], UniformQuantizer)]
)
grids = pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_group"])


# Squared errors below this come from numbers with fewer than 24 bits.
SUBNORMAL = 100 * torch.finfo(torch.float32).tiny ** 2


@st.composite
def specs_and_weights(draw, name, granularity, scale_dtypes=FLOAT_DTYPES, weight_dtypes=FLOAT_DTYPES):
    """A spec and a weight of odd shape, with zeros, huge and tiny values, some rows all zero."""
    scale_dtype = draw(st.sampled_from(scale_dtypes))
    weight_dtype = draw(st.sampled_from(weight_dtypes))
    rows, size, groups = draw(st.integers(1, 5)), draw(st.integers(1, 9)), draw(st.integers(1, 3))
    spec = QuantSpec(name, granularity, size if granularity == "per_group" else None, scale_dtype)
    elements = ELEMENTS[min(LARGEST[scale_dtype], LARGEST[weight_dtype])]
    array = draw(hnp.arrays("float32", (rows, groups * size), elements=elements, fill=st.just(0.0)))
    return spec, torch.from_numpy(array).to(getattr(torch, weight_dtype))


@pytest.mark.parametrize("granularity", DEEPSPEED_GROUPS)
@pytest.mark.parametrize("name", DEEPSPEED_NAMES)
def test_weights_as_in_deepspeed(name, granularity):
    key = f"{DEEPSPEED_NAMES[name]}_{DEEPSPEED_GROUPS[granularity]}"
    weight = ORACLE["w"].clone().requires_grad_()
    fake = fake_quantize(weight, QuantSpec(name, granularity, scale_dtype="float32"))
    fake.backward(ORACLE["g"])
    if name == "binary":  # the same signs; its mean is summed in another order, where `norm` is off by 2e-6
        assert torch.equal(fake[:ROWS].sign(), ORACLE[key].sign())
        torch.testing.assert_close(fake[:ROWS], ORACLE[key], rtol=4e-6, atol=0)
    else:
        assert torch.equal(fake[:ROWS], ORACLE[key])
    assert torch.equal(weight.grad[:ROWS], ORACLE[f"{key}_grad"])


@pytest.mark.parametrize("calibration", ["None", "dynamic", "static"])
@pytest.mark.parametrize("bits, name", [(1, "binary"), (2, "ternary"), (4, "int4"), (8, "int8")])
def test_linears_as_in_deepspeed(bits, name, calibration):
    activation = None if calibration == "None" else ActivationSpec(8, True, calibration)
    linear = XTCLinear(96, 64, False, spec=QuantSpec(name, scale_dtype="float32"), activation=activation)
    linear.weight.data.copy_(ORACLE["w"])
    # Outputs of size 1; a matrix product adds in an order that depends on the number of threads.
    torch.testing.assert_close(linear(ORACLE["x"]), ORACLE[f"lin_b{bits}_{calibration}"], rtol=0, atol=2e-6)


def test_embeddings_as_in_deepspeed():
    embedding = XTCEmbedding(64, 96, spec=QuantSpec("ternary", scale_dtype="float32"))
    embedding.weight.data.copy_(ORACLE["w"])
    assert torch.equal(embedding(torch.arange(7)), ORACLE["emb_b2"])


def test_sign_of_zero_is_plus_one():
    edge = ORACLE["edge"][:1]  # 0, -1, 2, 0
    assert ORACLE["edge_binary"][0].tolist() == [0.0, -0.75, 0.75, 0.0]
    assert fake_quantize(edge, QuantSpec("binary")).tolist() == [[0.75, -0.75, 0.75, 0.75]]
    assert encode_weight(-edge[:, :1], QuantSpec("binary"))[0].tolist() == [[1]]  # -0.0


def test_ternary_agrees_except_in_zero_rows():
    assert ORACLE["edge_ternary"][1].isnan().all()
    fake = fake_quantize(ORACLE["edge"], QuantSpec("ternary"))
    assert torch.equal(fake[0], ORACLE["edge_ternary"][0])
    assert fake[1].tolist() == [0.0, 0.0, 0.0, 0.0]


@grids
@quantizers
def test_zero_rows_have_scale_zero(name, granularity):
    spec = QuantSpec(name, granularity, 3 if granularity == "per_group" else None)
    zero = torch.zeros(2, 6)
    codes, scale = encode_weight(zero, spec)
    assert torch.equal(scale, torch.zeros(spec.scale_shape(2, 6), dtype=torch.float16))
    assert bool((codes == get_quantizer(name).levels // 2).all())  # the middle; no NaN was cast to an integer
    assert torch.equal(decode_weight(codes, scale, spec), zero)
    assert torch.equal(fake_quantize(zero, spec), zero)


@quantizers
def test_a_zero_row_leaves_its_neighbours_alone(name):
    weight = torch.tensor([[0.0, 0.0, 0.0], [0.5, -0.25, 0.125]])
    fake = fake_quantize(weight, QuantSpec(name))
    assert torch.equal(fake[0], torch.zeros(3))
    assert torch.equal(fake[1:], fake_quantize(weight[1:], QuantSpec(name)))


@pytest.mark.parametrize(
    "scale_dtype, expected", [("float16", 0.199951171875), ("bfloat16", 0.2001953125), ("float32", 0.20000000298)]
)
def test_scale_is_rounded_to_its_type_in_training_too(scale_dtype, expected):
    spec = QuantSpec("binary", scale_dtype=scale_dtype)
    weight = torch.tensor([[0.2, -0.2]])
    scale = encode_weight(weight, spec)[1]
    assert scale.dtype == getattr(torch, scale_dtype)
    assert scale.item() == pytest.approx(expected, rel=1e-9)
    assert torch.equal(fake_quantize(weight, spec), torch.tensor([[expected, -expected]]))
    assert fake_quantize(weight, spec).dtype == torch.float32


@pytest.mark.parametrize(
    "name, codes, scale, values",
    [
        ("binary", [1, 0, 1, 1], 0.5, [0.5, -0.5, 0.5, 0.5]),  # mean |w| = 2 / 4
        ("ternary", [1, 0, 2, 1], 0.875, [0.0, -0.875, 0.875, 0.0]),  # threshold .35, mean of .75 and 1
        ("int4", [10, 2, 15, 8], 0.125, [0.25, -0.75, 0.875, 0.0]),  # 1 / 8; the largest saturates
        ("int8", [160, 32, 255, 128], 0.0078125, [0.25, -0.75, 0.9921875, 0.0]),  # 1 / 128
    ],
)
def test_by_hand(name, codes, scale, values):
    weight = torch.tensor([[0.25, -0.75, 1.0, 0.0]])
    spec = QuantSpec(name)
    got_codes, got_scale = encode_weight(weight, spec)
    assert (got_codes.tolist(), got_scale.tolist()) == ([codes], [[scale]])
    assert torch.equal(fake_quantize(weight, spec), torch.tensor([values]))


@pytest.mark.parametrize(
    "granularity, group_size, scale",
    [
        ("per_tensor", None, [[3.75]]),
        ("per_channel", None, [[2.5], [5.0]]),
        ("per_group", 2, [[1.5, 3.5], [2.0, 8.0]]),
    ],
)
def test_granularity(granularity, group_size, scale):
    weight = torch.tensor([[1.0, -2.0, 3.0, -4.0], [-1.0, 3.0, 7.0, 9.0]])
    spec = QuantSpec("binary", granularity, group_size)
    codes, got = encode_weight(weight, spec)
    assert got.tolist() == scale
    assert codes.tolist() == [[1, 0, 1, 0], [0, 1, 1, 1]]
    expected = torch.tensor(scale).repeat_interleave(4 // len(scale[0]), 1).expand(2, 4) * (2 * codes - 1.0)
    assert torch.equal(decode_weight(codes, got, spec), expected)


@pytest.mark.parametrize(
    "name, levels, bits", [("binary", 2, 1), ("ternary", 3, 2), ("int4", 16, 4), ("int8", 256, 8)]
)
def test_levels_and_bits(name, levels, bits):
    quantizer = get_quantizer(name)
    assert (quantizer.levels, quantizer.bits) == (levels, bits)


def test_unknown_quantizer():
    known = ", ".join(sorted(QUANTIZERS))
    with pytest.raises(XTCError, match=f"^Unknown quantizer 'tern'; registered: {known}\\.$"):
        get_quantizer("tern")


@grids
@quantizers
@given(data=st.data())
@settings(PATIENT, max_examples=12)
def test_codes_and_scale(name, granularity, data):
    spec, weight = data.draw(specs_and_weights(name, granularity))
    before = weight.clone()
    codes, scale = encode_weight(weight, spec)
    assert torch.equal(weight, before)
    assert (codes.dtype, codes.shape) == (torch.uint8, weight.shape)
    assert int(codes.max()) < get_quantizer(name).levels
    assert (scale.dtype, scale.shape) == (getattr(torch, spec.scale_dtype), spec.scale_shape(*weight.shape))
    assert bool((torch.isfinite(scale) & (scale >= 0)).all())


@grids
@quantizers
@given(data=st.data())
@settings(PATIENT, max_examples=12)
def test_training_uses_the_values_in_the_file(name, granularity, data):
    spec, weight = data.draw(specs_and_weights(name, granularity))
    before = weight.clone()
    fake = fake_quantize(weight, spec)
    assert torch.equal(weight, before)
    decoded = decode_weight(*encode_weight(weight, spec), spec)
    assert decoded.dtype == torch.float32
    assert fake.dtype == weight.dtype
    assert bool(torch.isfinite(fake).all())
    assert torch.equal(fake, decoded.to(weight.dtype))
    assert torch.equal(fake.signbit(), decoded.signbit())  # of zeros


@grids
@quantizers
@given(data=st.data())
@settings(PATIENT, max_examples=12)
def test_encode_inverts_decode(name, granularity, data):
    """For normal scales: 0.7 times a subnormal one may round up to it, which hides the ternary values."""
    spec, weight = data.draw(specs_and_weights(name, granularity))
    codes, scale = encode_weight(weight, spec)
    quantizer = get_quantizer(name)
    groups, steps = codes.reshape(scale.numel(), -1), scale.float().reshape(-1, 1)
    normal = steps[:, 0] >= torch.finfo(torch.float32).tiny
    assume(bool(normal.any()))
    groups, steps = groups[normal], steps[normal]
    assert torch.equal(quantizer.encode(quantizer.decode(groups, steps), steps), groups)


@grids
@quantizers
@given(data=st.data())
@settings(PATIENT, max_examples=10)
def test_gradient_is_the_identity(name, granularity, data):
    spec, weight = data.draw(specs_and_weights(name, granularity))
    upstream = torch.linspace(-3, 3, weight.numel()).view_as(weight).to(weight.dtype)
    weight.requires_grad_()
    fake_quantize(weight, spec).backward(upstream)
    assert weight.grad.dtype == weight.dtype
    assert torch.equal(weight.grad, upstream)


@grids
@quantizers
@pytest.mark.parametrize("view", ["transposed", "strided", "expanded"])
def test_layout_in_memory_does_not_matter(name, granularity, view):
    weight = torch.randn(6, 12, generator=torch.Generator().manual_seed(0))
    weight = {"transposed": weight.view(12, 6).t(), "strided": weight[:, ::2], "expanded": weight[:1].expand(6, 12)}[
        view
    ]
    spec = QuantSpec(name, granularity, 3 if granularity == "per_group" else None)
    assert not weight.is_contiguous()
    assert torch.equal(fake_quantize(weight, spec), fake_quantize(weight.contiguous(), spec))


@quantizers
@pytest.mark.parametrize("granularity, group_size", [("per_channel", None), ("per_group", 3)])
def test_weights_without_rows(name, granularity, group_size):
    spec = QuantSpec(name, granularity, group_size)
    codes, scale = encode_weight(torch.zeros(0, 6), spec)
    assert (codes.shape, scale.shape) == ((0, 6), spec.scale_shape(0, 6))
    assert fake_quantize(torch.zeros(0, 6), spec).shape == (0, 6)


@quantizers
def test_rows_are_encoded_independently(name):
    """An embedding encodes the rows of a batch, the file all rows of the table; both must give equal codes."""
    weight = torch.randn(40, 37, generator=torch.Generator().manual_seed(0))
    spec = QuantSpec(name, scale_dtype="float32")
    whole = fake_quantize(weight, spec)
    for row in range(40):
        assert torch.equal(fake_quantize(weight[row : row + 1], spec), whole[row : row + 1])


@grids
@nearest_level
@given(data=st.data())
@settings(PATIENT, max_examples=12)
def test_codes_are_the_nearest_levels(name, granularity, data):
    """Nearest among the levels of the *rounded* scale, with a tolerance of one last bit for ties in float32."""
    spec, weight = data.draw(specs_and_weights(name, granularity))
    codes, scale = encode_weight(weight, spec)
    quantizer = get_quantizer(name)
    every = torch.arange(quantizer.levels, dtype=torch.uint8)
    groups, group_codes = weight.double().reshape(scale.numel(), -1), codes.reshape(scale.numel(), -1).long()
    levels = quantizer.decode(every.expand(scale.numel(), -1), scale.float().view(-1, 1)).double()
    error = (groups[:, :, None] - levels[:, None, :]).abs()
    taken = error.gather(2, group_codes[:, :, None])[:, :, 0]
    assert bool((taken <= error.amin(2) + 1e-6 * groups.abs()).all())


@grids
@given(data=st.data(), factor=st.floats(0, 4))
@settings(PATIENT, max_examples=15)
def test_binary_is_the_least_squares_optimum(granularity, data, factor):
    """Neither another scale with these signs nor one flipped sign comes closer to the group."""
    spec, weight = data.draw(specs_and_weights("binary", granularity, ["float32"], ["float32"]))
    num_groups = encode_weight(weight, spec)[1].numel()
    groups = weight.double().reshape(num_groups, -1)
    ours = fake_quantize(weight, spec).double().reshape(num_groups, -1)
    slack = 1e-6 * (groups**2).sum(1) + SUBNORMAL
    error = ((groups - ours) ** 2).sum(1)
    assert bool((error <= ((groups - factor * ours) ** 2).sum(1) + slack).all())
    flipped = ours.clone()
    flipped[:, 0] *= -1
    assert bool((error <= ((groups - factor * flipped) ** 2).sum(1) + slack).all())


@grids
@given(data=st.data(), factor=st.floats(0, 4))
@settings(PATIENT, max_examples=15)
def test_ternary_scale_is_the_least_squares_optimum_of_its_codes(granularity, data, factor):
    spec, weight = data.draw(specs_and_weights("ternary", granularity, ["float32"], ["float32"]))
    num_groups = encode_weight(weight, spec)[1].numel()
    groups = weight.double().reshape(num_groups, -1)
    ours = fake_quantize(weight, spec).double().reshape(num_groups, -1)
    error, other = ((groups - ours) ** 2).sum(1), ((groups - factor * ours) ** 2).sum(1)
    assert bool((error <= other + 1e-6 * (groups**2).sum(1) + SUBNORMAL).all())
