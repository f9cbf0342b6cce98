"""The reference backend: decode, then `F.linear`. Any device and dtype, differentiable in its input and bias."""

import torch
from torch import Tensor

from hf_xtc.backends.base import BACKENDS, Backend, Prepared, Product


@BACKENDS.register("reference")
class ReferenceBackend(Backend):
    """Decodes the whole weight at every call: exact, but slow for small batches."""

    differentiable = True

    @classmethod
    def is_available(cls) -> bool:
        return True

    def supports(self, product: Product) -> bool:
        return True

    def prepare(self, product: Product) -> Prepared:
        weight, bias, activation, _ = product

        def linear(x: Tensor) -> Tensor:
            values = x if activation is None else activation(x)
            return torch.nn.functional.linear(values, weight.decode().to(x.dtype), bias)

        return linear
