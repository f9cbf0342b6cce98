"""The interface of a backend and the table of backends."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hf_xtc.quantization.activations import ActivationQuantizer
from hf_xtc.quantization.packing import PackedWeight
from hf_xtc.registry import Registry

BACKENDS = Registry("backend")
"""Name -> `Backend`; `@BACKENDS.register("name")` adds one. `set_backend` and `XTC_BACKEND` name them."""

Prepared = Callable[[Tensor], Tensor]


class Product(NamedTuple):
    """What a packed linear computes: `activation(x) @ weight.T + bias`.

    Args:
        weight (`PackedWeight`): `rows x columns`.
        bias (`torch.Tensor` of shape `(rows,)`, *optional*).
        activation (`ActivationQuantizer`, *optional*): Fake-quantizer of the input.
        dtype (`torch.dtype`): Of the input and the result.
    """

    weight: PackedWeight
    bias: Tensor | None
    activation: ActivationQuantizer | None
    dtype: torch.dtype


class Backend(ABC):
    """One way to multiply by packed weights. It holds no state: what it prepares belongs to the layer."""

    differentiable = False
    """Whether gradients pass through its products."""

    @classmethod
    @abstractmethod
    def is_available(cls) -> bool:
        """Whether this machine can run it; raises nothing and costs nothing."""

    @abstractmethod
    def supports(self, product: Product) -> bool:
        """Whether it serves these weights, activations, device and dtype."""

    @abstractmethod
    def prepare(self, product: Product) -> Prepared:
        """A function from `x`, `(..., columns)`, to `(..., rows)`, in the dtype of `x`; kept for as long as no operand
        changes, so it may hold the weight in another form."""

    def linear(
        self, x: Tensor, weight: PackedWeight, bias: Tensor | None, activation: ActivationQuantizer | None
    ) -> Tensor:
        """`activation(x) @ weight.T + bias`, prepared for this call alone."""
        return self.prepare(Product(weight, bias, activation, x.dtype))(x)
