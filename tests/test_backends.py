"""Backends: whatever is registered computes `activation(x) @ weight.T + bias`, as the reference does."""

from itertools import product

import pytest
import torch
from torch.nn import functional as F

from hf_xtc.backends import BACKENDS, Backend, ReferenceBackend
from hf_xtc.errors import XTCError
from hf_xtc.layers import PackedLinear
from hf_xtc.packing import pack_weight
from hf_xtc.quantizers import ActivationQuantizer
from hf_xtc.specs import FLOAT_DTYPES, QUANTIZERS, ActivationSpec, QuantSpec

SHAPES = [(21,), (1, 21), (2, 3, 21), (0, 21)]
ACTIVATIONS = [None, ActivationSpec(8, True), ActivationSpec(4, False)]

backends = pytest.mark.parametrize("backend", sorted(BACKENDS))
quantizers = pytest.mark.parametrize("name", sorted(QUANTIZERS))
grids = pytest.mark.parametrize(
    "granularity, group_size", [("per_tensor", None), ("per_channel", None), ("per_group", 7)]
)
dtypes = pytest.mark.parametrize("dtype", FLOAT_DTYPES)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def serving(name, spec, device, dtype):
    """An instance of a backend, if it serves this machine and these weights."""
    if not BACKENDS[name].is_available():
        pytest.skip(f"{name} does not run on this machine")
    backend = BACKENDS[name]()
    if not backend.supports(spec, device, dtype):
        pytest.skip(f"{name} does not serve {spec} on {device} in {dtype}")
    return backend


def assert_close_to_exact(found, x, weight, bias):
    """Against float64: weights, products and output rounded to the dtype of `x`, sums kept in float32 or better."""
    x, weight, bias = x.double(), weight.double(), torch.zeros(()) if bias is None else bias.double()
    magnitude = F.linear(x.abs(), weight.abs()) + bias.abs()
    tolerance = 4 * torch.finfo(found.dtype).eps + x.shape[-1] * torch.finfo(torch.float32).eps
    assert bool(((found.double() - F.linear(x, weight) - bias).abs() <= tolerance * magnitude).all())


@dtypes
@grids
@quantizers
@backends
def test_linear(backend, name, granularity, group_size, dtype, device):
    dtype = getattr(torch, dtype)
    spec = QuantSpec(name, granularity, group_size)
    backend = serving(backend, spec, device, dtype)
    weight = pack_weight(random(5, 21).to(device), spec)
    some = random(5, seed=2).to(device, dtype)
    for shape, activation, bias in product(SHAPES, ACTIVATIONS, (some, None)):
        x = random(*shape, seed=1).to(device, dtype)
        quantizer = None if activation is None else ActivationQuantizer(activation)
        before = [tensor.clone() for tensor in (x, some, weight.packed, weight.scale)]
        found = backend.linear(x, weight, bias, quantizer)
        assert (found.dtype, found.shape, found.device) == (dtype, (*shape[:-1], 5), x.device)
        assert_close_to_exact(found, x if quantizer is None else quantizer(x), weight.decode(), bias)
        assert all(map(torch.equal, before, (x, some, weight.packed, weight.scale)))


@pytest.mark.parametrize("rows, columns", [(1, 1), (1, 40), (7, 1), (3, 8), (9, 5), (33, 129)])
@quantizers
@backends
def test_odd_shapes(backend, name, rows, columns, device):
    spec = QuantSpec(name)
    weight = pack_weight(random(rows, columns).to(device), spec)
    x = random(4, columns, seed=1).to(device)
    found = serving(backend, spec, device, x.dtype).linear(x, weight, None, None)
    assert found.shape == (4, rows)
    assert_close_to_exact(found, x, weight.decode(), None)


@quantizers
@backends
def test_gradients(backend, name, device):
    spec = QuantSpec(name)
    weight = pack_weight(random(5, 21).to(device), spec)
    x = random(3, 21, seed=1).to(device).requires_grad_()
    bias = random(5, seed=2).to(device).requires_grad_()
    upstream = random(3, 5, seed=3).to(device)
    quantizer = ActivationQuantizer(ActivationSpec())
    serving(backend, spec, device, x.dtype).linear(x, weight, bias, quantizer).backward(upstream)
    assert_close_to_exact(x.grad, upstream, weight.decode().t(), None)
    torch.testing.assert_close(bias.grad, upstream.sum(0))


@backends
def test_a_static_range_is_followed_in_training_mode(backend, device):
    quantizer = ActivationQuantizer(ActivationSpec(8, True, "static")).to(device)
    weight = pack_weight(random(5, 21).to(device), QuantSpec("binary"))
    x = random(3, 21, seed=1).to(device)
    serving(backend, weight.spec, device, x.dtype).linear(x, weight, None, quantizer)
    assert quantizer.range.tolist() == [x.min().item(), x.max().item()]


@backends
def test_a_packed_linear_computes_with_the_backend_of_its_name(backend, device):
    layer = PackedLinear(21, 5, spec=QuantSpec("ternary")).to(device)
    layer.set_packed_weight(pack_weight(random(5, 21).to(device), layer.spec))
    layer.backend = backend
    x = random(3, 21, seed=1).to(device)
    expected = serving(backend, layer.spec, device, x.dtype).linear(x, layer.packed_weight, layer.bias, None)
    assert torch.equal(layer(x), expected)


@backends
def test_interface(backend):
    assert issubclass(BACKENDS[backend], Backend)
    available = BACKENDS[backend].is_available()
    assert available in (True, False)
    if available:
        instance = BACKENDS[backend]()
        assert vars(instance) == {}  # no state: the file is all there is
        assert instance.supports(QuantSpec("binary"), torch.device("cpu"), torch.float32) in (True, False)


@pytest.mark.parametrize("missing", ["is_available", "supports", "linear"])
def test_a_backend_defines_all_three_methods(missing):
    methods = {name: lambda *_: True for name in ("is_available", "supports", "linear") if name != missing}
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
    assert ReferenceBackend().supports(QuantSpec(name), device, getattr(torch, dtype))


@quantizers
def test_reference_is_exact_on_small_integers(name):
    """Sums of small whole numbers have no rounding, so here every bit is known."""
    weight = pack_weight(torch.tensor([[1.0, -1.0, 1.0], [-1.0, -1.0, 1.0]]), QuantSpec(name))
    plus = weight.decode().max().item()  # uniform levels saturate at the positive end
    found = ReferenceBackend().linear(torch.tensor([[4.0, 2.0, 8.0]]), weight, torch.tensor([1.0, 0.0]), None)
    assert found.tolist() == [[12 * plus - 2 + 1, 8 * plus - 6]]
    assert plus == {"int4": 0.875, "int8": 127 / 128}.get(name, 1.0)
