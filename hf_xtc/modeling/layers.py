"""The layers in their two states.

Latent (training): `XTCLinear`, `XTCEmbedding` hold a float latent weight and compute with its fake-quantized values.
Packed (inference): `PackedLinear`, `PackedEmbedding` hold `uint8` codes and scales as buffers
`weight_packed` and `weight_scale`. In float32 with the reference backend the two give bitwise equal outputs.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from hf_xtc.backends import BACKENDS, Backend, Prepared, Product, choose, default_backend
from hf_xtc.native.encoder import forget_laid_out, version_of
from hf_xtc.native.gpu import forget_fields
from hf_xtc.native.library import variant
from hf_xtc.quantization.activations import ActivationQuantizer
from hf_xtc.quantization.packing import PackedWeight, pack_weight, packed_width
from hf_xtc.quantization.quantizers import fake_quantize, get_quantizer
from hf_xtc.quantization.specs import ActivationSpec, QuantSpec


def partly_quantized(weight: Tensor, spec: QuantSpec, part: float | Tensor) -> Tensor:
    """`(1 - part) * weight + part * fake_quantize(weight)`; the gradient reaches `weight` unchanged whatever the part.

    Args:
        weight (`torch.Tensor` of shape `(rows, columns)`): Latent weight.
        part (`float`): 0 is `weight` itself, 1 exactly the packed values; in between, training is annealed. A scalar
            tensor for compiled training, which would be compiled again for each float.
    """
    if isinstance(part, Tensor):
        return torch.lerp(weight, fake_quantize(weight, spec), part.to(weight))
    if part <= 0:
        return weight
    quantized = fake_quantize(weight, spec)
    return quantized if part >= 1 else torch.lerp(weight, quantized, part)


class _Latent(nn.Module):
    """What a layer with a latent weight computes: in train mode as the schedule says, in eval mode as when packed."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._scheduled_part: float | Tensor = 1.0

    @property
    def quantized_part(self) -> float | Tensor:
        """The part of the weight that is quantized: 1 in eval mode, in train mode what was set; see
        `partly_quantized`."""
        return self._scheduled_part if self.training else 1.0

    @quantized_part.setter
    def quantized_part(self, part: float | Tensor) -> None:
        self._scheduled_part = part


class XTCLinear(_Latent, nn.Linear):
    """A linear that multiplies a fake-quantized input by `fake_quantize(weight)`; `weight` is the latent weight.

    In train mode `quantized_part` (0 to 1) and `quantize_activation` follow the schedule (`set_quantization`); in eval
    mode they are 1 and `True`, and the layer computes what its packed form would.

    Args:
        in_features, out_features (`int`), bias (`bool`): As in `nn.Linear`.
        spec (`QuantSpec`): How the weight is quantized.
        activation (`ActivationSpec`, *optional*): How the input is quantized; `None` keeps it in float.

    Raises:
        RecipeError: if the group size does not divide `in_features`.
    """

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
        super().__init__(in_features, out_features, bias, device=device)
        spec.scale_shape(out_features, in_features)
        self.spec = spec
        self.activation = None if activation is None else ActivationQuantizer(activation)
        self._scheduled_activation = True

    @property
    def quantize_activation(self) -> bool:
        """Whether the input is quantized: always in eval mode, in train mode as it was set."""
        return self._scheduled_activation or not self.training

    @quantize_activation.setter
    def quantize_activation(self, quantize: bool) -> None:
        self._scheduled_activation = quantize

    def forward(self, input: Tensor) -> Tensor:
        """`(..., in_features)` to `(..., out_features)`."""
        if self.activation is not None:
            if self.quantize_activation:
                input = self.activation(input)
            else:
                self.activation.observe(input)
        return F.linear(input, partly_quantized(self.weight, self.spec, self.quantized_part), self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.spec.quantizer} {self.spec.granularity}"


def _per_row(spec: QuantSpec) -> QuantSpec:
    # A lookup sees some rows only, so a scale that spans rows would depend on the batch.
    return replace(spec, granularity="per_channel", group_size=None)


class XTCEmbedding(_Latent, nn.Embedding):
    """An embedding whose rows are fake-quantized as they are looked up; `weight` is the latent weight.

    In train mode `quantized_part` (0 to 1) follows the training schedule; in eval mode rows have their packed values.

    Args:
        num_embeddings, embedding_dim, padding_idx (`int`): As in `nn.Embedding`.
        spec (`QuantSpec`): How rows are quantized; one scale per row, whatever its granularity.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        spec: QuantSpec,
        device: torch.device | str | None = None,
    ):
        super().__init__(num_embeddings, embedding_dim, padding_idx, device=device)
        self.spec = _per_row(spec)

    def forward(self, input: Tensor) -> Tensor:
        """Token ids of any shape to `(*shape, embedding_dim)`."""
        rows: Tensor = super().forward(input)
        return partly_quantized(rows.reshape(-1, self.embedding_dim), self.spec, self.quantized_part).view_as(rows)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.spec.quantizer} rows"


class _Packed(nn.Module):
    """Buffers shared by the packed layers; their dtypes survive `.half()`, `.float()` and `.to(dtype)`."""

    weight_packed: Tensor
    weight_scale: Tensor

    def __init__(self, rows: int, columns: int, spec: QuantSpec, device: torch.device | str | None):
        super().__init__()
        levels, scale_dtype = get_quantizer(spec.quantizer).levels, getattr(torch, spec.scale_dtype)
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

    def set_packed_weight(self, weight: PackedWeight) -> None:
        """Takes over codes and scale of a weight of the same shape and spec."""
        self.weight_packed = weight.packed
        self.weight_scale = weight.scale

    def dequantize(self) -> Tensor:
        """The decoded weight, float32, `(rows, columns)`; a new tensor, independent of the buffers."""
        return self.packed_weight.decode()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_Packed":
        scale = self.weight_scale
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.weight_scale.dtype != scale.dtype:
            self.weight_scale = scale.to(self.weight_scale.device)
        return self


def in_forward_mode() -> bool:
    """Whether forward-mode differentiation is on: any tensor may then carry a tangent."""
    return forward_ad._current_level >= 0


# Operands prepared by the backends, kept outside of the modules: they are neither saved, moved nor copied.
_PREPARED: WeakKeyDictionary[nn.Module, tuple[Any, tuple[Tensor, ...], Prepared]] = WeakKeyDictionary()


class PackedLinear(_Packed):
    """A linear over packed codes. Frozen: gradients reach its input and bias, never its weight.

    Args:
        in_features, out_features (`int`), bias (`bool`): As in `nn.Linear`.
        spec (`QuantSpec`): How the weight is quantized.
        activation (`ActivationSpec`, *optional*): How the input is quantized.
    """

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
        """`(..., in_features)` to `(..., out_features)`.

        Raises:
            StateError: if gradients are needed from a backend that has none.
        """
        bias, activation = self.bias, self.activation
        product = Product(self.packed_weight, bias, activation, input.dtype)
        trained = input.requires_grad or (bias is not None and bias.requires_grad)
        gradient = in_forward_mode() or (trained and torch.is_grad_enabled())
        recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
        if gradient or recorded or BACKENDS[self.backend].differentiable:
            return self._prepared(product, gradient)(input)
        operands = product.weight[:2] if bias is None else (*product.weight[:2], bias)
        key = (
            *(self.backend, variant(), input.dtype, self.spec, self.columns),
            *(() if activation is None else activation.state()),
            *[id(tensor) for tensor in operands],
            *map(version_of, operands),
        )
        cached = _PREPARED.get(self)
        if cached is None or cached[0] != key:
            # The operands are kept too: while they live, no other tensor has their ids.
            cached = _PREPARED[self] = (key, operands, self._prepared(product, gradient))
        output: Tensor = cached[2](input)
        return output

    def _prepared(self, product: Product, gradient: bool) -> Prepared:
        backend: Backend = BACKENDS[choose(self.backend, product, gradient=gradient)]()
        return backend.prepare(product)

    @property
    def qweight(self) -> Tensor:
        """The codes, by the name at which PEFT looks for the device of a quantized layer."""
        return self.weight_packed

    def forget_prepared(self) -> None:
        """Prepares the operands anew at the next forward, for example after a write that PyTorch does not count."""
        _PREPARED.pop(self, None)
        forget_laid_out(self.weight_packed)
        forget_fields(self.weight_packed)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"{self.spec.quantizer} {self.spec.granularity}, backend={self.backend}"
        )


class PackedEmbedding(_Packed):
    """An embedding over packed rows; a lookup unpacks the rows it needs and no others.

    Args:
        num_embeddings, embedding_dim, padding_idx (`int`): As in `nn.Embedding`.
        spec (`QuantSpec`): How rows are quantized; one scale per row, as in `XTCEmbedding`.
    """

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
        # Codes and scales keep their dtypes; this empty buffer follows `.to(dtype)` and `dtype=` in their place.
        self.register_buffer("output", torch.empty(0, device=device), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Token ids of any shape to `(*shape, embedding_dim)`, in the model's dtype.

        Raises:
            RuntimeError: if the ids are on another device. PyTorch itself would accept meta ids silently.
        """
        if input.device != self.weight_packed.device:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but the token ids are on {input.device} and the "
                f"embedding is on {self.weight_packed.device}."
            )
        rows = self.packed_weight.rows(input.reshape(-1)).decode()
        return rows.view(*input.shape, self.embedding_dim).to(self.output.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.spec.quantizer} rows"


LatentLayer = XTCLinear | XTCEmbedding
PackedLayer = PackedLinear | PackedEmbedding


def pack_layer(latent: LatentLayer, packed: PackedLayer, name: str) -> None:
    """Fills `packed` with the codes, scale, bias and activation range of `latent`.

    Raises:
        StateError: if the latent weight holds NaN or infinity; `name` is the module's path in the message.
    """
    packed.set_packed_weight(pack_weight(latent.weight, packed.spec, f"{name}.weight"))
    _copy_rest(latent, packed)


def unpack_layer(packed: PackedLayer, latent: LatentLayer) -> None:
    """Fills `latent` with the decoded values of `packed`, to train it further."""
    with torch.no_grad():
        latent.weight.copy_(packed.dequantize())
    _copy_rest(packed, latent)


def _copy_rest(source: Any, target: Any) -> None:
    rest = {key: value for key, value in source.state_dict().items() if not key.startswith("weight")}
    target.load_state_dict({**target.state_dict(), **rest})
