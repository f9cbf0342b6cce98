"""Packed linears and whole encoders on the native operator; takes codes and their levels, not quantizers."""

import ctypes
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from hf_xtc.native.library import Float, Int, Long, Pointer, call, is_readable, library

# As in csrc/kernels.hpp.
BYTES, PAIRS, NIBBLES = 0, 1, 2
TILE = 64


class _Weight(ctypes.Structure):
    _fields_ = [("layout", Int), ("levels", Int), ("rows", Long), ("columns", Long)] + [
        (name, Pointer) for name in ("codes", "scale", "bias")
    ]


class _Table(ctypes.Structure):
    _fields_ = [("levels", Int), ("unused", Int), ("rows", Pointer), ("scale", Pointer)]


class _Layer(ctypes.Structure):
    _fields_ = [(name, _Weight) for name in ("qkv", "attention_output", "intermediate", "output")] + [
        (name, Pointer) for name in ("attention_gamma", "attention_beta", "output_gamma", "output_beta")
    ]


class _Encoder(ctypes.Structure):
    _fields_ = [
        *[(name, Long) for name in ("hidden", "heads", "intermediate", "num_layers")],
        *[(name, Float) for name in ("attention_epsilon", "embedding_epsilon")],
        *[(name, _Table) for name in ("words", "positions", "types")],
        *[(name, Pointer) for name in ("embedding_gamma", "embedding_beta", "layers")],
    ]


class _Batch(ctypes.Structure):
    _fields_ = [(name, Long) for name in ("num_sequences", "num_tokens")] + [
        (name, Pointer) for name in ("offsets", "words", "positions", "types")
    ]


def _padded(values: Tensor, rows: int) -> Tensor:
    """Float32 values for `rows` rows, broadcast and padded to whole tiles."""
    padded = torch.zeros(-(-rows // TILE) * TILE)
    padded[:rows] = values.detach().float().flatten()
    return padded


class PackedCodes(Protocol):
    """What a packed weight must have: its rows of codes, their number of columns, and the scales."""

    @property
    def packed(self) -> Tensor: ...
    @property
    def columns(self) -> int: ...
    @property
    def scale(self) -> Tensor: ...


class NativeWeight:
    """Codes laid out for the native operator; several weights with the same columns are stacked by rows.

    Args:
        weights (`Sequence[PackedCodes]`): On the CPU, one scale per tensor or row.
        biases (`Sequence[torch.Tensor | None]`): One for each weight.
        levels (`int`): Values that a code can have: 2, 3 or 16.
        layout (`int`): `BYTES`, `PAIRS` (up to 4 levels) or `NIBBLES` (2 levels).
    """

    def __init__(self, weights: Sequence[PackedCodes], biases: Sequence[Tensor | None], levels: int, layout: int):
        loaded = library()
        assert loaded is not None  # callers check `variant()` first
        counts = [weight.packed.shape[0] for weight in weights]
        self.rows, self.columns = sum(counts), weights[0].columns
        packed = torch.cat([weight.packed for weight in weights]).contiguous()
        size = loaded.xtc_layout_bytes(layout, self.rows, self.columns)
        self._codes = torch.zeros(size, dtype=torch.uint8)
        loaded.xtc_lay_out(layout, levels, self.rows, self.columns, packed.data_ptr(), self._codes.data_ptr())
        scales = [w.scale.float().flatten().expand(n) for w, n in zip(weights, counts, strict=True)]
        shifts = [torch.zeros(n) if b is None else b.detach() for b, n in zip(biases, counts, strict=True)]
        self._scale, self._bias = _padded(torch.cat(scales), self.rows), _padded(torch.cat(shifts), self.rows)
        pointers = (tensor.data_ptr() for tensor in (self._codes, self._scale, self._bias))
        self.struct = _Weight(layout, levels, self.rows, self.columns, *pointers)

    @property
    def nbytes(self) -> int:
        """Bytes that the codes take in memory."""
        return self._codes.numel()

    def serves(self, x: Tensor) -> bool:
        """Whether `linear` can read `x`: float32 rows of `columns` numbers in CPU memory."""
        return is_readable(x) and x.dtype == torch.float32 and x.dim() > 0 and x.shape[-1] == self.columns

    def linear(self, x: Tensor) -> Tensor:
        """`(..., columns)`, float32, to `(..., rows)`: 8-bit symmetric levels per token, exact integer sums.

        Raises:
            RuntimeError: if `x` has another width, dtype or device, since it is read by its address.
        """
        if not self.serves(x):
            raise RuntimeError(
                f"The native operator multiplies float32 rows of {self.columns} numbers on the CPU; it got "
                f"{x.dtype} of shape {tuple(x.shape)} on {x.device}."
            )
        x = x.detach().contiguous()
        out = torch.empty(*x.shape[:-1], self.rows)
        tokens = x.numel() // self.columns
        if tokens:
            call("xtc_linear", ctypes.byref(self.struct), x.data_ptr(), tokens, out.data_ptr())
        return out


class NativeTable:
    """An embedding table for the native operator, in the file's layout.

    Args:
        rows (`torch.Tensor`): Packed rows, `uint8`, or float rows.
        scale (`torch.Tensor`, *optional*): One scale per packed row.
        levels (`int`): 2, 3, 16 or 256; 0 for float rows.
    """

    def __init__(self, rows: Tensor, scale: Tensor | None, levels: int):
        self._rows = rows.contiguous() if levels else rows.detach().float().contiguous()
        self._scale = torch.empty(0) if scale is None else scale.float().contiguous()
        self.struct = _Table(levels, 0, self._rows.data_ptr(), self._scale.data_ptr())


class NativeLayer:
    """One encoder layer: four weights (q, k and v as one) and its two LayerNorms (gamma and beta of each)."""

    def __init__(self, weights: Sequence[NativeWeight], norms: Sequence[Tensor]):
        self._weights = weights
        self._norms = [norm.detach().float().contiguous() for norm in norms]
        structs = (weight.struct for weight in weights)
        self.struct = _Layer(*structs, *(norm.data_ptr() for norm in self._norms))


class NativeEncoder:
    """A whole BERT encoder, embeddings included, as one call.

    Args:
        layers (`Sequence[NativeLayer]`): In order.
        tables (`Sequence[NativeTable]`): Word, position and token-type embeddings.
        norm (`Sequence[torch.Tensor]`): Gamma and beta of the embeddings' LayerNorm.
        heads (`int`), epsilon (`float`): As in the model's config.
    """

    def __init__(
        self,
        layers: Sequence[NativeLayer],
        tables: Sequence[NativeTable],
        norm: Sequence[Tensor],
        heads: int,
        epsilon: float,
    ):
        self._layers, self._tables = layers, tables
        self._norm = [part.detach().float().contiguous() for part in norm]
        self._array = (_Layer * len(layers))(*(layer.struct for layer in layers))
        first = layers[0].struct
        self._hidden = first.attention_output.rows
        self._struct = _Encoder(
            *(self._hidden, heads, first.intermediate.rows, len(layers)),
            *(epsilon, epsilon),
            *(table.struct for table in tables),
            *(part.data_ptr() for part in self._norm),
            ctypes.addressof(self._array),
        )

    def __call__(self, lengths: Tensor, words: Tensor, positions: Tensor, types: Tensor) -> Tensor:
        """Last hidden states of sequences without padding.

        Args:
            lengths (`torch.Tensor` of shape `(sequences,)`, int64): Tokens of each sequence, none 0.
            words, positions, types (`torch.Tensor` of shape `(lengths.sum(),)`, int64): Rows of the tables, in range.

        Returns:
            `torch.Tensor` of shape `(lengths.sum(), hidden)`, float32.
        """
        offsets = torch.zeros(len(lengths) + 1, dtype=torch.int64)
        torch.cumsum(lengths, 0, out=offsets[1:])
        indices = [index.contiguous() for index in (words, positions, types)]
        batch = _Batch(len(lengths), len(words), offsets.data_ptr(), *(index.data_ptr() for index in indices))
        out = torch.empty(len(words), self._hidden)
        call("xtc_encoder", ctypes.byref(self._struct), ctypes.byref(batch), out.data_ptr())
        return out
