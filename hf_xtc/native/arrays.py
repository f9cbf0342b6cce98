"""Packed weights and whole encoders in the memory of numpy arrays, as the native operator takes them: no PyTorch.

`native/encoder.py` registers the same as PyTorch operators, of tensors.
"""

import ctypes
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hf_xtc.native.library import Float, Int, Long, Pointer, call, library

Array = NDArray[Any]

# As in csrc/kernels.hpp.
BYTES, PAIRS, NIBBLES, SEXTETS = 0, 1, 2, 3
TILE = 64
# Behind a pooler, in the order of csrc/kernels.hpp; GELU is the exact one.
HEAD_ACTIVATIONS = ("tanh", "gelu", "relu")
# Codes in a byte of the file, by levels.
_PER_BYTE = {2: 8, 3: 5, 16: 2}
# Levels that each layout holds.
_LEVELS = {BYTES: (2, 3, 16), PAIRS: (2, 3), NIBBLES: (2,), SEXTETS: (2,)}
# Sums of products with 8-bit activations fit 32 bits up to here.
_MOST_COLUMNS = 2**17


class WeightStruct(ctypes.Structure):
    """`Weight` of csrc/kernels.hpp."""

    _fields_ = [("layout", Int), ("levels", Int), ("rows", Long), ("columns", Long)] + [
        (name, Pointer) for name in ("codes", "scale", "bias")
    ]


class _Table(ctypes.Structure):
    _fields_ = [("levels", Long), ("size", Long), ("rows", Pointer), ("scale", Pointer)]


class _Layer(ctypes.Structure):
    _fields_ = [(name, WeightStruct) for name in ("qkv", "attention_output", "intermediate", "output")] + [
        (name, Pointer) for name in ("attention_gamma", "attention_beta", "output_gamma", "output_beta")
    ]


class _Encoder(ctypes.Structure):
    _fields_ = [
        *[(name, Long) for name in ("hidden", "heads", "intermediate", "num_layers")],
        *[(name, Float) for name in ("attention_epsilon", "embedding_epsilon")],
        ("width", Long),
        *[(name, _Table) for name in ("words", "positions", "types")],
        *[(name, Pointer) for name in ("embedding_gamma", "embedding_beta", "packed_projection", "projection")],
        ("distances", Pointer),
        ("reach", Long),
        ("layers", Pointer),
    ]


class _Batch(ctypes.Structure):
    _fields_ = [(name, Long) for name in ("num_sequences", "num_tokens")] + [
        (name, Pointer) for name in ("offsets", "words", "positions", "types")
    ]


class DenseStruct(ctypes.Structure):
    """A linear in float32, of addresses."""

    _fields_ = [("rows", Long), ("weight", Pointer), ("bias", Pointer)]


class _Head(ctypes.Structure):
    _fields_ = [(name, Pointer) for name in ("packed_pooler", "pooler", "classifier")] + [("activation", Long)]


class _Outputs(ctypes.Structure):
    _fields_ = [(name, Pointer) for name in ("hidden", "pooled", "logits")]


def _floats(values: Array) -> Array:
    """The values as contiguous float32, without a copy if they are."""
    return np.require(values, np.float32, ["C", "ALIGNED"])


def _address(values: Array | None) -> int | None:
    return None if values is None else values.ctypes.data


class Codes(NamedTuple):
    """A packed weight of a file, with its bias; numpy arrays or PyTorch tensors.

    Args:
        packed (array of shape `(rows, bytes)`, `uint8`): Rows of codes.
        scale (array): One number, or one for each row; floating point.
        bias (array of shape `(rows,)`, *optional*).
        columns (`int`): Codes in a row.
        levels (`int`): Values that a code can have: 2, 3 or 16.
    """

    packed: Any
    scale: Any
    bias: Any | None
    columns: int
    levels: int

    def check(self) -> None:
        """Raises a RuntimeError if the arrays do not have these shapes and dtypes."""
        packed, scale, bias, columns, levels = self
        rows = packed.shape[0] if len(packed.shape) == 2 else 0
        if (
            levels not in _PER_BYTE
            or not 0 < columns < _MOST_COLUMNS
            or str(packed.dtype).removeprefix("torch.") != "uint8"
            or tuple(packed.shape) != (rows, -(-columns // _PER_BYTE[levels]))
            or math.prod(scale.shape) not in (1, rows)
            or (bias is not None and tuple(bias.shape) != (rows,))
        ):
            raise RuntimeError(
                f"The native operator cannot read {packed.dtype} codes of shape {tuple(packed.shape)} as {columns} "
                f"columns of {levels} levels, with scales of shape {tuple(scale.shape)} and biases of shape "
                f"{None if bias is None else tuple(bias.shape)}."
            )


class Weight:
    """Codes laid out for the native operator; several weights with the same columns and levels are stacked by rows.

    Args:
        weights (`Sequence[Codes]`): At least one, of numpy arrays.
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
        self.columns, levels = weights[0].columns, weights[0].levels
        if levels not in _LEVELS.get(layout, ()) or {w[3:] for w in weights} != {(self.columns, levels)}:
            raise RuntimeError(f"Weights of {levels} levels cannot be laid out together in layout {layout}.")
        self.rows = sum(len(weight.packed) for weight in weights)
        self._codes = np.zeros(loaded.xtc_layout_bytes(layout, self.rows, self.columns), np.uint8)
        padded = -(-self.rows // TILE) * TILE
        self._scale, self._bias = np.zeros(padded, np.float32), np.zeros(padded, np.float32)
        first = 0
        for packed, scale, bias, columns, _ in weights:
            rows, packed = len(packed), np.ascontiguousarray(packed)
            place = slice(first, first + rows)
            loaded.xtc_lay_out(layout, levels, first, rows, columns, packed.ctypes.data, self._codes.ctypes.data)
            self._scale[place] = scale.reshape(-1)
            if bias is not None:
                self._bias[place] = bias
            first += rows
        pointers = map(_address, (self._codes, self._scale, self._bias))
        self.struct = WeightStruct(layout, levels, self.rows, self.columns, *pointers)
        self.address = ctypes.addressof(self.struct)

    @property
    def nbytes(self) -> int:
        """Bytes that the codes take in memory."""
        return self._codes.nbytes


class Table:
    """An embedding table for the native operator, in the file's layout.

    Args:
        rows (`numpy.ndarray`): Packed rows, `uint8`, or float rows.
        scale (`numpy.ndarray`, *optional*): One scale per packed row.
        levels (`int`): 2, 3, 16 or 256; 0 for float rows.
        width (`int`): Numbers in a row.

    Raises:
        RuntimeError: if the rows do not have this width.
    """

    def __init__(self, rows: Array, scale: Array | None, levels: int, width: int):
        self.rows, self.width = len(rows), width
        bytes_or_floats = -(-width // {**_PER_BYTE, 256: 1, 0: 1}[levels])
        if rows.shape[1:] != (bytes_or_floats,) or (levels and (scale is None or scale.size != self.rows)):
            raise RuntimeError(f"Rows of shape {rows.shape} do not hold {width} numbers of {levels} levels.")
        self._rows = np.ascontiguousarray(rows) if levels else _floats(rows)
        self._scale = None if scale is None else _floats(scale)
        self.struct = _Table(levels, self.rows, _address(self._rows), _address(self._scale))


class Layer:
    """One encoder layer: four weights (q, k and v as one) and its two LayerNorms (gamma and beta of each)."""

    def __init__(self, weights: Sequence[Weight], norms: Sequence[Array]):
        self.weights = weights
        self.norms = [_floats(norm) for norm in norms]
        self.struct = _Layer(*(weight.struct for weight in weights), *map(_address, self.norms))


class Dense:
    """A linear in float32: of a pooler that the recipe leaves in float, or a classifier.

    Args:
        weight (`numpy.ndarray` of shape `(rows, columns)`, floating point).
        bias (`numpy.ndarray` of shape `(rows,)`, *optional*).

    Raises:
        RuntimeError: if they have other shapes.
    """

    def __init__(self, weight: Array, bias: Array | None):
        check_dense(weight.shape, None if bias is None else bias.shape)
        self.rows, self.columns = weight.shape
        self._weight, self._bias = _floats(weight), None if bias is None else _floats(bias)
        self.struct = DenseStruct(self.rows, _address(self._weight), _address(self._bias))
        self.address = ctypes.addressof(self.struct)


def check_dense(weight: Sequence[int], bias: Sequence[int] | None) -> None:
    """Raises a RuntimeError unless these are shapes of a linear's weight and bias."""
    if len(weight) != 2 or (bias is not None and tuple(bias) != (weight[0],)):
        bias_shape = None if bias is None else tuple(bias)
        raise RuntimeError(f"A linear cannot have a weight of shape {tuple(weight)} and a bias of shape {bias_shape}.")


class Outputs(NamedTuple):
    """What an encoder computes: hidden states `(tokens, hidden)`, and where there is a pooler, its outputs
    `(sequences, hidden)` and with a classifier the logits `(sequences, labels)`; all float32."""

    hidden: Any
    pooled: Any | None
    logits: Any | None


def wrong_indices(given: Sequence[Any]) -> RuntimeError:
    """The error for lengths and rows of tables that are no vectors of int64, or do not fit together."""
    got = ", ".join(f"{values.dtype} {tuple(values.shape)}" for values in given)
    return RuntimeError(f"The native encoder takes int64 vectors, one number a token; it got {got}.")


class Encoder:
    """A whole encoder in the manner of BERT, embeddings included, as one call.

    Args:
        layers (`Sequence[Layer]`): In order.
        tables (`Sequence[Table]`): Word and position embeddings, and those of token types where there are any.
        norm (`Sequence[numpy.ndarray]`): Gamma and beta of the embeddings' LayerNorm.
        heads (`int`): Attention heads.
        epsilons (`tuple[float, float]`): Of the LayerNorms in the layers, and of the embeddings'.
        projection (`Weight` or `Dense`, *optional*): Linear from the embeddings to the first layer, `hidden x width`.
        distances (`numpy.ndarray` of shape `(heads, 2 * reach - 1)`, *optional*): Added to the scaled scores of query
            q and key k at `k - q + reach - 1`, in all layers; sequences then have at most `reach` tokens.

    Raises:
        RuntimeError: if their shapes do not fit together.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        tables: Sequence[Table],
        norm: Sequence[Array],
        heads: int,
        epsilons: tuple[float, float],
        projection: Weight | Dense | None = None,
        distances: Array | None = None,
    ):
        self._layers, self._tables, self._projection = layers, tables, projection
        self._norm, self._distances = [_floats(part) for part in norm], None
        self._array = (_Layer * len(layers))(*(layer.struct for layer in layers))
        first = layers[0].struct
        self.hidden, inner = first.attention_output.rows, first.intermediate.rows
        shapes = [(3, 1), (1, 1), (inner / self.hidden, 1), (1, inner / self.hidden)]
        weights = [[(w.rows / self.hidden, w.columns / self.hidden) for w in layer.weights] for layer in layers]
        width = len(self._norm[0])
        if (
            any(found != shapes for found in weights)
            or {len(norm) for layer in layers for norm in layer.norms} != {self.hidden}
            or {*map(len, self._norm), *(table.width for table in tables)} != {width}
            or (width if projection is None else projection.rows) != self.hidden
            or (projection is not None and projection.columns != width)
            or self.hidden % heads
        ):
            raise RuntimeError(f"An encoder of width {self.hidden} with {heads} heads cannot have layers {weights}.")
        self._reach = 0
        if distances is not None:
            if distances.ndim != 2 or len(distances) != heads or distances.shape[1] % 2 == 0:
                raise RuntimeError(
                    f"An encoder with {heads} heads cannot add {distances.shape} numbers to its scores."
                )
            self._distances, self._reach = _floats(distances), (distances.shape[1] + 1) // 2
        linear = None if projection is None else projection.address
        self._struct = _Encoder(
            *(self.hidden, heads, inner, len(layers)),
            *epsilons,
            width,
            *(table.struct for table in tables),
            *[_Table()] * (3 - len(tables)),
            *map(_address, self._norm),
            *((linear, None) if isinstance(projection, Weight) else (None, linear)),
            *(_address(self._distances), self._reach, ctypes.addressof(self._array)),
        )

    def run(
        self,
        lengths: Array,
        indices: Sequence[Array],
        pooler: Weight | Dense | None = None,
        classifier: Dense | None = None,
        *,
        activation: str = "tanh",
        threads: int,
    ) -> Outputs:
        """Computes a batch of sequences without padding.

        Args:
            lengths (`numpy.ndarray` of shape `(sequences,)`, int64): Tokens of each sequence, none 0.
            indices (`numpy.ndarray` of shape `(lengths.sum(),)`, int64, for each table): Rows of the tables.
            pooler (`Weight` or `Dense`, *optional*): Linear of the pooler, `hidden x hidden`.
            classifier (`Dense`, *optional*): Linear on the pooler's outputs, `labels x hidden`.
            activation (`str`): Behind the pooler: one of `HEAD_ACTIVATIONS`.
            threads (`int`): Number of threads.

        Raises:
            IndexError: if a table has no such row.
            RuntimeError: if shapes or dtypes are others, or a length is below 1 or beyond the distances.
            MemoryError: if there is no memory for intermediate results.
        """
        given = (lengths, *indices)
        if any(a.dtype != np.int64 or a.ndim != 1 for a in given) or len({*map(len, indices)}) != 1:
            raise wrong_indices(given)
        self.check_tables(len(indices))
        self.check_head(pooler, None if classifier is None else classifier.columns)
        tokens, indices = len(indices[0]), [np.ascontiguousarray(index) for index in indices]
        hidden = np.empty((tokens, self.hidden), np.float32)
        pooled = None if pooler is None else np.empty((len(lengths), self.hidden), np.float32)
        logits = None if classifier is None else np.empty((len(lengths), classifier.rows), np.float32)
        inputs, outputs = ([_address(values) for values in part] for part in (indices, (hidden, pooled, logits)))
        struct = None if classifier is None else classifier.struct
        status = self.compute(lengths, tokens, inputs, outputs, pooler, struct, activation, threads)
        self.check_status(status, indices)
        return Outputs(hidden, pooled, logits)

    def compute(
        self,
        lengths: Array,
        tokens: int,
        indices: Sequence[int | None],
        outputs: Sequence[int | None],
        pooler: Weight | Dense | None,
        classifier: DenseStruct | None,
        activation: str,
        threads: int,
    ) -> int:
        """As `run`, of addresses: those of `indices`, and those where `Outputs` go. For `check_status`."""
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        batch = _Batch(len(lengths), tokens, offsets.ctypes.data, *indices)  # null for types where there are none
        linear = None if pooler is None else pooler.address
        head = _Head(
            *((linear, None) if isinstance(pooler, Weight) else (None, linear)),
            None if classifier is None else ctypes.addressof(classifier),
            HEAD_ACTIVATIONS.index(activation),
        )
        byref = ctypes.byref
        return call(
            "xtc_encoder", byref(self._struct), byref(batch), byref(head), byref(_Outputs(*outputs)), threads=threads
        )

    def check_tables(self, number: int) -> None:
        """Raises a RuntimeError unless there are indices for all of the tables."""
        if number != len(self._tables):
            raise RuntimeError(f"An encoder of {len(self._tables)} tables cannot read {number} rows for each token.")

    def check_head(self, pooler: Weight | Dense | None, classifier_columns: int | None) -> None:
        """Raises a RuntimeError unless a pooler, and a classifier of so many columns, fit the encoder."""
        if (pooler is not None and (pooler.rows, pooler.columns) != (self.hidden, self.hidden)) or (
            classifier_columns is not None and (pooler is None or classifier_columns != self.hidden)
        ):
            raise RuntimeError(f"A pooler and a classifier do not fit an encoder of width {self.hidden}.")

    def check_status(self, status: int, indices: Sequence[Any]) -> None:
        """Raises the error that a status of `compute` stands for."""
        if status == -1:
            tokens = len(indices[0])
            raise RuntimeError(f"The lengths of the sequences must be positive and sum up to {tokens} tokens.")
        if status == -5:
            raise RuntimeError(f"A sequence has more than the {self._reach} tokens that the distances are for.")
        if status:
            kind = -2 - status
            index, rows = indices[kind], self._tables[kind].rows
            wrong = int(index[(index < 0) | (index >= rows)][0])
            name = ("token", "position", "token type")[kind]
            raise IndexError(f"index out of range: {name} id {wrong}, but the embedding has {rows} rows.")
