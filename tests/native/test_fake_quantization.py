"""The native operator's fake-quantization gives the bits of PyTorch's operations, in every variant that runs here."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hf_xtc.native import fake_quantization as native_fake
from hf_xtc.native import library as native_library
from hf_xtc.quantization.activations import ActivationQuantizer
from hf_xtc.quantization.quantizers import BinaryQuantizer, TernaryQuantizer, encode_weight, fake_quantize
from hf_xtc.quantization.specs import FLOAT_DTYPES, ActivationSpec, QuantSpec

pytestmark = pytest.mark.skipif(not native_library.variants(), reason="the native operator is not built")

# Fixtures are the same for all draws: an environment variable.
MANY = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
SPECIAL = [
    0.0,
    -0.0,
    float("inf"),
    float("-inf"),
    float("nan"),
    2.0**-149,
    -(2.0**-149),
    torch.finfo(torch.float32).max,
]

variants = pytest.mark.parametrize("variant", list(native_library.variants()))
fused = pytest.mark.parametrize("name", ["binary", "ternary"])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


@st.composite
def rows_of_floats(draw):
    """Rows longer and shorter than a vector: of any floats, of one magnitude, or of midpoints between two levels."""
    shape = (draw(st.integers(1, 5)), draw(st.one_of(st.integers(1, 9), st.integers(10, 70))))
    kind = draw(st.sampled_from(["finite", "special", "near", "middles", "constant"]))
    if kind == "middles":
        halves = draw(hnp.arrays("int32", shape, elements=st.integers(-256, 256), fill=st.just(1)))
        halves[:, 0] = draw(st.sampled_from([-256, 256, 16]))
        return torch.from_numpy(halves).float() * 2.0 ** draw(st.integers(-149, 100))
    if kind == "constant":
        return torch.full(shape, draw(st.floats(width=32)))
    limit = 2.0 ** draw(st.integers(-140, 127)) if kind == "near" else None
    elements = st.floats(-limit, limit, width=32) if limit else st.floats(width=32, allow_nan=False)
    if kind == "special":
        elements = st.one_of(st.floats(-1, 1, width=32), st.sampled_from(SPECIAL))
    return torch.from_numpy(draw(hnp.arrays("float32", shape, elements=elements, fill=st.just(0.0))))


def bits(values):
    """The bits of values, with the same bits for every NaN."""
    kind = torch.int16 if values.element_size() == 2 else torch.int32
    return torch.where(values.isnan(), -1, values.view(kind).int())


def both(monkeypatch, variant, function, *args):
    """Bits of a result by a variant and by PyTorch's operations; asserts that the variant was used."""
    calls, call = [], native_fake.call
    with monkeypatch.context() as patch:
        patch.setattr(native_fake, "call", lambda *given: calls.append(1) or call(*given))
        patch.setenv("XTC_NATIVE", variant)
        native = function(*args)
        assert calls
        patch.setenv("XTC_NATIVE", "off")
        return bits(native), bits(function(*args))


@variants
@fused
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_group"])
@given(data=st.data())
@MANY
def test_weights(monkeypatch, variant, name, granularity, data):
    weight = data.draw(rows_of_floats())
    group_size = weight.shape[1] if granularity == "per_group" else None
    spec = QuantSpec(name, granularity, group_size, data.draw(st.sampled_from(FLOAT_DTYPES)))
    before = bits(weight)
    assert torch.equal(*both(monkeypatch, variant, fake_quantize, weight, spec))
    assert torch.equal(bits(weight), before)


@pytest.mark.parametrize("method", ["scale", "encode", "decode"])
@pytest.mark.parametrize("parent", [BinaryQuantizer, TernaryQuantizer])
def test_a_subclass_keeps_its_own_numerics(parent, method):
    """A quantizer that overrides its parent's method, as in `benchmarks/tried/quantization.py`."""
    generator = torch.Generator().manual_seed(0)
    change = {
        "scale": lambda self, groups: parent.scale(self, groups) * 2,
        "encode": lambda self, groups, scale: parent.encode(self, groups - groups.mean(1, keepdim=True), scale),
        "decode": lambda self, codes, scale: parent.decode(self, codes, scale) + 1,
    }
    own = type("Own", (parent,), {method: change[method]})
    quantizers = [own(), type("Heir", (own,), {})()]
    groups = torch.randn(4, 33, generator=generator) + 0.5
    for quantizer in quantizers:
        scale = quantizer.scale(groups)
        fake = quantizer.fake(groups, torch.float32)
        assert torch.equal(fake, quantizer.decode(quantizer.encode(groups, scale), scale))
        assert not torch.equal(fake, parent().fake(groups, torch.float32))


@variants
@dtypes
@pytest.mark.parametrize("levels", [8, 4])
@given(data=st.data())
@MANY
def test_activations(monkeypatch, variant, dtype, levels, data):
    values = data.draw(rows_of_floats()).to(dtype)
    before = bits(values)
    quantizer = ActivationQuantizer(ActivationSpec(levels))
    assert torch.equal(*both(monkeypatch, variant, quantizer, values))
    assert torch.equal(bits(values), before)


@variants
@dtypes
def test_activations_next_to_each_rounding_tie(monkeypatch, variant, dtype):
    """Quotients whose last bit decides the rounding, with scales that are not powers of two."""
    scales = torch.rand(200, 1, generator=torch.Generator().manual_seed(0)) + 0.5
    middles = torch.arange(-127.5, 128) * scales
    beside = [torch.nextafter(middles, torch.full((), towards)) for towards in (-1e9, 1e9)]
    values = torch.cat([middles, *beside, -128 * scales], 1).to(dtype)
    assert torch.equal(*both(monkeypatch, variant, ActivationQuantizer(ActivationSpec()), values))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    "rows, columns", [(700, 384), (129, 1537), (3, 40000), (1, 100003), (513, 128)], ids=lambda size: str(size)
)
def test_threads_and_blocks(monkeypatch, threads, rows, columns):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    variant = next(iter(native_library.variants()))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for name in ("binary", "ternary"):
            for granularity in ("per_channel", "per_tensor"):
                spec = QuantSpec(name, granularity, scale_dtype="float32")
                assert torch.equal(*both(monkeypatch, variant, fake_quantize, weight, spec))
        assert torch.equal(*both(monkeypatch, variant, ActivationQuantizer(ActivationSpec()), weight))
    finally:
        torch.set_num_threads(before)


@variants
def test_the_scale_of_the_file_is_that_of_training(monkeypatch, variant):
    """Packing computes the mean of the values above the threshold with the same kernel."""
    weight = torch.randn(40, 77, generator=torch.Generator().manual_seed(0))
    spec = QuantSpec("ternary", scale_dtype="float32")
    assert torch.equal(*both(monkeypatch, variant, lambda: encode_weight(weight, spec)[1]))


@dtypes
def test_under_autocast(monkeypatch, dtype):
    values = torch.randn(5, 77, generator=torch.Generator().manual_seed(0)).to(dtype)
    variant = next(iter(native_library.variants()))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(*both(monkeypatch, variant, ActivationQuantizer(ActivationSpec()), values))
        if dtype == torch.float32:
            assert torch.equal(*both(monkeypatch, variant, fake_quantize, values, QuantSpec("ternary")))


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(torch.ones(2, 3, dtype=torch.float64), id="dtype"),
        pytest.param(torch.ones(2, 3, dtype=torch.bfloat16), id="other-float"),
        pytest.param(torch.ones(2, 3, device="meta"), id="meta"),
        pytest.param(torch.ones(3, 2).t(), id="strided"),
        pytest.param(torch.ones(2, 0), id="empty"),
        pytest.param(torch.ones(()), id="scalar"),
        pytest.param(torch.ones(2, 3).to_sparse(), id="sparse"),
        pytest.param(torch.ones(2, 3).as_subclass(type("Own", (torch.Tensor,), {})), id="subclass"),
        pytest.param(torch._neg_view(torch.ones(2, 3)), id="negated"),
        pytest.param(torch.ones(2, 3, requires_grad=True), id="gradient"),
    ],
)
def test_what_is_left_to_pytorch(monkeypatch, values):
    monkeypatch.setenv("XTC_NATIVE", "portable")
    assert native_fake.serves(torch.ones(2, 3))
    assert not native_fake.serves(values)


def test_tracers_and_transforms_use_pytorch_operations(monkeypatch):
    """They could not record the numbers, or pass tensors without data."""
    monkeypatch.setenv("XTC_NATIVE", "portable")
    values, seen = torch.ones(2, 3), []

    def ask(x):
        seen.append(native_fake.serves(x))
        return x.clone()

    torch.vmap(ask)(values)
    torch.compile(ask, backend="eager")(values)
    with FakeTensorMode() as mode:
        ask(mode.from_tensor(values))
    assert seen == [False] * 3
    monkeypatch.setenv("XTC_NATIVE", "off")
    assert not native_fake.serves(values)


def test_dispatch_modes_see_operators(monkeypatch):
    monkeypatch.setenv("XTC_NATIVE", "portable")
    seen = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    with Record():
        ActivationQuantizer(ActivationSpec())(torch.ones(2, 3))
        fake_quantize(torch.ones(2, 3), QuantSpec("binary"))
        fake_quantize(torch.ones(2, 3), QuantSpec("ternary"))
    operators = [name for name in seen if name.startswith("hf_xtc.")]
    names = ("fake_tokens", "fake_binary", "keep_beyond_", "fake_ternary")
    assert operators == [f"hf_xtc.{name}.default" for name in names]


def test_operators_are_registered_as_pytorch_expects():
    """Schemas, fake implementations and their use in compiled code."""
    rows, number = torch.randn(3, 7), torch.rand(3, 1)
    for function, inputs in (
        (native_fake.fake_binary_into, (torch.empty(3, 7), rows, number)),
        (native_fake.fake_ternary_into, (torch.empty(3, 7), rows, number, number)),
        (native_fake.keep_beyond_, (rows.abs(), number)),
        (native_fake.fake_tokens, (rows, 8)),
        (native_fake.fake_tokens, (rows.bfloat16(), 4)),
    ):
        torch.library.opcheck(function, inputs)


@pytest.mark.parametrize(
    "values, out, scale",
    [
        pytest.param(torch.ones(2, 3), torch.ones(2, 4), torch.ones(2, 1), id="wider"),
        pytest.param(torch.ones(2, 3), torch.ones(3, 3), torch.ones(2, 1), id="longer"),
        pytest.param(torch.ones(2, 3), torch.ones(2, 3).half(), torch.ones(2, 1), id="dtype"),
        pytest.param(torch.ones(2, 3), torch.ones(3, 2).t(), torch.ones(2, 1), id="strided"),
        pytest.param(torch.ones(2, 3), torch.ones(2, 3), torch.ones(3, 1), id="scales"),
        pytest.param(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 1).half(), id="scale-dtype"),
        pytest.param(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 1, device="meta"), id="device"),
        pytest.param(torch.ones(2, 0), torch.ones(2, 0), torch.ones(2, 1), id="empty"),
        pytest.param(torch.ones(()), torch.ones(()), torch.ones(1), id="scalar"),
    ],
)
def test_operators_refuse_what_they_could_not_address(values, out, scale):
    with pytest.raises(
        RuntimeError, match=r"^(The native operator fake-quantizes contiguous torch\.float32|Expected all)"
    ):
        native_fake.fake_binary_into(out, values, scale)


def test_token_levels_need_a_known_dtype_and_bits():
    for values, bits in ((torch.ones(2, 3).half(), 8), (torch.ones(2, 3), 0), (torch.ones(2, 3), 17)):
        with pytest.raises(RuntimeError, match=r"^fake_tokens takes float32 or bfloat16 and 1 to 16 bits, not "):
            native_fake.fake_tokens(values, bits)
