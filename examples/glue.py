"""Compresses for any GLUE task (or own files) with any recipe, schedule and seeds, and writes one table of results.

    python examples/glue.py --task_name cola --data_dir glue --keep_layers 3 --schedule ternary-first\
        --num_train_epochs 3

It has every option of `hf-xtc compress`. The teacher is fine-tuned once per task and shared by all students. Started
again with the same options, an interrupted run resumes.
"""

import dataclasses
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rotten_tomatoes import BASE_LICENSE, base_encoder
from transformers import AutoModel, AutoTokenizer, HfArgumentParser

import results
from hf_xtc.data.task_data import DataArguments
from hf_xtc.errors import XTCError
from hf_xtc.files.writing import WEIGHT_FILES, whole_folder
from hf_xtc.hub.results import Run
from hf_xtc.runs.arguments import AugmentationArguments, JobArguments, RecipeArguments
from hf_xtc.runs.compress_run import run_compress, run_fine_tune
from hf_xtc.training.arguments import XTCTrainingArguments

# Epochs of the teacher, by task: enough that each score on held-out rows has passed its maximum.
TEACHER_EPOCHS = {"sst2": 3, "cola": 6, "mrpc": 6, "rte": 8, "stsb": 6, "qnli": 3, "qqp": 3, "mnli": 3}


@dataclass
class GlueArguments:
    """Options besides those of `hf-xtc compress`."""

    seeds: list[int] = field(default_factory=lambda: [1], metadata={"help": "One student is trained with each."})
    start_task: str | None = field(
        default=None,
        metadata={"help": "Fine-tune the teacher from the encoder of this GLUE task's teacher, which is made first."},
    )
    teacher_only: bool = field(default=False, metadata={"help": "Fine-tune the teacher and stop."})
    name: str | None = field(default=None, metadata={"help": "Names the folders; default: task, layers and weights."})
    results_file: str | None = field(default=None, metadata={"help": "JSONL; default: results.jsonl in output_dir."})


def results_file(glue: GlueArguments, training: XTCTrainingArguments) -> Path:
    """The file that all runs of an output folder append to."""
    return Path(glue.results_file or Path(training.output_dir) / "results.jsonl")


def teach(job: JobArguments, data: DataArguments, training: XTCTrainingArguments, folder: Path, name: str) -> Path:
    """Fine-tunes the task's teacher, unless that was done before; returns its folder."""
    epochs = job.fine_tune_epochs or TEACHER_EPOCHS.get(name, 8)
    job = dataclasses.replace(job, fine_tune=True, fine_tune_epochs=epochs)
    ours = {
        "output_dir": str(folder),
        "per_device_train_batch_size": training.per_device_train_batch_size,
        "per_device_eval_batch_size": training.per_device_eval_batch_size,
        "bf16": training.bf16,
        "use_cpu": training.use_cpu,
        "disable_tqdm": training.disable_tqdm,
        "report_to": training.report_to,
        "seed": 1,
    }
    # No options of the students, so that the teacher is not trained again for other students.
    run_fine_tune(job, data, XTCTrainingArguments(**ours))
    return folder / "training" / "teacher"


def encoder_of(teacher: Path, folder: Path) -> Path:
    """Writes a teacher's encoder and tokenizer, without its head, to `folder`, and returns it."""
    with whole_folder(folder, replaces=WEIGHT_FILES) as scratch:
        AutoModel.from_pretrained(teacher).save_pretrained(scratch)
        AutoTokenizer.from_pretrained(teacher).save_pretrained(scratch)
    return folder


def run_glue(
    glue: GlueArguments,
    job: JobArguments,
    data: DataArguments,
    recipe: RecipeArguments,
    training: XTCTrainingArguments,
    augmentation: AugmentationArguments,
) -> list[Run]:
    """Trains the teacher and one student per seed; appends each finished student to the results file at once."""
    out, task = Path(training.output_dir), data.task_name or Path(str(data.train_file)).parent.name
    if job.fine_tune and glue.start_task:
        before = dataclasses.replace(data, task_name=glue.start_task)
        start = teach(job, before, training, out / f"{glue.start_task}-teacher", glue.start_task)
        start = encoder_of(start, out / f"{Path(job.teacher).name}-fine-tuned-on-{glue.start_task}")
        job = dataclasses.replace(job, teacher=str(start))
    if job.fine_tune:
        job = dataclasses.replace(job, teacher=str(teach(job, data, training, out / f"{task}-teacher", task)))
    name = (
        glue.name or f"{task}-{recipe.keep_layers or 'all'}l-{recipe.weights or 'binary'}-{job.schedule or 'default'}"
    )
    runs = []
    for seed in [] if glue.teacher_only else glue.seeds:
        folder = out / f"{name}-seed{seed}"
        ours = dataclasses.replace(training, seed=seed, output_dir=str(folder))
        runs.append(run_compress(dataclasses.replace(job, fine_tune=False), data, recipe, ours, augmentation))
        results.append(results_file(glue, training), results.record(runs[-1], seed))
    return runs


GROUPS = (GlueArguments, JobArguments, DataArguments, RecipeArguments, XTCTrainingArguments, AugmentationArguments)


def parse(arguments: list[str]) -> tuple[Any, ...]:
    """The groups of options; without --teacher, a MiniLM-L6 is fine-tuned as the teacher."""
    parser = HfArgumentParser(GROUPS)
    parser.set_defaults(output_dir="runs", selection_share=0.1, fine_tune_epochs=0.0)
    parser.set_defaults(fine_tune_learning_rates=[5e-5, 1e-4, 2e-4])
    if not any(argument.split("=")[0] == "--teacher" for argument in arguments):
        base = ["--teacher", str(base_encoder(Path("runs"))), "--teacher_license", BASE_LICENSE]
        arguments = [*base, "--fine_tune", *arguments]
    options: tuple[Any, ...] = parser.parse_args_into_dataclasses(arguments)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        options = parse(sys.argv[1:] if arguments is None else arguments)
        run_glue(*options)
    except XTCError as error:
        print(error, file=sys.stderr)
        return 1
    print(results.table(results.read(results_file(options[0], options[4]))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
