"""The attention implementation "xtc_scores": eager attention whose second output is the scores *before* softmax.

`model.set_attn_implementation("xtc_scores")` makes `outputs.attentions` the scaled scores `q k^T / sqrt(d)`, mask not
added, while the model's outputs stay those of eager attention. Its mask function is registered with it: without one,
transformers passes no mask and padding takes part in the softmax.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

SCORES = "xtc_scores"


def scores_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention of `(batch, heads, tokens, size)` queries, keys and values.

    Returns:
        output, `(batch, tokens, heads, size)`, and scores before mask and softmax, `(batch, heads, tokens, tokens)`.
    """
    scaling = query.size(-1) ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    masked = scores if attention_mask is None else scores + attention_mask
    probabilities = nn.functional.softmax(masked, dim=-1)
    probabilities = nn.functional.dropout(probabilities, p=dropout, training=module.training)
    return torch.matmul(probabilities, value).transpose(1, 2).contiguous(), scores


AttentionInterface.register(SCORES, scores_attention)
AttentionMaskInterface.register(SCORES, eager_mask)
