"""PEFT on latent and packed models: default target modules, and refusals of what cannot work.

Importing this module makes PEFT ask it first. Tuners whose adapters are added to a layer's output work as for the
teacher's class: all of PEFT's on latent models, LoRA on packed ones, and what trains no packed layer (prefix tuning,
LayerNorm tuning, a float head) on both. Refused, before the model is changed, is what needs a float weight that
packed layers do not have, and what would compute with the latent weights in place of their fake-quantized values.
"""

import functools
import logging
from collections.abc import Iterator
from typing import Any

from peft import PeftModel
from peft.tuners import tuners_utils
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_target_module_exists
from peft.utils import constants
from torch import nn

from hf_xtc.errors import StateError, XTCError
from hf_xtc.modeling.architecture import ARCHITECTURES
from hf_xtc.modeling.layers import LatentLayer, PackedEmbedding, PackedLayer, PackedLinear, XTCEmbedding, XTCLinear
from hf_xtc.modeling.lora import CANNOT_MERGE, check_packed_lora

logger = logging.getLogger(__name__)

# These compute `linear(x, changed weight)` themselves and never call the layer.
FLOAT_WEIGHT_TUNERS = ("FROD", "GLORA", "HRA", "SHIRA", "SUPERTUNING")
TOKENS = "TRAINABLE_TOKENS"
# These write what their matrices leave into the base weight.
CHANGING_INITS = ("pissa", "corda", "olora", "loftq", "lora_ga")
# These come before the keys and values of each layer; other prompts are concatenated with rows of a float embedding.
PREFIXES = ("PREFIX_TUNING", "CARTRIDGE")


def learn_defaults(model_type: str) -> None:
    """Makes the teacher's default target modules, in all of PEFT's tables, those of its compressed models too."""
    teachers = [name for name, known in ARCHITECTURES.items() if known.config_class.model_type == model_type]
    for name, table in vars(constants).items():
        if name.startswith("TRANSFORMERS_MODELS_TO_") and name.endswith("_MODULES_MAPPING"):
            for teacher in teachers:
                if teacher in table:
                    table[model_type] = table[teacher]


def check_tuner(model: nn.Module, config: Any) -> None:
    """Checks that a PEFT configuration can work on a model's latent or packed layers.

    Args:
        model (`nn.Module`): The model, before adapters are added.
        config (`PeftConfig`): Of any kind but prompts.

    Raises:
        XTCError: if it cannot; names a module.
    """
    kind = config.peft_type.value
    for option in ("modules_to_save", "target_parameters"):
        names = getattr(config, option, None)
        if not all(
            isinstance(name, str) for name in (names if isinstance(names, list | tuple | set) else [names or ""])
        ):
            raise XTCError(f"{option}={names!r:.80} of the adapter must be names of modules.")
    encoder = {id(layer) for _, layer in _layers(getattr(model, "base_model", model))}
    for name, layer in _layers(model):
        if _saves(config, name):  # a copy of a head may hold packed linears, whose biases are then trained
            if isinstance(layer, PackedLayer) and id(layer) in encoder:
                raise XTCError(
                    f"modules_to_save names {name}, which is packed: a copy of its codes cannot be trained either. "
                    "Leave it out, or train the model that unpack_model returns."
                )
        elif _trains_tokens(config, model, name, layer):
            raise XTCError(
                f"Trainable tokens are rows of a float embedding, but {name} is quantized. "
                "On a latent model, use modules_to_save=['word_embeddings']; train a packed one after unpack_model."
            )
        elif isinstance(layer, PackedLayer) and _is_target_parameter(config, name):
            raise XTCError(
                f"target_parameters names the weight of {name}, which is packed and no parameter. "
                "Use target_modules, or call unpack_model and train the latent model."
            )
        elif not _targets(config, name, layer):
            continue
        elif isinstance(layer, PackedLayer) and not (kind == "LORA" and isinstance(layer, PackedLinear)):
            raise XTCError(
                f"{kind} adapts layers with a float weight, but {name} is packed. Use LoraConfig with target_modules "
                "that are linears, PrefixTuningConfig or LNTuningConfig, or call unpack_model and train the latent "
                "model."
            )
        elif kind in FLOAT_WEIGHT_TUNERS:
            raise XTCError(
                f"{kind} would compute with the latent weight of {name} and not with its quantized values, as the "
                "packed model does. Use LoraConfig, or another tuner that adds to the output of the layer."
            )
        elif kind == "LORA" and str(config.init_lora_weights).lower().startswith(CHANGING_INITS):
            raise XTCError(
                f"init_lora_weights={config.init_lora_weights!r} changes the weight of {name}, which is quantized. "
                "Use True, False, 'gaussian' or 'eva'."
            )
        elif kind == "LORA" and isinstance(layer, PackedLinear):
            check_packed_lora(config)


def check_prompt(model: Any, config: Any) -> None:
    """Checks that prompts of this kind can come before the inputs of a model.

    Raises:
        XTCError: if they cannot: the word embeddings are packed.
    """
    kind = config.peft_type.value
    if kind not in PREFIXES and any(isinstance(layer, PackedEmbedding) for _, layer in _layers(model)):
        raise XTCError(
            f"{kind} puts its prompts before float word embeddings, and those of this model are packed. "
            "Use PrefixTuningConfig or LoraConfig, or call unpack_model and train the latent model."
        )


def check_merge(model: nn.Module) -> None:
    """Warns of what merging into latent weights changes; one warning for a model.

    Raises:
        StateError: if a layer with an adapter is packed, before any is merged.
    """
    bases = [
        m.get_base_layer() for m in model.modules() if isinstance(m, BaseTunerLayer) and type(m) is not ParamWrapper
    ]
    if any(isinstance(base, PackedLayer) for base in bases):
        raise StateError(CANNOT_MERGE)
    if any(isinstance(base, LatentLayer) for base in bases):
        logger.warning(
            "Merged into latent weights, adapters are quantized with them: the model computes other values than with "
            "the adapters beside it. Evaluate it again, and train it further before pack_model; or do not merge."
        )


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names and layers, latent and packed; of layers with an adapter the names they had before."""
    for name, module in model.named_modules():
        if isinstance(module, LatentLayer | PackedLayer):
            yield name.removesuffix(".base_layer"), module


def _saves(config: Any, name: str) -> bool:
    """Whether a layer, or a module that holds it, is copied by `modules_to_save`."""
    parts = name.split(".")
    holders = [".".join(parts[: i + 1]) for i in range(len(parts))]
    saved = getattr(config, "modules_to_save", None) or ()
    return any(holder.endswith(end) for holder in holders for end in saved)


def _trains_tokens(config: Any, model: Any, name: str, layer: nn.Module) -> bool:
    """Whether rows of an embedding are to be trained."""
    rows = getattr(config, "trainable_token_indices", None)
    named = isinstance(rows, dict) and any(name.endswith(end) for end in rows)
    own = rows and not isinstance(rows, dict)
    if config.peft_type.value == TOKENS:
        own, named = config.target_modules is None, _targets(config, name, layer)
    return isinstance(layer, XTCEmbedding | PackedEmbedding) and bool(
        named or (own and layer is model.get_input_embeddings())
    )


def _is_target_parameter(config: Any, name: str) -> bool:
    return any(f"{name}.weight".endswith(end) for end in getattr(config, "target_parameters", None) or ())


def _targets(config: Any, name: str, layer: nn.Module) -> bool:
    """Whether a layer gets an adapter: by its name, or as one of all linears or of the default ones."""
    modules = getattr(config, "target_modules", None)
    if modules is None or (isinstance(modules, str) and modules.lower() == constants.INCLUDE_LINEAR_LAYERS_SHORTHAND):
        return isinstance(layer, XTCLinear | PackedLinear)
    return bool(modules) and bool(check_target_module_exists(config, name))


_INIT, _INJECT = BaseTuner.__init__, BaseTuner.inject_adapter
_MERGE, _PROMPT = BaseTuner._check_merge_allowed, PeftModel._setup_prompt_encoder
_ALL_LINEARS = tuners_utils._maybe_include_all_linear_layers


@functools.wraps(_INIT)
def _init(self: Any, model: Any, peft_config: Any, adapter_name: str, *args: Any, **kwargs: Any) -> None:
    config = peft_config[adapter_name] if isinstance(peft_config, dict) else peft_config
    if any(_layers(model)):
        learn_defaults(model.config.model_type)
        check_tuner(model, config)
    _INIT(self, model, peft_config, adapter_name, *args, **kwargs)


@functools.wraps(_INJECT)
def _inject(self: Any, model: Any, adapter_name: str, *args: Any, **kwargs: Any) -> None:
    check_tuner(model, self.peft_config[adapter_name])
    _INJECT(self, model, adapter_name, *args, **kwargs)


@functools.wraps(_MERGE)
def _merge(self: Any) -> None:
    _MERGE(self)
    check_merge(self.model)


@functools.wraps(_PROMPT)
def _prompt(self: Any, adapter_name: str) -> None:
    check_prompt(self.base_model, self.peft_config[adapter_name])
    _PROMPT(self, adapter_name)


@functools.wraps(_ALL_LINEARS)
def _all_linears(peft_config: Any, model: Any) -> Any:
    """Adds packed linears to the linears that PEFT finds; not an output layer, as in PEFT."""
    wanted = getattr(peft_config, "target_modules", None)
    found = _ALL_LINEARS(peft_config, model)
    if found.target_modules is not wanted:
        head = model.get_output_embeddings()
        packed = {n for n, m in model.named_modules() if isinstance(m, PackedLinear) and m is not head}
        found.target_modules |= {n for n in packed if not (n.endswith(".base_layer") or _saves(peft_config, n))}
    return found


BaseTuner.__init__, BaseTuner.inject_adapter = _init, _inject
BaseTuner._check_merge_allowed, PeftModel._setup_prompt_encoder = _merge, _prompt
tuners_utils._maybe_include_all_linear_layers = _all_linears
