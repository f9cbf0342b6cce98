"""The interface of a backend and the registry of backends."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hf_xtc.quantization.activations import ActivationQuantizer
from hf_xtc.quantization.packing import PackedWeight
from hf_xtc.registry import Registry

BACKENDS = Registry("backend")
"""Name -> `Backend`; `@BACKENDS.register("name")` adds one. `set_backend` and `XTC_BACKEND` take these names."""

Prepared = Callable[[Tensor], Tensor]


class Product(NamedTuple):
    """The operands of a packed linear, which computes `activation(x) @ weight.T + bias`.

    Args:
        weight (`PackedWeight`): `rows x columns`.
        bias (`torch.Tensor` of shape `(rows,)`, *optional*).
        activation (`ActivationQuantizer`, *optional*): Fake-quantizer of the input.
        dtype (`torch.dtype`): Dtype of the input and the result.
    """

    weight: PackedWeight
    bias: Tensor | None
    activation: ActivationQuantizer | None
    dtype: torch.dtype


class Backend(ABC):
    """Multiplies by packed weights. It holds no state: the layer keeps the function that `prepare` returns."""

    differentiable = False
    """Whether gradients flow through its products."""

    @classmethod
    @abstractmethod
    def is_available(cls) -> bool:
        """Whether this machine can run it; must be cheap and must not raise."""

    @abstractmethod
    def supports(self, product: Product) -> bool:
        """Whether it can compute the product of these weights, activations, device and dtype."""

    @abstractmethod
    def prepare(self, product: Product) -> Prepared:
        """A function from `x` of shape `(..., columns)` to the product, `(..., rows)` in the dtype of `x`.

        It is kept until an operand changes, so it may hold the weight in another form.
        """

    def linear(
        self, x: Tensor, weight: PackedWeight, bias: Tensor | None, activation: ActivationQuantizer | None
    ) -> Tensor:
        """`activation(x) @ weight.T + bias`, prepared for this call only."""
        return self.prepare(Product(weight, bias, activation, x.dtype))(x)
