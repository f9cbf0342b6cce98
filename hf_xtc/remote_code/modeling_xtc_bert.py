"""Packed XTC BERTs for transformers without the package hf_xtc: what `trust_remote_code=True` runs.

Generated from hf_xtc's sources, not to be edited. It reads, checks and runs packed models: on the reference backend,
which decodes weights and multiplies in float, or after `set_backend("int8")` in whole numbers. To train, compress or
write packed files, or for the fast native operator, install hf_xtc: it then takes the place of this file by itself.
Needs torch, transformers, and what transformers itself needs. Licence: Apache-2.0.
"""

import json
import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from weakref import WeakKeyDictionary

import torch
from huggingface_hub.dataclasses import strict
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    BertPreTrainedModel,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.models.bert.modeling_bert import (
    BertEmbeddings,
    BertEncoder,
    BertOnlyMLMHead,
    BertOnlyNSPHead,
    BertPooler,
    BertPreTrainingHeads,
)


class XTCError(ValueError):
    """Root of all errors that this package raises on bad input."""


class RecipeError(XTCError):
    """A recipe, quantization spec or layer map that cannot be carried out."""


class PackedFileError(XTCError):
    """A packed checkpoint that is truncated, inconsistent, or written by an unknown format version."""


class StateError(XTCError):
    """A model in the wrong state: latent where packed is needed, or the reverse."""


MOST_BYTES = 2**26


def parse_json(text: str) -> Any:
    """As `json.loads`."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(file: str | os.PathLike[str]) -> Any:
    """The JSON of a file."""
    path = Path(file)
    if path.exists() and (not path.is_file()):
        raise OSError(f"{path} is no plain file")
    if path.stat().st_size > MOST_BYTES:
        raise OSError(f"{path} has {path.stat().st_size} bytes, more than any configuration or record of a run")
    return parse_json(path.read_text(encoding="utf-8"))


class Registry(dict[str, Any]):
    """Name -> object table that refuses duplicates and answers a typo with the known names."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def register(self, name: str) -> Callable[[Any], Any]:
        """Decorator that enters the object under `name`; raises `XTCError` if the name is taken."""
        if name in self:
            raise XTCError(f"{self.kind} {name!r} is already registered (by {self[name].__module__}).")

        def decorate(obj: Any) -> Any:
            self[name] = obj
            return obj

        return decorate

    def __missing__(self, name: str) -> Any:
        raise XTCError(f"Unknown {self.kind} {name!r}; registered: {', '.join(sorted(self))}.")


QUANTIZERS = Registry("quantizer")
GRANULARITIES = ("per_tensor", "per_channel", "per_group")
FLOAT_DTYPES = ("float16", "bfloat16", "float32")


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raises `RecipeError` naming the choices if `value` is none of them."""
    if value not in choices or type(value) not in map(type, choices):
        raise RecipeError(f"{name}={value!r} does not exist. Use one of: {', '.join(map(str, choices))}.")


def check_count(name: str, value: object) -> None:
    """Raises `RecipeError` unless `value` is a positive whole number."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise RecipeError(f"{name}={value!r} must be a positive whole number.")


@dataclass(frozen=True)
class QuantSpec:
    """How a weight of shape `(rows, columns)` is quantized."""

    quantizer: str = "binary"
    granularity: str = "per_channel"
    group_size: int | None = None
    scale_dtype: str = "float16"

    def __post_init__(self) -> None:
        QUANTIZERS[str(self.quantizer)]
        check_choice("granularity", self.granularity, GRANULARITIES)
        check_choice("scale_dtype", self.scale_dtype, FLOAT_DTYPES)
        if (self.granularity == "per_group") != (self.group_size is not None):
            raise RecipeError(
                f"granularity={self.granularity!r} with group_size={self.group_size!r}: a group size is needed by 'per_group' and has no meaning elsewhere. Set both or neither."
            )
        if self.group_size is not None:
            check_count("group_size", self.group_size)

    def scale_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """Shape of the scale of a `(rows, columns)` weight."""
        if self.granularity == "per_tensor":
            return (1, 1)
        if self.group_size is None:
            return (rows, 1)
        if columns % self.group_size:
            raise RecipeError(
                f"group_size={self.group_size} does not divide the {columns} input columns of a {rows} x {columns} weight, so its last group would be short. Choose a divisor, or granularity='per_channel'."
            )
        return (rows, columns // self.group_size)


@dataclass(frozen=True)
class ActivationSpec:
    """How the input of a quantized linear is fake-quantized."""

    bits: int = 8
    symmetric: bool = True
    calibration: str = "dynamic"

    def __post_init__(self) -> None:
        check_choice("activation bits", self.bits, (8, 4))
        check_choice("activation symmetric", self.symmetric, (True, False))
        check_choice("activation calibration", self.calibration, ("dynamic", "static"))


@dataclass(frozen=True)
class LayerMap:
    """Which teacher layer initialises and teaches each student layer."""

    layers: tuple[int, ...]
    num_teacher_layers: int
    shifted: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        last, depth = (self.num_teacher_layers - 1, self.num_teacher_layers)
        if not self.layers:
            raise RecipeError("A layer map needs at least one teacher layer; got none.")
        for layer in self.layers:
            if not isinstance(layer, int) or isinstance(layer, bool):
                raise RecipeError(f"layers={self.layers} must be whole numbers; {layer!r} is not.")
            if not 0 <= layer <= last:
                hint = f" LayerMap.skip({depth}, {len(self.layers)})" if len(self.layers) <= depth else " fewer layers"
                raise RecipeError(
                    f"layers={self.layers} names teacher layer {layer}, but the teacher has {depth} layers (0-{last}). Use{hint}."
                )
        for before, after in zip(self.layers, self.layers[1:], strict=False):
            if after <= before:
                what = "repeats" if after == before else "is not increasing at"
                raise RecipeError(
                    f"layers={self.layers} {what} layer {after}. Name each teacher layer once, in order."
                )


SCOPES = ("attention", "feed_forward", "pooler", "word_embeddings", "position_embeddings")


@dataclass(frozen=True)
class XTCRecipe:
    """What a compressed model is made of."""

    weights: str | None = "binary"
    granularity: str = "per_channel"
    group_size: int | None = None
    embedding_weights: str | None = "binary"
    position_weights: str | None = "int8"
    quantize_pooler: bool = True
    activation_bits: int | None = 8
    activation_symmetric: bool = True
    activation_calibration: str = "dynamic"
    keep_layers: int | None = None
    layers: tuple[int, ...] | None = None
    shifted_hidden_map: bool = False
    scale_dtype: str = "float16"
    rest_dtype: str = "float16"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is bool and (not isinstance(value, bool)):
                raise RecipeError(f"{field.name}={str(value)[:80]} must be true or false.")
        if self.layers is not None:
            self._check_layers(self.layers)
        if self.keep_layers is not None and self.layers is not None:
            raise RecipeError(
                f"keep_layers={self.keep_layers} and layers={self.layers} both choose the student's depth. Give one."
            )
        if self.keep_layers is not None:
            check_count("keep_layers", self.keep_layers)
        check_choice("rest_dtype", self.rest_dtype, FLOAT_DTYPES)
        QuantSpec("binary", self.granularity, self.group_size, self.scale_dtype)
        ActivationSpec(8, self.activation_symmetric, self.activation_calibration)
        for scope in SCOPES:
            self.spec(scope)
        self.activation()

    def _check_layers(self, layers: Any) -> None:
        if isinstance(layers, str | bytes) or not hasattr(layers, "__iter__"):
            raise RecipeError(f"layers={layers!r} must list teacher layers from 0, like (2, 4, 6).")
        object.__setattr__(self, "layers", tuple(layers))
        whole = [layer for layer in self.layers or () if isinstance(layer, int)]
        LayerMap(self.layers or (), max([*whole, 0]) + 1)

    def spec(self, scope: str) -> QuantSpec | None:
        """The `QuantSpec` of a scope's weights, or `None` where they stay in float."""
        check_choice("scope", scope, SCOPES)
        if scope in ("word_embeddings", "position_embeddings"):
            quantizer = self.embedding_weights if scope == "word_embeddings" else self.position_weights
            return None if quantizer is None else QuantSpec(quantizer, "per_channel", None, self.scale_dtype)
        if self.weights is None or (scope == "pooler" and (not self.quantize_pooler)):
            return None
        return QuantSpec(self.weights, self.granularity, self.group_size, self.scale_dtype)

    def activation(self) -> ActivationSpec | None:
        """The `ActivationSpec` of the inputs of quantized linears, or `None` where they stay in float."""
        if self.activation_bits is None:
            return None
        return ActivationSpec(self.activation_bits, self.activation_symmetric, self.activation_calibration)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as a JSON object; `XTCRecipe.from_dict` reads it back."""
        values = asdict(self)
        values["layers"] = None if self.layers is None else list(self.layers)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "XTCRecipe":
        """Reads what `to_dict` wrote."""
        if not isinstance(values, dict):
            raise RecipeError(f"A recipe is a JSON object, not {str(values)[:80]}.")
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise RecipeError(f"A recipe has no field {', '.join(unknown)}; its fields are: {', '.join(known)}.")
        return cls(**values)


def guard_zero(scale: Tensor) -> Tensor:
    """`scale` with zeros replaced by one, so that dividing by it yields no NaN."""
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def largest_magnitude(values: Tensor) -> Tensor:
    """`max|x|` over the last axis, kept as an axis of size 1; 20 times faster on CPU than `vector_norm(ord=inf)`."""
    return torch.maximum(values.amax(-1, keepdim=True), -values.amin(-1, keepdim=True)).abs()


class Quantizer(ABC):
    """One way to write a group of weights as small integers and a scale."""

    levels: int
    citation: str = ""

    @abstractmethod
    def decode(self, codes: Tensor, scale: Tensor) -> Tensor:
        """Values of codes: the shape of `codes`, in the dtype of `scale` (which broadcasts against them)."""


@QUANTIZERS.register("binary")
class BinaryQuantizer(Quantizer):
    """`sign(w) * mean|w|`, the least-squares binary approximation (Rastegari et al. 2016, eq. 6)."""

    levels = 2
    citation = "Rastegari et al., XNOR-Net, ECCV 2016"

    def decode(self, codes: Tensor, scale: Tensor) -> Tensor:
        return codes.to(scale.dtype).sub_(0.5).mul_(2 * scale)


@QUANTIZERS.register("ternary")
class TernaryQuantizer(Quantizer):
    """Ternary weight networks (Li et al. 2016, eq. 5-6): threshold `0.7 mean|w|`, scale the mean beyond it."""

    levels = 3
    citation = "Li et al., Ternary Weight Networks, 2016"

    def decode(self, codes: Tensor, scale: Tensor) -> Tensor:
        return codes.to(scale.dtype).sub_(1).mul_(scale)


class UniformQuantizer(Quantizer):
    """Symmetric uniform levels: step `2 max|w| / levels`, the positive end saturates (DeepSpeed `SymQuantizer`)."""

    def decode(self, codes: Tensor, scale: Tensor) -> Tensor:
        return codes.to(scale.dtype).sub_(self.levels // 2).mul_(scale)


@QUANTIZERS.register("int8")
class Int8Quantizer(UniformQuantizer):
    """256 uniform levels."""

    levels = 256


@QUANTIZERS.register("int4")
class Int4Quantizer(UniformQuantizer):
    """16 uniform levels."""

    levels = 16


def get_quantizer(name: str) -> Quantizer:
    """The quantizer registered under `name`."""
    quantizer: Quantizer = QUANTIZERS[name]()
    return quantizer


def decode_weight(codes: Tensor, scale: Tensor, spec: QuantSpec) -> Tensor:
    """Values of codes, in float32."""
    rows, columns = codes.shape
    quantizer = get_quantizer(spec.quantizer)
    if spec.granularity != "per_group":
        return quantizer.decode(codes, scale.float())
    groups = codes.reshape(-1, columns // scale.shape[1])
    return quantizer.decode(groups, scale.float().reshape(-1, 1)).view(rows, columns)


class Levels(NamedTuple):
    """Activations as whole numbers: `x ~ scale * values + offset`."""

    values: Tensor
    scale: Tensor
    offset: Tensor | None


def _symmetric_levels(x: Tensor, low: Tensor | None, high: Tensor | None, bits: int) -> Levels:
    """Step `2 max|x| / 2**bits`, values in `[-2**(bits-1), 2**(bits-1) - 1]`."""
    given = low is not None and high is not None
    largest = torch.maximum(low.abs(), high.abs()) if given else largest_magnitude(x)
    half = 2 ** (bits - 1)
    scale = largest / float(half)
    return Levels((x / guard_zero(scale)).round_().clamp_(-half, half - 1), scale, None)


def _asymmetric_levels(x: Tensor, low: Tensor | None, high: Tensor | None, bits: int) -> Levels:
    """Step `(max - min) / 2**bits`, values in `[0, 2**bits - 1]` from the step nearest to the minimum."""
    low = x.amin(-1, keepdim=True) if low is None else low
    high = x.amax(-1, keepdim=True) if high is None else high
    scale = (high - low) / 2**bits
    scale = torch.where(scale == 0, guard_zero(low.abs()), scale)
    zero = (low / scale).round_() * scale
    return Levels(((x - zero) / scale).round_().clamp_(0, 2**bits - 1), scale, zero)


def activation_levels(values: Tensor, low: Tensor | None, high: Tensor | None, spec: ActivationSpec) -> Levels:
    """Whole numbers of activations; `low` and `high` are given (static) or taken per token (dynamic)."""
    levels = _symmetric_levels if spec.symmetric else _asymmetric_levels
    return levels(values.float(), low, high, spec.bits)


class _FakeQuantizeActivation(torch.autograd.Function):
    """The values of `activation_levels` (the native operator computes the same bits), with an identity gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, low: Tensor | None, high: Tensor | None, spec: ActivationSpec) -> Tensor:
        whole, scale, offset = activation_levels(values, low, high, spec)
        fake = whole.mul_(scale)
        return (fake if offset is None else fake.add_(offset)).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return (grads[0], None, None, None)


class ActivationQuantizer(nn.Module):
    """Fake-quantizes the input of a linear; a static range lives in the buffer `range`, `(2,)` float32: low, high."""

    range: Tensor

    def __init__(self, spec: ActivationSpec):
        super().__init__()
        self.spec = spec
        if spec.calibration == "static":
            self.register_buffer("range", torch.zeros(2, dtype=torch.float32))

    def extra_repr(self) -> str:
        kind = "symmetric" if self.spec.symmetric else "asymmetric"
        return f"bits={self.spec.bits}, {kind}, {self.spec.calibration}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ActivationQuantizer":
        seen = self.range if self.spec.calibration == "static" else None
        super()._apply(fn, recurse)
        if seen is not None and self.range.dtype != seen.dtype:
            self.range = seen.to(self.range.device)
        return self

    def has_range(self) -> bool:
        """Whether activations can be quantized: always per token; with a static range, once one was seen."""
        return self.spec.calibration == "dynamic" or bool(self.range[0] != self.range[1])

    def levels(self, values: Tensor) -> Levels:
        """`values` of shape `(..., features)` as whole numbers: `forward` returns what they stand for."""
        if self.spec.calibration == "dynamic":
            return activation_levels(values, None, None, self.spec)
        return activation_levels(values, self.range[0], self.range[1], self.spec)

    def forward(self, values: Tensor) -> Tensor:
        """`values` of shape `(..., features)` on at most `2**bits` levels; same shape and dtype."""
        if self.spec.calibration == "dynamic":
            dynamic: Tensor = _FakeQuantizeActivation.apply(values, None, None, self.spec)
            return dynamic
        seen = self.range
        low, high = (seen[0], seen[1])
        static: Tensor = _FakeQuantizeActivation.apply(values, low, high, self.spec)
        return torch.where(low == high, values, static)


FORMAT_VERSION = 1
LARGEST = 2.0**18
_PER_BYTE = {2: 8, 3: 5, 16: 2, 256: 1}


def codes_per_byte(levels: int) -> int:
    """How many codes below `levels` one byte holds."""
    if levels not in _PER_BYTE:
        raise XTCError(f"No packed width is defined for {levels} levels; there is one for {sorted(_PER_BYTE)}.")
    return _PER_BYTE[levels]


def packed_width(columns: int, levels: int) -> int:
    """Bytes of a packed row of `columns` codes: `ceil(columns / codes_per_byte)`."""
    return -(-columns // codes_per_byte(levels))


def _digit_weights(levels: int, device: torch.device) -> Tensor:
    return levels ** torch.arange(codes_per_byte(levels), device=device)


def unpack(packed: Tensor, columns: int, levels: int) -> Tensor:
    """Codes of packed rows; the reverse of `pack`."""
    if packed.shape[-1] != packed_width(columns, levels):
        raise XTCError(
            f"Packed rows of {packed.shape[-1]} bytes cannot hold {columns} codes of {levels} levels, which take {packed_width(columns, levels)} bytes."
        )
    if levels == 256:
        return packed
    table = torch.arange(256, device=packed.device)[:, None] // _digit_weights(levels, packed.device) % levels
    digits = torch.nn.functional.embedding(packed.int(), table.to(torch.uint8))
    return digits.flatten(-2)[..., :columns]


class PackedWeight(NamedTuple):
    """A quantized weight as it lies in the file."""

    packed: Tensor
    scale: Tensor
    columns: int
    spec: QuantSpec

    def decode(self) -> Tensor:
        """The weight in float32, `(rows, columns)`: bit for bit what training saw."""
        levels = get_quantizer(self.spec.quantizer).levels
        return decode_weight(unpack(self.packed, self.columns, levels), self.scale, self.spec)

    def rows(self, index: Tensor) -> "PackedWeight":
        """The rows named by `index` (`torch.Tensor` of shape `(n,)`, integer), still packed."""
        scale = self.scale if self.spec.granularity == "per_tensor" else self.scale[index]
        return self._replace(packed=self.packed[index], scale=scale)


def check_packed(packed: Tensor, scale: Tensor, levels: int, name: str) -> None:
    """Checks the values of loaded codes and scales, where shapes and types are right already."""
    largest = levels ** codes_per_byte(levels) - 1
    if packed.numel() and int(packed.max()) > largest:
        raise PackedFileError(
            f"{name}.weight_packed holds the byte {int(packed.max())}, but {levels}-level codes end at {largest}. The file is damaged; download or write it again."
        )
    if not bool((torch.isfinite(scale) & (scale >= 0)).all()):
        raise PackedFileError(
            f"{name}.weight_scale holds a negative, NaN or infinite scale. The file is damaged; download or write it again."
        )


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I64": torch.int64,
}
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def read_header(file: str | os.PathLike[str]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Name -> (dtype, shape) of every tensor of a safetensors file; reads the header only."""
    try:
        if os.path.exists(file) and (not os.path.isfile(file)):
            raise OSError("no plain file")
        with safe_open(file, framework="pt") as reader:
            slices = {name: reader.get_slice(name) for name in reader.keys()}
            return {name: (dtype_named(piece.get_dtype()), tuple(piece.get_shape())) for name, piece in slices.items()}
    except (SafetensorError, OSError, MemoryError) as error:
        raise PackedFileError(
            f"{file} is truncated or no safetensors file ({error}). Download or write it again."
        ) from error


def dtype_named(name: str) -> Any:
    """The torch dtype of a safetensors name ("U8"); the name itself if no packed file has such a dtype."""
    return _DTYPES.get(name, name)


def check_header(
    header: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    expected: Mapping[str, Tensor],
    where: str,
    *,
    exact: bool = False,
) -> None:
    """Compares a file's header with the tensors that the configuration promises."""
    missing = [name for name in expected if name not in header]
    if missing:
        raise PackedFileError(
            f"{where} does not hold {len(missing)} of the {len(expected)} tensors that its config.json promises (first: {missing[0]}). Config and weights are not of one model; download or write both again."
        )
    unknown = [name for name in header if name not in expected] if exact else []
    if unknown:
        raise PackedFileError(
            f"{where} holds {len(unknown)} tensors that its config.json does not promise (first: {min(unknown)}). Config and weights are not of one model; download or write both again."
        )
    for name, tensor in expected.items():
        dtype, shape = header[name]
        if shape != tuple(tensor.shape):
            raise PackedFileError(
                f"{where}: {name} has shape {list(shape)}, but config.json promises {list(tensor.shape)}. Config and weights are not of one model; download or write both again."
            )
        quantized = name.endswith(("weight_packed", "weight_scale"))
        if dtype != tensor.dtype if quantized else dtype not in _FLOATS:
            raise PackedFileError(
                f"{where}: {name} has dtype {dtype}, but config.json promises {tensor.dtype}. The file was not written by this package; write it again with pack_model."
            )


BACKENDS = Registry("backend")
Prepared = Callable[[Tensor], Tensor]


class Product(NamedTuple):
    """What a packed linear computes: `activation(x) @ weight.T + bias`."""

    weight: PackedWeight
    bias: Tensor | None
    activation: ActivationQuantizer | None
    dtype: torch.dtype


class Backend(ABC):
    """One way to multiply by packed weights. It holds no state: what it prepares belongs to the layer."""

    differentiable = False
    "Whether gradients pass through its products."

    @classmethod
    @abstractmethod
    def is_available(cls) -> bool:
        """Whether this machine can run it; raises nothing and costs nothing."""

    @abstractmethod
    def supports(self, product: Product) -> bool:
        """Whether it serves these weights, activations, device and dtype."""

    @abstractmethod
    def prepare(self, product: Product) -> Prepared:
        """A function from `x`, `(..., columns)`, to `(..., rows)`, in the dtype of `x`; kept for as long as no operand
        changes, so it may hold the weight in another form."""


logger = logging.getLogger(__name__)
DEFAULT = "reference"


def default_backend() -> str:
    """The name that new packed layers start with: `XTC_BACKEND` of the environment, else `DEFAULT`."""
    return check_backend(os.environ.get("XTC_BACKEND") or DEFAULT)


def check_backend(name: str) -> str:
    """`name`, if there is a backend of that name."""
    BACKENDS[name]
    return name


def choose(name: str, product: Product, *, gradient: bool) -> str:
    """The name of the backend that computes `product` when `name` is asked for."""
    backend: Backend = BACKENDS[name]()
    if backend.differentiable:
        return name
    if gradient or (name == "auto" and torch.compiler.is_compiling()):
        if name != "auto":
            raise StateError(
                f"The {name!r} backend computes with integers, which have no gradient. Call set_backend('reference') on the model before training, or run it under torch.no_grad()."
            )
        return "reference"
    if not backend.supports(product):
        _say_fallback(name, _reason(product))
        return "reference"
    if not torch.compiler.is_compiling():
        say_choice(name, None)
    return name


def _reason(product: Product) -> str:
    if product.activation is None:
        return "activations in float"
    if not product.activation.has_range():
        return "static activations whose range was never calibrated"
    weight = product.weight
    return f"{weight.spec.quantizer} weights of {weight.columns} columns on {weight.packed.device}"


@cache
def say_choice(name: str, native: str | None) -> None:
    """Logs, once, what packed linears run on."""
    how = "PyTorch operations (no native operator)" if native is None else f"the native operator ({native})"
    logger.info("Packed linears run on the %r backend, %s.", name, how)


@cache
def _say_fallback(name: str, reason: str) -> None:
    logger.warning("The %r backend does not serve %s; such linears run on 'reference'.", name, reason)


@BACKENDS.register("reference")
class ReferenceBackend(Backend):
    """Decodes the whole weight at every call: exact, and as slow as it sounds for small batches."""

    differentiable = True

    @classmethod
    def is_available(cls) -> bool:
        return True

    def supports(self, product: Product) -> bool:
        return True

    def prepare(self, product: Product) -> Prepared:
        weight, bias, activation, _ = product

        def linear(x: Tensor) -> Tensor:
            values = x if activation is None else activation(x)
            return torch.nn.functional.linear(values, weight.decode().to(x.dtype), bias)

        return linear


def integer_product(x: Tensor, weight: Tensor, largest: int) -> Tensor:
    """`x @ weight.T` of int8 integers: exact sums, as float32."""
    if x.is_cuda:
        return padded_int_mm(x, weight).float()
    if (x.shape[1] == 1 or not torch.cpu._is_vnni_supported()) and 128 * largest * x.shape[1] < 2**24:
        return x.float() @ weight.float().t()
    return torch._int_mm(x, weight.t()).float()


def padded_int_mm(x: Tensor, weight: Tensor) -> Tensor:
    """`torch._int_mm(x, weight.T)` where it takes more than 16 rows, and sizes divisible by 8, only (CUDA)."""
    rows, columns = (x.shape[0], weight.shape[0])
    more, short, thin = (max(17 - rows, 0), -x.shape[1] % 8, -columns % 8)
    x = torch.nn.functional.pad(x, (0, short, 0, more))
    weight = torch.nn.functional.pad(weight, (0, short, 0, thin))
    return torch._int_mm(x, weight.t())[:rows, :columns]


class _Expanded:
    """A weight as int8 integers: `weight = step * integers`, one step per tensor, row or group of columns."""

    def __init__(self, product: Product):
        weight, self.bias, activation, _ = product
        assert activation is not None
        self.activation = activation
        levels = get_quantizer(weight.spec.quantizer).levels
        codes = unpack(weight.packed, weight.columns, levels)
        binary = levels == 2
        self.largest = 1 if binary else levels // 2
        self.integers = (
            codes.to(torch.int8) * 2 - 1 if binary else (codes.to(torch.int16) - levels // 2).to(torch.int8)
        )
        self.step = weight.scale.float()
        self.grouped = weight.spec.granularity == "per_group"

    def __call__(self, x: Tensor) -> Tensor:
        levels = self.activation.levels(x.detach().reshape(-1, x.shape[-1]))
        shift = 128 if levels.offset is not None and self.activation.spec.bits == 8 else 0
        values = (levels.values - shift if shift else levels.values).to(torch.int8)
        groups = self.step.shape[1] if self.grouped else 1
        y = torch.zeros(len(values), len(self.integers), device=x.device)
        for group, (part, weight) in enumerate(
            zip(values.chunk(groups, 1), self.integers.chunk(groups, 1), strict=True)
        ):
            whole = integer_product(part, weight.contiguous(), self.largest)
            if levels.offset is None:
                y += whole * levels.scale * self.step[:, group]
            else:
                total = weight.float().sum(1)
                y += ((whole + shift * total) * levels.scale + total * levels.offset) * self.step[:, group]
        if self.bias is not None:
            y += self.bias.detach().float()
        return y.to(x.dtype).view(*x.shape[:-1], len(self.integers))


class _IntegerBackend(Backend):
    @classmethod
    def is_available(cls) -> bool:
        return True

    def supports(self, product: Product) -> bool:
        activation, bound = (product.activation, 128 * 128 * product.weight.columns)
        return (
            activation is not None
            and activation.has_range()
            and (product.weight.packed.device.type in ("cpu", "cuda"))
            and (bound < 2**31)
        )


@BACKENDS.register("int8")
class Int8Backend(_IntegerBackend):
    """Codes expanded to one byte each at the first forward."""

    def prepare(self, product: Product) -> Prepared:
        return _Expanded(product)


def _per_row(spec: QuantSpec) -> QuantSpec:
    return replace(spec, granularity="per_channel", group_size=None)


class _Packed(nn.Module):
    """Buffers shared by the packed layers; their dtypes survive `.half()`, `.float()` and `.to(dtype)`."""

    weight_packed: Tensor
    weight_scale: Tensor

    def __init__(self, rows: int, columns: int, spec: QuantSpec, device: torch.device | str | None):
        super().__init__()
        levels, scale_dtype = (get_quantizer(spec.quantizer).levels, getattr(torch, spec.scale_dtype))
        packed = torch.zeros(rows, packed_width(columns, levels), dtype=torch.uint8, device=device)
        scale = torch.zeros(spec.scale_shape(rows, columns), dtype=scale_dtype, device=device)
        self.spec = spec
        self.columns = columns
        self.register_buffer("weight_packed", packed)
        self.register_buffer("weight_scale", scale)

    @property
    def packed_weight(self) -> PackedWeight:
        """Codes, scale and how to read them."""
        return PackedWeight(self.weight_packed, self.weight_scale, self.columns, self.spec)

    def dequantize(self) -> Tensor:
        """The decoded weight, float32, `(rows, columns)`; a new tensor, so writing to it changes nothing here."""
        return self.packed_weight.decode()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_Packed":
        scale = self.weight_scale
        super()._apply(fn, recurse)
        if self.weight_scale.dtype != scale.dtype:
            self.weight_scale = scale.to(self.weight_scale.device)
        return self


def version_of(tensor: Tensor) -> int:
    """How often a tensor was written to, as far as PyTorch counts: not for those made in inference mode."""
    return 0 if tensor.is_inference() else tensor._version


_PREPARED: WeakKeyDictionary[nn.Module, tuple[Any, tuple[Tensor, ...], Prepared]] = WeakKeyDictionary()


class PackedLinear(_Packed):
    """A linear over packed codes. Frozen: gradients reach its input and bias, never its weight."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        spec: QuantSpec,
        activation: ActivationSpec | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__(out_features, in_features, spec, device)
        self.in_features = in_features
        self.out_features = out_features
        self.bias = nn.Parameter(torch.zeros(out_features, device=device)) if bias else None
        self.activation = None if activation is None else ActivationQuantizer(activation)
        self.backend = default_backend()

    def forward(self, input: Tensor) -> Tensor:
        """`(..., in_features)` to `(..., out_features)`."""
        product = Product(self.packed_weight, self.bias, self.activation, input.dtype)
        trained = input.requires_grad or (self.bias is not None and self.bias.requires_grad)
        name = choose(self.backend, product, gradient=trained and torch.is_grad_enabled())
        backend = BACKENDS[name]()
        if backend.differentiable or torch.compiler.is_compiling():
            output: Tensor = backend.prepare(product)(input)
            return output
        operands = tuple(t for t in (*product.weight[:2], self.bias) if t is not None)
        key = (name, None, input.dtype, *((id(t), version_of(t)) for t in operands))
        kept = _PREPARED.get(self)
        if kept is None or kept[0] != key:
            kept = _PREPARED[self] = (key, operands, backend.prepare(product))
        output = kept[2](input)
        return output

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, {self.spec.quantizer} {self.spec.granularity}, backend={self.backend}"


class PackedEmbedding(_Packed):
    """An embedding over packed rows; a lookup unpacks the rows it needs and no others."""

    output: Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        spec: QuantSpec,
        device: torch.device | str | None = None,
    ):
        super().__init__(num_embeddings, embedding_dim, _per_row(spec), device)
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_idx
        self.register_buffer("output", torch.empty(0, device=device), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Token ids of any shape to `(*shape, embedding_dim)`, in the model's dtype."""
        rows = self.packed_weight.rows(input.reshape(-1)).decode()
        return rows.view(*input.shape, self.embedding_dim).to(self.output.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.spec.quantizer} rows"


STATES = ("packed",)


def module_paths(patterns: tuple[str, ...], num_layers: int) -> Iterator[str]:
    """The paths that patterns stand for, in which `*` is a layer index."""
    for path in patterns:
        yield from ((path.replace("*", str(i)) for i in range(num_layers)) if "*" in path else (path,))


def xtc_block(
    recipe: XTCRecipe, layer_map: LayerMap | None = None, provenance: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The JSON object `config.xtc`: format version, recipe, layer map and where the model comes from."""
    return {
        "format_version": FORMAT_VERSION,
        "recipe": recipe.to_dict(),
        "layer_map": None if layer_map is None else {**asdict(layer_map), "layers": list(layer_map.layers)},
        "provenance": provenance or {},
    }


def check_xtc_block(config: Any) -> None:
    """Checks `config.state` and `config.xtc`."""
    check_choice("state", config.state, STATES)
    version = config.xtc.get("format_version")
    if version != FORMAT_VERSION:
        raise PackedFileError(
            f"config.json says format_version={version!r}; this version of hf_xtc reads {FORMAT_VERSION}. Upgrade hf_xtc, or write the checkpoint again."
        )
    layer_map = layer_map_of(config)
    if layer_map is not None and len(layer_map.layers) != config.num_hidden_layers:
        raise PackedFileError(
            f"config.json says num_hidden_layers={config.num_hidden_layers}, but its layer map keeps {len(layer_map.layers)} layers {list(layer_map.layers)}. Restore the config written with the file."
        )
    recipe_of(config)


def recipe_of(config: Any) -> XTCRecipe:
    """The recipe in `config.xtc`."""
    return XTCRecipe.from_dict(config.xtc.get("recipe", {}))


def layer_map_of(config: Any) -> LayerMap | None:
    """The layer map in `config.xtc`, or `None` for a model that was not cut from a teacher."""
    block = config.xtc.get("layer_map")
    if block is None:
        return None
    try:
        return LayerMap(tuple(block["layers"]), block["num_teacher_layers"], block["shifted"])
    except (KeyError, TypeError):
        raise PackedFileError(
            f"config.json holds {block!r} in place of a layer map (layers, num_teacher_layers, shifted). Restore the config written with the file."
        ) from None


def swap_modules(base_model: nn.Module, scopes: dict[str, tuple[str, ...]], config: Any) -> None:
    """Replaces the modules of every scope (see `XTCModel`) of a base model by latent or packed ones, as `config`
    says."""
    recipe = recipe_of(config)
    present = {name for name, _ in base_model.named_modules()}
    for scope, patterns in scopes.items():
        spec = recipe.spec(scope)
        for path in module_paths(patterns, config.num_hidden_layers):
            if spec is not None and path in present:
                swap_module(base_model, path, spec, recipe.activation(), packed=config.state == "packed")


def swap_module(
    model: nn.Module, path: str, spec: QuantSpec, activation: ActivationSpec | None, *, packed: bool
) -> None:
    """Replaces the `nn.Linear` or `nn.Embedding` at `path` by its latent or packed form, keeping its parameters."""
    old = model.get_submodule(path)
    try:
        new = _replacement(old, spec, activation, packed)
    except XTCError as error:
        raise type(error)(f"{path}: {error}") from None
    model.set_submodule(path, new)


def _replacement(old: nn.Module, spec: QuantSpec, activation: ActivationSpec | None, packed: bool) -> nn.Module:
    if isinstance(old, nn.Linear):
        linear = PackedLinear
        bias, device = (old.bias is not None, old.weight.device)
        new: nn.Module = linear(
            old.in_features, old.out_features, bias, spec=spec, activation=activation, device=device
        )
        new.bias = old.bias
        if new.bias is not None:
            new.bias.requires_grad_(False)
    elif isinstance(old, nn.Embedding):
        embedding = PackedEmbedding
        device = old.weight.device
        new = embedding(old.num_embeddings, old.embedding_dim, old.padding_idx, spec=spec, device=device)
    else:
        raise XTCError(f"a {type(old).__name__} cannot be quantized; only linears and embeddings can.")
    return new


MOST = {"layers": 1000, "labels": 1000000, "size": 2**31 - 1}


def check_foreign(values: dict[str, Any]) -> None:
    """Checks what a `config.json` holds besides its architecture's fields."""
    attention, labels = (values.get("attn_implementation"), values.get("num_labels"))
    dtype, classes, names = (values.get(name) for name in ("dtype", "architectures", "id2label"))
    if values.get("quantization_config") is not None:
        raise PackedFileError(
            "config.json has a quantization_config, but XTC models are quantized by their recipe. Remove it."
        )
    if attention is not None and (not isinstance(attention, str) or "/" in attention):
        raise PackedFileError(
            f'attn_implementation={attention!r:.80} is not the name of an attention; code from the Hub is never run for XTC models. Use "eager" or "sdpa".'
        )
    if labels is not None and (type(labels) is not int or not 0 < labels <= MOST["labels"]):
        raise PackedFileError(f"num_labels={labels!r:.80} must be a whole number from 1 to {MOST['labels']}.")
    if dtype is not None and (not isinstance(dtype, str | torch.dtype)):
        raise PackedFileError(f"config.json says dtype={dtype!r:.80}; it must be the name of one, such as float32.")
    if classes is not None and (
        not (isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes))
    ):
        raise PackedFileError(f"config.json says architectures={str(classes)[:80]}; they must be names of classes.")
    if isinstance(names, dict) and (not all(isinstance(name, str | int) for name in names.values())):
        raise PackedFileError("config.json gives a label in id2label that is no name. Labels are text.")


def check_sizes(config: Any, names: tuple[str, ...]) -> None:
    """Checks the sizes that a model is built with, before anything is built."""
    for name in names:
        value, most = (getattr(config, name), MOST["layers" if name == "num_hidden_layers" else "size"])
        if type(value) is not int or not 0 < value <= most:
            raise PackedFileError(
                f"config.json says {name}={value!r:.80}; it must be a whole number from 1 to {most}. Restore the config written with the file."
            )


def check_index(folder: str) -> None:
    """Checks the index of the shards of a local folder, if it has one, before any of them is opened."""
    file = os.path.join(folder, "model.safetensors.index.json")
    if not os.path.exists(file):
        return
    try:
        index = read_json(file)
        plain = all(os.path.basename(name) == name not in ("", ".", "..") for name in index["weight_map"].values())
        if not plain or not isinstance(index["metadata"], dict):
            raise ValueError("its shards must be files of the folder")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise PackedFileError(
            f"{file} is no index of shards ({type(error).__name__}: {error}). Download or write it again."
        ) from error


def check_files(model: Any, files: list[str], *, new_head: bool) -> None:
    """Checks, from headers alone, that the files hold what the config of a model to be loaded promises."""
    if not all(file.endswith(".safetensors") for file in files):
        raise PackedFileError(f"{files[0]} is no safetensors file; XTC checkpoints are never read from pickles.")
    header = {name: entry for file in files for name, entry in read_header(file).items()}
    where = os.path.basename(os.path.dirname(files[0])) + "/" + os.path.basename(files[0])
    check_tensors(model, header, where, new_head=new_head)


def check_tensors(model: Any, header: dict[str, Any], where: str, *, new_head: bool = False) -> None:
    """As `check_files`, for a header that was read already; it is called `where` in messages."""
    own = type(model).__name__ in (model.config.architectures or ()) and (not new_head)
    header, expected = _comparable(model, header, own=own)
    check_header(header, expected, where, exact=own)


def _comparable(model: Any, header: dict[str, Any], *, own: bool) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A file's header and the tensors to expect in it, by the same names."""
    prefix = f"{model.base_model_prefix}."
    base = getattr(model, model.base_model_prefix, model)
    if not own:
        model, header = (base, {name.removeprefix(prefix): entry for name, entry in header.items()})
    expected = {name: tensor for name, tensor in model.state_dict().items() if name not in model.all_tied_weights_keys}
    if model is base and (not (_pooler(header) and _pooler(expected))):
        header = {name: entry for name, entry in header.items() if name not in _pooler(header)}
        expected = {name: tensor for name, tensor in expected.items() if name not in _pooler(expected)}
    return (header, expected)


def _pooler(names: Iterable[str]) -> set[str]:
    return {name for name in names if name.startswith("pooler.")}


def check_values(model: nn.Module) -> None:
    """Checks the loaded values of a packed model; tensors without values (missing, or left on disk) are passed over."""
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear | PackedEmbedding) and (not module.weight_packed.is_meta):
            levels = get_quantizer(module.spec.quantizer).levels
            check_packed(module.weight_packed, module.weight_scale, levels, name)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or tensor.is_meta or (not tensor.numel()):
            continue
        low, high = torch.stack(torch.aminmax(tensor)).double().tolist()
        if not math.isfinite(low + high):
            raise PackedFileError(
                f"{name} holds NaN or infinite values in {tensor.dtype}. The file is damaged; download or write it again."
            )
        if max(-low, high) > LARGEST:
            raise PackedFileError(
                f"{name} holds the value {max(-low, high):g}; no packed model has one beyond {LARGEST:,.0f}. The file is damaged; download or write it again."
            )
        if name.endswith("activation.range") and tensor[0] > tensor[1]:
            raise PackedFileError(
                f"{name} ends at {high:g} before it starts. The file is damaged; download or write it again."
            )


class XTCConfig:
    """What the configurations of models in two states share. Derive from it and an architecture's, in this order,
    under transformers' `strict`, and give the two fields as there."""

    state: str
    xtc: dict[str, Any] | None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.xtc is None:
            self.xtc = xtc_block(XTCRecipe())
        own = {name: getattr(self, name, None) for name in ("dtype", "architectures", "id2label")}
        check_foreign({**kwargs, **own})
        try:
            super().__post_init__(**kwargs)
        except (AttributeError, KeyError, TypeError) as error:
            raise PackedFileError(
                f"config.json holds a value that transformers cannot take ({type(error).__name__}: {error}). Restore the config written with the file."
            ) from error
        check_xtc_block(self)

    @property
    def recipe(self) -> XTCRecipe:
        """The recipe the model is made by."""
        return recipe_of(self)

    @property
    def layer_map(self) -> LayerMap | None:
        """The layer map onto the teacher, or `None` for a model that was not cut from one."""
        return layer_map_of(self)


class XTCModel(PreTrainedModel):
    """What models in two states share, whatever their architecture: the swap of modules, saving and loading."""

    config: Any
    scopes: ClassVar[dict[str, tuple[str, ...]]] = {}
    accepts_loss_kwargs = False

    @property
    def packed(self) -> bool:
        """Whether the model holds codes (packed) or latent weights."""
        return bool(self.config.state == "packed")

    @property
    def backend(self) -> str:
        """The backend that packed linears are asked to run on; see `set_backend`."""
        return getattr(self, "_backend", None) or default_backend()

    def set_backend(self, name: str) -> None:
        """Chooses what packed linears compute with."""
        check_backend(name)
        for module in self.modules():
            if isinstance(module, XTCModel):
                module._backend = name
            elif isinstance(module, PackedLinear):
                module.backend = name

    def post_init(self) -> None:
        """Swaps the base model's modules, then initialises as any transformers model."""
        if not hasattr(self, self.base_model_prefix):
            swap_modules(self, self.scopes, self.config)
            self.requires_grad_(False)
        super().post_init()

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        """As transformers' class that this one derives from, whose attention it has. transformers would read the
        source of this class's module, and there is none where it was defined in a notebook."""
        own: Any = next(base for base in cls.__mro__ if base.__module__.startswith("transformers.models."))
        return bool(own._can_set_attn_implementation())

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As in transformers; a packed layer or a range that the file lacks gets zeros, not leftovers of memory."""
        super()._init_weights(module)
        if isinstance(module, PackedLinear | PackedEmbedding | ActivationQuantizer):
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                init.zeros_(tensor)

    def mark_tied_weights_as_initialized(self, loading_info: Any) -> None:
        """As in transformers, which looks for tied parameters only: tied codes and scales are buffers."""
        for name in self.all_tied_weights_keys:
            self.get_parameter_or_buffer(name)._is_hf_initialized = True

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """As in transformers for a latent model."""
        raise StateError(
            "A packed model cannot grow or shrink its vocabulary: rows of codes cannot be trained. Call unpack_model first, resize and train the latent model, then pack_model."
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, after a check of the index of a local folder's shards."""
        if isinstance(pretrained_model_name_or_path, str | os.PathLike):
            check_index(os.path.join(pretrained_model_name_or_path, kwargs.get("subfolder") or ""))
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @staticmethod
    def _load_pretrained_model(
        model: Any, state_dict: dict[str, Any] | None, files: list[str] | None, load_config: Any, *args: Any
    ) -> Any:
        """As in transformers, after a check that the files hold what the config promises."""
        if files is not None:
            check_files(model, files, new_head=load_config.ignore_mismatched_sizes)
        loaded = PreTrainedModel._load_pretrained_model(model, state_dict, files, load_config, *args)
        check_values(model)
        return loaded


SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("max_position_embeddings", "type_vocab_size"),
)


@strict
class XTCBertConfig(XTCConfig, BertConfig):
    """A `BertConfig` with the state of the model and all that XTC knows of it; see `XTCConfig`."""

    model_type = "xtc_bert"
    state: str = "packed"
    xtc: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Checks what a model is built with, for transformers builds whatever it is told."""
        check_sizes(self, SIZES)
        if self.hidden_size % self.num_attention_heads or self.hidden_act not in ACT2FN:
            raise PackedFileError(
                f"config.json says hidden_act={self.hidden_act!r:.80} and hidden_size={self.hidden_size} for {self.num_attention_heads} heads: the activation must be one of transformers', and the heads must divide the size. Restore the config written with the file."
            )
        dropouts = (self.hidden_dropout_prob, self.attention_probs_dropout_prob, self.classifier_dropout or 0)
        if not 0 < self.layer_norm_eps < 1 or not all(0 <= dropout <= 1 for dropout in dropouts):
            raise PackedFileError(
                f"config.json says layer_norm_eps={self.layer_norm_eps!r} and dropouts {dropouts}; they must lie between 0 and 1. Restore the config written with the file."
            )
        if self.pad_token_id is not None and (not -self.vocab_size <= self.pad_token_id < self.vocab_size):
            raise PackedFileError(
                f"config.json says pad_token_id={self.pad_token_id}, which is none of its {self.vocab_size} tokens. Restore the config written with the file."
            )
        super().__post_init__(**kwargs)


BERT_SCOPES = {
    "attention": (
        "encoder.layer.*.attention.self.query",
        "encoder.layer.*.attention.self.key",
        "encoder.layer.*.attention.self.value",
        "encoder.layer.*.attention.output.dense",
    ),
    "feed_forward": ("encoder.layer.*.intermediate.dense", "encoder.layer.*.output.dense"),
    "pooler": ("pooler.dense",),
    "word_embeddings": ("embeddings.word_embeddings",),
    "position_embeddings": ("embeddings.position_embeddings", "embeddings.token_type_embeddings"),
}
DECODER = "cls.predictions.decoder"


class XTCBertPreTrainedModel(XTCModel, BertPreTrainedModel):
    """What all XTC BERT models share: where BERT's modules are, and its tied output layer."""

    config: XTCBertConfig
    config_class = XTCBertConfig
    scopes = BERT_SCOPES

    def post_init(self) -> None:
        """As `XTCModel.post_init`; an output layer that shares the word embedding takes its codes."""
        if hasattr(self, "cls") and hasattr(self.cls, "predictions") and self.config.tie_word_embeddings:
            self._swap_decoder()
        super().post_init()

    def _swap_decoder(self) -> None:
        """Gives the output layer that shares the word embedding the embedding's codes."""
        spec = self.config.recipe.spec("word_embeddings")
        if spec is None:
            return
        swap_module(self, DECODER, spec, None, packed=self.packed)
        embedding = f"{self.base_model_prefix}.embeddings.word_embeddings"
        self._tied_weights_keys = {
            f"{DECODER}.weight_packed": f"{embedding}.weight_packed",
            f"{DECODER}.weight_scale": f"{embedding}.weight_scale",
            f"{DECODER}.bias": "cls.predictions.bias",
        }


class XTCBertModel(XTCBertPreTrainedModel, BertModel):
    """`BertModel` with latent or packed weights."""

    def __init__(self, config: XTCBertConfig, add_pooling_layer: bool = True):
        BertPreTrainedModel.__init__(self, config)
        self.gradient_checkpointing = False
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config) if add_pooling_layer else None
        self.post_init()


class XTCBertForSequenceClassification(XTCBertPreTrainedModel, BertForSequenceClassification):
    """`BertForSequenceClassification` with latent or packed weights: classification and regression."""

    def __init__(self, config: XTCBertConfig):
        BertPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.bert = XTCBertModel(config)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


class XTCBertForTokenClassification(XTCBertPreTrainedModel, BertForTokenClassification):
    """`BertForTokenClassification` with latent or packed weights."""

    def __init__(self, config: XTCBertConfig):
        BertPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.bert = XTCBertModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


class XTCBertForQuestionAnswering(XTCBertPreTrainedModel, BertForQuestionAnswering):
    """`BertForQuestionAnswering` with latent or packed weights."""

    def __init__(self, config: XTCBertConfig):
        BertPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.bert = XTCBertModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


class XTCBertForMaskedLM(XTCBertPreTrainedModel, BertForMaskedLM):
    """`BertForMaskedLM` with latent or packed weights; its decoder shares the word embedding, packed too."""

    def __init__(self, config: XTCBertConfig):
        BertPreTrainedModel.__init__(self, config)
        self.bert = XTCBertModel(config, add_pooling_layer=False)
        self.cls = BertOnlyMLMHead(config)
        self.post_init()


class XTCBertForMultipleChoice(XTCBertPreTrainedModel, BertForMultipleChoice):
    """`BertForMultipleChoice` with latent or packed weights."""

    def __init__(self, config: XTCBertConfig):
        BertPreTrainedModel.__init__(self, config)
        self.bert = XTCBertModel(config)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.post_init()


class XTCBertForNextSentencePrediction(XTCBertPreTrainedModel, BertForNextSentencePrediction):
    """`BertForNextSentencePrediction` with latent or packed weights."""

    def __init__(self, config: XTCBertConfig):
        BertPreTrainedModel.__init__(self, config)
        self.bert = XTCBertModel(config)
        self.cls = BertOnlyNSPHead(config)
        self.post_init()


class XTCBertForPreTraining(XTCBertPreTrainedModel, BertForPreTraining):
    """`BertForPreTraining` with latent or packed weights."""

    def __init__(self, config: XTCBertConfig):
        BertPreTrainedModel.__init__(self, config)
        self.bert = XTCBertModel(config)
        self.cls = BertPreTrainingHeads(config)
        self.post_init()


def _classifier_dropout(config: XTCBertConfig) -> float:
    chosen = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
    return float(chosen)
