"""GlueMetric and build_compute_metrics against scikit-learn and scipy, and scores that these leave undefined."""

import math
import pickle

import evaluate
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import EvalPrediction

from hf_xtc.data.glue_metric import GlueMetric
from hf_xtc.data.metrics import GLUE_SCORES, build_compute_metrics, main_metric
from hf_xtc.errors import DataError

CONFIGURATIONS = "cola, mnli, mnli_matched, mnli_mismatched, mrpc, qnli, qqp, rte, sst2, stsb, wnli"
ACCURACY_ONLY = ["mnli", "mnli_matched", "mnli_mismatched", "qnli", "rte", "sst2", "wnli"]
class_pairs = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40)
numbers = st.floats(-100, 100, width=32)
number_pairs = st.lists(st.tuples(numbers, numbers), min_size=2, max_size=40)


@pytest.fixture
def glue(tmp_path):
    return lambda config, **kwargs: GlueMetric(config, cache_dir=str(tmp_path), **kwargs)


def logits_of(classes, labels):
    return np.eye(labels, dtype=np.float32)[list(classes)]


# The worked examples that the Hub's metric prints in its own documentation.
@pytest.mark.parametrize(
    ("config", "rows", "expected"),
    [
        ("sst2", [0, 1], {"accuracy": 1.0}),
        ("mrpc", [0, 1], {"accuracy": 1.0, "f1": 1.0}),
        ("qqp", [0, 1], {"accuracy": 1.0, "f1": 1.0}),
        ("cola", [0, 1], {"matthews_correlation": 1.0}),
        ("stsb", [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], {"pearson": 1.0, "spearmanr": 1.0}),
    ],
)
def test_hub_examples(glue, config, rows, expected):
    scores = glue(config).compute(predictions=rows, references=rows)
    assert list(scores) == list(expected)
    assert scores == pytest.approx(expected, abs=1e-6)  # pearson is computed in float32, as on the Hub


@pytest.mark.parametrize("config", ACCURACY_ONLY)
def test_accuracy_configurations(glue, config):
    assert glue(config).compute(predictions=[0, 1, 1, 0], references=[0, 1, 0, 0]) == {"accuracy": 0.75}


def test_all_configurations_are_listed():
    assert ", ".join(GLUE_SCORES) == CONFIGURATIONS


@pytest.mark.parametrize(("config", "shown"), [("sst-2", "sst-2"), (None, "default")])
def test_unknown_configuration(glue, config, shown):
    with pytest.raises(DataError) as error:
        glue(config)
    assert str(error.value) == f"Unknown GLUE configuration '{shown}'. Use one of: {CONFIGURATIONS}."


@pytest.mark.parametrize("keep_in_memory", [False, True], ids=["file", "memory"])
@pytest.mark.parametrize("config", ["mrpc", "stsb"])
def test_add_and_add_batch_equal_compute(glue, config, keep_in_memory):
    predictions, references = [0, 1, 1, 0, 1], [0, 1, 0, 0, 0]
    metric = glue(config, keep_in_memory=keep_in_memory)
    expected = metric.compute(predictions=predictions, references=references)
    for prediction, reference in zip(predictions, references, strict=True):
        metric.add(prediction=prediction, reference=reference)
    assert metric.compute() == expected
    for rows in (slice(0, 2), slice(2, 5)):
        metric.add_batch(predictions=np.array(predictions[rows]), references=np.array(references[rows]))
    assert metric.compute() == expected


def test_combine(glue):
    both = evaluate.combine({"paraphrase": glue("mrpc"), "grammar": glue("cola")}, force_prefix=True)
    scores = both.compute(predictions=[0, 1, 1], references=[0, 1, 0])
    assert scores == {
        "paraphrase_accuracy": 2 / 3,
        "paraphrase_f1": 2 / 3,
        "grammar_matthews_correlation": pytest.approx(0.5),
    }


def test_compute_without_rows(glue):
    with pytest.raises(DataError) as error:
        glue("sst2").compute(predictions=[], references=[])
    assert str(error.value) == "GLUE sst2 has no rows to score. Add predictions and references first."


@given(class_pairs)
@settings(deadline=None)
def test_classification_equals_sklearn(pairs):
    predictions, references = (np.array(column) for column in zip(*pairs, strict=True))
    accuracy = accuracy_score(references, predictions)
    f1 = f1_score(references, predictions, zero_division=0.0)
    for config in ("mrpc", "qqp"):
        assert GLUE_SCORES[config](predictions, references) == {"accuracy": accuracy, "f1": f1}
    for config in ACCURACY_ONLY:
        assert GLUE_SCORES[config](predictions, references) == {"accuracy": accuracy}
    one_label = len({*predictions.tolist(), *references.tolist()}) == 1  # here scikit-learn warns and says 0.0
    matthews = 0.0 if one_label else matthews_corrcoef(references, predictions)
    assert GLUE_SCORES["cola"](predictions, references) == {"matthews_correlation": matthews}


@given(number_pairs, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_correlations_equal_scipy_in_any_order(pairs, random):
    predictions, references = (np.array(column, dtype=np.float32) for column in zip(*pairs, strict=True))
    spread = min(float(np.std(column.astype(np.float64))) for column in (predictions, references))
    assume(spread > 1.0)  # float32 rounding is a matter of the spread; the narrow cases have their own test
    scores = GLUE_SCORES["stsb"](predictions, references)
    assert scores == {
        "pearson": float(pearsonr(predictions, references)[0]),
        "spearmanr": float(spearmanr(predictions, references)[0]),
    }
    random.shuffle(pairs)
    shuffled = (np.array(column, dtype=np.float32) for column in zip(*pairs, strict=True))
    assert GLUE_SCORES["stsb"](*shuffled) == pytest.approx(scores, abs=1e-4)


@given(
    st.lists(st.tuples(st.floats(-(2.0**100), 2.0**100, width=32), st.floats(0, 5, width=32)), min_size=1, max_size=12)
)
@settings(deadline=None)
def test_correlations_are_always_finite(pairs):
    predictions, references = (np.array(column, dtype=np.float32) for column in zip(*pairs, strict=True))
    scores = GLUE_SCORES["stsb"](predictions, references)
    assert all(-1.0001 <= score <= 1.0001 for score in scores.values())


@pytest.mark.parametrize(
    ("predictions", "references"),
    [([2.0, 2.0, 2.0], [0.0, 1.0, 2.0]), ([0.0, 1.0, 2.0], [3.0, 3.0, 3.0]), ([1.0], [1.0])],
    ids=["constant-predictions", "constant-references", "one-row"],
)
def test_undefined_correlation_is_zero(glue, predictions, references):
    scores = glue("stsb").compute(predictions=predictions, references=references)
    assert scores == {"pearson": 0.0, "spearmanr": 0.0}


@pytest.mark.parametrize("references", [[0, 1, 1], [1, 1, 1], [0, 0, 0]], ids=str)
@pytest.mark.parametrize("predictions", [[0, 0, 0], [1, 1, 1]], ids=str)
def test_constant_predictions_give_matthews_zero(glue, predictions, references):
    assert glue("cola").compute(predictions=predictions, references=references) == {"matthews_correlation": 0.0}


def test_f1_without_positive_rows_is_zero(glue):
    assert glue("mrpc").compute(predictions=[0, 0], references=[0, 0]) == {"accuracy": 1.0, "f1": 0.0}


@pytest.mark.parametrize(
    ("task", "regression", "expected"),
    [
        ("cola", False, "matthews_correlation"),
        ("mrpc", False, "f1"),
        ("qqp", False, "f1"),
        ("stsb", True, "pearson"),
        ("stsb", False, "pearson"),
        ("mnli", False, "accuracy"),
        ("sst2", False, "accuracy"),
        (None, False, "accuracy"),
        (None, True, "pearson"),
    ],
)
def test_main_metric(task, regression, expected):
    assert main_metric(task, regression) == expected


def test_main_metric_of_unknown_task():
    with pytest.raises(DataError) as error:
        main_metric("boolq", regression=False)
    assert str(error.value) == f"Unknown GLUE configuration 'boolq'. Use one of: {CONFIGURATIONS}."


@pytest.mark.parametrize(
    ("task", "regression"), [*((task, False) for task in GLUE_SCORES), ("stsb", True), (None, False), (None, True)]
)
def test_main_metric_is_a_key_of_compute_metrics(task, regression):
    numeric = regression or task == "stsb"
    outputs = np.array([[0.0], [1.0], [2.0]]) if numeric else logits_of([0, 1, 1], 2)
    scores = build_compute_metrics(task, regression=regression)(EvalPrediction(outputs, np.array([0, 1, 0])))
    assert math.isfinite(scores[main_metric(task, regression)])


@pytest.mark.parametrize("task", [None, "mrpc"])
@pytest.mark.parametrize("positive", [0, 1])
def test_the_f1_is_that_of_the_positive_class(task, positive):
    predictions, references = [0, 0, 0, 1, 1], [0, 1, 0, 1, 0]
    compute = build_compute_metrics(task, regression=False, positive=positive)
    assert compute(EvalPrediction(logits_of(predictions, 2), np.array(references))) == {
        "accuracy": 0.6,
        "f1": f1_score(references, predictions, pos_label=positive),
    }


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
@settings(deadline=None)
def test_own_classification_equals_sklearn(pairs):
    predictions, references = zip(*pairs, strict=True)
    compute = build_compute_metrics(None, regression=False)
    assert compute(EvalPrediction(logits_of(predictions, 4), np.array(references))) == {
        "accuracy": accuracy_score(references, predictions),
        "f1_macro": f1_score(references, predictions, average="macro", zero_division=0.0),
    }


def test_own_binary_classification():
    compute = build_compute_metrics(None, regression=False)
    scores = compute(EvalPrediction(logits_of([1, 1, 0, 0], 2), np.array([1, 0, 0, 0])))
    assert scores == {"accuracy": 0.75, "f1": 2 / 3}


@pytest.mark.parametrize("shape", [(3,), (3, 1)], ids=str)
def test_own_regression(shape):
    outputs, references = np.array([1.0, 2.0, 4.0], dtype=np.float32), np.array([1.0, 3.0, 2.0], dtype=np.float32)
    scores = build_compute_metrics(None, regression=True)(EvalPrediction(outputs.reshape(shape), references))
    assert scores == {
        "pearson": float(pearsonr(outputs, references)[0]),
        "spearmanr": float(spearmanr(outputs, references)[0]),
        "mse": 5 / 3,
    }


@pytest.mark.parametrize("task", list(GLUE_SCORES))
def test_compute_metrics_equals_glue_metric(glue, task):
    references = np.array([0, 1, 1, 0, 1])
    if task == "stsb":
        predictions = np.array([0.5, 4.0, 3.0, 1.0, 2.0], dtype=np.float32)
        outputs = predictions[:, None]
    else:
        predictions = np.array([0, 1, 0, 0, 1])
        outputs = logits_of(predictions, 2)
    scores = build_compute_metrics(task, regression=False)(EvalPrediction(outputs, references))
    assert scores == glue(task).compute(predictions=predictions, references=references)
    assert all(type(score) is float for score in scores.values())


def test_first_of_a_tuple_of_predictions_is_scored():
    predictions = (logits_of([1, 0], 2), np.zeros((2, 7)))
    scores = build_compute_metrics("sst2", regression=False)(EvalPrediction(predictions, np.array([1, 0])))
    assert scores == {"accuracy": 1.0}


@pytest.mark.parametrize(
    ("task", "regression", "outputs", "keys"),
    [
        ("sst2", False, [[np.nan, 0.0], [0.0, 1.0]], {"accuracy"}),
        ("stsb", True, [[np.nan], [1.0]], {"pearson", "spearmanr"}),
        (None, True, [[np.nan], [1.0]], {"pearson", "spearmanr", "mse"}),
        (None, True, [[np.inf], [1.0]], {"pearson", "spearmanr"}),
    ],
    ids=["classes", "stsb", "numbers", "infinite"],
)
def test_diverged_model_scores_nan(task, regression, outputs, keys):
    scores = build_compute_metrics(task, regression=regression)(EvalPrediction(np.array(outputs), np.array([0, 1])))
    assert {key for key, score in scores.items() if math.isnan(score)} == keys


def test_regression_of_a_classification_task():
    with pytest.raises(DataError) as error:
        build_compute_metrics("sst2", regression=True)
    assert str(error.value) == "GLUE task sst2 is a classification; regression=True is for stsb and own data."


@pytest.mark.parametrize("shape", [(4,), (4, 1), (0, 2), (4, 2, 2)], ids=str)
def test_classification_of_another_shape(shape):
    with pytest.raises(DataError) as error:
        build_compute_metrics(None, regression=False)(EvalPrediction(np.zeros(shape), np.zeros(shape[:1])))
    assert str(error.value) == (
        "Classification needs logits of shape (rows, labels) with at least one row and two labels, but the "
        f"predictions have shape {shape}. Pass the logits, not class ids, or use regression=True."
    )


@pytest.mark.parametrize("shape", [(4, 2), (0, 1), (1, 4)], ids=str)
def test_regression_of_another_shape(shape):
    with pytest.raises(DataError) as error:
        build_compute_metrics(None, regression=True)(EvalPrediction(np.zeros(shape), np.zeros(shape[:1])))
    assert str(error.value) == (
        "Regression needs predictions of shape (rows, 1) or (rows,) with at least one row, but they have shape "
        f"{shape}. Use a model with num_labels=1."
    )


def test_inputs_are_not_changed():
    outputs, references = np.array([[1.0], [2.0], [4.0]]), np.array([1.0, 3.0, 2.0])
    before = pickle.dumps((outputs, references))
    build_compute_metrics(None, regression=True)(EvalPrediction(outputs, references))
    assert pickle.dumps((outputs, references)) == before
