"""PEFT adapters: found in a model, merged, and loaded from a folder. PEFT need not be installed."""

import copy
import os
import sys
from collections.abc import Container
from typing import Any, TypeVar

import torch
from torch import nn

from hf_xtc.checks import check_pattern
from hf_xtc.errors import XTCError, needs_extra
from hf_xtc.files.headers import read_header
from hf_xtc.files.safe_json import read_json

ADAPTER = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
Model = TypeVar("Model", bound=nn.Module)


def has_adapters(model: nn.Module) -> bool:
    """Whether a model has adapters or prompts, from `get_peft_model` or from transformers' `add_adapter`."""
    peft: Any = sys.modules.get("peft.tuners.tuners_utils")  # not imported: no module is a PEFT layer
    layers = peft is not None and any(isinstance(module, peft.BaseTunerLayer) for module in model.modules())
    return layers or prompt_kind(model) is not None


def prompt_kind(model: Any) -> str | None:
    """PEFT's name of the kind of prompts that a model has; `None` if it has none."""
    if not hasattr(model, "prompt_encoder"):
        return None
    kind: str = model.active_peft_config.peft_type.value
    return kind


def merged(model: Model) -> Any:
    """A copy of a model with its active adapters merged into its weights and PEFT's wrappers removed; a model without
    adapters is returned as it is.

    Raises:
        StateError: if the weights are packed.
        XTCError: if the model has prompts, which are inputs and no weights.
    """
    if not has_adapters(model):
        return model
    if kind := prompt_kind(model):
        raise XTCError(
            f"This {type(model).__name__} has prompts ({kind}), which cannot be merged into weights. Give its base "
            "model (get_base_model()), which computes without them, or adapt it with LoRA instead."
        )
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

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
    """Name and revision of an adapter's base model; `None` if the folder holds no adapter.

    Raises:
        XTCError: if the adapter's configuration names no base model, or cannot be read.
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
    """Number of labels of the classifier in an adapter's folder; `None` if there is no classifier."""
    file = os.path.join(folder, WEIGHTS)
    header = read_header(file) if os.path.isfile(file) else {}
    return next(
        (shape[0] for name, (_, shape) in header.items() if name.endswith("classifier.weight") and shape), None
    )


def with_adapter(base: Any, folder: str) -> Any:
    """A base model with the adapter of a folder merged into it.

    Raises:
        XTCError: if the adapter does not fit the base, is incomplete, or is of a kind that cannot be merged (prompts).
        StateError: if the base is packed.
        ExtraError: if PEFT cannot be imported.
    """
    with needs_extra("peft"):
        from peft import PeftModel
    adapter_base(folder)
    _check_patterns(folder)
    stored = read_header(os.path.join(folder, WEIGHTS))  # if it were missing, PEFT would unpickle another file
    try:
        # On the meta device, so that an adapter takes no more memory than its file, whatever rank its config claims.
        model = PeftModel.from_pretrained(base, folder, low_cpu_mem_usage=True)
        _check_complete(model, folder, stored)
        result = merged(model).eval()
    except XTCError:
        raise
    except Exception as error:  # PEFT validates little: a bad value can fail anywhere
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        raise XTCError(f"The adapter in {folder} does not fit its base model {type(base).__name__}: {why}") from error
    if bad := next((name for name, t in result.named_parameters() if not bool(torch.isfinite(t).all())), None):
        raise XTCError(f"With the adapter in {folder}, {bad} holds NaN or infinite values. Download it again.")
    return result


def _check_complete(model: Any, folder: str, stored: Container[str]) -> None:
    """Raises `XTCError` for prompts, which cannot be merged, and for missing tensors, which PEFT would initialise."""
    if kind := prompt_kind(model):
        raise XTCError(f"The adapter in {folder} is of a kind that cannot be merged into weights: {kind}.")
    from peft import get_peft_model_state_dict

    if missing := sorted(name for name in get_peft_model_state_dict(model) if name not in stored):
        raise XTCError(
            f"{os.path.join(folder, WEIGHTS)} does not hold {len(missing)} tensors that its {ADAPTER} promises "
            f"(first: {missing[0]}). Download or write both again."
        )


def _check_patterns(folder: str) -> None:
    """Raises `RecipeError` for a pattern in an adapter's configuration that could take forever to match."""
    values = read_json(os.path.join(folder, ADAPTER))
    for name in ("target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern"):
        found = values.get(name)
        for pattern in [found] if isinstance(found, str) else list(found) if isinstance(found, list | dict) else ():
            check_pattern(f"{os.path.join(folder, ADAPTER)}, {name}", str(pattern))
