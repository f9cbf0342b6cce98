"""MPNet: no token types; a bias for each distance of two tokens is added to the attention scores of all layers.

transformers' MPNet ignores a registered attention implementation, so its scores come from a subclass of its attention.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MPNetConfig
from transformers.models.mpnet.modeling_mpnet import MPNetSelfAttention

from hf_xtc.modeling.family import register_family


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
    scores={MPNetSelfAttention: MPNetScoresAttention},
    module=__name__,
)
