"""The scores of GLUE and of own data: offline, with the keys and values of the Hub's `glue` metric.

`build_compute_metrics` is for the Trainer; `hf_xtc.GlueMetric`, for users of evaluate, calls the same score functions.
Where a correlation is not defined (a constant input, fewer than two rows) the score is 0.0 without a warning, as
scikit-learn decides for Matthews; scipy's nan would make every later "is this checkpoint better?" false. Predictions
that are themselves nan give nan: a model that diverged must not look like one that only guesses.
"""

import warnings
from collections.abc import Callable

import numpy as np
from transformers import EvalPrediction

from hf_xtc.errors import DataError, needs_extra

with needs_extra("cli"):
    from scipy.stats import NearConstantInputWarning, pearsonr, spearmanr
    from sklearn.metrics import f1_score, matthews_corrcoef

Scores = dict[str, float]


def _accuracy(predictions: np.ndarray, references: np.ndarray) -> Scores:
    return {"accuracy": float((predictions == references).mean())}


def _accuracy_and_f1(predictions: np.ndarray, references: np.ndarray) -> Scores:
    f1 = float(f1_score(references, predictions, zero_division=0.0))
    return _accuracy(predictions, references) | {"f1": f1}


def _accuracy_and_macro_f1(predictions: np.ndarray, references: np.ndarray) -> Scores:
    f1 = float(f1_score(references, predictions, average="macro", zero_division=0.0))
    return _accuracy(predictions, references) | {"f1_macro": f1}


def _matthews(predictions: np.ndarray, references: np.ndarray) -> Scores:
    # scikit-learn returns the same 0.0 here, but warns when both are one and the same constant
    if np.ptp(predictions) == 0 or np.ptp(references) == 0:
        return {"matthews_correlation": 0.0}
    return {"matthews_correlation": float(matthews_corrcoef(references, predictions))}


def correlations(predictions: np.ndarray, references: np.ndarray) -> Scores:
    """Pearson's and Spearman's correlation of numbers `(rows,)`, in float32."""
    predictions, references = predictions.astype(np.float32), references.astype(np.float32)  # as in the Hub's metric
    if not (np.isfinite(predictions).all() and np.isfinite(references).all()):
        return {"pearson": float("nan"), "spearmanr": float("nan")}
    if (predictions == predictions[0]).all() or (references == references[0]).all():
        return {"pearson": 0.0, "spearmanr": 0.0}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", NearConstantInputWarning)
        pearson, spearman = (float(f(predictions, references)[0]) for f in (pearsonr, spearmanr))
    # a spread that underflows is constant to scipy's arithmetic though not to the comparison above
    return {"pearson": pearson if np.isfinite(pearson) else 0.0, "spearmanr": spearman}


def _correlations_and_mse(predictions: np.ndarray, references: np.ndarray) -> Scores:
    with np.errstate(all="ignore"):
        mse = float(np.mean(np.square(predictions.astype(np.float64) - references.astype(np.float64))))
    return correlations(predictions, references) | {"mse": mse}


GLUE_SCORES: dict[str, Callable[[np.ndarray, np.ndarray], Scores]] = {
    "cola": _matthews,
    "mnli": _accuracy,
    "mnli_matched": _accuracy,
    "mnli_mismatched": _accuracy,
    "mrpc": _accuracy_and_f1,
    "qnli": _accuracy,
    "qqp": _accuracy_and_f1,
    "rte": _accuracy,
    "sst2": _accuracy,
    "stsb": correlations,
    "wnli": _accuracy,
}


def check_glue(config_name: str) -> None:
    """Raises `DataError` if there is no such GLUE configuration."""
    if config_name not in GLUE_SCORES:
        raise DataError(f"Unknown GLUE configuration {config_name!r}. Use one of: {', '.join(GLUE_SCORES)}.")


def main_metric(task: str | None, regression: bool) -> str:
    """The key of the main metric, by which checkpoints are compared; larger is better.

    Args:
        task (`str` or `None`): GLUE task, or `None` for own data.
        regression (`bool`): Whether own data is a regression; stsb always is.

    Returns:
        `str`: `matthews_correlation` for cola, `f1` for mrpc and qqp, `pearson` for regression, else `accuracy`.

    Raises:
        DataError: if the GLUE task is unknown.

    Example:
        >>> main_metric("cola", regression=False), main_metric(None, regression=True)
        ('matthews_correlation', 'pearson')
    """
    if task is not None:
        check_glue(task)
    if regression or task == "stsb":
        return "pearson"
    return {"cola": "matthews_correlation", "mrpc": "f1", "qqp": "f1"}.get(task or "", "accuracy")


def build_compute_metrics(
    task: str | None, *, regression: bool, positive: int = 1
) -> Callable[[EvalPrediction], Scores]:
    """A `compute_metrics` for the Trainer.

    GLUE tasks give the keys and values of `GlueMetric`. Own data (`task=None`) gives `accuracy` and `f1` (two labels:
    F1 of class `positive`) or `f1_macro` (more labels: unweighted mean over the classes that occur); regression gives
    `pearson`, `spearmanr` and `mse`. Undefined scores are 0.0; predictions that contain nan give nan for every key.

    Args:
        task (`str` or `None`): GLUE task, or `None` for own data.
        regression (`bool`): Whether own data is a regression; stsb always is.
        positive (`int`): Class id whose F1 is reported where there are two classes, 0 or 1.

    Returns:
        `Callable[[EvalPrediction], dict[str, float]]`. It reads the first entry of a tuple of predictions: logits
        `(rows, labels)`, or for regression `(rows, 1)` or `(rows,)`; `label_ids` is `(rows,)`.

    Raises:
        DataError: if the task is unknown, or a classification with `regression=True`; when called, if there are no
            rows or the predictions have another shape.
    """
    if task is not None:
        check_glue(task)
        if regression and task != "stsb":
            raise DataError(f"GLUE task {task} is a classification; regression=True is for stsb and own data.")
    regression = regression or task == "stsb"

    def compute_metrics(prediction: EvalPrediction) -> Scores:
        outputs = prediction.predictions
        outputs = np.asarray(outputs[0] if isinstance(outputs, tuple) else outputs)
        score = _own_score(outputs, regression) if task is None else GLUE_SCORES[task]
        values = _regression_values(outputs) if regression else _class_ids(outputs)
        labels = np.asarray(prediction.label_ids)
        if positive == 0 and not regression and outputs.shape[-1] == 2:  # the scores take class 1 for the positive one
            values, labels = 1 - values, 1 - labels
        scores = score(values, labels)
        return dict.fromkeys(scores, float("nan")) if np.isnan(outputs).any() else scores

    return compute_metrics


def _own_score(outputs: np.ndarray, regression: bool) -> Callable[[np.ndarray, np.ndarray], Scores]:
    if regression:
        return _correlations_and_mse
    return _accuracy_and_f1 if outputs.shape[-1] == 2 else _accuracy_and_macro_f1


def _class_ids(logits: np.ndarray) -> np.ndarray:
    """Class ids `(rows,)` of logits `(rows, labels)`."""
    if logits.ndim != 2 or logits.shape[0] == 0 or logits.shape[1] < 2:
        raise DataError(
            f"Classification needs logits of shape (rows, labels) with at least one row and two labels, but the "
            f"predictions have shape {logits.shape}. Pass the logits, not class ids, or use regression=True."
        )
    return np.asarray(logits.argmax(axis=-1))


def _regression_values(outputs: np.ndarray) -> np.ndarray:
    """Predicted numbers `(rows,)` of outputs `(rows, 1)` or `(rows,)`."""
    if outputs.shape not in {(len(outputs), 1), (len(outputs),)} or len(outputs) == 0:
        raise DataError(
            f"Regression needs predictions of shape (rows, 1) or (rows,) with at least one row, but they have shape "
            f"{outputs.shape}. Use a model with num_labels=1."
        )
    return outputs.reshape(-1)
