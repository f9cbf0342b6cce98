"""Adapters (PEFT): LoRA on a frozen packed base, and teachers that carry adapters of their own.

PEFT knows by a layer's type how to wrap it. Importing this module teaches it `PackedLinear`, so that
`get_peft_model(packed, LoraConfig(target_modules=[...]))` and `PeftModel.from_pretrained(packed, folder)` work as with
any model. Adapters stay beside packed weights: a code of one bit cannot hold a sum.
"""

import copy
import os
from collections.abc import Container
from typing import Any, NoReturn, TypeVar

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import Linear, LoraConfig
from peft.tuners.lora import model as lora_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from hf_xtc.checks import check_pattern
from hf_xtc.errors import StateError, XTCError
from hf_xtc.files.headers import read_header
from hf_xtc.files.safe_json import read_json
from hf_xtc.modeling.layers import PackedLinear

ADAPTER = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
Model = TypeVar("Model", bound=nn.Module)
# What LoRA's other initialisations and variants read or change is a float weight of the base layer.
PLAIN_INITS = (True, False, "gaussian", "eva")


class LoraPackedLinear(Linear):
    """LoRA beside a `PackedLinear`: `base(x) + scaling * B(A(dropout(x)))`, A and B float32 (Hu et al. 2022, eq. 3).

    Raises:
        XTCError: if the `LoraConfig` asks for what needs a float weight (DoRA, PiSSA, ...).
        StateError: if the adapter is to be merged.
    """

    lora_variants: Any = {(): None}

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: LoraConfig, **kwargs: Any) -> None:
        if config.init_lora_weights not in PLAIN_INITS:
            raise XTCError(
                f"init_lora_weights={config.init_lora_weights!r} is computed from a float weight, and this layer is "
                "packed. Use True, False, 'gaussian' or 'eva'."
            )
        if config.use_dora:
            raise XTCError("use_dora=True scales a float weight, and this layer is packed. Use plain LoRA.")
        super().update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config, **kwargs)

    def _get_in_out_features(self, module: nn.Module) -> tuple[Any, Any]:
        return module.in_features, module.out_features

    def _get_base_layer_device_and_dtype(self, base_layer: Any) -> tuple[Any, Any]:
        return base_layer.weight_packed.device, None  # codes have no dtype that an adapter could take

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> NoReturn:
        raise StateError(
            "Adapters cannot be merged into packed weights: their codes hold 1 to 8 bits, and the adapter would be "
            "lost. Keep it beside the base (save_pretrained writes it alone), or unpack_model the base, train, and "
            "pack it again."
        )


_PEFT_DEFAULT = lora_model.dispatch_default


def _dispatch(target: nn.Module, adapter_name: str, config: LoraConfig, **kwargs: Any) -> nn.Module | None:
    """PEFT's last choice of a LoRA layer for a module, ours before it."""
    base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    if isinstance(base, PackedLinear):
        return LoraPackedLinear(target, adapter_name, config=config, **kwargs)
    found: nn.Module | None = _PEFT_DEFAULT(target, adapter_name, config=config, **kwargs)
    return found


lora_model.dispatch_default = _dispatch


def has_adapters(model: nn.Module) -> bool:
    """Whether a model carries adapters, of `get_peft_model` or of transformers' `add_adapter`."""
    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


def merged(model: Model) -> Any:
    """A copy of a model with its active adapters merged into its weights and nothing of PEFT left; a model without
    adapters itself.

    Raises:
        StateError: if the weights are packed.
    """
    if not has_adapters(model):
        return model
    base: Any = copy.deepcopy(model)
    while hasattr(base, "get_base_model"):
        base = base.get_base_model()
    for path, module in list(base.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            base.set_submodule(path, module.get_base_layer())
        elif isinstance(module, AuxiliaryTrainingWrapper):
            base.set_submodule(path, module.modules_to_save[module.active_adapters[0]])
    if hasattr(base, "_hf_peft_config_loaded"):
        base._hf_peft_config_loaded = False
    return base


def adapter_base(folder: str) -> tuple[str, str | None] | None:
    """The base model that the folder of an adapter names, and its revision; `None` for what is no such folder.

    Raises:
        XTCError: if the adapter's configuration names none, or cannot be read.
    """
    file = os.path.join(folder, ADAPTER)
    if not os.path.isfile(file):
        return None
    try:
        values = read_json(file)
        base = values["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise XTCError(f"{file} does not say what base model the adapter is for ({error!r}).") from error
    if not isinstance(base, str) or not base:
        raise XTCError(f"{file} does not say what base model the adapter is for: base_model_name_or_path is {base!r}.")
    return base, values.get("revision")


def head_labels(folder: str) -> int | None:
    """How many labels the classifier has that an adapter's folder holds; `None` if it holds none."""
    file = os.path.join(folder, WEIGHTS)
    header = read_header(file) if os.path.isfile(file) else {}
    return next(
        (shape[0] for name, (_, shape) in header.items() if name.endswith("classifier.weight") and shape), None
    )


def with_adapter(base: Any, folder: str) -> Any:
    """A base model with the adapter of a folder merged into it.

    Raises:
        XTCError: if the adapter does not fit the base, is not whole, or is of a kind that cannot be merged (prompts).
        StateError: if the base is packed.
    """
    adapter_base(folder)
    _check_patterns(folder)
    held = read_header(os.path.join(folder, WEIGHTS))  # PEFT would unpickle what lies there otherwise
    try:
        # On the meta device, so that an adapter takes no more memory than its file, whatever rank is claimed.
        model = PeftModel.from_pretrained(base, folder, low_cpu_mem_usage=True)
        _check_whole(model, folder, held)
        whole = merged(model).eval()
    except XTCError:
        raise
    except Exception as error:  # PEFT checks little of a configuration: what it holds breaks wherever it is used
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        raise XTCError(f"The adapter in {folder} does not fit its base model {type(base).__name__}: {why}") from error
    if bad := next((name for name, t in whole.named_parameters() if not bool(torch.isfinite(t).all())), None):
        raise XTCError(f"With the adapter in {folder}, {bad} holds NaN or infinite values. Download it again.")
    return whole


def _check_whole(model: Any, folder: str, held: Container[str]) -> None:
    """Raises `XTCError` if an adapter is of prompts, or its file lacks tensors: PEFT would draw them at random."""
    if not has_adapters(model):
        kind = model.active_peft_config.peft_type.value
        raise XTCError(f"The adapter in {folder} is of a kind that cannot be merged into weights: {kind}.")
    if missing := sorted(name for name in get_peft_model_state_dict(model) if name not in held):
        raise XTCError(
            f"{os.path.join(folder, WEIGHTS)} does not hold {len(missing)} tensors that its {ADAPTER} promises "
            f"(first: {missing[0]}). Download or write both again."
        )


def _check_patterns(folder: str) -> None:
    """Raises `RecipeError` if a pattern in an adapter's configuration is one whose search may never end."""
    values = read_json(os.path.join(folder, ADAPTER))
    for name in ("target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern"):
        found = values.get(name)
        for pattern in [found] if isinstance(found, str) else list(found) if isinstance(found, list | dict) else ():
            check_pattern(f"{os.path.join(folder, ADAPTER)}, {name}", str(pattern))
