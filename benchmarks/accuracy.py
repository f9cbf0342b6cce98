"""Compares DeepSpeed's XTC with ours: same teacher, rows, student shape, steps, batch size and seeds, own recipes.

The learning rate of each side is chosen from the same grid, with the first seed, on held-out train rows; the other
seeds then use it. Nothing is chosen on the validation rows ("dev"). Each finished run is appended to the results file,
and is not repeated. DeepSpeed's runs have a separate environment, which `make .venv-deepspeed/installed` makes.

    python benchmarks/accuracy.py --teachers_dir teachers --data_dir glue --steps 1000 --seeds 1 2 3 --bf16
"""

import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reference import deepspeed_worker
from reference.runs import SIDES, Record, Results, best_rate, dev_score, launch, selection_score, shown_command
from reference.table import ALL_TASKS, TIMED_TASK, markdown

RESULTS = "benchmarks/results/accuracy.jsonl"


@dataclass
class AccuracyArguments:
    """What to compare."""

    tasks: list[str] = field(default_factory=lambda: list(ALL_TASKS), metadata={"help": "GLUE tasks."})
    teachers_dir: str = field(
        default="teachers", metadata={"help": "Holds a folder for each task: its fine-tuned teacher."}
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder of GLUE parquet files; else the Hub."})
    sides: list[str] = field(default_factory=lambda: list(SIDES), metadata={"help": "ours, deepspeed, or both."})
    steps: list[int] = field(
        default_factory=lambda: [1000], metadata={"help": "Optimizer steps: one number, or one per task."}
    )
    evaluations: int = field(default=10, metadata={"help": "How often a run is scored, evenly spread."})
    batch_size: int = field(default=32, metadata={"help": "Rows of a batch."})
    seeds: list[int] = field(
        default_factory=lambda: [1, 2, 3], metadata={"help": "The first searches the learning rate."}
    )
    learning_rates: list[float] = field(
        default_factory=lambda: [1e-4, 3e-4, 1e-3], metadata={"help": "The grid, the same for both sides."}
    )
    keep_layers: int | None = field(default=None, metadata={"help": "Layers of the student; else all of the teacher."})
    max_length: int = field(default=128, metadata={"help": "Tokens per row; DeepSpeed's are padded to it."})
    selection_share: float = field(default=0.1, metadata={"help": "Share of train to choose on, 1,000 rows at most."})
    bf16: bool = field(default=False, metadata={"help": "Our side in bfloat16 autocast."})
    deepspeed_bf16: bool = field(default=False, metadata={"help": "DeepSpeed's too; its recipe says float32."})
    deepspeed_dynamic_padding: bool = field(
        default=False, metadata={"help": "Pad DeepSpeed's rows to their batch, not to max_length as its script does."}
    )
    ours_arguments: str = field(
        default="{}", metadata={"help": "JSON of XTCTrainingArguments to change in our recommended settings."}
    )
    threads: int = field(default=1, metadata={"help": "Threads of every run."})
    deepspeed_python: str = field(
        default=".venv-deepspeed/bin/python", metadata={"help": "Interpreter of DeepSpeed's environment."}
    )
    results_file: str = field(default=RESULTS, metadata={"help": "JSONL file, one run a line."})
    output_file: str | None = field(default=None, metadata={"help": "Markdown file for the table."})
    time_to: bool = field(default=False, metadata={"help": f"Only {TIMED_TASK}: seconds to the same accuracy."})
    table_only: bool = field(default=False, metadata={"help": "Run nothing; the table of what is in the results."})

    def __post_init__(self) -> None:
        if self.time_to:
            self.tasks = [TIMED_TASK]
        if len(self.steps) not in (1, len(self.tasks)):
            raise ValueError(
                f"{len(self.steps)} values of steps for {len(self.tasks)} tasks: give one, or one per task."
            )
        unknown = sorted(set(self.sides) - set(SIDES))
        if unknown:
            raise ValueError(f"Unknown: {', '.join(unknown)}. There are: {', '.join(SIDES)}.")
        if not 0 < self.selection_share < 1:
            raise ValueError(f"selection_share is {self.selection_share}; it must be above 0 and below 1.")
        if not (self.seeds and self.learning_rates and self.tasks and min(self.steps) >= self.evaluations >= 1):
            raise ValueError("Give at least one task, seed and learning rate, and no more evaluations than steps.")

    def task_steps(self, task: str) -> int:
        """Steps of a run of the task."""
        return dict(zip(self.tasks, self.steps * (len(self.tasks) // len(self.steps)), strict=True))[task]


def settings(args: AccuracyArguments, side: str) -> dict[str, Any]:
    """The settings of the side's recipe that are not fixed in its worker."""
    if side == "deepspeed":
        return deepspeed_worker.SETTINGS
    from reference import ours_worker

    return {**ours_worker.SETTINGS, **json.loads(args.ours_arguments)}


def key_of(args: AccuracyArguments, task: str, side: str) -> dict[str, Any]:
    """Everything that may change a result, except learning rate, seed, teacher and data."""
    theirs = side == "deepspeed"
    steps = args.task_steps(task)
    return {
        "task": task,
        "side": side,
        "steps": steps,
        "eval_steps": steps // args.evaluations,
        "batch_size": args.batch_size,
        "max_length": args.max_length,
        "padding": args.max_length if theirs and not args.deepspeed_dynamic_padding else None,
        "keep_layers": args.keep_layers,
        "selection_share": args.selection_share,
        "bf16": args.deepspeed_bf16 if theirs else args.bf16,
        "threads": args.threads,
        "settings": settings(args, side),
    }


class Comparison:
    """The runs of one task, each read from the results file or, if it is not there, made by a worker."""

    def __init__(self, args: AccuracyArguments, task: str, results: Results, folder: Path):
        from hf_xtc.data.task_data import DataArguments
        from reference.rows import prepare

        self.args, self.task, self.results = args, task, results
        self.teacher, self.rows_file = Path(args.teachers_dir).resolve() / task, folder / f"{task}.json"
        data_args = DataArguments(
            task_name=task,
            data_dir=args.data_dir,
            max_length=args.max_length,
            selection_share=args.selection_share,
        )
        self.facts = prepare(data_args, self.teacher, args.keep_layers, self.rows_file)

    def run(self, side: str, rate: float, seed: int) -> Record:
        """One run, read from the results file, or made and appended to it."""
        facts = {name: self.facts[name] for name in ("teacher", "data")}
        key = {**key_of(self.args, self.task, side), **facts, "learning_rate": rate, "seed": seed}
        found = self.results.find(key)
        if found is not None:
            return found
        files = {"teacher": str(self.teacher), "rows_file": str(self.rows_file), "layers": self.facts["layers"]}
        python = sys.executable if side == "ours" else self.args.deepspeed_python
        record = launch(side, python, {**key, **files})
        about = {name: self.facts[name] for name in ("layers", "rows", "teacher_scores")}
        record = {"key": key, **record, **about, "command": shown_command(sys.argv[1:])}
        self.results.add(record)
        what = f"{self.task}, {side}, rate {rate:g}, seed {seed}"
        figures = f"selection {selection_score(record):.4f}, dev {dev_score(record):.4f}"
        print(f"{what}: {figures}, {record['step_seconds']:.2f} s a step", flush=True)
        return record

    def all_runs(self) -> list[Record]:
        """The search with the first seed, then the other seeds; sides alternate, so a slow period affects both."""
        args = self.args
        searched = {side: [] for side in args.sides}
        for rate in args.learning_rates:
            for side in args.sides:
                searched[side].append(self.run(side, rate, args.seeds[0]))
        rates = {side: best_rate(records) for side, records in searched.items()}
        others = [self.run(side, rates[side], seed) for seed in args.seeds[1:] for side in args.sides]
        return [*(record for records in searched.values() for record in records), *others]


def compare(args: AccuracyArguments) -> list[Record]:
    """All runs of all tasks, including those made earlier."""
    results = Results(Path(args.results_file))
    with tempfile.TemporaryDirectory() as folder:
        return [record for task in args.tasks for record in Comparison(args, task, results, Path(folder)).all_runs()]


def stored(args: AccuracyArguments) -> list[Record]:
    """Runs in the results file that match the arguments, for each task with its latest teacher and data."""
    wanted = [key_of(args, task, side) for task in args.tasks for side in args.sides]
    chosen = [
        record
        for record in Results(Path(args.results_file)).records
        if record["key"]["seed"] in args.seeds
        and record["key"]["learning_rate"] in args.learning_rates
        and any(key.items() <= record["key"].items() for key in wanted)
    ]
    latest = {record["key"]["task"]: _source(record) for record in chosen}
    return [record for record in chosen if _source(record) == latest[record["key"]["task"]]]


def _source(record: Record) -> tuple[str, str]:
    return record["key"]["teacher"], record["key"]["data"]


def main() -> None:
    """Prints the table, and writes it if asked."""
    from transformers import HfArgumentParser

    args: AccuracyArguments = HfArgumentParser(AccuracyArguments).parse_args_into_dataclasses()[0]
    text = markdown(stored(args) if args.table_only else compare(args), args.tasks, args.seeds)
    print(text)
    if args.output_file:
        Path(args.output_file).write_text(text)


if __name__ == "__main__":
    main()
