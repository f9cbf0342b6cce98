"""The native operator: an optional C++ library without PyTorch headers, called through `ctypes` with data pointers.

Built by `pip install` where there is a compiler and left out, without an error, where there is none. Nothing is ever
built at run time. It holds one variant per instruction set and takes the best one that the processor runs; the
environment variable `XTC_NATIVE` names another, or "off". Its threads are those of PyTorch's own OpenMP.
"""

import ctypes
import logging
import os
from collections.abc import Sequence
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

from hf_xtc.errors import XTCError
from hf_xtc.packing import PackedWeight
from hf_xtc.quantizers import get_quantizer

logger = logging.getLogger(__name__)

BYTES, PAIRS, NIBBLES = 0, 1, 2
TILE = 64

Pointer, Long, Int, Float = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float


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


class _Threads(ctypes.Structure):
    _fields_ = [("parallel", Pointer), ("count", Pointer), ("number", Long)]


@cache
def _library() -> ctypes.CDLL | None:
    """The library, or `None` where it was not built or cannot be loaded."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).parent.parent / f"_native{suffix}"
        if not path.exists():
            continue
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            logger.warning("The native operator %s cannot be loaded: %s.", path.name, error)
            return None
        library.xtc_variant.restype = ctypes.c_char_p
        library.xtc_layout_bytes.restype = Long
        library.xtc_layout_bytes.argtypes = [Int, Long, Long]
        library.xtc_lay_out.argtypes = [Int, Int, Long, Long, Pointer, Pointer]
        library.xtc_linear.argtypes = [Int, Pointer, Pointer, Long, Pointer, Pointer]
        library.xtc_encoder.argtypes = [Int, Pointer, Pointer, Pointer, Pointer]
        return library
    return None


@cache
def variants() -> dict[str, int]:
    """Names of the variants that this processor runs, fastest first, and their number in the library."""
    library, found = _library(), {}
    index = 0
    while library is not None and (name := library.xtc_variant(index)) is not None:
        if name:
            found[name.decode()] = index
        index += 1
    return found


def variant() -> str | None:
    """The variant in use, or `None` without the native operator.

    Raises:
        XTCError: if `XTC_NATIVE` names a variant that is not here.
    """
    chosen = os.environ.get("XTC_NATIVE")
    if chosen == "off":
        return None
    if chosen and chosen not in variants():
        known = ", ".join([*variants(), "off"])
        raise XTCError(f"XTC_NATIVE={chosen!r} is no variant of the native operator here; use one of: {known}.")
    # The portable variant defines the result and is slower than PyTorch's own integer product: on request only.
    return chosen or next((name for name in variants() if name != "portable"), None)


def packed_layout(quantizer: str) -> int | None:
    """The layout that keeps codes of a quantizer packed, or `None` if there is none."""
    return {"binary": NIBBLES, "ternary": PAIRS}.get(quantizer)


def fastest_layout(quantizer: str) -> int:
    """The layout that was measured to be the fastest for whole batches: lookups of binary codes beat byte products
    where a byte product takes two instructions and 16-bit sums (AVX2), and not where it takes one (VNNI)."""
    return NIBBLES if quantizer == "binary" and variant() == "avx2" else BYTES


@cache
def _openmp() -> tuple[int | None, int | None]:
    """Addresses of `GOMP_parallel` and `omp_get_num_threads` among PyTorch's own dependencies, if it has them."""
    try:
        torch_library = ctypes.CDLL(torch._C.__file__)
        found = [torch_library[name] for name in ("GOMP_parallel", "omp_get_num_threads")]
    except (AttributeError, OSError):
        return None, None
    parallel, count = (ctypes.cast(function, Pointer).value for function in found)
    return parallel, count


def _threads() -> _Threads:
    return _Threads(*_openmp(), torch.get_num_threads())


def _padded(values: Tensor, rows: int) -> Tensor:
    """Float32 values for `rows` rows, broadcast and padded to whole tiles."""
    padded = torch.zeros(-(-rows // TILE) * TILE)
    padded[:rows] = values.detach().float().flatten()
    return padded


class NativeWeight:
    """Codes laid out for the native operator; several weights of equal columns become one, row after row.

    Args:
        weights (`Sequence[PackedWeight]`): On the CPU, one scale per tensor or row, up to 16 levels.
        biases (`Sequence[torch.Tensor | None]`): One for each weight.
        layout (`int`): `BYTES`, `PAIRS` (up to 4 levels) or `NIBBLES` (binary).
    """

    def __init__(self, weights: Sequence[PackedWeight], biases: Sequence[Tensor | None], layout: int):
        library = _library()
        assert library is not None  # callers ask `variant()` first
        counts = [weight.packed.shape[0] for weight in weights]
        self.rows, self.columns = sum(counts), weights[0].columns
        levels = get_quantizer(weights[0].spec.quantizer).levels
        packed = torch.cat([weight.packed for weight in weights]).contiguous()
        size = library.xtc_layout_bytes(layout, self.rows, self.columns)
        self._codes = torch.zeros(size, dtype=torch.uint8)
        library.xtc_lay_out(layout, levels, self.rows, self.columns, packed.data_ptr(), self._codes.data_ptr())
        scales = [w.scale.float().flatten().expand(n) for w, n in zip(weights, counts, strict=True)]
        shifts = [torch.zeros(n) if b is None else b.detach() for b, n in zip(biases, counts, strict=True)]
        self._scale, self._bias = _padded(torch.cat(scales), self.rows), _padded(torch.cat(shifts), self.rows)
        pointers = (tensor.data_ptr() for tensor in (self._codes, self._scale, self._bias))
        self.struct = _Weight(layout, levels, self.rows, self.columns, *pointers)

    @property
    def nbytes(self) -> int:
        """Bytes that the codes take in memory."""
        return self._codes.numel()

    def linear(self, x: Tensor) -> Tensor:
        """`(..., columns)`, float32, to `(..., rows)`: 8-bit symmetric levels per token, exact integer sums."""
        library, name = _library(), variant()
        assert library is not None
        assert name is not None
        x = x.detach().contiguous()
        out = torch.empty(*x.shape[:-1], self.rows)
        tokens = x.numel() // self.columns
        if tokens:
            library.xtc_linear(
                variants()[name],
                ctypes.byref(self.struct),
                x.data_ptr(),
                tokens,
                out.data_ptr(),
                ctypes.byref(_threads()),
            )
        return out


class NativeTable:
    """An embedding table for the native operator, as it lies in the file.

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
        library, name = _library(), variant()
        assert library is not None
        assert name is not None
        offsets = torch.zeros(len(lengths) + 1, dtype=torch.int64)
        torch.cumsum(lengths, 0, out=offsets[1:])
        indices = [index.contiguous() for index in (words, positions, types)]
        batch = _Batch(len(lengths), len(words), offsets.data_ptr(), *(index.data_ptr() for index in indices))
        out = torch.empty(len(words), self._hidden)
        library.xtc_encoder(
            variants()[name],
            *(ctypes.byref(self._struct), ctypes.byref(batch), out.data_ptr(), ctypes.byref(_threads())),
        )
        return out
