"""recipe_fields and schedule_offsets on the reference's XTC configurations; every refusal with its exact text."""

import copy
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hf_xtc.quantization.quantizers  # noqa: F401  (fills QUANTIZERS)
from hf_xtc.errors import RecipeError
from hf_xtc.recipe.deepspeed import recipe_fields, schedule_offsets
from hf_xtc.recipe.xtc_recipe import XTCRecipe

QUERY = "bert.encoder.layer.0.attention.self.query"
FEED_FORWARD = "bert.encoder.layer.0.intermediate.dense"
ENCODER = ["attention.self", "intermediate", "output.dense"]
WORDS = "word_embeddings"
ADVICE = (
    "The encoder's linears (and the pooler, if quantized) share one number of bits, or all stay in float (None). "
    "Cover them alike: ['attention.self', 'intermediate', 'output.dense']."
)


def weight_group(bits, modules, **params):
    return {
        "params": {"start_bits": bits, "target_bits": bits, "quantization_period": 0, **params},
        "modules": modules,
    }


def weights(*groups, **shared):
    named = {f"wq{i + 1}": group for i, group in enumerate(groups)}
    return {"shared_parameters": {"enabled": True, **shared}, "different_groups": named}


def activations(*groups, **shared):
    named = {f"aq{i + 1}": {"params": {"bits": bits}, "modules": modules} for i, (bits, modules) in enumerate(groups)}
    return {"shared_parameters": {"enabled": True, **shared}, "different_groups": named}


def pruning(enabled, params, modules):
    groups = {"p1": {"params": params, "modules": modules, "related_modules": [["self.query"]]}}
    shared = {"enabled": enabled, "schedule_offset": 2000, "method": "topk"}
    return {"shared_parameters": shared, "different_groups": groups}


def reference(bits=1, layers=(), modules=(*ENCODER, WORDS)):
    """The whole file of the reference, with every key it writes."""
    kept = list(layers) or [2, 4, 6, 8, 10]
    shared = {
        "enabled": True,
        "quantizer_kernel": False,
        "schedule_offset": 0,
        "quantize_groups": 1,
        "quantize_verbose": False,
        "quantization_type": "symmetric",
        "quantize_weight_in_forward": True,
        "rounding": "nearest",
        "fp16_mixed_quantize": {"enabled": False, "quantize_change_ratio": 0.1},
    }
    activation = {"quantization_type": "symmetric", "range_calibration": "dynamic", "schedule_offset": 0}
    section = {
        "layer_reduction": {
            "enabled": bool(layers),
            "keep_number_layer": len(kept),
            "module_name_prefix": "bert.encoder.layer",
            "teacher_layer": kept,
            "other_module_name": ["bert.pooler", "bert.embeddings", "classifier"],
        },
        "weight_quantization": weights(weight_group(bits, list(modules)), **shared),
        "activation_quantization": activations((8, ENCODER), **activation),
        "sparse_pruning": pruning(False, {"dense_ratio": 0.5}, ["attention.self"]),
        "row_pruning": pruning(False, {"dense_ratio": 0.5}, ["intermediate.dense"]),
        "head_pruning": pruning(False, {"dense_ratio": 0.5}, ["attention.output.dense"]),
    }
    section["head_pruning"]["shared_parameters"]["num_heads"] = 12
    return {"train_batch_size": 32, "fp16": {"enabled": False}, "compression_training": section}


REFERENCE_FIELDS = {
    "weights": "binary",
    "granularity": "per_tensor",
    "embedding_weights": "binary",
    "position_weights": None,
    "quantize_pooler": False,
    "activation_bits": 8,
    "activation_symmetric": True,
    "activation_calibration": "dynamic",
    "keep_layers": None,
    "layers": None,
}
FLOAT_FIELDS = {
    "weights": None,
    "granularity": "per_tensor",
    "embedding_weights": None,
    "position_weights": None,
    "quantize_pooler": False,
    "activation_bits": None,
    "keep_layers": None,
    "layers": None,
}


def fields(weight=None, activation=None):
    section = {"weight_quantization": weight, "activation_quantization": activation}
    return recipe_fields({name: part for name, part in section.items() if part is not None})


def refuses(text):
    return pytest.raises(RecipeError, match=f"^{re.escape(text)}$")


def test_one_bit_twelve_layers():
    assert recipe_fields(reference()) == REFERENCE_FIELDS


@pytest.mark.parametrize("bits, name", [(1, "binary"), (2, "ternary"), (4, "int4"), (8, "int8")])
@pytest.mark.parametrize("layers", [(2, 4, 6, 8, 10), (1, 3, 5, 7, 9, 11)], ids=["5L", "6L"])
def test_layer_reduction_and_bits(bits, name, layers):
    expected = {**REFERENCE_FIELDS, "weights": name, "embedding_weights": name, "layers": layers}
    assert recipe_fields(reference(bits, layers)) == expected


def test_layer_reduction_alone():
    config = reference(layers=(1, 3, 5, 7, 9, 11))
    for name in ("weight_quantization", "activation_quantization"):
        config["compression_training"][name]["shared_parameters"]["enabled"] = False
    assert recipe_fields(config) == {**FLOAT_FIELDS, "layers": (1, 3, 5, 7, 9, 11)}


def test_section_alone_is_read_like_the_whole_file():
    assert recipe_fields(reference()["compression_training"]) == recipe_fields(reference())


@pytest.mark.parametrize(
    "section",
    [{}, {"weight_quantization": {}}, {"layer_reduction": {}}, {"weight_quantization": {"shared_parameters": {}}}],
    ids=["empty", "no-groups", "no-reduction", "no-switch"],
)
def test_nothing_enabled_is_float(section):
    assert recipe_fields({"compression_training": section}) == FLOAT_FIELDS


def test_reading_leaves_the_config_unchanged_and_takes_json():
    config = json.loads(json.dumps(reference(layers=(2, 4, 6, 8, 10))))
    before = copy.deepcopy(config)
    recipe_fields(config)
    schedule_offsets(config)
    assert config == before


@pytest.mark.parametrize("bits, layers", [(1, None), (2, None), (1, (2, 4, 6, 8, 10))])
def test_from_deepspeed_is_the_paper_recipe(bits, layers):
    assert XTCRecipe.from_deepspeed(reference(bits, layers or ())) == XTCRecipe.paper(bits, layers=layers)


@pytest.mark.parametrize(
    "modules",
    [
        ["bert.encoder"],
        [r"encoder\.layer\.\d+\."],
        ["query", "key", "value", "attention.output.dense", "intermediate.dense", r"layer.\w+.output.dense"],
        ["attention.self", "intermediate", "output.dense", "output.dense"],
    ],
    ids=["prefix", "regex", "one-by-one", "repeated"],
)
def test_patterns_that_cover_the_encoder(modules):
    assert fields(weights(weight_group(2, modules))) == {**FLOAT_FIELDS, "weights": "ternary"}


@pytest.mark.parametrize(
    "groups, expected",
    [
        ([(1, ENCODER), (8, [WORDS])], ("binary", "int8", None, False)),
        ([(1, ["attention", "pooler"]), (1, ["intermediate", r"layer.\w+.output"])], ("binary", None, None, True)),
        ([(4, ["embeddings"])], (None, "int4", "int4", False)),
        ([(8, ["position_emb", "token_type"])], (None, None, "int8", False)),
        ([(2, ["dense", "self", "word"])], ("ternary", "ternary", None, True)),
        ([(2, ["bert"])], ("ternary", "ternary", "ternary", True)),
    ],
    ids=["embedding-bits", "two-groups", "embeddings", "positions", "dense", "whole-body"],
)  # fmt: skip
def test_scopes(groups, expected):
    found = fields(weights(*(weight_group(*group) for group in groups)))
    scopes = ("weights", "embedding_weights", "position_weights", "quantize_pooler")
    assert found == {**FLOAT_FIELDS, **dict(zip(scopes, expected, strict=True))}


def test_patterns_that_name_layers_must_reach_the_student_depth():
    config = reference(layers=(2, 4, 6, 8, 10), modules=[r"layer\.[0-4]\."])
    assert recipe_fields(config) == {**REFERENCE_FIELDS, "embedding_weights": None, "layers": (2, 4, 6, 8, 10)}
    config = reference(modules=[r"layer\.([0-9]|1[01])\."])
    missed = "bert.encoder.layer.12.attention.self.query"
    with refuses(f"weight_quantization gives {QUERY} bits=1 but {missed} bits=None. {ADVICE}"):
        recipe_fields(config)


@pytest.mark.parametrize(
    "groups, shared, expected",
    [
        ([(4, ENCODER)], {}, (4, True, "dynamic")),
        ([(8, ENCODER)], {"quantization_type": "asymmetric", "range_calibration": "static"}, (8, False, "static")),
        ([(8, ["attention"]), (8, ["intermediate", r"layer.\w+.output"])], {}, (8, True, "dynamic")),
        ([(8, ENCODER), (4, ["embeddings"])], {}, (8, True, "dynamic")),
    ],
    ids=["4-bit", "asymmetric-static", "two-groups", "embeddings-ignored"],
)
def test_activations(groups, shared, expected):
    found = fields(weights(weight_group(1, ENCODER)), activations(*groups, **shared))
    assert (found["activation_bits"], found["activation_symmetric"], found["activation_calibration"]) == expected


def test_activations_of_the_pooler_follow_its_weights():
    modules = [*ENCODER, "pooler"]
    found = fields(weights(weight_group(1, modules)), activations((4, modules)))
    assert (found["quantize_pooler"], found["activation_bits"]) == (True, 4)


@settings(max_examples=30, deadline=None)
@given(
    encoder=st.sampled_from([None, 1, 2, 4, 8]),
    words=st.sampled_from([None, 1, 2, 4, 8]),
    positions=st.sampled_from([None, 1, 2, 4, 8]),
    layers=st.sampled_from([(), (0,), (1, 3, 5), (2, 4, 6, 8, 10)]),
)
def test_any_combination_of_scopes_makes_a_recipe(encoder, words, positions, layers):
    wanted = [(encoder, ENCODER), (words, [WORDS]), (positions, ["position_embeddings", "token_type_embeddings"])]
    config = reference(layers=layers)["compression_training"]
    config["weight_quantization"] = weights(*(weight_group(bits, names) for bits, names in wanted if bits))
    config["weight_quantization"]["shared_parameters"]["enabled"] = any(bits for bits, _ in wanted)
    config["activation_quantization"]["shared_parameters"]["enabled"] = encoder is not None
    recipe = XTCRecipe.from_deepspeed(config)
    names = {None: None, 1: "binary", 2: "ternary", 4: "int4", 8: "int8"}
    assert (recipe.weights, recipe.embedding_weights, recipe.position_weights) == (
        names[encoder],
        names[words],
        names[positions],
    )
    assert recipe.layers == (layers or None)
    assert recipe.activation_bits == (None if encoder is None else 8)


def change(path, value):
    """The reference configuration (5 layers) with one entry set."""
    config = reference(layers=(2, 4, 6, 8, 10))
    *parents, last = path.split("/")
    entry = config["compression_training"]
    for parent in parents:
        entry = entry[parent]
    entry[last] = value
    return config


SHARED, ASHARED = "weight_quantization/shared_parameters", "activation_quantization/shared_parameters"
WQ, AQ = "weight_quantization/different_groups/wq1", "activation_quantization/different_groups/aq1"
LAYER_KEYS = "enabled, keep_number_layer, module_name_prefix, teacher_layer, other_module_name"
SECTIONS = (
    "layer_reduction, weight_quantization, activation_quantization, sparse_pruning, row_pruning, head_pruning, "
    "channel_pruning"
)
WEIGHT_KEYS = (
    "enabled, quantizer_kernel, schedule_offset, quantize_groups, quantize_verbose, quantization_type, rounding, "
    "quantize_weight_in_forward, fp16_mixed_quantize"
)
PRUNING_KEYS = (
    "enabled, schedule_offset, schedule_offset_end, schedule_offset_stride, method, num_heads, block_pattern, "
    "dense_ratio, excluded_modules"
)


@pytest.mark.parametrize(
    "path, value, text",
    [
        (f"{SHARED}/quantize_groups", 64,
         "weight_quantization.shared_parameters.quantize_groups=64 has no equivalent: its groups span rows. "
         "Set 1 (per tensor), or build XTCRecipe(granularity='per_channel')."),
        (f"{SHARED}/quantization_type", "asymmetric",
         "weight_quantization.shared_parameters.quantization_type='asymmetric' has no equivalent: weights are "
         "quantized around zero only. Set it to 'symmetric'."),
        (f"{SHARED}/rounding", "stochastic",
         "weight_quantization.shared_parameters.rounding='stochastic' has no equivalent: packed and trained "
         "weights must be equal. Set it to 'nearest'."),
        (f"{SHARED}/quantize_weight_in_forward", False,
         "weight_quantization.shared_parameters.quantize_weight_in_forward=False has no equivalent: weights are "
         "fake-quantized in the forward pass only. Set it to true."),
        (f"{SHARED}/fp16_mixed_quantize", {"enabled": True},
         "weight_quantization.shared_parameters.fp16_mixed_quantize is enabled, but not supported. Disable it."),
        (f"{SHARED}/fp16_mixed_quantize", {"ratio": 0.1},
         "weight_quantization.shared_parameters.fp16_mixed_quantize has unknown keys: 'ratio'. "
         "It may have: enabled, quantize_change_ratio."),
        (f"{SHARED}/enabled", "true",
         "weight_quantization.shared_parameters.enabled='true' must be true or false."),
        (f"{SHARED}/quantise_groups", 1,
         f"weight_quantization.shared_parameters has unknown keys: 'quantise_groups'. It may have: {WEIGHT_KEYS}."),
        ("weight_quantization/different_groups", {},
         "weight_quantization is enabled but has no different_groups, so it applies to no module. Add one."),
        ("weight_quantization/different_groups", [],
         "weight_quantization.different_groups must be a JSON object; got []."),
        ("weight_quantization", None, "weight_quantization must be a JSON object; got None."),
        ("weight_quantization/enabled", True,
         "weight_quantization has unknown keys: 'enabled'. It may have: shared_parameters, different_groups."),
        (f"{WQ}/params/target_bits", 3,
         "weight_quantization.different_groups.wq1.params.target_bits=3 does not exist. Use one of: 1, 2, 4, 8."),
        (f"{WQ}/params/start_bits", 8,
         "weight_quantization.different_groups.wq1.params has start_bits=8 but target_bits=1. The bits of a "
         "module do not change during training. Set start_bits=1."),
        (f"{WQ}/params", {"target_bits": 2},
         "weight_quantization.different_groups.wq1.params has start_bits=None but target_bits=2. The bits of a "
         "module do not change during training. Set start_bits=2."),
        (f"{WQ}/params/bits", 1,
         "weight_quantization.different_groups.wq1.params has unknown keys: 'bits'. "
         "It may have: start_bits, target_bits, quantization_period."),
        (f"{WQ}/module", [],
         "weight_quantization.different_groups.wq1 has unknown keys: 'module'. "
         "It may have: params, modules, related_modules."),
        (f"{WQ}/modules", "attention.self",
         "weight_quantization.different_groups.wq1.modules='attention.self' must be a list of patterns, "
         "e.g. ['attention.self']."),
        (f"{WQ}/modules", [WORDS, "atention.self"],
         f"weight_quantization.different_groups.wq1.modules: 'atention.self' matches no BERT module (e.g. {QUERY}). "
         "Correct it."),
        (f"{WQ}/modules", ["layer.("],
         "weight_quantization.different_groups.wq1.modules: 'layer.(' is not a regular expression (missing ), "
         "unterminated subpattern at position 6). Correct it."),
        (f"{WQ}/modules", "*",
         "weight_quantization.different_groups.wq1 covers 'classifier', but the task head stays in float. "
         "List the modules without it, e.g. ['attention.self', 'intermediate', 'output.dense']."),
        (f"{WQ}/related_modules", [["self.query"]],
         "weight_quantization.different_groups.wq1.related_modules=[['self.query']] is for pruning only. Remove it."),
        ("weight_quantization/different_groups/wq2", weight_group(8, ["attention.output.dense"]),
         "weight_quantization has bert.encoder.layer.0.attention.output.dense in 'wq1' and 'wq2'. "
         "Name it in one group."),
        (f"{ASHARED}/quantization_type", "sym",
         "activation_quantization.shared_parameters.quantization_type='sym' does not exist. "
         "Use one of: symmetric, asymmetric."),
        (f"{ASHARED}/range_calibration", "momentum",
         "activation_quantization.shared_parameters.range_calibration='momentum' does not exist. "
         "Use one of: dynamic, static."),
        (f"{AQ}/params/bits", 2,
         "activation_quantization.different_groups.aq1.params.bits=2 does not exist. Use one of: 8, 4."),
        (f"{AQ}/params/target_bits", 8,
         "activation_quantization.different_groups.aq1.params has unknown keys: 'target_bits'. It may have: bits."),
        (f"{AQ}/modules", ["*"],
         "activation_quantization.different_groups.aq1 covers 'classifier', but the task head stays in float. "
         "List the modules without it, e.g. ['attention.self', 'intermediate', 'output.dense']."),
        ("layer_reduction/enabled", 1, "layer_reduction.enabled=1 must be true or false."),
        ("layer_reduction/keep_number_layer", 6,
         "layer_reduction.keep_number_layer=6, but teacher_layer has 5. Make them agree."),
        ("layer_reduction/teacher_layer", None,
         "layer_reduction.teacher_layer=None must list teacher layers from 0, e.g. [1, 3, 5]."),
        ("layer_reduction/teacher_layer", [],
         "layer_reduction.teacher_layer=[] must list teacher layers from 0, e.g. [1, 3, 5]."),
        ("layer_reduction/module_name_prefix", "transformer.h",
         "layer_reduction.module_name_prefix='transformer.h' does not exist. "
         "Use one of: bert.encoder.layer, bert.encoder."),
        ("layer_reduction/teacher_layers", [1],
         f"layer_reduction has unknown keys: 'teacher_layers'. It may have: {LAYER_KEYS}."),
        ("sparse_pruning/shared_parameters/enabled", True,
         "sparse_pruning is enabled, but pruning is not supported. Disable it."),
        ("channel_pruning", {"shared_parameters": {"enabled": True}},
         "channel_pruning is enabled, but pruning is not supported. Disable it."),
        ("row_pruning/shared_parameters/enable", True,
         f"row_pruning.shared_parameters has unknown keys: 'enable'. It may have: {PRUNING_KEYS}."),
        ("weight_quantisation", {},
         f"compression_training has unknown keys: 'weight_quantisation'. It may have: {SECTIONS}."),
    ],
)  # fmt: skip
def test_refusals_in_the_reference_config(path, value, text):
    with refuses(text):
        recipe_fields(change(path, value))


@pytest.mark.parametrize("name", ["sparse_pruning", "row_pruning", "head_pruning", "channel_pruning"])
def test_every_pruning_is_refused(name):
    with refuses(f"{name} is enabled, but pruning is not supported. Disable it."):
        recipe_fields({name: pruning(True, {"dense_ratio": 0.5}, ["intermediate"])})


@pytest.mark.parametrize(
    "groups, text",
    [
        ([(1, ["attention.self", "intermediate"])],
         f"gives {QUERY} bits=1 but bert.encoder.layer.0.attention.output.dense bits=None. {ADVICE}"),
        ([(2, ["output.dense"])],
         f"gives {QUERY} bits=None but bert.encoder.layer.0.attention.output.dense bits=2. {ADVICE}"),
        ([(1, ["attention"]), (2, ["intermediate", r"layer.\w+.output"])],
         f"gives {QUERY} bits=1 but {FEED_FORWARD} bits=2. {ADVICE}"),
        ([(1, ENCODER), (8, ["pooler"])], f"gives {QUERY} bits=1 but bert.pooler.dense bits=8. {ADVICE}"),
        ([(1, ["pooler"])], f"gives {QUERY} bits=None but bert.pooler.dense bits=1. {ADVICE}"),
        ([(8, ["position_embeddings"])],
         "gives bert.embeddings.position_embeddings bits=8 but bert.embeddings.token_type_embeddings bits=None. "
         "Position and token-type embeddings share one quantizer. Cover both alike, or neither."),
        ([(8, ["position_embeddings"]), (4, ["token_type"])],
         "gives bert.embeddings.position_embeddings bits=8 but bert.embeddings.token_type_embeddings bits=4. "
         "Position and token-type embeddings share one quantizer. Cover both alike, or neither."),
    ],
    ids=["part", "other-part", "mixed-bits", "pooler-bits", "pooler-alone", "positions-alone", "positions-mixed"],
)  # fmt: skip
def test_weights_that_fit_no_scope(groups, text):
    with refuses(f"weight_quantization {text}"):
        fields(weights(*(weight_group(*group) for group in groups)))


COUPLED = (
    "Quantize the inputs of all quantized linears, or of none. "
    "Name the same linears in activation_quantization as in weight_quantization."
)


@pytest.mark.parametrize(
    "weight_modules, groups, text",
    [
        (ENCODER, [(8, [*ENCODER, "pooler"])], f"The pooler would have quantized inputs but float weights. {COUPLED}"),
        ([*ENCODER, "pooler"], [(8, ENCODER)], f"The pooler would have quantized weights but float inputs. {COUPLED}"),
        ([WORDS], [(8, ENCODER)], f"The encoder's linears would have quantized inputs but float weights. {COUPLED}"),
        (ENCODER, [(8, [WORDS])], f"The encoder's linears would have quantized weights but float inputs. {COUPLED}"),
        (ENCODER, [(8, ["intermediate"])],
         f"activation_quantization gives {QUERY} bits=None but {FEED_FORWARD} bits=8. {ADVICE}"),
        (ENCODER, [(8, ["attention"]), (4, ["intermediate", r"layer.\w+.output"])],
         f"activation_quantization gives {QUERY} bits=8 but {FEED_FORWARD} bits=4. {ADVICE}"),
        ([*ENCODER, "pooler"], [(8, ENCODER), (4, ["pooler"])],
         f"activation_quantization gives {QUERY} bits=8 but bert.pooler.dense bits=4. {ADVICE}"),
    ],
    ids=["pooler-inputs", "pooler-weights", "float-encoder", "no-inputs", "part", "mixed-bits", "pooler-bits"],
)  # fmt: skip
def test_activations_that_do_not_fit_the_weights(weight_modules, groups, text):
    with refuses(text):
        fields(weights(weight_group(1, weight_modules)), activations(*groups))


def test_activations_without_weights():
    with refuses(f"The encoder's linears would have quantized inputs but float weights. {COUPLED}"):
        fields(activation=activations((8, ENCODER)))


@pytest.mark.parametrize("read", [recipe_fields, schedule_offsets])
@pytest.mark.parametrize(
    "config, text",
    [
        ({"train_batch_size": 32, "fp16": {}},
         "This is not a DeepSpeed compression configuration: it lacks 'compression_training' and all of its parts. "
         "Its keys are: 'train_batch_size', 'fp16'. Pass the whole DeepSpeed JSON, or its 'compression_training' "
         "section."),
        ({},
         "This is not a DeepSpeed compression configuration: it lacks 'compression_training' and all of its parts. "
         "Its keys are: none. Pass the whole DeepSpeed JSON, or its 'compression_training' section."),
        ("ds_config.json", "A DeepSpeed configuration is a dict; got str. Read it with json.load."),
        ({"compression_training": None}, "compression_training must be a JSON object; got None."),
    ],
    ids=["other-config", "empty", "path", "null"],
)  # fmt: skip
def test_what_is_no_compression_config(read, config, text):
    with refuses(text):
        read(config)


@pytest.mark.parametrize(
    "weight, activation, expected",
    [
        ({}, {}, (0, 0)),
        ({"schedule_offset": 100}, {}, (100, 0)),
        ({"schedule_offset": 5}, {"schedule_offset": 9}, (5, 9)),
    ],
    ids=["absent", "weights", "both"],
)
def test_schedule_offsets(weight, activation, expected):
    section = {
        "weight_quantization": weights(weight_group(1, ENCODER), **weight),
        "activation_quantization": activations((8, ENCODER), **activation),
    }
    found = schedule_offsets({"compression_training": section})
    assert found == dict(zip(("weight_quantization_start", "activation_quantization_start"), expected, strict=True))
    assert fields(section["weight_quantization"], section["activation_quantization"])["weights"] == "binary"


def test_schedule_offset_of_what_is_disabled_does_not_count():
    section = {"activation_quantization": {"shared_parameters": {"enabled": False, "schedule_offset": 1000}}}
    assert schedule_offsets(section) == {"weight_quantization_start": 0, "activation_quantization_start": 0}


@pytest.mark.parametrize("offset", [-1, 0.5, "0", None, True])
def test_schedule_offset_that_is_no_number_of_steps(offset):
    config = change("weight_quantization/shared_parameters/schedule_offset", offset)
    with refuses(f"weight_quantization: schedule_offset={offset!r} must be a number of steps, 0 or more."):
        schedule_offsets(config)


@pytest.mark.parametrize("groups", [True, 5, "wq1", []])
def test_groups_that_are_no_object_are_refused(groups):
    config = reference()
    config["compression_training"]["weight_quantization"]["different_groups"] = groups
    with pytest.raises(RecipeError, match="different_groups must be a JSON object"):
        recipe_fields(config)


@pytest.mark.parametrize("pattern", ["(.*)*x", "(a+)+$", "a{99999999999}", "(" * 150])
def test_a_pattern_that_never_ends_or_is_none_is_refused(pattern):
    config = reference()
    for group in config["compression_training"]["weight_quantization"]["different_groups"].values():
        group["modules"] = [pattern]
    with pytest.raises(RecipeError, match="modules"):
        recipe_fields(config)


@pytest.mark.parametrize("layers", [[0] * 1_000_000, list(range(2_000)), [3, 2]], ids=["many", "deep", "back"])
def test_layers_that_no_teacher_has_are_refused_at_once(layers):
    config = reference(layers=(1, 3, 5))
    config["compression_training"]["layer_reduction"].update(teacher_layer=layers, keep_number_layer=len(layers))
    with pytest.raises(RecipeError, match=r"^layers="):
        recipe_fields(config)
