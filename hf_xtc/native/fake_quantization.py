"""Fake-quantization in one pass by the native operator: bitwise equal to PyTorch's operations, in a third of the time.

Callers check `serves` first, and use PyTorch's operations otherwise. Sums are always PyTorch's, since their bits
depend on the order of summation.
"""

import ctypes
from collections.abc import Iterator

import torch
from torch import Tensor

from hf_xtc.native.library import Float, Int, Long, Pointer, variant
from hf_xtc.native.operators import call, is_readable, operator

# `Kind` in csrc/kernels.hpp.
_BINARY, _TERNARY, _KEPT = 0, 1, 2
_TOKENS = {torch.float32: 3, torch.bfloat16: 4}

# Counts are float32, as PyTorch's sums of ones are: exact up to here.
_LARGEST_COUNT = 2**24

# Numbers in a block, per thread: three such tensors fit a core's cache.
_BLOCK = 2**16

# PyTorch splits a single sum over threads from this length on.
_LONG_SUM = 2**15


class _Fake(ctypes.Structure):
    _fields_ = [
        ("kind", Int),
        ("half", Float),
        *[(name, Long) for name in ("groups", "size")],
        *[(name, Pointer) for name in ("values", "threshold", "scale", "count", "out")],
    ]


def serves(values: Tensor, dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> bool:
    """Whether the native operator fake-quantizes `values`: contiguous numbers that it can read, without gradients."""
    return (
        is_readable(values)
        and values.dtype in dtypes
        and values.is_contiguous()
        and values.numel() > 0
        and values.dim() > 0
        and values.shape[-1] <= _LARGEST_COUNT
        and not (values.requires_grad and torch.is_grad_enabled())
        and variant() is not None
    )


def _run(kind: int, values: Tensor, out: Tensor, half: float = 0, **rows: Tensor) -> None:
    """Calls the operator on `values` of shape `(..., size)`; `out` has that shape too, and `rows` a number a row."""
    tensors = (values, out, *rows.values())
    dtype = torch.bfloat16 if kind == _TOKENS[torch.bfloat16] else torch.float32
    size = values.shape[-1] if values.dim() else 0
    count = values.numel() // size if size else 0
    if (
        not 0 < size <= _LARGEST_COUNT
        or out.shape != values.shape
        or any(numbers.numel() != count for numbers in rows.values())
        or any(t.dtype != dtype or not t.is_contiguous() for t in tensors)
    ):
        got = ", ".join(f"{t.dtype} {tuple(t.shape)}" for t in tensors)
        raise RuntimeError(f"The native operator fake-quantizes contiguous {dtype} tensors; it got {got}.")
    addresses = {name: numbers.data_ptr() for name, numbers in rows.items()}
    fake = _Fake(kind, half, count, size, values.data_ptr(), out=out.data_ptr(), **addresses)
    call("xtc_fake", ctypes.byref(fake))


def cache_blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Splits tensors of one shape `(rows, size)` into blocks of rows that stay in the cache from pass to pass.

    A row's sum has the same bits in any block, unless PyTorch splits it over threads; then all rows form one block.
    """
    rows, size = tensors[0].shape
    step = _BLOCK * torch.get_num_threads() // size if size < _LONG_SUM else rows
    return zip(*(tensor.split(step) for tensor in tensors), strict=True)


@operator("fake_binary(Tensor(a!) out, Tensor groups, Tensor scale) -> ()", fake=lambda out, groups, scale: None)
def fake_binary_into(out: Tensor, groups: Tensor, scale: Tensor) -> None:
    """Writes `BinaryQuantizer`'s `decode(encode(groups, scale), scale)` to `out`."""
    _run(_BINARY, groups, out, scale=scale)


@operator(
    "fake_ternary(Tensor(a!) out, Tensor groups, Tensor threshold, Tensor scale) -> ()",
    fake=lambda out, groups, threshold, scale: None,
)
def fake_ternary_into(out: Tensor, groups: Tensor, threshold: Tensor, scale: Tensor) -> None:
    """Writes `scale` above the threshold, `-scale` below its negative and zeros in between to `out`."""
    _run(_TERNARY, groups, out, threshold=threshold, scale=scale)


@operator(
    "keep_beyond_(Tensor(a!) magnitude, Tensor threshold) -> Tensor",
    fake=lambda magnitude, threshold: torch.empty_like(threshold),
)
def keep_beyond_(magnitude: Tensor, threshold: Tensor) -> Tensor:
    """Multiplies magnitudes up to their group's threshold by 0, in place; returns how many are above it."""
    count = torch.empty_like(threshold)
    _run(_KEPT, magnitude, magnitude, threshold=threshold, count=count)
    return count


@operator("fake_tokens(Tensor values, int bits) -> Tensor", fake=lambda values, bits: torch.empty_like(values))
def fake_tokens(values: Tensor, bits: int) -> Tensor:
    """Fake-quantizes float32 or bfloat16 values to the `2**bits` symmetric levels of each token."""
    if values.dtype not in _TOKENS or not 1 <= bits <= 16:
        raise RuntimeError(f"fake_tokens takes float32 or bfloat16 and 1 to 16 bits, not {values.dtype} and {bits}.")
    out = torch.empty_like(values)
    _run(_TOKENS[values.dtype], values, out, half=2 ** (bits - 1))
    return out
