"""Fake-quantization in one pass, by the native operator: the bits of PyTorch's operations, in a third of their time.

Callers ask `serves` first, and keep PyTorch's operations for all else. Sums stay with PyTorch in any case, since their
bits depend on the order of summation.
"""

import ctypes
from collections.abc import Iterator

import torch
from torch import Tensor

from hf_xtc.native.library import Float, Int, Long, Pointer, call, is_readable, variant

_BINARY, _TERNARY, _KEPT = 0, 1, 2
_TOKENS = {torch.float32: 3, torch.bfloat16: 4}

# Counts are float32, as PyTorch's sums of ones are: exact up to here.
_LARGEST_COUNT = 2**24

# Numbers of a block: three such tensors fit a core's cache.
_BLOCK = 2**16

# PyTorch shares a single sum out among threads from here on.
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


def _run(kind: int, values: Tensor, out: Tensor, half: float = 0, **pointers: Tensor) -> None:
    size = values.shape[-1]
    addresses = {name: tensor.data_ptr() for name, tensor in pointers.items()}
    fake = _Fake(kind, half, values.numel() // size, size, values.data_ptr(), out=out.data_ptr(), **addresses)
    call("xtc_fake", ctypes.byref(fake))


def cache_blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one shape `(rows, size)`, some rows at a time, so that they stay in the cache from pass to pass.

    The sum of a row has the same bits among whichever rows, unless it is shared out; then all rows come at once.
    """
    rows, size = tensors[0].shape
    step = _BLOCK * torch.get_num_threads() // size if size < _LONG_SUM else rows
    return zip(*(tensor.split(step) for tensor in tensors), strict=True)


def fake_binary_into(out: Tensor, groups: Tensor, scale: Tensor) -> None:
    """`BinaryQuantizer`'s `decode(encode(groups, scale), scale)`."""
    _run(_BINARY, groups, out, scale=scale)


def fake_ternary_into(out: Tensor, groups: Tensor, threshold: Tensor, scale: Tensor) -> None:
    """`scale` beyond the threshold, `-scale` below its negative, zeros between."""
    _run(_TERNARY, groups, out, threshold=threshold, scale=scale)


def keep_beyond_(magnitude: Tensor, threshold: Tensor) -> Tensor:
    """Multiplies magnitudes up to the threshold of their group by 0, in place; returns the number of the others."""
    count = torch.empty_like(threshold)
    _run(_KEPT, magnitude, magnitude, threshold=threshold, count=count)
    return count


def fake_tokens(values: Tensor, bits: int) -> Tensor:
    """Float32 or bfloat16 values on the symmetric levels of each token."""
    out = torch.empty_like(values)
    _run(_TOKENS[values.dtype], values, out, half=2 ** (bits - 1))
    return out
