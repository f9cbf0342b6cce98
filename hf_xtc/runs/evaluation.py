"""Evaluates a model, loaded from disk with `from_pretrained`, on the validation split."""

import logging
import tempfile
from typing import Any

from transformers import PrinterCallback, Trainer, TrainingArguments

import hf_xtc.modeling  # noqa: F401  (registers the models with the Auto classes)
from hf_xtc.data.task_data import load_task
from hf_xtc.errors import DataError
from hf_xtc.files.writing import write_json
from hf_xtc.runs.arguments import EvaluateArguments, EvaluationDataArguments
from hf_xtc.runs.model_checks import check_config, check_tokenizer
from hf_xtc.runs.teacher import load_config, load_model, load_tokenizer
from hf_xtc.tasks import task_of

logger = logging.getLogger(__name__)


def measure(trainer: Trainer, extra: dict[str, Any]) -> dict[str, float]:
    """Metrics of a trainer's model on its `eval_dataset` and, prefixed with their names, on the splits in `extra`."""
    metrics = trainer.evaluate()
    scores = {key.removeprefix("eval_"): value for key, value in metrics.items() if not _is_timing(key)}
    for name, dataset in extra.items():
        more = trainer.evaluate(dataset)
        scores |= {f"{name}_{key.removeprefix('eval_')}": value for key, value in more.items() if not _is_timing(key)}
    return scores


def _is_timing(key: str) -> bool:
    return key == "epoch" or key.endswith(("_runtime", "_per_second", "_time"))


def run_evaluate(args: EvaluateArguments, data_args: EvaluationDataArguments) -> dict[str, float]:
    """Metrics of a model, loaded with `from_pretrained`, on the validation split.

    Raises:
        XTCError: if the data do not match the model's head, the model has no head or no tokenizer, or its file is
            damaged.
    """
    if not data_args.given:
        raise DataError("There is nothing to evaluate on. Pass --task_name TASK, or --validation_file FILE.")
    data = load_task(data_args)
    task = task_of(data)
    config = load_config(args.model)
    check_config(config, args.model, fresh_head=False)
    tokenizer = load_tokenizer(args.model)
    check_tokenizer(tokenizer, config, args.model, data_args.max_length)
    data = task.align_labels(data, config, args.model)
    if data.positive_class is not None:
        logger.info("f1 is that of class %r.", data.positive_class)
    model = load_model(args.model, task.auto_class, dtype="auto")
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            TrainingArguments(
                folder, per_device_eval_batch_size=args.batch_size, disable_tqdm=True, dataloader_pin_memory=False
            ),
            eval_dataset=task.tokenize(data.validation, tokenizer, data_args.max_length),
            processing_class=tokenizer,
            data_collator=task.collator(tokenizer),
            compute_metrics=task.compute_metrics(data),
        )
        trainer.remove_callback(PrinterCallback)  # only the metrics go to standard output
        extra = {n: task.tokenize(d, tokenizer, data_args.max_length) for n, d in data.extra_validation.items()}
        metrics = measure(trainer, extra)
    if args.output_file is not None:
        write_json(args.output_file, metrics)
    return metrics
