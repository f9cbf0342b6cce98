"""Packed linears and whole encoders on the native operator; takes codes and their levels, not quantizers."""

import ctypes
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import ReferenceType, WeakValueDictionary, ref

import torch
from torch import Tensor

from hf_xtc.native import arrays
from hf_xtc.native.arrays import BYTES, NIBBLES, PAIRS, SEXTETS, Codes, Outputs
from hf_xtc.native.operators import call, operator

__all__ = ["BYTES", "NIBBLES", "PAIRS", "SEXTETS", "Codes", "Outputs"]


def _check_cpu(*tensors: Tensor | None) -> None:
    """Raises a RuntimeError unless all tensors are in memory that the operator can read."""
    if any(tensor is not None and tensor.device.type != "cpu" for tensor in tensors):
        raise RuntimeError("The native operator runs on the CPU, but weights that it should read are elsewhere.")


def _array(tensor: Any) -> Any:
    """A tensor as an array on the same memory if its dtype is kept: float32 for numbers. `None` and arrays stay."""
    if not isinstance(tensor, Tensor):
        return tensor
    _check_cpu(tensor)
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _floats(tensor: Tensor) -> Tensor:
    """The values as contiguous float32, without a copy if they are."""
    return tensor if tensor.dtype == torch.float32 and tensor.is_contiguous() else tensor.detach().float().contiguous()


class NativeWeight(arrays.Weight):
    """`arrays.Weight` of `Codes` whose arrays are tensors on the CPU."""

    def __init__(self, weights: Sequence[Codes], layout: int):
        super().__init__(
            [Codes(_array(w.packed), _array(w.scale), _array(w.bias), w.columns, w.levels) for w in weights], layout
        )

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


class NativeTable(arrays.Table):
    """`arrays.Table` of tensors on the CPU."""

    def __init__(self, rows: Tensor, scale: Tensor | None, levels: int, width: int):
        super().__init__(_array(rows), _array(scale), levels, width)


class NativeLayer(arrays.Layer):
    """`arrays.Layer` whose LayerNorms are tensors on the CPU."""

    def __init__(self, weights: Sequence[NativeWeight], norms: Sequence[Tensor]):
        super().__init__(weights, [_array(norm) for norm in norms])


def native_linear(linear: NativeWeight | Tensor, bias: Tensor | None = None) -> arrays.Weight | arrays.Dense:
    """A packed linear, or one in float of tensors on the CPU."""
    return linear if isinstance(linear, NativeWeight) else arrays.Dense(_array(linear), _array(bias))


class NativePooler:
    """The linear of a pooler, or the first of a classifier's head, and what follows it.

    Args:
        linear (`NativeWeight` or `torch.Tensor` of shape `(hidden, hidden)`): Packed, or in float.
        bias (`torch.Tensor` of shape `(hidden,)`, *optional*): Of a linear in float.
        activation (`str`): One of `arrays.HEAD_ACTIVATIONS`.
    """

    def __init__(self, linear: NativeWeight | Tensor, bias: Tensor | None = None, *, activation: str = "tanh"):
        self.linear, self.activation = native_linear(linear, bias), activation
        self.number = next(_NUMBERS)
        _POOLERS[self.number] = self


class NativeEncoder(arrays.Encoder):
    """`arrays.Encoder` of tensors on the CPU, registered for the PyTorch operator."""

    def __init__(
        self,
        layers: Sequence[NativeLayer],
        tables: Sequence[NativeTable],
        norm: Sequence[Tensor],
        heads: int,
        epsilons: tuple[float, float],
        projection: arrays.Weight | arrays.Dense | None = None,
        distances: Tensor | None = None,
    ):
        parts = [_array(part) for part in norm]
        super().__init__(layers, tables, parts, heads, epsilons, projection, _array(distances))
        self._number = next(_NUMBERS)
        _ENCODERS[self._number] = self

    def __call__(
        self,
        lengths: Tensor,
        words: Tensor,
        positions: Tensor,
        types: Tensor | None,
        pooler: NativePooler | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Outputs:
        """The outputs for sequences without padding.

        Args:
            lengths (`torch.Tensor` of shape `(sequences,)`, int64): Tokens of each sequence, none 0.
            words, positions, types (`torch.Tensor` of shape `(lengths.sum(),)`, int64): Rows of the tables; `None` for
                types where there is no such table.
            pooler (`NativePooler`, *optional*).
            weight (`torch.Tensor` of shape `(labels, hidden)`, *optional*): Of a classifier on the pooler's outputs.
            bias (`torch.Tensor` of shape `(labels,)`, *optional*).

        Raises:
            IndexError: if there is no such row.
            RuntimeError: if shapes, dtypes or devices are others, or a length is below 1.
        """
        number = -1 if pooler is None else pooler.number
        hidden, pooled, logits = _encode(lengths, words, positions, types, weight, bias, number, self._number)
        return Outputs(hidden, None if pooler is None else pooled, None if weight is None else logits)


# PyTorch operators take tensors and numbers: encoders and poolers go by their numbers.
_NUMBERS = itertools.count()
_ENCODERS: WeakValueDictionary[int, NativeEncoder] = WeakValueDictionary()
_POOLERS: WeakValueDictionary[int, NativePooler] = WeakValueDictionary()


def _encode_like(
    lengths: Tensor,
    words: Tensor,
    positions: Tensor,
    types: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    pooler: int,
    encoder: int,
) -> tuple[Tensor, Tensor, Tensor]:
    width, labels = _ENCODERS[encoder].hidden, 0 if weight is None else weight.shape[0]
    shapes = ((words.shape[0], width), (lengths.shape[0], 0 if pooler < 0 else width), (lengths.shape[0], labels))
    hidden, pooled, logits = (words.new_empty(shape, dtype=torch.float32) for shape in shapes)
    return hidden, pooled, logits


@operator(
    "encoder(Tensor lengths, Tensor words, Tensor positions, Tensor? types, Tensor? weight, Tensor? bias, int pooler, "
    "int encoder) -> (Tensor, Tensor, Tensor)",
    fake=_encode_like,
)
def _encode(
    lengths: Tensor,
    words: Tensor,
    positions: Tensor,
    types: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    pooler: int,
    encoder: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, pooler's outputs and logits; the last two have no columns without a pooler or classifier."""
    run, tokens, sequences = _ENCODERS[encoder], words.numel(), lengths.numel()
    given = (lengths, words, positions) if types is None else (lengths, words, positions, types)
    if any(t.dtype != torch.int64 or t.dim() != 1 for t in given) or any(t.shape[0] != tokens for t in given[1:]):
        raise arrays.wrong_indices(given)
    run.check_tables(len(given) - 1)
    linear = None if pooler < 0 else _POOLERS[pooler].linear
    run.check_head(linear, None if weight is None else weight.shape[-1])
    classifier = None
    if weight is not None:
        arrays.check_dense(weight.shape, None if bias is None else bias.shape)
        weight, bias = _floats(weight), None if bias is None else _floats(bias)
        address = None if bias is None else bias.data_ptr()
        classifier = arrays.DenseStruct(weight.shape[0], weight.data_ptr(), address)
    indices = [index.contiguous() for index in given[1:]]
    hidden = torch.empty(tokens, run.hidden)
    pooled = torch.empty(sequences, 0 if linear is None else run.hidden)
    logits = torch.empty(sequences, 0 if weight is None else weight.shape[0])
    status = run.compute(
        lengths.numpy(),
        tokens,
        [index.data_ptr() for index in indices],
        [out.data_ptr() for out in (hidden, pooled, logits)],
        linear,
        classifier,
        "tanh" if pooler < 0 else _POOLERS[pooler].activation,
        torch.get_num_threads(),
    )
    run.check_status(status, indices)
    return hidden, pooled, logits
