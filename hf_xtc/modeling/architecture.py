"""The description of an architecture, and the swap of a model's modules for latent or packed ones.

The swap runs inside each model's `__init__` (in `post_init`), before weights are loaded: a model knows its state and
recipe from its config alone, so `from_pretrained`, the meta device and the Auto classes need nothing special.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from hf_xtc.checks import check_choice
from hf_xtc.errors import PackedFileError, XTCError
from hf_xtc.modeling.layers import PackedEmbedding, PackedLinear, XTCEmbedding, XTCLinear
from hf_xtc.quantization.packing import FORMAT_VERSION
from hf_xtc.quantization.specs import ActivationSpec, QuantSpec
from hf_xtc.recipe.layer_map import LayerMap
from hf_xtc.recipe.xtc_recipe import XTCRecipe
from hf_xtc.registry import Registry

ARCHITECTURES = Registry("architecture")
"""`model_type` of a teacher -> `Architecture`; `ARCHITECTURES.register("name")(architecture)` adds one."""
STATES = ("latent", "packed")


@dataclass(frozen=True)
class Architecture:
    """Describes a family of models. Registered in `ARCHITECTURES` under the teacher's `model_type`.

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
        """Recipe scope -> module paths under the base model, as declared by its classes; `*` is a layer index."""
        scopes: dict[str, tuple[str, ...]] = next(iter(self.model_classes.values())).scopes
        return scopes

    def modules(self, scope: str, num_layers: int) -> Iterator[str]:
        """Paths of the modules of one scope."""
        return module_paths(self.scopes[scope], num_layers)


def module_paths(patterns: tuple[str, ...], num_layers: int) -> Iterator[str]:
    """Expands patterns to module paths: `*` stands for every layer index."""
    for path in patterns:
        yield from (path.replace("*", str(i)) for i in range(num_layers)) if "*" in path else (path,)


def architecture_of(config: Any) -> Architecture:
    """The architecture that a teacher's or student's config belongs to.

    Raises:
        XTCError: if it is not registered (lists those that are).
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
        PackedFileError: if the format version is unknown, or the layer map is malformed or disagrees with the depth.
        RecipeError: if the state or a field of the recipe does not exist.
    """
    check_choice("state", config.state, STATES)
    version = config.xtc.get("format_version")
    if version != FORMAT_VERSION:
        raise PackedFileError(
            f"format_version={version!r}; this version of hf_xtc reads {FORMAT_VERSION}. "
            "Upgrade hf_xtc, or write the checkpoint again."
        )
    layer_map = layer_map_of(config)
    if layer_map is not None and len(layer_map.layers) != config.num_hidden_layers:
        raise PackedFileError(
            f"num_hidden_layers={config.num_hidden_layers}, but the layer map keeps {len(layer_map.layers)} layers "
            f"{list(layer_map.layers)}."
        )
    recipe_of(config)


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
            f"{block!r} stands in place of a layer map (layers, num_teacher_layers, shifted)."
        ) from None


def swap_modules(base_model: nn.Module, scopes: dict[str, tuple[str, ...]], config: Any) -> None:
    """Replaces the modules of every scope (see `XTCModel`) of a base model by latent or packed ones, following
    `config`.

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
    # A latent module reuses the old weight, so its own is built on the meta device.
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
        if packed:  # no file has it: accelerate's init_empty_weights leaves such buffers where they are made
            new.output = torch.empty(0)
    else:
        raise XTCError(f"a {type(old).__name__} cannot be quantized; only linears and embeddings can.")
    if not packed:
        new.weight = old.weight
        new.train(old.training)
    return new
