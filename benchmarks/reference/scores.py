"""The scores of GLUE in numpy alone, since DeepSpeed's environment lacks `hf_xtc.data.metrics`; equal to those."""

from typing import Any

import numpy as np

# Task -> the score that checkpoints are chosen by and that the table shows; accuracy for all others.
MAIN = {"cola": "matthews_correlation", "mrpc": "f1", "qqp": "f1", "stsb": "pearson"}


def main_score(task: str) -> str:
    """The key of the score that ranks checkpoints and learning rates."""
    return MAIN.get(task, "accuracy")


def rank(score: float) -> float:
    """The score as a sort key: NaN, of a model that diverged, is below all others."""
    return -np.inf if np.isnan(score) else score


def scores(task: str, logits: np.ndarray, labels: Any) -> dict[str, float]:
    """All scores of a task. An undefined correlation is 0.0; if any logit is NaN, all scores are NaN.

    Args:
        task (`str`): GLUE task.
        logits (`numpy.ndarray` of shape `(rows, labels)`): One column for stsb.
        labels (`list` of `rows` numbers): Class ids; for stsb similarities.
    """
    labels = np.asarray(labels)
    if task == "stsb":
        found = {"pearson": correlation(logits[:, 0], labels)}
    else:
        predicted = logits.argmax(1)
        found = {"accuracy": float((predicted == labels).mean())}
        if main_score(task) == "f1":
            found["f1"] = f1(predicted, labels)
        elif main_score(task) == "matthews_correlation":  # for two classes, Pearson's correlation of their ids
            found["matthews_correlation"] = correlation(predicted, labels)
    return dict.fromkeys(found, float("nan")) if np.isnan(logits).any() else found


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's correlation; 0.0 where one side is constant."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(first.astype(np.float64), second.astype(np.float64))[0, 1])


def f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """F1 of class 1; 0.0 without a true positive."""
    hits = int(((predicted == 1) & (labels == 1)).sum())
    return 2 * hits / int((predicted == 1).sum() + (labels == 1).sum()) if hits else 0.0
