"""The base class of the tasks, and their registry.

A `Task` defines which Auto class loads the teacher, how rows become batches, which score ranks checkpoints and what
the model card shows. Modules that need `datasets` or scikit-learn are imported inside the methods that use them, so
that a card can be written without either.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from transformers import DataCollatorWithPadding, EvalPrediction

from hf_xtc.errors import DataError
from hf_xtc.registry import Registry

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_xtc.data.task_data import TaskData

TASKS = Registry("task")


class Task(ABC):
    """One kind of task. The command line and the cards find a subclass that is decorated `@TASKS.register(name)`.

    Attributes:
        auto_class (`type`): The Auto class that loads the teacher and every model of a run.
        head (`str`): The ending of its model classes' names, for example `ForSequenceClassification`.
        pipeline_tag (`str`): The Hub's name of the task.
    """

    auto_class: ClassVar[Any]
    head: ClassVar[str]
    pipeline_tag: ClassVar[str]

    @abstractmethod
    def fits(self, data: "TaskData") -> bool:
        """Whether `data` has the columns and labels of this task."""

    @abstractmethod
    def head_config(self, data: "TaskData") -> dict[str, Any]:
        """The fields of a configuration that describe the head: `num_labels`, `problem_type` and so on."""

    @abstractmethod
    def main_metric(self, data: "TaskData") -> str:
        """The key of the score that ranks checkpoints; larger is better."""

    @abstractmethod
    def compute_metrics(self, data: "TaskData") -> Callable[..., dict[str, float]]:
        """A `compute_metrics` for the Trainer."""

    def metric_names(self, data: "TaskData") -> tuple[str, ...]:
        """The keys of the scores that `compute_metrics` gives."""
        outputs = np.zeros((2, self.head_config(data)["num_labels"]), dtype=np.float32)
        return tuple(self.compute_metrics(data)(EvalPrediction(outputs, np.zeros(2))))

    @abstractmethod
    def align_labels(self, data: "TaskData", config: Any, model: str) -> "TaskData":
        """`data` with its labels mapped to the class ids of a model's head.

        Args:
            data (`TaskData`): As loaded.
            config (`PreTrainedConfig`), model (`str`): The model's configuration, and its name for messages.

        Raises:
            DataError: if the labels do not match the head.
        """

    def tokenize(self, dataset: "Dataset", tokenizer: Any, max_length: int) -> "Dataset":
        """Rows as model inputs, truncated to `max_length` tokens and not padded; see `data.task_data.tokenize`."""
        from hf_xtc.data.task_data import tokenize

        return tokenize(dataset, tokenizer, max_length)

    def collator(self, tokenizer: Any) -> Any:
        """The data collator, which makes a batch of tokenized rows."""
        return DataCollatorWithPadding(tokenizer)


def task_of(data: "TaskData") -> Task:
    """The first registered task that fits the data.

    Raises:
        DataError: if none does.
    """
    tasks: list[Task] = [task() for task in TASKS.values()]
    for task in tasks:
        if task.fits(data):
            return task
    raise DataError(
        f"{data.name} has the columns {', '.join(data.train.column_names)}, which fit none of the tasks: "
        f"{', '.join(TASKS)}."
    )
