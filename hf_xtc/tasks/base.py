"""The base class of the tasks, their registry, and how the task of a run is found.

A `Task` says which columns it reads, how rows become batches, which Auto class loads the teacher, which terms teach
it, which score ranks checkpoints, and what the model card shows. Modules that need `datasets` or scikit-learn are
imported inside the methods that use them, so that a card can be written without either.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from transformers import DataCollatorWithPadding

from hf_xtc.errors import DataError
from hf_xtc.registry import Registry

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_xtc.data.task_data import DataArguments, Source, Splits, TaskData

TASKS = Registry("task")

PIPELINE = """import {package}  # registers the architecture
from transformers import pipeline

pipe = pipeline("{tag}", {folder}"""


class Task(ABC):
    """One kind of task. The command line and the cards find a subclass that is decorated `@TASKS.register(name)`.

    Attributes:
        auto_class (`type`): The Auto class that loads the teacher and every model of a run.
        head (`str`): The ending of its model classes' names, for example `ForSequenceClassification`.
        problem_types (`tuple[str | None, ...]`, *optional*): Values of a config's `problem_type` that belong to the
            task, where several tasks share a head; by default any.
        pipeline_tag (`str`): The Hub's name of the task.
        snippet (`str`): Code of the card that loads a model: a format of `package`, `tag` and `folder`, which stands
            for the first argument and the rest of the call.
        labelled (`bool`): Whether rows have labels. Texts alone do not tell their task: one without labels is found by
            the teacher's class, or said with `--task`.
        terms (`dict[str, float]`, *optional*): Weights of the distillation terms; default: those of
            `XTCTrainingArguments`.
        library_name (`str`): The library that the snippet opens the model with, by its name on the Hub.
        needs_head (`bool`): Whether a model needs weights beyond its encoder's.
        has_loss (`bool`): Whether an evaluation gives a loss.
        scored_by_teacher (`bool`): Whether a teacher gives the scores of validation rows that have none; see `teach`.
        fixed_words (`str`, *optional*): Why `--augment` cannot replace words of train rows; `None` if it can: rows of
            `text`, `text_pair` (pairs only) and, where train rows have one, the `label` that the teacher predicts.
        fixed_rows (`str`, *optional*): Why `--unlabelled` cannot add rows; `None` if it can, by `unlabelled_rows`
            and, where train rows have a `label`, `teacher_labels`.
        advice (`str`): What to do where a model of another task is to teach.
    """

    auto_class: ClassVar[Any]
    head: ClassVar[str]
    problem_types: ClassVar[tuple[str | None, ...] | None] = None
    pipeline_tag: ClassVar[str]
    snippet: ClassVar[str] = PIPELINE
    labelled: ClassVar[bool] = True
    terms: ClassVar[Mapping[str, float] | None] = None
    library_name: ClassVar[str] = "transformers"
    needs_head: ClassVar[bool] = True
    has_loss: ClassVar[bool] = True
    scored_by_teacher: ClassVar[bool] = False
    fixed_words: ClassVar[str | None] = "labels of this task may not hold for other words"
    fixed_rows: ClassVar[str | None] = "a teacher does not predict the labels of this task from a text alone"
    advice: ClassVar[str] = "Name a model of that task, or train a new head: hf-xtc compress --fine_tune."

    # Which task it is

    @abstractmethod
    def reads(self, args: "DataArguments", rows: "Dataset") -> bool:
        """Whether rows, as they were read, have the columns of this task; called with the train rows."""

    @classmethod
    def owns(cls, class_name: str, problem_type: str | None) -> bool:
        """Whether a model is one of this task's, by the name of its class and `kind_of` its config."""
        return class_name.endswith(cls.head) and (cls.problem_types is None or problem_type in cls.problem_types)

    def open(  # noqa: B027
        self, config: Any, model: str, revision: str | None, args: "DataArguments", *, fresh_head: bool
    ) -> None:
        """Reads what the task needs to know of the model that is evaluated or teaches, beyond its configuration.

        Args:
            config (`PreTrainedConfig`), model (`str`), revision (`str`, *optional*): The model's.
            args (`DataArguments`): Options.
            fresh_head (`bool`): Whether a new head replaces the model's own.

        Raises:
            XTCError: if the task cannot use the model.
        """

    # Its data

    @abstractmethod
    def load(self, args: "DataArguments", sources: "Splits") -> "TaskData":
        """The rows that `read_splits` gave, checked, in columns that `tokenize` takes.

        Raises:
            DataError: if a column is missing, or a row has not what the task needs.
        """

    @abstractmethod
    def tokenize(self, rows: "Dataset", tokenizer: Any, args: "DataArguments") -> "Dataset":
        """Rows of a `TaskData` as model inputs with labels, not padded; more columns are for `compute_metrics`.

        Raises:
            DataError: if `args.max_length` exceeds what the tokenizer's model takes, or is too small for a row.
        """

    def teach(self, data: "TaskData", teacher: Any, tokenizer: Any, args: "DataArguments") -> "TaskData":
        """`data` with what the teacher, a model or `None`, says of validation rows that have no labels.

        Raises:
            DataError: if there are such rows, and no teacher.
        """
        return data

    def unlabelled_rows(self, source: "Source", data: "TaskData", blanks_allowed: bool) -> "Dataset":
        """The rows of a table without their labels, in the columns of the train rows; see `load_unlabelled`.

        Args:
            source (`Source`): The table's name for messages, its rows as read, and the columns to take.
            data (`TaskData`): The data that they are added to.
            blanks_allowed (`bool`): Whether a text may be empty.

        Raises:
            DataError: if it has no such rows.
        """
        from hf_xtc.data.unlabelled import read_texts

        return read_texts(source, data, blanks_allowed)

    def teacher_labels(self, teacher: Any, tokenizer: Any, rows: "Dataset", args: "DataArguments") -> list[Any]:
        """What the teacher predicts for rows without labels: a value of the column `label` for each."""
        from hf_xtc.data.unlabelled import teacher_labels

        return list(teacher_labels(teacher, tokenizer, rows, rows.column_names, args.max_length))

    def collator(self, tokenizer: Any) -> Any:
        """The data collator, which makes a batch of tokenized rows."""
        return DataCollatorWithPadding(tokenizer)

    def settings(self, args: "DataArguments") -> dict[str, Any]:
        """Options that change how rows are tokenized, beyond `max_length`; part of a run's description."""
        return {}

    def facts(self, data: "TaskData") -> dict[str, Any]:
        """What a card says of the train rows, as JSON values."""
        return {}

    # Its head

    @abstractmethod
    def head_config(self, data: "TaskData") -> dict[str, Any]:
        """The fields of a configuration that describe the head: `num_labels`, `problem_type` and so on."""

    def recorded(self) -> dict[str, Any]:
        """Fields of a student's configuration; those under `xtc` are added to it, `task` among them where it decides.

        A task that a model's class and `problem_type` do not tell is recorded as `{"xtc": {"task": name}}`.
        """
        return {}

    def align_labels(self, data: "TaskData", config: Any, model: str) -> "TaskData":
        """`data` with its labels mapped to the class ids of a model's head.

        Args:
            data (`TaskData`): As loaded.
            config (`PreTrainedConfig`), model (`str`): The model's configuration, and its name for messages.

        Raises:
            DataError: if the labels do not match the head.
        """
        return data

    # Its scores

    @abstractmethod
    def main_metric(self, data: "TaskData") -> str:
        """The key of the score that ranks checkpoints; larger is better."""

    @abstractmethod
    def metric_names(self, data: "TaskData") -> tuple[str, ...]:
        """The keys of the scores that `compute_metrics` gives."""

    @abstractmethod
    def compute_metrics(self, data: "TaskData", rows: "Dataset") -> Callable[[Any], dict[str, float]]:
        """A `compute_metrics` of the Trainer for one split.

        Args:
            data (`TaskData`): The data of the run.
            rows (`datasets.Dataset`): The split that is evaluated, as `tokenize` returned it; predictions are in its
                order.
        """

    def units(self, rows: "Dataset") -> Any:
        """What each of a split's tokenized rows belongs to, as numbers: a row of the data by default.

        Rows of one unit, such as both texts of a pair, are left out together where the standard error of a score is
        estimated. Without units there is none.
        """
        return range(len(rows))

    def reduce_outputs(self, outputs: Any, labels: Any) -> Any:
        """What is kept of a batch's outputs for `compute_metrics`: a tensor, or a tuple of tensors.

        Called as the Trainer's `preprocess_logits_for_metrics`. By default all outputs are kept.
        """
        return outputs

    def trainer_class(self, base: Any) -> Any:
        """The Trainer that evaluates models of this task: `base`, or a class derived from it."""
        return base

    def positive_class(self, data: "TaskData") -> str | None:
        """Name of the class whose F1 the score `f1` is; `None` if no score is that of one class."""
        return None


def find_task(
    args: "DataArguments", sources: "Splits", config: Any = None, model: str = "", *, fresh_head: bool = False
) -> Task:
    """The task that `args.task` names or, without it, that the model's class and the columns of the data agree on.

    Args:
        args (`DataArguments`), sources (`Splits`): Options and rows, as `read_splits` gives them.
        config (`PreTrainedConfig`, *optional*), model (`str`): The model's configuration, and its name for messages.
        fresh_head (`bool`): Whether a new head replaces the model's own, whose task is then of no interest.

    Raises:
        DataError: if the model's class is that of another task.
        XTCError: if there is no task of the name in `args.task`.
    """
    source, rows, _ = sources["train"]
    tasks: dict[str, Task] = {name: task() for name, task in TASKS.items()}
    class_name, problem = (getattr(config, "architectures", None) or [""])[0], kind_of(config)
    by_head = [name for name, task in tasks.items() if not fresh_head and task.owns(class_name, problem)]
    if args.task is not None:
        TASKS[args.task]  # refuses an unknown name
        by_data = [args.task]
    elif problem in tasks and not fresh_head:  # the model's configuration says it
        by_data = [str(problem)]
    else:
        by_data = [name for name, task in tasks.items() if task.reads(args, rows)]
    both = [name for name in by_data if name in by_head]
    if by_data and not both and any(tasks[name].labelled for name in by_head):
        said = f"{source} has the columns {', '.join(rows.column_names)}, as {by_data[0]} has"
        said = said if args.task is None else f"--task is {args.task}"
        raise DataError(f"{model} is a model for {' or '.join(by_head)}, but {said}. {tasks[by_data[0]].advice}")
    return tasks[(both or by_data or by_head or ["sequence-classification"])[0]]


def kind_of(config: Any) -> str | None:
    """What a configuration says of the use of its head: the task recorded in `xtc`, or else its `problem_type`."""
    recorded = (getattr(config, "xtc", None) or {}).get("task")
    kind: str | None = recorded or getattr(config, "problem_type", None)
    return kind


def task_of_model(class_name: str, problem_type: str | None = None) -> type[Task] | None:
    """The first registered task that owns a model; `None` for a model without a task here."""
    return next((task for task in TASKS.values() if task.owns(class_name, problem_type)), None)
