"""Measures changes to the training of a 1-bit student, one at a time, in short runs scored on held-out train rows.

    python benchmarks/ablation.py --teachers_dir runs --data_dir glue --tasks sst2 cola --seeds 1 2 --steps 800

Each finished run is appended to the results file; started again, finished runs are skipped. The packed model of a
candidate is scored by the task's metric and by its divergence, which is more sensitive: the mean Kullback-Leibler
divergence of its predictions from the teacher's (regression: squared error). Validation rows are not used.
"""

import json
import logging
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import log_softmax
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_xtc import XTCRecipe, XTCTrainer, XTCTrainingArguments, compress, pack_model
from hf_xtc.data.augmentation import Augmentation, augment
from hf_xtc.data.metrics import build_compute_metrics, main_metric
from hf_xtc.data.task_data import DataArguments, TaskData, align_labels, load_task, tokenize
from hf_xtc.data.word_table import WordTable
from hf_xtc.files.writing import write_text
from hf_xtc.runs.schedule import Schedule
from hf_xtc.training.arguments import DEFAULT_TERMS
from machine import cpu_model, versions
from tried.candidates import CANDIDATES, Candidate, registered
from tried.report import draw, markdown
from tried.terms import RelationsAttention


@dataclass
class AblationArguments:
    """Candidates, tasks and the settings of every run."""

    teachers_dir: str = field(metadata={"help": "Output folder of examples/glue.py: <task>-teacher/training/teacher."})
    data_dir: str = field(metadata={"help": "GLUE as parquet."})
    tasks: list[str] = field(default_factory=lambda: ["sst2", "cola"], metadata={"help": "GLUE tasks."})
    seeds: list[int] = field(default_factory=lambda: [1, 2], metadata={"help": "Seeds of each candidate."})
    candidates: list[str] = field(default_factory=lambda: list(CANDIDATES), metadata={"help": "Which to try."})
    steps: int = field(default=800, metadata={"help": "Optimizer steps of a run, all its stages together."})
    batch_size: int = field(default=32, metadata={"help": "Rows of a step."})
    keep_layers: int = field(default=3, metadata={"help": "Layers of the student."})
    weights: str = field(default="binary", metadata={"help": "Quantizer of the base."})
    bf16: bool = field(default=True, metadata={"help": "Autocast to bfloat16 in training."})
    results_file: str = field(default="benchmarks/results/ablation.jsonl", metadata={"help": "One line per run."})
    cache_dir: str | None = field(default=None, metadata={"help": "Folder for caches of the teachers' outputs."})
    report: bool = field(default=False, metadata={"help": "Only write the table and the plot of what is there."})


@dataclass
class Task:
    """A task's tokenized rows, its teacher, and the teacher's logits of the held-out rows."""

    data: TaskData
    tokenizer: Any
    teacher: Any
    train: Any
    held_out: Any
    teacher_logits: np.ndarray

    @property
    def metric(self) -> str:
        """Key of the main score."""
        return main_metric(self.data.task, self.data.regression)


def load(args: AblationArguments, name: str) -> Task:
    """Rows and teacher of a GLUE task."""
    folder = Path(args.teachers_dir) / f"{name}-teacher" / "training" / "teacher"
    teacher = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data = load_task(DataArguments(task_name=name, data_dir=args.data_dir, selection_share=0.1))
    data = align_labels(data, teacher.config.label2id, name)
    train, held_out = (tokenize(split, tokenizer, 128) for split in (data.train, data.selection))
    task = Task(data, tokenizer, teacher, train, held_out, np.empty(0))
    task.teacher_logits = predict(task, teacher)[0]
    return task


def augmented(task: Task, copies: int) -> Any:
    """The train rows and augmented copies of them, tokenized."""
    made = augment(
        task.data.train,
        Augmentation(copies),
        WordTable.from_model(task.teacher, task.tokenizer),
        exclude=[task.data.selection, task.data.validation],
        teacher=task.teacher,
        tokenizer=task.tokenizer,
    )
    return tokenize(made.remove_columns("augmented"), task.tokenizer, 128)


def predict(task: Task, model: Any) -> tuple[np.ndarray, dict[str, float]]:
    """Logits of the held-out rows, and their metrics."""
    with tempfile.TemporaryDirectory() as folder:
        quiet = {"disable_tqdm": True, "report_to": "none", "dataloader_pin_memory": torch.accelerator.is_available()}
        arguments = TrainingArguments(folder, per_device_eval_batch_size=64, **quiet)
        compute = build_compute_metrics(task.data.task, regression=task.data.regression)
        collator = DataCollatorWithPadding(task.tokenizer)
        trainer = Trainer(
            model, arguments, data_collator=collator, processing_class=task.tokenizer, compute_metrics=compute
        )
        output = trainer.predict(task.held_out, metric_key_prefix="held_out")
    return output.predictions, output.metrics


def divergence(student: np.ndarray, teacher: np.ndarray) -> float:
    """Mean Kullback-Leibler divergence of predictions from the teacher's; mean squared error of single outputs."""
    if student.shape[-1] == 1:
        return float(np.square(student - teacher).mean())
    ours, theirs = log_softmax(student, -1), log_softmax(teacher, -1)
    return float((np.exp(theirs) * (theirs - ours)).sum(-1).mean())


def train(args: AblationArguments, task: Task, candidate: Candidate, seed: int, folder: str) -> Any:
    """The trained student of a candidate: packed or, if the candidate changed its modules, as a latent model."""
    recipe = XTCRecipe.from_dict({"weights": args.weights, "keep_layers": args.keep_layers, **candidate.recipe})
    run = {
        "output_dir": folder,
        "max_steps": args.steps,
        "learning_rate": 5e-4,
        "warmup_steps": 0.1,
        "weight_annealing": 0.0,
        "per_device_train_batch_size": args.batch_size,
        "train_sampling_strategy": "group_by_length",
        "bf16": args.bf16,
        "seed": seed,
        "save_strategy": "no",
        "logging_steps": 100,
        "disable_tqdm": True,
        "report_to": "none",
        "use_cpu": not torch.accelerator.is_available(),
        "dataloader_pin_memory": torch.accelerator.is_available(),
        **candidate.training,
    }
    cached = candidate.context is not RelationsAttention and not candidate.copies
    if args.cache_dir is not None and cached:
        terms = "-".join(sorted(run.get("terms", DEFAULT_TERMS)))
        run["teacher_cache"] = str(Path(args.cache_dir) / f"{task.data.name}-{args.keep_layers}l-{terms}")
    rows = augmented(task, candidate.copies) if candidate.copies else task.train
    schedule, student = Schedule.named(candidate.schedule), None
    recipes = schedule.recipes(recipe, task.teacher.config.num_hidden_layers)
    for stage, stage_recipe in zip(schedule.stages, recipes, strict=True):
        student = compress(task.teacher, stage_recipe, weights_from=student)
        for module in student.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = candidate.dropout
        if candidate.change is not None:
            student = candidate.change(student)
        with candidate.context() as entered:
            trainer = XTCTrainer(
                student,
                stage.arguments(XTCTrainingArguments(**run)),
                teacher_model=task.teacher,
                train_dataset=rows,
                processing_class=task.tokenizer,
                data_collator=DataCollatorWithPadding(task.tokenizer),
            )
            if isinstance(entered, TrainerCallback):
                trainer.add_callback(entered)
            trainer.train()
    return pack_model(student) if candidate.change is None else student.eval()


def run(args: AblationArguments) -> None:
    """Runs what the results file lacks, with the candidate in the outer loop."""
    file, tasks = Path(args.results_file), {name: load(args, name) for name in args.tasks}
    for name in args.candidates:
        for task_name, task in tasks.items():
            for seed in args.seeds:
                key = {"candidate": name, "task": task_name, "seed": seed, **_settings(args)}
                if any(key.items() <= line.items() for line in read(file)):
                    continue
                start = time.perf_counter()
                with tempfile.TemporaryDirectory() as folder:
                    packed = train(args, task, CANDIDATES[name], seed, folder)
                seconds = time.perf_counter() - start
                logits, metrics = predict(task, packed)
                score = metrics[f"held_out_{task.metric}"]
                line = {**key, "metric": task.metric, "score": score, "rows": len(task.held_out)}
                line |= {"divergence": divergence(logits, task.teacher_logits), "seconds": round(seconds, 1)}
                line |= {"cpu": cpu_model(), "threads": torch.get_num_threads(), "date": time.strftime("%Y-%m-%d")}
                line |= {"versions": versions("torch", "transformers")}
                with open(file, "a", encoding="utf-8") as lines:  # one write, so that two processes may share the file
                    lines.write(json.dumps(line) + "\n")
                logging.info(
                    "%s", {k: line[k] for k in ("candidate", "task", "seed", "score", "divergence", "seconds")}
                )


def _settings(args: AblationArguments) -> dict[str, Any]:
    names = ("steps", "batch_size", "keep_layers", "weights", "bf16")
    return {name: getattr(args, name) for name in names}


def read(file: Path) -> list[dict[str, Any]]:
    """The lines of a results file; empty if it does not exist."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def main() -> None:
    """Runs the candidates, and writes a table and a plot beside the results."""
    args = HfArgumentParser(AblationArguments).parse_args_into_dataclasses()[0]
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not args.report:
        with registered():
            run(args)
    file, settings = Path(args.results_file), _settings(args)
    lines = [line for line in read(file) if settings.items() <= line.items()]
    write_text(file.with_suffix(".md"), markdown(lines, settings))
    draw(lines, file.with_suffix(".png"))
    print(markdown(lines, settings))


if __name__ == "__main__":
    main()
