"""What `XTCTrainer` saves and publishes: which models are packed, and the card of a packed student."""

import logging
from concurrent.futures import Future
from importlib.metadata import version
from typing import Any

from hf_xtc.distillation.terms import TERMS
from hf_xtc.errors import XTCError
from hf_xtc.hub.publish import write_model_card
from hf_xtc.modeling.adapters import has_adapters

logger = logging.getLogger(__name__)

FAILED = "A push during training failed; training continues: %s"


def latent_student(model: Any) -> Any:
    """Returns the model if it is a latent student, which is saved packed; else `None`, also for one with adapters."""
    return model if getattr(model.config, "state", None) == "latent" and not has_adapters(model) else None


def require_student(model: Any) -> None:
    """Raises an `XTCError` unless the model is a latent student; the message says how to publish other models."""
    if has_adapters(model):
        raise XTCError(
            f"{type(model).__name__} has adapters, but XTCTrainer publishes packed students only. Publish the "
            "adapters: trainer.model.push_to_hub('user/name')."
        )
    if latent_student(model) is None:
        raise XTCError(
            f"{type(model).__name__} is a float model, but XTCTrainer publishes packed students only. Compress it "
            "first (hf-xtc compress, or compress(model, recipe)), or publish the float model: "
            "trainer.model.push_to_hub('user/name')."
        )


def write_student_card(student: Any, args: Any, state: Any, name: str, facts: dict[str, Any]) -> None:
    """Writes the card of a packed student into the output folder, with the metrics of the last evaluation.

    Args:
        student (`PreTrainedModel`): The latent student.
        args (`XTCTrainingArguments`), state (`TrainerState`): Of its training.
        name (`str`): Name of the model on the card.
        facts (`dict`): The other arguments of `Trainer.create_model_card`.
    """
    metadata = {key: facts.get(key) for key in ("language", "license", "tags")}
    metadata["datasets"] = facts.get("dataset_tags") or facts.get("dataset")
    metadata["base_model"] = facts.get("finetuned_from")
    write_model_card(
        student.config,
        type(student),
        args.output_dir,
        name,
        metrics=_last_metrics(state.log_history),
        made=_training_record(args, state),
        citations=tuple(line for term in args.term_weights for line in TERMS[term].citations),
        metadata=metadata,
    )


def _last_metrics(history: list[dict[str, Any]]) -> dict[str, float]:
    """The metrics of the last evaluation; of several evaluation sets there is an entry each, at the same step."""
    evaluations = [logs for logs in history if any(key.startswith("eval_") for key in logs)]
    last = [entry for entry in evaluations if entry.get("step") == evaluations[-1].get("step")]
    logs = {key: value for entry in last for key, value in entry.items()}
    timing = ("_runtime", "_per_second", "_time")
    return {
        key.removeprefix("eval_"): float(value)
        for key, value in logs.items()
        if key.startswith("eval_") and not key.endswith(timing)
    }


def _training_record(args: Any, state: Any) -> dict[str, Any]:
    arguments = ("learning_rate", "per_device_train_batch_size", "seed", "terms", "bf16", "fp16")
    return {
        "training": {
            "steps": state.global_step,
            "epochs": state.epoch or 0,
            **{name: getattr(args, name) for name in arguments},
        },
        "versions": {package: version(package) for package in ("hf_xtc", "torch", "transformers")},
    }


def log_failed_push(job: "Future[Any]") -> None:
    """Logs a warning if a push in the background has failed."""
    if not job.cancelled() and job.exception() is not None:
        logger.warning(FAILED, job.exception())
