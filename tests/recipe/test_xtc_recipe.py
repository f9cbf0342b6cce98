"""XTCRecipe: scopes, JSON both ways, the paper's recipe, DeepSpeed, and every refusal with its exact text."""

import json
import re
from dataclasses import FrozenInstanceError, fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hf_xtc.quantization.quantizers  # noqa: F401  (fills QUANTIZERS)
from hf_xtc.errors import RecipeError, XTCError
from hf_xtc.quantization.specs import FLOAT_DTYPES, QUANTIZERS, ActivationSpec, QuantSpec
from hf_xtc.recipe.layer_map import LayerMap
from hf_xtc.recipe.xtc_recipe import SCOPES, XTCRecipe

QUANTIZER_NAMES = ["binary", "ternary", "int4", "int8"]
ENCODER = ["attention.self", "intermediate", "output.dense"]

quantizers = st.sampled_from([None, *QUANTIZER_NAMES])
granularities = st.sampled_from([("per_tensor", None), ("per_channel", None), ("per_group", 1), ("per_group", 64)])
depths = st.one_of(
    st.just((None, None)),
    st.integers(1, 12).map(lambda keep: (keep, None)),
    st.sets(st.integers(0, 11), min_size=1).map(lambda layers: (None, tuple(sorted(layers)))),
)


@st.composite
def recipes(draw):
    """Any valid recipe for a teacher of 12 layers."""
    granularity, group_size = draw(granularities)
    keep_layers, layers = draw(depths)
    return XTCRecipe(
        weights=draw(quantizers),
        granularity=granularity,
        group_size=group_size,
        embedding_weights=draw(quantizers),
        position_weights=draw(quantizers),
        quantize_pooler=draw(st.booleans()),
        activation_bits=draw(st.sampled_from([None, 4, 8])),
        activation_symmetric=draw(st.booleans()),
        activation_calibration=draw(st.sampled_from(["dynamic", "static"])),
        keep_layers=keep_layers,
        layers=layers,
        shifted_hidden_map=draw(st.booleans()),
        scale_dtype=draw(st.sampled_from(FLOAT_DTYPES)),
        rest_dtype=draw(st.sampled_from(FLOAT_DTYPES)),
    )


def refuses(text, error=RecipeError):
    return pytest.raises(error, match=f"^{re.escape(text)}$")


def test_defaults():
    recipe = XTCRecipe()
    linear, rows = (
        QuantSpec("binary", "per_channel", None, "float16"),
        QuantSpec("int8", "per_channel", None, "float16"),
    )
    assert [recipe.spec(scope) for scope in SCOPES] == [linear, linear, linear, linear, rows]
    assert recipe.activation() == ActivationSpec(8, True, "dynamic")
    assert recipe.layer_map(12) == LayerMap(tuple(range(12)), 12)
    assert (recipe.scale_dtype, recipe.rest_dtype) == ("float16", "float16")


def test_the_scopes():
    assert SCOPES == ("attention", "feed_forward", "pooler", "word_embeddings", "position_embeddings")


@settings(deadline=None)
@given(recipes())
def test_json_both_ways(recipe):
    assert XTCRecipe.from_dict(recipe.to_dict()) == recipe
    assert XTCRecipe.from_json(recipe.to_json()) == recipe
    assert json.loads(recipe.to_json()) == recipe.to_dict()
    assert hash(XTCRecipe.from_dict(recipe.to_dict())) == hash(recipe)


@settings(deadline=None)
@given(recipes())
def test_scopes_follow_the_fields(recipe):
    linear = recipe.weights and QuantSpec(recipe.weights, recipe.granularity, recipe.group_size, recipe.scale_dtype)
    words = recipe.embedding_weights and QuantSpec(recipe.embedding_weights, scale_dtype=recipe.scale_dtype)
    positions = recipe.position_weights and QuantSpec(recipe.position_weights, scale_dtype=recipe.scale_dtype)
    assert recipe.spec("attention") == recipe.spec("feed_forward") == linear
    assert recipe.spec("pooler") == (linear if recipe.quantize_pooler else None)
    assert recipe.spec("word_embeddings") == words
    assert recipe.spec("position_embeddings") == positions
    activation = recipe.activation()
    assert (activation and activation.bits) == recipe.activation_bits


@settings(deadline=None)
@given(recipes())
def test_layer_map_follows_the_fields(recipe):
    layer_map = recipe.layer_map(12)
    assert layer_map.shifted == recipe.shifted_hidden_map
    assert recipe.layers in (None, layer_map.layers)
    assert len(layer_map.layers) == (recipe.keep_layers or len(recipe.layers or range(12)))


def test_to_dict_holds_every_field_in_order():
    values = XTCRecipe(layers=(1, 3)).to_dict()
    assert list(values) == [field.name for field in fields(XTCRecipe)]
    assert values["layers"] == [1, 3]


def test_to_json_has_one_field_a_line():
    lines = XTCRecipe(weights="ternary").to_json().splitlines()
    assert (len(lines), lines[0], lines[1]) == (16, "{", '  "weights": "ternary",')


def test_a_part_of_the_fields_takes_the_defaults():
    assert XTCRecipe.from_dict({}) == XTCRecipe()
    assert XTCRecipe.from_dict({"weights": "int4"}) == XTCRecipe(weights="int4")


def test_frozen():
    recipe = XTCRecipe()
    with pytest.raises(FrozenInstanceError):
        recipe.weights = "ternary"


def test_layers_may_come_as_a_list():
    assert XTCRecipe(layers=[1, 3]) == XTCRecipe(layers=(1, 3))


@pytest.mark.parametrize("bits, quantizer", [(1, "binary"), (2, "ternary")])
def test_paper(bits, quantizer):
    recipe = XTCRecipe.paper(bits, keep_layers=5)
    linear, rows = (QuantSpec(quantizer, kind, None, "float32") for kind in ("per_tensor", "per_channel"))
    assert [recipe.spec(scope) for scope in SCOPES] == [linear, linear, None, rows, None]
    assert recipe.activation() == ActivationSpec(8, True, "dynamic")
    assert recipe.layer_map(12) == LayerMap((2, 4, 6, 8, 10), 12, shifted=True)
    assert recipe.rest_dtype == "float32"


def test_paper_defaults_and_layers():
    assert XTCRecipe.paper() == XTCRecipe.paper(1)
    assert XTCRecipe.paper().layer_map(12).hidden_states == tuple(range(13))
    assert XTCRecipe.paper(layers=(0, 2)).layer_map(4).hidden_states == (0, 1, 3)


def deepspeed(bits=1, modules=(*ENCODER, "word_embeddings")):
    weight = {"params": {"start_bits": bits, "target_bits": bits, "quantization_period": 0}, "modules": list(modules)}
    activation = {"params": {"bits": 8}, "modules": ENCODER}
    return {
        "train_batch_size": 32,
        "compression_training": {
            "weight_quantization": {"shared_parameters": {"enabled": True}, "different_groups": {"wq1": weight}},
            "activation_quantization": {
                "shared_parameters": {"enabled": True},
                "different_groups": {"aq1": activation},
            },
        },
    }


def test_from_deepspeed_is_the_paper_recipe():
    config = deepspeed()
    assert XTCRecipe.from_deepspeed(config) == XTCRecipe.paper()
    config["compression_training"]["layer_reduction"] = {"enabled": True, "teacher_layer": [2, 4, 6, 8, 10]}
    assert XTCRecipe.from_deepspeed(config) == XTCRecipe.paper(layers=(2, 4, 6, 8, 10))


def test_from_deepspeed_overrides_the_paper_recipe():
    config = deepspeed(8, modules=ENCODER)
    config["compression_training"]["activation_quantization"]["shared_parameters"]["enabled"] = False
    expected = replace(XTCRecipe.paper(), weights="int8", embedding_weights=None, activation_bits=None)
    assert XTCRecipe.from_deepspeed(config) == expected


def test_from_deepspeed_refuses_what_has_no_equivalent():
    with refuses(
        "weight_quantization.different_groups.wq1.params.target_bits=3 does not exist. Use one of: 1, 2, 4, 8."
    ):
        XTCRecipe.from_deepspeed(deepspeed(3))


FIELDS = ", ".join(field.name for field in fields(XTCRecipe))


@pytest.mark.parametrize(
    "values, text",
    [
        ({"keep_layers": 5, "layers": (1, 3)},
         "keep_layers=5 and layers=(1, 3) both choose the student's depth. Give one."),
        ({"keep_layers": 0}, "keep_layers=0 must be a positive whole number."),
        ({"keep_layers": "5"}, "keep_layers='5' must be a positive whole number."),
        ({"keep_layers": True}, "keep_layers=True must be a positive whole number."),
        ({"layers": ()}, "A layer map needs at least one teacher layer; got none."),
        ({"layers": (3, 1)}, "layers=(3, 1) is not increasing at layer 1. Name each teacher layer once, in order."),
        ({"layers": "13"}, "layers='13' must list teacher layers from 0, like (2, 4, 6)."),
        ({"layers": 5}, "layers=5 must list teacher layers from 0, like (2, 4, 6)."),
        ({"weights": None, "granularity": "per_row"},
         "granularity='per_row' does not exist. Use one of: per_tensor, per_channel, per_group."),
        ({"activation_bits": 8.0}, "activation bits=8.0 does not exist. Use one of: 8, 4."),
        ({"activation_bits": None, "activation_calibration": "ema"},
         "activation calibration='ema' does not exist. Use one of: dynamic, static."),
        ({"rest_dtype": "int8"}, "rest_dtype='int8' does not exist. Use one of: float16, bfloat16, float32."),
        ({"scale_dtype": "int8"}, "scale_dtype='int8' does not exist. Use one of: float16, bfloat16, float32."),
        ({"granularity": "per_row"},
         "granularity='per_row' does not exist. Use one of: per_tensor, per_channel, per_group."),
        ({"group_size": 64},
         "granularity='per_channel' with group_size=64: 'per_group' requires a group size, and the other "
         "granularities take none."),
        ({"activation_bits": 2}, "activation bits=2 does not exist. Use one of: 8, 4."),
        ({"activation_calibration": "ema"},
         "activation calibration='ema' does not exist. Use one of: dynamic, static."),
        *(({name: 1}, f"{name}=1 must be true or false.")
          for name in ("quantize_pooler", "activation_symmetric", "shifted_hidden_map")),
    ],
)  # fmt: skip
def test_refusals(values, text):
    with refuses(text):
        XTCRecipe(**values)
    with refuses(text):
        XTCRecipe.from_dict(values)


@pytest.mark.parametrize("name", ["weights", "embedding_weights", "position_weights"])
def test_unknown_quantizers(name):
    with refuses(f"Unknown quantizer 'int2'; registered: {', '.join(sorted(QUANTIZERS))}.", XTCError):
        XTCRecipe(**{name: "int2"})


@pytest.mark.parametrize(
    "values, names", [({"bits": 1}, "bits"), ({"weights": "binary", "layer": [1], "bits": 1}, "bits, layer")]
)
def test_unknown_fields(values, names):
    with refuses(f"A recipe has no field {names}; its fields are: {FIELDS}."):
        XTCRecipe.from_dict(values)


def test_unknown_scope():
    with refuses(
        "scope='head' does not exist. "
        "Use one of: attention, feed_forward, pooler, word_embeddings, position_embeddings."
    ):
        XTCRecipe().spec("head")


@pytest.mark.parametrize("bits", [0, 3, 8])
def test_paper_refuses_other_bits(bits):
    with refuses(f"bits={bits} does not exist. Use one of: 1, 2."):
        XTCRecipe.paper(bits)


@pytest.mark.parametrize(
    "recipe, text",
    [
        (XTCRecipe(keep_layers=7), "keep_layers=7 does not fit a teacher of 6 layers. Keep between 1 and 6."),
        (XTCRecipe(layers=(1, 6)),
         "layers=(1, 6) names teacher layer 6, but the teacher has 6 layers (0-5). Use LayerMap.skip(6, 2)."),
    ],
    ids=["keep", "layers"],
)  # fmt: skip
def test_layer_map_that_does_not_fit_the_teacher(recipe, text):
    with refuses(text):
        recipe.layer_map(6)


def test_from_json_refuses_what_is_no_recipe():
    with refuses("The recipe is not valid JSON: Expecting value: line 1 column 1 (char 0)."):
        XTCRecipe.from_json("oops")
    with refuses("A recipe is a JSON object, not [1]."):
        XTCRecipe.from_json("[1]")
