"""The straight-through estimator: values are quantized, and the gradient passes unchanged (Bengio et al. 2013)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _StraightThrough(torch.autograd.Function):
    """`compute(values, *settings)`, whose gradient with respect to `values` is the identity."""

    @staticmethod
    def forward(ctx: Any, compute: Callable[..., Tensor], values: Tensor, *settings: Any) -> Tensor:
        ctx.settings = len(settings)
        return compute(values, *settings)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, grads[0], *[None] * ctx.settings


class _Transformable(_StraightThrough):
    """The same in the form that `torch.func` needs, which PyTorch calls more slowly: it binds arguments each time."""

    generate_vmap_rule = True

    @staticmethod
    def forward(compute: Callable[..., Tensor], values: Tensor, *settings: Any) -> Tensor:  # type: ignore[override]
        return compute(values, *settings)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.settings = len(inputs) - 2


def straight_through(compute: Callable[..., Tensor], values: Tensor, *settings: Any) -> Tensor:
    """`compute(values, *settings)`, with the identity as its gradient.

    Args:
        compute (`Callable`): Returns a tensor of the shape and dtype of `values`.
        values (`torch.Tensor`): The only argument that gets a gradient.
    """
    function = _Transformable if torch._C._are_functorch_transforms_active() else _StraightThrough
    result: Tensor = function.apply(compute, values, *settings)
    return result
