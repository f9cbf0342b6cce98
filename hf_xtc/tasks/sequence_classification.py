"""One class for each text, or pair of texts."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import AutoModelForSequenceClassification, EvalPrediction

from hf_xtc.tasks.base import TASKS, Task

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_xtc.data.task_data import DataArguments, Splits, TaskData

MANY = 30  # classes of which a card gives the number alone, since a list of them would fill a page


@TASKS.register("sequence-classification")
class SequenceClassification(Task):
    """One class for each text: GLUE except stsb, or own files."""

    auto_class = AutoModelForSequenceClassification
    head = "ForSequenceClassification"
    problem_types = (None, "single_label_classification", "regression")  # the labels tell which of the two
    pipeline_tag = "text-classification"
    fixed_words = None
    fixed_rows = None

    def reads(self, args: "DataArguments", rows: "Dataset") -> bool:
        from hf_xtc.data.tables import is_list

        columns = args.columns
        named = columns.text in rows.column_names and columns.label in rows.column_names
        return named and not is_list(rows, str(columns.label)) and not args.numbers

    def load(self, args: "DataArguments", sources: "Splits") -> "TaskData":
        from hf_xtc.data.task_data import load_task

        return load_task(args, sources)

    def tokenize(self, rows: "Dataset", tokenizer: Any, args: "DataArguments") -> "Dataset":
        from hf_xtc.data.task_data import tokenize

        return tokenize(rows, tokenizer, args.max_length)

    def facts(self, data: "TaskData") -> dict[str, Any]:
        from hf_xtc.data.task_data import class_counts

        names = data.label_names
        if names is None:
            return {}
        return {"classes": class_counts(names, data.train) if len(names) <= MANY else len(names)}

    def head_config(self, data: "TaskData") -> dict[str, Any]:
        # transformers sets the problem type when it first computes a loss, which a resumed run may never do
        return {**named_head(data.label_names or ()), "problem_type": "single_label_classification"}

    def align_labels(self, data: "TaskData", config: Any, model: str) -> "TaskData":
        from hf_xtc.data.task_data import align_labels

        return align_labels(data, config.label2id, model)

    def main_metric(self, data: "TaskData") -> str:
        from hf_xtc.data.metrics import main_metric

        return main_metric(data.task, data.regression)

    def metric_names(self, data: "TaskData") -> tuple[str, ...]:
        outputs = np.zeros((2, self.head_config(data)["num_labels"]), dtype=np.float32)
        return tuple(self.compute_metrics(data, data.train)(EvalPrediction(outputs, np.zeros(2))))

    def compute_metrics(self, data: "TaskData", rows: "Dataset") -> Callable[[Any], dict[str, float]]:
        from hf_xtc.data.metrics import build_compute_metrics

        positive = 1 if data.positive is None else data.positive
        return build_compute_metrics(data.task, regression=data.regression, positive=positive)

    def positive_class(self, data: "TaskData") -> str | None:
        return data.positive_class


def named_head(names: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a configuration for a head with an output for each name."""
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }
