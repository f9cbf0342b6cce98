"""Adversarial training: each batch a second time, its word embeddings moved to where its loss grows fastest.

Miyato, Dai and Goodfellow, "Adversarial Training Methods for Semi-Supervised Text Classification" (ICLR 2017), section
3: the loss is J(w) + J(w + epsilon g / ||g||), where g is the gradient of J; here with regard to the rows of the
embedding matrix that the batch reads, and ||g|| is the Euclidean norm of all of them together.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_xtc.errors import XTCError
from hf_xtc.modeling.sharded_weights import is_sharded
from hf_xtc.training.packing_trainer import PackingTrainer

MIYATO = "Miyato et al., Adversarial Training Methods for Semi-Supervised Text Classification, ICLR 2017"


@contextmanager
def moved(weight: Tensor, gradient: Tensor, epsilon: float) -> Iterator[None]:
    """A matrix whose rows are moved along a gradient while the context lasts, and then have their very bits back.

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


class AdversarialTrainer(PackingTrainer):
    """A Trainer that learns each batch a second time with moved word embeddings, if `args.adversarial_epsilon` asks.

    Both gradients are added; the logged loss is that of the embeddings as they are.
    """

    #: Whether the running step is one with moved embeddings.
    moving = False

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """As in Trainer; with `adversarial_epsilon` two forward and backward passes.

        Raises:
            XTCError: if the word embeddings are frozen, or spread over processes.
        """
        epsilon = self.args.adversarial_epsilon
        if not epsilon:
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
            return loss
        weight = self._embeddings(model)
        before = None if weight.grad is None else weight.grad.clone()  # of earlier parts of an accumulated batch
        with self.accelerator.no_sync(model):  # its own rows' gradient; the second pass sums both over processes
            loss = super().training_step(model, inputs, num_items_in_batch)
        gradient = weight.grad if before is None else weight.grad - before
        assert gradient is not None
        self.moving = True
        try:
            with moved(weight, gradient, epsilon):
                super().training_step(model, inputs, num_items_in_batch)
        finally:
            self.moving = False
        return loss

    def _embeddings(self, model: nn.Module) -> Any:
        unwrapped: Any = self.accelerator.unwrap_model(model)
        weight = unwrapped.get_input_embeddings().weight
        if self.is_deepspeed_enabled or is_sharded(unwrapped):
            raise XTCError(
                "adversarial_epsilon moves word embeddings that one process holds whole; with DeepSpeed or FSDP leave "
                "it at 0."
            )
        if not weight.requires_grad:
            raise XTCError("adversarial_epsilon moves the word embeddings, which are frozen here; leave it at 0.")
        return weight
