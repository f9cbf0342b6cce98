"""Base classes of latent and packed models, for any architecture: `XTCConfig` and `XTCModel`.

A packed model saves its float parameters in `recipe.rest_dtype` and computes in the dtype it is loaded with.
"""

import os
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.integrations.accelerate import load_offloaded_parameter

from hf_xtc.backends import check_backend, default_backend
from hf_xtc.errors import PackedFileError, StateError
from hf_xtc.files.writing import OLD_CODE, whole_folder
from hf_xtc.modeling.architecture import (
    architecture_of,
    check_xtc_block,
    layer_map_of,
    recipe_of,
    swap_modules,
    xtc_block,
)
from hf_xtc.modeling.checks import check_config, check_files, check_foreign, check_index, check_tensors, check_values
from hf_xtc.modeling.layers import PackedEmbedding, PackedLinear
from hf_xtc.quantization.activations import ActivationQuantizer
from hf_xtc.recipe.layer_map import LayerMap
from hf_xtc.recipe.xtc_recipe import XTCRecipe

# Runs a packed model where this package is not installed; a copy goes into every packed folder.
CODE = Path(__file__).parent.parent / "remote_code" / "modeling_xtc.py"

_HUB_OPTIONS = ("repo_id", "private", "token", "revision", "commit_message", "commit_description", "create_pr")


def _unusable(error: Exception) -> PackedFileError:
    return PackedFileError(f"one value is none that transformers can take ({type(error).__name__}: {error}).")


def auto_map(config: Any) -> dict[str, str]:
    """Name of an Auto class -> the class in `CODE` that it loads for this config."""
    classes = {"AutoConfig": type(config), **architecture_of(config).auto_classes}
    return {auto: f"{CODE.stem}.{cls.__name__}" for auto, cls in classes.items()}


class XTCConfig:
    """Base of the configurations of latent and packed models, which `register_family` makes.

    Args:
        state (`str`): "latent" (float weights, for training) or "packed" (codes and scales, for everything else).
        xtc (`dict`): Format version, recipe, layer map and provenance; by default the default recipe.

    Raises:
        PackedFileError: if the format version is unknown, the layer map disagrees with the depth, or a value that a
            model is built with is invalid (transformers checks none).
        XTCError: if the recipe names something that does not exist.
    """

    state: str
    xtc: dict[str, Any] | None

    def __post_init__(self, **kwargs: Any) -> None:
        check_config(self)
        if self.xtc is None:
            self.xtc = xtc_block(XTCRecipe())
        own = {name: getattr(self, name, None) for name in ("dtype", "architectures", "id2label")}
        check_foreign({**kwargs, **own})
        try:
            super().__post_init__(**kwargs)  # type: ignore[misc]
        except (AttributeError, KeyError, TypeError) as error:
            raise _unusable(error) from error
        check_xtc_block(self)
        if self.state == "packed" and getattr(self, "dtype", None) is None:
            # transformers would take the dtype of the first float tensor in the file, a scale in float16
            self.dtype = torch.float32

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers; errors speak of the `config.json` that the values come from.

        Raises:
            PackedFileError: if a value has the wrong type or is invalid.
        """
        try:
            return super().from_dict(config_dict, **kwargs)  # type: ignore[misc]
        except (StrictDataclassError, PackedFileError, AttributeError, IndexError, KeyError, TypeError) as error:
            found = error if isinstance(error, PackedFileError) else _unusable(error)
            if any(str(found).startswith(f"{name}=") for name in kwargs):  # the caller's value, not the file's
                raise found from None
            advice = "If it was changed, restore the config written with the file."
            raise PackedFileError(f"config.json: {found} {advice}") from error

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """As in transformers; a packed model's config names, in `auto_map`, the code that is written beside it."""
        self.__dict__.pop("auto_map", None)  # that of the folder it was loaded from
        if self.state == "packed" and architecture_of(self).has_remote_code:
            self.auto_map = auto_map(self)
            os.makedirs(save_directory, exist_ok=True)
            shutil.copyfile(CODE, Path(save_directory) / CODE.name)
        super().save_pretrained(save_directory, push_to_hub, **kwargs)  # type: ignore[misc]

    @property
    def recipe(self) -> XTCRecipe:
        """The recipe the model is made by."""
        return recipe_of(self)

    @property
    def layer_map(self) -> LayerMap | None:
        """The layer map onto the teacher, or `None` for a model that was not cut from one."""
        return layer_map_of(self)


class XTCModel(PreTrainedModel):
    """Base of latent and packed models of any family: the swap of modules, saving and loading.

    Their classes derive from this one and transformers', in this order; `register_family` makes them.
    """

    config: Any
    # Losses of encoders ignore `num_items_in_batch`: Trainer must scale them for gradient accumulation and DDP itself.
    accepts_loss_kwargs = False

    def push_to_hub(self, *arguments: Any, **options: Any) -> Any:
        """Publishes the packed form of the model with a card; see `hf_xtc.hub.publish.push_model`."""
        return import_module("hf_xtc.hub.publish").push_model(self, *arguments, **options)

    @property
    def packed(self) -> bool:
        """Whether the model holds codes (packed) or latent weights."""
        return bool(self.config.state == "packed")

    @property
    def backend(self) -> str:
        """Name of the backend chosen for packed linears; see `set_backend`."""
        return vars(self).get("_backend") or default_backend()

    def set_backend(self, name: str) -> None:
        """Chooses the backend of packed linears, and prepares their operands anew at the next forward.

        Operands are also prepared anew when a tensor or a module changes, except for writes through `.data`, which
        PyTorch does not count: call this after them.

        Args:
            name (`str`): "auto" (integers, in the fastest layout measured), "int8" (codes expanded to bytes at the
                first forward), "packed" (codes stay packed in memory) or "reference" (decoded, in float:
                differentiable). A linear that the backend does not support runs on the reference; this is logged once.

        Raises:
            XTCError: if there is no such backend (lists the known ones).
            StateError: if the model is latent: it computes in float.
        """
        check_backend(name)
        if not self.packed:
            raise StateError(
                f"set_backend({name!r}) chooses how packed weights are multiplied, but this model is latent. "
                "Call pack_model first."
            )
        for module in self.modules():
            if isinstance(module, XTCModel):
                module._backend = name
                module.forget_prepared()
            elif isinstance(module, PackedLinear):
                module.backend = name
                module.forget_prepared()

    def forget_prepared(self) -> None:
        """Called by `set_backend` for the model and each XTC model in it; drops what a forward has prepared."""

    def post_init(self) -> None:
        """Swaps modules, then initialises as any transformers model.

        The base model in a head, which transformers' own `__init__` has made, becomes one of this package. A packed
        model, made or loaded, is frozen except for its head: codes cannot be trained, and biases beside them should
        not be.
        """
        architecture, base = architecture_of(self.config), self.base_model
        if not isinstance(base, XTCModel):
            base.__class__ = architecture.auto_classes["AutoModel"]
            # transformers notes, when a model is made, which outputs those of its class record.
            PreTrainedModel.__init__(object.__new__(base.__class__), self.config)
        swap_modules(self, architecture)
        if self.packed:
            self._freeze()
        super().post_init()

    def _freeze(self) -> None:
        """Leaves what is not quantized of a head to be trained, the bias of an output layer too, and nothing else."""
        output = self.get_output_embeddings()
        for module in self.modules():
            if module is self.base_model or (isinstance(module, PackedLinear) and module is not output):
                module.requires_grad_(False)

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        """As the transformers class that this one derives from, whose attention it uses. transformers reads the source
        of the class's module, which does not exist for a class defined in a notebook."""
        own: Any = next(base for base in cls.__mro__ if base.__module__.startswith("transformers.models."))
        return bool(own._can_set_attn_implementation())

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As in transformers; a packed layer or a range that the file lacks becomes zeros, not random memory."""
        try:
            super()._init_weights(module)
        except AttributeError:  # ModernBERT's writes the weights of a module's children, which packed ones do not have
            if not any(isinstance(child, PackedLinear | PackedEmbedding) for child in module.children()):
                raise
        if isinstance(module, PackedLinear | PackedEmbedding | ActivationQuantizer):
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                init.zeros_(tensor)

    def mark_tied_weights_as_initialized(self, loading_info: Any) -> None:
        """As in transformers, which looks for tied parameters only: tied codes and scales are buffers."""
        for name in self.all_tied_weights_keys:
            self.get_parameter_or_buffer(name)._is_hf_initialized = True

    def tie_weights(self, missing_keys: set[str] | None = None, **options: Any) -> None:
        """As in transformers, which compares tied tensors that were both given (`state_dict=`) as parameters only.

        Raises:
            PackedFileError: if tied codes or scales were given twice, with different values.
        """
        buffers = dict(self.named_buffers(remove_duplicate=False))
        for name, source in self.all_tied_weights_keys.items():
            if missing_keys is None or name not in buffers or {name, source} & missing_keys:
                continue
            if not torch.equal(buffers[name], buffers[source]):
                raise PackedFileError(
                    f"{name} and {source} are one tensor in {type(self).__name__}, but have different values. "
                    "Load the weights without the first."
                )
            missing_keys.add(name)  # tied again, as if it had not been given
        super().tie_weights(missing_keys, **options)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "XTCModel":
        """As in PyTorch; tied codes that were loaded once only, as accelerate does, are tied again first."""
        for name, source in getattr(self, "all_tied_weights_keys", {}).items():
            path, _, key = name.rpartition(".")
            module, value = self.get_submodule(path), self.get_parameter_or_buffer(source)
            if key in module._buffers and module._buffers[key].is_meta and not value.is_meta:
                module._buffers[key] = value
        applied: XTCModel = super()._apply(fn, recurse)
        return applied

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """As in transformers for a latent model.

        Raises:
            StateError: for a packed model.
        """
        if self.packed:
            raise StateError(
                "A packed model cannot grow or shrink its vocabulary: rows of codes cannot be trained. "
                "Call unpack_model first, resize and train the latent model, then pack_model."
            )
        resized: nn.Module = super().resize_token_embeddings(*args, **kwargs)
        return resized

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], state_dict: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """As in transformers, but completely or not at all; a packed model stores parameters in `recipe.rest_dtype`.

        With `push_to_hub=True` the model is then published by `push_to_hub`, which packs a latent model.

        Raises:
            StateError: if the folder cannot be written.
        """
        if kwargs.pop("push_to_hub", False):
            published = {name: kwargs.pop(name) for name in _HUB_OPTIONS if name in kwargs}
            repo_id = published.pop("repo_id", os.path.basename(os.path.normpath(save_directory)))
            self.save_pretrained(save_directory, state_dict, **kwargs)
            self.push_to_hub(repo_id, **published)
            return
        if self.packed:
            state_dict = self._file_state_dict(self.state_dict() if state_dict is None else state_dict)
        variant = f".{kwargs['variant']}" if kwargs.get("variant") else ""
        shards = (f"model{variant}-?????-of-?????.safetensors", f"model.safetensors.index{variant}.json")
        with whole_folder(save_directory, replaces=(f"model{variant}.safetensors", *shards, OLD_CODE)) as folder:
            super().save_pretrained(folder, state_dict=state_dict, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, after checking the index of a local folder's shards. A packed model is frozen except for
        its head, as `post_init` leaves it.

        Raises:
            PackedFileError: if the index names files outside of the folder, or the files do not match the config.
            RecipeError: if the recipe in `config.json` has a value that does not exist.
        """
        if isinstance(pretrained_model_name_or_path, str | os.PathLike):
            check_index(os.path.join(pretrained_model_name_or_path, kwargs.get("subfolder") or ""))
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.packed:  # transformers loads into new parameters, which are all trainable
            model._freeze()
        return loaded

    def _file_state_dict(self, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of the file: parameters in `recipe.rest_dtype`, buffers as they are, ties kept."""
        rest_dtype = getattr(torch, self.config.recipe.rest_dtype)
        parameters = dict(self.named_parameters(remove_duplicate=False))
        stored: dict[int, torch.Tensor] = {}
        result = {}
        for name, tensor in state_dict.items():
            if name in parameters:
                tensor = load_offloaded_parameter(self, name) if tensor.is_meta else tensor
                tensor = stored.setdefault(id(parameters[name]), tensor.to(rest_dtype))
            result[name] = tensor
        return result

    @staticmethod
    def _load_pretrained_model(
        model: Any, state_dict: dict[str, Any] | None, files: list[str] | None, load_config: Any, *args: Any
    ) -> Any:
        """As in transformers, after checking that the files, or the tensors of `state_dict`, match the config.

        Raises:
            PackedFileError: if they do not, or hold invalid values.
        """
        if files is not None:
            check_files(model, files, new_head=load_config.ignore_mismatched_sizes)
        elif state_dict is not None:
            given = {name: tensor for name, tensor in state_dict.items() if name not in model.all_tied_weights_keys}
            header = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in given.items()}
            check_tensors(model, header, "state_dict", new_head=load_config.ignore_mismatched_sizes)
        loaded = PreTrainedModel._load_pretrained_model(model, state_dict, files, load_config, *args)
        if model.packed:
            check_values(model)
        return loaded
