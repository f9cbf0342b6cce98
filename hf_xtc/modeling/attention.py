"""The attention implementation "xtc_scores": eager attention whose second output is the scores *before* softmax.

`model.set_attn_implementation("xtc_scores")` makes `outputs.attentions` the scaled scores `q k^T / sqrt(d)`, mask not
added, while the model's outputs stay those of eager attention. Its mask function is registered with it: without one,
transformers passes no mask and padding takes part in the softmax.

Families whose attention ignores registered implementations, silently, declare another way to their scores.
`return_scores` takes the way of a model's family.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from hf_xtc.errors import XTCError
from hf_xtc.modeling.architecture import architecture_of

SCORES = "xtc_scores"


def scores_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention of `(batch, heads, tokens, size)` queries, keys and values.

    Returns:
        output, `(batch, tokens, heads, size)`, and scores before mask and softmax, `(batch, heads, tokens, tokens)`.
        The scores of tokens that are `sliding_window` apart, or farther, are zeros: the layer does not use them.
    """
    scaling = query.size(-1) ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    masked = scores if attention_mask is None else scores + attention_mask
    probabilities = nn.functional.softmax(masked, dim=-1)
    probabilities = nn.functional.dropout(probabilities, p=dropout, training=module.training)
    output = torch.matmul(probabilities, value).transpose(1, 2).contiguous()
    if sliding_window is not None and sliding_window < scores.shape[-1]:
        places = torch.arange(scores.shape[-1], device=scores.device)
        scores = scores.masked_fill((places - places[:, None]).abs() >= sliding_window, 0)
    return output, scores


AttentionInterface.register(SCORES, scores_attention)
AttentionMaskInterface.register(SCORES, eager_mask)


def check_scores(config: Any) -> None:
    """Checks that a model with this config can return its attention scores.

    Raises:
        XTCError: if its family has none, or is unknown.
    """
    if architecture_of(config).scores is None:
        raise XTCError(
            f"Models of type {config.model_type!r} give no attention scores before softmax; drop the term "
            "'attention_scores'."
        )


def return_scores(model: Any) -> Callable[[], None]:
    """Makes `outputs.attentions` of a teacher or student its attention scores before mask and softmax.

    Returns:
        `Callable`: undoes it.

    Raises:
        XTCError: as `check_scores`.
    """
    check_scores(model.config)
    before: str = model.config._attn_implementation
    by_name = model._can_set_attn_implementation()  # else transformers would only warn
    if by_name:
        model.set_attn_implementation(SCORES)
    classes = architecture_of(model.config).scores or {}
    changed = [(module, type(module)) for module in model.modules() if type(module) in classes]
    for module, cls in changed:
        module.__class__ = classes[cls]

    def restore() -> None:
        if by_name:
            model.set_attn_implementation(before)
        for module, cls in changed:
            module.__class__ = cls

    return restore
