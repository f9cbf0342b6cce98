"""Distillation terms that were tried beside those of the package."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from hf_xtc.distillation.terms import DistillationTerm, token_mask
from hf_xtc.modeling.attention import SCORES, scores_attention
from hf_xtc.recipe.layer_map import LayerMap


def masked_divergence(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the student's attention from the teacher's, of scores before softmax.

    Args:
        student, teacher (`torch.Tensor` of shape `(batch, heads, tokens, tokens)`): Scores.
        mask (`torch.Tensor` of shape `(batch, tokens)`): 1 for real tokens.

    Returns:
        `torch.Tensor` of shape `()`: mean over heads and real queries of an example, then over examples.
    """
    padding = (mask == 0)[:, None, None]
    ours, theirs = (scores.float().masked_fill(padding, -1e30).log_softmax(-1) for scores in (student, teacher))
    divergence = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1).mean(1)
    return ((divergence * mask).sum(1) / mask.sum(1)).mean()


class AttentionProbabilitiesTerm(DistillationTerm):
    """Divergence of attention probabilities over real keys (Kim et al., EMNLP 2022), summed over layers."""

    needs = frozenset({"attentions"})
    intermediate = True

    def __call__(self, student: Any, teacher: Any, batch: Mapping[str, Tensor], layer_map: LayerMap) -> Tensor:
        mask = token_mask(batch, student["attentions"][0])
        pairs = zip(student["attentions"], layer_map.attentions, strict=True)
        return torch.stack([masked_divergence(ours, teacher["attentions"][i], mask) for ours, i in pairs]).sum()


def states_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    """As `scores_attention`; the second output is queries, keys and values, `(3, batch, heads, tokens, size)`."""
    output, _ = scores_attention(module, query, key, value, *args, **kwargs)
    return output, torch.stack([query, key, value])


class RelationsTerm(DistillationTerm):
    """Divergence of query-query, key-key and value-value relations of the last layer (MiniLMv2, Wang et al. 2021)."""

    needs = frozenset({"attentions"})
    intermediate = True

    def __call__(self, student: Any, teacher: Any, batch: Mapping[str, Tensor], layer_map: LayerMap) -> Tensor:
        ours, theirs = student["attentions"][-1], teacher["attentions"][layer_map.attentions[-1]]
        mask = token_mask(batch, ours[0])
        scale = 1 / math.sqrt(ours.shape[-1])
        losses = [
            masked_divergence(s @ s.mT * scale, t @ t.mT * scale, mask) for s, t in zip(ours, theirs, strict=True)
        ]
        return torch.stack(losses).sum()


class RelationsAttention:
    """While entered, attention returns queries, keys and values in the place of scores."""

    def __enter__(self) -> None:
        AttentionInterface.register(SCORES, states_attention)

    def __exit__(self, *error: Any) -> None:
        AttentionInterface.register(SCORES, scores_attention)
