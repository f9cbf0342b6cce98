"""The fused forward of a packed model: embeddings, layers, pooler and classifier in one call of the native operator.

Used where the operator computes exactly what the modules would, which the modules decide and not the config; otherwise
(gradients, another device or dtype, recorded hidden states, hooks, adapters, a module of another class or with a
`forward` of its own) the model runs layer by layer. Tokens that the attention mask excludes are skipped, and their
hidden states are zeros. The pooler and the classifier are asked one by one: where the operator does not compute one,
its module runs on what was computed.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from operator import attrgetter, is_, itemgetter
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from transformers.activations import GELUActivation

from hf_xtc.backends import Product
from hf_xtc.backends.choice import native_way, say_choice
from hf_xtc.backends.integer import native_serves
from hf_xtc.backends.layouts import fastest_layout, packed_layout
from hf_xtc.modeling.layers import PackedEmbedding, PackedLinear, in_forward_mode
from hf_xtc.modeling.native_form import LayerParts
from hf_xtc.native import encoder as native
from hf_xtc.native.encoder import Outputs
from hf_xtc.native.library import variant
from hf_xtc.native.operators import is_readable
from hf_xtc.quantization.quantizers import get_quantizer

# transformers' own hook on its layers; it records only if `output_hidden_states` or `output_attentions` is set.
RECORDING_HOOK = "output_capturing_hook"

# Attributes of a module that decide nothing about its forward, or that `_Snapshot` looks into.
_BOOKKEEPING = frozenset(vars(nn.Module()))
# Behind all that modules hold: it is in its place only if they hold as many things as they did.
_END = object()

_FORWARD = attrgetter("forward")


class _Snapshot:
    """Modules as they were: their settings, children, tensors, and counts of writes to these.

    It is asked at each forward: its loops over all modules run in C, or hold one call.

    Args:
        modules (`list[nn.Module]`): The modules.
        children (`list[dict]`): The children of modules to watch.
    """

    def __init__(self, modules: list[nn.Module], children: list[dict[str, Any]]):
        # Dicts of the modules, not the modules: a reference to the model, a key of `_FUSED`, would keep it alive.
        self._attributes = [module.__dict__ for module in modules]
        self._counts = [*map(len, self._attributes)]
        own = [attributes.keys() - _BOOKKEEPING for attributes in self._attributes]
        getters = [itemgetter("training", *names) for names in own]
        self._settings_of = list(zip(getters, self._attributes, strict=True))
        self._settings = [get(attributes) for get, attributes in self._settings_of]
        tensors = [holder for m in modules for holder in (m._parameters, m._buffers)]
        self._holders = [*(holder.values() for holder in (*children, *tensors) if holder), (_END,)]
        self._held = [*chain.from_iterable(self._holders)]
        # Tensors made in inference mode have no count of writes.
        self._counted = [held for held in self._held if isinstance(held, Tensor) and not held.is_inference()]
        self._versions = [tensor._version for tensor in self._counted]
        self._hooks = [hooks for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]

    def is_current(self) -> bool:
        """Whether the modules are unchanged, and have no hooks that have to run."""
        return (
            all(map(is_, chain.from_iterable(self._holders), self._held))
            and [tensor._version for tensor in self._counted] == self._versions
            and [*map(len, self._attributes)] == self._counts
            and self._has_its_settings()
            and not (any(self._hooks) and any(map(has_user_hooks, self._hooks)))
        )

    def _has_its_settings(self) -> bool:
        """Whether settings are the same or equal; tensors and arrays only if they are the same."""
        try:
            return [get(attributes) for get, attributes in self._settings_of] == self._settings
        except (KeyError, RuntimeError, ValueError):
            return False


class _Pooler:
    """The native pooler of a model for which `_is_plain_pooler` holds, and the modules it was built from."""

    def __init__(self, model: Any):
        modules = list(model.pooler.modules())
        self.is_current = _Snapshot(modules, [module._modules for module in modules]).is_current
        self.native = native.NativePooler(*_native_operands(model.pooler.dense, model.backend))


class FusedEncoder:
    """The native encoder of one model, and the modules, tensors and settings it was built from.

    Args:
        model (`PreTrainedModel`): A packed base model for which `serves(model)` holds.
    """

    def __init__(self, model: Any):
        form, modules = model.native_form, _modules(model)
        parts, embeddings = form.parts(model), model.embeddings
        self._snapshot = _Snapshot(modules, [module._modules for module in (model, *modules)])
        self._variant, self._backend = variant(), model.backend
        self._pooler: _Pooler | None = None
        # Positions and token types where none are given.
        self._count_positions = form.positions
        self._positions: Tensor = embeddings.position_ids[0].contiguous()
        has_types = len(parts.tables) > 2
        self._token_type_ids: Tensor | None = embeddings.token_type_ids[0] if has_types else None
        self._types = None if self._token_type_ids is None else self._token_type_ids[self._positions]
        self._has_distances = parts.distances is not None
        linear = parts.projection
        self._encoder = native.NativeEncoder(
            [_native_layer(layer, model.backend) for layer in parts.layers],
            [_native_table(table) for table in parts.tables],
            (parts.norm.weight, parts.norm.bias),
            parts.layers[0].heads,
            (parts.layers[0].norms[0].eps, parts.norm.eps),
            None if linear is None else native.native_linear(*_native_operands(linear, model.backend)),
            None if parts.distances is None else parts.distances(len(self._positions)).detach(),
        )

    def is_current(self, model: Any) -> bool:
        """Whether the model is unchanged since this was built, and has no hooks that have to run inside it."""
        return (
            self._backend == model.backend
            and self._variant == variant()
            and self._snapshot.is_current()
            and _runs_as_written(model)
        )

    def pooler(self, model: Any) -> native.NativePooler | None:
        """The pooler of the model as the operator computes it; `None` where there is none or its module has to run."""
        pooler = getattr(model, "pooler", None)
        if pooler is None or _trains(pooler):
            return None
        if self._pooler is None or not self._pooler.is_current():
            self._pooler = _Pooler(model) if _is_plain_pooler(model) else None
        return None if self._pooler is None else self._pooler.native

    def __call__(
        self,
        embeddings: nn.Module,
        input_ids: Tensor,
        mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        pooler: native.NativePooler | None = None,
        classifier: nn.Linear | None = None,
    ) -> native.Outputs | None:
        """Last hidden states, `(batch, tokens, hidden)`, and what the pooler, `(batch, hidden)`, and the classifier,
        `(batch, labels)`, make of them. `None` if the ids cannot be read (on another device, traced, of another
        dtype), if there are more tokens than positions, if a row starts with padding, or if padding between tokens
        would change distances that are added to scores.

        Args:
            embeddings (`nn.Module`): The model's.
            input_ids (`torch.Tensor` of shape `(batch, tokens)`, integer).
            mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*): 1 for tokens, 0 for padding.
            token_type_ids, position_ids (`torch.Tensor` of shape `(batch or 1, tokens)`, *optional*).
                Token types only where the model has any.
            pooler (`NativePooler`, *optional*): As `pooler(model)` returns it.
            classifier (`nn.Linear`, *optional*): Of ordinary tensors.

        Raises:
            IndexError: if an id is out of range.
        """
        batch, length = shape = input_ids.shape
        given = [ids for ids in (input_ids, mask, token_type_ids, position_ids) if ids is not None]
        if not input_ids.numel() or not all(map(is_readable, given)) or length > len(self._positions):
            return None
        if any(ids is not mask and ids.dtype not in (torch.int64, torch.int32) for ids in given):
            return None
        if position_ids is None and self._count_positions is not None:
            position_ids = self._count_positions(embeddings, input_ids)
        positions = self._positions[:length] if position_ids is None else position_ids
        types = self._token_types(token_type_ids, position_ids, length)
        words, positions = _flat(input_ids, shape), _flat(positions, shape)
        types = None if types is None else _flat(types, shape)
        head = (pooler, None, None) if classifier is None else (pooler, classifier.weight, classifier.bias)
        if mask is None or bool(mask.all()):
            outputs = self._encoder(torch.full((batch,), length), words, positions, types, *head)
            return outputs._replace(hidden=outputs.hidden.view(batch, length, -1))
        kept = mask.bool()
        if not bool(kept[:, 0].all()):
            return None
        if self._has_distances and bool((kept[:, 1:] > kept[:, :-1]).any()):
            return None  # tokens behind padding are further away than their places in the sequence
        places = kept.reshape(-1).nonzero()[:, 0]
        types = None if types is None else types[places]
        outputs = self._encoder(kept.sum(1), words[places], positions[places], types, *head)
        hidden = outputs.hidden
        padded = hidden.new_zeros(batch * length, hidden.shape[1]).index_copy_(0, places, hidden)
        return outputs._replace(hidden=padded.view(batch, length, -1))

    def _token_types(self, given: Tensor | None, position_ids: Tensor | None, length: int) -> Tensor | None:
        """Token types: as given, else those of the positions; `None` for a model that has none."""
        if given is not None or self._token_type_ids is None or self._types is None:
            return given
        return self._types[:length] if position_ids is None else self._token_type_ids[position_ids]


def _flat(ids: Tensor, shape: torch.Size) -> Tensor:
    """Ids expanded to `(batch, tokens)`, as one row of int64."""
    ids = ids if ids.dtype == torch.int64 else ids.long()
    return (ids if ids.shape == shape else ids.expand(shape)).reshape(-1)


_FUSED: WeakKeyDictionary[nn.Module, FusedEncoder] = WeakKeyDictionary()


class _Head:
    """The head of a sequence classifier for which `_is_plain_head` holds, and the modules it was built from.

    `pooler` is its first linear with what follows; `None` where the base model's pooler is that.
    """

    def __init__(self, model: Any):
        form, modules = model.classifier_form, _head_modules(model)
        self._variant = variant()
        self._snapshot = _Snapshot(modules, [module._modules for module in (model, *modules)])
        self.pooler: native.NativePooler | None = None
        if form.dense is not None:
            operands = _native_operands(model.get_submodule(form.dense), model.backend)
            self.pooler = native.NativePooler(*operands, activation=form.activation)

    def is_current(self) -> bool:
        return self._variant == variant() and self._snapshot.is_current()


_HEADS: WeakKeyDictionary[nn.Module, _Head] = WeakKeyDictionary()


def fused_logits(model: Any, given: Mapping[str, Any]) -> Outputs | None:
    """Logits, `(batch, labels)`, in one call of the native operator with the encoder; `None` if modules have to run.

    Args:
        model (`XTCModel`): A sequence classifier whose class has a `classifier_form`.
        given (`Mapping[str, Any]`): The arguments of the forward by name, without labels.
    """
    if not model.packed or torch.compiler.is_compiling() or model.training or not _has_plain_base(model.base_model):
        return None
    if _trains(*_head_roots(model)):
        return None
    head = _HEADS.get(model)
    if head is None or not head.is_current():
        if not _is_plain_head(model):
            _HEADS.pop(model, None)
            return None
        head = _HEADS[model] = _Head(model)
    output = model.get_submodule(model.classifier_form.output)
    return fused_outputs(model.base_model, given, output, head.pooler)


def forget_fused_head(model: Any) -> None:
    """Builds the head of a sequence classifier anew at its next forward."""
    _HEADS.pop(model, None)


def _head_roots(model: Any) -> list[nn.Module]:
    return [getattr(model, name) for name in model.classifier_form.roots]


def _head_modules(model: Any) -> list[nn.Module]:
    return [module for root in _head_roots(model) for module in root.modules()]


def _has_plain_base(base: Any) -> bool:
    """Whether a base model's forward may be passed over: it is the class's own, and has no hooks."""
    return (
        vars(type(base)).get("fused_forward") is type(base).forward
        and "forward" not in vars(base)
        and not any(map(has_user_hooks, (base._forward_hooks, base._forward_pre_hooks)))
    )


def _is_plain_head(model: Any) -> bool:
    """Whether a sequence classifier's head has the parts that the native operator computes, in their settings."""
    form, base, modules = model.classifier_form, model.base_model, _head_modules(model)
    if variant() is None or model.backend == "reference":
        return False
    if not all(_is_known(module, base.native_form.forwards) for module in modules):
        return False
    dense = None if form.dense is None else model.get_submodule(form.dense)
    output = model.get_submodule(form.output)
    linears = {id(part) for linear in (dense, output) if linear is not None for part in linear.modules()}
    between = [module for module in modules if id(module) not in linears]
    gelus = [module for module in between if type(module) is GELUActivation and module.act is nn.functional.gelu]
    if len(gelus) != (form.activation == "gelu"):
        return False
    if not all(type(module) in (nn.Dropout, *form.classes) for module in between if module not in gelus):
        return False
    tensors = [tensor for module in modules for tensor in _tensors(module)]
    return (
        _is_plain_linear(output)
        and (dense is None or (_is_plain_projection(dense, model.backend) and dense.in_features == dense.out_features))
        and all(tensor.device.type == "cpu" for tensor in tensors)
        and all(p.dtype == torch.float32 for module in modules for p in module.parameters(recurse=False))
    )


def fused_outputs(
    model: Any,
    given: Mapping[str, Any],
    classifier: nn.Linear | None = None,
    pooler: native.NativePooler | None = None,
) -> Outputs | None:
    """Everything of a base model's forward that one call of the native operator computes; `None` if the model has to
    run layer by layer.

    Args:
        model (`XTCModel`): A base model whose family declares `native`.
        given (`Mapping[str, Any]`): The arguments of the forward by name.
        classifier (`nn.Linear`, *optional*): Of ordinary tensors; the call is made only if the operator computes the
            pooler too.
        pooler (`NativePooler`, *optional*): What the classifier follows, if not the base model's pooler.
    """
    input_ids, mask = given.get("input_ids"), given.get("attention_mask")
    if input_ids is None or not model.packed or not _only_last(model.config, given):
        return None
    if mask is not None and mask.shape != input_ids.shape:
        return None
    encoder = fused_encoder(model)
    if encoder is None:
        return None
    pooler = encoder.pooler(model) if pooler is None else pooler
    if classifier is not None and pooler is None:
        return None
    types, positions = given.get("token_type_ids"), given.get("position_ids")
    return encoder(model.embeddings, input_ids, mask, types, positions, pooler, classifier)


# Arguments of a forward that the native encoder takes, and those that mean nothing to it.
_KNOWN = frozenset(("input_ids", "attention_mask", "token_type_ids", "position_ids", "return_dict", "use_cache"))


def _only_last(config: Any, given: Mapping[str, Any]) -> bool:
    """Whether a call asks for the last hidden state only and passes no option to the layers."""
    for name in ("output_hidden_states", "output_attentions"):
        asked = given.get(name)
        if getattr(config, name, False) if asked is None else asked:
            return False
    return all(
        value is None or name in _KNOWN or (value is False and name.startswith("output_"))
        for name, value in given.items()
    )


def fused_encoder(model: Any) -> FusedEncoder | None:
    """The fused encoder of a packed base model, built at its first forward and again when the model has changed;
    `None` where the model has to run layer by layer."""
    if torch.compiler.is_compiling() or model.training or _trains(*_roots(model)):
        return None
    fused = _FUSED.get(model)
    if fused is not None and fused.is_current(model):
        return fused
    fused = FusedEncoder(model) if serves(model) else None
    if fused is None:
        _FUSED.pop(model, None)
    else:
        _FUSED[model] = fused
    return fused


def forget_fused_encoder(model: Any) -> None:
    """Builds the fused encoder of a model anew at its next forward."""
    _FUSED.pop(model, None)


def serves(model: Any) -> bool:
    """Whether the native operator computes what the embeddings and the encoder of a packed base model do."""
    if model.backend == "reference" or variant() is None or not _runs_as_written(model):
        return False
    modules, forwards = _modules(model), model.native_form.forwards
    if (
        not all(_is_known(module, forwards) for module in modules)
        or any(tensor.device.type != "cpu" for module in modules for tensor in _tensors(module))
        or any(p.dtype != torch.float32 for module in modules for p in module.parameters(recurse=False))
    ):
        return False
    parts = model.native_form.parts(model)
    return (
        all(_is_readable_table(table) for table in parts.tables)
        and _is_plain_norm(parts.norm)
        and (parts.projection is None or _is_plain_projection(parts.projection, model.backend))
        and len(parts.layers) > 0
        and all(_is_plain_layer(layer, model.backend) for layer in parts.layers)
        and len({_settings(layer) for layer in parts.layers}) == 1
    )


def _runs_as_written(model: Any) -> bool:
    """Whether no class was given another forward, no hook is set for all modules, and attention is PyTorch's own."""
    forwards = model.native_form.forwards
    return (
        all(map(is_, map(_FORWARD, forwards), forwards.values()))
        and not (torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)
        and model.config._attn_implementation in ("eager", "sdpa", None)
    )


def _is_known(module: nn.Module, forwards: Mapping[type, Any]) -> bool:
    """Whether a module runs the forward of a known class, in eval mode, without hooks."""
    return (
        type(module) in forwards
        and "forward" not in vars(module)
        and not module.training
        and not has_user_hooks(module._forward_hooks)
        and not has_user_hooks(module._forward_pre_hooks)
    )


def _is_readable_table(table: Any) -> bool:
    return isinstance(table, PackedEmbedding) or (type(table) is nn.Embedding and table.max_norm is None)


def _is_plain_norm(norm: Any) -> bool:
    return type(norm) is nn.LayerNorm and norm.bias is not None and norm.normalized_shape == tuple(norm.weight.shape)


def _is_plain_layer(layer: LayerParts, backend: str) -> bool:
    """Whether a layer has the parts, and the settings of them, that the native operator computes."""
    activation, linears = layer.activation, layer.linears
    return (
        layer.is_plain
        and (
            (type(activation) is GELUActivation and activation.act is nn.functional.gelu)
            or (type(activation) is nn.GELU and activation.approximate == "none")
        )
        and all(map(_is_plain_norm, layer.norms))
        and layer.norms[0].eps == layer.norms[1].eps
        and all(_is_plain_packed(linear, backend) for linear in linears)
        and len({linear.spec for linear in linears[:3]}) == 1
    )


def _is_plain_packed(linear: Any, backend: str) -> bool:
    """Whether a linear is a packed one, on the model's backend, that the native operator computes."""
    return type(linear) is PackedLinear and linear.backend == backend and _is_supported(linear)


def _is_plain_projection(linear: Any, backend: str) -> bool:
    return _is_plain_packed(linear, backend) or _is_plain_linear(linear)


def _is_plain_linear(linear: Any) -> bool:
    """Whether a linear is PyTorch's own, of ordinary float32 tensors on the CPU."""
    return type(linear) is nn.Linear and all(
        is_readable(tensor) and tensor.dtype == torch.float32 for tensor in _tensors(linear)
    )


def _is_plain_pooler(model: Any) -> bool:
    """Whether a pooler has the parts that the native operator computes, in its settings."""
    pooler, form = model.pooler, model.native_form
    if type(pooler) is not form.pooler or not all(_is_known(module, form.forwards) for module in pooler.modules()):
        return False
    dense = pooler.dense
    tensors = [tensor for module in pooler.modules() for tensor in _tensors(module)]
    return (
        _is_plain_projection(dense, model.backend)
        and type(pooler.activation) is nn.Tanh
        and dense.in_features == dense.out_features == len(form.parts(model).layers[0].norms[1].weight)
        and all(tensor.device.type == "cpu" for tensor in tensors)
        and all(p.dtype == torch.float32 for p in pooler.parameters())
    )


def _settings(layer: LayerParts) -> tuple[Any, ...]:
    """What all layers must share."""
    return layer.heads, layer.norms[1].eps, tuple(linear.weight_packed.shape for linear in layer.linears)


def _is_supported(linear: PackedLinear) -> bool:
    product = Product(linear.packed_weight, linear.bias, linear.activation, torch.float32)
    packs = linear.backend != "packed" or packed_layout(linear.spec.quantizer) is not None
    return packs and native_serves(product)


def _layout(backend: str, quantizer: str, rows: int, columns: int) -> int:
    if backend == "packed":
        layout = packed_layout(quantizer)
        assert layout is not None  # checked by `_is_supported`
        return layout
    return native.BYTES if backend == "int8" else fastest_layout(quantizer, rows, columns)


def _native_layer(layer: LayerParts, backend: str) -> native.NativeLayer:
    groups = [layer.linears[:3], *([linear] for linear in layer.linears[3:])]
    weights = [_native_weight(group, backend) for group in groups]
    return native.NativeLayer(weights, [part for norm in layer.norms for part in (norm.weight, norm.bias)])


def _native_weight(linears: Sequence[PackedLinear], backend: str) -> native.NativeWeight:
    """Linears of one spec laid out as one weight."""
    quantizer = linears[0].spec.quantizer
    shape = quantizer, sum(linear.out_features for linear in linears), linears[0].columns
    layout, levels = _layout(backend, *shape), get_quantizer(quantizer).levels
    say_choice(backend, native_way(backend, *shape))
    codes = [native.Codes(m.weight_packed, m.weight_scale, m.bias, m.columns, levels) for m in linears]
    return native.NativeWeight(codes, layout)


def _native_operands(linear: Any, backend: str) -> tuple[Any, ...]:
    """A linear, packed or in float, as `native_linear` and `NativePooler` take it."""
    if isinstance(linear, PackedLinear):
        return (_native_weight([linear], backend),)
    return linear.weight, linear.bias


def _native_table(table: Any) -> native.NativeTable:
    if isinstance(table, PackedEmbedding):
        levels = get_quantizer(table.spec.quantizer).levels
        return native.NativeTable(table.weight_packed, table.weight_scale, levels, table.embedding_dim)
    return native.NativeTable(table.weight, None, 0, table.embedding_dim)


def _roots(model: Any) -> list[nn.Module]:
    """The embeddings, the encoder, and what else the operator computes of a base model."""
    children = model._modules
    return [children[name] for name in model.native_form.roots if children.get(name) is not None]


def _modules(model: Any) -> list[nn.Module]:
    """All modules that the operator computes, without the pooler."""
    return [module for part in _roots(model) for module in part.modules()]


def _tensors(module: nn.Module) -> list[Tensor]:
    return [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]


def _trains(*parts: nn.Module) -> bool:
    """Whether parts of a model are to be trained: their modules then run one by one, and check their backends."""
    return in_forward_mode() or (
        torch.is_grad_enabled() and any(p.requires_grad for part in parts for p in part.parameters())
    )


def has_user_hooks(hooks: Any) -> bool:
    """Whether a module has hooks besides transformers' own."""
    return bool(hooks) and any(getattr(hook, "__name__", "") != RECORDING_HOOK for hook in hooks.values())
