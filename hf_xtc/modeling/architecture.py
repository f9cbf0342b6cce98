"""The description of an architecture, and the swap of a model's modules for latent or packed ones.

The swap runs inside each model's `__init__` (in `post_init`), before weights are loaded: a model knows its state and
recipe from its config alone, so `from_pretrained`, the meta device and the Auto classes need nothing special.
"""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from hf_xtc.checks import check_choice
from hf_xtc.errors import PackedFileError, RecipeError, XTCError
from hf_xtc.modeling.layers import PackedEmbedding, PackedLinear, XTCEmbedding, XTCLinear
from hf_xtc.quantization.packing import FORMAT_VERSION
from hf_xtc.quantization.specs import ActivationSpec, QuantSpec
from hf_xtc.recipe.layer_map import LayerMap
from hf_xtc.recipe.xtc_recipe import XTCRecipe
from hf_xtc.registry import Registry

ARCHITECTURES = Registry("architecture")
"""`model_type` of a teacher -> `Architecture`; `register_family` adds one."""
STATES = ("latent", "packed")


@dataclass(frozen=True)
class Architecture:
    """A family of models and its compressed classes, made by `register_family` from a declaration.

    Registered in `ARCHITECTURES` under the teacher's `model_type`. `register_family` documents the fields that are
    declared.

    Args:
        config_class (`type`): Config of the compressed models.
        model_classes (`dict[str, type]`): Teacher class name -> class of its compressed form, an `XTCModel`.
        auto_classes (`dict[str, type]`): Name of an Auto class -> the compressed class that it loads.
    """

    config_class: Any
    model_classes: dict[str, Any]
    auto_classes: dict[str, Any]
    layers: str | None
    scopes: dict[str, tuple[str, ...]]
    head_scopes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    cut_config: Callable[[dict[str, Any], tuple[int, ...]], None] | None = None
    cut_weights: Callable[[dict[str, torch.Tensor], tuple[int, ...]], None] | None = None
    scores: dict[type, type] | None = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The `model_type` of the family's teachers."""
        return next(name for name, known in ARCHITECTURES.items() if known is self)

    @property
    def has_remote_code(self) -> bool:
        """Whether packed folders carry code that loads them without this package: it knows this package's families."""
        return str(self.config_class.__module__).startswith("hf_xtc.")

    def scope_of(self, path: str) -> str | None:
        """The recipe scope of the module at `path` under the base model; `None` if it stays in float."""
        return _scope(self.scopes, path)

    def head_scope_of(self, path: str) -> str | None:
        """The recipe scope of the module at `path` of a head, outside of the base model."""
        return _scope(self.head_scopes, path)

    def cut(self, values: dict[str, Any], layer_map: LayerMap) -> None:
        """Changes the values of a teacher's config to those of a student that keeps the layers of `layer_map`.

        Raises:
            RecipeError: if layers would be cut, but the family's layers share their weights.
        """
        kept, depth = layer_map.layers, layer_map.num_teacher_layers
        if self.layers is None and len(kept) != depth:
            raise RecipeError(
                f"The recipe keeps {len(kept)} of {depth} layers, but the layers of {self.name} share their weights, "
                "so that cutting them makes no file smaller. Keep all layers; quantizing them works."
            )
        attributes: dict[str, str] = self.config_class.attribute_map
        depth_name = attributes.get("num_hidden_layers", "num_hidden_layers")
        if self.cut_config is not None:
            self.cut_config(values, kept)
        values[depth_name] = len(kept)


def _scope(scopes: dict[str, tuple[str, ...]], path: str) -> str | None:
    for scope, patterns in scopes.items():
        for pattern in patterns:
            if re.fullmatch(re.escape(pattern).replace(r"\*", r"\d+"), path):
                return scope
    return None


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
    raise XTCError(
        f"XTC does not know the model type {config.model_type!r}; it compresses {known}, and what you declare with "
        "register_family (docs/extending.md)."
    )


def check_pair(student: Any, teacher: Any) -> None:
    """Checks that two models, given by their configs, can be compared layer by layer and token by token.

    Raises:
        XTCError: if their families or vocabularies differ, or a family is unknown.
    """
    ours, theirs = architecture_of(student), architecture_of(teacher)
    if ours is not theirs:
        raise XTCError(
            f"The student is of the family {ours.name!r}, the teacher of {theirs.name!r}; a student learns from a "
            "teacher of its own family."
        )
    if student.vocab_size != teacher.vocab_size:
        raise XTCError(
            f"The student has embeddings for {student.vocab_size} tokens, the teacher for {teacher.vocab_size}; give "
            "both the same tokenizer, since a token of one is another token, or none, of the other."
        )


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


def swap_modules(model: Any, architecture: Architecture) -> None:
    """Replaces modules of a model by latent or packed ones, following `model.config`: those of the base model, those
    of a head that are in a scope (not of a language model's), and an output layer that is tied to the word embedding.

    Raises:
        RecipeError: if a group size does not divide a weight's columns; names the module.
    """
    recipe, packed, base = recipe_of(model.config), model.config.state == "packed", model.base_model
    output = None if base is model else model.get_output_embeddings()
    swapped = [(base, path, architecture.scope_of(path)) for path, _ in base.named_modules()]
    if base is not model and output is None:
        swapped += [(model, path, architecture.head_scope_of(path)) for path, _ in model.named_modules()]
    for owner, path, scope in swapped:
        spec = None if scope is None else recipe.spec(scope)
        if spec is not None:
            swap_module(owner, path, spec, recipe.activation(), packed=packed)
    spec = recipe.spec("word_embeddings")
    if output is not None and spec is not None and model.config.tie_word_embeddings:
        _swap_decoder(model, output, spec, packed)


def _swap_decoder(model: Any, output: nn.Module, spec: QuantSpec, packed: bool) -> None:
    """Replaces a tied output layer by a latent or packed one that shares the word embedding's tensors."""
    path = next(name for name, module in model.named_modules() if module is output)
    ties = dict(model._tied_weights_keys or {})
    if f"{path}.weight" not in ties:
        return
    words = ties[f"{path}.weight"].removesuffix(".weight")
    swap_module(model, path, spec, None, packed=packed)
    if output.bias is not None:
        output.bias.requires_grad_(True)
    if packed:
        del ties[f"{path}.weight"]
        shared = {f"{path}.{name}": f"{words}.{name}" for name in ("weight_packed", "weight_scale")}
        model._tied_weights_keys = {**shared, **ties}


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
