"""The main job: teacher -> layer-reduced student -> quantized student -> packed file -> measured again from disk.

Each stage is one function that takes the job and returns a model and its metrics; nothing here knows a command line.
"""

import dataclasses
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    set_seed,
)

from hf_xtc.arguments import JobArguments, RecipeArguments
from hf_xtc.callbacks import PackedSizeCallback
from hf_xtc.checkpoint import require_empty, write_json
from hf_xtc.compress import compress
from hf_xtc.data import DataArguments, TaskData, align_labels, load_task, tokenize
from hf_xtc.distillation import TERMS
from hf_xtc.errors import StateError, XTCError
from hf_xtc.evaluation import measure
from hf_xtc.ledger import ledger
from hf_xtc.metrics import build_compute_metrics, main_metric
from hf_xtc.model_card import Row, Run, write_card
from hf_xtc.recipe import SCOPES, XTCRecipe
from hf_xtc.specs import QUANTIZERS
from hf_xtc.trainer import XTCTrainer
from hf_xtc.training_args import XTCTrainingArguments

logger = logging.getLogger(__name__)

# Options of TrainingArguments that would be ignored, or do something else than they say.
UNSUPPORTED = {
    "resume_from_checkpoint": "its stages run from the start. Resume one with XTCTrainer in Python.",
    "push_to_hub": "it would upload float checkpoints. Upload the finished folder instead.",
}

PACKAGES = ("hf_xtc", "torch", "transformers", "datasets", "accelerate", "huggingface_hub")


@dataclass
class Job:
    """Everything the stages share; the data are tokenized once."""

    args: JobArguments
    data_args: DataArguments
    recipe: XTCRecipe
    training_args: XTCTrainingArguments
    data: TaskData
    tokenizer: Any

    def __post_init__(self) -> None:
        splits = {"train": self.data.train, "validation": self.data.validation, **self.data.extra_validation}
        length = self.data_args.max_length
        self.tokenized = {name: tokenize(split, self.tokenizer, length) for name, split in splits.items()}

    @property
    def out(self) -> Path:
        """The folder of the packed model."""
        return Path(self.training_args.output_dir)

    @property
    def training(self) -> Path:
        """The folder of everything float: checkpoints and models of the stages."""
        return self.out / "training"

    def trainer(
        self, model: PreTrainedModel, teacher: PreTrainedModel | None, stage: str, **changes: Any
    ) -> XTCTrainer:
        """A trainer of one stage: the user's training arguments with that stage's changes, in a folder of its own."""
        changes["output_dir"] = str(self.training / stage)
        return XTCTrainer(
            model,
            dataclasses.replace(self.training_args, **changes),
            teacher_model=teacher,
            train_dataset=self.tokenized["train"],
            eval_dataset=self.tokenized["validation"],
            processing_class=self.tokenizer,
            data_collator=DataCollatorWithPadding(self.tokenizer),
            compute_metrics=build_compute_metrics(self.data.task, regression=self.data.regression),
        )

    def row(self, name: str, trainer: XTCTrainer, stage: str, stored: str) -> Row:
        """What the trainer's model scores on the validation split and what its float weights take on disk."""
        extra = {key: split for key, split in self.tokenized.items() if key not in ("train", "validation")}
        model: Any = trainer.model
        in_memory = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        size = weight_bytes(self.training / stage) or in_memory  # a teacher that came fine-tuned is not saved again
        return Row(name, measure(trainer, extra), size, model.config.num_hidden_layers, stored)


def run_compress(
    args: JobArguments, data_args: DataArguments, recipe_args: RecipeArguments, training_args: XTCTrainingArguments
) -> Run:
    """Runs the whole job and returns what it measured; see the command `hf-xtc compress`.

    Raises:
        XTCError: on bad input, before anything is written; or if a stage cannot finish.
    """
    require_empty(training_args.output_dir, overwrite=args.overwrite)
    for option, instead in UNSUPPORTED.items():
        if getattr(training_args, option):
            raise XTCError(f"hf-xtc compress has no --{option}: {instead}")
    recipe = recipe_args.recipe()
    config = AutoConfig.from_pretrained(args.teacher, revision=args.teacher_revision)
    ledger(config, recipe)  # a model type, layer or group size that does not fit is refused here, not hours later
    data = load_task(data_args)
    if not args.fine_tune:
        data = align_labels(data, config.label2id, args.teacher)
    tokenizer = AutoTokenizer.from_pretrained(args.teacher, revision=args.teacher_revision)
    training_args = dataclasses.replace(training_args, **recipe_args.schedule())
    job = Job(args, data_args, recipe, training_args, data, tokenizer)
    shutil.rmtree(job.training, ignore_errors=True)  # of an earlier run, where --overwrite allows it
    set_seed(training_args.seed)
    teacher, teacher_row = teacher_stage(job)
    reduced, reduced_row = reduction_stage(job, teacher)
    trainer, student_row = quantization_stage(job, teacher, reduced)
    trainer.save_model(str(job.out))
    return finish(job, trainer, [teacher_row, reduced_row, student_row, packed_stage(job, student_row)])


def teacher_stage(job: Job) -> tuple[PreTrainedModel, Row]:
    """The teacher, fine-tuned here if asked, and its metrics."""
    args, names = job.args, job.data.label_names
    head: dict[str, Any] = {"num_labels": 1, "problem_type": "regression"}
    if names is not None:
        # A teacher with generic label names gets the data's; elsewhere align_labels made the two the same.
        label2id = {name: i for i, name in enumerate(names)}
        head = {"num_labels": len(names), "id2label": dict(enumerate(names)), "label2id": label2id}
    teacher = AutoModelForSequenceClassification.from_pretrained(
        args.teacher, revision=args.teacher_revision, dtype=torch.float32, **head
    )
    trainer = job.trainer(
        teacher,
        None,
        "teacher",
        num_train_epochs=args.fine_tune_epochs,
        learning_rate=args.fine_tune_learning_rate,
        terms={"labels": 1.0},
        distillation_stages=1,
        load_best_model_at_end=False,
        save_strategy="no",
    )
    if args.fine_tune:
        logger.info("Fine-tuning the teacher.")
        trainer.train()
        teacher.save_pretrained(job.training / "teacher")
        job.tokenizer.save_pretrained(job.training / "teacher")
    return teacher, job.row("teacher", trainer, "teacher", "float32")


def reduction_stage(job: Job, teacher: PreTrainedModel) -> tuple[PreTrainedModel, Row]:
    """The layer-reduced student in float, distilled for `reduction_epochs`, and its metrics."""
    recipe = dataclasses.replace(
        job.recipe, weights=None, embedding_weights=None, position_weights=None, activation_bits=None
    )
    student = compress(teacher, recipe)
    _set_dropout(student, job.args.student_dropout)
    trainer = job.trainer(
        student,
        teacher,
        "reduced",
        num_train_epochs=job.args.reduction_epochs,
        learning_rate=job.args.reduction_learning_rate,
        load_best_model_at_end=False,
        save_strategy="no",
    )
    if job.args.reduction_epochs > 0:
        logger.info("Training the layer-reduced student.")
        trainer.train()
    student.save_pretrained(job.training / "reduced")
    return student, job.row("layer-reduced student", trainer, "reduced", "float32")


def quantization_stage(job: Job, teacher: PreTrainedModel, reduced: PreTrainedModel) -> tuple[XTCTrainer, Row]:
    """The quantized student, distilled for `num_train_epochs` from the layer-reduced one, and its metrics."""
    student = compress(teacher, job.recipe, weights_from=reduced, provenance=_provenance(job))
    _set_dropout(student, job.args.student_dropout)
    trainer = job.trainer(student, teacher, "student")
    trainer.add_callback(PackedSizeCallback())
    logger.info("Training the %s student.", job.recipe.weights)
    trainer.train()
    student.save_pretrained(job.training / "student")
    return trainer, job.row(f"{job.recipe.weights or 'float'} student", trainer, "student", "float32, latent")


def packed_stage(job: Job, student: Row) -> Row:
    """The file just written, loaded and measured in a new process."""
    request = {**dataclasses.asdict(job.data_args), "model": str(job.out), "batch_size": 64}
    with tempfile.TemporaryDirectory() as folder:
        request["output_file"] = os.path.join(folder, "metrics.json")
        write_json(os.path.join(folder, "request.json"), request)
        command = [sys.executable, "-m", "hf_xtc", "evaluate", os.path.join(folder, "request.json")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise StateError(f"Measuring the packed file in a new process failed:\n{done.stderr[-2000:]}")
        metrics = json.loads(Path(request["output_file"]).read_text(encoding="utf-8"))
    size = weight_bytes(job.out)
    return Row("packed file, reloaded", metrics, size, student.layers, f"{job.recipe.weights or 'float'}, packed")


def finish(job: Job, trainer: XTCTrainer, rows: list[Row]) -> Run:
    """Writes metrics.json and the model card beside the packed file, and returns what they say."""
    best = trainer.state.best_model_checkpoint
    run = Run(
        name=job.out.resolve().name,
        task=job.data.name,
        metric=main_metric(job.data.task, job.data.regression),
        rows=rows,
        ledger=ledger(trainer.model.config, model_class=type(trainer.model)),
        provenance=trainer.model.config.xtc["provenance"],
        recipe=job.recipe,
        selection="the last step; no split chose it"
        if best is None
        else "the validation split, on which it is reported",
        citations=_citations(job),
        log=[entry for entry in trainer.state.log_history if "loss" in entry or "packed_bytes" in entry],
    )
    write_json(job.out / "metrics.json", run.to_dict())
    write_card(run, job.out / "README.md")
    return run


def _citations(job: Job) -> list[str]:
    """What the run used, each source once: its terms and the quantizers of its recipe."""
    terms = {line for name in job.training_args.term_weights for line in TERMS[name].citations}
    specs = [spec for spec in map(job.recipe.spec, SCOPES) if spec is not None]
    return sorted((terms | {QUANTIZERS[spec.quantizer].citation for spec in specs}) - {""})


def _provenance(job: Job) -> dict[str, Any]:
    shown = ("num_train_epochs", "max_steps", "learning_rate", "per_device_train_batch_size", "seed", "terms")
    teacher = Path(job.args.teacher)
    return {
        "teacher": teacher.name if teacher.exists() else job.args.teacher,
        "fine_tuned_here": job.args.fine_tune,
        "data": job.data.name,
        "data_fingerprint": job.data.fingerprint,
        "train_rows": len(job.data.train),
        "validation_rows": len(job.data.validation),
        "job": {
            key: value for key, value in dataclasses.asdict(job.args).items() if key not in ("teacher", "overwrite")
        },
        "training": {name: getattr(job.training_args, name) for name in shown},
        "versions": {package: version(package) for package in PACKAGES},
    }


def _set_dropout(model: PreTrainedModel, probability: float) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = probability


def weight_bytes(folder: Path) -> int:
    """Bytes of the weight files of a model folder; 0 if it has none."""
    return sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
