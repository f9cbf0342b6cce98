"""Quantization of activations: the inputs of quantized linears, in training and in integer inference.

Levels are integers times a scale, which comes from each token (dynamic) or from a range tracked in training (static).
Formulas are those of DeepSpeed's `SymQuantizer`, `AsymQuantizer` and `QuantAct`, except that a constant row is
reproduced exactly (NaN in DeepSpeed). The gradient is the identity (straight-through estimator).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hf_xtc.native.fake_quantization import fake_tokens, serves
from hf_xtc.quantization.quantizers import guard_zero, largest_magnitude
from hf_xtc.quantization.specs import ActivationSpec
from hf_xtc.quantization.straight_through import straight_through


class Levels(NamedTuple):
    """Activations as integers: `x ~ scale * values + offset`.

    Args:
        values (`torch.Tensor` of shape `(..., features)`, float32): Integers of `bits` bits, signed if symmetric.
        scale (`torch.Tensor` of shape `(..., 1)` or `()`): Per token, or one for all.
        offset (`torch.Tensor`, *optional*): Of the shape of `scale`; what the integer 0 decodes to if asymmetric.
    """

    values: Tensor
    scale: Tensor
    offset: Tensor | None


def _symmetric_levels(x: Tensor, low: Tensor | None, high: Tensor | None, bits: int) -> Levels:
    """Scale `2 max|x| / 2**bits`, integers in `[-2**(bits-1), 2**(bits-1) - 1]`."""
    static = low is not None and high is not None
    largest = torch.maximum(low.abs(), high.abs()) if static else largest_magnitude(x)  # type: ignore[union-attr]
    half = 2 ** (bits - 1)
    scale = largest / float(half)
    return Levels((x / guard_zero(scale)).round_().clamp_(-half, half - 1), scale, None)


def _asymmetric_levels(x: Tensor, low: Tensor | None, high: Tensor | None, bits: int) -> Levels:
    """Scale `(max - min) / 2**bits`, integers in `[0, 2**bits - 1]`, offset `min` rounded to the scale."""
    low = x.amin(-1, keepdim=True) if low is None else low
    high = x.amax(-1, keepdim=True) if high is None else high
    scale = (high - low) / 2**bits
    # A constant row has no range (NaN in DeepSpeed); with its magnitude as the scale it is reproduced exactly.
    scale = torch.where(scale == 0, guard_zero(low.abs()), scale)
    offset = (low / scale).round_() * scale
    return Levels(((x - offset) / scale).round_().clamp_(0, 2**bits - 1), scale, offset)


def activation_levels(values: Tensor, low: Tensor | None, high: Tensor | None, spec: ActivationSpec) -> Levels:
    """Activations as integers; their range is `low` to `high` (static) or, if `None`, that of each token (dynamic)."""
    levels = _symmetric_levels if spec.symmetric else _asymmetric_levels
    return levels(values.float(), low, high, spec.bits)


def _fake(values: Tensor, low: Tensor | None, high: Tensor | None, spec: ActivationSpec) -> Tensor:
    """What `activation_levels` decode to; the native operator is bitwise equal."""
    if low is None and spec.symmetric and serves(values, (torch.float32, torch.bfloat16)):
        tokens: Tensor = fake_tokens(values, spec.bits)
        return tokens
    integers, scale, offset = activation_levels(values, low, high, spec)
    fake = integers.mul_(scale)
    return (fake if offset is None else fake.add_(offset)).to(values.dtype)


def _all_gather(batch: Tensor) -> list[Tensor]:
    """This tensor from every process, in rank order."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return [batch]
    batches = [torch.empty_like(batch) for _ in range(dist.get_world_size())]
    dist.all_gather(batches, batch)
    return batches


def _in_backward() -> bool:
    """Whether a backward pass is running: a forward within it recomputes a checkpointed layer."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class ActivationQuantizer(nn.Module):
    """Fake-quantizes the input of a linear; a static range is the buffer `range`, `(2,)` float32: low, high.

    A static range is an exponential moving average over training batches with momentum 0.95, starts at the first
    batch, and is frozen in eval mode (DeepSpeed `QuantAct`). It is also updated before a delayed start of quantization
    (`observe`). Until the first batch, activations stay in float, here as in the packed file. The range stays float32
    under `.half()` and `.to(dtype)`: in bfloat16 the average would stop changing.

    With `torch.distributed`, the range is updated with the batches of all processes in rank order, and each process
    quantizes with the range after its own batch, as if a single process had run them one after the other. So every
    process must run the layer equally often in training, as with `SyncBatchNorm`; in eval mode it need not.

    Args:
        spec (`ActivationSpec`): Bits, symmetry and calibration.
    """

    momentum = 0.95
    range: Tensor

    def __init__(self, spec: ActivationSpec):
        super().__init__()
        self.spec = spec
        self._last_range: Tensor | None = None
        if spec.calibration == "static":
            self.register_buffer("range", torch.zeros(2, dtype=torch.float32))

    def extra_repr(self) -> str:
        kind = "symmetric" if self.spec.symmetric else "asymmetric"
        return f"bits={self.spec.bits}, {kind}, {self.spec.calibration}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ActivationQuantizer":
        before = self.range if self.spec.calibration == "static" else None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if before is not None and self.range.dtype != before.dtype:
            self.range = before.to(self.range.device)
        return self

    def observe(self, values: Tensor) -> None:
        """Updates a static range with `values` of shape `(..., features)`, without quantizing them.

        Called while training does not quantize activations yet, because evaluation and packing at that step do,
        and both need the range.
        """
        if self.spec.calibration == "static" and values.numel():
            self._observe(values)

    def _observe(self, values: Tensor) -> Tensor:
        """Updates the range with the batch of each process; returns the range for this process's batch.

        Gradient checkpointing runs the layer again in the backward pass, with the same batch: the range is then that
        of the forward pass.
        """
        if _in_backward() and self._last_range is not None:
            return self._last_range
        ranges = []
        for batch in _all_gather(torch.stack(torch.aminmax(values.detach())).float()):
            unset = self.range[0] == self.range[1]
            self.range.copy_(torch.where(unset, batch, self.range * self.momentum + batch * (1 - self.momentum)))
            ranges.append(self.range.clone())
        self._last_range = ranges[dist.get_rank() if len(ranges) > 1 else 0]
        return self._last_range

    def has_range(self) -> bool:
        """Whether activations can be quantized: always if dynamic; if static, once a batch was seen."""
        return self.spec.calibration == "dynamic" or bool(self.range[0] != self.range[1])

    def state(self) -> tuple[object, ...]:
        """What `has_range` and `levels` depend on, except the numbers of a static range."""
        spec = self.spec
        return (self, spec) if spec.calibration == "dynamic" else (self, spec, self.training, self.has_range())

    def levels(self, values: Tensor) -> Levels:
        """`values` of shape `(..., features)` as integers: `forward` returns the values they decode to."""
        if self.spec.calibration == "dynamic":
            return activation_levels(values, None, None, self.spec)
        return activation_levels(values, self.range[0], self.range[1], self.spec)

    def forward(self, values: Tensor) -> Tensor:
        """Fake-quantizes `values` of shape `(..., features)` to at most `2**bits` levels; same shape and dtype."""
        if self.spec.calibration == "dynamic":
            return straight_through(_fake, values, None, None, self.spec)
        bounds = self._observe(values) if self.training and values.numel() else self.range
        low, high = bounds[0], bounds[1]
        return torch.where(low == high, values, straight_through(_fake, values, low, high, self.spec))
