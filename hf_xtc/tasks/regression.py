"""One number for each text, or pair of texts: a sequence classifier's head with one output."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hf_xtc.tasks.base import TASKS
from hf_xtc.tasks.sequence_classification import SequenceClassification

if TYPE_CHECKING:
    from hf_xtc.data.task_data import TaskData


@TASKS.register("regression")
class Regression(SequenceClassification):
    """One number for each text: GLUE's stsb, or own files with `--regression`."""

    def fits(self, data: "TaskData") -> bool:
        return data.regression

    def head_config(self, data: "TaskData") -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": "regression"}

    def main_metric(self, data: "TaskData") -> str:
        from hf_xtc.data.metrics import main_metric

        return main_metric(data.task, regression=True)

    def compute_metrics(self, data: "TaskData") -> Callable[..., dict[str, float]]:
        from hf_xtc.data.metrics import build_compute_metrics

        return build_compute_metrics(data.task, regression=True)
