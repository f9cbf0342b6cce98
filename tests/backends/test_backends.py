"""Backends: every registered one computes `activation(x) @ weight.T + bias`, as the reference does."""

import copy
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from hf_xtc.backends import BACKENDS, Backend, Product, ReferenceBackend, choose, default_backend, integer, layouts
from hf_xtc.backends import choice as choice_module
from hf_xtc.backends.integer import integer_product, padded_int_mm
from hf_xtc.errors import StateError, XTCError
from hf_xtc.modeling.layers import PackedLinear
from hf_xtc.native import encoder as native
from hf_xtc.native import library as native_library
from hf_xtc.quantization.activations import ActivationQuantizer
from hf_xtc.quantization.packing import PackedWeight, pack_weight
from hf_xtc.quantization.quantizers import get_quantizer
from hf_xtc.quantization.specs import FLOAT_DTYPES, QUANTIZERS, ActivationSpec, QuantSpec

SHAPES = [(21,), (1, 21), (2, 3, 21), (0, 21)]
ACTIVATIONS = [None, ActivationSpec(8, True), ActivationSpec(4, False)]
INTEGER = sorted(set(BACKENDS) - {"reference"})
# How the integer backends compute: each variant of the native operator that runs here, or PyTorch's operations.
NATIVE = [*native_library.variants(), "off"]

backends = pytest.mark.parametrize("backend", sorted(BACKENDS))
quantizers = pytest.mark.parametrize("name", sorted(QUANTIZERS))
grids = pytest.mark.parametrize(
    "granularity, group_size", [("per_tensor", None), ("per_channel", None), ("per_group", 7)]
)
dtypes = pytest.mark.parametrize("dtype", FLOAT_DTYPES)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def serving(name, weight, activation, dtype):
    """An instance of a backend, if it supports this machine and these operands."""
    if not BACKENDS[name].is_available():
        pytest.skip(f"{name} does not run on this machine")
    backend = BACKENDS[name]()
    if not backend.supports(Product(weight, None, activation, dtype)):
        pytest.skip(f"{name} does not serve {weight.spec} with {activation} in {dtype}")
    return backend


def assert_close_to_exact(found, x, weight, bias):
    """Against float64: weights, products and output rounded to the dtype of `x`, sums kept in float32 or better."""
    x, weight, bias = x.double(), weight.double(), torch.zeros(()) if bias is None else bias.double()
    magnitude = F.linear(x.abs(), weight.abs()) + bias.abs()
    tolerance = 4 * torch.finfo(found.dtype).eps + x.shape[-1] * torch.finfo(torch.float32).eps
    assert bool(((found.double() - F.linear(x, weight) - bias).abs() <= tolerance * magnitude).all())


def magnitude(x, weight, bias, quantizer):
    """Sum of the magnitudes of all summands of a result: float32 rounding errors are relative to it."""
    levels = quantizer.levels(x)
    parts = levels.values.abs() * levels.scale + (0 if levels.offset is None else levels.offset.abs())
    return F.linear(parts, weight.decode().abs()) + (0 if bias is None else bias.abs())


@dtypes
@grids
@quantizers
@backends
def test_linear(backend, name, granularity, group_size, dtype, device):
    dtype = getattr(torch, dtype)
    spec = QuantSpec(name, granularity, group_size)
    weight = pack_weight(random(5, 21).to(device), spec)
    some = random(5, seed=2).to(device, dtype)
    for shape, activation, bias in product(SHAPES, ACTIVATIONS, (some, None)):
        x = random(*shape, seed=1).to(device, dtype)
        quantizer = None if activation is None else ActivationQuantizer(activation)
        if not BACKENDS[backend]().supports(Product(weight, bias, quantizer, dtype)):
            assert activation is None
            continue
        before = [tensor.clone() for tensor in (x, some, weight.packed, weight.scale)]
        found = BACKENDS[backend]().linear(x, weight, bias, quantizer)
        assert (found.dtype, found.shape, found.device) == (dtype, (*shape[:-1], 5), x.device)
        assert_close_to_exact(found, x if quantizer is None else quantizer(x), weight.decode(), bias)
        assert all(map(torch.equal, before, (x, some, weight.packed, weight.scale)))


@pytest.mark.parametrize("rows, columns", [(1, 1), (1, 40), (7, 1), (3, 8), (9, 5), (33, 129)])
@quantizers
@backends
def test_odd_shapes(backend, name, rows, columns, device):
    quantizer = ActivationQuantizer(ActivationSpec())
    weight = pack_weight(random(rows, columns).to(device), QuantSpec(name))
    x = random(4, columns, seed=1).to(device)
    found = serving(backend, weight, quantizer, x.dtype).linear(x, weight, None, quantizer)
    assert found.shape == (4, rows)
    assert_close_to_exact(found, quantizer(x), weight.decode(), None)


@settings(deadline=None, max_examples=60)
@given(
    data=st.data(),
    rows=st.integers(1, 150),
    tokens=st.integers(1, 40),
    groups=st.integers(1, 5),
    group_size=st.integers(1, 300),
    seed=st.integers(0, 2**16),
)
@pytest.mark.parametrize("variant", NATIVE)
@pytest.mark.parametrize("backend", INTEGER)
def test_integers_agree_with_the_reference(backend, variant, data, rows, tokens, groups, group_size, seed):
    """To 1e-5 of the summed magnitudes, for all shapes, bits, granularities and activation schemes."""
    granularity = data.draw(st.sampled_from(["per_tensor", "per_channel", "per_group"]))
    name = data.draw(st.sampled_from(sorted(QUANTIZERS)))
    activation = ActivationSpec(
        data.draw(st.sampled_from([8, 4])), data.draw(st.booleans()), data.draw(st.sampled_from(["dynamic", "static"]))
    )
    spec = QuantSpec(name, granularity, group_size if granularity == "per_group" else None)
    weight = pack_weight(random(rows, groups * group_size, seed=seed), spec)
    x, bias = random(tokens, groups * group_size, seed=seed + 1), random(rows, seed=seed + 2)
    x[0] *= data.draw(st.sampled_from([0.0, 1e-6, 1.0, 1e6]))
    quantizer = ActivationQuantizer(activation)
    quantizer(x)
    quantizer.eval()
    if not quantizer.has_range():
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XTC_NATIVE", variant)
        found = BACKENDS[backend]().linear(x, weight, bias, quantizer)
    expected = BACKENDS["reference"]().linear(x, weight, bias, quantizer)
    assert bool(((found - expected).abs() <= 1e-5 * magnitude(x, weight, bias, quantizer)).all())


@pytest.mark.parametrize("variant", NATIVE)
@pytest.mark.parametrize("columns", [64, 1100, 3072])
@pytest.mark.parametrize("name", ["binary", "ternary", "int4", "int8"])
@pytest.mark.parametrize("backend", INTEGER)
def test_sums_are_exact_at_the_extremes(backend, name, columns, variant, monkeypatch):
    """All activations are -128 or 127 and all codes extreme: these sums saturate or overflow first."""
    monkeypatch.setenv("XTC_NATIVE", variant)
    sign = torch.tensor([1.0, -1.0])[:, None]
    weight = pack_weight(sign * torch.ones(2, columns), QuantSpec(name))
    x = torch.cat([torch.full((5, columns), -128.0), torch.full((4, columns), 127.0)])
    x[5:, 0] = 128.0  # the row's maximum, so that the step is 1; it saturates to 127
    quantizer = ActivationQuantizer(ActivationSpec())
    found = BACKENDS[backend]().linear(x, weight, None, quantizer)
    assert torch.equal(found.double(), F.linear(quantizer(x).double(), weight.decode().double()))


@pytest.mark.parametrize("variant", native_library.variants())
@settings(max_examples=200, deadline=None)
@given(exponent=st.integers(-126, 120), seed=st.integers(0, 2**32 - 1))
def test_activations_are_rounded_as_their_division_by_the_scale_is(variant, exponent, seed):
    """Numbers halfway between two levels, and their neighbours in float32, for scales of any size."""
    columns = 256
    random_numbers = torch.Generator().manual_seed(seed)
    halves = torch.randint(-255, 256, (4, columns), generator=random_numbers) / 2
    largest = (1 + torch.rand(4, 1, generator=random_numbers)) * 2.0**exponent
    near = halves * (largest / 128)
    for _ in range(2):
        near = torch.nextafter(near, near * torch.randint(-2, 4, near.shape, generator=random_numbers))
    x = torch.cat([largest, near.clamp(-largest, largest)], 1)
    weight = pack_weight(torch.eye(columns + 1) * 2 - 1, QuantSpec("binary"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("XTC_NATIVE", variant)
        layout = native.SEXTETS if variant == "avx512_vbmi" else native.NIBBLES
        found = native.linear(x, weight.packed, weight.scale, None, columns + 1, 2, layout)
    levels = ActivationQuantizer(ActivationSpec()).levels(x)
    expected = levels.values.double() @ weight.decode().double().t() * levels.scale.double()
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=2.0**-140)


@pytest.mark.parametrize("variant", list(native_library.variants()))
@pytest.mark.parametrize(
    "name, layouts",
    [
        ("binary", [native.BYTES, native.PAIRS, native.NIBBLES, native.SEXTETS]),
        ("ternary", [native.BYTES, native.PAIRS]),
        ("int4", [native.BYTES]),
    ],
)
@pytest.mark.parametrize("columns", [200, 1600])
def test_native_results_depend_neither_on_other_rows_nor_on_the_layout(columns, name, layouts, variant, monkeypatch):
    """Each variant multiplies several rows at once, with other code for the remaining rows, and some columns at a
    time."""
    monkeypatch.setenv("XTC_NATIVE", variant)
    weight, x = pack_weight(random(70, columns), QuantSpec(name)), random(13, columns, seed=1)
    codes = native.Codes(weight.packed, weight.scale, None, columns, get_quantizer(name).levels)
    linears = [native.NativeWeight([codes], layout).linear for layout in layouts]
    alone = torch.cat([linears[0](row[None]) for row in x])
    for linear, rows in product(linears, range(1, 14)):
        assert torch.equal(linear(x[:rows]), alone[:rows])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("variant", NATIVE)
@pytest.mark.parametrize("backend", INTEGER)
def test_a_token_that_is_not_finite_does_not_affect_other_tokens(backend, variant, bad, monkeypatch):
    monkeypatch.setenv("XTC_NATIVE", variant)
    weight, quantizer = pack_weight(random(70, 21), QuantSpec("binary")), ActivationQuantizer(ActivationSpec())
    x = random(4, 21, seed=1)
    x[2, 20] = bad
    found = BACKENDS[backend]().linear(x, weight, None, quantizer)
    assert torch.equal(found.isnan().any(1), torch.tensor([False, False, True, False]))
    assert bool(found[2].isnan().all())


@quantizers
def test_gradients(name, device):
    spec = QuantSpec(name)
    weight = pack_weight(random(5, 21).to(device), spec)
    x = random(3, 21, seed=1).to(device).requires_grad_()
    bias = random(5, seed=2).to(device).requires_grad_()
    upstream = random(3, 5, seed=3).to(device)
    quantizer = ActivationQuantizer(ActivationSpec())
    ReferenceBackend().linear(x, weight, bias, quantizer).backward(upstream)
    assert_close_to_exact(x.grad, upstream, weight.decode().t(), None)
    torch.testing.assert_close(bias.grad, upstream.sum(0))


def test_a_static_range_is_followed_in_training_mode(device):
    quantizer = ActivationQuantizer(ActivationSpec(8, True, "static")).to(device)
    weight = pack_weight(random(5, 21).to(device), QuantSpec("binary"))
    x = random(3, 21, seed=1).to(device)
    operands = Product(weight, None, quantizer, x.dtype)
    assert not any(BACKENDS[name]().supports(operands) for name in INTEGER)
    ReferenceBackend().linear(x, weight, None, quantizer)
    assert quantizer.range.tolist() == [x.min().item(), x.max().item()]
    assert not any(BACKENDS[name]().supports(operands) for name in INTEGER), "the range still moves"
    quantizer.eval()
    assert all(BACKENDS[name]().supports(operands) for name in INTEGER)


@backends
def test_a_packed_linear_computes_with_the_backend_of_its_name(backend, device):
    layer = PackedLinear(21, 5, spec=QuantSpec("ternary"), activation=ActivationSpec()).to(device)
    layer.set_packed_weight(pack_weight(random(5, 21).to(device), layer.spec))
    layer.backend = backend
    x = random(3, 21, seed=1).to(device)
    with torch.no_grad():
        expected = BACKENDS[backend]().linear(x, layer.packed_weight, layer.bias, layer.activation)
        assert torch.equal(layer(x), expected)


def packed_linear(backend, columns=21, quantizer="binary", **kwargs):
    layer = PackedLinear(columns, 5, spec=QuantSpec(quantizer), **{"activation": ActivationSpec(), **kwargs})
    layer.set_packed_weight(pack_weight(random(5, columns), layer.spec))
    layer.bias.requires_grad_(False)
    layer.backend = backend
    return layer


@pytest.mark.parametrize("backend", INTEGER)
def test_a_layer_prepares_once_and_again_when_an_operand_changes(backend, monkeypatch):
    layer, x = packed_linear(backend), random(3, 21, seed=1)
    made = []
    prepare = BACKENDS[backend].prepare
    monkeypatch.setattr(BACKENDS[backend], "prepare", lambda self, operands: made.append(1) or prepare(self, operands))
    first = layer(x)
    assert torch.equal(layer(x), first)
    assert len(made) == 1
    layer.bias.add_(1)
    torch.testing.assert_close(layer(x), first + 1)
    layer.set_packed_weight(pack_weight(-random(5, 21), layer.spec))
    torch.testing.assert_close(layer(x), 1 - first)
    layer.bfloat16()
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert len(made) == 4


@pytest.mark.parametrize("backend", INTEGER)
def test_prepared_operands_are_not_saved_or_copied(backend):
    layer, x = packed_linear(backend), random(3, 21, seed=1)
    before = set(vars(layer)), set(layer.state_dict())
    expected = layer(x)
    assert (set(vars(layer)), set(layer.state_dict())) == before
    assert torch.equal(copy.deepcopy(layer)(x), expected)


@pytest.mark.parametrize("backend", ["int8", "packed"])
def test_gradients_through_integers_are_refused(backend):
    layer = packed_linear(backend)
    message = (
        f"^The '{backend}' backend computes with integers, which have no gradient. "
        r"Call set_backend\('reference'\) on the model before training, or run it under torch.no_grad\(\).$"
    )
    with pytest.raises(StateError, match=message):
        layer(random(3, 21).requires_grad_())
    with torch.no_grad():
        layer(random(3, 21).requires_grad_())
    layer.bias.requires_grad_(True)
    with pytest.raises(StateError, match=message):
        layer(random(3, 21))


def test_auto_leaves_gradients_to_the_reference():
    layer, x = packed_linear("auto"), random(3, 21, seed=1).requires_grad_()
    found = layer(x)
    layer.backend = "reference"
    assert torch.equal(found, layer(x))
    found.sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("backend", INTEGER)
def test_unsupported_products_fall_back_to_the_reference_and_are_logged_once(backend, caplog):
    choice_module._warn_fallback.cache_clear()
    layer, x = packed_linear(backend, activation=None), random(3, 21, seed=1)
    with caplog.at_level("INFO"):
        found = [layer(x), layer(x)]
    layer.backend = "reference"
    assert all(torch.equal(y, layer(x)) for y in found)
    assert caplog.messages == [
        f"The '{backend}' backend does not support activations in float; such linears run on 'reference'."
    ]


@pytest.mark.parametrize(
    "variant, how",
    [("off", "PyTorch operations (no native operator)"), ("portable", "the native operator (portable)")],
)
def test_the_choice_of_auto_is_logged_once(variant, how, caplog, monkeypatch):
    if variant not in NATIVE:
        pytest.skip("the native operator is not built")
    monkeypatch.setenv("XTC_NATIVE", variant)
    choice_module.say_choice.cache_clear()
    layer, x = packed_linear("int8"), random(3, 21, seed=1)
    with caplog.at_level("INFO"):
        layer(x)
        layer(x)
    assert caplog.messages == [f"Packed linears run on the 'int8' backend, {how}."]


@pytest.mark.skipif(not native_library.variants(), reason="the native operator is not built")
def test_the_choice_of_auto_is_logged_with_its_reason_once(caplog, monkeypatch):
    monkeypatch.setenv("XTC_NATIVE", "portable")
    monkeypatch.setattr(layouts, "processor", lambda: "X")
    choice_module.say_choice.cache_clear()
    small, large = packed_linear("auto"), packed_linear("auto", columns=64)
    with caplog.at_level("INFO"):
        small(random(3, 21)), large(random(3, 64)), small(random(4, 21))
    assert caplog.messages == [
        "Packed linears run on the 'auto' backend, the native operator (portable) on X: binary weights as bytes, "
        "without another way."
    ]


@pytest.mark.parametrize(
    "backend, triton, way",
    [
        ("auto", True, "PyTorch operations on the GPU"),
        ("packed", True, "Triton kernels"),
        ("packed", False, "PyTorch operations on the GPU"),
    ],
)
def test_the_native_operator_is_not_named_for_a_gpu(backend, triton, way, caplog, monkeypatch):
    monkeypatch.setattr(integer.gpu, "runs_on", lambda device: triton)
    choice_module.say_choice.cache_clear()
    with FakeTensorMode():
        weight = PackedWeight(
            torch.empty(5, 3, dtype=torch.uint8, device="cuda"), torch.empty(5, 1, device="cuda"), 21, QuantSpec()
        )
        operands = Product(weight, None, ActivationQuantizer(ActivationSpec()), torch.float32)
        with caplog.at_level("INFO"):
            assert choose(backend, operands, gradient=False) == backend
    assert caplog.messages == [f"Packed linears run on the '{backend}' backend, {way}."]


def test_the_environment_variable_sets_the_default(monkeypatch):
    monkeypatch.setenv("XTC_BACKEND", "packed")
    assert packed_linear(default_backend()).backend == "packed"
    monkeypatch.delenv("XTC_BACKEND")
    assert default_backend() == "auto"
    monkeypatch.setenv("XTC_BACKEND", "int9")
    with pytest.raises(XTCError, match=r"^Unknown backend 'int9'; registered: auto, int8, packed, reference\.$"):
        default_backend()


@pytest.mark.parametrize("variant", NATIVE)
@pytest.mark.parametrize("name", ["binary", "ternary", "int4"])
@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_an_input_of_the_wrong_width_is_refused(backend, name, variant, monkeypatch):
    """A wider one would be written beyond the output, a narrower one read beyond its end."""
    monkeypatch.setenv("XTC_NATIVE", variant)
    linear = packed_linear(backend, columns=64, quantizer=name)
    assert linear(random(7, 64)).shape == (7, 5)
    for width in (1, 32, 63, 65, 128, 4096):
        for rows in (1, 7):
            with pytest.raises(RuntimeError, match=r"shape|size"):
                linear(random(rows, width))


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_an_input_on_another_device_is_refused(backend):
    with pytest.raises(RuntimeError, match="meta"):
        packed_linear(backend)(torch.empty(2, 21, device="meta"))


@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool])
def test_an_input_that_is_not_floating_point_is_refused(backend, dtype):
    with pytest.raises((RuntimeError, TypeError)):
        packed_linear(backend)(torch.ones(2, 21, dtype=dtype))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_a_traced_linear_computes(backend):
    """The trace does not keep the address of the memory that it was traced with."""
    linear = packed_linear(backend).requires_grad_(False)
    traced = torch.jit.trace(linear, random(3, 21), check_trace=False)
    torch.testing.assert_close(traced(random(5, 21, seed=1)), linear(random(5, 21, seed=1)), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not native_library.variants(), reason="the native operator is not built")
@pytest.mark.parametrize("backend", INTEGER)
def test_compiled_code_calls_the_native_operator(backend, monkeypatch):
    pytest.importorskip("torch", minversion="2.7", reason="cannot tell an export from compiling")
    monkeypatch.setenv("XTC_NATIVE", next(iter(native_library.variants())))
    linear, seen = packed_linear(backend).requires_grad_(False), []

    def record(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    compiled = torch.compile(linear, fullgraph=True, backend=record)
    assert torch.equal(compiled(random(3, 21)), linear(random(3, 21)))
    torch.compiler.reset()
    assert seen == ["hf_xtc.linear.default"]


@pytest.mark.parametrize("variant", NATIVE)
@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_an_exported_program_takes_any_number_of_rows(backend, variant, monkeypatch):
    """'auto' exports PyTorch's operations, which run without this package; a backend that was asked for, itself."""
    pytest.importorskip("torch", minversion="2.7", reason="cannot tell an export from compiling")
    monkeypatch.setenv("XTC_NATIVE", variant)
    linear = packed_linear(backend).requires_grad_(False)
    rows = torch.export.Dim("rows")
    exported = torch.export.export(linear, (random(3, 21),), dynamic_shapes=({0: rows},))
    operators = [str(node.target) for node in exported.graph.nodes if str(node.target).startswith("hf_xtc")]
    asked = backend in ("int8", "packed") and variant != "off"
    assert operators == (["hf_xtc.linear.default"] if asked else [])
    x = random(7, 21, seed=1)
    torch.testing.assert_close(exported.module()(x), linear(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", [native.BYTES, native.PAIRS, None])
def test_auto_uses_the_fastest_layout(layout, monkeypatch):
    """Operands are prepared once, in one layout for any number of rows."""
    taken = []
    monkeypatch.setattr(integer, "variant", lambda: None if layout is None else "avx2")
    monkeypatch.setattr(integer, "fastest_layout", lambda *shape: taken.append(shape) or layout)
    monkeypatch.setattr(native, "linear", lambda *operands: taken.append(operands[-1]))
    weight = pack_weight(random(5, 21), QuantSpec("ternary"))
    BACKENDS["auto"]().prepare(Product(weight, None, ActivationQuantizer(ActivationSpec()), torch.float32))(
        random(3, 21)
    )
    assert taken == ([] if layout is None else [("ternary", 5, 21), layout])


@pytest.mark.parametrize("rows, columns, depth", [(1, 5, 7), (16, 8, 8), (17, 9, 16), (40, 1, 1)])
def test_products_on_cuda_are_padded(rows, columns, depth, monkeypatch):
    """CUDA needs more than 16 rows and sizes divisible by 8; the padding can be checked without a GPU."""
    seen, multiply = [], torch._int_mm
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: seen.append((*a.shape, b.shape[1])) or multiply(a, b))
    x = torch.randint(-128, 128, (rows, depth), dtype=torch.int8)
    weight = torch.randint(-1, 2, (columns, depth), dtype=torch.int8)
    assert torch.equal(padded_int_mm(x, weight), x.int() @ weight.int().t())
    ((m, k, n),) = seen
    assert m > 16
    assert k % 8 == n % 8 == 0


@pytest.mark.parametrize("vnni", [True, False])
def test_integer_products_are_exact_with_and_without_vnni(vnni, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    for largest, depth in ((1, 3000), (128, 3000), (128, 500)):
        x = torch.full((3, depth), -128, dtype=torch.int8)
        weight = torch.full((2, depth), -largest, dtype=torch.int8)
        assert integer_product(x, weight, largest).tolist() == [[128.0 * largest * depth] * 2] * 3


def test_choosing_the_reference_logs_nothing(caplog):
    with caplog.at_level("INFO"):
        packed_linear("reference")(random(3, 21))
    assert caplog.messages == []
    operands = Product(pack_weight(random(5, 21), QuantSpec()), None, None, torch.float32)
    assert choose("reference", operands, gradient=True) == "reference"


@backends
def test_interface(backend):
    assert issubclass(BACKENDS[backend], Backend)
    assert BACKENDS[backend].is_available() is True
    assert vars(BACKENDS[backend]()) == {}  # no state: what is prepared belongs to the layer


@pytest.mark.parametrize("missing", ["is_available", "supports", "prepare"])
def test_a_backend_defines_all_three_methods(missing):
    methods = {name: lambda *_: True for name in ("is_available", "supports", "prepare") if name != missing}
    with pytest.raises(TypeError, match=missing):
        type("Incomplete", (Backend,), methods)()


def test_unknown_backend():
    with pytest.raises(XTCError, match=rf"^Unknown backend 'tritn'; registered: {', '.join(sorted(BACKENDS))}\.$"):
        BACKENDS["tritn"]


@dtypes
@quantizers
def test_reference_serves_everything(name, dtype, device):
    assert BACKENDS["reference"] is ReferenceBackend
    assert ReferenceBackend.is_available()
    weight = pack_weight(random(5, 21).to(device), QuantSpec(name))
    assert ReferenceBackend().supports(Product(weight, None, None, getattr(torch, dtype)))


@quantizers
def test_reference_is_exact_on_small_integers(name):
    """Sums of small whole numbers are not rounded, so the results are exact."""
    weight = pack_weight(torch.tensor([[1.0, -1.0, 1.0], [-1.0, -1.0, 1.0]]), QuantSpec(name))
    plus = weight.decode().max().item()  # uniform levels saturate at the positive end
    found = ReferenceBackend().linear(torch.tensor([[4.0, 2.0, 8.0]]), weight, torch.tensor([1.0, 0.0]), None)
    assert found.tolist() == [[12 * plus - 2 + 1, 8 * plus - 6]]
    assert plus == {"int4": 0.875, "int8": 127 / 128}.get(name, 1.0)
