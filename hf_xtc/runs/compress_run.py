"""A compression run: teacher -> the stages of a schedule -> packed file -> measured again from disk.

Does not depend on the command line. A run that is started again continues where it stopped: see `stage.py`.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, set_seed

from hf_xtc.compression.convert import compress
from hf_xtc.compression.vocabulary import trim_model, trim_tokenizer
from hf_xtc.data.task_data import DataArguments
from hf_xtc.files.lock import FolderLock
from hf_xtc.hub.results import Row, Run
from hf_xtc.hub.upload import push_folder
from hf_xtc.recipe.xtc_recipe import XTCRecipe
from hf_xtc.runs.arguments import AugmentationArguments, JobArguments, RecipeArguments
from hf_xtc.runs.finalize import ship, teacher_name
from hf_xtc.runs.fingerprint import digest
from hf_xtc.runs.job import Job, count_ids, prepare
from hf_xtc.runs.schedule import Stage
from hf_xtc.runs.stage import Receipt, StageRun, run_stage
from hf_xtc.runs.teacher import load_model, teacher_title
from hf_xtc.runs.warm_start import started
from hf_xtc.training.arguments import XTCTrainingArguments
from hf_xtc.training.callbacks import PackedSizeCallback, WeightStatisticsCallback
from hf_xtc.training.trainer import XTCTrainer

logger = logging.getLogger(__name__)


def run_compress(
    args: JobArguments,
    data_args: DataArguments,
    recipe_args: RecipeArguments,
    training_args: XTCTrainingArguments,
    augmentation: AugmentationArguments | None = None,
) -> Run:
    """Compresses a teacher and returns the measured results; see the command `hf-xtc compress`.

    Raises:
        XTCError: on bad input, before anything is written; if another process has locked the folder; or if
            a stage cannot finish.
    """
    with FolderLock(training_args.output_dir, wanted=training_args.should_save) as lock:
        job = prepare(args, data_args, recipe_args, training_args, augmentation, lock=lock)
        run = _run_stages(job)
        if training_args.push_to_hub:
            publish(job)
    return run


def _run_stages(job: Job) -> Run:
    teacher, row = teacher_stage(job)
    job.add_rows(teacher)
    job, teacher = trimmed(job, teacher)
    rows, receipts = [row], []
    student, key = None, digest(job.description)
    for stage, recipe in zip(job.schedule.stages, job.schedule.recipes(job.recipe, row.layers), strict=True):
        key = digest([key, dataclasses.asdict(stage)])
        student, receipt = student_stage(job, stage, recipe, key, teacher, student)
        kind = recipe.weights or ("layer-reduced" if student.config.num_hidden_layers < row.layers else "float")
        stored = "float32" if recipe.weights is None else "float32, latent"
        rows.append(job.row(f"{kind} student", student, stage.name, receipt.metrics, stored))
        receipts.append(receipt)
    return ship(job, student, rows, receipts)


def publish(job: Job) -> None:
    """Publishes the finished folder in the repository that `prepare` made.

    Raises:
        HubError: if the Hub cannot be reached or refuses; the folder is kept, for `hf-xtc push`.
    """
    arguments = job.training_args
    options: dict[str, Any] = {"private": arguments.hub_private_repo, "token": arguments.hub_token}
    commit = push_folder(job.out, job.name, revision=arguments.hub_revision, **options)
    logger.info("Published: %s", commit)


def run_fine_tune(args: JobArguments, data_args: DataArguments, training_args: XTCTrainingArguments) -> Receipt:
    """Fine-tunes the teacher alone, into `training/teacher` of the output folder; see `run_compress`.

    Raises:
        XTCError: on bad input, before anything is written; or if another process has locked the folder.
    """
    args = dataclasses.replace(args, fine_tune=True)
    with FolderLock(training_args.output_dir, wanted=training_args.should_save) as lock:
        job = prepare(args, data_args, RecipeArguments(), training_args, lock=lock, students=False)
        return fine_tune(job)[1]


def fine_tune(job: Job) -> tuple[PreTrainedModel, Receipt]:
    """Returns the teacher, fine-tuned on the train rows with the best of the given learning rates."""

    def build() -> PreTrainedModel:
        set_seed(job.training_args.seed)  # the head is random
        return load_teacher(job)

    training: dict[str, Any] = {
        "num_train_epochs": job.args.fine_tune_epochs,
        "terms": {"labels": 1.0},
        "distillation_stages": 1,
        "adversarial_epsilon": job.args.fine_tune_adversarial,
    }
    if job.data.selection is not None:  # the best epoch on held-out rows, not the last
        training |= {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
        training |= {"metric_for_best_model": f"eval_{job.metric}", "greater_is_better": True}
    stage = Stage("teacher", {}, training, tuple(job.args.fine_tune_learning_rates))
    return run_stage(stage, _stage_run(job, stage, digest(job.description), build, None, teacher_name(job)))


def load_teacher(job: Job) -> PreTrainedModel:
    """The teacher in float32, with a head for the data's labels and their names.

    `align_labels` gave the data the names of the teacher's labels, unless those were generic (`LABEL_0`).
    """
    if job.teacher is not None:
        return job.teacher
    head, revision = job.task.head_config(job.data), job.args.teacher_revision
    return load_model(job.args.teacher, job.task.auto_class, revision, fresh_head=True, **head)


def teacher_stage(job: Job) -> tuple[PreTrainedModel, Row]:
    """Returns the teacher, fine-tuned first if requested, and its row of the results."""
    if job.args.fine_tune:
        teacher, receipt = fine_tune(job)
        return teacher, job.row("teacher", teacher, "teacher", receipt.metrics, "float32")
    teacher = load_teacher(job)
    changes: dict[str, Any] = {"terms": {"labels": 1.0}, "distillation_stages": 1, "push_to_hub": False}
    arguments = dataclasses.replace(job.training_args, **changes)
    metrics = job.measure(job.trainer(teacher, None, arguments), job.validation())
    return teacher, job.row("teacher", teacher, "teacher", metrics, "float32")


def trimmed(job: Job, teacher: PreTrainedModel) -> tuple[Job, PreTrainedModel]:
    """The job and the teacher of the students: with the tokens that the train rows have often enough, if asked for.

    The teacher is measured with all of its tokens, before.
    """
    if not job.args.trim_vocabulary:
        return job, teacher
    counts = count_ids(job.tokenized["train"])
    kept, tokenizer = trim_tokenizer(job.tokenizer, counts, min_count=job.args.trim_vocabulary)
    logger.info("Vocabulary: %d of %d tokens are left.", len(kept), len(job.tokenizer))
    return job.with_tokenizer(tokenizer), trim_model(teacher, kept)


def student_stage(
    job: Job,
    stage: Stage,
    recipe: XTCRecipe,
    key: str,
    teacher: PreTrainedModel,
    before: PreTrainedModel | None,
) -> tuple[PreTrainedModel, Receipt]:
    """Trains a student that starts from the previous stage, from `start_from`, or from the teacher."""
    name = job.args.start_from if before is None else None

    def build() -> PreTrainedModel:
        if name:
            student = started(name, job.task.auto_class, teacher, recipe)
        else:
            student = compress(teacher, recipe, weights_from=before)
        for key, value in job.task.recorded().items():
            setattr(student.config, key, {**student.config.xtc, **value} if key == "xtc" else value)
        for module in student.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = stage.dropout
        return student

    layers = recipe.layer_map(teacher.config.num_hidden_layers).layers
    start = "the stage before" if before is not None else f"layers {', '.join(map(str, layers))} of the teacher"
    start = f"the encoder of {teacher_title(name)}" if name else start
    return run_stage(stage, _stage_run(job, stage, key, build, teacher, start))


def _stage_run(job: Job, stage: Stage, key: str, build: Any, teacher: PreTrainedModel | None, start: str) -> StageRun:
    def trainer(model: PreTrainedModel, folder: Path, rate: float | None) -> XTCTrainer:
        changes: dict[str, Any] = {"output_dir": str(folder), "push_to_hub": False}
        if rate is not None:
            changes["learning_rate"] = rate
        made = job.trainer(model, teacher, stage.arguments(job.training_args, **changes))
        made.add_callback(PackedSizeCallback())
        made.add_callback(WeightStatisticsCallback())
        return made

    folder = job.training / stage.name
    return StageRun(
        folder=folder,
        key=key,
        metric=job.metric,
        build=build,
        trainer=trainer,
        measure=job.measure,
        validation=job.validation(),
        held_out=job.tokenized.get("selection"),
        tokenizer=job.tokenizer,
        start=start,
        auto_class=job.task.auto_class,
    )
