"""Weights that are spread over processes (DeepSpeed ZeRO-3, FSDP)."""

from typing import Any

from torch import Tensor, nn


def local_part(weight: Any) -> Tensor:
    """The part of a weight that this process holds: all of it, unless it is sharded (DeepSpeed's ZeRO-3, FSDP)."""
    part = getattr(weight, "ds_tensor", weight)
    local: Tensor = part.to_local() if hasattr(part, "to_local") else part
    return local


def is_sharded(model: nn.Module) -> bool:
    """Whether the weights of a model are sharded over processes."""
    return any(local_part(weight) is not weight for weight in model.parameters())
