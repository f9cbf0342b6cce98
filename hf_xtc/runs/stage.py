"""Runs one stage of a schedule: trains its student, chooses among learning rates, leaves a receipt.

Whatever finished is not done again: a stage whose receipt fits is read back, one that was interrupted goes on from its
last checkpoint. A receipt is written last, so that a folder with one is whole.
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
from hf_xtc.runs.evaluation import measure
from hf_xtc.runs.schedule import Stage

logger = logging.getLogger(__name__)

RECEIPT = "receipt.json"


@dataclass(frozen=True)
class Receipt:
    """What a stage did.

    Args:
        stage (`str`), key (`str`): Its name, and a digest of all that decides its result.
        learning_rate (`float`), steps (`int`), epochs (`float`): Of the run that stayed.
        seconds (`float`): Wall time of training since it was last started.
        tried (`list[dict]`): Learning rate and score on the held-out train rows of each run, if several were tried.
        chosen_by (`str`): What chose the weights, in words for a card.
        selection (`dict`, *optional*): Metrics on the held-out train rows.
        metrics (`dict`): Metrics on the validation rows; empty for a run that was only tried.
        log (`list[dict]`): The Trainer's log: losses, evaluations, and what callbacks added.
        start (`str`): What its weights were at the start, in words for a card.
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
    """The receipt in a folder, or `None` if there is none, or one of another run."""
    try:
        receipt = Receipt(**json.loads((folder / RECEIPT).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return receipt if receipt.key == key else None


@dataclass(frozen=True)
class StageRun:
    """What a stage needs of its job.

    Args:
        folder (`Path`): Its own.
        key (`str`): Digest of all that decides the result, the stage itself and the stages before it included.
        metric (`str`): Key of the score that chooses; larger is better.
        build (`Callable`): Makes the model as the stage starts with it.
        trainer (`Callable`): `trainer(model, folder, learning_rate)`, with the held-out rows as its `eval_dataset`.
        validation (`dict[str, Dataset]`): What the finished stage is measured on; the first is the main one.
        held_out (`bool`): Whether there are held-out rows.
        tokenizer: Saved beside the weights.
        start (`str`): What the weights are at the start, in words for a card.
        auto_class (`type`): Loads the stage's model.
    """

    folder: Path
    key: str
    metric: str
    build: Callable[[], PreTrainedModel]
    trainer: Callable[[PreTrainedModel, Path, float | None], Trainer]
    validation: dict[str, Any]
    held_out: bool
    tokenizer: Any
    start: str
    auto_class: Any

    def load(self) -> PreTrainedModel:
        """The model in the stage's folder, in float32."""
        model: PreTrainedModel = self.auto_class.from_pretrained(self.folder, dtype="float32")
        return model


def run_stage(stage: Stage, run: StageRun) -> tuple[PreTrainedModel, Receipt]:
    """The trained model of a stage and its receipt.

    Several learning rates need held-out rows (`prepare` sees to it).
    """
    clear_unfinished(run.folder, *run.folder.glob("lr-*"))
    receipt = read_receipt(run.folder, run.key)
    if receipt is not None:
        logger.info("Stage %s was finished before.", stage.name)
        return run.load(), receipt
    if len(stage.learning_rates) > 1:
        rates = {rate: run.folder / f"lr-{rate:g}" for rate in stage.learning_rates}
        receipts = {rate: _train(stage, run, rate, folder) for rate, folder in rates.items()}
        scores = {rate: (receipt.selection or {})[run.metric] for rate, receipt in receipts.items()}
        best = max(scores, key=scores.__getitem__)
        tried = [{"learning_rate": rate, run.metric: score} for rate, score in scores.items()]
        logger.info("Stage %s: of %s, learning rate %g stays.", stage.name, tried, best)
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
    """Trains at one rate into `folder`, going on from its last checkpoint; the receipt is kept there."""
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
        _chosen_by(best is not None, run.held_out),
        selection=measure(trainer, {}) if run.held_out else None,
        log=[entry for entry in trainer.state.log_history if "train_runtime" not in entry],
        start=run.start,
        adversarial_epsilon=arguments.adversarial_epsilon,
    )
    write_json(folder / RECEIPT, asdict(receipt))
    return receipt


def _finish(run: StageRun, receipt: Receipt, tried: list[dict[str, float]]) -> tuple[PreTrainedModel, Receipt]:
    """Measures the model that stays on the validation rows and signs the stage's folder."""
    model = run.load()
    trainer = run.trainer(model, run.folder, receipt.learning_rate)
    main, *extra = run.validation
    trainer.eval_dataset = run.validation[main]
    metrics = measure(trainer, {name: run.validation[name] for name in extra})
    if tried:
        chosen_by = f"{receipt.chosen_by}, of {len(tried)} learning rates the best on train rows held out"
    else:
        chosen_by = receipt.chosen_by
    signed = {**asdict(receipt), "key": run.key, "metrics": metrics, "tried": tried, "chosen_by": chosen_by}
    write_json(run.folder / RECEIPT, signed)
    return model, Receipt(**signed)


def _chosen_by(best: bool, held_out: bool) -> str:
    if not best:
        return "the last step"
    return "the best step on train rows held out" if held_out else "the best step on the validation split it reports"
