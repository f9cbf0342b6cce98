"""One class for each text, or pair of texts."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from transformers import AutoModelForSequenceClassification

from hf_xtc.tasks.base import TASKS, Task

if TYPE_CHECKING:
    from hf_xtc.data.task_data import TaskData


@TASKS.register("sequence-classification")
class SequenceClassification(Task):
    """One class for each text: GLUE except stsb, or own files."""

    auto_class = AutoModelForSequenceClassification
    head = "ForSequenceClassification"
    pipeline_tag = "text-classification"

    def fits(self, data: "TaskData") -> bool:
        return data.label_names is not None

    def head_config(self, data: "TaskData") -> dict[str, Any]:
        names = dict(enumerate(data.label_names or ()))
        return {
            "num_labels": len(names),
            "id2label": names,
            "label2id": {name: i for i, name in names.items()},
            # transformers sets this when it first computes a loss, which a resumed run may never do
            "problem_type": "single_label_classification",
        }

    def main_metric(self, data: "TaskData") -> str:
        from hf_xtc.data.metrics import main_metric

        return main_metric(data.task, data.regression)

    def compute_metrics(self, data: "TaskData") -> Callable[..., dict[str, float]]:
        from hf_xtc.data.metrics import build_compute_metrics

        positive = 1 if data.positive is None else data.positive
        return build_compute_metrics(data.task, regression=data.regression, positive=positive)

    def align_labels(self, data: "TaskData", config: Any, model: str) -> "TaskData":
        from hf_xtc.data.task_data import align_labels

        return align_labels(data, config.label2id, model)
