"""Writes the graph for ONNX Runtime.

`weights="int8"`: each linear is a `MatMulInteger` of `uint8` activations (one scale a token, zero point 128) with the
exact codes: `int8` for binary, ternary and int4, and for int8 `uint8` with zero point 128, because `uint8 x int8`
saturates on CPUs without VNNI once products exceed 2**14. Linears without quantized inputs, or with one scale per
group, multiply in float by weights that the runtime decodes once, when it loads the file.

`weights="packed"`: the same arithmetic on codes that are stored as in the packed file, 1 bit or 1.6 bits each; ONNX
Runtime unpacks them once, when it loads the file (constant folding, which its default options include).

`weights="2bit"`: each linear is a `MatMulNBits` of 2 bits with `accuracy_level=4`, which quantizes its inputs itself
to 8 bits, one scale for 32 of them: the file is smaller, and close to the model instead of equal.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from hf_xtc.errors import XTCError
from hf_xtc.export.emitter import Array, Emitter, Quantized, Value, signed_codes
from hf_xtc.export.graph import IDS, Interface, hidden_activation, write_graph
from hf_xtc.export.stock import save_plain_config
from hf_xtc.modeling.layers import PackedLinear
from hf_xtc.quantization.activations import ActivationQuantizer
from hf_xtc.quantization.specs import ActivationSpec
from hf_xtc.version import __version__

FILE = "model.onnx"
OPSET, IR_VERSION = 21, 10
BLOCK = 32  # inputs per block of MatMulNBits

_NAMES = {
    "Subtract": "Sub",
    "Multiply": "Mul",
    "Divide": "Div",
    "Negative": "Neg",
    "Maximum": "Max",
    "Absolute": "Abs",
}
_TYPES = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "int64": TensorProto.INT64}
_ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "gelu": ("Gelu", {}),
    "gelu_new": ("Gelu", {"approximate": "tanh"}),
    "gelu_pytorch_tanh": ("Gelu", {"approximate": "tanh"}),
    "relu": ("Relu", {}),
    "tanh": ("Tanh", {}),
}


class OnnxEmitter(Emitter):
    """Nodes and initializers of an ONNX graph; a value is the name of an edge."""

    def __init__(self, weights: str):
        super().__init__(weights)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[Any, onnx.TensorProto] = {}
        self._zero_points: dict[Value, int] = {}  # of uint8 activations

    def constant(self, array: Array) -> Value:
        array = np.ascontiguousarray(array).reshape(np.shape(array))  # ascontiguousarray turns scalars into vectors
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.initializers:
            self.initializers[key] = numpy_helper.from_array(array, f"c{len(self.initializers)}")
        return self.initializers[key].name

    def node(self, kind: str, *inputs: Value, **attributes: Any) -> Value:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(_NAMES.get(kind, kind), list(inputs), [name], **attributes))
        return name

    def gather(self, table: Value, index: Value, axis: int = 0) -> Value:
        return self.node("Gather", table, index, axis=axis)

    def cast(self, value: Value, dtype: str) -> Value:
        return self.node("Cast", value, to=_TYPES[dtype])

    def reshape(self, value: Value, shape: list[int]) -> Value:
        return self.node("Reshape", value, self.constant(np.array(shape, np.int64)))

    def unflatten(self, value: Value, *tail: int) -> Value:
        lead = self.node("Shape", IDS)
        return self.node("Reshape", value, self.node("Concat", lead, self.constant(np.array(tail, np.int64)), axis=0))

    def transpose(self, value: Value, order: list[int]) -> Value:
        return self.node("Transpose", value, perm=order)

    def first_columns(self, value: Value, count: int) -> Value:
        start, end, axis = (self.constant(np.array([i], np.int64)) for i in (0, count, 1))
        return self.node("Slice", value, start, end, axis)

    def matmul(self, left: Value, right: Value) -> Value:
        return self.node("MatMul", left, right)

    def project(self, value: Value, weight: Value) -> Value:
        return self.node("MatMul", value, self.transpose(weight, [1, 0]))

    def extreme(self, value: Value, which: str) -> Value:
        axis = self.constant(np.array([-1], np.int64))
        return self.node("ReduceMax" if which == "max" else "ReduceMin", value, axis, keepdims=1)

    def total(self, value: Value) -> Value:
        return self.node("ReduceSum", value, self.constant(np.array([-1], np.int64)), keepdims=1)

    def cumulative_sum(self, value: Value, axis: int) -> Value:
        return self.node("CumSum", value, self.constant(np.array(axis, np.int64)))

    def clip(self, value: Value, low: int, high: int) -> Value:
        return self.node("Clip", value, self.number(low), self.number(high))

    def layer_norm(self, value: Value, norm: nn.LayerNorm) -> Value:
        weight, bias = self.tensor(norm.weight), self.tensor(norm.bias)
        return self.node("LayerNormalization", value, weight, bias, axis=-1, epsilon=norm.eps)

    def activation(self, value: Value, name: str) -> Value:
        kind, attributes = _ACTIVATIONS[name]
        return self.node(kind, value, **attributes)

    def levels(self, value: Value, scale: Value, spec: ActivationSpec) -> Value:
        """In uint8: `QuantizeLinear` divides, rounds and saturates in one pass over the rows."""
        zero_point = 128 if spec.symmetric else 0
        zero = np.array([zero_point], np.uint8)
        if spec.calibration == "static":
            scale = self.reshape(scale, [])
            levels = self.node("QuantizeLinear", value, scale, self.constant(zero[0]))
        else:
            scale = self.reshape(scale, [-1])
            zeros = self.node("ConstantOfShape", self.node("Shape", scale), value=numpy_helper.from_array(zero))
            levels = self.node("QuantizeLinear", value, scale, zeros, axis=0)
        if spec.bits < 8:
            low = 128 - 2 ** (spec.bits - 1) if spec.symmetric else 0
            bounds = [self.constant(np.array(bound, np.uint8)) for bound in (low, low + 2**spec.bits - 1)]
            levels = self.node("Clip", levels, *bounds)
        self._zero_points[levels] = zero_point
        return levels

    def dequantized(self, quantized: Quantized) -> Value:
        if quantized.scale is None:
            return quantized.levels
        offset = self.number(self._zero_points[quantized.levels])
        levels = self.node("Subtract", self.cast(quantized.levels, "float32"), offset)
        return super().dequantized(quantized._replace(levels=levels))

    def codes(self, layer: PackedLinear) -> Value:
        return self.cast(self._unpacked_codes(layer), "float32") if self._stays_packed(layer) else super().codes(layer)

    def _stays_packed(self, layer: PackedLinear) -> bool:
        return self.weights == "packed" and layer.spec.quantizer != "int8"  # whose codes are bytes

    def _unpacked_codes(self, layer: PackedLinear) -> Value:
        return self.integers(self.constant(layer.weight_packed.cpu().numpy()), layer)

    def integer_product(self, quantized: Quantized, layer: PackedLinear) -> Value:
        """In int32, where the inputs are integers."""
        if quantized.scale is None:
            return super().integer_product(quantized, layer)
        if self._stays_packed(layer):
            zero_point = self.constant(np.array(self._zero_points[quantized.levels], np.uint8))
            codes = self.transpose(self._unpacked_codes(layer), [1, 0])
            return self.node("MatMulInteger", quantized.levels, codes, zero_point)
        codes = np.ascontiguousarray(signed_codes(layer).T)
        zero_points = [self.constant(np.array(self._zero_points[quantized.levels], np.uint8))]
        if layer.spec.quantizer == "int8":
            codes = (codes.astype(np.int16) + 128).astype(np.uint8)
            zero_points.append(self.constant(np.array(128, np.uint8)))
        return self.node("MatMulInteger", quantized.levels, self.constant(codes), *zero_points)

    def scaled(self, product: Value, quantized: Quantized, layer: PackedLinear) -> Value:
        """As `Emitter.scaled`; `DequantizeLinear` casts and scales rows in one pass over memory."""
        if quantized.scale is None:
            return super().scaled(product, quantized, layer)
        if quantized.zero is not None or (layer.activation and layer.activation.spec.calibration == "static"):
            return super().scaled(self.cast(product, "float32"), quantized, layer)
        row_scale, channel_scale = quantized.scale, self.channel_scale(layer)
        if layer.spec.granularity == "per_tensor":
            row_scale = self.node("Multiply", row_scale, channel_scale)
        product = self.node("DequantizeLinear", product, self.reshape(row_scale, [-1]), axis=0)
        return product if layer.spec.granularity == "per_tensor" else self.node("Multiply", product, channel_scale)

    def packed_product(self, value: Value, layer: PackedLinear) -> Value:
        if self.weights != "2bit" or self.shares_table(layer):
            return super().packed_product(value, layer)
        return self._matmul_2bit(self._input_2bit(value, layer.activation), layer)

    def _input_2bit(self, value: Value, activation: ActivationQuantizer | None) -> Value:
        """The float input of a `MatMulNBits`; its own 8-bit symmetric quantization replaces that of the model."""
        if activation is None or activation.spec == ActivationSpec():
            return value
        return self.dequantized(self.quantized(value, activation))

    def _matmul_2bit(self, value: Value, layer: PackedLinear) -> Value:
        rows, columns = layer.weight_packed.shape[0], layer.columns
        blocks = -(-columns // BLOCK)
        digits = np.full((rows, blocks * BLOCK), 2, np.uint8)  # 2 is the zero point
        digits[:, :columns] += signed_codes(layer).view(np.uint8)
        quarters = digits.reshape(rows, blocks, BLOCK // 4, 4) << np.array([0, 2, 4, 6], np.uint8)
        scale = self.tensor(layer.weight_scale)
        if layer.spec.granularity == "per_group":
            scale = self._scale_of_blocks(layer, blocks)
        else:  # one scale per row is stored once, and expanded to its blocks when the file is loaded
            scale = self.node("Expand", scale, self.constant(np.array([rows, blocks], np.int64)))
        sizes = {"K": columns, "N": rows, "bits": 2, "block_size": BLOCK, "accuracy_level": 4}
        packed = self.constant(np.bitwise_or.reduce(quarters, axis=-1))
        return self.node("MatMulNBits", value, packed, scale, domain="com.microsoft", **sizes)

    def _scale_of_blocks(self, layer: PackedLinear, blocks: int) -> Value:
        return self.tensor(layer.weight_scale.repeat_interleave((layer.spec.group_size or BLOCK) // BLOCK, dim=1))


def check(model: Any, weights: str) -> None:
    """Checks that a model can be written with these weights.

    Raises:
        XTCError: if its activation function has no node, or weights do not fit `MatMulNBits` ("2bit" alone).
    """
    if (name := hidden_activation(model.config)) not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise XTCError(f"The activation {name!r} cannot be exported to ONNX. Those that can: {known}.")
    if weights != "2bit":
        return
    table = getattr(model.get_input_embeddings(), "weight_packed", None)
    for name, layer in model.named_modules():
        if not isinstance(layer, PackedLinear) or layer.weight_packed is table:  # a shared table keeps its own packing
            continue
        if layer.spec.quantizer not in ("binary", "ternary"):
            raise XTCError(
                f"{name} is {layer.spec.quantizer}, which does not fit 2 bits; only binary and ternary do. "
                "Export with weights='int8'."
            )
        if (layer.spec.group_size or BLOCK) % BLOCK:
            raise XTCError(
                f"{name} has a scale for every {layer.spec.group_size} inputs, but MatMulNBits has one for every "
                f"{BLOCK}. Export with weights='int8'."
            )


def write(model: Any, interface: Interface, folder: Path, weights: str) -> list[Path]:
    """Writes `model.onnx` and `config.json` into a folder; returns the graph's files, the one to load first."""
    save_graph(model, interface, folder / FILE, weights)
    save_plain_config(model, folder)
    return [folder / FILE]


def save_graph(model: Any, interface: Interface, path: Path, weights: str) -> None:
    """Writes the graph of a model to a file."""
    emitter, inputs = OnnxEmitter(weights), interface.inputs
    length = emitter.node("Shape", IDS, start=1, end=2)
    first, step = emitter.constant(np.array(0, np.int64)), emitter.constant(np.array(1, np.int64))
    places = emitter.node("Range", first, emitter.reshape(length, []), step)
    outputs = write_graph(emitter, model, interface, {name: name for name in inputs}, places)
    for name, output in outputs.items():
        emitter.nodes.append(helper.make_node("Identity", [output.value], [name]))
    open_shape = ("batch", "sequence")
    graph = helper.make_graph(
        emitter.nodes,
        type(model).__name__,
        [helper.make_tensor_value_info(name, TensorProto.INT64, open_shape) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, output.shape) for name, output in outputs.items()],
        list(emitter.initializers.values()),
    )
    domains = [helper.make_opsetid("", OPSET)]
    if weights == "2bit":
        domains.append(helper.make_opsetid("com.microsoft", 1))
    proto = helper.make_model(
        graph,
        opset_imports=domains,
        ir_version=IR_VERSION,
        producer_name="hf_xtc",
        producer_version=__version__,
    )
    onnx.save(proto, path)


class Runner:
    """The written file in ONNX Runtime on the CPU, with default options."""

    def __init__(self, path: Path):
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.inputs = [entry.name for entry in self.session.get_inputs()]
        self.names = [output.name for output in self.session.get_outputs()]

    def __call__(self, batch: dict[str, torch.Tensor]) -> dict[str, Array]:
        feeds = {name: batch[name].numpy() for name in self.inputs}
        return dict(zip(self.names, self.session.run(self.names, feeds), strict=True))
