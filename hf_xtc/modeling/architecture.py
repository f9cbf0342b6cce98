"""What an architecture declares, and the swap of its modules for latent or packed ones.

The swap runs inside each model's `__init__` (in `post_init`), before weights are loaded: a model knows its state and
recipe from its config alone, so `from_pretrained`, the meta device and the Auto classes need nothing special.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from hf_xtc.errors import PackedFileError, XTCError
from hf_xtc.layers import PackedEmbedding, PackedLinear, XTCEmbedding, XTCLinear
from hf_xtc.packing import FORMAT_VERSION
from hf_xtc.recipe import XTCRecipe
from hf_xtc.registry import Registry
from hf_xtc.specs import ActivationSpec, LayerMap, QuantSpec, check_choice

ARCHITECTURES = Registry("architecture")


@dataclass(frozen=True)
class Architecture:
    """How XTC finds its way in a family of models. Registered in `ARCHITECTURES` under the teacher's `model_type`.

    Args:
        config_class (`type`): Config of the compressed models.
        model_classes (`dict[str, type]`): Teacher class name -> class of its compressed form.
        layers (`str`): Path of the list of layers under the base model.
        scopes (`dict[str, tuple[str, ...]]`): Recipe scope -> module paths under the base model; `*` is a layer index.
        tied_decoder (`str`): Path, from the full model, of the output layer that shares the word embedding.
    """

    config_class: type
    model_classes: dict[str, type]
    layers: str
    scopes: dict[str, tuple[str, ...]]
    tied_decoder: str

    def modules(self, scope: str, num_layers: int) -> Iterator[str]:
        """Paths of the modules of one scope, layer by layer."""
        for path in self.scopes[scope]:
            yield from (path.replace("*", str(i)) for i in range(num_layers)) if "*" in path else (path,)


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
        PackedFileError: if the format version is unknown, or the layer map disagrees with the depth.
        RecipeError: if the state or a field of the recipe does not exist.
    """
    check_choice("state", config.state, ("latent", "packed"))
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


def recipe_of(config: Any) -> XTCRecipe:
    """The recipe in `config.xtc`.

    Raises:
        RecipeError: if a field is unknown or has a value that does not exist.
    """
    return XTCRecipe.from_dict(config.xtc.get("recipe") or {})


def layer_map_of(config: Any) -> LayerMap | None:
    """The layer map in `config.xtc`, or `None` for a model that was not cut from a teacher."""
    block = config.xtc.get("layer_map")
    return None if block is None else LayerMap(tuple(block["layers"]), block["num_teacher_layers"], block["shifted"])


def swap_modules(base_model: nn.Module, architecture: Architecture, config: Any) -> None:
    """Replaces the modules of every scope of a base model by latent or packed ones, as `config` says.

    Raises:
        RecipeError: if a group size does not divide a weight's columns; names the module.
    """
    recipe = recipe_of(config)
    present = {name for name, _ in base_model.named_modules()}  # some heads have no pooler
    for scope in architecture.scopes:
        spec = recipe.spec(scope)
        for path in architecture.modules(scope, config.num_hidden_layers):
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
