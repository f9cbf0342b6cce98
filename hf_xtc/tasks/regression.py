"""One number for each text, or pair of texts: a sequence classifier's head with one output."""

from typing import TYPE_CHECKING, Any

from hf_xtc.tasks.base import TASKS
from hf_xtc.tasks.sequence_classification import SequenceClassification

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_xtc.data.task_data import DataArguments, TaskData


@TASKS.register("regression")
class Regression(SequenceClassification):
    """One number for each text: GLUE's stsb, or own files with `--regression`."""

    def reads(self, args: "DataArguments", rows: "Dataset") -> bool:
        return args.numbers

    def head_config(self, data: "TaskData") -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": "regression"}
