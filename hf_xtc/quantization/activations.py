"""Activations on a few levels: the input of a quantized linear, in training as in integer inference.

Levels are whole numbers times a scale, taken from each token (dynamic) or from a range seen in training (static).
Formulas are those of DeepSpeed's `SymQuantizer`, `AsymQuantizer` and `QuantAct`, except that a constant row comes back
exactly (there: NaN). The gradient is the identity.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hf_xtc.native.fake_quantization import fake_tokens, serves
from hf_xtc.quantization.quantizers import guard_zero, largest_magnitude
from hf_xtc.quantization.specs import ActivationSpec


class Levels(NamedTuple):
    """Activations as whole numbers: `x ~ scale * values + offset`.

    Args:
        values (`torch.Tensor` of shape `(..., features)`, float32): Whole numbers of `bits` bits, signed if symmetric.
        scale (`torch.Tensor` of shape `(..., 1)` or `()`): Per token, or one for all.
        offset (`torch.Tensor`, *optional*): Likewise; what 0 stands for in asymmetric levels.
    """

    values: Tensor
    scale: Tensor
    offset: Tensor | None


def _symmetric_levels(x: Tensor, low: Tensor | None, high: Tensor | None, bits: int) -> Levels:
    """Step `2 max|x| / 2**bits`, values in `[-2**(bits-1), 2**(bits-1) - 1]`."""
    given = low is not None and high is not None
    largest = torch.maximum(low.abs(), high.abs()) if given else largest_magnitude(x)  # type: ignore[union-attr]
    half = 2 ** (bits - 1)
    scale = largest / float(half)
    return Levels((x / guard_zero(scale)).round_().clamp_(-half, half - 1), scale, None)


def _asymmetric_levels(x: Tensor, low: Tensor | None, high: Tensor | None, bits: int) -> Levels:
    """Step `(max - min) / 2**bits`, values in `[0, 2**bits - 1]` from the step nearest to the minimum."""
    low = x.amin(-1, keepdim=True) if low is None else low
    high = x.amax(-1, keepdim=True) if high is None else high
    scale = (high - low) / 2**bits
    # A constant row has no range (NaN in DeepSpeed); with its own magnitude as the step it comes back exactly.
    scale = torch.where(scale == 0, guard_zero(low.abs()), scale)
    zero = (low / scale).round_() * scale
    return Levels(((x - zero) / scale).round_().clamp_(0, 2**bits - 1), scale, zero)


def activation_levels(values: Tensor, low: Tensor | None, high: Tensor | None, spec: ActivationSpec) -> Levels:
    """Whole numbers of activations; `low` and `high` are given (static) or taken per token (dynamic)."""
    levels = _symmetric_levels if spec.symmetric else _asymmetric_levels
    return levels(values.float(), low, high, spec.bits)


class _FakeQuantizeActivation(torch.autograd.Function):
    """The values of `activation_levels` (the native operator computes the same bits), with an identity gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, low: Tensor | None, high: Tensor | None, spec: ActivationSpec) -> Tensor:
        if low is None and spec.symmetric and serves(values, (torch.float32, torch.bfloat16)):
            return fake_tokens(values, spec.bits)
        whole, scale, offset = activation_levels(values, low, high, spec)
        fake = whole.mul_(scale)
        return (fake if offset is None else fake.add_(offset)).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return grads[0], None, None, None


def _of_all_processes(batch: Tensor) -> list[Tensor]:
    """This tensor of each process, in the order of their ranks."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return [batch]
    batches = [torch.empty_like(batch) for _ in range(dist.get_world_size())]
    dist.all_gather(batches, batch)
    return batches


class ActivationQuantizer(nn.Module):
    """Fake-quantizes the input of a linear; a static range lives in the buffer `range`, `(2,)` float32: low, high.

    A static range follows the batches of training as an exponential average with momentum 0.95, starts at the first
    batch, and is frozen in eval mode (DeepSpeed `QuantAct`). Before a delayed start of quantization it follows them
    too (`observe`). A range never seen yet leaves activations in float, here as in the packed file. The range stays
    float32 under `.half()` and `.to(dtype)`: in bfloat16 the average would stand still.

    Where `torch.distributed` runs, the range follows the batches of all processes in the order of their ranks, and
    each process quantizes with the range as it was after its own: as if one process had seen them one after the other.
    So all must train the layer equally often, as with `SyncBatchNorm`; in eval mode they need not.

    Args:
        spec (`ActivationSpec`): Bits, symmetry and calibration.
    """

    momentum = 0.95
    range: Tensor

    def __init__(self, spec: ActivationSpec):
        super().__init__()
        self.spec = spec
        if spec.calibration == "static":
            self.register_buffer("range", torch.zeros(2, dtype=torch.float32))

    def extra_repr(self) -> str:
        kind = "symmetric" if self.spec.symmetric else "asymmetric"
        return f"bits={self.spec.bits}, {kind}, {self.spec.calibration}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ActivationQuantizer":
        seen = self.range if self.spec.calibration == "static" else None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if seen is not None and self.range.dtype != seen.dtype:
            self.range = seen.to(self.range.device)
        return self

    def observe(self, values: Tensor) -> None:
        """Updates a static range with `values` of shape `(..., features)`, without quantizing them.

        Called while training does not quantize activations yet: evaluation does, and so does a file packed at that
        step, and both need the range. Quantizing per token until there is one would score a model that no file holds.
        """
        if self.spec.calibration == "static" and values.numel():
            self._observe(values)

    def _observe(self, values: Tensor) -> Tensor:
        """Follows a batch of each process; the range to quantize this process's with."""
        seen = []
        for batch in _of_all_processes(torch.stack(torch.aminmax(values.detach())).float()):
            unseen = self.range[0] == self.range[1]
            self.range.copy_(torch.where(unseen, batch, self.range * self.momentum + batch * (1 - self.momentum)))
            seen.append(self.range.clone())
        return seen[dist.get_rank() if len(seen) > 1 else 0]

    def has_range(self) -> bool:
        """Whether activations can be quantized: always per token; with a static range, once one was seen."""
        return self.spec.calibration == "dynamic" or bool(self.range[0] != self.range[1])

    def levels(self, values: Tensor) -> Levels:
        """`values` of shape `(..., features)` as whole numbers: `forward` returns what they stand for."""
        if self.spec.calibration == "dynamic":
            return activation_levels(values, None, None, self.spec)
        return activation_levels(values, self.range[0], self.range[1], self.spec)

    def forward(self, values: Tensor) -> Tensor:
        """`values` of shape `(..., features)` on at most `2**bits` levels; same shape and dtype."""
        if self.spec.calibration == "dynamic":
            dynamic: Tensor = _FakeQuantizeActivation.apply(values, None, None, self.spec)
            return dynamic
        seen = self._observe(values) if self.training and values.numel() else self.range
        low, high = seen[0], seen[1]
        static: Tensor = _FakeQuantizeActivation.apply(values, low, high, self.spec)
        return torch.where(low == high, values, static)
