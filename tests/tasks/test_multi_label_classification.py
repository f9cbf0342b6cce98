"""Several labels for a text: lists and columns of 0 and 1, scores, and data that are refused."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from sklearn.metrics import average_precision_score, f1_score
from transformers import BertConfig

from hf_xtc.data.tables import Columns
from hf_xtc.data.task_data import DataArguments
from hf_xtc.errors import DataError
from hf_xtc.tasks.multi_label_classification import MultiLabelClassification, multi_label_scores

TASK = MultiLabelClassification()


def load(rows, features=None, **options):
    args = DataArguments(train_file="rows.jsonl", validation_file="rows.jsonl", **options)
    table = Dataset.from_dict(rows, features=features)
    return TASK.load(args, {split: ("rows.jsonl", table, args.columns) for split in ("train", "validation")})


BITS = [[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]


def test_lists_of_names_are_bits():
    data = load({"text": ["a", "b", "c"], "labels": [["joy"], ["rage", "joy"], []]})
    assert (data.label_names, data.train["label"][:]) == (("joy", "rage"), BITS)
    assert TASK.facts(data) == {"classes": {"joy": 2, "rage": 1}}


@pytest.mark.parametrize("on, off", [("1", "0"), (1, 0), (1.0, 0.0), (True, False)])
def test_columns_of_bits_keep_their_order(on, off):
    rows = {"text": ["a", "b", "c"], "rage": [on, on, off], "joy": [off, on, off]}
    data = load(rows, label_column="rage,joy")
    assert (data.label_names, data.train["label"][:]) == (("rage", "joy"), BITS)


def test_numbers_of_named_classes_are_labels():
    features = Features({"text": Value("string"), "labels": List(ClassLabel(names=["x", "y", "z"]))})
    data = load({"text": ["a", "b"], "labels": [[2, 0], []]}, features)
    assert (data.label_names, data.train["label"][:]) == (("x", "y", "z"), [[1.0, 0.0, 1.0], [0.0] * 3])


def test_labels_take_the_ids_of_a_head_that_has_more():
    data = load({"text": ["a", "b", "c"], "labels": [["joy"], ["rage", "joy"], []]})
    ids = {"rage": 0, "awe": 1, "joy": 2}
    found = TASK.align_labels(data, BertConfig(label2id=ids, id2label={i: n for n, i in ids.items()}), "teacher")
    assert found.label_names == ("rage", "awe", "joy")
    assert found.train["label"][:] == [[0.0, 0.0, 1.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]


def test_scores_are_those_of_scikit_learn():
    draw = np.random.default_rng(0)
    logits, labels = draw.normal(size=(50, 4)).astype(np.float32), (draw.random((50, 4)) < 0.3).astype(np.float32)
    labels[:, 3] = 0  # occurs nowhere, and has no average precision
    found = multi_label_scores(logits, labels)
    assert found["f1_micro"] == f1_score(labels, logits > 0, average="micro")
    assert found["f1_macro"] == f1_score(labels, logits > 0, average="macro", zero_division=0)
    assert found["average_precision"] == average_precision_score(labels[:, :3], logits[:, :3])
    assert multi_label_scores(logits, labels * 0)["average_precision"] == 0.0


REFUSED = {
    "rows.jsonl: labels that is not a list of names in 1 of 2 rows (first: row 2)": (
        {"text": ["a", "b"], "labels": ['["x", "y"]', "x"]},
        {},
    ),
    "rows.jsonl: label columns (x, y) that are not 0 or 1 in 1 of 1 rows": (
        {"text": ["a"], "x": [1], "y": [2]},
        {"label_column": "x,y"},
    ),
    "rows.jsonl has no column z; its columns are text, x.": ({"text": ["a"], "x": [1]}, {"label_column": "x,z"}),
    "rows.jsonl has 1 different labels (x); two are needed.": ({"text": ["a"], "labels": [["x"]]}, {}),
    "rows.jsonl: empty text in 1 of 1 rows": ({"text": [" "], "labels": [["x", "y"]]}, {}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_data_that_do_not_fit_are_refused(message):
    rows, options = REFUSED[message]
    with pytest.raises(DataError) as error:
        load(rows, **options)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_label_that_the_train_rows_lack_is_refused():
    tables = [Dataset.from_dict({"text": ["a"], "labels": [labels]}) for labels in (["x", "y"], ["z"])]
    args = DataArguments(train_file="a.jsonl", validation_file="b.jsonl")
    sources = {"train": ("a.jsonl", tables[0], Columns("text")), "validation": ("b.jsonl", tables[1], Columns("text"))}
    with pytest.raises(DataError, match=r"^b\.jsonl: labels that are not among x, y \(such as 'z'\) in 1 of 1 rows"):
        TASK.load(args, sources)
