"""Writes the graph for OpenVINO, as OpenVINO IR for any of its devices.

Codes are constants of `u1` (binary), `u2` (ternary), `u4` (int4) or `i8` (int8) with `weights="2bit"`, of `i8` with
`weights="int8"` (ARM has no `u1`). Both are exact, and so is the product: activations are whole numbers in float32,
and sums of whole numbers below 2**24 are not rounded. The file asks the runtime not to quantize them again. On CPUs
with bfloat16 compile with `{"INFERENCE_PRECISION_HINT": "f32"}`, or everything else is computed in bfloat16.
"""

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch
from openvino import opset13
from torch import nn

from hf_xtc.errors import XTCError
from hf_xtc.export.emitter import Array, Emitter, Value, raw_codes
from hf_xtc.export.graph import IDS, Interface, hidden_activation, write_graph
from hf_xtc.export.stock import save_plain_config
from hf_xtc.modeling.layers import PackedLinear
from hf_xtc.version import __version__

FILE = "openvino_model.xml"

_NAMES = {"Where": "select"}
_PACKED = {"binary": (ov.Type.u1, 1), "ternary": (ov.Type.u2, 2), "int4": (ov.Type.u4, 4)}
_ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "tanh")


class OpenVinoEmitter(Emitter):
    """Nodes of an OpenVINO graph; a value is a node with one output."""

    def __init__(self, weights: str, shape: Value):
        super().__init__(weights)
        self._shape = shape  # batch, sequence
        self._kept: list[Any] = []
        self._small: dict[Any, Value] = {}

    def constant(self, array: Array) -> Value:
        array = np.ascontiguousarray(array).reshape(np.shape(array))  # ascontiguousarray turns scalars into vectors
        if array.size > 16:
            return opset13.constant(array)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._small:
            self._small[key] = opset13.constant(array)
        return self._small[key]

    def _integers(self, *values: int) -> Value:
        return self.constant(np.array(values, np.int64))

    def identity(self, value: Value) -> Any:
        return value.get_friendly_name()

    def node(self, kind: str, *inputs: Value, **attributes: Any) -> Value:
        return getattr(opset13, _NAMES.get(kind, kind.lower()))(*inputs, **attributes)

    def gather(self, table: Value, index: Value, axis: int = 0) -> Value:
        return opset13.gather(table, index, self.constant(np.array(axis, np.int64)))

    def cast(self, value: Value, dtype: str) -> Value:
        return opset13.convert(value, {"float32": "f32", "int32": "i32", "int64": "i64"}[dtype])

    def reshape(self, value: Value, shape: list[int]) -> Value:
        return opset13.reshape(value, self._integers(*shape), special_zero=True)

    def unflatten(self, value: Value, *tail: int) -> Value:
        shape = opset13.concat([self._shape, self._integers(*tail)], axis=0)
        return opset13.reshape(value, shape, special_zero=False)

    def transpose(self, value: Value, order: list[int]) -> Value:
        return opset13.transpose(value, self._integers(*order))

    def first_columns(self, value: Value, count: int) -> Value:
        start, end, step, axis = (self._integers(i) for i in (0, count, 1, 1))
        return opset13.slice(value, start, end, step, axis)

    def matmul(self, left: Value, right: Value) -> Value:
        return opset13.matmul(left, right, False, False)

    def project(self, value: Value, weight: Value) -> Value:
        return opset13.matmul(value, weight, False, True)

    def extreme(self, value: Value, which: str) -> Value:
        reduce = opset13.reduce_max if which == "max" else opset13.reduce_min
        return reduce(value, self._integers(-1), keep_dims=True)

    def total(self, value: Value) -> Value:
        return opset13.reduce_sum(value, self._integers(-1), keep_dims=True)

    def cumulative_sum(self, value: Value, axis: int) -> Value:
        return opset13.cum_sum(value, self.constant(np.array(axis, np.int64)))

    def clip(self, value: Value, low: int, high: int) -> Value:
        return opset13.clamp(value, float(low), float(high))

    def layer_norm(self, value: Value, norm: nn.LayerNorm) -> Value:
        centred = opset13.mvn(value, self._integers(-1), True, norm.eps, "inside_sqrt")
        return opset13.add(opset13.multiply(centred, self.tensor(norm.weight)), self.tensor(norm.bias))

    def activation(self, value: Value, name: str) -> Value:
        if name.startswith("gelu"):
            return opset13.gelu(value, "erf" if name == "gelu" else "tanh")
        return self.node(name, value)

    def codes(self, layer: PackedLinear) -> Value:
        if self.weights != "2bit" or layer.spec.quantizer not in _PACKED:
            return super().codes(layer)
        kind, bits = _PACKED[layer.spec.quantizer]
        packed = _packed_digits(raw_codes(layer), bits)
        constant = ov.op.Constant(ov.Tensor(packed, ov.Shape((layer.weight_packed.shape[0], layer.columns)), kind))
        self._kept.append(packed)  # the constant reads this memory until the file is written
        middle = 2 ** (bits - 1) if bits > 2 else bits / 2
        codes = opset13.subtract(self.cast(constant, "float32"), self.number(middle))
        return opset13.multiply(codes, self.number(2)) if bits == 1 else codes


def _packed_digits(codes: Array, bits: int) -> Array:
    """All codes in one row of bytes, starting at the highest bit for `u1`, at the lowest for `u2` and `u4`."""
    if bits == 1:
        return np.packbits(codes, bitorder="big")
    per_byte = 8 // bits
    digits = np.pad(codes.ravel(), (0, -codes.size % per_byte)).reshape(-1, per_byte)
    packed: Array = np.bitwise_or.reduce(digits << np.arange(0, 8, bits, dtype=np.uint8), axis=1)
    return packed


def check(model: Any, weights: str) -> None:
    """Checks that a model can be written with these weights.

    Raises:
        XTCError: if its activation function has no node.
    """
    if (name := hidden_activation(model.config)) not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise XTCError(f"The activation {name!r} cannot be exported to OpenVINO. Those that can: {known}.")


def write(model: Any, interface: Interface, folder: Path, weights: str) -> list[Path]:
    """Writes `openvino_model.xml` and `.bin` into a folder; returns the written files, the one to load first."""
    longest = ov.Dimension(1, interface.longest)  # a longer row would read beyond the embedding
    inputs = {}
    for name in interface.inputs:
        inputs[name] = opset13.parameter(ov.PartialShape([ov.Dimension(), longest]), ov.Type.i64, name=name)
        inputs[name].output(0).set_names({name})
    shape = opset13.shape_of(inputs[IDS])
    emitter = OpenVinoEmitter(weights, shape)
    length = opset13.gather(shape, np.int64(1), np.int64(0))
    places = opset13.range(np.int64(0), length, np.int64(1), "i64")
    outputs = write_graph(emitter, model, interface, inputs, places)
    results = []
    for name, output in outputs.items():
        result = opset13.result(output.value)
        result.output(0).set_names({name})
        results.append(result)
    graph = ov.Model(results, list(inputs.values()), type(model).__name__)
    graph.set_rt_info(f"hf_xtc {__version__}", ["producer"])
    graph.set_rt_info("0", ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
    ov.save_model(graph, folder / FILE, compress_to_fp16=False)
    save_plain_config(model, folder)
    return [folder / FILE, (folder / FILE).with_suffix(".bin")]


class Runner:
    """The written file on the CPU, in float32."""

    def __init__(self, path: Path):
        core = ov.Core()
        self.compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def __call__(self, batch: dict[str, torch.Tensor]) -> dict[str, Array]:
        names = [entry.get_any_name() for entry in self.compiled.inputs]
        results = self.compiled({name: batch[name].numpy() for name in names})
        return {output.get_any_name(): np.array(value) for output, value in results.items()}
