"""Triton kernels: rows on 8-bit levels, and their product with codes of 1 or 2 bits that are expanded in registers.

Importing this needs Triton, which PyTorch's builds for GPUs bring. `gpu.py` checks the tensors before it calls a
kernel. With `TRITON_INTERPRET=1` in the environment at import the kernels run on the CPU, slowly: so they are tested.
"""

import triton
import triton.language as tl

# 1.5 * 2**23: a float32 below 2**22 plus this, minus this, is rounded to the nearest integer, ties to even, as
# `torch.round` does. Triton has no such function that its interpreter runs.
_ROUNDER = tl.constexpr(12582912.0)


@triton.jit
def quantize_rows(x, values, scale, columns, width, BLOCK: tl.constexpr):
    """One row of `x` (`columns` numbers) to `width` int8 levels, zeros beyond `columns`, and its float32 scale.

    `scale = max|x| / 128` and `clamp(round(x / scale), -128, 127)`, bitwise as `quantization.activations` has them.
    A NaN or an infinity in the row makes its scale NaN, which reaches every number of the product.
    """
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros((BLOCK,), dtype=tl.float32)
    not_finite = tl.zeros((BLOCK,), dtype=tl.int32)
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        part = tl.load(x + row * columns + column, mask=column < columns, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(part))
        not_finite = tl.maximum(not_finite, 1 - (tl.abs(part) < float("inf")).to(tl.int32))
    step = tl.max(largest, axis=0) / 128.0  # a power of two: exact
    divisor = tl.where((step > 0.0) & (step < float("inf")), step, 1.0)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        part = tl.load(x + row * columns + column, mask=column < columns, other=0.0).to(tl.float32)
        level = tl.div_rn(part, tl.zeros((BLOCK,), dtype=tl.float32) + divisor)
        level = (level + _ROUNDER) - _ROUNDER
        level = tl.minimum(tl.maximum(level, -128.0), 127.0)
        tl.store(values + row * width + column, level.to(tl.int8), mask=column < width)
    tl.store(scale + row, tl.where(tl.max(not_finite, axis=0) > 0, float("nan"), step))


@triton.jit
def _integers(codes, BITS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Bytes of codes, `(ROWS, COLUMNS * BITS / 8)`, lowest bits first, as the int8 that they stand for."""
    shifts = (tl.arange(0, 8 // BITS) * BITS).to(tl.uint8)
    fields = (codes[:, :, None] >> shifts[None, None, :]) & ((1 << BITS) - 1)
    fields = tl.reshape(fields, (ROWS, COLUMNS)).to(tl.int8)
    if BITS == 1:
        return fields * 2 - 1
    return fields - 1


@triton.jit
def multiply_codes(
    values,
    scale,
    codes,
    step,
    bias,
    out,
    tokens,
    rows,
    width,
    row_bytes,
    step_stride,
    BITS: tl.constexpr,
    BIAS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    INNER: tl.constexpr,
):
    """A tile of `out[token, row] = sum(values[token] * integers[row]) * scale[token] * step[row] + bias[row]`.

    `values` is `(tokens, width)` int8 with zeros beyond the columns, `width` a multiple of `INNER`; `codes` is
    `(rows, row_bytes)` uint8. The sums are exact in int32; the rest is float32, in this order.
    """
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    # Tiles at the end read their last row again instead of masking, and do not store it.
    value_rows = values + tl.minimum(token, tokens - 1).to(tl.int64)[:, None] * width
    code_rows = codes + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * row_bytes
    column = tl.arange(0, INNER)[None, :]
    byte = tl.arange(0, INNER * BITS // 8)[None, :]
    sums = tl.zeros((TOKENS, ROWS), dtype=tl.int32)
    for block in range(0, width // INNER):
        left = tl.load(value_rows + block * INNER + column)
        at = block * (INNER * BITS // 8) + byte
        packed = tl.load(code_rows + at, mask=at < row_bytes, other=0)
        sums = tl.dot(left, tl.trans(_integers(packed, BITS, ROWS, INNER)), sums)
    by_token = tl.load(scale + token, mask=token < tokens, other=0.0)
    by_row = tl.load(step + row * step_stride, mask=row < rows, other=0.0).to(tl.float32)
    result = sums.to(tl.float32) * by_token[:, None] * by_row[None, :]
    if BIAS:
        result += tl.load(bias + row, mask=row < rows, other=0.0).to(tl.float32)[None, :]
    place = out + token.to(tl.int64)[:, None] * rows + row[None, :]
    tl.store(place, result.to(out.dtype.element_ty), mask=(token < tokens)[:, None] & (row < rows)[None, :])
