"""The layers in their two states: bitwise equal, also after a round trip, in every dtype and `torch.compile`d."""

import copy
import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from hf_xtc.errors import RecipeError, StateError, XTCError
from hf_xtc.modeling.layers import (
    PackedEmbedding,
    PackedLinear,
    XTCEmbedding,
    XTCLinear,
    pack_layer,
    partly_quantized,
    unpack_layer,
)
from hf_xtc.quantization.activations import ActivationQuantizer
from hf_xtc.quantization.quantizers import fake_quantize
from hf_xtc.quantization.specs import FLOAT_DTYPES, QUANTIZERS, ActivationSpec, QuantSpec

# On a busy machine a few draws may take a second.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

SIZE = 3  # columns per group
GRIDS = [("per_tensor", None), ("per_channel", None), ("per_group", SIZE)]
ACTIVATIONS = [
    None,
    ActivationSpec(8, True, "dynamic"),
    ActivationSpec(8, False, "dynamic"),
    ActivationSpec(4, True, "static"),
    ActivationSpec(8, False, "static"),
]

quantizers = pytest.mark.parametrize("name", sorted(QUANTIZERS))
grids = pytest.mark.parametrize("granularity, group_size", GRIDS, ids=[grid[0] for grid in GRIDS])
activations = pytest.mark.parametrize(
    "activation", ACTIVATIONS, ids=lambda a: f"{a.bits}-{a.symmetric}-{a.calibration}" if a else "float"
)
dtypes = pytest.mark.parametrize("dtype", FLOAT_DTYPES)
casts = pytest.mark.parametrize(
    "cast",
    [
        lambda module: module.half(),
        lambda module: module.bfloat16(),
        lambda module: module.float(),
        lambda module: module.double(),
        lambda module: module.to(torch.float16),
        lambda module: module.to("cpu", torch.bfloat16),
        lambda module: module.half().float(),
    ],
    ids=["half", "bfloat16", "float", "double", "to-float16", "to-cpu-bfloat16", "half-float"],
)


def refuses(text, error=XTCError):
    return pytest.raises(error, match=f"^{re.escape(text)}$")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linears(spec, activation=None, *, rows=5, columns=21, bias=True, dtype=torch.float32):
    """A latent linear that has seen a batch, and its packed form; both in eval mode."""
    latent = XTCLinear(columns, rows, bias, spec=spec, activation=activation).to(dtype)
    with torch.no_grad():
        latent.weight.copy_(random(rows, columns))
        if bias:
            latent.bias.copy_(random(rows, seed=1))
        latent(random(4, columns, seed=2).to(dtype))
    packed = PackedLinear(columns, rows, bias, spec=spec, activation=activation).to(dtype)
    pack_layer(latent, packed, "dense")
    return latent.eval(), packed.eval()


def embeddings(spec, *, rows=11, columns=21, padding_idx=None, dtype=torch.float32):
    """A latent embedding and its packed form."""
    latent = XTCEmbedding(rows, columns, padding_idx, spec=spec).to(dtype)
    with torch.no_grad():
        latent.weight.copy_(random(rows, columns))
    packed = PackedEmbedding(rows, columns, padding_idx, spec=spec).to(dtype)
    pack_layer(latent, packed, "word_embeddings")
    return latent, packed


@st.composite
def shapes(draw):
    """Rows, columns that `SIZE` divides, tokens, bias."""
    return draw(st.integers(1, 9)), SIZE * draw(st.integers(1, 9)), draw(st.integers(0, 5)), draw(st.booleans())


@activations
@grids
@quantizers
@given(shape=shapes(), seed=st.integers(0, 3))
@settings(PATIENT, max_examples=5)
@pytest.mark.usefixtures("reference_backend")
def test_latent_and_packed_linears_are_equal(name, granularity, group_size, activation, shape, seed):
    rows, columns, tokens, bias = shape
    spec = QuantSpec(name, granularity, group_size)
    latent, packed = linears(spec, activation, rows=rows, columns=columns, bias=bias)
    values = 2 * random(tokens, columns, seed=seed)
    assert torch.equal(latent(values), packed(values))


@dtypes
@pytest.mark.parametrize("scale_dtype", FLOAT_DTYPES)
@quantizers
def test_latent_and_packed_linears_are_equal_in_every_dtype(name, scale_dtype, dtype):
    dtype = getattr(torch, dtype)
    latent, packed = linears(QuantSpec(name, scale_dtype=scale_dtype), ActivationSpec(), dtype=dtype)
    values = random(2, 3, 21).to(dtype)
    assert packed(values).dtype == dtype
    assert torch.equal(latent(values), packed(values))


@grids
@quantizers
@given(ids=st.lists(st.integers(0, 10), max_size=12), columns=st.integers(1, 9))
@settings(PATIENT, max_examples=15)
def test_latent_and_packed_embeddings_are_equal(name, granularity, group_size, ids, columns):
    """An embedding has one scale per row, whatever granularity the spec has for linears."""
    latent, packed = embeddings(QuantSpec(name, granularity, group_size), columns=SIZE * columns)
    ids = torch.tensor(ids, dtype=torch.long)
    assert torch.equal(latent(ids), packed(ids))


@grids
def test_embeddings_have_one_scale_per_row(granularity, group_size):
    latent, packed = embeddings(QuantSpec("binary", granularity, group_size, "float32"))
    assert packed.weight_scale.shape == (11, 1)
    assert latent.spec == packed.spec == QuantSpec("binary", scale_dtype="float32")
    assert torch.equal(packed(torch.arange(11)), fake_quantize(latent.weight, latent.spec))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 0), (2, 1, 3)], ids=str)
def test_shapes_of_lookups(shape):
    latent, packed = embeddings(QuantSpec("ternary"))
    ids = torch.randint(0, 11, shape, generator=torch.Generator().manual_seed(0))
    assert packed(ids).shape == (*shape, 21)
    assert torch.equal(latent(ids), packed(ids))


@pytest.mark.parametrize("shape", [(21,), (3, 21), (2, 3, 21), (2, 0, 21), (0, 21)], ids=str)
@activations
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_shapes_of_inputs(shape, activation, training):
    for layer in linears(QuantSpec("binary"), activation):
        layer.train(training)
        assert layer(random(*shape)).shape == (*shape[:-1], 5)


@dtypes
def test_embeddings_give_the_dtype_of_the_module(dtype):
    dtype = getattr(torch, dtype)
    latent, packed = embeddings(QuantSpec("int8"), dtype=dtype)
    ids = torch.arange(11)
    assert packed(ids).dtype == latent(ids).dtype == dtype
    assert torch.equal(latent(ids), packed(ids))
    assert packed.to(torch.float64)(ids).dtype == torch.float64
    assert list(packed.state_dict()) == ["weight_packed", "weight_scale"]


@casts
@pytest.mark.parametrize("scale_dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("make", [linears, embeddings])
def test_casts_leave_codes_and_scales_alone(make, scale_dtype, cast):
    _, packed = make(QuantSpec("int8", scale_dtype=scale_dtype))
    codes, scale, weight = packed.weight_packed.clone(), packed.weight_scale.clone(), packed.dequantize()
    assert cast(packed) is packed
    assert packed.weight_packed.dtype == torch.uint8
    assert packed.weight_scale.dtype == getattr(torch, scale_dtype)
    assert torch.equal(packed.weight_packed, codes)
    assert torch.equal(packed.weight_scale, scale)
    assert torch.equal(packed.dequantize(), weight)


def test_a_cast_of_the_whole_model_reaches_packed_layers():
    _, packed = linears(QuantSpec("ternary", scale_dtype="float32"), ActivationSpec(8, True, "static"))
    scale, seen = packed.weight_scale.clone(), packed.activation.range.clone()
    model = nn.Sequential(packed, nn.LayerNorm(5)).half()
    assert model(random(3, 21).half()).dtype == torch.float16
    assert packed.bias.dtype == torch.float16
    assert torch.equal(packed.weight_scale, scale)
    assert torch.equal(packed.activation.range, seen)


def test_casts_reach_latent_weights():
    latent = XTCLinear(6, 4, spec=QuantSpec("binary")).half()
    assert (latent.weight.dtype, latent.bias.dtype) == (torch.float16, torch.float16)


def test_devices(device):
    latent, packed = linears(QuantSpec("ternary", scale_dtype="float32"), ActivationSpec())
    latent, packed = latent.to(device), packed.to(device)
    pack_layer(latent, packed, "dense")  # sums differ in their last bit between devices
    values = random(3, 21).to(device)
    assert packed.weight_scale.device.type == packed.weight_packed.device.type == device.type
    assert packed(values).device.type == device.type
    assert torch.equal(latent(values), packed(values))


def test_the_meta_device():
    """The state that `from_pretrained` starts from: the shapes and dtypes of the file, without its values."""
    for packed in (
        PackedLinear(21, 5, spec=QuantSpec("ternary", "per_group", 3), device="meta"),
        PackedEmbedding(5, 21, spec=QuantSpec("ternary"), device="meta"),
    ):
        packed.half()
        assert all(buffer.is_meta for buffer in packed.buffers())
        assert (packed.weight_packed.shape, packed.weight_packed.dtype) == ((5, 5), torch.uint8)
        assert packed.weight_scale.dtype == torch.float16
    assert packed.weight_scale.shape == (5, 1)


@activations
@grids
@quantizers
def test_packing_fills_codes_scale_bias_and_range(name, granularity, group_size, activation):
    spec = QuantSpec(name, granularity, group_size, "float32")
    latent, packed = linears(spec, activation)
    assert torch.equal(packed.dequantize(), fake_quantize(latent.weight, spec))
    assert torch.equal(packed.bias, latent.bias)
    expected = {"bias", "weight_packed", "weight_scale"}
    if activation is not None and activation.calibration == "static":
        assert torch.equal(packed.activation.range, latent.activation.range)
        assert packed.activation.range.abs().sum() > 0
        expected.add("activation.range")
    assert set(packed.state_dict()) == expected


def test_packing_leaves_the_latent_layer_alone():
    latent, packed = linears(QuantSpec("binary"))
    before = {name: tensor.clone() for name, tensor in latent.state_dict().items()}
    with torch.no_grad():
        packed.bias.zero_()
        packed.weight_packed.zero_()
        packed.dequantize().zero_()
    assert all(torch.equal(latent.state_dict()[name], tensor) for name, tensor in before.items())


@activations
@grids
@quantizers
def test_unpacking_gives_the_decoded_values(name, granularity, group_size, activation):
    spec = QuantSpec(name, granularity, group_size)
    _, packed = linears(spec, activation)
    latent = XTCLinear(21, 5, spec=spec, activation=activation).eval()
    unpack_layer(packed, latent)
    assert torch.equal(latent.weight, packed.dequantize())
    assert torch.equal(latent.bias, packed.bias)
    assert latent.weight.requires_grad
    values = random(3, 21)
    inputs = values if activation is None else latent.activation(values)
    assert torch.equal(F.linear(inputs, latent.weight, latent.bias), packed(values))


@pytest.mark.parametrize("scale_dtype", ["float16", "bfloat16"])
@grids
@pytest.mark.parametrize("name", ["binary", "ternary"])
def test_packing_an_unpacked_layer_gives_the_same_bytes(name, granularity, group_size, scale_dtype):
    """Groups of one or two values with at most 11 bits, whose mean is exact."""
    spec = QuantSpec(name, granularity, group_size, scale_dtype)
    _, packed = linears(spec)
    latent, again = XTCLinear(21, 5, spec=spec), PackedLinear(21, 5, spec=spec)
    unpack_layer(packed, latent)
    pack_layer(latent, again, "dense")
    assert torch.equal(again.weight_packed, packed.weight_packed)
    assert torch.equal(again.weight_scale, packed.weight_scale)


@quantizers
def test_embeddings_there_and_back(name):
    spec = QuantSpec(name)
    _, packed = embeddings(spec)
    latent = XTCEmbedding(11, 21, spec=spec)
    unpack_layer(packed, latent)
    assert torch.equal(latent.weight, packed(torch.arange(11)))


def test_packing_names_the_layer_that_is_not_finite():
    latent, packed = linears(QuantSpec("binary"))
    latent.weight.data[0, 0] = float("nan")
    with refuses(
        "encoder.layer.0.dense.weight holds 1 NaN or infinite values of 105, which cannot be packed. "
        "Go back to an earlier checkpoint and train with a lower learning rate.",
        StateError,
    ):
        pack_layer(latent, packed, "encoder.layer.0.dense")


@activations
def test_gradients_reach_input_and_bias_of_a_packed_linear_only(activation):
    latent, packed = linears(QuantSpec("ternary"), activation)
    assert [name for name, _ in packed.named_parameters()] == ["bias"]
    values, same = random(3, 21).requires_grad_(), random(3, 21).requires_grad_()
    upstream = random(3, 5, seed=7)
    packed(values).backward(upstream)
    latent(same).backward(upstream)
    assert torch.equal(values.grad, upstream @ packed.dequantize())
    assert torch.equal(values.grad, same.grad)
    assert torch.equal(packed.bias.grad, upstream.sum(0))
    assert not packed.weight_packed.requires_grad
    assert not packed.weight_scale.requires_grad


def test_a_packed_embedding_has_nothing_to_train():
    _, packed = embeddings(QuantSpec("binary"))
    assert list(packed.parameters()) == []
    assert not packed(torch.arange(11)).requires_grad


def test_gradients_reach_the_latent_weight_unchanged():
    latent, _ = linears(QuantSpec("binary"))
    values, upstream = random(3, 21), random(3, 5, seed=7)
    latent(values).backward(upstream)
    assert torch.equal(latent.weight.grad, upstream.t() @ values)


def test_gradients_of_an_embedding_are_summed_over_lookups():
    latent, _ = embeddings(QuantSpec("binary"), padding_idx=0)
    latent(torch.tensor([3, 0, 3, 5])).backward(torch.ones(4, 21))
    assert latent.weight.grad.sum(1).tolist() == [0, 0, 0, 2 * 21, 0, 21, 0, 0, 0, 0, 0]


def test_flags_of_a_latent_linear():
    """Schedules switch each quantizer on and off, in training."""
    latent, packed = linears(QuantSpec("binary"), ActivationSpec(4))
    latent.train()
    values = random(3, 21)
    weight, quantized = packed.dequantize(), ActivationQuantizer(ActivationSpec(4))(values)
    for latent.quantized_part in (1.0, 0.0):
        for latent.quantize_activation in (True, False):
            expected = F.linear(
                quantized if latent.quantize_activation else values,
                weight if latent.quantized_part else latent.weight,
                latent.bias,
            )
            assert torch.equal(latent(values), expected)
    assert not torch.equal(weight, latent.weight)
    assert not torch.equal(quantized, values)


@pytest.mark.parametrize("part", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("quantize_activation", [True, False], ids=["quantized", "float"])
@activations
def test_a_latent_linear_evaluates_as_it_packs(activation, quantize_activation, part):
    """Evaluation quantizes whatever the schedule; training follows the schedule."""
    latent, packed = linears(QuantSpec("binary"), activation)
    latent.quantized_part, latent.quantize_activation = part, quantize_activation
    values = random(3, 21)
    assert torch.equal(latent(values), packed(values))
    inputs = values
    if activation is not None and quantize_activation:
        inputs = copy.deepcopy(latent.activation).train()(values)
    weight = torch.lerp(latent.weight, packed.dequantize(), part)
    assert torch.equal(latent.train()(values), F.linear(inputs, weight, latent.bias))


@pytest.mark.parametrize("part", [0.0, 0.5, 1.0])
def test_a_latent_embedding_evaluates_as_it_packs(part):
    latent, packed = embeddings(QuantSpec("binary"))
    ids = torch.arange(11)
    latent.quantized_part = part
    assert torch.equal(latent.eval()(ids), packed(ids))
    assert torch.equal(latent.train()(ids), torch.lerp(latent.weight, packed(ids), part))
    assert torch.equal(latent(ids), packed(ids)) == (part == 1)


@pytest.mark.parametrize("quantizer", ["binary", "ternary"])
def test_partly_quantized_layer_blends_and_keeps_the_gradient(quantizer):
    torch.manual_seed(0)
    weight, spec = torch.randn(4, 6, requires_grad=True), QuantSpec(quantizer)
    fake, upstream = fake_quantize(weight, spec).detach(), torch.randn(4, 6)
    for part in (0.0, 0.25, 1.0):
        weight.grad = None
        blended = partly_quantized(weight, spec, part)
        torch.testing.assert_close(blended, (1 - part) * weight + part * fake)
        blended.backward(upstream)
        torch.testing.assert_close(weight.grad, upstream)
    assert partly_quantized(weight, spec, 0.0) is weight
    assert torch.equal(partly_quantized(weight, spec, 1.0), fake)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_static_range_follows_training_before_activations_are_quantized(symmetric):
    """Then a range for evaluation and packing exists at every step."""
    spec, activation = QuantSpec("binary"), ActivationSpec(8, symmetric, "static")
    late, always = (XTCLinear(21, 5, spec=spec, activation=activation) for _ in range(2))
    late.quantize_activation = False
    for seed in range(3):
        values = random(3, 21, seed=seed)
        assert torch.equal(late(values), F.linear(values, fake_quantize(late.weight, spec), late.bias))
        always(values)
    seen = late.activation.range.clone()
    assert torch.equal(seen, always.activation.range)
    assert seen[0] < seen[1]
    late(values[:0])
    late.eval()(10 * values)
    assert torch.equal(late.activation.range, seen)


@pytest.mark.parametrize("quantize_activation", [True, False])
def test_without_a_static_range_a_latent_linear_evaluates_as_it_packs(quantize_activation):
    spec, activation = QuantSpec("binary"), ActivationSpec(8, False, "static")
    latent, packed = (layer(21, 5, spec=spec, activation=activation).eval() for layer in (XTCLinear, PackedLinear))
    latent.quantized_part, latent.quantize_activation = 0.0, quantize_activation
    pack_layer(latent, packed, "dense")
    values = random(3, 21)
    assert torch.equal(latent(values), packed(values))
    assert torch.equal(latent(values), F.linear(values, packed.dequantize(), latent.bias))


def test_flag_of_a_latent_embedding():
    latent, packed = embeddings(QuantSpec("binary"))
    assert torch.equal(latent(torch.arange(11)), packed(torch.arange(11)))
    latent.train().quantized_part = 0.0
    assert torch.equal(latent(torch.arange(11)), latent.weight)


def test_flags_are_on_and_not_saved():
    latent = XTCLinear(6, 4, spec=QuantSpec("binary"), activation=ActivationSpec())
    assert (latent.quantized_part, latent.quantize_activation) == (1.0, True)
    assert XTCEmbedding(6, 4, spec=QuantSpec("binary")).quantized_part == 1.0
    assert list(latent.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize("layer", [XTCLinear, PackedLinear])
def test_a_group_size_that_does_not_divide(layer):
    with refuses(
        "group_size=4 does not divide the 6 input columns of a 5 x 6 weight, so its last group would be short. "
        "Choose a divisor, or granularity='per_channel'.",
        RecipeError,
    ):
        layer(6, 5, spec=QuantSpec("binary", "per_group", 4))


@pytest.mark.parametrize("bias", [True, False])
def test_state_dict_of_a_packed_linear_loads_into_another(bias):
    spec, activation = QuantSpec("int4", "per_group", 3), ActivationSpec(8, True, "static")
    _, packed = linears(spec, activation, bias=bias)
    other = PackedLinear(21, 5, bias, spec=spec, activation=activation).eval()
    values = random(3, 21)
    assert not torch.equal(other(values), packed(values))
    other.load_state_dict(packed.state_dict())
    assert torch.equal(other(values), packed(values))


def test_an_unknown_backend():
    _, packed = linears(QuantSpec("binary"))
    packed.backend = "tritn"
    with pytest.raises(XTCError, match=r"^Unknown backend 'tritn'; registered: .*reference"):
        packed(random(3, 21))


def test_representations():
    latent, packed = linears(QuantSpec("binary", "per_group", 3), ActivationSpec())
    assert repr(latent).splitlines()[1] == "  in_features=21, out_features=5, bias=True, binary per_group"
    assert repr(packed).splitlines()[1] == (
        "  in_features=21, out_features=5, bias=True, binary per_group, backend=auto"
    )
    latent, packed = embeddings(QuantSpec("int8"))
    assert (repr(latent), repr(packed)) == ("XTCEmbedding(11, 21, int8 rows)", "PackedEmbedding(11, 21, int8 rows)")


# Dynamo itself makes the instance of `autograd.Function` that torch warns of.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(
    "name, activation, backend",
    [
        ("binary", ACTIVATIONS[1], "aot_eager"),
        ("ternary", ACTIVATIONS[4], "aot_eager"),
        ("int8", None, "aot_eager"),
        ("int4", ACTIVATIONS[2], "eager"),
    ],
    ids=["binary-dynamic", "ternary-static", "int8-float", "int4-asymmetric"],
)
def test_compiled_linears_are_one_graph_and_equal(name, activation, backend):
    values, upstream = random(3, 21), random(3, 5, seed=7)
    for layer in linears(QuantSpec(name), activation):
        compiled = torch.compile(layer, fullgraph=True, backend=backend)
        expected = torch.autograd.grad(layer(values), layer.bias, upstream)
        assert torch.equal(compiled(values), layer(values))
        assert torch.equal(torch.autograd.grad(compiled(values), layer.bias, upstream)[0], expected[0])
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_embeddings_are_one_graph_and_equal():
    for layer in embeddings(QuantSpec("ternary")):
        ids = torch.tensor([[3, 0, 3], [5, 1, 10]])
        assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(ids), layer(ids))
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("kind", [0, 1], ids=["latent", "packed"])
def test_transforms_of_functorch(kind):
    """Gradients of each example, and a batch dimension of its own: as without the transforms."""
    layer = linears(QuantSpec("ternary"), ACTIVATIONS[1])[kind].requires_grad_(False)
    x = random(3, 21)
    trained = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(layer(trained).square().sum(), trained)
    found = torch.func.vmap(torch.func.grad(lambda row: layer(row).square().sum()))(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.func.vmap(layer)(x), layer(x))


# Forward mode itself loads decompositions by a deprecated function.
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("backend", ["latent", "auto", "int8", "packed", "reference"])
def test_tangents_of_forward_mode_are_not_dropped(backend):
    """Integers have none and quantizers define none, so there is an error, not a tangent of zeros."""
    latent, packed = linears(QuantSpec("binary"), ACTIVATIONS[1])
    if backend != "latent":
        packed.backend = backend
    layer = latent if backend == "latent" else packed
    with pytest.raises((RuntimeError, StateError), match=r"jvp|have no gradient"):
        torch.func.jvp(layer, (random(3, 21),), (torch.ones(3, 21),))


def test_settings_of_the_schedule_hold_in_train_mode_only():
    """What is read is what the layer computes with: in eval mode, as when packed."""
    for layer in (linears(QuantSpec("binary"), ACTIVATIONS[1])[0], embeddings(QuantSpec("binary"))[0]):
        layer.quantized_part = 0.25
        if isinstance(layer, XTCLinear):
            layer.quantize_activation = False
        for training in (False, True):
            layer.train(training)
            assert layer.quantized_part == (0.25 if training else 1.0)
            assert getattr(layer, "quantize_activation", not training) == (not training)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", ["binary", "ternary", "int4", "int8"])
def test_traced_layers_compute(name):
    """Also with the tracer's own check, on inputs of another shape."""
    for layer in linears(QuantSpec(name), ACTIVATIONS[1]):
        layer.requires_grad_(False)
        traced = torch.jit.trace(layer, random(3, 21))
        torch.testing.assert_close(traced(random(5, 21, seed=1)), layer(random(5, 21, seed=1)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "ids",
    [
        torch.tensor([-1]),
        torch.tensor([11]),
        torch.tensor([1.0]),
        torch.ones(11, dtype=torch.bool),
        torch.ones(2).byte(),
    ],
    ids=["negative", "beyond", "float", "mask", "bytes"],
)
def test_embeddings_refuse_what_pytorch_does(ids):
    """Rows are not counted from the end, and a mask is not a lookup."""
    for layer in (nn.Embedding(11, 21), *embeddings(QuantSpec("binary"))):
        with pytest.raises((IndexError, RuntimeError), match=r"index out of range|scalar types: Long, Int"):
            layer(ids)
