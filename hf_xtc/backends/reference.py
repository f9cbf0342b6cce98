"""The reference backend: decode, then `F.linear`. Any device and dtype, differentiable in its input."""

import torch
from torch import Tensor

from hf_xtc.backends.base import BACKENDS, Backend
from hf_xtc.packing import PackedWeight
from hf_xtc.quantizers import ActivationQuantizer
from hf_xtc.specs import QuantSpec


@BACKENDS.register("reference")
class ReferenceBackend(Backend):
    """Decodes the whole weight at every call: exact, and as slow as it sounds for small batches."""

    @classmethod
    def is_available(cls) -> bool:
        return True

    def supports(self, spec: QuantSpec, device: torch.device, dtype: torch.dtype) -> bool:
        return True

    def linear(
        self, x: Tensor, weight: PackedWeight, bias: Tensor | None, activation: ActivationQuantizer | None
    ) -> Tensor:
        if activation is not None:
            x = activation(x)
        return torch.nn.functional.linear(x, weight.decode().to(x.dtype), bias)
