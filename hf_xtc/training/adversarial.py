"""Adversarial training: a second forward and backward pass over each batch, with perturbed word embeddings.

Miyato, Dai and Goodfellow, "Adversarial Training Methods for Semi-Supervised Text Classification" (ICLR 2017), section
3: the loss is J(w) + J(w + epsilon g / ||g||), where w are the rows of the embedding matrix that the batch reads, g is
the gradient of J with respect to them, and ||g|| is the Euclidean norm over all of these rows together.
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
    """Context manager that adds `epsilon g / ||g||` to a matrix and, on exit, restores it bitwise.

    Args:
        weight (`torch.Tensor`): `(rows, columns)`, any float dtype; changed in place.
        gradient (`torch.Tensor`): g, of the same shape. If its norm is 0, NaN or infinite, nothing is added.
        epsilon (`float`): Euclidean norm of what is added, over all rows together.
    """
    rows = gradient.ne(0).any(dim=1).nonzero().squeeze(1)
    row_gradients, before = gradient[rows], weight.detach()[rows]
    norm = torch.linalg.vector_norm(row_gradients.float())
    usable = norm.isfinite() & (norm > 0)
    perturbation = torch.where(usable, epsilon / norm * row_gradients, torch.zeros_like(row_gradients))
    with torch.no_grad():
        weight[rows] = before + perturbation.to(weight.dtype)
    try:
        yield
    finally:
        with torch.no_grad():
            weight[rows] = before


def embedding_weight(model: Any, *, deepspeed: bool) -> Any:
    """Returns the weight of a model's word embeddings, for `moved`.

    Args:
        model (`PreTrainedModel`): Unwrapped.
        deepspeed (`bool`): Whether DeepSpeed trains it.

    Raises:
        XTCError: if the word embeddings are frozen, or sharded over processes.
    """
    weight = model.get_input_embeddings().weight
    if deepspeed or is_sharded(model):
        raise XTCError(
            "adversarial_epsilon needs word embeddings that are not sharded; it does not work with DeepSpeed or FSDP. "
            "Set it to 0."
        )
    if not weight.requires_grad:
        raise XTCError("adversarial_epsilon needs the gradient of the word embeddings, which are frozen. Set it to 0.")
    return weight
