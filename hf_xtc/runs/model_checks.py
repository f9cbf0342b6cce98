"""Checks of the model that a command is given, before anything is trained or written.

Each raises one sentence that names the model, the values and what to do. transformers accepts what is refused here: it
draws missing weights at random, and makes a tokenizer of special tokens where a folder has none.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch

from hf_xtc.errors import XTCError

logger = logging.getLogger(__name__)


def check_config(config: Any, name: str, *, fresh_head: bool) -> None:
    """Checks what a configuration says of its head, and completes a missing `label2id`.

    Args:
        config (`PreTrainedConfig`), name (`str`): Of the model, and its name for messages.
        fresh_head (`bool`): Whether a new head replaces the model's own, whose labels are then of no interest.

    Raises:
        XTCError: if the model is quantized, has no layers, or its two maps of labels disagree or are none.
    """
    layers = getattr(config, "num_hidden_layers", 1)
    if not isinstance(layers, int) or layers < 1:
        raise XTCError(f"The config.json of {name} says num_hidden_layers={layers}. Restore that of the weights.")
    if getattr(config, "quantization_config", None) is not None:
        raise XTCError(
            f"{name} is quantized already (quantization_config in its config.json). Name its float original."
        )
    if fresh_head:
        return
    _check_labels(config, name)


def _check_labels(config: Any, name: str) -> None:
    names: Mapping[int, str] = config.id2label or {}
    ids = {} if config.label2id is None else config.label2id
    for field, values, kinds in (("id2label", names, str), ("label2id", ids, int | float)):
        if not isinstance(values, Mapping) or not all(isinstance(value, kinds) for value in values.values()):
            what = "numbers to names" if field == "id2label" else "names to numbers"
            raise XTCError(f"The config.json of {name} has {field}={values!r:.200}, which does not map {what}.")
    if config.label2id is None:
        config.label2id = {label: i for i, label in names.items()}
    if {label: int(i) for i, label in names.items()} != {label: int(i) for label, i in config.label2id.items()}:
        raise XTCError(
            f"The config.json of {name} contradicts itself: id2label is {dict(names)}, label2id is "
            f"{dict(config.label2id)}. Correct the one that is wrong."
        )
    if len(set(names.values())) < len(names):
        raise XTCError(f"The config.json of {name} gives two classes one name: id2label is {dict(names)}. Correct it.")


def check_tokenizer(tokenizer: Any, config: Any, name: str, max_length: int) -> None:
    """Checks that a tokenizer has a vocabulary, that the model has an embedding for each token, and a padding token.

    Args:
        tokenizer (`PreTrainedTokenizerBase`), config (`PreTrainedConfig`), name (`str`): Of one model.
        max_length (`int`): Tokens of the longest row.

    Raises:
        XTCError: if they do not fit together.
    """
    ids, rows = tokenizer.get_vocab(), getattr(config, "vocab_size", None)
    if set(ids) <= set(tokenizer.all_special_tokens):
        raise XTCError(
            f"{name} has no vocabulary: its tokenizer knows {len(ids)} special tokens and no word, and the model has "
            f"embeddings for {rows} tokens. Save the model's tokenizer in its folder."
        )
    if rows is not None and max(ids.values()) >= rows:
        raise XTCError(
            f"The tokenizer of {name} has token ids up to {max(ids.values())}, but the model has embeddings for "
            f"{rows} tokens. Save the tokenizer it was trained with, or resize its embeddings."
        )
    if tokenizer.pad_token is None:
        raise XTCError(
            f"The tokenizer of {name} has no padding token, which batches need. Set tokenizer.pad_token and save it."
        )
    try:
        encoded = tokenizer("\N{SNOWMAN}")["input_ids"]
    except Exception as error:  # of the tokenizers library
        raise XTCError(f"The tokenizer of {name} fails on a word that it does not know: {error}.") from error
    if tokenizer.cls_token is not None and tokenizer.cls_token_id not in encoded:
        raise XTCError(
            f"The tokenizer of {name} does not put {tokenizer.cls_token} before a text, which the model was trained "
            "with. Save the tokenizer it was trained with."
        )
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and max_length > positions:
        raise XTCError(
            f"max_length is {max_length}, but {name} has positions for {positions} tokens. Pass --max_length "
            f"{positions}."
        )


def check_finite(model: Any, name: str) -> None:
    """Raises `XTCError` if a parameter of a model holds NaN or infinite values."""
    for key, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise XTCError(f"The weights of {name} hold NaN or infinite values (in {key}). Download or save it again.")


def check_weights(model: Any, info: Mapping[str, Any], name: str, *, fresh_head: bool, own_head: bool = False) -> None:
    """Checks that a checkpoint has all the weights of its model.

    Args:
        model (`PreTrainedModel`), name (`str`): As loaded, and its name for messages.
        info (`dict`): What `from_pretrained(..., output_loading_info=True)` returns with it.
        fresh_head (`bool`): Whether the head may be new: it will be trained.
        own_head (`bool`): Whether the head comes from elsewhere, such as an adapter's file.

    Raises:
        XTCError: if weights are missing or have other shapes, and transformers has drawn them at random.
    """
    missing = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    shapes = {key: [tuple(shape) for shape in sizes] for key, *sizes in info["mismatched_keys"]}
    body = f"{model.base_model_prefix}."
    head = {key for key in missing if not key.startswith(body) or key.startswith(f"{body}pooler.")}
    if fresh_head or own_head:
        if head and fresh_head:
            logger.info("The head of %s is new: %s.", name, ", ".join(sorted(head)))
        missing -= head
    if other := sorted(missing & shapes.keys()):
        stored, described = shapes[other[0]]
        raise XTCError(
            f"The weights of {name} do not fit its config.json: {other[0]} has the shape {stored}, and is to have "
            f"{described}. Download or save both again."
        )
    if missing and missing <= head:
        raise XTCError(
            f"{name} has no trained head: {', '.join(sorted(missing))} are not in its weights. Name a fine-tuned "
            "model, or train the head with hf-xtc compress --fine_tune."
        )
    if missing:
        raise XTCError(
            f"The weights of {name} lack {len(missing)} tensors of {type(model).__name__} (first: {min(missing)}). "
            "Download or save it again."
        )
