"""Checks of a model to be loaded: of its `config.json` before anything is built, of the headers of its files before
they are loaded, and of the values afterwards.
"""

import math
import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN

from hf_xtc.errors import PackedFileError
from hf_xtc.files.headers import check_header, read_header
from hf_xtc.files.safe_json import read_json
from hf_xtc.modeling.layers import PackedEmbedding, PackedLinear
from hf_xtc.quantization.packing import LARGEST, check_packed
from hf_xtc.quantization.quantizers import get_quantizer

# Limits beyond any real model: building a larger one would take hours before its file is read.
SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("max_position_embeddings", "type_vocab_size", "embedding_size", "hidden_dim"),
    *("num_hidden_groups", "inner_group_num", "relative_attention_num_buckets", "local_attention"),
)
NO_TOKEN_TYPES = ("xtc_deberta_v2",)  # may have none at all
ACTIVATIONS = ("hidden_act", "hidden_activation", "classifier_activation", "activation")
EPSILONS = ("layer_norm_eps", "norm_eps")
MOST = {"layers": 1000, "labels": 1_000_000, "size": 2**31 - 1}


def check_foreign(values: dict[str, Any]) -> None:
    """Checks the fields of a `config.json` that are not specific to its architecture.

    Raises:
        PackedFileError: if it asks for the quantization of another library, for attention code from the Hub, or
            has an invalid number of labels, or a dtype, classes or label names of the wrong type.
    """
    labels, attentions = values.get("num_labels"), [values.get(f"{name}attn_implementation") for name in ("", "_")]
    dtype, classes, names = (values.get(name) for name in ("dtype", "architectures", "id2label"))
    if values.get("quantization_config") is not None:
        raise PackedFileError("quantization_config is given, but XTC models are quantized by their recipe. Remove it.")
    for attention in attentions:  # transformers reads either key
        if attention is not None and (not isinstance(attention, str) or "/" in attention):
            raise PackedFileError(
                f"attn_implementation={attention!r:.80} is not the name of an attention implementation; code from the "
                'Hub is never run for XTC models. Use "eager" or "sdpa".'
            )
    if labels is not None and (type(labels) is not int or not 0 < labels <= MOST["labels"]):
        raise PackedFileError(f"num_labels={labels!r:.80} must be a whole number from 1 to {MOST['labels']}.")
    if dtype is not None and not isinstance(dtype, str | torch.dtype):
        raise PackedFileError(f"dtype={dtype!r:.80} must be a dtype's name, such as float32.")
    if classes is not None and not (
        isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes)
    ):
        raise PackedFileError(f"architectures={classes!s:.80} must be names of classes.")
    if isinstance(names, dict) and not all(isinstance(name, str | int) for name in names.values()):
        raise PackedFileError("id2label has labels that are not text. Give each label a name.")


def check_config(config: Any) -> None:
    """Checks the values that a model is built with, before anything is built, since transformers does not. Families
    have some of these fields each, under one name or another.

    Raises:
        PackedFileError: if a size, the number of heads, the activation, the epsilon, a dropout or the pad token is
            invalid.
    """
    for name in (name for name in SIZES if hasattr(config, name)):
        value, most = getattr(config, name), MOST["layers" if name == "num_hidden_layers" else "size"]
        least = 0 if name == "type_vocab_size" and config.model_type in NO_TOKEN_TYPES else 1
        if type(value) is not int or not least <= value <= most:
            raise PackedFileError(f"{name}={value!r:.80} must be a whole number from {least} to {most}.")
    if config.hidden_size % config.num_attention_heads:
        raise PackedFileError(
            f"num_attention_heads={config.num_attention_heads} does not divide hidden_size={config.hidden_size}."
        )
    for name in (name for name in ACTIVATIONS if hasattr(config, name)):
        if getattr(config, name) not in ACT2FN:
            raise PackedFileError(
                f"{name}={getattr(config, name)!r:.80} is no activation of transformers, such as 'gelu' or 'relu'."
            )
    for name in (name for name in EPSILONS if hasattr(config, name)):
        if not 0 < getattr(config, name) <= 1:
            raise PackedFileError(f"{name}={getattr(config, name)!r} must be above 0 and at most 1.")
    for name in (name for name in vars(config) if "dropout" in name):
        if not 0 <= (getattr(config, name) or 0) <= 1:
            raise PackedFileError(f"{name}={getattr(config, name)!r} must lie between 0 and 1.")
    if config.pad_token_id is not None and not -config.vocab_size <= config.pad_token_id < config.vocab_size:
        raise PackedFileError(
            f"pad_token_id={config.pad_token_id} is not one of the {config.vocab_size} tokens of vocab_size."
        )


def check_index(folder: str) -> None:
    """Checks the index of the shards of a local folder, if it has one, before any of them is opened.

    Raises:
        PackedFileError: if it is not an index, or names a file outside of the folder.
    """
    file = os.path.join(folder, "model.safetensors.index.json")
    if not os.path.exists(file):
        return
    try:
        index = read_json(file)
        plain = all(os.path.basename(name) == name not in ("", ".", "..") for name in index["weight_map"].values())
        if not plain or not isinstance(index["metadata"], dict):
            raise ValueError("its shards must be files of the folder")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise PackedFileError(
            f"{file} is no index of shards ({type(error).__name__}: {error}). Download or write it again."
        ) from error


def check_files(model: Any, files: list[str], *, new_head: bool) -> None:
    """Checks, from headers alone, that the files match the config of a model to be loaded.

    A file written by the model's own class must hold every tensor. In another class's file (a bare encoder into a
    classifier, or the reverse) only the encoder is compared, and only if it is packed.

    Args:
        model (`PreTrainedModel`): The model, before its weights are loaded.
        files (`list[str]`): Paths of the file or of its shards.
        new_head (`bool`): The caller asked for a head of another shape (`ignore_mismatched_sizes`).

    Raises:
        PackedFileError: if a file is damaged, is a pickle, or does not match the config.
    """
    if not all(file.endswith(".safetensors") for file in files):
        raise PackedFileError(f"{files[0]} is not a safetensors file; XTC checkpoints are never read from pickles.")
    header = {name: entry for file in files for name, entry in read_header(file).items()}
    where = os.path.basename(os.path.dirname(files[0])) + "/" + os.path.basename(files[0])
    check_tensors(model, header, where, new_head=new_head)


def check_tensors(model: Any, header: dict[str, Any], where: str, *, new_head: bool = False) -> None:
    """As `check_files`, for a header that was read already; `where` names the file in messages."""
    if not model.packed and any(name.endswith("weight_packed") for name in header):
        raise PackedFileError(
            f"{where} holds packed codes, but config.json says state='latent'. "
            "Config and weights do not belong together; download or write both again."
        )
    if not new_head:
        _check_head(model, header, where)
    own = type(model).__name__ in (model.config.architectures or ()) and not new_head
    if own or model.packed:
        header, expected = _comparable(model, header, own=own)
        check_header(header, expected, where, exact=own and model.packed)


def _check_head(model: Any, header: dict[str, Any], where: str) -> None:
    """Raises `PackedFileError` if the head in the file is one of another number of labels."""
    prefix, labels = f"{model.base_model_prefix}.", model.config.num_labels
    head = (
        {} if model is model.base_model else {n: t for n, t in model.state_dict().items() if not n.startswith(prefix)}
    )
    for name, tensor in head.items():
        _, shape = header.get(name, (None, tuple(tensor.shape)))
        if shape != tuple(tensor.shape) == (labels, *shape[1:]):
            raise PackedFileError(
                f"{where}: {name} has shape {list(shape)}, but num_labels={labels} needs {list(tensor.shape)}. "
                "Load it with its own number of labels, or give ignore_mismatched_sizes=True for a new head."
            )


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
    """Checks the loaded values of a packed model; tensors without values (missing, or left on disk) are skipped.

    Raises:
        PackedFileError: if a code is invalid, a scale is negative, or a value is NaN, infinite or too large.
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
                f"{name} holds the value {max(-low, high):g}; a packed file holds at most {LARGEST:,.0f}. "
                "The file is damaged; download or write it again."
            )
        if name.endswith("activation.range") and tensor[0] > tensor[1]:
            raise PackedFileError(
                f"{name} ends at {low:g}, below its start {high:g}. The file is damaged; download or write it again."
            )
