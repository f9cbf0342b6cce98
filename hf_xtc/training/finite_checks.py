"""Checks that stop a training when a loss or a weight is NaN or infinite."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from hf_xtc.errors import StateError
from hf_xtc.files.writing import last_checkpoint
from hf_xtc.modeling.sharded_weights import local_part


def require_finite_losses(losses: Mapping[str, Tensor], step: int, learning_rate: float, folder: str | None) -> None:
    """Raises if a loss is NaN or infinite; earlier checkpoints are kept.

    Args:
        losses (`dict[str, torch.Tensor]`): Scalar by name of term.
        step (`int`): Optimizer step, counted from 1.
        learning_rate (`float`): The peak rate of the training, for the message.
        folder (`str`, *optional*): The output folder, which holds the checkpoints.

    Raises:
        StateError: if a loss is NaN or infinite; names the terms, the step and the last checkpoint.
    """
    finite = torch.isfinite(torch.stack(list(losses.values()))).tolist()
    bad = [name for name, good in zip(losses, finite, strict=True) if not good]
    if bad:
        saved = None if folder is None else last_checkpoint(folder)
        kept = f"The last checkpoint is {saved}." if saved else "No checkpoint had been saved."
        raise StateError(
            f"The term {', '.join(bad)} is NaN or infinite at step {step}; training stopped. {kept} Use a lower "
            f"learning_rate than {learning_rate:g}, or train without fp16."
        )


def require_finite_weights(weights: Iterable[Tensor], step: int, learning_rate: float) -> None:
    """Raises if a weight is NaN or infinite; called before a checkpoint is written.

    Each process checks its own part of sharded weights.

    Raises:
        StateError: if a weight is NaN or infinite; names the step.
    """
    if not bool(torch.isfinite(torch.stack([local_part(weight).detach().sum() for weight in weights])).all()):
        raise StateError(
            f"Weights are NaN or infinite after step {step}; training stopped, and earlier checkpoints are kept. "
            f"Use a lower learning_rate than {learning_rate:g}."
        )
