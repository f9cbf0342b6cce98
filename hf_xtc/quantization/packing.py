"""Packs codes into bytes; specification of the packed file format, version 1.

A packed checkpoint is a `config.json` with `state: "packed"` and the object `xtc` (`format_version`, `recipe`,
`layer_map`, `provenance`), and safetensors in which a quantized module at `PATH` has

    PATH.weight_packed     uint8, (rows, packed_width(columns, levels))
    PATH.weight_scale      recipe.scale_dtype, QuantSpec.scale_shape(rows, columns)
    PATH.bias              recipe.rest_dtype, if it has one
    PATH.activation.range  float32, (2,): low and high, if the recipe calibrates activations statically

and every other tensor is stored in `recipe.rest_dtype` under its name in transformers. An output layer tied to the
word embedding is not stored. Codes are decoded by `quantizers`: `(code - 1/2) * 2 * scale` (binary), `(code - 1) *
scale` (ternary), `(code - levels / 2) * scale` (int4, int8).

Each row of codes is packed and padded separately. A byte holds `codes_per_byte(levels)` codes as the digits of one
number in base `levels`, element 0 the lowest digit:

    byte = sum(code[i] * levels ** i  for i in range(codes_per_byte))

| levels | codes per byte | bits per code | a byte of                    |
|--------|----------------|---------------|------------------------------|
| 2      | 8              | 1             | bits, element 0 the lowest   |
| 3      | 5              | 1.6           | trits; bytes 243-255 unused  |
| 16     | 2              | 4             | nibbles, element 0 the lower |
| 256    | 1              | 8             | one code                     |

The last byte of a row is padded with codes 0.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_xtc.errors import PackedFileError, StateError, XTCError
from hf_xtc.quantization.quantizers import decode_weight, encode_weight, get_quantizer
from hf_xtc.quantization.specs import QuantSpec

FORMAT_VERSION = 1
# Largest magnitude of a scale, bias or other float in a packed model, so that no logit of a BERT overflows float32.
LARGEST = 2.0**18

_PER_BYTE = {2: 8, 3: 5, 16: 2, 256: 1}


def codes_per_byte(levels: int) -> int:
    """Number of codes below `levels` that one byte holds.

    Raises:
        XTCError: if no width is defined for `levels`.
    """
    if levels not in _PER_BYTE:
        raise XTCError(f"No packed width is defined for {levels} levels; there is one for {sorted(_PER_BYTE)}.")
    return _PER_BYTE[levels]


def packed_width(columns: int, levels: int) -> int:
    """Bytes of a packed row of `columns` codes: `ceil(columns / codes_per_byte)`."""
    return -(-columns // codes_per_byte(levels))


def _digit_weights(levels: int, device: torch.device) -> Tensor:
    return levels ** torch.arange(codes_per_byte(levels), device=device)


def pack(codes: Tensor, levels: int) -> Tensor:
    """Packs codes along the last axis, element 0 in the lowest digit of byte 0.

    Args:
        codes (`torch.Tensor` of shape `(rows, columns)`, `uint8`): Values below `levels`.
        levels (`int`): 2, 3, 16 or 256.

    Returns:
        `torch.Tensor` of shape `(rows, packed_width(columns, levels))`, `uint8`.

    Raises:
        XTCError: if `levels` has no packed width, or a code is not below it.

    Example:
        >>> pack(torch.tensor([[1, 0, 1, 0, 1, 1, 0, 1]], dtype=torch.uint8), levels=2)
        tensor([[181]], dtype=torch.uint8)
    """
    rows, columns = codes.shape
    per_byte, width = codes_per_byte(levels), packed_width(columns, levels)
    if codes.numel() and int(codes.max()) >= levels:
        raise XTCError(f"Code {int(codes.max())} does not fit {levels} levels (0-{levels - 1}).")
    padded = torch.nn.functional.pad(codes, (0, width * per_byte - columns)).view(rows, width, per_byte)
    weights = _digit_weights(levels, codes.device)
    packed = torch.zeros(rows, width, dtype=torch.int16, device=codes.device)
    for digit in range(per_byte):
        packed += padded[:, :, digit] * weights[digit].to(torch.int16)
    return packed.to(torch.uint8)


def unpack(packed: Tensor, columns: int, levels: int) -> Tensor:
    """Codes of packed rows; the reverse of `pack`.

    Args:
        packed (`torch.Tensor` of shape `(rows, packed_width(columns, levels))`, `uint8`).
        columns (`int`): Codes per row.
        levels (`int`): 2, 3, 16 or 256.

    Returns:
        `torch.Tensor` of shape `(rows, columns)`, `uint8`.

    Raises:
        XTCError: if the width of `packed` is not `packed_width(columns, levels)`.
    """
    if packed.shape[-1] != packed_width(columns, levels):
        raise XTCError(
            f"Packed rows of {packed.shape[-1]} bytes cannot hold {columns} codes of {levels} levels, "
            f"which take {packed_width(columns, levels)} bytes."
        )
    if levels == 256:
        return packed
    # One gather of a whole byte's codes from a 256-row table is several times faster than dividing digit by digit.
    table = torch.arange(256, device=packed.device)[:, None] // _digit_weights(levels, packed.device) % levels
    digits = torch.nn.functional.embedding(packed.int(), table.to(torch.uint8))
    return digits.flatten(-2)[..., :columns]


class PackedWeight(NamedTuple):
    """A quantized weight as stored in the file.

    Args:
        packed (`torch.Tensor` of shape `(rows, packed_width(columns, levels))`, `uint8`).
        scale (`torch.Tensor` of shape `spec.scale_shape(rows, columns)`, `spec.scale_dtype`).
        columns (`int`): Codes per row.
        spec (`QuantSpec`): How codes and scale are decoded.
    """

    packed: Tensor
    scale: Tensor
    columns: int
    spec: QuantSpec

    def decode(self) -> Tensor:
        """The weight in float32, `(rows, columns)`, bitwise equal to the fake-quantized weight in training."""
        levels = get_quantizer(self.spec.quantizer).levels
        return decode_weight(unpack(self.packed, self.columns, levels), self.scale, self.spec)

    def rows(self, index: Tensor) -> "PackedWeight":
        """The rows at `index` (`torch.Tensor` of shape `(n,)`, int64 or int32), still packed.

        Raises:
            IndexError, RuntimeError: as `torch.nn.functional.embedding`: no negative numbers, no masks.
        """
        scale = self.scale if self.spec.granularity == "per_tensor" else F.embedding(index, self.scale)
        return PackedWeight(F.embedding(index, self.packed), scale, self.columns, self.spec)


def pack_weight(weight: Tensor, spec: QuantSpec, name: str = "weight") -> PackedWeight:
    """Encodes and packs a latent weight.

    Args:
        weight (`torch.Tensor` of shape `(rows, columns)`, any float dtype): Left unchanged.
        spec (`QuantSpec`): Quantizer and granularity.
        name (`str`): Name of the weight in error messages.

    Raises:
        StateError: if the weight holds NaN or infinity, or a scale overflows `spec.scale_dtype` or exceeds `LARGEST`.
        RecipeError: if the group size does not divide the columns.
    """
    bad = int((~torch.isfinite(weight)).sum())
    if bad:
        raise StateError(
            f"{name} holds {bad} NaN or infinite values of {weight.numel()}, which cannot be packed. "
            "Go back to an earlier checkpoint and train with a lower learning rate."
        )
    codes, scale = encode_weight(weight, spec)
    if not bool(torch.isfinite(scale).all()):
        raise StateError(f"A scale of {name} overflows {spec.scale_dtype}. Use scale_dtype='float32'.")
    if scale.numel() and float(scale.max()) > LARGEST:
        raise StateError(
            f"A scale of {name} is {float(scale.max()):g}, but a packed file holds at most {LARGEST:,.0f}. "
            "Go back to an earlier checkpoint and train with a lower learning rate."
        )
    return PackedWeight(pack(codes, get_quantizer(spec.quantizer).levels), scale, weight.shape[1], spec)


def check_packed(packed: Tensor, scale: Tensor, levels: int, name: str) -> None:
    """Checks the values of loaded codes and scales, whose shapes and dtypes are checked already.

    Raises:
        PackedFileError: if a byte is one that `pack` never writes, or a scale is negative, NaN or infinite.
    """
    largest = levels ** codes_per_byte(levels) - 1
    if packed.numel() and int(packed.max()) > largest:
        raise PackedFileError(
            f"{name}.weight_packed holds the byte {int(packed.max())}, but bytes of {levels}-level codes end at "
            f"{largest}. The file is damaged; download or write it again."
        )
    if not bool((torch.isfinite(scale) & (scale >= 0)).all()):
        raise PackedFileError(
            f"{name}.weight_scale holds a negative, NaN or infinite scale. "
            "The file is damaged; download or write it again."
        )
