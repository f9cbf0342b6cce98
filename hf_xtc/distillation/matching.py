"""Matches student and teacher: loss terms, label order, head, and layers."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from hf_xtc.distillation.terms import TERMS, DistillationTerm, LogitsTerm, PooledTerm
from hf_xtc.errors import RecipeError, XTCError
from hf_xtc.recipe.layer_map import LayerMap

logger = logging.getLogger(__name__)


def build_terms(weights: Mapping[str, float], temperature: float) -> dict[str, DistillationTerm]:
    """Name -> term, for the names in `weights`; `temperature` is used by the term 'logits'."""
    options: dict[str, dict[str, Any]] = {"logits": {"temperature": temperature}}
    return {name: TERMS[name](**options.get(name, {})) for name in weights}


def label_order(student: Any, teacher: Any) -> list[int] | None:
    """Indices that reorder the teacher's logits into the student's label order; `None` if none are needed.

    Args:
        student, teacher (`PreTrainedConfig`): Their `label2id` are compared by name, ignoring case.

    Raises:
        XTCError: if both name their labels and the names differ.
    """
    if student.num_labels != teacher.num_labels or not getattr(teacher, "id2label", None):
        return None
    student_labels = [str(student.id2label[i]).lower() for i in range(student.num_labels)]
    teacher_labels = [str(teacher.id2label[i]).lower() for i in range(teacher.num_labels)]
    generic = [f"label_{i}" for i in range(student.num_labels)]
    if student_labels == teacher_labels or generic in (student_labels, teacher_labels):
        return None
    if sorted(student_labels) != sorted(teacher_labels):
        raise XTCError(
            f"The student's labels are {student_labels}, the teacher's {teacher_labels}: their logits mean different "
            "things. Set label2id and id2label of both configs to the same names."
        )
    logger.warning("Teacher and student order their labels differently; the teacher's logits are reordered by name.")
    return [teacher_labels.index(name) for name in student_labels]


def fit_logits(term: DistillationTerm | None, student: Any) -> None:
    """Sets the term 'logits' to what the student's head gives: numbers, a probability for each label, or classes."""
    if isinstance(term, LogitsTerm):
        term.regression = student.problem_type == "regression"
        term.multi_label = student.problem_type == "multi_label_classification"


def fit_pooling(terms: Iterable[DistillationTerm], student: Any) -> bool:
    """Lets the terms on sentence embeddings pool as the student's configuration says; returns whether there are any.

    A student without settings of its own is pooled by the mean.
    """
    pooled = [term for term in terms if isinstance(term, PooledTerm)]
    for term in pooled:
        term.pooling = ((getattr(student, "xtc", None) or {}).get("sentences") or {}).get("pooling", "mean")
    return bool(pooled)


def fit_layers(student: Any, teacher: Any) -> LayerMap:
    """The student's layer map; evenly spaced teacher layers for a student without one.

    Args:
        student, teacher (`PreTrainedConfig`): The configs of the two models.

    Raises:
        XTCError: if the map is for a teacher of another depth.
    """
    layer_map = getattr(student, "layer_map", None)
    if layer_map is None:
        return LayerMap.skip(teacher.num_hidden_layers, student.num_hidden_layers)
    if layer_map.num_teacher_layers != teacher.num_hidden_layers:
        raise XTCError(
            f"The student's layer map names layers {layer_map.layers} of a {layer_map.num_teacher_layers}-layer "
            f"teacher, but this teacher has {teacher.num_hidden_layers}. Use the teacher it was compressed from."
        )
    found: LayerMap = layer_map
    return found


def stage_terms(names: list[str], stage: int, stages: int) -> list[str]:
    """The terms of one stage: with 2 stages intermediate, head; with 3 intermediate, all, head.

    Raises:
        RecipeError: if no term is left for the stage.
    """
    first, last = stage == 0 and stages > 1, stage == stages - 1 and stages > 1
    intermediate = {name for name in names if TERMS[name].intermediate}
    active = [n for n in names if (not first or n in intermediate) and (not last or n not in intermediate)]
    if not active:
        kind = (
            "intermediate terms (hidden_states, attention_scores)" if first else "terms of the head (logits, labels)"
        )
        raise RecipeError(
            f"distillation_stages={stages} with terms {', '.join(names)}: stage {stage + 1} trains the {kind}, "
            "and there are none. Add one, or use distillation_stages=1."
        )
    return active
