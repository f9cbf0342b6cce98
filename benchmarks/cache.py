"""Times an epoch of training from a teacher cache and one with the teacher, on random weights of MiniLM-L6 shape.

The student has 3 layers, the teacher 6. Rows are as long as SST-2's: those of its validation split, or of its train
split if `data_dir` and `tokenizer` are given. Each repeat trains one epoch of each kind, in turn. The medians of the
whole `train()` are compared, including reading the rows and checking the cache. The cache is made once, before.

    python benchmarks/cache.py --output_file benchmarks/results/cache.json
"""

import json
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification, HfArgumentParser, set_seed
from transformers.trainer_callback import PrinterCallback

from hf_xtc import XTCRecipe, XTCTrainer, XTCTrainingArguments, compress
from hf_xtc.files.writing import write_json
from latency.shapes import count_lengths, read_lengths
from machine import facts


@dataclass
class BenchmarkArguments:
    """Shape, data and repeats."""

    rows: int = field(default=2048, metadata={"help": "Rows of the epoch."})
    batch_size: int = field(default=32, metadata={"help": "Rows of a batch."})
    hidden_size: int = field(default=384, metadata={"help": "Width of teacher and student."})
    teacher_layers: int = field(default=6, metadata={"help": "Layers of the teacher."})
    student_layers: int = field(default=3, metadata={"help": "Layers of the student."})
    repeats: int = field(default=5, metadata={"help": "Epochs of each kind, in turn."})
    weights: str = field(default="binary", metadata={"help": "Quantizer of the student."})
    dtype: str = field(default="float16", metadata={"help": "Of the cache: float16 or int8."})
    bf16: bool = field(default=False, metadata={"help": "Autocast to bfloat16."})
    workers: int = field(default=0, metadata={"help": "Workers of the data loader."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder of GLUE's sst2/train.parquet, for lengths."})
    tokenizer: str | None = field(default=None, metadata={"help": "Tokenizer that counts their tokens."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where the cache is made (default: temporary)."})
    output_file: str | None = field(default=None, metadata={"help": "JSON file for the results."})

    def __post_init__(self) -> None:
        if (self.data_dir is None) != (self.tokenizer is None):
            raise ValueError("Give data_dir and tokenizer together, or neither.")


def row_lengths(args: BenchmarkArguments) -> list[int]:
    """Tokens of each row: drawn from the lengths of real sentences, with a fixed seed."""
    if args.data_dir is None or args.tokenizer is None:
        counts = read_lengths()
    else:
        counts = count_lengths(str(Path(args.data_dir) / "sst2" / "train.parquet"), args.tokenizer)
    return random.Random(0).choices(list(counts), list(counts.values()), k=args.rows)


def trainers(args: BenchmarkArguments, folder: Path) -> dict[str, XTCTrainer]:
    """Name -> trainer of one epoch: "teacher" runs the teacher at each step, "cache" reads its outputs."""
    set_seed(0)
    shape = {"hidden_size": args.hidden_size, "num_attention_heads": 12, "intermediate_size": 4 * args.hidden_size}
    shape |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # as hf-xtc compress trains students
    teacher = BertForSequenceClassification(BertConfig(num_hidden_layers=args.teacher_layers, **shape)).eval()
    ids = [torch.randint(1000, 30000, (length,)).tolist() for length in row_lengths(args)]
    data = Dataset.from_dict(
        {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids], "labels": [0] * len(ids)}
    )
    made = {}
    for name in ("teacher", "cache"):
        training_args = XTCTrainingArguments(
            str(folder / name),
            num_train_epochs=1,
            per_device_train_batch_size=args.batch_size,
            learning_rate=1e-4,
            warmup_steps=0,
            train_sampling_strategy="random",
            logging_steps=500,
            use_cpu=not torch.cuda.is_available(),
            bf16=args.bf16,
            dataloader_num_workers=args.workers,
            save_strategy="no",
            disable_tqdm=True,
            teacher_cache=str(folder / "targets") if name == "cache" else None,
            teacher_cache_dtype=args.dtype,
        )
        student = compress(teacher, XTCRecipe(weights=args.weights, keep_layers=args.student_layers))
        made[name] = XTCTrainer(
            student, training_args, teacher_model=teacher, train_dataset=data, data_collator=pad_right
        )
        made[name].remove_callback(PrinterCallback)
    return made


def pad_right(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch padded to its longest row, without a tokenizer."""
    longest = max(len(row["input_ids"]) for row in rows)
    padded = {
        key: torch.tensor([row[key] + [0] * (longest - len(row[key])) for row in rows])
        for key in ("input_ids", "attention_mask")
    }
    return {**padded, "labels": torch.tensor([row["labels"] for row in rows])}


def measure(args: BenchmarkArguments) -> dict[str, float]:
    """Median seconds of an epoch of each kind and their ratio; bytes of the cache, seconds to make and to check it."""
    folder = Path(tempfile.mkdtemp(dir=args.cache_dir))
    try:
        kinds = trainers(args, folder)
        found = {}
        for step in ("make", "check"):
            kinds["cache"].is_in_train = True
            found[f"{step}_seconds"] = seconds(kinds["cache"].get_train_dataloader)
        found["cache_bytes"] = sum(file.stat().st_size for file in (folder / "targets").iterdir())
        times: dict[str, list[float]] = {name: [] for name in kinds}
        for _ in range(args.repeats):
            for name, trainer in kinds.items():
                times[name].append(seconds(trainer.train))
    finally:
        shutil.rmtree(folder)
    found |= {f"{name}_seconds": statistics.median(values) for name, values in times.items()}
    pairs = [cache / teacher for cache, teacher in zip(times["cache"], times["teacher"], strict=True)]
    found["ratio"] = found["cache_seconds"] / found["teacher_seconds"]
    found["ratio_min"], found["ratio_max"] = min(pairs), max(pairs)
    return found


def seconds(function: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    """Prints the results, and writes them if asked."""
    args = HfArgumentParser(BenchmarkArguments).parse_args_into_dataclasses()[0]
    results = {
        **measure(args),
        "arguments": {key: value for key, value in asdict(args).items() if key not in ("cache_dir", "output_file")},
        **facts(torch.get_num_threads(), "hf_xtc", "torch", "transformers", "accelerate"),
    }
    print(json.dumps(results, indent=2))
    if args.output_file:
        write_json(args.output_file, results)


if __name__ == "__main__":
    main()
