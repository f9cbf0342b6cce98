"""Weight quantizers: weights to codes and scales and back, the same in training and in the file.

A quantizer is three pure functions, `scale`, `encode` and `decode`. Training uses `decode(encode(weight))`, the file
holds `encode(weight)`; so the fake-quantized weight is bitwise *equal* to the decoded one. Formulas are those of
DeepSpeed's `compression/utils.py` (XTC's reference code), except that `sign(0) = +1` (three values do not fit one
bit), that an all-zero group has scale 0 and decodes to zeros (NaN in DeepSpeed), and that scales are rounded to the
dtype they are stored in. The gradient is the identity straight-through estimator of the reference: no clipping mask.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from hf_xtc.native.fake_quantization import cache_blocks, fake_binary_into, fake_ternary_into, keep_beyond_, serves
from hf_xtc.quantization.specs import QUANTIZERS, QuantSpec
from hf_xtc.quantization.straight_through import straight_through


def guard_zero(scale: Tensor) -> Tensor:
    """`scale` with zeros replaced by ones, so that division by it gives no NaN."""
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def largest_magnitude(values: Tensor) -> Tensor:
    """`max|x|` over the last axis, kept as an axis of size 1; 20 times faster on CPU than `vector_norm(ord=inf)`."""
    # Of 0 and -0 the maximum may be either, but a scale must not be -0.
    return torch.maximum(values.amax(-1, keepdim=True), -values.amin(-1, keepdim=True)).abs()


class Quantizer(ABC):
    """Encodes groups of weights as small integers, each group with one scale.

    `levels` is the number of codes, `bits` the bits of one code (`packing` stores a ternary code in 1.6).
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
        """Values of codes: the shape of `codes`, in the dtype of `scale`, which broadcasts against `codes`."""

    def fake(self, groups: Tensor, scale_dtype: torch.dtype) -> Tensor:
        """Fake-quantizes: `decode(encode(groups))` in float32, with the scale rounded to `scale_dtype`.

        A subclass may compute it in fewer passes if the result is bitwise equal.
        """
        scale = self.scale(groups).to(scale_dtype).float()
        return self.decode(self.encode(groups, scale), scale)


class _FusedQuantizer(Quantizer):
    """A quantizer that fake-quantizes with the native operator, in one pass after the scale.

    A subclass that overrides `scale`, `encode` or `decode` but not `_fake_into` does not use the native operator.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "_fake_into" not in vars(cls) and not vars(cls).keys().isdisjoint(("scale", "encode", "decode")):
            cls.fake = Quantizer.fake  # type: ignore[method-assign]

    def fake(self, groups: Tensor, scale_dtype: torch.dtype) -> Tensor:
        if not serves(groups):
            return super().fake(groups, scale_dtype)
        fake = torch.empty_like(groups)
        for out, block in cache_blocks(fake, groups):
            self._fake_into(out, block, scale_dtype)
        return fake

    @abstractmethod
    def _fake_into(self, out: Tensor, groups: Tensor, scale_dtype: torch.dtype) -> None:
        """Writes `decode(encode(groups))` to `out`."""


@QUANTIZERS.register("binary")
class BinaryQuantizer(_FusedQuantizer):
    """`sign(w) * mean|w|`, the least-squares binary approximation (Rastegari et al. 2016, eq. 6)."""

    levels = 2
    citation = "Rastegari et al., XNOR-Net, ECCV 2016"

    def scale(self, groups: Tensor) -> Tensor:
        return groups.abs().mean(1, keepdim=True)

    def encode(self, groups: Tensor, scale: Tensor) -> Tensor:
        return (groups >= 0).to(torch.uint8)

    def decode(self, codes: Tensor, scale: Tensor) -> Tensor:
        return codes.to(scale.dtype).sub_(0.5).mul_(2 * scale)

    def _fake_into(self, out: Tensor, groups: Tensor, scale_dtype: torch.dtype) -> None:
        fake_binary_into(out, groups, self.scale(groups).to(scale_dtype).float())


@QUANTIZERS.register("ternary")
class TernaryQuantizer(_FusedQuantizer):
    """Ternary weight networks (Li et al. 2016, eq. 5-6): threshold `0.7 mean|w|`, scale the mean `|w|` above it."""

    levels = 3
    citation = "Li et al., Ternary Weight Networks, 2016"

    def _magnitude(self, groups: Tensor) -> tuple[Tensor, Tensor]:
        magnitude = groups.abs()
        return magnitude, 0.7 * magnitude.mean(1, keepdim=True)

    def _mean_above(self, magnitude: Tensor, threshold: Tensor) -> Tensor:
        """Mean of the magnitudes above the threshold; overwrites `magnitude`."""
        if serves(magnitude):
            count: Tensor = keep_beyond_(magnitude, threshold)
        else:
            kept = (magnitude > threshold).to(magnitude.dtype)  # float: a bool times a float is 40 times slower on CPU
            magnitude, count = magnitude.mul_(kept), kept.sum(1, keepdim=True)
        return magnitude.sum(1, keepdim=True) / count.clamp_(min=1)

    def scale(self, groups: Tensor) -> Tensor:
        return self._mean_above(*self._magnitude(groups))

    def encode(self, groups: Tensor, scale: Tensor) -> Tensor:
        _, threshold = self._magnitude(groups)
        return ((groups > threshold).to(torch.int8) - (groups < -threshold).to(torch.int8) + 1).to(torch.uint8)

    def decode(self, codes: Tensor, scale: Tensor) -> Tensor:
        return codes.to(scale.dtype).sub_(1).mul_(scale)

    def _fake_into(self, out: Tensor, groups: Tensor, scale_dtype: torch.dtype) -> None:
        magnitude, threshold = self._magnitude(groups)
        scale = self._mean_above(magnitude, threshold).to(scale_dtype).float()
        fake_ternary_into(out, groups, threshold, scale)


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
        XTCError: if there is none (lists those registered).
    """
    quantizer: Quantizer = QUANTIZERS[name]()
    return quantizer


def code_integers(codes: Tensor, name: str) -> Tensor:
    """The integers that codes of a quantizer stand for, `int8` of the shape of `codes`: a weight is `scale * integer`.

    Example:
        >>> code_integers(torch.tensor([0, 1, 2], dtype=torch.uint8), "ternary")
        tensor([-1,  0,  1], dtype=torch.int8)
    """
    return get_quantizer(name).decode(codes, torch.ones(1, device=codes.device)).to(torch.int8)


def _groups(weight: Tensor, spec: QuantSpec) -> Tensor:
    """The weight as groups that share a scale, float32 of shape `(num_groups, size)`."""
    rows, columns = weight.shape
    size = weight.numel() if spec.granularity == "per_tensor" else columns // spec.scale_shape(rows, columns)[1]
    return weight.detach().float().reshape(-1, size)


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
    quantizer, groups = get_quantizer(spec.quantizer), _groups(weight, spec)
    scale = quantizer.scale(groups).to(getattr(torch, spec.scale_dtype))
    codes = quantizer.encode(groups, scale.float())
    return codes.view(weight.shape), scale.view(spec.scale_shape(*weight.shape))


def decode_weight(codes: Tensor, scale: Tensor, spec: QuantSpec) -> Tensor:
    """Values of codes, in float32.

    Args:
        codes (`torch.Tensor` of shape `(rows, columns)`, `uint8`).
        scale (`torch.Tensor` of shape `spec.scale_shape(rows, columns)`).
        spec (`QuantSpec`): Quantizer and granularity.
    """
    rows, columns = codes.shape
    quantizer = get_quantizer(spec.quantizer)
    if spec.granularity != "per_group":
        return quantizer.decode(codes, scale.float())
    groups = codes.reshape(-1, columns // scale.shape[1])
    return quantizer.decode(groups, scale.float().reshape(-1, 1)).view(rows, columns)


def _fake(weight: Tensor, spec: QuantSpec) -> Tensor:
    fake = get_quantizer(spec.quantizer).fake(_groups(weight, spec), getattr(torch, spec.scale_dtype))
    return fake.view(weight.shape).to(weight.dtype)


def fake_quantize(weight: Tensor, spec: QuantSpec) -> Tensor:
    """`decode(encode(weight))` with an identity straight-through gradient: no clipping mask, none through the scale.

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
    return straight_through(_fake, weight, spec)
