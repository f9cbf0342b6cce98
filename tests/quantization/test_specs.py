"""QuantSpec, ActivationSpec and LayerMap: shapes, maps, and every refusal with its exact text."""

import re
from dataclasses import FrozenInstanceError, asdict
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hf_xtc.quantization.quantizers  # noqa: F401  (fills QUANTIZERS)
from hf_xtc.checks import check_choice, check_pattern
from hf_xtc.errors import RecipeError, XTCError
from hf_xtc.quantization.specs import FLOAT_DTYPES, GRANULARITIES, QUANTIZERS, ActivationSpec, QuantSpec
from hf_xtc.recipe.layer_map import LayerMap

depths_and_keeps = st.integers(1, 48).flatmap(lambda depth: st.tuples(st.just(depth), st.integers(1, depth)))


@st.composite
def layer_maps(draw, **fixed):
    """Any valid map onto a teacher of at most 48 layers."""
    depth = draw(st.integers(1, 48))
    layers = sorted(draw(st.sets(st.integers(0, depth - 1), min_size=1)))
    return LayerMap(tuple(layers), depth, **fixed)


def refuses(text, error=RecipeError):
    return pytest.raises(error, match=f"^{re.escape(text)}$")


def test_quantizers_are_registered():
    assert {"binary", "ternary", "int4", "int8"} <= set(QUANTIZERS)


def test_check_choice():
    check_choice("colour", "red", ("red", 3))
    with refuses("colour='blue' does not exist. Use one of: red, 3."):
        check_choice("colour", "blue", ("red", 3))


def test_quant_spec_defaults():
    assert asdict(QuantSpec()) == {
        "quantizer": "binary",
        "granularity": "per_channel",
        "group_size": None,
        "scale_dtype": "float16",
    }


@pytest.mark.parametrize(
    "granularity, group_size, expected",
    [
        ("per_tensor", None, (1, 1)),
        ("per_channel", None, (6, 1)),
        ("per_group", 4, (6, 3)),
        ("per_group", 1, (6, 12)),
        ("per_group", 12, (6, 1)),
    ],
)
def test_scale_shape(granularity, group_size, expected):
    assert QuantSpec("binary", granularity, group_size).scale_shape(6, 12) == expected


@settings(deadline=None)
@given(rows=st.integers(1, 50), groups=st.integers(1, 20), size=st.integers(1, 20))
def test_groups_tile_each_row(rows, groups, size):
    assert QuantSpec("ternary", "per_group", size).scale_shape(rows, groups * size) == (rows, groups)


@pytest.mark.parametrize("quantizer", ["binary", "ternary", "int4", "int8"])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_quant_spec_accepts(quantizer, dtype):
    spec = QuantSpec(quantizer, scale_dtype=dtype)
    assert (spec.quantizer, spec.scale_dtype) == (quantizer, dtype)


@pytest.mark.parametrize(
    "values, text",
    [
        ({"granularity": "per_row"},
         "granularity='per_row' does not exist. Use one of: per_tensor, per_channel, per_group."),
        ({"scale_dtype": "float8"},
         "scale_dtype='float8' does not exist. Use one of: float16, bfloat16, float32."),
        ({"granularity": "per_group"},
         "granularity='per_group' with group_size=None: 'per_group' requires a group size, and the other "
         "granularities take none."),
        ({"group_size": 64},
         "granularity='per_channel' with group_size=64: 'per_group' requires a group size, and the other "
         "granularities take none."),
        ({"granularity": "per_tensor", "group_size": 64},
         "granularity='per_tensor' with group_size=64: 'per_group' requires a group size, and the other "
         "granularities take none."),
        ({"granularity": "per_group", "group_size": 0}, "group_size=0 must be a positive whole number."),
        ({"granularity": "per_group", "group_size": -8}, "group_size=-8 must be a positive whole number."),
        ({"granularity": "per_group", "group_size": 8.0}, "group_size=8.0 must be a positive whole number."),
    ],
)  # fmt: skip
def test_quant_spec_refuses(values, text):
    with refuses(text):
        QuantSpec(**values)


def test_quant_spec_refuses_an_unknown_quantizer():
    with refuses(f"Unknown quantizer 'bianry'; registered: {', '.join(sorted(QUANTIZERS))}.", XTCError):
        QuantSpec("bianry")


def test_group_size_must_divide_the_columns():
    with refuses(
        "group_size=5 does not divide the 12 input columns of a 4 x 12 weight, so its last group would be short. "
        "Choose a divisor, or granularity='per_channel'."
    ):
        QuantSpec("binary", "per_group", 5).scale_shape(4, 12)


def test_activation_spec_defaults():
    assert asdict(ActivationSpec()) == {"bits": 8, "symmetric": True, "calibration": "dynamic"}


@pytest.mark.parametrize(
    "values, text",
    [
        ({"bits": 2}, "activation bits=2 does not exist. Use one of: 8, 4."),
        ({"bits": None}, "activation bits=None does not exist. Use one of: 8, 4."),
        ({"calibration": "ema"}, "activation calibration='ema' does not exist. Use one of: dynamic, static."),
    ],
)
def test_activation_spec_refuses(values, text):
    with refuses(text):
        ActivationSpec(**values)


@pytest.mark.parametrize(
    "spec, field", [(QuantSpec(), "quantizer"), (ActivationSpec(), "bits"), (LayerMap((0,), 1), "layers")]
)
def test_specs_are_frozen_and_hashable(spec, field):
    with pytest.raises(FrozenInstanceError):
        setattr(spec, field, None)
    assert {spec: 1}[type(spec)(**asdict(spec))] == 1


@pytest.mark.parametrize(
    "depth, keep, expected",
    [
        (12, 6, (1, 3, 5, 7, 9, 11)),
        (12, 5, (2, 4, 6, 8, 10)),
        (6, 3, (1, 3, 5)),
        (12, 4, (2, 5, 8, 11)),
        (12, 3, (3, 7, 11)),
        (12, 1, (11,)),
        (24, 12, (1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23)),
    ],
)
def test_skip(depth, keep, expected):
    assert LayerMap.skip(depth, keep) == LayerMap(expected, depth)


@settings(deadline=None)
@given(st.integers(1, 48))
def test_skip_of_the_whole_depth_is_the_identity(depth):
    kept = LayerMap.skip(depth, depth)
    assert kept.layers == kept.attentions == tuple(range(depth))
    assert kept.hidden_states == tuple(range(depth + 1))


@settings(deadline=None)
@given(depths_and_keeps)
def test_skip_is_increasing_in_range_and_has_the_requested_length(depth_and_keep):
    depth, keep = depth_and_keep
    layers = LayerMap.skip(depth, keep).layers
    assert len(layers) == keep
    assert 0 <= layers[0] <= layers[-1] < depth
    assert all(before < after for before, after in pairwise(layers))


@settings(deadline=None)
@given(depths_and_keeps.filter(lambda pair: pair[0] % pair[1] == 0))
def test_skip_reaches_the_last_layer_where_it_divides(depth_and_keep):
    depth, keep = depth_and_keep
    assert LayerMap.skip(depth, keep).layers[-1] == depth - 1


@settings(deadline=None)
@given(layer_maps())
def test_hidden_states_start_at_the_embeddings(layer_map):
    assert layer_map.hidden_states == (0, *(layer + 1 for layer in layer_map.layers))
    assert layer_map.attentions == layer_map.layers


@settings(deadline=None)
@given(layer_maps(shifted=True))
def test_shifted_hidden_states_are_never_negative(layer_map):
    first, *rest = layer_map.hidden_states
    assert first == (layer_map.layers[0] - 1 if layer_map.layers[0] else 0)
    assert rest == [layer + 1 for layer in layer_map.layers]
    assert all(0 <= state <= layer_map.num_teacher_layers for state in layer_map.hidden_states)
    assert layer_map.attentions == layer_map.layers


@pytest.mark.parametrize(
    "layers, expected",
    [
        ((1, 3, 5, 7, 9, 11), (0, 2, 4, 6, 8, 10, 12)),
        ((2, 4, 6, 8, 10), (1, 3, 5, 7, 9, 11)),
        ((0, 2, 4), (0, 1, 3, 5)),
    ],
)
def test_shifted_map_of_the_reference(layers, expected):
    assert LayerMap(layers, 12, shifted=True).hidden_states == expected


@pytest.mark.parametrize("shifted", [False, True])
def test_skip_keeps_the_shift(shifted):
    assert LayerMap.skip(12, 5, shifted=shifted) == LayerMap((2, 4, 6, 8, 10), 12, shifted=shifted)


def test_layers_may_come_as_a_list():
    assert LayerMap([1, 3], 4) == LayerMap((1, 3), 4)


@pytest.mark.parametrize(
    "layers, depth, text",
    [
        ((), 12, "A layer map needs at least one teacher layer; got none."),
        ((1, "3"), 12, "layers=(1, '3') must be whole numbers; '3' is not."),
        ((1, 2.0), 12, "layers=(1, 2.0) must be whole numbers; 2.0 is not."),
        ((True, 2), 12, "layers=(True, 2) must be whole numbers; True is not."),
        ((10, 12), 12,
         "layers=(10, 12) names teacher layer 12, but the teacher has 12 layers (0-11). Use LayerMap.skip(12, 2)."),
        ((-1, 2), 12,
         "layers=(-1, 2) names teacher layer -1, but the teacher has 12 layers (0-11). Use LayerMap.skip(12, 2)."),
        ((0, 1, 2, 3), 3,
         "layers=(0, 1, 2, 3) names teacher layer 3, but the teacher has 3 layers (0-2). Use fewer layers."),
        ((1, 3, 3), 12, "layers=(1, 3, 3) repeats layer 3. Name each teacher layer once, in order."),
        ((1, 5, 3), 12, "layers=(1, 5, 3) is not increasing at layer 3. Name each teacher layer once, in order."),
    ],
)  # fmt: skip
def test_layer_map_refuses(layers, depth, text):
    with refuses(text):
        LayerMap(layers, depth)


@pytest.mark.parametrize("keep", [0, -1, 13])
def test_skip_refuses(keep):
    with refuses(f"keep_layers={keep} does not fit a teacher of 12 layers. Keep between 1 and 12."):
        LayerMap.skip(12, keep)


def test_granularities():
    assert GRANULARITIES == ("per_tensor", "per_channel", "per_group")


@pytest.mark.parametrize(
    "pattern", ["attention.self", r"encoder\.layer\.\d+\.(a|b)\.x", "layer.[0-5].*output.*dense", ".", ""]
)
def test_patterns_of_module_names_are_accepted(pattern):
    check_pattern("modules", pattern)


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(.*)*x", "(?:a|a)*x", "(a?){9}", ".*.*.*.*x", "a?a?a?a?aaaa", "(a{2,}){2,}", "x" * 201]
)
def test_patterns_that_may_never_end_are_refused(pattern):
    with pytest.raises(RecipeError, match=r"^modules: the pattern .* may never end"):
        check_pattern("modules", pattern)
