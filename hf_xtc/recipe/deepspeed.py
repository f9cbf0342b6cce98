"""Reads a DeepSpeed `compression_training` section as an `XTCRecipe`.

Unknown keys, and enabled features without an equivalent here, raise an error, so that a recipe never differs from the
file it is read from. DeepSpeed selects modules by searching patterns in their names; here the patterns are searched in
the module names of a BERT, and must cover whole scopes. Training settings other than the two schedule offsets, and the
rest of the DeepSpeed file (batch size, fp16, ZeRO), are not read.
"""

import re
from dataclasses import replace
from typing import Any

from hf_xtc.checks import check_choice, check_pattern
from hf_xtc.errors import RecipeError
from hf_xtc.recipe.layer_map import LayerMap
from hf_xtc.recipe.xtc_recipe import XTCRecipe

QUANTIZERS_BY_BITS: dict[int | None, str | None] = {None: None, 1: "binary", 2: "ternary", 4: "int4", 8: "int8"}

WEIGHTS, ACTIVATIONS, LAYERS = "weight_quantization", "activation_quantization", "layer_reduction"
PRUNING = ("sparse_pruning", "row_pruning", "head_pruning", "channel_pruning")
SECTIONS = (LAYERS, WEIGHTS, ACTIVATIONS, *PRUNING)
LAYER_KEYS = ("enabled", "keep_number_layer", "module_name_prefix", "teacher_layer", "other_module_name")
PARAM_KEYS = {WEIGHTS: ("start_bits", "target_bits", "quantization_period"), ACTIVATIONS: ("bits",)}
SHARED_KEYS = {
    WEIGHTS: (
        "enabled", "quantizer_kernel", "schedule_offset", "quantize_groups", "quantize_verbose", "quantization_type",
        "rounding", "quantize_weight_in_forward", "fp16_mixed_quantize",
    ),
    ACTIVATIONS: ("enabled", "quantization_type", "range_calibration", "schedule_offset"),
}  # fmt: skip
PRUNING_SHARED_KEYS = (
    "enabled", "schedule_offset", "schedule_offset_end", "schedule_offset_stride", "method", "num_heads",
    "block_pattern", "dense_ratio", "excluded_modules",
)  # fmt: skip

# Shared weight parameter -> the only supported value (also the default), and why no other is supported.
REQUIRED: dict[str, tuple[object, str]] = {
    "quantize_groups": (1, "its groups span rows. Set 1 (per tensor), or build XTCRecipe(granularity='per_channel')."),
    "quantization_type": ("symmetric", "weights are quantized around zero only. Set it to 'symmetric'."),
    "rounding": ("nearest", "packed and trained weights must be equal. Set it to 'nearest'."),
    "quantize_weight_in_forward": (True, "weights are fake-quantized in the forward pass only. Set it to true."),
}

ENCODER_LINEARS = (
    "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
    "intermediate.dense", "output.dense",
)  # fmt: skip
WORDS = "bert.embeddings.word_embeddings"
POSITIONS = ["bert.embeddings.position_embeddings", "bert.embeddings.token_type_embeddings"]
POOLER, HEAD = "bert.pooler.dense", "classifier"
# Without layer reduction the file does not give the depth: patterns must then cover the deepest BERT, BERT-large.
DEEPEST = 24

ENCODER_ADVICE = (
    "The encoder's linears (and the pooler, if quantized) share one number of bits, or all stay in float (None). "
    "Cover them alike: ['attention.self', 'intermediate', 'output.dense']."
)
POSITION_ADVICE = "Position and token-type embeddings share one quantizer. Cover both alike, or neither."


def recipe_fields(config: dict[str, Any]) -> dict[str, Any]:
    """The `XTCRecipe` fields that a DeepSpeed configuration sets; the others are as in `XTCRecipe.paper()`.

    Args:
        config (`dict`): The whole DeepSpeed configuration, or its `compression_training` section alone.

    Returns:
        `dict[str, Any]`: `weights`, `granularity`, `embedding_weights`, `position_weights`, `quantize_pooler`,
        `activation_bits`, `keep_layers` and `layers`; with activations on also `activation_symmetric` and
        `activation_calibration`.

    Raises:
        RecipeError: for an unknown key, and for anything enabled that has no equivalent here.

    Example:
        >>> group = {"params": {"start_bits": 1, "target_bits": 1}, "modules": ["bert.encoder", "word_embeddings"]}
        >>> weights = {"shared_parameters": {"enabled": True}, "different_groups": {"wq1": group}}
        >>> fields = recipe_fields({"compression_training": {"weight_quantization": weights}})
        >>> fields["weights"], fields["embedding_weights"], fields["position_weights"], fields["activation_bits"]
        ('binary', 'binary', None, None)
    """
    section = _compression_section(config)
    for technique in PRUNING:
        if _enabled_part(section, technique) is not None:
            raise RecipeError(f"{technique} is enabled, but pruning is not supported. Disable it.")
    layers = _teacher_layers(section)
    depth = DEEPEST if layers is None else len(layers)
    encoder = [f"bert.encoder.layer.{layer}.{name}" for layer in range(depth) for name in ENCODER_LINEARS]
    weights = _weight_bits(_enabled_part(section, WEIGHTS), encoder)
    return {
        **_weight_fields(weights, encoder),
        **_activation_fields(_enabled_part(section, ACTIVATIONS), weights, encoder),
        "keep_layers": None,
        "layers": layers,
    }


def read_recipe(config: dict[str, Any]) -> XTCRecipe:
    """The recipe that a DeepSpeed configuration describes; other fields are as in `XTCRecipe.paper()`.

    Args:
        config (`dict`): The whole DeepSpeed configuration, or its `compression_training` section alone.

    Raises:
        RecipeError: for an unknown key, and for anything enabled that has no equivalent here.
    """
    return replace(XTCRecipe.paper(), **recipe_fields(config))


def schedule_offsets(config: dict[str, Any]) -> dict[str, int]:
    """The steps at which a DeepSpeed configuration starts to quantize, by their name in `XTCTrainingArguments`.

    Args:
        config (`dict`): The whole DeepSpeed configuration, or its `compression_training` section alone.

    Returns:
        `dict[str, int]`: `weight_quantization_start` and `activation_quantization_start`, in optimizer steps; 0 if
        not given (as DeepSpeed documents; its code starts activations at step 1000).

    Raises:
        RecipeError: for an unknown key, or an offset that is not a number of steps.
    """
    section, offsets = _compression_section(config), {}
    for technique in (WEIGHTS, ACTIVATIONS):
        part = _enabled_part(section, technique)
        offset = 0 if part is None else part["shared_parameters"].get("schedule_offset", 0)
        if not isinstance(offset, int) or isinstance(offset, bool) or offset < 0:
            raise RecipeError(f"{technique}: schedule_offset={offset!r} must be a number of steps, 0 or more.")
        offsets[f"{technique}_start"] = offset
    return offsets


def _check_keys(where: str, values: Any, known: tuple[str, ...]) -> None:
    """Raises `RecipeError` if `values` is not a dict or has an unknown key."""
    if not isinstance(values, dict):
        raise RecipeError(f"{where} must be a JSON object; got {values!r}.")
    unknown = [repr(key) for key in values if key not in known]
    if unknown:
        raise RecipeError(f"{where} has unknown keys: {', '.join(unknown)}. It may have: {', '.join(known)}.")


def _is_enabled(where: str, values: dict[str, Any]) -> bool:
    """The value of `enabled`, false if absent."""
    enabled = values.get("enabled", False)
    if not isinstance(enabled, bool):
        raise RecipeError(f"{where}.enabled={enabled!r} must be true or false.")
    return enabled


def _compression_section(config: dict[str, Any]) -> dict[str, Any]:
    """The `compression_training` section of a configuration, which may itself be that section."""
    if not isinstance(config, dict):
        raise RecipeError(f"A DeepSpeed configuration is a dict; got {type(config).__name__}. Read it with json.load.")
    if "compression_training" not in config and not set(config) & set(SECTIONS):
        keys = ", ".join(map(repr, config)) or "none"
        raise RecipeError(
            "This is not a DeepSpeed compression configuration: it lacks 'compression_training' and all of its parts. "
            f"Its keys are: {keys}. Pass the whole DeepSpeed JSON, or its 'compression_training' section."
        )
    section: dict[str, Any] = config.get("compression_training", config)
    _check_keys("compression_training", section, SECTIONS)
    return section


def _enabled_part(section: dict[str, Any], technique: str) -> dict[str, Any] | None:
    """The section of one technique if it is enabled, else `None`; its keys are checked either way."""
    part: dict[str, Any] = section.get(technique, {})
    _check_keys(technique, part, ("shared_parameters", "different_groups"))
    shared, groups = part.get("shared_parameters", {}), part.get("different_groups", {})
    _check_keys(f"{technique}.shared_parameters", shared, SHARED_KEYS.get(technique, PRUNING_SHARED_KEYS))
    _check_keys(f"{technique}.different_groups", groups, tuple(groups) if isinstance(groups, dict) else ())
    for name, group in groups.items():
        where = f"{technique}.different_groups.{name}"
        _check_keys(where, group, ("params", "modules", "related_modules"))
        _check_keys(f"{where}.params", group.get("params", {}), PARAM_KEYS.get(technique, ("dense_ratio",)))
    if not _is_enabled(f"{technique}.shared_parameters", shared):
        return None
    if not groups and technique not in PRUNING:
        raise RecipeError(f"{technique} is enabled but has no different_groups, so it applies to no module. Add one.")
    return part


def _teacher_layers(section: dict[str, Any]) -> tuple[int, ...] | None:
    """The teacher layers that layer reduction keeps, or `None` without layer reduction."""
    part: dict[str, Any] = section.get(LAYERS, {})
    _check_keys(LAYERS, part, LAYER_KEYS)
    if not _is_enabled(LAYERS, part):
        return None
    layers = part.get("teacher_layer")
    if not isinstance(layers, list | tuple) or not layers:
        raise RecipeError(f"{LAYERS}.teacher_layer={layers!r} must list teacher layers from 0, e.g. [1, 3, 5].")
    keep, named = part.get("keep_number_layer", len(layers)), len(layers)
    if keep != named:
        raise RecipeError(f"{LAYERS}.keep_number_layer={keep!r}, but teacher_layer has {named}. Make them agree.")
    prefix = part.get("module_name_prefix", "bert.encoder.layer")
    check_choice(f"{LAYERS}.module_name_prefix", prefix, ("bert.encoder.layer", "bert.encoder"))
    return LayerMap(tuple(layers), 1000).layers  # checks the layers before their number is used


def _matched_modules(where: str, group: dict[str, Any], encoder: list[str]) -> list[str]:
    """The modules of a BERT whose names match a pattern of the group; `"*"` matches all."""
    if group.get("related_modules"):
        raise RecipeError(f"{where}.related_modules={group['related_modules']!r} is for pruning only. Remove it.")
    known = [*encoder, WORDS, *POSITIONS, POOLER, HEAD]
    patterns = ["*"] if group.get("modules", "*") == "*" else group["modules"]
    if not isinstance(patterns, list | tuple) or not all(isinstance(pattern, str) for pattern in patterns):
        raise RecipeError(f"{where}.modules={patterns!r} must be a list of patterns, e.g. ['attention.self'].")
    found: set[str] = set()
    for pattern in dict.fromkeys(patterns):
        check_pattern(f"{where}.modules", pattern)
        try:
            hits = [name for name in known if pattern == "*" or re.search(pattern, name)]
        except (re.error, OverflowError, RecursionError) as e:
            raise RecipeError(f"{where}.modules: {pattern!r} is not a regular expression ({e}). Correct it.") from None
        if not hits:
            raise RecipeError(f"{where}.modules: {pattern!r} matches no BERT module (e.g. {encoder[0]}). Correct it.")
        found.update(hits)
    return [name for name in known if name in found]


def _group_bits(technique: str, where: str, params: dict[str, Any]) -> int:
    """The bits of one group, which must be constant during training."""
    name, choices = ("bits", (8, 4)) if technique == ACTIVATIONS else ("target_bits", (1, 2, 4, 8))
    bits: int = params.get(name, 0)
    check_choice(f"{where}.params.{name}", bits, choices)
    start = bits if technique == ACTIVATIONS else params.get("start_bits")
    if start != bits:
        raise RecipeError(
            f"{where}.params has start_bits={start!r} but target_bits={bits}. The bits of a module do not "
            f"change during training. Set start_bits={bits}."
        )
    return bits


def _bits_by_module(technique: str, part: dict[str, Any], encoder: list[str]) -> dict[str, int]:
    """Module name -> bits, for the modules that the groups of a technique name."""
    bits: dict[str, int] = {}
    owner: dict[str, str] = {}
    for name, group in part["different_groups"].items():
        where = f"{technique}.different_groups.{name}"
        group_bits = _group_bits(technique, where, group.get("params", {}))
        for module in _matched_modules(where, group, encoder):
            if module in owner:
                raise RecipeError(f"{technique} has {module} in {owner[module]!r} and {name!r}. Name it in one group.")
            owner[module], bits[module] = name, group_bits
    if HEAD in bits:
        raise RecipeError(
            f"{technique}.different_groups.{owner[HEAD]} covers '{HEAD}', but the task head stays in float. "
            "List the modules without it, e.g. ['attention.self', 'intermediate', 'output.dense']."
        )
    return bits


def _common_bits(technique: str, bits: dict[str, int], modules: list[str], advice: str) -> int | None:
    """The bits that all these modules share, `None` if none of them is quantized."""
    first, common = modules[0], bits.get(modules[0])
    for module in modules:
        if (other := bits.get(module)) != common:
            raise RecipeError(f"{technique} gives {first} bits={common} but {module} bits={other}. {advice}")
    return common


def _encoder_bits(technique: str, bits: dict[str, int], encoder: list[str]) -> int | None:
    """The bits of the encoder's linears, which the pooler shares if it is quantized."""
    return _common_bits(technique, bits, [*encoder, POOLER] if POOLER in bits else encoder, ENCODER_ADVICE)


def _weight_bits(part: dict[str, Any] | None, encoder: list[str]) -> dict[str, int]:
    """Module name -> weight bits; raises `RecipeError` if a shared parameter has no equivalent."""
    if part is None:
        return {}
    shared, where = part["shared_parameters"], f"{WEIGHTS}.shared_parameters"
    for key, (only, reason) in REQUIRED.items():
        if shared.get(key, only) != only:
            raise RecipeError(f"{where}.{key}={shared[key]!r} has no equivalent: {reason}")
    mixed = shared.get("fp16_mixed_quantize", {})
    _check_keys(f"{where}.fp16_mixed_quantize", mixed, ("enabled", "quantize_change_ratio"))
    if _is_enabled(f"{where}.fp16_mixed_quantize", mixed):
        raise RecipeError(f"{where}.fp16_mixed_quantize is enabled, but not supported. Disable it.")
    return _bits_by_module(WEIGHTS, part, encoder)


def _weight_fields(bits: dict[str, int], encoder: list[str]) -> dict[str, Any]:
    """The recipe fields that depend on the weight bits."""
    return {
        "weights": QUANTIZERS_BY_BITS[_encoder_bits(WEIGHTS, bits, encoder)],
        "granularity": "per_tensor",
        "embedding_weights": QUANTIZERS_BY_BITS[bits.get(WORDS)],
        "position_weights": QUANTIZERS_BY_BITS[_common_bits(WEIGHTS, bits, POSITIONS, POSITION_ADVICE)],
        "quantize_pooler": POOLER in bits,
    }


def _activation_fields(part: dict[str, Any] | None, weights: dict[str, int], encoder: list[str]) -> dict[str, Any]:
    """The recipe fields of activation quantization; embeddings have no float input and are ignored."""
    if part is None:
        return {"activation_bits": None}
    bits, shared = _bits_by_module(ACTIVATIONS, part, encoder), part["shared_parameters"]
    encoder_bits = _encoder_bits(ACTIVATIONS, bits, encoder)
    for module, what in ((encoder[0], "The encoder's linears"), (POOLER, "The pooler")):
        if (module in bits) != (module in weights):
            one, other = ("inputs", "weights") if module in bits else ("weights", "inputs")
            raise RecipeError(
                f"{what} would have quantized {one} but float {other}. Quantize the inputs of all quantized linears, "
                f"or of none. Name the same linears in {ACTIVATIONS} as in {WEIGHTS}."
            )
    kind, calibration = shared.get("quantization_type", "symmetric"), shared.get("range_calibration", "dynamic")
    check_choice(f"{ACTIVATIONS}.shared_parameters.quantization_type", kind, ("symmetric", "asymmetric"))
    check_choice(f"{ACTIVATIONS}.shared_parameters.range_calibration", calibration, ("dynamic", "static"))
    return {
        "activation_bits": encoder_bits,
        "activation_symmetric": kind == "symmetric",
        "activation_calibration": calibration,
    }
