"""DeBERTa-v2 and -v3: attention of contents and relative positions; a model may have no token types and no absolute
positions.

The table of relative positions stays in float: transformers reads its weight, and looks nothing up. transformers'
DeBERTa ignores a registered attention implementation, so its scores come from a subclass of its attention.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DebertaV2Config, DebertaV2ForMaskedLM
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention, scaled_size_sqrt

from hf_xtc.errors import XTCError
from hf_xtc.modeling.base import XTCModel
from hf_xtc.modeling.bert import BERT_SCOPES
from hf_xtc.modeling.family import register_family


class DebertaV2ScoresAttention(DisentangledSelfAttention):  # type: ignore[misc]
    """`DisentangledSelfAttention` whose second output is the scores before mask and softmax: of contents, and of
    contents and positions."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
        rel_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """As in transformers; `(batch, tokens, hidden)` and, if asked for, `(batch, heads, tokens, tokens)`."""
        heads = self.num_attention_heads
        queries = hidden_states if query_states is None else query_states
        query = self.transpose_for_scores(self.query_proj(queries), heads)
        key = self.transpose_for_scores(self.key_proj(hidden_states), heads)
        value = self.transpose_for_scores(self.value_proj(hidden_states), heads)
        parts = 1 + sum(kind in self.pos_att_type for kind in ("c2p", "p2c"))
        scale = scaled_size_sqrt(query, parts)
        scores = torch.bmm(query, key.transpose(-1, -2) / scale.to(dtype=query.dtype))
        if self.relative_attention:
            positions = self.pos_dropout(rel_embeddings)
            scores = scores + self.disentangled_attention_bias(query, key, relative_pos, positions, parts)
        scores = scores.unflatten(0, (-1, heads))
        masked = scores.masked_fill(~attention_mask.bool(), torch.finfo(query.dtype).min)
        probabilities = self.dropout(nn.functional.softmax(masked, dim=-1))
        output = torch.bmm(probabilities.flatten(0, 1), value).unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)
        return (output, scores) if output_attentions else (output, None)


class XTCDebertaV2ForMaskedLM(XTCModel, DebertaV2ForMaskedLM):
    """`DebertaV2ForMaskedLM` with latent or packed weights.

    Raises:
        XTCError: if the head is that of `legacy=False`, whose output layer reads the weight of the word embedding, and
            the recipe quantizes word embeddings.
    """

    def __init__(self, config: Any):
        if not config.legacy and config.recipe.embedding_weights is not None:
            raise XTCError(
                "legacy=False gives DebertaV2ForMaskedLM a head that reads float word embeddings, but the recipe says "
                f"embedding_weights={config.recipe.embedding_weights!r}; use embedding_weights=None."
            )
        super().__init__(config)


register_family(
    DebertaV2Config,
    layers="encoder.layer",
    scopes={
        **BERT_SCOPES,
        "attention": (
            "encoder.layer.*.attention.self.query_proj",
            "encoder.layer.*.attention.self.key_proj",
            "encoder.layer.*.attention.self.value_proj",
            "encoder.layer.*.attention.self.pos_key_proj",
            "encoder.layer.*.attention.self.pos_query_proj",
            "encoder.layer.*.attention.output.dense",
        ),
        "feed_forward": (*BERT_SCOPES["feed_forward"], "embeddings.embed_proj"),
    },
    head_scopes={"pooler": ("pooler.dense",)},
    scores={DisentangledSelfAttention: DebertaV2ScoresAttention},
    classes=(XTCDebertaV2ForMaskedLM,),
    module=__name__,
)
