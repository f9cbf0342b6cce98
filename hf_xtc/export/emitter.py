"""The parts of a graph that all runtimes share: quantized linears, packed embeddings, constants.

An `Emitter` turns layers of this package into nodes. The arithmetic is that of the `reference` backend with the scales
applied after the product: integers (activations) times integers (codes), then the scale of the token, the scale of
the channel, the bias. Hidden states are two-dimensional, `(tokens, features)`, from the embedding to the
head. Constants are stored in float16 where that is lossless.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hf_xtc.modeling.layers import PackedEmbedding, PackedLinear
from hf_xtc.quantization.activations import ActivationQuantizer, activation_levels
from hf_xtc.quantization.packing import codes_per_byte, unpack
from hf_xtc.quantization.quantizers import code_integers, get_quantizer
from hf_xtc.quantization.specs import ActivationSpec

Array = NDArray[Any]
Value = Any  # the output of a node, as a runtime represents it


class Quantized(NamedTuple):
    """A quantized input of linears, `scale * (levels + zero)`; without a scale, `levels` is the float input.

    `scale` and `zero` are `(tokens, 1)`, or of one element if static; `zero` is a whole number, as a float.
    """

    levels: Value
    scale: Value | None = None
    zero: Value | None = None


def raw_codes(layer: PackedLinear) -> NDArray[np.uint8]:
    """The codes of a packed weight, `(out_features, in_features)`."""
    array: NDArray[np.uint8] = _codes(layer).numpy()
    return array


def signed_codes(layer: PackedLinear) -> NDArray[np.int8]:
    """The integers of a packed weight, `(out_features, in_features)`: weight = scale * integers."""
    array: NDArray[np.int8] = code_integers(_codes(layer), layer.spec.quantizer).numpy()
    return array


def _codes(layer: PackedLinear) -> Tensor:
    return unpack(layer.weight_packed.cpu(), layer.columns, get_quantizer(layer.spec.quantizer).levels)


class Emitter(ABC):
    """Builds the graph of one model; each subclass creates the nodes of one runtime.

    Args:
        weights (`str`): How codes of linears are stored, one of the format's in `exporting.FORMATS`.
    """

    def __init__(self, weights: str):
        self.weights = weights
        self._inputs_of_linears: dict[Any, Quantized] = {}
        self._tables: dict[int, Value] = {}

    @abstractmethod
    def constant(self, array: Array) -> Value:
        """A stored tensor."""

    @abstractmethod
    def node(self, kind: str, *inputs: Value, **attributes: Any) -> Value:
        """One operation, by a name common to both runtimes: Add, Subtract, Softmax, ..."""

    @abstractmethod
    def gather(self, table: Value, index: Value, axis: int = 0) -> Value:
        """`table[index]` along an axis."""

    @abstractmethod
    def cast(self, value: Value, dtype: str) -> Value:
        """`value` as float32, int32 or int64."""

    @abstractmethod
    def reshape(self, value: Value, shape: list[int]) -> Value:
        """`value` in another shape; -1 is inferred, 0 copies the size."""

    @abstractmethod
    def unflatten(self, value: Value, *tail: int) -> Value:
        """`(tokens, ...)` to `(batch, sequence, *tail)`."""

    @abstractmethod
    def transpose(self, value: Value, order: list[int]) -> Value:
        """Axes in another order."""

    @abstractmethod
    def first_columns(self, value: Value, count: int) -> Value:
        """The first columns of a matrix."""

    @abstractmethod
    def matmul(self, left: Value, right: Value) -> Value:
        """Matrix product of the last two axes."""

    @abstractmethod
    def project(self, value: Value, weight: Value) -> Value:
        """`value @ weight.T`, for a float32 weight of shape `(out_features, in_features)`."""

    @abstractmethod
    def extreme(self, value: Value, which: str) -> Value:
        """The largest ("max") or smallest ("min") of each row, `(tokens, 1)`."""

    @abstractmethod
    def total(self, value: Value) -> Value:
        """The sum of each row, `(rows, 1)`."""

    @abstractmethod
    def cumulative_sum(self, value: Value, axis: int) -> Value:
        """Sums of all values up to each one along an axis, itself included."""

    @abstractmethod
    def clip(self, value: Value, low: int, high: int) -> Value:
        """Values between two bounds."""

    @abstractmethod
    def layer_norm(self, value: Value, norm: nn.LayerNorm) -> Value:
        """A `LayerNorm` over the last axis."""

    @abstractmethod
    def activation(self, value: Value, name: str) -> Value:
        """An activation function, by its name in transformers.

        Raises:
            XTCError: if there is no node for it (the message lists those that exist).
        """

    def number(self, value: float) -> Value:
        """A float32 scalar."""
        return self.constant(np.array(value, np.float32))

    def codes(self, layer: PackedLinear) -> Value:
        """The integers of a packed weight as float32 `(out_features, in_features)`, stored compactly."""
        return self.cast(self.constant(signed_codes(layer)), "float32")

    def tensor(self, tensor: Tensor) -> Value:
        """A float tensor, as float32; stored in float16 where that is lossless."""
        array = tensor.detach().float().cpu().numpy()
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        if array.size > 16 and np.array_equal(half.astype(np.float32), array):
            return self.cast(self.constant(half), "float32")
        return self.constant(array)

    def guard(self, value: Value, other: Value) -> Value:
        """`value`, or `other` where it is zero."""
        zero = self.node("Equal", value, self.number(0))
        return self.node("Where", zero, other, value)

    def linear(self, value: Value, layer: nn.Module) -> Value:
        """`(tokens, in_features)` to `(tokens, out_features)`, through an `nn.Linear` or a `PackedLinear`."""
        if isinstance(layer, PackedLinear):
            product = self.packed_product(value, layer)
        else:
            assert isinstance(layer, nn.Linear)
            product = self.project(value, self.tensor(layer.weight))
        return product if layer.bias is None else self.node("Add", product, self.tensor(layer.bias))

    def packed_product(self, value: Value, layer: PackedLinear) -> Value:
        """`activation(value) @ weight.T` of a packed linear."""
        if self.shares_table(layer):
            rows = self._unpacked(self._tables[layer.weight_packed.data_ptr()], layer)
            return self.node("Multiply", self.project(value, rows), self.channel_scale(layer))
        if layer.spec.granularity == "per_group":
            values = self.dequantized(self.quantized(value, layer.activation))
            return self.project(values, self._grouped_weight(layer))
        quantized = self.quantized(value, layer.activation)
        return self.scaled(self.integer_product(quantized, layer), quantized, layer)

    def shares_table(self, layer: PackedLinear) -> bool:
        """Whether a linear is the output layer that shares the packed rows of the word embedding."""
        return layer.weight_packed.data_ptr() in self._tables

    def integer_product(self, quantized: Quantized, layer: PackedLinear) -> Value:
        """`levels @ codes.T`, as float32."""
        return self.project(quantized.levels, self.codes(layer))

    def scaled(self, product: Value, quantized: Quantized, layer: PackedLinear) -> Value:
        """The product of integers, plus the contribution of `zero`, times the scales of rows and columns."""
        if quantized.zero is not None:
            sums = self.constant(signed_codes(layer).sum(1, dtype=np.int32).astype(np.float32)[None])
            product = self.node("Add", product, self.node("Multiply", quantized.zero, sums))
        scale = self.channel_scale(layer)
        if quantized.scale is None:
            return self.node("Multiply", product, scale)
        if layer.spec.granularity == "per_tensor":
            return self.node("Multiply", product, self.node("Multiply", quantized.scale, scale))
        return self.node("Multiply", self.node("Multiply", product, quantized.scale), scale)

    def channel_scale(self, layer: PackedLinear) -> Value:
        """Scale of each output channel, `(1, out_features)`, or `(1, 1)` for one scale per tensor."""
        return self.tensor(layer.weight_scale.reshape(1, -1))

    def _grouped_weight(self, layer: PackedLinear) -> Value:
        rows, groups = layer.weight_scale.shape
        codes = self.reshape(self.codes(layer), [rows, groups, -1])
        weight = self.node("Multiply", codes, self.tensor(layer.weight_scale.reshape(rows, groups, 1)))
        return self.reshape(weight, [rows, layer.columns])

    def dequantized(self, quantized: Quantized) -> Value:
        """The fake-quantized input in float32."""
        value = self.cast(quantized.levels, "float32") if quantized.scale is not None else quantized.levels
        if quantized.zero is not None:
            value = self.node("Add", value, quantized.zero)
        return value if quantized.scale is None else self.node("Multiply", value, quantized.scale)

    def quantized(self, value: Value, activation: ActivationQuantizer | None) -> Quantized:
        """The quantized input of a linear; linears that quantize an input alike (q, k, v) share the nodes."""
        if activation is None:
            return Quantized(value)
        static = activation.spec.calibration == "static"
        span = tuple(activation.range.float().tolist()) if static else None
        if span is not None and span[0] == span[1]:  # no range was observed
            return Quantized(value)
        key = (self.identity(value), activation.spec, span)
        if key not in self._inputs_of_linears:
            self._inputs_of_linears[key] = self._quantize(value, activation.spec, span)
        return self._inputs_of_linears[key]

    def identity(self, value: Value) -> Any:
        """A hashable key that identifies a value."""
        return value

    def _quantize(self, value: Value, spec: ActivationSpec, span: tuple[float, float] | None) -> Quantized:
        if spec.symmetric:
            scale = self._symmetric_scale(value, spec, span)
            return Quantized(self.levels(value, scale, spec), scale)
        scale, zero = self._asymmetric_scale(value, spec, span)
        shifted = self.node("Subtract", value, self.node("Multiply", zero, scale))
        return Quantized(self.levels(shifted, scale, spec), scale, zero)

    def levels(self, value: Value, scale: Value, spec: ActivationSpec) -> Value:
        """`round(value / scale)` in the range of the spec, ties to even; whole numbers in float32."""
        low = -(2 ** (spec.bits - 1)) if spec.symmetric else 0
        rounded = self.node("Round", self.node("Divide", value, scale))
        return self.clip(rounded, low, low + 2**spec.bits - 1)

    def _symmetric_scale(self, value: Value, spec: ActivationSpec, span: tuple[float, float] | None) -> Value:
        if span is not None:
            low, high = torch.tensor(span)
            return self.constant(activation_levels(torch.zeros(1), low, high, spec).scale.reshape(1, 1).numpy())
        negative = self.node("Negative", self.extreme(value, "min"))
        largest = self.node("Maximum", self.extreme(value, "max"), negative)
        scale = self.node("Divide", largest, self.number(2 ** (spec.bits - 1)))
        return self.guard(scale, self.number(1))

    def _asymmetric_scale(
        self, value: Value, spec: ActivationSpec, span: tuple[float, float] | None
    ) -> tuple[Value, Value]:
        if span is not None:
            low, high = torch.tensor(span)
            _, scale, offset = activation_levels(torch.zeros(1), low, high, spec)
            assert offset is not None
            zero = (offset / scale).round()
            return self.constant(scale.reshape(1, 1).numpy()), self.constant(zero.reshape(1, 1).numpy())
        low, high = self.extreme(value, "min"), self.extreme(value, "max")
        scale = self.node("Divide", self.node("Subtract", high, low), self.number(2**spec.bits))
        magnitude = self.guard(self.node("Absolute", low), self.number(1))
        scale = self.guard(scale, magnitude)
        return scale, self.node("Round", self.node("Divide", low, scale))

    def embedding(self, index: Value, layer: nn.Module) -> Value:
        """Rows of an `nn.Embedding` or `PackedEmbedding`, `(tokens, embedding_dim)`; expanded by the graph."""
        if not isinstance(layer, PackedEmbedding):
            assert isinstance(layer, nn.Embedding)
            return self._float_rows(layer.weight, index)
        table = self.constant(layer.weight_packed.cpu().numpy())
        self._tables[layer.weight_packed.data_ptr()] = table
        rows = self._unpacked(self.gather(table, index), layer)
        # Scales are float32 before rows are chosen: ONNX Runtime's WebGPU gathers float16 only where the device can.
        return self.node("Multiply", rows, self.gather(self.tensor(layer.weight_scale), index))

    def _float_rows(self, table: Tensor, index: Value) -> Value:
        array = table.detach().float().cpu().numpy()
        half = array.astype(np.float16)
        lossless = np.array_equal(half.astype(np.float32), array)
        return self.cast(self.gather(self.constant(half if lossless else array), index), "float32")

    def _unpacked(self, rows: Value, layer: PackedEmbedding | PackedLinear) -> Value:
        """Packed rows, `(n, bytes)`, as the integers they hold, float32 `(n, columns)`."""
        if get_quantizer(layer.spec.quantizer).levels == 256:
            return self.node("Subtract", self.cast(rows, "float32"), self.number(128))
        return self.cast(self.integers(rows, layer), "float32")

    def integers(self, rows: Value, layer: PackedEmbedding | PackedLinear) -> Value:
        """Packed rows of less than 8 bits a code as int8 `(n, columns)`: one table look-up per byte."""
        levels = get_quantizer(layer.spec.quantizer).levels
        per_byte = codes_per_byte(levels)
        digits = unpack(torch.arange(256, dtype=torch.uint8)[:, None], per_byte, levels)
        table = self.constant(code_integers(digits, layer.spec.quantizer).numpy())
        expanded = self.gather(table, self.cast(rows, "int32"))
        width = layer.weight_packed.shape[1] * per_byte
        rows = self.reshape(expanded, [-1, width])
        return rows if width == layer.columns else self.first_columns(rows, layer.columns)
