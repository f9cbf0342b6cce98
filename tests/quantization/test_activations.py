"""Fake-quantized activations: equal to DeepSpeed where documented, and properties of all specs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracle import ELEMENTS, LARGEST, ORACLE, PATIENT

from hf_xtc.quantization.activations import ActivationQuantizer
from hf_xtc.quantization.specs import FLOAT_DTYPES, ActivationSpec

ACTIVATIONS = [
    ActivationSpec(bits, symmetric, calibration)
    for bits in (8, 4)
    for symmetric in (True, False)
    for calibration in ("dynamic", "static")
]
activations = pytest.mark.parametrize(
    "spec", ACTIVATIONS, ids=lambda s: f"{s.bits}-{'sym' if s.symmetric else 'asym'}-{s.calibration}"
)


@pytest.mark.parametrize(
    "key, spec, source",
    [
        ("act_sym8_dyn", ActivationSpec(8, True, "dynamic"), "x"),
        ("act_asym8_dyn", ActivationSpec(8, False, "dynamic"), "x"),
        ("act_sym8_static", ActivationSpec(8, True, "static"), "x"),
        # A token with a range of its own is what DeepSpeed's weight quantizers call a group.
        ("sym8_g64", ActivationSpec(8, True, "dynamic"), "w"),
        ("sym8_g1", ActivationSpec(8, True, "static"), "w"),
        ("asym8_g64", ActivationSpec(8, False, "dynamic"), "w"),
        ("asym8_g1", ActivationSpec(8, False, "static"), "w"),
        ("sym4_g64", ActivationSpec(4, True, "dynamic"), "w"),
        ("sym4_g1", ActivationSpec(4, True, "static"), "w"),
    ],
)
def test_activations_as_in_deepspeed(key, spec, source):
    expected = ORACLE[key]
    quantizer = ActivationQuantizer(spec)
    assert torch.equal(quantizer(ORACLE[source])[: len(expected)], expected)
    assert torch.equal(quantizer.eval()(ORACLE[source])[: len(expected)], expected)


@activations
def test_zero_activations_stay_zero(spec):
    values = torch.zeros(3, 5)
    assert torch.equal(ActivationQuantizer(spec)(values), values)


@activations
def test_a_zero_token_beside_others_stays_zero(spec):
    values = torch.tensor([[0.0, 0.0, 0.0], [0.3, -0.7, 1.0]])
    quantized = ActivationQuantizer(spec)(values)
    assert torch.equal(quantized[0], values[0])
    assert quantized[1].abs().sum() > 0


@pytest.mark.parametrize("bits", [8, 4])
@given(constant=st.floats(-(2.0**40), 2.0**40, width=32), columns=st.integers(1, 9))
@settings(PATIENT, max_examples=50)
def test_a_constant_token_comes_back_from_asymmetric_levels(bits, constant, columns):
    values = torch.full((2, columns), constant)
    assert torch.equal(ActivationQuantizer(ActivationSpec(bits, False))(values), values)


@pytest.mark.parametrize(
    "spec, values, expected",
    [
        (ActivationSpec(4, True), [8.0, -8.0, 2.4, 2.6], [7.0, -8.0, 2.0, 3.0]),
        (ActivationSpec(8, True), [128.0, -128.0, 2.4, 2.6], [127.0, -128.0, 2.0, 3.0]),
        (ActivationSpec(4, False), [-4.0, 12.0, 2.4, 2.6], [-4.0, 11.0, 2.0, 3.0]),
        (ActivationSpec(8, False), [-56.0, 200.0, 2.4, 2.6], [-56.0, 199.0, 2.0, 3.0]),
        (ActivationSpec(4, True), [-4.0, 0.5, 1.24, 1.26], [-4.0, 0.5, 1.0, 1.5]),
    ],
)
def test_activations_by_hand(spec, values, expected):
    assert ActivationQuantizer(spec)(torch.tensor(values)).tolist() == expected


@activations
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@given(data=st.data())
@settings(PATIENT, max_examples=10)
def test_activation_contract(spec, dtype, data):
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=6))
    array = data.draw(hnp.arrays("float32", shape, elements=ELEMENTS[LARGEST["float16"]], fill=st.just(0.0)))
    values = torch.from_numpy(array).to(getattr(torch, dtype)).requires_grad_()
    before = values.detach().clone()
    quantizer = ActivationQuantizer(spec)
    quantized = quantizer(values)
    assert torch.equal(values, before)
    assert (quantized.dtype, quantized.shape) == (values.dtype, values.shape)
    assert bool(torch.isfinite(quantized).all())
    quantized.backward(torch.full_like(values, 3.0))
    assert torch.equal(values.grad, torch.full_like(values, 3.0))


@pytest.mark.parametrize("bits, symmetric, levels", [(8, False, 256), (4, False, 16), (8, True, 171), (4, True, 11)])
def test_number_of_levels(bits, symmetric, levels):
    """Of the symmetric levels from -3 to 3 only those from -1 up are used."""
    values = torch.linspace(-1, 3, 5001)
    assert len(ActivationQuantizer(ActivationSpec(bits, symmetric))(values).unique()) == levels


@pytest.mark.parametrize("symmetric", [True, False])
def test_dynamic_ranges_are_those_of_each_token(symmetric):
    values = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [10.0], [100.0]])
    quantizer = ActivationQuantizer(ActivationSpec(8, symmetric))
    alone = torch.stack([quantizer(token) for token in values.view(6, 7)]).view_as(values)
    assert torch.equal(quantizer(values), alone)
    assert not quantizer.state_dict()


def static(symmetric=True):
    return ActivationQuantizer(ActivationSpec(8, symmetric, "static"))


def test_static_range_follows_training():
    quantizer = static()
    assert quantizer.range.tolist() == [0.0, 0.0]
    quantizer(torch.tensor([[-1.0, 2.0], [0.5, 0.0]]))
    assert quantizer.range.tolist() == [-1.0, 2.0]
    quantizer(torch.tensor([[-3.0, 4.0]]))
    assert quantizer.range.tolist() == pytest.approx([-1.1, 2.1], rel=1e-6)  # 0.95 * old + 0.05 * new
    quantizer(torch.tensor([[1.0, 1.5]]))
    assert quantizer.range.tolist() == pytest.approx([-0.995, 2.07], rel=1e-6)
    assert quantizer.momentum == 0.95


def test_static_range_is_frozen_in_eval_mode():
    quantizer = static()
    quantizer(torch.tensor([-1.0, 2.0]))
    quantizer.eval()
    quantizer(torch.tensor([-30.0, 40.0]))
    assert quantizer.range.tolist() == [-1.0, 2.0]


def test_static_range_clamps_values_beyond_it():
    values = torch.tensor([-5.0, -2.0, 0.016, 5.0])
    symmetric, asymmetric = static(), static(symmetric=False)
    for quantizer in (symmetric, asymmetric):
        quantizer(torch.tensor([-1.0, 3.0]))
        quantizer.eval()
    assert symmetric(values).tolist() == [-3.0, -2.0 + 0.0078125, 0.0234375, 3.0 - 0.0234375]
    assert asymmetric(values).tolist() == [-1.0, -1.0, 0.015625, 3.0 - 0.015625]


@pytest.mark.parametrize("symmetric", [True, False])
def test_an_unseen_range_leaves_activations_in_float(symmetric):
    values = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(static(symmetric).eval()(values), values)


def test_a_constant_batch_does_not_set_a_range():
    quantizer = static()
    values = torch.full((2, 2), 0.3)
    assert torch.equal(quantizer(values), values)
    quantizer(torch.tensor([-1.0, 2.0]))
    assert quantizer.range.tolist() == [-1.0, 2.0]


def test_a_batch_without_tokens_does_not_change_the_range():
    quantizer = static()
    quantizer(torch.tensor([-1.0, 2.0]))
    assert quantizer(torch.zeros(0, 2)).shape == (0, 2)
    assert quantizer.range.tolist() == [-1.0, 2.0]


def test_static_range_is_part_of_the_state_dict():
    trained, loaded = static(), static()
    trained(torch.tensor([-1.0, 2.0]))
    assert list(trained.state_dict()) == ["range"]
    loaded.load_state_dict(trained.state_dict())
    values = torch.linspace(-3, 3, 50)
    assert torch.equal(loaded.eval()(values), trained.eval()(values))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_static_range_stays_float32(dtype):
    quantizer = static()
    quantizer(torch.tensor([-1.0001, 2.0001]))
    before = quantizer.range.clone()
    quantizer.to(dtype)
    assert quantizer.range.dtype == torch.float32
    assert torch.equal(quantizer.range, before)
    assert quantizer(torch.zeros(2, 2, dtype=dtype)).dtype == dtype


def test_the_representation_names_bits_symmetry_and_calibration():
    assert repr(static(symmetric=False)) == "ActivationQuantizer(bits=8, asymmetric, static)"
    assert repr(ActivationQuantizer(ActivationSpec(4))) == "ActivationQuantizer(bits=4, symmetric, dynamic)"
