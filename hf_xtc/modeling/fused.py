"""The fused forward of a packed BERT encoder: embeddings and all layers in one call of the native operator.

Used where the operator supports all that the model computes; otherwise (gradients, another device or dtype, recorded
hidden states, hooks, adapters) the model runs layer by layer, with the same results. Tokens that the attention mask
excludes are skipped, and their hidden states are zeros.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from hf_xtc.backends import Product
from hf_xtc.backends.choice import say_choice
from hf_xtc.backends.integer import native_serves
from hf_xtc.backends.layouts import fastest_layout, packed_layout
from hf_xtc.modeling.layers import PackedEmbedding, PackedLinear, version_of
from hf_xtc.native import encoder as native
from hf_xtc.native.library import is_readable, variant
from hf_xtc.quantization.quantizers import get_quantizer

# transformers' own hook on its layers; it records only if `output_hidden_states` or `output_attentions` is set.
RECORDING_HOOK = "output_capturing_hook"


class FusedEncoder:
    """The native encoder of one model, and the tensors and settings it was built from.

    Args:
        model (`PreTrainedModel`): A packed BERT base model for which `serves(model)` holds.
    """

    def __init__(self, model: Any):
        config, layers = model.config, model.encoder.layer
        self.limits = (config.vocab_size, config.max_position_embeddings, config.type_vocab_size)
        self._operands = list(_operands(model))
        # The modules' dicts, not the modules: a reference to the model, a key of `_FUSED`, would keep it alive.
        self._modules = [(m._modules, m._modules.copy()) for m in model.modules() if m._modules]
        modules = [m for part in (model.embeddings, model.encoder) for m in part.modules()]
        self._hooks = [hooks for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self._variant, self._backend = variant(), model.backend
        embeddings = model.embeddings
        tables = (embeddings.word_embeddings, embeddings.position_embeddings, embeddings.token_type_embeddings)
        self._encoder = native.NativeEncoder(
            [_native_layer(layer, model.backend) for layer in layers],
            [_native_table(table) for table in tables],
            (embeddings.LayerNorm.weight, embeddings.LayerNorm.bias),
            config.num_attention_heads,
            config.layer_norm_eps,
        )

    def is_current(self, model: Any) -> bool:
        """Whether the model is unchanged since this was built, and has no hooks that have to run inside it."""
        return (
            self._backend == model.backend
            and self._variant == variant()
            and all(present == children for present, children in self._modules)
            and all(
                holder.get(name) is tensor and version_of(tensor) == version
                for holder, name, tensor, version in self._operands
            )
            and not (any(self._hooks) and any(map(_has_user_hooks, self._hooks)))
        )

    def __call__(
        self, input_ids: Tensor, mask: Tensor | None, token_type_ids: Tensor | None, position_ids: Tensor | None
    ) -> Tensor | None:
        """Last hidden states, `(batch, tokens, hidden)`; `None` if ids are out of range or cannot be read (on
        another device, traced), or if a row starts with padding.

        Args:
            input_ids (`torch.Tensor` of shape `(batch, tokens)`, integer).
            mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*): 1 for tokens, 0 for padding.
            token_type_ids, position_ids (`torch.Tensor` of shape `(batch or 1, tokens)`, *optional*).
        """
        batch, length = input_ids.shape
        given = [ids for ids in (input_ids, mask, token_type_ids, position_ids) if ids is not None]
        if not input_ids.numel() or not all(map(is_readable, given)):
            return None
        if position_ids is None:
            position_ids = torch.arange(length)[None]
        if token_type_ids is None:
            token_type_ids = input_ids.new_zeros(1, 1)
        indices = [ids.expand(batch, length).reshape(-1).long() for ids in (input_ids, position_ids, token_type_ids)]
        for ids, limit in zip(indices, self.limits, strict=True):
            low, high = torch.aminmax(ids)
            if low < 0 or high >= limit:
                return None
        if mask is None or bool(mask.all()):
            hidden = self._encoder(torch.full((batch,), length), indices[0], indices[1], indices[2])
            return hidden.view(batch, length, -1)
        kept = mask.bool()
        if not bool(kept[:, 0].all()):
            return None
        places = kept.reshape(-1).nonzero()[:, 0]
        words, positions, types = (ids[places] for ids in indices)
        hidden = self._encoder(kept.sum(1), words, positions, types)
        padded = hidden.new_zeros(batch * length, hidden.shape[1]).index_copy_(0, places, hidden)
        return padded.view(batch, length, -1)


_FUSED: WeakKeyDictionary[nn.Module, FusedEncoder] = WeakKeyDictionary()


def fused_encoder(model: Any) -> FusedEncoder | None:
    """The fused encoder of a packed BERT base model, built at its first forward and again when the model has changed;
    `None` where the model has to run layer by layer."""
    if torch.compiler.is_compiling() or model.training or _needs_gradients(model):
        return None
    fused = _FUSED.get(model)
    if fused is not None and fused.is_current(model):
        return fused
    fused = FusedEncoder(model) if serves(model) else None
    if fused is None:
        _FUSED.pop(model, None)
    else:
        say_choice(model.backend, variant())
        _FUSED[model] = fused
    return fused


def serves(model: Any) -> bool:
    """Whether the native operator supports everything in the encoder of a packed base model."""
    config, layers = model.config, model.encoder.layer
    linears = [linear for layer in layers for linear in _linears(layer)]
    return (
        model.backend != "reference"
        and variant() is not None
        and config.hidden_act == "gelu"
        and not (config.is_decoder or config.add_cross_attention)
        and all(type(linear) is PackedLinear and linear.backend == model.backend for linear in linears)
        and all(_is_supported(linear) for linear in linears)
        and all(len({linear.spec for linear in _linears(layer)[:3]}) == 1 for layer in layers)
        and all(tensor.device.type == "cpu" for _, _, tensor, _ in _operands(model))
        and all(p.dtype == torch.float32 for p in (*model.embeddings.parameters(), *model.encoder.parameters()))
        and not any(
            _has_user_hooks(module._forward_hooks) or _has_user_hooks(module._forward_pre_hooks)
            for part in (model.embeddings, model.encoder)
            for module in part.modules()
        )
    )


def _is_supported(linear: PackedLinear) -> bool:
    product = Product(linear.packed_weight, linear.bias, linear.activation, torch.float32)
    return native_serves(product) and _layout(linear, linear.backend) is not None


def _layout(linear: PackedLinear, backend: str) -> int | None:
    quantizer = linear.spec.quantizer
    if backend == "packed":
        return packed_layout(quantizer)
    return native.BYTES if backend == "int8" else fastest_layout(quantizer)


def _linears(layer: Any) -> list[Any]:
    attention = layer.attention
    own = attention.self
    return [own.query, own.key, own.value, attention.output.dense, layer.intermediate.dense, layer.output.dense]


def _native_layer(layer: Any, backend: str) -> native.NativeLayer:
    linears = _linears(layer)
    groups = [linears[:3], *([linear] for linear in linears[3:])]
    weights = []
    for group in groups:
        layout = _layout(group[0], backend)
        assert layout is not None  # checked by `serves`
        levels = get_quantizer(group[0].spec.quantizer).levels
        weights.append(native.NativeWeight([m.packed_weight for m in group], [m.bias for m in group], levels, layout))
    norms = (layer.attention.output.LayerNorm, layer.output.LayerNorm)
    return native.NativeLayer(weights, [part for norm in norms for part in (norm.weight, norm.bias)])


def _native_table(table: Any) -> native.NativeTable:
    if isinstance(table, PackedEmbedding):
        levels = get_quantizer(table.spec.quantizer).levels
        return native.NativeTable(table.weight_packed, table.weight_scale, levels)
    return native.NativeTable(table.weight, None, 0)


def _operands(model: Any) -> Any:
    """Every tensor of embeddings and encoder, with the dict that holds it and its version."""
    for part in (model.embeddings, model.encoder):
        for module in part.modules():
            for holder in (module._parameters, module._buffers):
                for name, tensor in holder.items():
                    if tensor is not None:
                        yield holder, name, tensor, version_of(tensor)


def _needs_gradients(model: Any) -> bool:
    """Whether embeddings or encoder are to be trained: their layers then run one by one, and check their backends."""
    return torch.is_grad_enabled() and any(
        p.requires_grad for part in (model.embeddings, model.encoder) for p in part.parameters()
    )


def _has_user_hooks(hooks: Any) -> bool:
    """Whether a module has hooks besides transformers' own."""
    return any(getattr(hook, "__name__", "") != RECORDING_HOOK for hook in hooks.values())
