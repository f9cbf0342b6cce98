"""A long training of a tiny student: memory, open files and threads stay flat.

    python tests/stress/soak.py --steps 10000

One run uses the teacher, another its cache, read by worker processes; each is in a new process. Every hundredth step
records the resources of the process and its workers; the last fifth is compared with the second. Besides their memory,
the bytes in use of the trainer's heap are recorded, as reported by glibc, which do not depend on fragmentation.
"""

import ctypes
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import BertConfig, BertForSequenceClassification, HfArgumentParser, TrainerCallback, set_seed

from hf_xtc import XTCRecipe, XTCTrainer, XTCTrainingArguments, compress
from hf_xtc.files.writing import write_json

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from machine import facts

WAYS = {
    "teacher": {},
    "cache, 2 workers": {"dataloader_num_workers": 2, "dataloader_persistent_workers": True},
}


@dataclass
class SoakArguments:
    """Length of the runs, and the file for the figures."""

    steps: int = field(default=10_000, metadata={"help": "Optimizer steps of each way."})
    every: int = field(default=100, metadata={"help": "Steps between two looks."})
    seed: int = field(default=1, metadata={"help": "Seed of the data, the models and the training."})
    way: str | None = field(default=None, metadata={"help": f"Only this, in this process: {', '.join(WAYS)}."})
    output_file: str | None = field(default=None, metadata={"help": "JSON file for the figures."})


class Mallinfo(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")),
    ]


class Watch(TrainerCallback):
    """Records the resources of the process and its children."""

    def __init__(self, every: int):
        self.every, self.seen = every, []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            gc.collect()
            self.seen.append({"step": state.global_step, **held(psutil.Process()), "in_use": in_use()})


def in_use() -> int:
    """Bytes of this process that were allocated and not freed; 0 where the C library is not glibc."""
    try:
        mallinfo = ctypes.CDLL("libc.so.6").mallinfo2
    except (OSError, AttributeError):
        return 0
    mallinfo.restype = Mallinfo
    heap = mallinfo()
    return int(heap.uordblks + heap.hblkhd)


def held(process: psutil.Process) -> dict[str, int]:
    """Bytes, open files and threads of a process and its children; memory that several share counts once (`pss`)."""
    every = [process, *process.children(recursive=True)]
    return {
        "bytes": sum(one.memory_full_info().pss for one in every),
        "files": sum(one.num_fds() for one in every),
        "threads": sum(one.num_threads() for one in every),
        "processes": len(every),
    }


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows of 3 to 24 tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 25, (count,), generator=generator).tolist()
    ids = [torch.randint(1, 101, (length,), generator=generator).tolist() for length in lengths]
    return [{"input_ids": row, "attention_mask": [1] * len(row), "labels": row[0] % 3} for row in ids]


def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch padded to its longest row."""
    longest = max(len(row["input_ids"]) for row in batch)
    padded = {
        key: torch.tensor([row[key] + [0] * (longest - len(row[key])) for row in batch])
        for key in ("input_ids", "attention_mask")
    }
    return padded | {"labels": torch.tensor([row["labels"] for row in batch])}


def soak(args: SoakArguments, way: str, folder: str) -> list[dict[str, int]]:
    """Trains in one way, with regular evaluations and checkpoints; returns the records."""
    set_seed(args.seed)
    config = BertConfig(
        vocab_size=101, hidden_size=36, num_hidden_layers=4, num_attention_heads=4, intermediate_size=50, num_labels=3
    )
    teacher, watch = BertForSequenceClassification(config).eval(), Watch(args.every)
    training = XTCTrainingArguments(
        folder,
        max_steps=args.steps,
        per_device_train_batch_size=8,
        logging_steps=args.every,
        eval_strategy="steps",
        eval_steps=max(args.steps // 10, 1),
        save_strategy="steps",
        save_steps=max(args.steps // 10, 1),
        save_total_limit=1,
        seed=args.seed,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        **({} if way == "teacher" else {"teacher_cache": f"{folder}/cache", **WAYS[way]}),
    )
    trainer = XTCTrainer(
        compress(teacher, XTCRecipe(keep_layers=2, activation_calibration="static")),
        training,
        teacher_model=teacher,
        train_dataset=rows(2048, args.seed),
        eval_dataset=rows(64, args.seed + 1),
        data_collator=collate,
        callbacks=[watch],
    )
    trainer.train()
    return watch.seen


def growth(seen: list[dict[str, int]]) -> dict[str, Any]:
    """Medians of the second and the last fifth, and the maximum."""
    fifth = len(seen) // 5
    early, late = seen[fifth : 2 * fifth], seen[-fifth:]
    found: dict[str, Any] = {}
    for key in ("bytes", "in_use", "files", "threads", "processes"):
        first, last = (statistics.median(one[key] for one in part) for part in (early, late))
        found[key] = {"second_fifth": first, "last_fifth": last, "most": max(one[key] for one in seen)}
    return found


def apart(args: SoakArguments, way: str) -> list[dict[str, int]]:
    """Runs `soak` in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "seen.json"
        changes = {**asdict(args), "way": way, "output_file": str(target)}
        options = [part for key, value in changes.items() for part in (f"--{key}", str(value))]
        subprocess.run([sys.executable, __file__, *options], check=True)
        seen: list[dict[str, int]] = json.loads(target.read_text())
        return seen


def main() -> None:
    """Soaks in each way, prints a line for each, and writes the figures."""
    args = HfArgumentParser(SoakArguments).parse_args_into_dataclasses()[0]
    if args.way is not None:
        with tempfile.TemporaryDirectory() as folder:
            write_json(args.output_file, soak(args, args.way, folder))
        return
    ways = {}
    for way in WAYS:
        start = time.perf_counter()
        ways[way] = {**growth(apart(args, way)), "seconds": round(time.perf_counter() - start)}
        held = ways[way]["bytes"]
        change, blocks = held["last_fifth"] / held["second_fifth"] - 1, ways[way]["in_use"]
        print(
            f"{way}: {args.steps} steps, {held['last_fifth'] / 1e6:.1f} MB at the end, {change:+.2%} since the start; "
            f"in use {blocks['last_fifth'] - blocks['second_fifth']:+,.0f} bytes"
        )
    if args.output_file:
        about = facts(torch.get_num_threads(), "hf_xtc", "torch", "transformers", "accelerate")
        write_json(args.output_file, {"steps": args.steps, "seed": args.seed, "ways": ways, **about})


if __name__ == "__main__":
    main()
