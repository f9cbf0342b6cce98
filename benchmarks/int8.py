"""Why not simply int8: what 8-bit quantization keeps of each teacher, in what bytes and how fast, beside our student.

The teachers are those of `benchmarks/tasks.py`. Their float models are quantized as one would without training, by
the functions that make the peers of `benchmarks/inference.py` (`latency.files`):

- torch dynamic int8: every `nn.Linear`.
- ONNX Runtime dynamic int8 of the fused graph, with one scale for each weight ("per tensor", its default) or for each
  output channel.
- OpenVINO int8: QDQ, per channel, of the plain graph, calibrated on the first train rows.

Metrics are those of `hf-xtc evaluate` on the validation rows, bytes those of the files that hold the weights. Each
result is a line of JSON and is not measured again; quantized files stay in `--work_dir`. Times are medians of calls in
turn, each after a pause and untimed calls; a second run with `--times` takes them, while nothing else runs.

    python benchmarks/int8.py --runs_dir runs --data_dir data --encoders_dir . --names wnut17 sst2
    python benchmarks/int8.py --runs_dir runs --data_dir data --encoders_dir . --names wnut17 sst2 --times
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import HfArgumentParser, Trainer, TrainingArguments
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput

from hf_xtc.data.task_data import TaskData, read_splits
from hf_xtc.runs.arguments import EvaluationDataArguments
from hf_xtc.runs.evaluation import measure
from hf_xtc.runs.teacher import load_config, load_model, load_tokenizer
from hf_xtc.tasks import TASKS, Task, find_task
from latency.files import as_function, deprecations_ignored, export_onnx, fused, quantize_onnx, quantize_openvino
from latency.files import quantize_torch as torch_int8
from latency.runtimes import Run, load_onnxruntime, load_openvino
from latency.shapes import FIXED, Batch, make_batches
from latency.worker import PAUSE_SECONDS, WARM_SECONDS
from machine import facts
from tasks import RUNS

SHAPES = ("1x16", "8x32")
ROWS, LENGTH = 64, 64  # train rows that calibrate, and how many tokens of these at most
VARIANTS = (
    FLOAT := "teacher, float32",
    TORCH := "torch dynamic int8",
    PER_TENSOR := "ONNX Runtime dynamic int8, per tensor",
    PER_CHANNEL := "ONNX Runtime dynamic int8, per channel",
    OPENVINO := "OpenVINO int8",
    OURS := "hf_xtc, 1 bit, packed",
)
PACKAGES = ("hf_xtc", "torch", "transformers", "onnx", "onnxruntime", "openvino")


@dataclass
class Int8Arguments:
    """Which teachers, and where they, their data and the results are."""

    runs_dir: str = field(metadata={"help": "Folder of the trainings of benchmarks/tasks.py."})
    data_dir: str = field(metadata={"help": "Its data folder."})
    encoders_dir: str = field(metadata={"help": "Folder of the teachers that were not fine-tuned."})
    names: list[str] = field(default_factory=lambda: list(RUNS), metadata={"help": "Runs; unfinished ones are left."})
    times: bool = field(default=False, metadata={"help": "Measure times, not metrics."})
    repeats: int = field(default=11, metadata={"help": "Timed calls of each shape."})
    work_dir: str = field(default="int8", metadata={"help": "Keeps the quantized files."})
    results_file: str = field(default="benchmarks/results/int8.jsonl", metadata={"help": "JSON lines."})
    threads: int = field(default=2, metadata={"help": "Threads of each runtime."})


# What is measured


class Case:
    """A model of a folder, float or packed, and the validation rows of its task."""

    def __init__(self, folder: Path, options: EvaluationDataArguments):
        name, sources = str(folder), read_splits(options)
        config = load_config(name)
        self.folder, self.options = folder, options
        self.task: Task = find_task(options, sources, config, name)
        self.task.open(config, name, None, options, fresh_head=False)
        self.data: TaskData = self.task.align_labels(self.task.load(options, sources), config, name)
        self.tokenizer = load_tokenizer(name)
        self.model: Any = load_model(
            name, self.task.auto_class, fresh_head=not self.task.needs_head, dtype="auto"
        ).eval()

    def scores(self, model: torch.nn.Module) -> dict[str, float]:
        """Metrics of a model with the inputs and outputs of this one."""
        with tempfile.TemporaryDirectory() as folder:
            trainer = self.task.trainer_class(Trainer)(
                model,
                TrainingArguments(
                    folder, per_device_eval_batch_size=32, disable_tqdm=True, dataloader_pin_memory=False, use_cpu=True
                ),
                processing_class=self.tokenizer,
                data_collator=self.task.collator(self.tokenizer),
                preprocess_logits_for_metrics=self.task.reduce_outputs,
            )
            rows = self.task.tokenize(self.data.validation, self.tokenizer, self.options)
            return measure(trainer, self.task, self.data, {"validation": rows})


class Foreign(torch.nn.Module):
    """A model of another runtime, with the inputs and outputs of the one that it was made of."""

    def __init__(self, run: Run, *, head: bool):
        super().__init__()
        self.run, self.head = run, head

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> Any:
        """Returns what the model returns, with a loss of zero, which is not reported."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        output = torch.from_numpy(self.run({name: part.numpy() for name, part in given.items() if part is not None}))
        if self.head:
            return SequenceClassifierOutput(loss=torch.zeros(()), logits=output)
        return BaseModelOutput(last_hidden_state=output)


# How it is quantized


class Quantizer:
    """Writes the files of one teacher, each once."""

    def __init__(self, teacher: Case, batches: list[Batch], folder: Path, threads: int):
        self.teacher, self.batches, self.folder, self.threads = teacher, batches, folder, threads
        folder.mkdir(parents=True, exist_ok=True)

    def variants(self) -> dict[str, Callable[[], tuple[Any, int]]]:
        """Name -> function that gives the model and the bytes of its weights."""
        return {
            FLOAT: lambda: (self.teacher.model, weights_bytes(self.teacher.folder)),
            TORCH: self._torch,
            PER_TENSOR: partial(self._onnxruntime, per_channel=False),
            PER_CHANNEL: partial(self._onnxruntime, per_channel=True),
            OPENVINO: self._openvino,
        }

    def _torch(self) -> tuple[Any, int]:
        model = torch_int8(self.teacher.model)

        def write(folder: Path) -> None:
            folder.mkdir()
            with deprecations_ignored():
                torch.save(model.state_dict(), folder / "model.pt")

        return model, folder_bytes(self._written("torch", write))

    def _onnxruntime(self, *, per_channel: bool) -> tuple[Any, int]:
        def write(folder: Path) -> None:
            folder.mkdir()
            graph = fused(self._graph("eager"), self.teacher.model.config)
            quantize_onnx(graph, folder / "model.onnx", per_channel=per_channel)

        folder = self._written(f"onnxruntime_per_{'channel' if per_channel else 'tensor'}", write)
        return self._foreign(load_onnxruntime(folder, self.threads)), folder_bytes(folder)

    def _openvino(self) -> tuple[Any, int]:
        folder = self._written("openvino", lambda folder: quantize_openvino(self._graph("sdpa"), folder, self.batches))
        return self._foreign(load_openvino(folder, self.threads)), folder_bytes(folder)

    def _foreign(self, run: Run) -> Foreign:
        return Foreign(run, head=self.teacher.task.needs_head)

    def _graph(self, attention: str) -> Path:
        """The float model as ONNX, checked on rows of another shape than those it was traced on."""

        def write(folder: Path) -> None:
            folder.mkdir()
            export_onnx(self.teacher.model, self.batches[0], folder / "model.onnx", attention)
            batch = self.batches[-1]
            inputs = (torch.from_numpy(part) for part in batch.values())
            with as_function(self.teacher.model, batch, attention) as first, torch.inference_mode():
                expected = first(*inputs).numpy()
            found = load_onnxruntime(folder, self.threads)(batch)
            kept = batch["attention_mask"].astype(bool) if expected.ndim == 3 else slice(None)
            np.testing.assert_allclose(found[kept], expected[kept], atol=1e-3, rtol=1e-3)

        return self._written(f"onnx_{attention}", write) / "model.onnx"

    def _written(self, name: str, write: Callable[[Path], None]) -> Path:
        target = self.folder / name
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
                write(Path(scratch) / name)
                os.replace(Path(scratch) / name, target)
        return target


def folder_bytes(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(file.stat().st_size for file in folder.iterdir())


def weights_bytes(folder: Path) -> int:
    """Bytes of a folder's safetensors."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


# The runs of benchmarks/tasks.py


def data_of(args: Int8Arguments, name: str) -> Path:
    """The folder of a run's data."""
    return Path(args.data_dir) / RUNS[name].get("data", name)


def read_student(args: Int8Arguments, name: str) -> Case:
    """The packed model of a run, and its validation rows."""
    known = {entry.name for entry in fields(EvaluationDataArguments)}
    options = {key: value for key, value in RUNS[name].items() if key in known}
    options["validation_file"] = str(data_of(args, name) / "validation.parquet")
    return Case(Path(args.runs_dir) / name, EvaluationDataArguments(**options))


def read_teacher(args: Int8Arguments, name: str, student: Case) -> Case:
    """The float teacher: fine-tuned in the run, or the encoder that the student names."""
    tuned = Path(args.runs_dir) / name / "training" / "teacher"
    encoder = Path(args.encoders_dir) / student.model.config.xtc["provenance"]["teacher"]
    task = next(task for task, kind in TASKS.items() if kind is type(student.task))  # texts alone do not tell it
    return Case(tuned if tuned.is_dir() else encoder, replace(student.options, task=task))


def read_batches(args: Int8Arguments, name: str, tokenizer: Any) -> list[Batch]:
    """Batches of the first train rows."""
    folder, options = data_of(args, name), RUNS[name]
    if (folder / "train.txt").exists():
        texts = [(folder / "train.txt").read_text(encoding="utf-8").splitlines()[:ROWS]]
    else:
        rows = pd.read_parquet(folder / "train.parquet").head(ROWS)
        if "tokens" in rows:
            texts = [[" ".join(words) for words in rows["tokens"]]]
        else:
            columns = [options.get("text_column", "text"), options.get("text_pair_column")]
            texts = [list(rows[column]) for column in columns if column]
    options = {"padding": True, "truncation": True, "max_length": LENGTH, "return_tensors": "np"}
    parts = ([part[start : start + 8] for part in texts] for start in range(0, len(texts[0]), 8))
    return [dict(tokenizer(*part, **options)) for part in parts]


def measured(args: Int8Arguments, name: str, known: set[str]) -> Iterator[dict[str, Any]]:
    """Yields what is not known: metric and bytes of each variant, or its times."""
    if known >= set(VARIANTS):
        return
    student = read_student(args, name)
    teacher = read_teacher(args, name, student)
    batches = read_batches(args, name, teacher.tokenizer)
    variants = Quantizer(teacher, batches, Path(args.work_dir) / name, args.threads).variants()
    variants[OURS] = lambda: (student.model, weights_bytes(student.folder))
    if args.times:
        found = times({variant: make()[0] for variant, make in variants.items()}, list(batches[0]), args.repeats)
        for variant, milliseconds in found.items():
            yield {"name": name, "variant": variant, "milliseconds": milliseconds}
        return
    metric = teacher.task.main_metric(teacher.data)
    rows = len(teacher.data.validation)
    for variant, make in variants.items():
        if variant not in known:
            model, size = make()
            score = (student if variant == OURS else teacher).scores(model)[metric]
            yield {"name": name, "variant": variant, "metric": metric, "score": score, "rows": rows, "bytes": size}


def times(models: dict[str, Any], inputs: list[str], repeats: int) -> dict[str, dict[str, float]]:
    """Variant -> shape -> median milliseconds of calls, the variants in turn."""
    vocabulary = models[FLOAT].config.vocab_size
    seconds: dict[tuple[str, str], list[float]] = {}

    def call(model: Any, batch: dict[str, torch.Tensor]) -> float:
        began = time.perf_counter()
        model(**batch)
        return time.perf_counter() - began

    with torch.inference_mode():
        for shape in SHAPES:
            rows, tokens = FIXED[shape]
            made = make_batches([[tokens] * rows], vocabulary, 0)[0]
            batch = {name: torch.from_numpy(made[name]) for name in inputs}
            for _ in range(repeats):
                for variant, model in models.items():
                    time.sleep(PAUSE_SECONDS)
                    warm = [call(model, batch)]
                    while sum(warm) < WARM_SECONDS:
                        warm.append(call(model, batch))
                    seconds.setdefault((variant, shape), []).append(call(model, batch))
    return {
        variant: {shape: round(1000 * statistics.median(seconds[variant, shape]), 3) for shape in SHAPES}
        for variant in models
    }


def table(records: list[dict[str, Any]]) -> str:
    """The variants of each teacher: metric, its ratio to the float model's, bytes; milliseconds and ratio to ours."""
    lines = [
        f"| validation rows | model | metric | score | kept | bytes | {' | '.join(f'ms, {s}' for s in SHAPES)} |",
        "|---|---|---|---|---|---|" + "---|" * len(SHAPES),
    ]
    scored = {(record["name"], record["variant"]): record for record in records if "score" in record}
    timed = {
        (record["name"], record["variant"]): record["milliseconds"] for record in records if "score" not in record
    }
    for (name, variant), record in sorted(scored.items(), key=lambda item: list(RUNS).index(item[0][0])):
        cells = [f"{name}, {record['rows']:,}", variant, record["metric"], f"{record['score']:.4f}"]
        cells += [f"{record['score'] / scored[name, FLOAT]['score']:.1%}", f"{record['bytes']:,}"]
        for shape in SHAPES:
            found, ours = (timed.get((name, model), {}).get(shape) for model in (variant, OURS))
            cells.append(f"{found:.1f} ({found / ours:.1f}x)" if found and ours else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measures what is not in the results yet, and prints the table."""
    (args,) = HfArgumentParser(Int8Arguments).parse_args_into_dataclasses()
    torch.set_num_threads(args.threads)
    file = Path(args.results_file)
    records = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for name in args.names:
        if not (Path(args.runs_dir) / name / "metrics.json").exists():
            print(f"{name}: not trained yet, left out.")
            continue
        known = {
            record["variant"]
            for record in records
            if record["name"] == name and ("milliseconds" in record) == args.times
        }
        for record in measured(args, name, known):
            records.append({**record, **facts(args.threads, *PACKAGES)})
            with file.open("a") as lines:
                lines.write(json.dumps(records[-1]) + "\n")
            print(*record.values(), flush=True)
    print(table(records))


if __name__ == "__main__":
    main()
