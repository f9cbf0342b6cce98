"""MPNet: no token types; a bias for each distance of two tokens is added to the attention scores of all layers.

transformers' MPNet ignores a registered attention implementation, so its scores come from a subclass of its attention.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MPNetConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.mpnet import modeling_mpnet as mpnet
from transformers.models.mpnet.modeling_mpnet import MPNetSelfAttention

from hf_xtc.modeling.family import register_family
from hf_xtc.modeling.native_form import LayerParts, NativeForm, Parts, classification_head, positions_from_padding


class MPNetScoresAttention(MPNetSelfAttention):  # type: ignore[misc]
    """`MPNetSelfAttention` whose second output is the scores before mask and softmax, their bias included."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, ...]:
        """As in transformers; `(batch, tokens, hidden)` and, if asked for, `(batch, heads, tokens, tokens)`."""
        shape = (*hidden_states.shape[:-1], -1, self.attention_head_size)
        query, key, value = (linear(hidden_states).view(shape).transpose(1, 2) for linear in (self.q, self.k, self.v))
        scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(self.attention_head_size)
        scores = scores if position_bias is None else scores + position_bias
        masked = scores if attention_mask is None else scores + attention_mask
        probabilities = self.dropout(nn.functional.softmax(masked, dim=-1))
        output = self.o(torch.matmul(probabilities, value).transpose(1, 2).flatten(2))
        return (output, scores) if output_attentions else (output,)


# transformers counts this many buckets of distances, whatever the config says.
_BUCKETS = 32


def _parts(model: Any) -> Parts:
    embeddings, encoder = model.embeddings, model.encoder
    table = encoder.relative_attention_bias
    has_buckets = type(table) is nn.Embedding and table.max_norm is None and len(table.weight) >= _BUCKETS

    def distances(tokens: int) -> Tensor:
        buckets = encoder.relative_position_bucket(torch.arange(1 - tokens, tokens), num_buckets=_BUCKETS)
        by_bucket: Tensor = table.weight
        return by_bucket[buckets].T

    return Parts(
        tables=(embeddings.word_embeddings, embeddings.position_embeddings),
        norm=embeddings.LayerNorm,
        layers=[_layer(layer, has_buckets and table.embedding_dim) for layer in encoder.layer],
        distances=distances,
    )


def _layer(layer: Any, biased_heads: int) -> LayerParts:
    attention, own, inner, outer = layer.attention, layer.attention.attn, layer.intermediate, layer.output
    linears = (own.q, own.k, own.v, own.o, inner.dense, outer.dense)
    heads, size = own.num_attention_heads, own.attention_head_size
    is_plain = heads == biased_heads and heads * size == own.all_head_size == getattr(own.q, "out_features", None)
    return LayerParts(linears, inner.intermediate_act_fn, (attention.LayerNorm, outer.LayerNorm), heads, is_plain)


_NATIVE = NativeForm(
    roots=("embeddings", "encoder"),
    classes=(
        *(mpnet.MPNetEmbeddings, mpnet.MPNetEncoder, mpnet.MPNetLayer, mpnet.MPNetAttention, MPNetSelfAttention),
        *(mpnet.MPNetIntermediate, mpnet.MPNetOutput, mpnet.MPNetPooler),
    ),
    parts=_parts,
    output=BaseModelOutputWithPooling,
    pooler=mpnet.MPNetPooler,
    positions=positions_from_padding,
    classifier=classification_head(mpnet, "MPNet", "tanh"),
)

register_family(
    MPNetConfig,
    layers="encoder.layer",
    scopes={
        "attention": (
            "encoder.layer.*.attention.attn.q",
            "encoder.layer.*.attention.attn.k",
            "encoder.layer.*.attention.attn.v",
            "encoder.layer.*.attention.attn.o",
        ),
        "feed_forward": ("encoder.layer.*.intermediate.dense", "encoder.layer.*.output.dense"),
        "pooler": ("pooler.dense",),
        "word_embeddings": ("embeddings.word_embeddings",),
        "position_embeddings": ("embeddings.position_embeddings",),
    },
    head_scopes={"pooler": ("classifier.dense",)},
    native=_NATIVE,
    scores={MPNetSelfAttention: MPNetScoresAttention},
    module=__name__,
)
