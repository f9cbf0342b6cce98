"""Packed linears and whole encoders on the native operator; takes codes and their levels, not quantizers."""

import ctypes
import itertools
from collections.abc import Sequence
from typing import NamedTuple
from weakref import ReferenceType, WeakValueDictionary, ref

import torch
from torch import Tensor

from hf_xtc.native.library import Float, Int, Long, Pointer, call, library, operator

# As in csrc/kernels.hpp.
BYTES, PAIRS, NIBBLES, SEXTETS = 0, 1, 2, 3
TILE = 64
# Codes in a byte of the file, by levels.
_PER_BYTE = {2: 8, 3: 5, 16: 2}
# Levels that each layout holds.
_LEVELS = {BYTES: (2, 3, 16), PAIRS: (2, 3), NIBBLES: (2,), SEXTETS: (2,)}
# Sums of products with 8-bit activations fit 32 bits up to here.
_MOST_COLUMNS = 2**17


class _Weight(ctypes.Structure):
    _fields_ = [("layout", Int), ("levels", Int), ("rows", Long), ("columns", Long)] + [
        (name, Pointer) for name in ("codes", "scale", "bias")
    ]


class _Table(ctypes.Structure):
    _fields_ = [("levels", Long), ("size", Long), ("rows", Pointer), ("scale", Pointer)]


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


def _check_cpu(*tensors: Tensor | None) -> None:
    """Raises a RuntimeError unless all tensors are in memory that the operator can read."""
    if any(tensor is not None and tensor.device.type != "cpu" for tensor in tensors):
        raise RuntimeError("The native operator runs on the CPU, but weights that it should read are elsewhere.")


def _padded(values: Tensor, rows: int) -> Tensor:
    """Float32 values for `rows` rows, broadcast and padded to whole tiles."""
    padded = torch.zeros(-(-rows // TILE) * TILE)
    padded[:rows] = values.detach().float().flatten()
    return padded


class Codes(NamedTuple):
    """A packed weight of a file, with its bias.

    Args:
        packed (`torch.Tensor` of shape `(rows, bytes)`, `uint8`): Rows of codes.
        scale (`torch.Tensor`): One number, or one for each row; floating point.
        bias (`torch.Tensor` of shape `(rows,)`, *optional*).
        columns (`int`): Codes in a row.
        levels (`int`): Values that a code can have: 2, 3 or 16.
    """

    packed: Tensor
    scale: Tensor
    bias: Tensor | None
    columns: int
    levels: int

    def check(self) -> None:
        """Raises a RuntimeError if the tensors do not have these shapes and dtypes."""
        packed, scale, bias, columns, levels = self
        rows = packed.shape[0] if packed.dim() == 2 else 0
        if (
            levels not in _PER_BYTE
            or not 0 < columns < _MOST_COLUMNS
            or packed.dtype != torch.uint8
            or packed.shape != (rows, -(-columns // _PER_BYTE[levels]))
            or scale.numel() not in (1, rows)
            or (bias is not None and bias.shape != (rows,))
        ):
            raise RuntimeError(
                f"The native operator cannot read {packed.dtype} codes of shape {tuple(packed.shape)} as {columns} "
                f"columns of {levels} levels, with scales of shape {tuple(scale.shape)} and biases of shape "
                f"{None if bias is None else tuple(bias.shape)}."
            )


class NativeWeight:
    """Codes laid out for the native operator; several weights with the same columns and levels are stacked by rows.

    Args:
        weights (`Sequence[Codes]`): At least one.
        layout (`int`): `BYTES`, `PAIRS` (up to 3 levels), `NIBBLES` or `SEXTETS` (2 levels).

    Raises:
        RuntimeError: if a weight cannot be laid out so.
    """

    def __init__(self, weights: Sequence[Codes], layout: int):
        loaded = library()
        if loaded is None:
            raise RuntimeError("The native operator was not built.")
        for weight in weights:
            weight.check()
            _check_cpu(*weight[:3])
        self.columns, levels = weights[0].columns, weights[0].levels
        if levels not in _LEVELS.get(layout, ()) or {w[3:] for w in weights} != {(self.columns, levels)}:
            raise RuntimeError(f"Weights of {levels} levels cannot be laid out together in layout {layout}.")
        counts = [len(weight.packed) for weight in weights]
        self.rows = sum(counts)
        packed = torch.cat([weight.packed for weight in weights]).contiguous()
        self._codes = torch.zeros(loaded.xtc_layout_bytes(layout, self.rows, self.columns), dtype=torch.uint8)
        loaded.xtc_lay_out(layout, levels, self.rows, self.columns, packed.data_ptr(), self._codes.data_ptr())
        scales = [w.scale.detach().float().flatten().expand(n) for w, n in zip(weights, counts, strict=True)]
        biases = [torch.zeros(n) if w.bias is None else w.bias.detach() for w, n in zip(weights, counts, strict=True)]
        self._scale, self._bias = _padded(torch.cat(scales), self.rows), _padded(torch.cat(biases), self.rows)
        pointers = (tensor.data_ptr() for tensor in (self._codes, self._scale, self._bias))
        self.struct = _Weight(layout, levels, self.rows, self.columns, *pointers)

    @property
    def nbytes(self) -> int:
        """Bytes that the codes take in memory."""
        return self._codes.numel()

    def linear(self, x: Tensor) -> Tensor:
        """`(..., columns)`, float32 on the CPU, to `(..., rows)`."""
        x = x.detach().contiguous()
        out = torch.empty(*x.shape[:-1], self.rows)
        if out.numel():
            call("xtc_linear", ctypes.byref(self.struct), x.data_ptr(), x.numel() // self.columns, out.data_ptr())
        return out


def _check_rows(x: Tensor, columns: int) -> None:
    if x.dtype != torch.float32 or x.dim() == 0 or x.shape[-1] != columns:
        raise RuntimeError(
            f"The native operator multiplies float32 rows of {columns} numbers; it got {x.dtype} of shape "
            f"{tuple(x.shape)}."
        )


class _LaidOut(NamedTuple):
    """A laid out weight and what it was made from; its packed codes by a weak reference."""

    packed: ReferenceType[Tensor]
    scale: Tensor
    bias: Tensor | None
    key: tuple[int | None, ...]
    weight: NativeWeight


# By `id` of the packed codes: as long as these live, and one layout at a time.
_LAID_OUT: dict[int, _LaidOut] = {}


def version_of(tensor: Tensor) -> int:
    """PyTorch's count of in-place writes to a tensor; 0 for tensors made in inference mode, which have none."""
    return 0 if tensor.is_inference() else tensor._version


def _laid_out(codes: Codes, layout: int) -> NativeWeight:
    """The weight in a layout: made at its first use, and again when a tensor has changed."""
    packed, scale, bias, columns, levels = codes
    versions = (version_of(packed), version_of(scale), None if bias is None else version_of(bias))
    key, name = (*versions, columns, levels, layout), id(packed)
    found = _LAID_OUT.get(name)
    if (
        found is None
        or found.packed() is not packed
        or found.scale is not scale
        or found.bias is not bias
        or found.key != key
    ):
        weight = NativeWeight([codes], layout)
        reference = ref(packed, lambda _: _LAID_OUT.pop(name, None))
        found = _LAID_OUT[name] = _LaidOut(reference, scale, bias, key, weight)
    return found.weight


def forget_laid_out(packed: Tensor) -> None:
    """Lays packed codes out again when they are used next."""
    _LAID_OUT.pop(id(packed), None)


def _linear_like(
    x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, columns: int, levels: int, layout: int
) -> Tensor:
    _check_rows(x, columns)
    Codes(packed, scale, bias, columns, levels).check()
    return x.new_empty(*x.shape[:-1], packed.shape[0])


@operator(
    "linear(Tensor x, Tensor packed, Tensor scale, Tensor? bias, int columns, int levels, int layout) -> Tensor",
    fake=_linear_like,
)
def linear(
    x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, columns: int, levels: int, layout: int
) -> Tensor:
    """`x @ weight.T + bias` for a packed weight: `x` on 8-bit symmetric levels per token, exact integer sums.

    Args:
        x (`torch.Tensor` of shape `(..., columns)`, float32): On the CPU, as are the others.
        packed, scale, bias, columns, levels: As in `Codes`. The laid out codes are kept as long as `packed` lives.
        layout (`int`): As in `NativeWeight`.

    Returns:
        `torch.Tensor` of shape `(..., rows)`, float32.
    """
    _check_rows(x, columns)
    return _laid_out(Codes(packed, scale, bias, columns, levels), layout).linear(x)


class NativeTable:
    """An embedding table for the native operator, in the file's layout.

    Args:
        rows (`torch.Tensor`): Packed rows, `uint8`, or float rows; on the CPU.
        scale (`torch.Tensor`, *optional*): One scale per packed row.
        levels (`int`): 2, 3, 16 or 256; 0 for float rows.
        width (`int`): Numbers in a row.

    Raises:
        RuntimeError: if the rows do not have this width.
    """

    def __init__(self, rows: Tensor, scale: Tensor | None, levels: int, width: int):
        _check_cpu(rows, scale)
        self.rows, self.width = len(rows), width
        bytes_or_floats = -(-width // {**_PER_BYTE, 256: 1, 0: 1}[levels])
        if rows.shape[1:] != (bytes_or_floats,) or (levels and (scale is None or scale.numel() != self.rows)):
            raise RuntimeError(f"Rows of shape {tuple(rows.shape)} do not hold {width} numbers of {levels} levels.")
        self._rows = rows.contiguous() if levels else rows.detach().float().contiguous()
        self._scale = torch.empty(0) if scale is None else scale.float().contiguous()
        self.struct = _Table(levels, self.rows, self._rows.data_ptr(), self._scale.data_ptr())


class NativeLayer:
    """One encoder layer: four weights (q, k and v as one) and its two LayerNorms (gamma and beta of each)."""

    def __init__(self, weights: Sequence[NativeWeight], norms: Sequence[Tensor]):
        _check_cpu(*norms)
        self.weights = weights
        self.norms = [norm.detach().float().contiguous() for norm in norms]
        structs = (weight.struct for weight in weights)
        self.struct = _Layer(*structs, *(norm.data_ptr() for norm in self.norms))


class NativeEncoder:
    """A whole BERT encoder, embeddings included, as one call.

    Args:
        layers (`Sequence[NativeLayer]`): In order.
        tables (`Sequence[NativeTable]`): Word, position and token-type embeddings.
        norm (`Sequence[torch.Tensor]`): Gamma and beta of the embeddings' LayerNorm.
        heads (`int`): Attention heads.
        epsilons (`tuple[float, float]`): Of the LayerNorms in the layers, and of the embeddings'.

    Raises:
        RuntimeError: if their shapes do not fit together.
    """

    def __init__(
        self,
        layers: Sequence[NativeLayer],
        tables: Sequence[NativeTable],
        norm: Sequence[Tensor],
        heads: int,
        epsilons: tuple[float, float],
    ):
        _check_cpu(*norm)
        self._layers, self._tables = layers, tables
        self._norm = [part.detach().float().contiguous() for part in norm]
        self._array = (_Layer * len(layers))(*(layer.struct for layer in layers))
        first = layers[0].struct
        self.hidden, inner = first.attention_output.rows, first.intermediate.rows
        shapes = [(3, 1), (1, 1), (inner / self.hidden, 1), (1, inner / self.hidden)]
        weights = [[(w.rows / self.hidden, w.columns / self.hidden) for w in layer.weights] for layer in layers]
        widths = {len(part) for part in (*self._norm, *(norm for layer in layers for norm in layer.norms))}
        if (
            any(found != shapes for found in weights)
            or {self.hidden, *(table.width for table in tables)} != widths
            or self.hidden % heads
        ):
            raise RuntimeError(f"An encoder of width {self.hidden} with {heads} heads cannot have layers {weights}.")
        self._struct = _Encoder(
            *(self.hidden, heads, inner, len(layers)),
            *epsilons,
            *(table.struct for table in tables),
            *(part.data_ptr() for part in self._norm),
            ctypes.addressof(self._array),
        )
        self._number = next(_NUMBERS)
        _ENCODERS[self._number] = self

    def __call__(self, lengths: Tensor, words: Tensor, positions: Tensor, types: Tensor) -> Tensor:
        """Last hidden states of sequences without padding.

        Args:
            lengths (`torch.Tensor` of shape `(sequences,)`, int64): Tokens of each sequence, none 0.
            words, positions, types (`torch.Tensor` of shape `(lengths.sum(),)`, int64): Rows of the tables.

        Returns:
            `torch.Tensor` of shape `(lengths.sum(), hidden)`, float32.

        Raises:
            IndexError: if there is no such row.
            RuntimeError: if shapes, dtypes or devices are others, or a length is below 1.
        """
        hidden: Tensor = _encode(lengths, words, positions, types, self._number)
        return hidden

    def run(self, lengths: Tensor, *indices: Tensor) -> Tensor:
        """What `__call__` computes, of tensors that the PyTorch operator was given."""
        tensors, tokens = (lengths, *indices), len(indices[0])
        if any(t.dtype != torch.int64 or t.dim() != 1 for t in tensors) or {tokens} != {*map(len, indices)}:
            got = ", ".join(f"{t.dtype} {tuple(t.shape)}" for t in tensors)
            raise RuntimeError(f"The native encoder takes int64 vectors, one number a token; it got {got}.")
        offsets = torch.zeros(len(lengths) + 1, dtype=torch.int64)
        torch.cumsum(lengths, 0, out=offsets[1:])
        indices = tuple(index.contiguous() for index in indices)
        batch = _Batch(len(lengths), tokens, offsets.data_ptr(), *(index.data_ptr() for index in indices))
        out = torch.empty(tokens, self.hidden)
        status = call("xtc_encoder", ctypes.byref(self._struct), ctypes.byref(batch), out.data_ptr())
        if status == -1:
            raise RuntimeError(f"The lengths of the sequences must be positive and sum up to {tokens} tokens.")
        if status:
            kind = -2 - status
            index, rows = indices[kind], self._tables[kind].rows
            wrong = int(index[(index < 0) | (index >= rows)][0])
            name = ("token", "position", "token type")[kind]
            raise IndexError(f"index out of range: {name} id {wrong}, but the embedding has {rows} rows.")
        return out


# PyTorch operators take tensors and numbers: an encoder goes by its number.
_NUMBERS = itertools.count()
_ENCODERS: WeakValueDictionary[int, NativeEncoder] = WeakValueDictionary()


@operator(
    "encoder(Tensor lengths, Tensor words, Tensor positions, Tensor types, int encoder) -> Tensor",
    fake=lambda lengths, words, positions, types, encoder: words.new_empty(
        len(words), _ENCODERS[encoder].hidden, dtype=torch.float32
    ),
)
def _encode(lengths: Tensor, words: Tensor, positions: Tensor, types: Tensor, encoder: int) -> Tensor:
    return _ENCODERS[encoder].run(lengths, words, positions, types)
