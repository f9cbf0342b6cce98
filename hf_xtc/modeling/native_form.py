"""How a family's modules map to the native encoder: what `register_family` takes as `native`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers.activations import GELUActivation

from hf_xtc.modeling.layers import PackedEmbedding, PackedLinear
from hf_xtc.quantization.activations import ActivationQuantizer

# Classes of modules that all families are made of.
_COMMON = (
    *(PackedLinear, PackedEmbedding, ActivationQuantizer, nn.Embedding, nn.LayerNorm, nn.Dropout, nn.Identity),
    *(nn.ModuleList, GELUActivation, nn.GELU, nn.Linear, nn.Tanh),
)


def positions_from_padding(embeddings: Any, input_ids: Tensor) -> Tensor:
    """Positions as fairseq counts them: from 1 behind the padding token's id on, that id itself for padding.

    Args:
        embeddings (`nn.Module`): With the attribute `padding_idx`.
        input_ids (`torch.Tensor` of shape `(batch, tokens)`, integer).

    Returns:
        `torch.Tensor` of the same shape, `int64`.
    """
    padding: int = embeddings.padding_idx
    is_token = (input_ids != padding).long()
    return is_token.cumsum(1) * is_token + padding


class LayerParts(NamedTuple):
    """The modules of one layer.

    Args:
        linears (`tuple[nn.Module, ...]`): Query, key, value, attention's output, intermediate, output.
        activation (`nn.Module`): Behind the intermediate linear.
        norms (`tuple[nn.Module, nn.Module]`): LayerNorms behind attention and behind the feed-forward.
        heads (`int`): Attention heads.
        is_plain (`bool`): Whether the layer's other settings are those of self-attention to all tokens whose scores
            are divided by the root of a head's size, and nothing else.
    """

    linears: tuple[Any, ...]
    activation: Any
    norms: tuple[Any, Any]
    heads: int
    is_plain: bool


class Parts(NamedTuple):
    """The modules of a base model.

    Args:
        tables (`tuple[nn.Module, ...]`): Word and position embeddings, and those of token types where there are any.
        norm (`nn.Module`): LayerNorm of the embeddings.
        layers (`list[LayerParts]`): In order.
        projection (`nn.Module`, *optional*): Linear from the embeddings to the first layer.
        distances (`Callable[[int], Tensor]`, *optional*): For a number of tokens n, what is added to the scaled scores
            of all layers at each distance of key and query, 1 - n to n - 1; shape `(heads, 2 * n - 1)`.
    """

    tables: tuple[Any, ...]
    norm: Any
    layers: list[LayerParts]
    projection: Any | None = None
    distances: Callable[[int], Tensor] | None = None


class ClassifierForm(NamedTuple):
    """What of a family's sequence classifier the native operator computes with the encoder.

    A linear on each row's first token, an activation function, and a linear to the labels; dropouts may lie between.

    Args:
        roots (`tuple[str, ...]`): Attributes of the model that hold the head's modules.
        output (`str`): Path of the last linear under the model.
        dense (`str`, *optional*): Path of the first; `None` if it is the base model's pooler, which tanh follows.
        activation (`str`): "tanh", "gelu" or "relu", behind the first linear.
        classes (`tuple[type, ...]`): The family's own classes of modules in the head.
    """

    roots: tuple[str, ...]
    output: str
    dense: str | None = None
    activation: str = "tanh"
    classes: tuple[type, ...] = ()


@dataclass(frozen=True, eq=False)
class NativeForm:
    """What of a family's base model one call of the native operator computes.

    The operator computes embeddings with a LayerNorm, then layers of attention, LayerNorm, feed-forward with the exact
    GELU, LayerNorm (each LayerNorm of a sum with what went in), then BERT's pooler. A model whose modules are of other
    classes than these, or in other settings, runs layer by layer.

    Args:
        roots (`tuple[str, ...]`): Attributes of the base model that hold all modules of `parts`; one that a model does
            not have is passed over.
        classes (`tuple[type, ...]`): The family's own classes of modules in them, and of its pooler.
        parts (`Callable[[model], Parts]`): Finds the modules; called only where those in `roots` are of `classes`.
        output (`type`): What the base model's forward returns.
        pooler (`type`, *optional*): Class of `pooler`, with its linear `dense` and a tanh `activation`.
        positions (`Callable[[embeddings, input_ids], Tensor]`, *optional*): Position ids, `(batch, tokens)`, where
            none are given; by default they are the first of the buffer `position_ids`.
        classifier (`ClassifierForm`, *optional*): The head of the family's sequence classifier.
    """

    roots: tuple[str, ...]
    classes: tuple[type, ...]
    parts: Callable[[Any], Parts]
    output: type
    pooler: type | None = None
    positions: Callable[[Any, Tensor], Tensor] | None = None
    classifier: ClassifierForm | None = None
    forwards: dict[type, Any] = field(init=False)

    def __post_init__(self) -> None:
        # As they are now: another forward is not what the operator computes.
        own = (*self.classes, *(() if self.classifier is None else self.classifier.classes))
        forwards = {cls: cls.forward for cls in (*_COMMON, *own)}
        object.__setattr__(self, "forwards", forwards)


def classification_head(module: Any, prefix: str, activation: str) -> ClassifierForm:
    """The form of a head of the kind of RoBERTa's, `classifier.dense` and `classifier.out_proj`.

    Args:
        module (`ModuleType`): Such as `transformers.models.roberta.modeling_roberta`.
        prefix (`str`): Such as "Roberta".
        activation (`str`): As in `ClassifierForm`.
    """
    classes = (getattr(module, f"{prefix}ClassificationHead"),)
    return ClassifierForm(("classifier",), "classifier.out_proj", "classifier.dense", activation, classes)


def bert_form(module: Any, prefix: str, output: type, **options: Any) -> NativeForm:
    """The form of a family whose module of transformers has BERT's classes under another prefix.

    Args:
        module (`ModuleType`): Such as `transformers.models.roberta.modeling_roberta`.
        prefix (`str`): Such as "Roberta".
        output (`type`), options: As in `NativeForm`.
    """
    names = ("Embeddings", "Encoder", "Layer", "Attention", "SelfAttention", "SelfOutput", "Intermediate", "Output")
    classes = tuple(getattr(module, f"{prefix}{name}") for name in names)
    pooler = getattr(module, f"{prefix}Pooler", None)
    classes += () if pooler is None else (pooler,)
    return NativeForm(
        ("embeddings", "encoder", "embeddings_project"), classes, _bert_parts, output, pooler=pooler, **options
    )


def _bert_parts(model: Any) -> Parts:
    embeddings = model.embeddings
    tables = (embeddings.word_embeddings, embeddings.position_embeddings, embeddings.token_type_embeddings)
    layers = [_bert_layer(layer) for layer in model.encoder.layer]
    return Parts(tables, embeddings.LayerNorm, layers, getattr(model, "embeddings_project", None))


def _bert_layer(layer: Any) -> LayerParts:
    attention, inner, outer = layer.attention, layer.intermediate, layer.output
    own, heads, size = attention.self, attention.self.num_attention_heads, attention.self.attention_head_size
    linears = (own.query, own.key, own.value, attention.output.dense, inner.dense, outer.dense)
    is_plain = (
        not (layer.is_decoder or own.is_decoder or own.is_causal or layer.add_cross_attention)
        and own.scaling == size**-0.5
        and heads * size == getattr(own.query, "out_features", None)
    )
    return LayerParts(
        linears, inner.intermediate_act_fn, (attention.output.LayerNorm, outer.LayerNorm), heads, is_plain
    )
