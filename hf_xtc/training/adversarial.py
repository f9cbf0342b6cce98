"""Adversarial training: each batch a second time, its word embeddings moved to where its loss grows fastest.

Miyato, Dai and Goodfellow, "Adversarial Training Methods for Semi-Supervised Text Classification" (ICLR 2017), section
3: the loss is J(w) + J(w + epsilon g / ||g||), where g is the gradient of J; here with respect to the rows of the
embedding matrix that the batch reads, and ||g|| is the Euclidean norm of all of them together.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hf_xtc.errors import XTCError
from hf_xtc.modeling.sharded_weights import is_sharded

MIYATO = "Miyato et al., Adversarial Training Methods for Semi-Supervised Text Classification, ICLR 2017"


@contextmanager
def moved(weight: Tensor, gradient: Tensor, epsilon: float) -> Iterator[None]:
    """Moves the rows of a matrix along a gradient while the context lasts; afterwards they are bitwise what they were.

    Args:
        weight (`torch.Tensor`): `(rows, columns)`, any float dtype; changed in place.
        gradient (`torch.Tensor`): Of the same shape. One that is zero, NaN or infinite moves nothing.
        epsilon (`float`): Euclidean length of the move, of all rows together.
    """
    rows = gradient.ne(0).any(dim=1).nonzero().squeeze(1)
    steepest, before = gradient[rows], weight.detach()[rows]
    length = torch.linalg.vector_norm(steepest.float())
    known = length.isfinite() & (length > 0)
    move = torch.where(known, epsilon / length * steepest, torch.zeros_like(steepest))
    with torch.no_grad():
        weight[rows] = before + move.to(weight.dtype)
    try:
        yield
    finally:
        with torch.no_grad():
            weight[rows] = before


def embedding_weight(model: Any, *, deepspeed: bool) -> Any:
    """The weight of a model's word embeddings, which `moved` may move.

    Args:
        model (`PreTrainedModel`): Not wrapped.
        deepspeed (`bool`): Whether DeepSpeed trains it.

    Raises:
        XTCError: if the word embeddings are frozen, or sharded over processes.
    """
    weight = model.get_input_embeddings().weight
    if deepspeed or is_sharded(model):
        raise XTCError(
            "adversarial_epsilon moves word embeddings that one process holds whole; with DeepSpeed or FSDP leave "
            "it at 0."
        )
    if not weight.requires_grad:
        raise XTCError("adversarial_epsilon moves the word embeddings, which are frozen here; leave it at 0.")
    return weight
