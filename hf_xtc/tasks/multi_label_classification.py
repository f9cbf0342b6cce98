"""Any number of classes for each text, or pair of texts: a sequence classifier's head with sigmoids."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import AutoModelForSequenceClassification

from hf_xtc.errors import DataError
from hf_xtc.tasks.base import TASKS, Task
from hf_xtc.tasks.sequence_classification import MANY, named_head

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_xtc.data.tables import Table
    from hf_xtc.data.task_data import DataArguments, Splits, TaskData

COLUMNS = ("labels", "label")  # of the lists of names, where --label_column names none


@TASKS.register("multi-label-classification")
class MultiLabelClassification(Task):
    """Several classes for each text: lists of their names in a column, or a column of 0 and 1 for each class.

    In a `TaskData` a row's `label` is a list of 0.0 and 1.0, one for each of the label names.
    """

    auto_class = AutoModelForSequenceClassification
    head = "ForSequenceClassification"
    problem_types = (None, "multi_label_classification")
    pipeline_tag = "text-classification"
    fixed_words = None
    fixed_rows = None
    snippet = """import {package}  # registers the architecture
from transformers import pipeline

pipe = pipeline("{tag}", top_k=None, model={folder}"""

    def reads(self, args: "DataArguments", rows: "Dataset") -> bool:
        from hf_xtc.data.tables import is_list

        found = label_columns(args, rows.column_names)
        if args.columns.text not in rows.column_names or not set(found) <= set(rows.column_names):
            return False
        return len(found) > 1 or is_list(rows, found[0])

    def load(self, args: "DataArguments", sources: "Splits") -> "TaskData":
        from hf_xtc.data.task_data import task_data

        tables = {split: _table(args, *source[:2]) for split, source in sources.items()}
        names = _names(tables["train"], least=1 if args.partial else 2)
        limits = {"train": args.max_train_samples}
        splits = {k: _rows(table, names, limits.get(k, args.max_eval_samples)) for k, table in tables.items()}
        return task_data(args, splits, names)

    def tokenize(self, rows: "Dataset", tokenizer: Any, args: "DataArguments") -> "Dataset":
        from hf_xtc.data.task_data import tokenize

        return tokenize(rows, tokenizer, args.max_length)

    def facts(self, data: "TaskData") -> dict[str, Any]:
        names = data.label_names or ()
        counts = np.array(data.train["label"][:]).sum(0).astype(int).tolist()
        return {"classes": dict(zip(names, counts, strict=True)) if len(names) <= MANY else len(names)}

    def head_config(self, data: "TaskData") -> dict[str, Any]:
        return {**named_head(data.label_names or ()), "problem_type": "multi_label_classification"}

    def align_labels(self, data: "TaskData", config: Any, model: str) -> "TaskData":
        from hf_xtc.data.task_data import map_labels, match_names

        ids, names = match_names(data, config.label2id, model, subset=True)

        def moved(rows: "Dataset") -> np.ndarray:
            found = np.zeros((len(rows), len(names)), dtype=np.float32)
            found[:, ids] = np.array(rows["label"][:], dtype=np.float32)
            return found

        return map_labels(data, names, moved)

    def main_metric(self, data: "TaskData") -> str:
        return "f1_micro"

    def metric_names(self, data: "TaskData") -> tuple[str, ...]:
        return ("f1_micro", "f1_macro", "average_precision")

    def compute_metrics(self, data: "TaskData", rows: "Dataset") -> Callable[[Any], dict[str, float]]:
        return lambda prediction: multi_label_scores(prediction.predictions, prediction.label_ids)


def label_columns(args: "DataArguments", columns: Sequence[str]) -> list[str]:
    """The columns that hold the labels: those that `--label_column` lists, else the usual name."""
    if args.label_column in columns:
        return [args.label_column]
    several = [name.strip() for name in args.label_column.split(",")]
    usual = next((name for name in COLUMNS if name in columns), args.label_column)
    return several if len(several) > 1 or args.label_column != "label" else [usual]


def _table(args: "DataArguments", source: str, rows: "Dataset") -> "Table":
    """The texts of a split, and its labels as lists of names."""
    from hf_xtc.data.tables import check_rows, json_value, select

    names = label_columns(args, rows.column_names)
    table = select(source, rows, args.columns._replace(label=None))
    check_rows(table, blank_allowed=False, numbers=False)
    if missing := [name for name in names if name not in rows.column_names]:
        raise DataError(
            f"{source} has no column {', '.join(missing)}; its columns are {', '.join(rows.column_names)}. Pass the "
            "column of lists of labels, or the columns of 0 and 1 as one,two,three, with --label_column."
        )
    if len(names) > 1:
        cells = [rows[name][:] for name in names]
        bad = [not all(str(cell).removesuffix(".0") in _BITS for cell in row) for row in zip(*cells, strict=True)]
        table.refuse(bad, f"label columns ({', '.join(names)}) that are not 0 or 1", "Correct or remove them.")
        bits = [[_BITS[str(cell).removesuffix(".0")] for cell in row] for row in zip(*cells, strict=True)]
        found = [[name for name, bit in zip(names, row, strict=True) if bit] for row in bits]
        return table._replace(columns=table.columns | {"label": found}, label_names=tuple(names))
    labels = [json_value(cell) for cell in rows[names[0]][:]]
    known = getattr(getattr(rows.features[names[0]], "feature", None), "names", None)
    if known:
        labels = [[known[i] if isinstance(i, int) else i for i in row or ()] for row in labels]
    wrong = [not isinstance(row, list) or not all(isinstance(name, str | int) for name in row) for row in labels]
    table.refuse(wrong, f"{names[0]} that is not a list of names", "A text without a label has an empty list.")
    texts = [[str(name) for name in row] for row in labels]
    return table._replace(columns=table.columns | {"label": texts}, label_names=tuple(known) if known else None)


_BITS = {"0": 0, "1": 1, "False": 0, "True": 1}


def _names(train: "Table", least: int) -> tuple[str, ...]:
    """Label names by class id: the known ones, else those of the train rows in alphabetical order.

    Raises:
        DataError: if there are fewer than `least`.
    """
    names = train.label_names or tuple(sorted({name for row in train.columns["label"] for name in row}))
    if len(names) < least:
        raise DataError(f"{train.source} has {len(names)} different labels ({', '.join(names)}); two are needed.")
    return names


def _rows(table: "Table", names: tuple[str, ...], limit: int | None) -> "Dataset":
    from datasets import Dataset, Features, List, Value

    table.refuse_unknown(names, "label")
    bits = [[float(name in row) for name in names] for row in map(set, table.columns["label"][:limit])]
    columns = {name: values[:limit] for name, values in table.columns.items()} | {"label": bits}
    features = {name: Value("string") for name in columns} | {"label": List(Value("float32"))}
    return Dataset.from_dict(columns, features=Features(features))


def multi_label_scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """F1 over all decisions, mean F1 over the classes, and mean average precision over the classes that occur.

    Args:
        logits, labels (`np.ndarray` of shape `(rows, classes)`): A class is predicted where its logit is above 0, a
            probability of one half. A class that neither occurs nor is predicted has F1 0, as in scikit-learn.

    Returns:
        `dict`: `f1_micro`, `f1_macro`, `average_precision`; all NaN if a logit is NaN.
    """
    from sklearn.metrics import average_precision_score, f1_score

    labels = np.asarray(labels) > 0.5
    if np.isnan(logits).any():
        return dict.fromkeys(("f1_micro", "f1_macro", "average_precision"), float("nan"))
    f1 = {f"f1_{kind}": float(f1_score(labels, logits > 0, average=kind, zero_division=0.0)) for kind in _AVERAGES}
    occur = labels.any(0)
    precision = average_precision_score(labels[:, occur], logits[:, occur], average="macro") if occur.any() else 0.0
    return {**f1, "average_precision": float(precision)}


_AVERAGES = ("micro", "macro")
