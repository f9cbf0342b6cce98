"""Evaluates a model, loaded from disk with `from_pretrained`, on the validation split."""

import logging
import math
import tempfile
from functools import partial
from typing import Any

import numpy as np
from transformers import EvalPrediction, PrinterCallback, Trainer, TrainingArguments

import hf_xtc.modeling  # noqa: F401  (registers the models with the Auto classes)
from hf_xtc.data.standard_error import standard_error
from hf_xtc.data.task_data import DataArguments, TaskData, read_splits
from hf_xtc.errors import DataError
from hf_xtc.files.writing import write_json
from hf_xtc.hub.results import STANDARD_ERROR
from hf_xtc.runs.arguments import EvaluateArguments, EvaluationDataArguments
from hf_xtc.runs.model_checks import check_config, check_tokenizer
from hf_xtc.runs.teacher import load_config, load_model, load_tokenizer
from hf_xtc.tasks import Task, find_task

logger = logging.getLogger(__name__)


def measure(trainer: Trainer, task: Task, data: TaskData, splits: dict[str, Any]) -> dict[str, float]:
    """Metrics of a trainer's model on tokenized splits; those of all but the first are prefixed with their names.

    The main metric has its `standard_error` beside it, under its name and `STANDARD_ERROR`, where that is defined.
    """
    scores: dict[str, float] = {}
    for number, (name, rows) in enumerate(splits.items()):
        trainer.compute_metrics = partial(_scores, task, data, rows)
        found, prefix = trainer.evaluate(rows), f"{name}_" if number else ""
        scores |= {prefix + key.removeprefix("eval_"): value for key, value in found.items() if not _is_timing(key)}
    return scores


def _scores(task: Task, data: TaskData, rows: Any, prediction: EvalPrediction) -> dict[str, float]:
    scores, metric = task.compute_metrics(data, rows)(prediction), task.main_metric(data)

    def score(kept: np.ndarray) -> float:
        part = EvalPrediction(_rows(prediction.predictions, kept), _rows(prediction.label_ids, kept))
        return task.compute_metrics(data, rows.select(kept))(part)[metric]

    error = standard_error(score, task.units(rows)) if math.isfinite(scores[metric]) else math.nan
    return scores | ({metric + STANDARD_ERROR: error} if math.isfinite(error) else {})


def _rows(arrays: Any, kept: np.ndarray) -> Any:
    """Rows of an array, or of each of a tuple of arrays."""
    return tuple(_rows(array, kept) for array in arrays) if isinstance(arrays, tuple) else arrays[kept]


def _is_timing(key: str) -> bool:
    return key == "epoch" or key.endswith(("_runtime", "_per_second", "_time"))


def check_options(task: Task, data_args: DataArguments, teacher: str | None = None) -> None:
    """Raises `DataError` for an option of another task."""
    for option, value, applies in (
        ("pooling", data_args.pooling, task.scored_by_teacher),
        ("teacher", teacher, task.scored_by_teacher),
    ):
        if value is not None and not applies:
            raise DataError(f"--{option}={value} is for sentence-embedding, not for this task. Leave it out.")


def _teacher(args: EvaluateArguments, task: Task) -> Any:
    """The teacher whose scores stand in for those of texts that have none; `None` without one."""
    if args.teacher is None:
        return None
    return load_model(args.teacher, task.auto_class, args.teacher_revision, fresh_head=not task.needs_head)


def run_evaluate(args: EvaluateArguments, data_args: EvaluationDataArguments) -> dict[str, float]:
    """Metrics of a model, loaded with `from_pretrained`, on the validation split.

    Raises:
        XTCError: if the data do not match the model's head, the model has no head or no tokenizer, or its file is
            damaged.
    """
    if not data_args.given:
        raise DataError("There is nothing to evaluate on. Pass --task_name, --dataset_name or --validation_file.")
    sources = read_splits(data_args)
    config = load_config(args.model)
    check_config(config, args.model, fresh_head=False)
    task = find_task(data_args, sources, config, args.model)
    check_options(task, data_args, args.teacher)
    if args.teacher_revision is not None and args.teacher is None:
        raise DataError(
            f"--teacher_revision={args.teacher_revision} is of a teacher. Give --teacher, or leave it out."
        )
    task.open(config, args.model, None, data_args, fresh_head=False)
    data = task.load(data_args, sources)
    tokenizer = load_tokenizer(args.model)
    check_tokenizer(tokenizer, config, args.model, data_args.max_length)
    data = task.align_labels(data, config, args.model)
    if (positive := task.positive_class(data)) is not None:
        logger.info("f1 is that of class %r.", positive)
    data = task.teach(data, _teacher(args, task), tokenizer, data_args)
    model = load_model(args.model, task.auto_class, fresh_head=not task.needs_head, dtype="auto")
    with tempfile.TemporaryDirectory() as folder:
        trainer = task.trainer_class(Trainer)(
            model,
            TrainingArguments(
                folder, per_device_eval_batch_size=args.batch_size, disable_tqdm=True, dataloader_pin_memory=False
            ),
            processing_class=tokenizer,
            data_collator=task.collator(tokenizer),
            preprocess_logits_for_metrics=task.reduce_outputs,
        )
        trainer.remove_callback(PrinterCallback)  # only the metrics go to standard output
        splits = {"validation": data.validation, **data.extra_validation}
        tokenized = {name: task.tokenize(rows, tokenizer, data_args) for name, rows in splits.items()}
        metrics = measure(trainer, task, data, tokenized)
    if args.output_file is not None:
        write_json(args.output_file, metrics)
    return metrics
