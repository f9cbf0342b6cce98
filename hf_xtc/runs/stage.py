"""Runs one stage of a schedule: trains its student, chooses the learning rate, writes a receipt.

Finished work is not repeated: a stage whose receipt has the same key is read back, an interrupted one resumes from its
last checkpoint. The receipt is written last, so a folder that has one is complete.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, Trainer

from hf_xtc.files.writing import WEIGHT_FILES, clear_unfinished, last_checkpoint, whole_folder, write_json
from hf_xtc.runs.schedule import Stage

logger = logging.getLogger(__name__)

RECEIPT = "receipt.json"


@dataclass(frozen=True)
class Receipt:
    """What a stage did.

    Args:
        stage (`str`), key (`str`): Its name, and a digest of everything that determines its result.
        learning_rate (`float`), steps (`int`), epochs (`float`): Of the run that was kept.
        seconds (`float`): Wall time of training since it was last started or resumed.
        tried (`list[dict]`): Learning rate and score on the held-out train rows of each run, if several were tried.
        chosen_by (`str`): What chose the weights, in words for a card.
        selection (`dict`, *optional*): Metrics on the held-out train rows.
        metrics (`dict`): Metrics on the validation rows; empty for one of several runs that were tried.
        log (`list[dict]`): The Trainer's log: losses, evaluations, and what callbacks added.
        start (`str`): What its weights were initialized from, in words for a card.
        adversarial_epsilon (`float`): See `XTCTrainingArguments`.
    """

    stage: str
    key: str
    learning_rate: float
    steps: int
    epochs: float
    seconds: float
    chosen_by: str
    tried: list[dict[str, float]] = field(default_factory=list)
    selection: dict[str, float] | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    log: list[dict[str, float]] = field(default_factory=list)
    start: str = ""
    adversarial_epsilon: float = 0.0


def read_receipt(folder: Path, key: str) -> Receipt | None:
    """The receipt in a folder; `None` if there is none, or if its key is another."""
    try:
        receipt = Receipt(**json.loads((folder / RECEIPT).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return receipt if receipt.key == key else None


@dataclass(frozen=True)
class StageRun:
    """What a stage needs of its job.

    Args:
        folder (`Path`): Folder of the stage.
        key (`str`): Digest of everything that determines the result: this stage, and those before it.
        metric (`str`): Key of the score that ranks learning rates; larger is better.
        build (`Callable`): Returns the model that the stage starts from.
        trainer (`Callable`): `trainer(model, folder, learning_rate)`.
        measure (`Callable`): `measure(trainer, splits)`, metrics on the splits, the main one first.
        validation (`dict[str, Dataset]`): Splits to measure the finished stage on; the first is the main one.
        held_out (`Dataset`, *optional*): The held-out rows, if there are any.
        tokenizer: Saved beside the weights.
        start (`str`): What the weights are initialized from, in words for a card.
        auto_class (`type`): Loads the stage's model.
    """

    folder: Path
    key: str
    metric: str
    build: Callable[[], PreTrainedModel]
    trainer: Callable[[PreTrainedModel, Path, float | None], Trainer]
    measure: Callable[[Trainer, dict[str, Any]], dict[str, float]]
    validation: dict[str, Any]
    held_out: Any
    tokenizer: Any
    start: str
    auto_class: Any

    def load(self) -> PreTrainedModel:
        """The model in the stage's folder, in float32."""
        model: PreTrainedModel = self.auto_class.from_pretrained(self.folder, dtype="float32")
        return model


def run_stage(stage: Stage, run: StageRun) -> tuple[PreTrainedModel, Receipt]:
    """The trained model of a stage and its receipt.

    Several learning rates need held-out rows, which `prepare` checks.
    """
    clear_unfinished(run.folder, *run.folder.glob("lr-*"))
    receipt = read_receipt(run.folder, run.key)
    if receipt is not None:
        logger.info("Stage %s is already finished.", stage.name)
        return run.load(), receipt
    if len(stage.learning_rates) > 1:
        rates = {rate: run.folder / f"lr-{float(rate)}" for rate in stage.learning_rates}
        receipts = {rate: _train(stage, run, rate, folder) for rate, folder in rates.items()}
        scores = {rate: (receipt.selection or {})[run.metric] for rate, receipt in receipts.items()}
        best = max(scores, key=scores.__getitem__)
        tried = [{"learning_rate": rate, run.metric: score} for rate, score in scores.items()]
        logger.info("Stage %s: learning rate %g is the best of %s.", stage.name, best, tried)
        with whole_folder(run.folder, replaces=WEIGHT_FILES) as scratch:
            for file in rates[best].iterdir():
                if file.is_file() and file.name != RECEIPT:
                    shutil.copy2(file, scratch / file.name)
        receipt = receipts[best]
    else:
        rate = stage.learning_rates[0] if stage.learning_rates else None
        receipt, tried = _train(stage, run, rate, run.folder), []
    return _finish(run, receipt, tried)


def _train(stage: Stage, run: StageRun, rate: float | None, folder: Path) -> Receipt:
    """Trains at one learning rate in `folder`, resuming from its last checkpoint, and writes a receipt there."""
    key = f"{run.key} {rate}"
    receipt = read_receipt(folder, key)
    if receipt is not None:
        return receipt
    trainer = run.trainer(run.build(), folder, rate)
    arguments = trainer.args
    start = time.perf_counter()
    if arguments.max_steps > 0 or arguments.num_train_epochs > 0:
        logger.info("Training stage %s, learning rate %g.", stage.name, arguments.learning_rate)
        trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    model: Any = trainer.model
    with whole_folder(folder, replaces=WEIGHT_FILES) as scratch:
        model.save_pretrained(scratch)
        run.tokenizer.save_pretrained(scratch)
    best = trainer.state.best_model_checkpoint
    receipt = Receipt(
        stage.name,
        key,
        arguments.learning_rate,
        trainer.state.global_step,
        round(trainer.state.epoch or 0.0, 3),
        round(time.perf_counter() - start, 1),
        _chosen_by(best is not None, run.held_out is not None),
        selection=None if run.held_out is None else run.measure(trainer, {"selection": run.held_out}),
        log=[entry for entry in trainer.state.log_history if "train_runtime" not in entry],
        start=run.start,
        adversarial_epsilon=arguments.adversarial_epsilon,
    )
    write_json(folder / RECEIPT, asdict(receipt))
    return receipt


def _finish(run: StageRun, receipt: Receipt, tried: list[dict[str, float]]) -> tuple[PreTrainedModel, Receipt]:
    """Measures the kept model on the validation rows and writes the stage's receipt."""
    model = run.load()
    trainer = run.trainer(model, run.folder, receipt.learning_rate)
    metrics = run.measure(trainer, run.validation)
    if tried:
        chosen_by = f"{receipt.chosen_by}, of {len(tried)} learning rates the best on train rows held out"
    else:
        chosen_by = receipt.chosen_by
    final = {**asdict(receipt), "key": run.key, "metrics": metrics, "tried": tried, "chosen_by": chosen_by}
    write_json(run.folder / RECEIPT, final)
    return model, Receipt(**final)


def _chosen_by(best: bool, held_out: bool) -> str:
    if not best:
        return "the last step"
    return "the best step on train rows held out" if held_out else "the best step on the validation split it reports"
