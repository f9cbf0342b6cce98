"""Distillation terms: each maps the outputs of student and teacher for one batch to a scalar loss.

All terms are means over examples, and within an example means over its *real* tokens: padding never counts, and the
loss of a batch is the mean of those of its halves (gradient accumulation and data parallelism change nothing), except
of `similarities`, which compares the examples of a batch with each other. Layers are summed, as in the reference code.
Terms take tensors only; the trainer weights, adds and logs them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_xtc.errors import XTCError
from hf_xtc.recipe.layer_map import LayerMap
from hf_xtc.registry import Registry
from hf_xtc.tasks.pooling import pool

TERMS = Registry("distillation term")
"""Name -> `DistillationTerm`; `@TERMS.register("name")` adds one. `XTCTrainingArguments(terms=...)` takes names."""

TINYBERT = "Jiao et al., TinyBERT, Findings of EMNLP 2020"
XTC = "Wu et al., XTC: Extreme Compression for Pre-trained Transformers Made Simple and Efficient, NeurIPS 2022"
SENTENCES = (
    "Reimers and Gurevych, Making Monolingual Sentence Embeddings Multilingual using Knowledge Distillation, "
    "EMNLP 2020"
)
RELATIONS = "Park et al., Relational Knowledge Distillation, CVPR 2019"
PRESERVED = "Tung and Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019"


class DistillationTerm(ABC):
    """One part of the distillation loss. Registered in `TERMS` under the name it is logged by.

    `needs` names the model outputs it reads beyond the logits ("hidden_states", "attentions"); others are not
    computed. `mapped` terms read only the teacher layers in the layer map; the teacher cache leaves out the others.
    `intermediate` terms train the encoder, the others the head (stages train them in turn).
    """

    needs: frozenset[str] = frozenset()
    mapped = False
    pooled = False
    intermediate = False
    citations: tuple[str, ...] = (XTC,)

    @abstractmethod
    def __call__(self, student: Any, teacher: Any, batch: Mapping[str, Tensor], layer_map: LayerMap) -> Tensor:
        """The loss of a batch.

        Args:
            student (`Mapping[str, Any]`): Outputs of the student, by name: "logits", "hidden_states", "attentions".
            teacher (`Mapping[str, Any]`): Outputs of the teacher, by the same names.
            batch (`dict[str, torch.Tensor]`): Model inputs, `attention_mask` of shape `(batch, tokens)` among them.
            layer_map (`LayerMap`): Which teacher layer each student layer is compared with.

        Returns:
            `torch.Tensor` of shape `()`, float32.

        Raises:
            XTCError: if the outputs do not match; says which term to drop.
        """


class _MaskedError(torch.autograd.Function):
    """`sum(mask * (student - teacher)**2 / count)`; allocates and saves a single tensor of that size."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, mask: Tensor, count: Tensor) -> Tensor:
        difference = (student.detach().float() - teacher.detach()).mul_(mask)
        ctx.save_for_backward(difference, count)
        ctx.dtype = student.dtype
        rows = difference.flatten(1)
        with torch.autocast(student.device.type, enabled=False):  # else sums of squares overflow float16
            error: Tensor = (torch.linalg.vecdot(rows, rows) / count.flatten()).sum()
        return error

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        difference, count = ctx.saved_tensors
        return (difference * (2 * grads[0] / count)).to(ctx.dtype), None, None, None


def token_mask(batch: Mapping[str, Tensor], like: Tensor) -> Tensor:
    """1 for real tokens and 0 for padding; all 1 for a batch without an attention mask.

    Args:
        batch (`dict[str, torch.Tensor]`): Model inputs; `attention_mask` is `(..., tokens)`, any dtype.
        like (`torch.Tensor` of shape `(rows, ..., tokens, features)`): An output; the mask has its rows and device.

    Returns:
        `torch.Tensor` of shape `(rows, tokens)`, float32; each choice of a multiple-choice example is a row.
    """
    mask = batch.get("attention_mask")
    rows, tokens = like.shape[0], like.shape[-2]
    if mask is None:
        return torch.ones(rows, tokens, device=like.device)
    return mask.reshape(-1, mask.shape[-1]).to(like.device, torch.float32)


def masked_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean over examples of the mean of `(student - teacher)**2` over elements whose mask is 1.

    Args:
        student, teacher (`torch.Tensor` of shape `(batch, ...)`, any float dtype): The gradient reaches the student.
        mask (`torch.Tensor`, broadcastable to them, float32): 1 where an element counts, else 0.

    Returns:
        `torch.Tensor` of shape `()`, float32.
    """
    inner = tuple(range(1, student.dim()))
    per_entry = student[0].numel() / mask[0].numel()  # elements that share one entry of the mask
    count = mask.sum(inner, keepdim=True).clamp(min=1) * (per_entry * student.shape[0])
    error: Tensor = _MaskedError.apply(student, teacher, mask, count)
    return error


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """`-sum_c softmax(teacher / T)_c log_softmax(student / T)_c * T**2`, over the last axis (Hinton et al. 2015).

    Summed over classes; the reference code averages over them (1 / C of this).

    Args:
        student, teacher (`torch.Tensor` of shape `(..., classes)`): Logits.
        temperature (`float`): Softens both distributions.

    Returns:
        `torch.Tensor` of shape `(...)`, float32.
    """
    target = F.softmax(teacher.detach().float() / temperature, dim=-1)
    log_student = F.log_softmax(student.float() / temperature, dim=-1)
    return -(target * log_student).sum(-1) * temperature**2


def soft_binary_cross_entropy(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Sum over labels of the cross entropy between the teacher's probability and the student's, times `T**2`.

    With one label this is `soft_cross_entropy` of the logits `(x, 0)`.

    Args:
        student, teacher (`torch.Tensor` of shape `(..., labels)`): Logits; a probability is `sigmoid(logit / T)`.
        temperature (`float`): T.

    Returns:
        `torch.Tensor` of shape `(...)`, float32.
    """
    target = torch.sigmoid(teacher.detach().float() / temperature)
    loss = F.binary_cross_entropy_with_logits(student.float() / temperature, target, reduction="none")
    return loss.sum(-1) * temperature**2


def _same_shape(student: Any, teacher: Any, key: str, term: str) -> tuple[Tensor, Tensor]:
    """One output of student and teacher; raises `XTCError` if their shapes differ."""
    if student[key].shape != teacher[key].shape:
        raise XTCError(
            f"Student and teacher give {key} of shapes {list(student[key].shape)} and "
            f"{list(teacher[key].shape)}. Use a teacher with the student's head, or drop the term {term!r}."
        )
    return student[key], teacher[key]


@TERMS.register("logits")
class LogitsTerm(DistillationTerm):
    """Soft cross entropy between the heads' outputs; mean squared error where a head has one output (regression).

    A multi-label head gives a probability for each label: binary cross entropies, summed over the labels.

    Token-wise heads count real tokens only (those with a label, where labels are given per token); span heads are
    distributions over the real tokens.

    Args:
        temperature (`float`): Softens both distributions.
        regression (`bool`): Use mean squared error for any number of outputs.
        multi_label (`bool`): Outputs are logits of one probability each, not of one distribution.
    """

    citations = ("Hinton et al., Distilling the Knowledge in a Neural Network, 2015", XTC)

    def __init__(self, temperature: float = 1.0, regression: bool = False, multi_label: bool = False):
        if not temperature > 0:
            raise XTCError(f"temperature={temperature} must be positive.")
        self.temperature = temperature
        self.regression = regression
        self.multi_label = multi_label

    def __call__(self, student: Any, teacher: Any, batch: Mapping[str, Tensor], layer_map: LayerMap) -> Tensor:
        keys = [key for key in student if key.endswith("logits") and key in teacher]
        if not keys:
            raise XTCError("Student and teacher have no logits in common; drop the term 'logits'.")
        losses = [self._loss(key, *_same_shape(student, teacher, key, "logits"), batch) for key in keys]
        return torch.stack(losses).sum()

    def _loss(self, key: str, student: Tensor, teacher: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        if key in ("start_logits", "end_logits"):
            padding = token_mask(batch, student.unsqueeze(-1)) == 0
            # Not the lowest float: a temperature below 1 would make it infinite, and 0 * infinity is NaN.
            student, teacher = (x.float().masked_fill(padding, -1e30) for x in (student, teacher))
        if self.multi_label:
            loss = soft_binary_cross_entropy(student, teacher, self.temperature)
        elif self.regression or student.shape[-1] == 1:
            loss = (student.float() - teacher.detach().float()).square().mean(-1)
        else:
            loss = soft_cross_entropy(student, teacher, self.temperature)
        if student.dim() < 3:
            return loss.mean()
        mask = token_mask(batch, student)
        labels = batch.get("labels")
        if labels is not None and labels.shape == mask.shape:
            mask = mask * (labels != -100)
        return ((loss * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()


@TERMS.register("hidden_states")
class HiddenStatesTerm(DistillationTerm):
    """Mean squared error of the hidden states, embedding output included, summed over layers.

    Args:
        projection (`nn.Module`, *optional*): Maps student states to the teacher's width where the two differ.
    """

    needs = frozenset({"hidden_states"})
    mapped = True
    intermediate = True
    citations = (TINYBERT, XTC)

    def __init__(self, projection: nn.Module | None = None):
        self.projection = projection

    def __call__(self, student: Any, teacher: Any, batch: Mapping[str, Tensor], layer_map: LayerMap) -> Tensor:
        ours, theirs = student["hidden_states"], teacher["hidden_states"]
        mask = token_mask(batch, ours[0]).unsqueeze(-1)
        losses = []
        for state, index in zip(ours, layer_map.hidden_states, strict=True):
            projected = state if self.projection is None else self.projection(state)
            if projected.shape != theirs[index].shape:
                raise XTCError(
                    f"Student states are {_size(projected)}, the teacher's {_size(theirs[index])}. "
                    "Give the term 'hidden_states' a projection, or drop it."
                )
            losses.append(masked_mse(projected, theirs[index], mask))
        return torch.stack(losses).sum()


@TERMS.register("attention_scores")
class AttentionScoresTerm(DistillationTerm):
    """Mean squared error of the attention scores before softmax, over pairs of real tokens, summed over layers."""

    needs = frozenset({"attentions"})
    mapped = True
    intermediate = True
    citations = (TINYBERT, XTC)

    def __call__(self, student: Any, teacher: Any, batch: Mapping[str, Tensor], layer_map: LayerMap) -> Tensor:
        ours, theirs = student["attentions"], teacher["attentions"]
        if len(ours) != len(layer_map.layers) or len(theirs) != layer_map.num_teacher_layers:
            raise XTCError(
                f"Got attention scores of {len(ours)} student and {len(theirs)} teacher layers instead of "
                f"{len(layer_map.layers)} and {layer_map.num_teacher_layers}: the attention implementation returns "
                "none. Use set_attn_implementation('xtc_scores') on both, as XTCTrainer does, or drop the term "
                "'attention_scores'."
            )
        mask = token_mask(batch, ours[0])
        pairs = (mask.unsqueeze(1) * mask.unsqueeze(2)).unsqueeze(1)
        losses = []
        for scores, index in zip(ours, layer_map.attentions, strict=True):
            if scores.shape != theirs[index].shape:
                raise XTCError(
                    f"Student layers have {_heads(scores)}, the teacher's {_heads(theirs[index])}. "
                    "Drop the term 'attention_scores'."
                )
            losses.append(masked_mse(scores, theirs[index], pairs))
        return torch.stack(losses).sum()


def _size(states: Tensor) -> str:
    return f"{states.shape[-2]} tokens of width {states.shape[-1]}"


def _heads(scores: Tensor) -> str:
    return f"{scores.shape[1]} attention heads over {scores.shape[-1]} keys"


class PooledTerm(DistillationTerm):
    """Base of the terms on sentence embeddings: the last hidden states, pooled and scaled to length 1.

    Args:
        pooling (`str`): "mean" or "cls"; see `hf_xtc.tasks.pooling.pool`.
    """

    needs = frozenset({"hidden_states"})
    pooled = True

    def __init__(self, pooling: str = "mean"):
        self.pooling = pooling

    def _embeddings(self, outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Embeddings `(batch, features)`, float32, of length 1."""
        states = outputs["hidden_states"][-1]
        mask = None if "attention_mask" not in batch else token_mask(batch, states)
        return F.normalize(pool(states, mask, self.pooling), dim=-1)

    def _pair(self, student: Any, teacher: Any, batch: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
        ours, theirs = self._embeddings(student, batch), self._embeddings(teacher, batch).detach()
        if ours.shape != theirs.shape:
            raise XTCError(
                f"Student and teacher give embeddings of {ours.shape[-1]} and {theirs.shape[-1]} features. Use a "
                f"student of the teacher's width, or drop the term {name!r}."
            )
        return ours, theirs


@TERMS.register("embeddings")
class EmbeddingsTerm(PooledTerm):
    """`1 - cos(s, t)` of the sentence embeddings of student and teacher, the mean over examples.

    Computed as `|s/|s| - t/|t||**2 / 2`, which is the same and exactly 0 where they are equal: the squared error that
    teaches a student its teacher's embeddings in Reimers and Gurevych 2020, for embeddings of length 1.
    """

    citations = (SENTENCES,)

    def __call__(self, student: Any, teacher: Any, batch: Mapping[str, Tensor], layer_map: LayerMap) -> Tensor:
        ours, theirs = self._pair(student, teacher, batch, "embeddings")
        return (ours - theirs).square().sum(-1).mean() / 2


@TERMS.register("similarities")
class SimilaritiesTerm(PooledTerm):
    """Squared error of the cosine similarities between the examples of a batch.

    `mean over i != j of (s_i . s_j - t_i . t_j)**2` for embeddings `s` of the student and `t` of the teacher of length
    1, after the similarity-preserving loss of Tung and Mori 2019, a relational distillation (Park et al. 2019) with
    cosines for relations. 0 for a batch of one example. It depends on which examples share a batch, so that gradient
    accumulation and several processes change it.
    """

    citations = (RELATIONS, PRESERVED)

    def __call__(self, student: Any, teacher: Any, batch: Mapping[str, Tensor], layer_map: LayerMap) -> Tensor:
        ours, theirs = self._pair(student, teacher, batch, "similarities")
        rows = len(ours)
        with torch.autocast(ours.device.type, enabled=False):
            errors = (ours @ ours.T - theirs @ theirs.T).square()
        others = 1 - torch.eye(rows, device=errors.device)
        return (errors * others).sum() / max(rows * (rows - 1), 1)


@TERMS.register("labels")
class LabelsTerm(DistillationTerm):
    """The head's own loss on the labels of the data. Not part of XTC, where students learn from the teacher alone."""

    citations = ()

    def __call__(self, student: Any, teacher: Any, batch: Mapping[str, Tensor], layer_map: LayerMap) -> Tensor:
        loss = student.get("loss")
        if loss is None:
            raise XTCError("The term 'labels' needs labels in every batch. Add a column 'labels', or drop the term.")
        result: Tensor = loss.float()
        return result
