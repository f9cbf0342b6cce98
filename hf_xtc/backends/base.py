"""The interface of a backend and the table of backends."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from hf_xtc.packing import PackedWeight
from hf_xtc.quantizers import ActivationQuantizer
from hf_xtc.registry import Registry
from hf_xtc.specs import QuantSpec

BACKENDS = Registry("backend")


class Backend(ABC):
    """One way to multiply by packed weights."""

    @classmethod
    @abstractmethod
    def is_available(cls) -> bool:
        """Whether this machine can run it; raises nothing and costs nothing."""

    @abstractmethod
    def supports(self, spec: QuantSpec, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether it serves weights of `spec` with inputs of that device and dtype."""

    @abstractmethod
    def linear(
        self, x: Tensor, weight: PackedWeight, bias: Tensor | None, activation: ActivationQuantizer | None
    ) -> Tensor:
        """`activation(x) @ weight.T + bias`.

        Args:
            x (`torch.Tensor` of shape `(..., columns)`): Float input, not yet quantized.
            weight (`PackedWeight`): `rows x columns`.
            bias (`torch.Tensor` of shape `(rows,)`, *optional*).
            activation (`ActivationQuantizer`, *optional*): Fake-quantizer of the input.

        Returns:
            `torch.Tensor` of shape `(..., rows)`, in the dtype of `x`.
        """
