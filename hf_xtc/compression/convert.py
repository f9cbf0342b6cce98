"""Conversions of whole models: `compress` (teacher -> latent), `pack_model` (latent -> packed), `unpack_model`.

Each returns a new model and leaves its argument untouched.
"""

import copy
import os
import re
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from hf_xtc.compression.origin import origin
from hf_xtc.errors import StateError, XTCError
from hf_xtc.modeling import Architecture
from hf_xtc.modeling.adapters import has_adapters, merged
from hf_xtc.modeling.architecture import architecture_of, xtc_block
from hf_xtc.modeling.layers import PackedEmbedding, PackedLinear, XTCEmbedding, XTCLinear, pack_layer, unpack_layer
from hf_xtc.modeling.sharded_weights import is_sharded
from hf_xtc.quantization.packing import LARGEST
from hf_xtc.recipe.layer_map import LayerMap
from hf_xtc.recipe.xtc_recipe import XTCRecipe


def compress(
    teacher: PreTrainedModel,
    recipe: XTCRecipe | None = None,
    *,
    weights_from: PreTrainedModel | None = None,
    provenance: dict[str, Any] | None = None,
) -> PreTrainedModel:
    """The latent student of a fine-tuned teacher: the layers that the recipe keeps, ready for distillation.

    Args:
        teacher (`PreTrainedModel` or `PeftModel`): A fine-tuned model of a registered architecture, any head. Left
            untouched; adapters are merged in a copy.
        recipe (`XTCRecipe`, *optional*): What the student is made of; the default is binary, per channel, all layers.
        weights_from (`PreTrainedModel`, *optional*): A student of the same depth to start from instead of the
            teacher's layers, such as the float layer-reduced one.
        provenance (`dict`, *optional*): JSON facts to store in `config.xtc`, beside the name of the teacher and the
            licence in its folder's model card.

    Returns:
        `PreTrainedModel`: of the teacher's class in XTC, state "latent", in float32, on the device of the
            weights it starts from.

    Raises:
        XTCError: if the teacher's architecture or class is unknown.
        RecipeError: if the recipe's layers do not fit the teacher.
        StateError: if the teacher, or the model to start from, is packed, or not on one device.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> config = BertConfig(
        ...     vocab_size=40, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=24)
        >>> student = compress(BertForSequenceClassification(config), XTCRecipe(keep_layers=2))
        >>> student.config.layer_map.layers
        (1, 3)
    """
    recipe = XTCRecipe() if recipe is None else recipe
    teacher = merged(teacher)
    architecture = architecture_of(teacher.config)
    layer_map = recipe.layer_map(teacher.config.num_hidden_layers)
    source = teacher if weights_from is None else weights_from
    copied = layer_map if weights_from is None else LayerMap.skip(len(layer_map.layers), len(layer_map.layers))
    if source.config.num_hidden_layers != copied.num_teacher_layers:
        raise XTCError(
            f"weights_from has {source.config.num_hidden_layers} layers, the student has {len(copied.layers)}. "
            "Start from a model of the student's depth."
        )
    facts = {"teacher": _name(teacher), **origin(str(teacher.config.name_or_path)), **(provenance or {})}
    config = _student_config(teacher, architecture, layer_map, xtc_block(recipe, layer_map, facts))
    model_class = student_class(teacher)
    state_dict = _kept_layers(_latent_state_dict(source), architecture, source.base_model_prefix, copied)
    return _build(model_class, config, state_dict)


def _name(teacher: PreTrainedModel) -> str:
    """The name of a teacher, without its path on this machine, since the file may be published."""
    name = str(teacher.config.name_or_path or type(teacher).__name__)
    return os.path.basename(os.path.normpath(name)) if os.path.isdir(name) else name


def _student_config(
    teacher: PreTrainedModel, architecture: Architecture, layer_map: LayerMap, xtc: dict[str, Any]
) -> Any:
    values = teacher.config.to_dict()
    for derived in ("model_type", "architectures", "transformers_version", "_name_or_path", "dtype", "state"):
        values.pop(derived, None)
    architecture.cut(values, layer_map)
    values.update(state="latent", xtc=xtc)
    return architecture.config_class(**values)


def student_class(teacher: PreTrainedModel) -> type[PreTrainedModel]:
    """The XTC class that a teacher's student has.

    Raises:
        XTCError: if the teacher's architecture or class is unknown.
    """
    architecture = architecture_of(teacher.config)
    for name, model_class in architecture.model_classes.items():
        if type(teacher).__name__ in (name, model_class.__name__):
            found: type[PreTrainedModel] = model_class
            return found
    raise XTCError(
        f"There is no compressed form of {type(teacher).__name__}. "
        f"Load the teacher as one of: {', '.join(sorted(architecture.model_classes))}."
    )


def _latent_state_dict(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    if getattr(model.config, "state", "latent") == "packed":
        raise StateError(f"{type(model).__name__} is packed; compress needs float weights. Call unpack_model first.")
    if is_sharded(model):
        raise StateError(
            f"The weights of {type(model).__name__} are sharded over processes, and compress needs them whole. Load "
            "the teacher and call compress before XTCTrainingArguments(deepspeed=...) is made: with ZeRO-3, models "
            "that are loaded after it are sharded."
        )
    _device(model)
    return {name: tensor for name, tensor in model.state_dict().items() if "activation.range" not in name}


def _device(model: PreTrainedModel) -> torch.device:
    """The device that all tensors of a model are on.

    Raises:
        StateError: if they are on several, or have no values (the meta device, or offloaded).
    """
    devices: set[torch.device] = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if len(devices) > 1 or torch.device("meta") in devices:
        raise StateError(
            f"The tensors of {type(model).__name__} are on {' and '.join(sorted(map(str, devices)))}; they must be on "
            "one device, with their values (those on meta have none). Load the model without device_map, or move it."
        )
    return devices.pop()


def with_weights(student: PreTrainedModel, state_dict: dict[str, torch.Tensor]) -> PreTrainedModel:
    """A copy of `student`, whose own weights may be sharded, with the weights of `state_dict`; others are ignored."""
    whole = _empty(type(student), copy.deepcopy(student.config))
    whole.load_state_dict({name: state_dict[name] for name in whole.state_dict()})
    return whole


def _kept_layers(
    state_dict: dict[str, torch.Tensor], architecture: Architecture, prefix: str, layer_map: LayerMap
) -> dict[str, torch.Tensor]:
    """Renames kept layers to their place in the student and drops the others."""
    if architecture.layers is None:
        return state_dict
    place = {str(teacher): str(student) for student, teacher in enumerate(layer_map.layers)}
    layer_tensor = re.compile(rf"((?:{re.escape(prefix)}\.)?{re.escape(architecture.layers)}\.)(\d+)(\..+)")
    kept = {}
    for name, tensor in state_dict.items():
        found = layer_tensor.fullmatch(name)
        if found is None:
            kept[name] = tensor
        elif found[2] in place:
            kept[f"{found[1]}{place[found[2]]}{found[3]}"] = tensor
    if architecture.cut_weights is not None:
        architecture.cut_weights(kept, layer_map.layers)
    return kept


def _empty(model_class: type[PreTrainedModel], config: Any, device: torch.device | str = "cpu") -> PreTrainedModel:
    """A model in eval mode with uninitialised weights, on `device`."""
    with no_init_weights(), torch.device(device):
        model: PreTrainedModel = model_class(config).eval()
    model.tie_weights()
    return model


def _build(model_class: type[PreTrainedModel], config: Any, state_dict: dict[str, torch.Tensor]) -> PreTrainedModel:
    """A model with exactly these weights, on their device, in float32 and eval mode."""
    model = _empty(model_class, config, next(iter(state_dict.values())).device)
    ranges = {key: value for key, value in model.state_dict().items() if key.endswith("activation.range")}
    missing, unexpected = model.load_state_dict({**ranges, **state_dict}, strict=False)
    if missing or unexpected:
        wrong = ", ".join(sorted([*missing, *unexpected])[:5])
        raise XTCError(f"The teacher's weights do not fit {model_class.__name__}: {wrong}.")
    return model


def pack_model(student: PreTrainedModel, *, rest_dtype: str | None = None) -> PreTrainedModel:
    """The packed form of a latent model: codes and scales, the rest rounded to the dtype of the file.

    Args:
        student (`PreTrainedModel`): A latent XTC model; left untouched.
        rest_dtype (`str`, *optional*): "float16", "bfloat16" or "float32" instead of the recipe's; "float32" gives
            outputs bitwise equal to the latent model's.

    Returns:
        `PreTrainedModel`: of the same class, state "packed", on the same device; saving and loading it gives the
        same values.

    Raises:
        StateError: if the model is not a latent XTC model, is not on one device, or holds NaN or infinite weights
            (names the tensor).
    """
    config = _with_state(student, "latent", "packed", "pack_model packs a latent XTC model; compress makes one")
    if rest_dtype is not None:
        recipe = XTCRecipe.from_dict({**config.recipe.to_dict(), "rest_dtype": rest_dtype})
        config.xtc = {**config.xtc, "recipe": recipe.to_dict()}
    stored = getattr(torch, config.recipe.rest_dtype)
    packed = _empty(type(student), config, _device(student))
    _fill_rest(student, packed, stored)
    tied = _tied_modules(packed)
    for name, layer in packed.named_modules():
        if isinstance(layer, PackedLinear | PackedEmbedding):
            latent: Any = student.get_submodule(name)
            if name not in tied:
                pack_layer(latent, layer, name)
            if isinstance(layer, PackedLinear) and layer.bias is not None:
                layer.bias.data = _rounded(latent.bias, stored, f"{name}.bias")
    for name, buffer in packed.named_buffers():
        if name.endswith("activation.range"):
            _rounded(buffer, torch.float32, name)
    packed.tie_weights()
    return packed


def unpack_model(packed: PreTrainedModel) -> PreTrainedModel:
    """A latent model whose latent weights are the decoded values of a packed one, to train it further.

    Args:
        packed (`PreTrainedModel`): A packed XTC model; left untouched.

    Returns:
        `PreTrainedModel`: of the same class, state "latent", on the same device. Packing it again gives the same
        binary and ternary codes.

    Raises:
        StateError: if the model is not a packed XTC model, or not on one device.
    """
    config = _with_state(packed, "packed", "latent", "unpack_model unpacks a packed XTC model; pack_model makes one")
    latent = _empty(type(packed), config, _device(packed))
    _fill_rest(packed, latent, torch.float32)
    tied = _tied_modules(packed)
    for name, layer in latent.named_modules():
        if isinstance(layer, XTCLinear | XTCEmbedding):
            source: Any = packed.get_submodule(name)
            if name not in tied:
                unpack_layer(source, layer)
            elif layer.bias is not None:
                layer.bias.data = source.bias.detach().float().clone()
    latent.tie_weights()
    return latent


def _with_state(model: PreTrainedModel, state: str, new_state: str, hint: str) -> Any:
    """A copy of a model's config with a new state; raises `StateError` unless the model is in `state`."""
    if has_adapters(model):
        raise StateError(
            f"{type(model).__name__} carries adapters, which are not part of its weights. Save them alone "
            "(save_pretrained), or merge them into the latent weights (merge_and_unload), which may change the codes."
        )
    found = getattr(model.config, "state", None)
    if found != state:
        what = f"{type(model).__name__} is {found}" if found else f"{type(model).__name__} is not an XTC model"
        raise StateError(f"{what}; {hint}.")
    config = copy.deepcopy(model.config)
    config.state = new_state
    config.dtype = torch.float32  # that of the model to be made, whatever this one was loaded with
    return config


def _tied_modules(model: PreTrainedModel) -> set[str]:
    """Paths of modules whose codes or latent weights are those of another module."""
    tied = {key.rpartition(".")[0] for key in model.all_tied_weights_keys if key.rpartition(".")[2] != "bias"}
    return {path for path in tied if isinstance(model.get_submodule(path), PackedLinear | XTCLinear)}


def _rounded(tensor: torch.Tensor, stored: torch.dtype, name: str) -> torch.Tensor:
    rounded = tensor.detach().to(stored).to(torch.float32)
    if not bool(torch.isfinite(rounded).all()):
        raise StateError(
            f"{name} holds NaN, infinity or values beyond {stored}, which cannot be packed. "
            "Go back to an earlier checkpoint, or pack with rest_dtype='float32'."
        )
    if rounded.numel() and float(rounded.abs().max()) > LARGEST:
        raise StateError(
            f"{name} holds the value {float(rounded.abs().max()):g}; a packed file holds at most {LARGEST:,.0f}. "
            "Go back to an earlier checkpoint and train with a lower learning rate."
        )
    return rounded


def _fill_rest(source: PreTrainedModel, target: PreTrainedModel, stored: torch.dtype) -> None:
    """Copies the parameters that are not quantized, rounded to the dtype `stored` in the file."""
    swapped = (PackedLinear, PackedEmbedding, XTCLinear, XTCEmbedding)
    with torch.no_grad():
        for name, module in target.named_modules():
            if isinstance(module, swapped):
                continue
            for key, parameter in module.named_parameters(recurse=False):
                path = f"{name}.{key}" if name else key
                parameter.copy_(_rounded(source.get_parameter(path), stored, path))


def is_packed(model: nn.Module) -> bool:
    """Whether a model is a packed XTC model."""
    return getattr(getattr(model, "config", None), "state", None) == "packed"
