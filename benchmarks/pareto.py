"""Bytes and accuracy of the published checkpoints, their teachers, float students, and two other methods.

    python benchmarks/pareto.py --runs_dir runs --data_dir data --tasks sst2 cola mrpc stsb

Students and teachers come from the results file of `examples/checkpoints.py`. The other methods are measured here:
PyTorch's dynamic int8 quantization of the teacher, which is left out if the teacher's folder does not exist, and a
linear model on hashed counts of words and bigrams with 8-bit weights, whose regularisation is chosen on held-out train
rows. All scores are of the validation split. Points of other tasks in the output file are kept.
"""

import io
import json
import logging
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_utils import EvalPrediction

from hf_xtc.data.metrics import build_compute_metrics, main_metric
from hf_xtc.data.task_data import DataArguments, TaskData, align_labels, load_task, tokenize
from hf_xtc.files.writing import write_json
from machine import cpu_model, versions


@dataclass
class ParetoArguments:
    """Where the students are, and what to draw."""

    runs_dir: str = field(metadata={"help": "Output folder of examples/checkpoints.py, with results.jsonl."})
    data_dir: str = field(metadata={"help": "Folder with glue/<task>/*.parquet and banking77/*.parquet."})
    tasks: list[str] = field(default_factory=lambda: ["sst2"], metadata={"help": "Tasks."})
    redraw: bool = field(default=False, metadata={"help": "Only draw the points that the output file holds."})
    features: list[int] = field(default_factory=lambda: [12, 14, 16, 18], metadata={"help": "log2 of features."})
    output_file: str = field(default="benchmarks/results/pareto.json", metadata={"help": "JSON; a plot beside it."})


@dataclass(frozen=True)
class Point:
    """One model on one task: bytes of its weights on disk, and its score on the validation split."""

    task: str
    model: str
    family: str
    bytes: int
    score: float
    seeds: int = 1


def students(runs: Path, task: str) -> list[Point]:
    """Teacher, float students and packed files of the results file; means over seeds."""
    lines = [json.loads(line) for line in (runs / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    groups: dict[tuple[str, str, int], list[tuple[int, float]]] = {}
    for line in lines:
        if line["task"] != task:
            continue
        groups["teacher, float32", "teacher", 6] = [(line["teacher_bytes"], line["teacher"])]  # same for all students
        floats = line["weights"] == "float"
        name = f"{line['layers']} layers {'float32' if floats else line['weights']}"
        groups.setdefault((name, line["weights"], line["layers"]), []).append((line["packed_bytes"], line["packed"]))
        reduced = line["stages"].get("layer-reduced student")
        if reduced is not None and not floats:  # for a float student, this stage is already in `line["packed"]`
            size = float32_bytes(runs / line["run"] / "training" / "reduced")
            groups.setdefault((f"{line['layers']} layers float32", "float", line["layers"]), []).append(
                (size, reduced)
            )
    return [
        Point(task, name, family, found[0][0], float(np.mean([score for _, score in found])), len(found))
        for (name, family, _), found in groups.items()
    ]


def float32_bytes(folder: Path) -> int:
    """Bytes of a model folder's weights."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def teacher_folder(runs: Path, task: str) -> Path:
    """Where `examples/checkpoints.py` puts a task's teacher."""
    return runs / f"{task}-teacher" / "training" / "teacher"


def dynamic_int8(runs: Path, task: str, data: TaskData) -> Point:
    """PyTorch's dynamic int8 quantization of the teacher's linears; its embeddings stay float32."""
    folder = teacher_folder(runs, task)
    teacher = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    quantized = torch.ao.quantization.quantize_dynamic(teacher, {torch.nn.Linear}, torch.qint8)
    buffer = io.BytesIO()
    torch.save(quantized.state_dict(), buffer)
    rows = tokenize(align_labels(data, teacher.config.label2id, task).validation, tokenizer, 128)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(scratch, use_cpu=True, disable_tqdm=True, report_to="none")
        compute = build_compute_metrics(data.task, regression=data.regression)
        trainer = Trainer(
            quantized,
            arguments,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=compute,
            processing_class=tokenizer,
        )
        score = trainer.evaluate(rows)[f"eval_{main_metric(data.task, data.regression)}"]
    return Point(task, "teacher, torch dynamic int8", "int8", buffer.tell(), score)


def texts_of(split: Any) -> list[str]:
    """Texts of a split. Words of the second text of a pair get a prefix, so that they are counted separately."""
    if "text_pair" not in split.column_names:
        return list(split["text"])
    return [
        f"{a} {' '.join('2_' + word for word in b.split())}"
        for a, b in zip(split["text"], split["text_pair"], strict=True)
    ]


def linear(task: str, data: TaskData, bits: int) -> Point:
    """A linear model on `2**bits` hashed counts of words and bigrams, one 8-bit weight per feature and class."""
    hashing = HashingVectorizer(n_features=2**bits, ngram_range=(1, 2), alternate_sign=False, token_pattern=r"\S+")
    counted = {name: hashing.transform(texts_of(split)) for name, split in _splits(data).items()}
    labels = {name: np.asarray(split["label"]) for name, split in _splits(data).items()}
    metric = main_metric(data.task, data.regression)
    compute = build_compute_metrics(data.task, regression=data.regression)

    def score(model: Any, split: str) -> float:
        outputs = np.asarray(counted[split] @ model.weights.T + model.intercept_)
        if not data.regression and outputs.shape[-1] == 1:
            outputs = np.hstack([-outputs, outputs])
        value: float = compute(EvalPrediction(outputs, labels[split]))[metric]
        return value

    models = []
    for strength in (0.1, 1.0, 10.0):
        kind = Ridge(alpha=1 / strength) if data.regression else LogisticRegression(C=strength, max_iter=1000)
        model = kind.fit(counted["train"], labels["train"])
        weights = np.atleast_2d(model.coef_)
        scale = np.abs(weights).max() / 127
        model.weights = np.round(weights / scale) * scale
        models.append(model)
    best = max(models, key=lambda model: score(model, "selection"))
    size = best.weights.size + 4 * (1 + np.size(best.intercept_))
    return Point(task, f"linear, 2^{bits} hashed counts, int8", "linear", int(size), score(best, "validation"))


def _splits(data: TaskData) -> dict[str, Any]:
    return {"train": data.train, "selection": data.selection, "validation": data.validation}


# Each family's label in the plot, its colour and style; and each task's name and metric.
FAMILIES = {
    "binary": ("hf_xtc, 1 bit", "C3", "o-"),
    "ternary": ("hf_xtc, ternary", "C1", "s-"),
    "teacher": ("teacher, float32", "C0", "D"),
    "float": ("three float32 layers", "C9", "D"),
    "int8": ("teacher, PyTorch int8", "C2", "^"),
    "linear": ("linear on hashed words", "C7", "v--"),
}
TITLES = {
    "sst2": "SST-2, accuracy",
    "mrpc": "MRPC, F1",
    "cola": "CoLA, Matthews correlation",
    "stsb": "STS-B, Pearson correlation",
    "rte": "RTE, accuracy",
    "banking77": "BANKING77, accuracy",
}


def draw(points: list[Point], file: Path) -> None:
    """Writes the PNG: a panel per task, bytes on a log scale."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks = list(dict.fromkeys(point.task for point in points))
    columns = min(len(tasks), 3)
    rows = -(-len(tasks) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(3.4 * columns, 2.7 * rows), squeeze=False, layout="constrained"
    )
    handles: dict[str, Any] = {}
    for panel, task in zip(axes.flat, tasks, strict=False):
        for family, (label, color, style) in FAMILIES.items():
            own = sorted((p for p in points if (p.task, p.family) == (task, family)), key=lambda point: point.bytes)
            if own:
                megabytes, scores = [p.bytes / 1e6 for p in own], [p.score for p in own]
                (handles[label],) = panel.plot(megabytes, scores, style, color=color, markersize=5)
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter("{x:g}")
        panel.set_title(TITLES.get(task, task), fontsize=10)
        panel.set_xlabel("MB on disk", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.3)
    for panel in list(axes.flat)[len(tasks) :]:
        panel.remove()
    figure.supylabel("score on the validation split", fontsize=9)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3, fontsize=9)
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def with_others(points: list[Point], file: Path) -> list[Point]:
    """The points of a file, in its order of tasks, with those of `points` replacing the former ones of their tasks."""
    found = json.loads(file.read_text(encoding="utf-8"))["points"] if file.is_file() else []
    new = {point.task for point in points}
    tasks = dict.fromkeys([*(one["task"] for one in found), *(point.task for point in points)])
    every = [*points, *(Point(**one) for one in found if one["task"] not in new)]
    return [point for task in tasks for point in every if point.task == task]


def main() -> None:
    """Measures the points, and writes JSON and a plot."""
    args = HfArgumentParser(ParetoArguments).parse_args_into_dataclasses()[0]
    logging.basicConfig(level=logging.WARNING)
    file = Path(args.output_file)
    if args.redraw:
        draw(with_others([], file), file.with_suffix(".png"))
        return
    points: list[Point] = []
    for task in args.tasks:
        folder = Path(args.data_dir) / task
        files = {"train_file": str(folder / "train.parquet"), "validation_file": str(folder / "validation.parquet")}
        glue = {"task_name": task, "data_dir": str(Path(args.data_dir) / "glue")}
        data = load_task(DataArguments(**(files if folder.is_dir() else glue), selection_share=0.1))
        points += students(Path(args.runs_dir), task)
        if teacher_folder(Path(args.runs_dir), task).is_dir():
            points.append(dynamic_int8(Path(args.runs_dir), task, data))
        points += [linear(task, data, bits) for bits in args.features]
    every = with_others(points, file)
    facts = {"cpu": cpu_model(), "date": time.strftime("%Y-%m-%d"), "versions": versions("torch", "scikit-learn")}
    write_json(file, {"points": [point.__dict__ for point in every], **facts})
    draw(every, file.with_suffix(".png"))
    for point in points:
        print(f"{point.task:10} {point.model:36} {point.bytes:>12,} {point.score:.4f}  seeds {point.seeds}")


if __name__ == "__main__":
    main()
