"""Ways of quantizing in training that were tried beside those of the package."""

from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from hf_xtc.modeling.layers import XTCLinear
from hf_xtc.quantization.quantizers import BinaryQuantizer


class CentredBinaryQuantizer(BinaryQuantizer):
    """`sign(w - mean(w)) * mean|w|` (BiT, Liu et al. 2022): the same codes and bytes, another threshold."""

    citation = "Liu et al., BiT: Robustly Binarized Multi-distilled Transformer, NeurIPS 2022"

    def encode(self, groups: Tensor, scale: Tensor) -> Tensor:
        return (groups >= groups.mean(1, keepdim=True)).view(torch.uint8)


class Freezing(TrainerCallback):
    """Freezes, from a share of the steps on, weights that kept changing sign (Liu et al., Quantization Variation).

    Args:
        start (`float`): Share of the steps.
        rate (`float`): Weights whose average of sign changes per step (momentum 0.99) is above it are frozen.
    """

    def __init__(self, start: float, rate: float):
        self.start, self.rate = start, rate
        self.signs: dict[str, Tensor] = {}
        self.changes: dict[str, Tensor] = {}
        self.frozen: dict[str, tuple[Tensor, Tensor]] = {}

    def __enter__(self) -> "Freezing":
        return self

    def __exit__(self, *error: Any) -> None: ...

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        for name, module in model.named_modules():
            if not isinstance(module, XTCLinear):
                continue
            signs = module.weight >= 0
            if name in self.signs:
                changed = (signs != self.signs[name]).to(torch.float32)
                self.changes[name] = changed if name not in self.changes else self.changes[name].lerp_(changed, 0.01)
            self.signs[name] = signs
            if state.global_step == round(self.start * state.max_steps):
                self.frozen[name] = (self.changes[name] > self.rate, module.weight.clone())
            if name in self.frozen:
                mask, values = self.frozen[name]
                module.weight.copy_(torch.where(mask, values, module.weight))
