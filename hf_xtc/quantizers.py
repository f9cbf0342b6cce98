"""Values <-> codes <-> scales: the numerics of training and of the file alike.

A quantizer is three pure functions, `scale`, `encode` and `decode`. Training sees `decode(encode(weight))`, the file
holds `encode(weight)`; so the fake-quantized weight *equals* the packed weight, bit for bit. Formulas are those of
DeepSpeed's `compression/utils.py` (XTC's reference code), except that `sign(0) = +1` (three values do not fit one
bit), that an all-zero group has scale 0 and decodes to zeros (there: NaN), and that scales are rounded to the type
they are stored in. The gradient is the identity straight-through estimator of the reference: no clipping mask.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_xtc.specs import QUANTIZERS, ActivationSpec, QuantSpec


def guard_zero(scale: Tensor) -> Tensor:
    """`scale` with zeros replaced by one, so that dividing by it yields no NaN."""
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def largest_magnitude(values: Tensor) -> Tensor:
    """`max|x|` over the last axis, kept as an axis of size 1; 20 times faster on CPU than `vector_norm(ord=inf)`."""
    return torch.maximum(values.amax(-1, keepdim=True), -values.amin(-1, keepdim=True))


class Quantizer(ABC):
    """One way to write a group of weights as small integers and a scale.

    `levels` is the number of codes, `bits` what a code needs alone (`packing` may store several more tightly).
    All methods are pure and take `groups` of shape `(num_groups, size)`, float32. Decoders convert codes to float
    first, then work in place: mixed-dtype arithmetic is 20 to 100 times slower on CPU.
    """

    levels: int
    citation: str = ""

    @property
    def bits(self) -> int:
        """Bits that one code needs when stored alone."""
        return (self.levels - 1).bit_length()

    @abstractmethod
    def scale(self, groups: Tensor) -> Tensor:
        """Scale of each group: `(num_groups, 1)`, non-negative, 0 for an all-zero group."""

    @abstractmethod
    def encode(self, groups: Tensor, scale: Tensor) -> Tensor:
        """Codes of each group: `(num_groups, size)`, `uint8`, below `levels`."""

    @abstractmethod
    def decode(self, codes: Tensor, scale: Tensor) -> Tensor:
        """Values of codes: the shape of `codes`, in the dtype of `scale` (which broadcasts against them)."""


@QUANTIZERS.register("binary")
class BinaryQuantizer(Quantizer):
    """`sign(w) * mean|w|`, the least-squares binary approximation (Rastegari et al. 2016, eq. 6)."""

    levels = 2
    citation = "Rastegari et al., XNOR-Net, ECCV 2016"

    def scale(self, groups: Tensor) -> Tensor:
        return groups.abs().mean(1, keepdim=True)

    def encode(self, groups: Tensor, scale: Tensor) -> Tensor:
        return (groups >= 0).view(torch.uint8)

    def decode(self, codes: Tensor, scale: Tensor) -> Tensor:
        return codes.to(scale.dtype).sub_(0.5).mul_(2 * scale)


@QUANTIZERS.register("ternary")
class TernaryQuantizer(Quantizer):
    """Ternary weight networks (Li et al. 2016, eq. 5-6): threshold `0.7 mean|w|`, scale the mean beyond it."""

    levels = 3
    citation = "Li et al., Ternary Weight Networks, 2016"

    def _magnitude(self, groups: Tensor) -> tuple[Tensor, Tensor]:
        magnitude = groups.abs()
        return magnitude, 0.7 * magnitude.mean(1, keepdim=True)

    def scale(self, groups: Tensor) -> Tensor:
        magnitude, threshold = self._magnitude(groups)
        kept = (magnitude > threshold).to(groups.dtype)  # float: a bool times a float is 40 times slower on CPU
        return magnitude.mul_(kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp_(min=1)

    def encode(self, groups: Tensor, scale: Tensor) -> Tensor:
        _, threshold = self._magnitude(groups)
        return ((groups > threshold).to(torch.int8) - (groups < -threshold).to(torch.int8) + 1).view(torch.uint8)

    def decode(self, codes: Tensor, scale: Tensor) -> Tensor:
        return codes.to(scale.dtype).sub_(1).mul_(scale)


class UniformQuantizer(Quantizer):
    """Symmetric uniform levels: step `2 max|w| / levels`, the positive end saturates (DeepSpeed `SymQuantizer`)."""

    def scale(self, groups: Tensor) -> Tensor:
        return 2 * largest_magnitude(groups) / self.levels

    def encode(self, groups: Tensor, scale: Tensor) -> Tensor:
        half = self.levels // 2
        return (groups / guard_zero(scale)).round_().clamp_(-half, half - 1).add_(half).to(torch.uint8)

    def decode(self, codes: Tensor, scale: Tensor) -> Tensor:
        return codes.to(scale.dtype).sub_(self.levels // 2).mul_(scale)


@QUANTIZERS.register("int8")
class Int8Quantizer(UniformQuantizer):
    """256 uniform levels."""

    levels = 256


@QUANTIZERS.register("int4")
class Int4Quantizer(UniformQuantizer):
    """16 uniform levels."""

    levels = 16


def get_quantizer(name: str) -> Quantizer:
    """The quantizer registered under `name`.

    Raises:
        XTCError: if there is none (names those there are).
    """
    quantizer: Quantizer = QUANTIZERS[name]()
    return quantizer


def encode_weight(weight: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """Codes and scale of a weight.

    Args:
        weight (`torch.Tensor` of shape `(rows, columns)`, any float dtype).
        spec (`QuantSpec`): Quantizer and granularity.

    Returns:
        codes, `uint8` of shape `(rows, columns)`, and scale, `spec.scale_dtype` of shape `spec.scale_shape(...)`.

    Raises:
        RecipeError: if the group size does not divide the columns.
    """
    rows, columns = weight.shape
    scale_shape = spec.scale_shape(rows, columns)
    quantizer = get_quantizer(spec.quantizer)
    size = weight.numel() if spec.granularity == "per_tensor" else columns // scale_shape[1]
    groups = weight.detach().float().reshape(-1, size)
    scale = quantizer.scale(groups).to(getattr(torch, spec.scale_dtype))
    codes = quantizer.encode(groups, scale.float())
    return codes.view(rows, columns), scale.view(scale_shape)


def decode_weight(codes: Tensor, scale: Tensor, spec: QuantSpec) -> Tensor:
    """Values of codes, in float32.

    Args:
        codes (`torch.Tensor` of shape `(rows, columns)`, `uint8`).
        scale (`torch.Tensor` of shape `spec.scale_shape(rows, columns)`; per-channel scales may carry any rows).
        spec (`QuantSpec`): Quantizer and granularity.
    """
    rows, columns = codes.shape
    quantizer = get_quantizer(spec.quantizer)
    if spec.granularity != "per_group":
        return quantizer.decode(codes, scale.float())
    groups = codes.reshape(-1, columns // scale.shape[1])
    return quantizer.decode(groups, scale.float().reshape(-1, 1)).view(rows, columns)


class _StraightThrough(torch.autograd.Function):
    """Passes the gradient of the fake-quantized weight to the latent weight unchanged (identity STE)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, spec: QuantSpec) -> Tensor:
        codes, scale = encode_weight(weight, spec)
        return decode_weight(codes, scale, spec).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def fake_quantize(weight: Tensor, spec: QuantSpec) -> Tensor:
    """`decode(encode(weight))` with the identity straight-through gradient: no mask, none through the scale.

    Args:
        weight (`torch.Tensor` of shape `(rows, columns)`, any float dtype): Latent weight; left unchanged.
        spec (`QuantSpec`): Quantizer and granularity.

    Returns:
        `torch.Tensor` of the same shape and dtype: exactly what the packed file will decode to.

    Raises:
        RecipeError: if the group size does not divide the columns.

    Example:
        >>> w = torch.tensor([[0.3, -0.1, 0.0, -0.2]])
        >>> fake_quantize(w, QuantSpec("binary", scale_dtype="float32"))
        tensor([[ 0.1500, -0.1500,  0.1500, -0.1500]])
    """
    fake: Tensor = _StraightThrough.apply(weight, spec)
    return fake


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
    """The values of `activation_levels`, with an identity gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, low: Tensor | None, high: Tensor | None, spec: ActivationSpec) -> Tensor:
        whole, scale, offset = activation_levels(values, low, high, spec)
        fake = whole.mul_(scale)
        return (fake if offset is None else fake.add_(offset)).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return grads[0], None, None, None


class ActivationQuantizer(nn.Module):
    """Fake-quantizes the input of a linear; a static range lives in the buffer `range`, `(2,)` float32: low, high.

    A static range follows the batches of training as an exponential average with momentum 0.95, starts at the first
    batch, and is frozen in eval mode (DeepSpeed `QuantAct`). A range never seen yet leaves activations in float. The
    range stays float32 under `.half()` and `.to(dtype)`: in bfloat16 the average would stand still.

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

    def _observe(self, values: Tensor) -> None:
        batch = torch.stack(torch.aminmax(values.detach())).float()
        unseen = self.range[0] == self.range[1]
        self.range.copy_(torch.where(unseen, batch, self.range * self.momentum + batch * (1 - self.momentum)))

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
        if self.training and values.numel():
            self._observe(values)
        low, high = self.range[0], self.range[1]
        static: Tensor = _FakeQuantizeActivation.apply(values, low, high, self.spec)
        return torch.where(low == high, values, static)
