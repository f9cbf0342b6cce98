"""What an architecture declares, and the swap of its modules for latent or packed ones.

The swap runs inside each model's `__init__` (in `post_init`), before weights are loaded: a model knows its state and
recipe from its config alone, so `from_pretrained`, the meta device and the Auto classes need nothing special. What is
loaded is checked against that config, before and after: a file that does not fit it is refused.
"""

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from hf_xtc.checkpoint import check_header, read_header
from hf_xtc.errors import PackedFileError, XTCError
from hf_xtc.layers import PackedEmbedding, PackedLinear, XTCEmbedding, XTCLinear
from hf_xtc.packing import FORMAT_VERSION, check_packed
from hf_xtc.quantizers import get_quantizer
from hf_xtc.recipe import XTCRecipe
from hf_xtc.registry import Registry
from hf_xtc.specs import ActivationSpec, LayerMap, QuantSpec, check_choice

ARCHITECTURES = Registry("architecture")
# What `push_to_hub` of a model calls. It packs and writes a card, which stand below the models: they fill it in.
PUBLISHERS = Registry("publisher")
STATES = ("latent", "packed")
# Beyond these no model was ever made, and building one would take hours before its file is looked at.
MOST = {"layers": 1000, "labels": 1_000_000, "size": 2**31 - 1}
# What no float of a packed model reaches: the end of float16, within which no logit overflows in float32.
LARGEST = 65504.0


@dataclass(frozen=True)
class Architecture:
    """How XTC finds its way in a family of models. Registered in `ARCHITECTURES` under the teacher's `model_type`.

    Args:
        config_class (`type`): Config of the compressed models.
        model_classes (`dict[str, type]`): Teacher class name -> class of its compressed form, an `XTCModel`.
        layers (`str`): Path of the list of layers under the base model.
    """

    config_class: type
    model_classes: dict[str, Any]
    layers: str

    @property
    def scopes(self) -> dict[str, tuple[str, ...]]:
        """Recipe scope -> module paths under the base model, as its classes say; `*` is a layer index."""
        scopes: dict[str, tuple[str, ...]] = next(iter(self.model_classes.values())).scopes
        return scopes

    def modules(self, scope: str, num_layers: int) -> Iterator[str]:
        """Paths of the modules of one scope, layer by layer."""
        return module_paths(self.scopes[scope], num_layers)


def module_paths(patterns: tuple[str, ...], num_layers: int) -> Iterator[str]:
    """The paths that patterns stand for, in which `*` is a layer index."""
    for path in patterns:
        yield from (path.replace("*", str(i)) for i in range(num_layers)) if "*" in path else (path,)


def architecture_of(config: Any) -> Architecture:
    """The architecture that a teacher's or student's config belongs to.

    Raises:
        XTCError: if there is none (names those there are).
    """
    for teacher_type, architecture in ARCHITECTURES.items():
        if config.model_type in (teacher_type, architecture.config_class.model_type):
            found: Architecture = architecture
            return found
    known = ", ".join(sorted(ARCHITECTURES))
    raise XTCError(f"XTC does not know the model type {config.model_type!r}; it compresses: {known}.")


def xtc_block(
    recipe: XTCRecipe, layer_map: LayerMap | None = None, provenance: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The JSON object `config.xtc`: format version, recipe, layer map and where the model comes from."""
    return {
        "format_version": FORMAT_VERSION,
        "recipe": recipe.to_dict(),
        "layer_map": None if layer_map is None else {**asdict(layer_map), "layers": list(layer_map.layers)},
        "provenance": provenance or {},
    }


def check_xtc_block(config: Any) -> None:
    """Checks `config.state` and `config.xtc`.

    Raises:
        PackedFileError: if the format version is unknown, or the layer map is none or disagrees with the depth.
        RecipeError: if the state or a field of the recipe does not exist.
    """
    check_choice("state", config.state, STATES)
    version = config.xtc.get("format_version")
    if version != FORMAT_VERSION:
        raise PackedFileError(
            f"config.json says format_version={version!r}; this version of hf_xtc reads {FORMAT_VERSION}. "
            "Upgrade hf_xtc, or write the checkpoint again."
        )
    layer_map = layer_map_of(config)
    if layer_map is not None and len(layer_map.layers) != config.num_hidden_layers:
        raise PackedFileError(
            f"config.json says num_hidden_layers={config.num_hidden_layers}, but its layer map keeps "
            f"{len(layer_map.layers)} layers {list(layer_map.layers)}. Restore the config written with the file."
        )
    recipe_of(config)


def check_foreign(values: dict[str, Any]) -> None:
    """Checks what a `config.json` holds besides its architecture's fields.

    Raises:
        PackedFileError: if it asks for the quantization of another library, for attention code from the Hub, or for a
            head of no size.
    """
    attention, labels = values.get("attn_implementation"), values.get("num_labels")
    if values.get("quantization_config") is not None:
        raise PackedFileError(
            "config.json has a quantization_config, but XTC models are quantized by their recipe. Remove it."
        )
    if attention is not None and (not isinstance(attention, str) or "/" in attention):
        raise PackedFileError(
            f"attn_implementation={attention!r:.80} is not the name of an attention; code from the Hub is never run "
            'for XTC models. Use "eager" or "sdpa".'
        )
    if labels is not None and (type(labels) is not int or not 0 < labels <= MOST["labels"]):
        raise PackedFileError(f"num_labels={labels!r:.80} must be a whole number from 1 to {MOST['labels']}.")


def check_sizes(config: Any, names: tuple[str, ...]) -> None:
    """Checks the sizes that a model is built with, before anything is built.

    Raises:
        PackedFileError: if one of these fields is no positive whole number, or beyond what any machine holds.
    """
    for name in names:
        value, most = getattr(config, name), MOST["layers" if name == "num_hidden_layers" else "size"]
        if type(value) is not int or not 0 < value <= most:
            raise PackedFileError(
                f"config.json says {name}={value!r:.80}; it must be a whole number from 1 to {most}. "
                "Restore the config written with the file."
            )


def recipe_of(config: Any) -> XTCRecipe:
    """The recipe in `config.xtc`.

    Raises:
        RecipeError: if a field is unknown or has a value that does not exist.
    """
    return XTCRecipe.from_dict(config.xtc.get("recipe", {}))


def layer_map_of(config: Any) -> LayerMap | None:
    """The layer map in `config.xtc`, or `None` for a model that was not cut from a teacher."""
    block = config.xtc.get("layer_map")
    if block is None:
        return None
    try:
        return LayerMap(tuple(block["layers"]), block["num_teacher_layers"], block["shifted"])
    except (KeyError, TypeError):
        raise PackedFileError(
            f"config.json holds {block!r} in place of a layer map (layers, num_teacher_layers, shifted). "
            "Restore the config written with the file."
        ) from None


def swap_modules(base_model: nn.Module, scopes: dict[str, tuple[str, ...]], config: Any) -> None:
    """Replaces the modules of every scope (see `XTCModel`) of a base model by latent or packed ones, as `config`
    says.

    Raises:
        RecipeError: if a group size does not divide a weight's columns; names the module.
    """
    recipe = recipe_of(config)
    present = {name for name, _ in base_model.named_modules()}  # some heads have no pooler
    for scope, patterns in scopes.items():
        spec = recipe.spec(scope)
        for path in module_paths(patterns, config.num_hidden_layers):
            if spec is not None and path in present:
                swap_module(base_model, path, spec, recipe.activation(), packed=config.state == "packed")


def swap_module(
    model: nn.Module, path: str, spec: QuantSpec, activation: ActivationSpec | None, *, packed: bool
) -> None:
    """Replaces the `nn.Linear` or `nn.Embedding` at `path` by its latent or packed form, keeping its parameters."""
    old = model.get_submodule(path)
    try:
        new = _replacement(old, spec, activation, packed)
    except XTCError as error:
        raise type(error)(f"{path}: {error}") from None
    model.set_submodule(path, new)


def _replacement(old: nn.Module, spec: QuantSpec, activation: ActivationSpec | None, packed: bool) -> nn.Module:
    # A latent module takes over the old weight, so it is built without one of its own.
    if isinstance(old, nn.Linear):
        linear = PackedLinear if packed else XTCLinear
        bias, device = old.bias is not None, old.weight.device if packed else "meta"
        new: nn.Module = linear(
            old.in_features, old.out_features, bias, spec=spec, activation=activation, device=device
        )
        new.bias = old.bias
        if packed and new.bias is not None:
            new.bias.requires_grad_(False)
    elif isinstance(old, nn.Embedding):
        embedding = PackedEmbedding if packed else XTCEmbedding
        device = old.weight.device if packed else "meta"
        new = embedding(old.num_embeddings, old.embedding_dim, old.padding_idx, spec=spec, device=device)
    else:
        raise XTCError(f"a {type(old).__name__} cannot be quantized; only linears and embeddings can.")
    if not packed:
        new.weight = old.weight
        new.train(old.training)
    return new


def check_files(model: Any, files: list[str], *, new_head: bool) -> None:
    """Checks, from headers alone, that the files hold what the config of a model to be loaded promises.

    A file written by the model's own class must hold every tensor. Of another class's file (a bare encoder into a
    classifier, or the reverse) only the encoder is compared, and only where it is packed.

    Args:
        model (`PreTrainedModel`): The model, its tensors still without values.
        files (`list[str]`): Paths of the file or of its shards.
        new_head (`bool`): The caller asked for a head of another shape (`ignore_mismatched_sizes`).

    Raises:
        PackedFileError: if a file is damaged, a pickle, or not of one model with the config.
    """
    if not all(file.endswith(".safetensors") for file in files):
        raise PackedFileError(f"{files[0]} is no safetensors file; XTC checkpoints are never read from pickles.")
    header = {name: entry for file in files for name, entry in read_header(file).items()}
    where = os.path.basename(os.path.dirname(files[0])) + "/" + os.path.basename(files[0])
    check_tensors(model, header, where, new_head=new_head)


def check_places(model: Any, files: list[str]) -> None:
    """Checks that the files of a local folder lie in it, whatever the index of its shards says.

    Raises:
        PackedFileError: if one does not; links are followed by whoever made them, as in the Hub's cache.
    """
    folder = os.path.abspath(model.name_or_path)
    for file in files if os.path.isdir(folder) else ():
        if os.path.commonpath([folder, os.path.abspath(file)]) != folder:
            raise PackedFileError(
                f"The index of {folder} names {os.path.relpath(file, folder)}, which is outside of that folder. "
                "Download or write it again."
            )


def check_tensors(model: Any, header: dict[str, Any], where: str, *, new_head: bool = False) -> None:
    """As `check_files`, for a header that was read already; it is called `where` in messages."""
    if not model.packed and any(name.endswith("weight_packed") for name in header):
        raise PackedFileError(
            f"{where} holds packed codes, but config.json says state='latent'. "
            "Config and weights are not of one model; download or write both again."
        )
    own = type(model).__name__ in (model.config.architectures or ()) and not new_head
    if own or model.packed:
        header, expected = _comparable(model, header, own=own)
        check_header(header, expected, where, exact=own and model.packed)


def _comparable(model: Any, header: dict[str, Any], *, own: bool) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A file's header and the tensors to expect in it, by the same names."""
    prefix = f"{model.base_model_prefix}."
    base = getattr(model, model.base_model_prefix, model)
    if not own:  # a bare encoder's file has no prefix, a head's file has one
        model, header = base, {name.removeprefix(prefix): entry for name, entry in header.items()}
    expected = {name: tensor for name, tensor in model.state_dict().items() if name not in model.all_tied_weights_keys}
    if model is base and not (_pooler(header) and _pooler(expected)):  # encoders come with and without one
        header = {name: entry for name, entry in header.items() if name not in _pooler(header)}
        expected = {name: tensor for name, tensor in expected.items() if name not in _pooler(expected)}
    return header, expected


def _pooler(names: Iterable[str]) -> set[str]:
    return {name for name in names if name.startswith("pooler.")}


def check_values(model: nn.Module) -> None:
    """Checks the loaded values of a packed model; tensors without values (missing, or left on disk) are passed over.

    Raises:
        PackedFileError: if codes do not exist in the format, a scale is negative, or a value is NaN or infinite.
    """
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear | PackedEmbedding) and not module.weight_packed.is_meta:
            levels = get_quantizer(module.spec.quantizer).levels
            check_packed(module.weight_packed, module.weight_scale, levels, name)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
            continue
        low, high = torch.stack(torch.aminmax(tensor)).double().tolist()
        if not math.isfinite(low + high):
            raise PackedFileError(
                f"{name} holds NaN or infinite values in {tensor.dtype}. "
                "The file is damaged; download or write it again."
            )
        if max(-low, high) > LARGEST:
            raise PackedFileError(
                f"{name} holds the value {max(-low, high):g}; no trained model has one beyond {LARGEST:g}. "
                "The file is damaged; download or write it again."
            )
        if name.endswith("activation.range") and tensor[0] > tensor[1]:
            raise PackedFileError(
                f"{name} ends at {high:g} before it starts. The file is damaged; download or write it again."
            )
