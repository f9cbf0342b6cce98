"""The product of packed codes on a GPU: Triton kernels as the PyTorch operator `hf_xtc::gpu_linear`.

PyTorch's builds for GPUs bring Triton; nothing is compiled before the first product. The kernels read binary codes as
they are in the file, and ternary ones as 2 bits, laid out once for a weight.
"""

import logging
import os
from functools import cache
from types import ModuleType
from typing import NamedTuple
from weakref import ReferenceType, ref

import torch
from torch import Tensor

from hf_xtc.native.encoder import Codes, version_of
from hf_xtc.native.operators import operator

logger = logging.getLogger(__name__)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Levels of a weight -> bits of a code that the kernel reads.
BITS = {2: 1, 3: 2}


class Blocks(NamedTuple):
    """The tile of a program and its resources.

    Args:
        tokens, rows, inner (`int`): Rows and columns of a tile of the result, and columns multiplied at a time; powers
            of two, at least 16, 16 and 32.
        warps, stages (`int`): Triton's `num_warps` and `num_stages`.
    """

    tokens: int
    rows: int
    inner: int
    warps: int
    stages: int


def default_blocks(tokens: int) -> Blocks:
    """The tile for a number of tokens. Chosen by the sizes of registers and shared memory; not measured yet."""
    if tokens <= 16:
        return Blocks(16, 32, 128, 4, 4)
    if tokens <= 64:
        return Blocks(64, 32, 128, 4, 4)
    if tokens <= 1024:
        return Blocks(64, 64, 128, 4, 4)
    return Blocks(128, 128, 128, 8, 3)


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU (`TRITON_INTERPRET=1`)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def kernels() -> ModuleType | None:
    """The module of the kernels, or `None` where Triton is not installed or cannot be imported."""
    try:
        from hf_xtc.native import gpu_kernels
    except ImportError as error:
        logger.info("The Triton kernels are not used: %s.", error)
        return None
    return gpu_kernels


def runs_on(device: torch.device) -> bool:
    """Whether the kernels run on tensors of that device."""
    return (device.type == "cuda" or (device.type == "cpu" and interpreted())) and kernels() is not None


# While compiling, a constant; importing Triton cannot be traced.
runs_on._dynamo_marked_constant = True  # type: ignore[attr-defined]


class _Fields(NamedTuple):
    """Codes of 2 bits and the packed trits that they were made from, by a weak reference."""

    packed: ReferenceType[Tensor]
    key: tuple[int, int]
    fields: Tensor


# By `id` of the packed codes, as long as these live.
_FIELDS: dict[int, _Fields] = {}


def two_bit_fields(packed: Tensor, columns: int) -> Tensor:
    """Trits of a file as fields of 2 bits, element 0 in the lowest.

    Args:
        packed (`torch.Tensor` of shape `(rows, ceil(columns / 5))`, `uint8`): Five trits a byte.
        columns (`int`): Trits in a row.

    Returns:
        `torch.Tensor` of shape `(rows, ceil(columns / 4))`, `uint8`; unused fields are 0.
    """
    trits = packed.int()[:, :, None] // 3 ** torch.arange(5, device=packed.device) % 3
    trits = torch.nn.functional.pad(trits.flatten(1)[:, :columns], (0, -columns % 4))
    shifts = 2 * torch.arange(4, device=packed.device)
    fields: Tensor = (trits.unflatten(1, (-1, 4)) << shifts).sum(-1)
    return fields.to(torch.uint8)


def _readable_codes(packed: Tensor, columns: int, levels: int) -> Tensor:
    """The codes as the kernel reads them; ternary ones are laid out at their first use, and again when they change."""
    if levels == 2:
        return packed.contiguous()
    key, name = (version_of(packed), columns), id(packed)
    found = _FIELDS.get(name)
    if found is None or found.packed() is not packed or found.key != key:
        fields = two_bit_fields(packed, columns)
        found = _FIELDS[name] = _Fields(ref(packed, lambda _: _FIELDS.pop(name, None)), key, fields)
    return found.fields


def forget_fields(packed: Tensor) -> None:
    """Lays packed codes out again when they are used next."""
    _FIELDS.pop(id(packed), None)


def _check(x: Tensor, codes: Codes) -> None:
    """Raises a RuntimeError unless the kernels can read these tensors."""
    codes.check()
    if codes.levels not in BITS:
        raise RuntimeError(f"The Triton kernel multiplies codes of {sorted(BITS)} levels; it got {codes.levels}.")
    if x.dtype not in DTYPES or x.dim() == 0 or x.shape[-1] != codes.columns:
        raise RuntimeError(
            f"The Triton kernel multiplies rows of {codes.columns} numbers in float32, float16 or bfloat16; it got "
            f"{x.dtype} of shape {tuple(x.shape)}."
        )
    floats = [tensor for tensor in (codes.scale, codes.bias) if tensor is not None]
    if any(tensor.dtype not in DTYPES for tensor in floats):
        raise RuntimeError(
            "The Triton kernel reads scales and biases in float32, float16 or bfloat16; it got "
            f"{' and '.join(str(tensor.dtype) for tensor in floats)}."
        )
    devices = {str(tensor.device) for tensor in (x, codes.packed, *floats)}
    if len(devices) > 1:
        raise RuntimeError(f"Expected all tensors to be on the same device, but they are on {sorted(devices)}.")


def _linear_like(x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, columns: int, levels: int) -> Tensor:
    _check(x, Codes(packed, scale, bias, columns, levels))
    return x.new_empty(*x.shape[:-1], packed.shape[0])


@operator(
    "gpu_linear(Tensor x, Tensor packed, Tensor scale, Tensor? bias, int columns, int levels) -> Tensor",
    fake=_linear_like,
    devices=("CUDA", "CPU"),
)
def gpu_linear(x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, columns: int, levels: int) -> Tensor:
    """`x @ weight.T + bias` for a packed weight: `x` on 8-bit symmetric levels per token, exact integer sums.

    Bitwise equal to the `int8` backend's result on the same device.

    Args:
        x (`torch.Tensor` of shape `(..., columns)`): float32, float16 or bfloat16; on a GPU, as are the others, or on
            the CPU with Triton's interpreter.
        packed, scale, bias, columns, levels: As in `Codes`, with 2 or 3 levels. What is laid out of ternary codes is
            kept as long as `packed` lives.

    Returns:
        `torch.Tensor` of shape `(..., rows)`, in the dtype of `x`.

    Raises:
        RuntimeError: if a shape, dtype or device is another, or Triton is missing.
    """
    codes = Codes(packed, scale, bias, columns, levels)
    _check(x, codes)
    flat = x.detach().reshape(-1, columns)
    return multiply(flat, codes, default_blocks(len(flat))).view(*x.shape[:-1], packed.shape[0])


def multiply(x: Tensor, codes: Codes, blocks: Blocks) -> Tensor:
    """What `gpu_linear` computes, by tiles of a given size, of tensors that were checked.

    Args:
        x (`torch.Tensor` of shape `(tokens, columns)`).

    Returns:
        `torch.Tensor` of shape `(tokens, rows)`, in the dtype of `x`.

    Raises:
        RuntimeError: if the kernels do not run on the device of `x`.
    """
    triton_kernels = kernels()
    if triton_kernels is None or not runs_on(x.device):
        raise RuntimeError(
            f"The Triton kernel needs a GPU and the package triton; the tensors are on {x.device}. Use another "
            "backend: model.set_backend('int8')."
        )
    packed, scale, bias, columns, levels = codes
    tokens, rows = len(x), len(packed)
    out = x.new_empty(tokens, rows)
    if not out.numel():
        return out
    bits = BITS[levels]
    fields = _readable_codes(packed, columns, levels)
    width = -(-columns // blocks.inner) * blocks.inner
    values = torch.empty(tokens, width, dtype=torch.int8, device=x.device)
    scales = torch.empty(tokens, dtype=torch.float32, device=x.device)
    x, steps = x.contiguous(), scale.detach().contiguous()
    biases = None if bias is None else bias.detach().contiguous()
    with torch.cuda.device_of(x):  # Triton launches on the current device
        triton_kernels.quantize_rows[(tokens,)](x, values, scales, columns, width, BLOCK=_block(width))
        # Without fused multiply-adds, whose rounding is another.
        triton_kernels.multiply_codes[(-(-tokens // blocks.tokens), -(-rows // blocks.rows))](
            *(values, scales, fields, steps, biases if biases is not None else steps, out),
            *(tokens, rows, width, fields.shape[1], int(steps.numel() > 1)),
            BITS=bits,
            BIAS=biases is not None,
            TOKENS=blocks.tokens,
            ROWS=blocks.rows,
            INNER=blocks.inner,
            num_warps=blocks.warps,
            num_stages=blocks.stages,
            enable_fp_fusion=False,
        )
    return out


def _block(width: int) -> int:
    """Columns that a program quantizes at a time: a power of two."""
    return min(4096, 1 << (width - 1).bit_length())
