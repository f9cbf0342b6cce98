"""Collects the results of many runs: a line of JSON per run, and Markdown tables of means and standard deviations.

python examples/results.py --results_file runs/results.jsonl --tasks sst2 mrpc rte cola stsb
"""

import json
import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from hf_xtc.files.writing import write_text
from hf_xtc.hub.results import STANDARD_ERROR, Run


def record(run: Run, seed: int) -> dict[str, Any]:
    """A run's line in the results file."""
    teacher, packed = run.rows[0], run.rows[-1]
    stages, trimmed = run.provenance["stages"], run.provenance.get("vocabulary")
    return {
        "run": run.name,
        "task": run.task,
        "metric": run.metric,
        "weights": (run.recipe.weights or "float") + (f", {trimmed:,} tokens" if trimmed else ""),
        "layers": packed.layers,
        "schedule": run.provenance["job"].get("schedule", "default"),
        "seed": seed,
        "teacher": teacher.metrics[run.metric],
        "teacher_bytes": teacher.bytes,
        "packed": packed.metrics[run.metric],
        "standard_errors": [row.metrics.get(run.metric + STANDARD_ERROR) for row in (teacher, packed)],
        "packed_bytes": packed.bytes,
        "stages": {row.model: row.metrics[run.metric] for row in run.rows[1:-1]},
        "held_out": None if stages[-1]["selection"] is None else stages[-1]["selection"][run.metric],
        "learning_rate": stages[-1]["learning_rate"],
        "steps": sum(stage["steps"] for stage in stages),
        "seconds": round(sum(stage["seconds"] for stage in stages)),
        "versions": run.provenance["versions"],
    }


def append(path: Path, entry: dict[str, Any]) -> None:
    """Adds a record, replacing an earlier one of the same run, and writes the table beside the file."""
    kept = [line for line in read(path) if line["run"] != entry["run"]]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(line) + "\n" for line in [*kept, entry]))
    write_text(path.with_suffix(".md"), table(read(path)))


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a file; empty if it does not exist."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def table(records: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds of each kind of student, as Markdown.

    Where they are known, there is a column with the standard errors of the teacher's and the packed file's score over
    the validation rows, each of one training (the mean over seeds).
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for entry in records:
        groups[entry["task"], entry["weights"], entry["layers"], entry["schedule"]].append(entry)
    rows = []
    for (task, weights, layers, schedule), entries in sorted(groups.items()):
        scores = [entry["packed"] for entry in entries]
        mean, teacher = statistics.mean(scores), statistics.mean(entry["teacher"] for entry in entries)
        errors = [statistics.mean(side) for side in zip(*filter(None, map(_errors, entries)), strict=True)]
        row = {
            "task": task,
            "metric": entries[-1]["metric"],
            "weights": weights,
            "layers": layers,
            "schedule": schedule,
            "teacher": f"{teacher:.4f}",
            "packed file": f"{mean:.4f}" + (f" ± {statistics.stdev(scores):.4f}" if len(scores) > 1 else ""),
            "kept": f"{mean / teacher:.1%}" if teacher > 0 else "-",
            "standard errors": ", ".join(f"{error:.4f}" for error in errors) or "-",
            "seeds": len(entries),
            "bytes": f"{entries[-1]['packed_bytes']:,}",
            "steps": f"{entries[-1]['steps']:,}",
        }
        if not any(map(_errors, records)):
            del row["standard errors"]
        rows.append(row)
    columns = list(rows[0]) if rows else []
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(map(str, row.values()))} |" for row in rows]
    return "\n".join(lines) + "\n"


def _errors(entry: dict[str, Any]) -> list[float] | None:
    """The standard errors of teacher and packed file, if both are known."""
    found = entry.get("standard_errors", [None])
    return None if None in found else found


def means(records: list[dict[str, Any]]) -> str:
    """Each kind of student's mean over its tasks, and its teachers' mean over the same tasks, as Markdown."""
    groups: dict[tuple[Any, ...], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for entry in records:
        groups[entry["weights"], entry["layers"], entry["schedule"]][entry["task"]].append(entry)
    lines = ["| weights | layers | schedule | tasks | teacher | packed file | kept |", "|---|---|---|---|---|---|---|"]
    for (weights, layers, schedule), tasks in sorted(groups.items()):
        teacher, packed = (
            statistics.mean(statistics.mean(entry[key] for entry in entries) for entries in tasks.values())
            for key in ("teacher", "packed")
        )
        what = f"{weights} | {layers} | {schedule} | {', '.join(sorted(tasks))}"
        lines.append(f"| {what} | {teacher:.4f} | {packed:.4f} | {packed / teacher:.1%} |")
    return "\n".join(lines) + "\n"


@dataclass
class ResultsArguments:
    """Which results to show."""

    results_file: str = field(metadata={"help": "JSONL file of examples/glue.py or examples/checkpoints.py."})
    tasks: list[str] | None = field(default=None, metadata={"help": "Tasks that the means are over; default: all."})


def main() -> None:
    """Prints the table and the means."""
    args = HfArgumentParser(ResultsArguments).parse_args_into_dataclasses()[0]
    records = read(Path(args.results_file))
    print(table(records))
    print(means([entry for entry in records if args.tasks is None or entry["task"] in args.tasks]))


if __name__ == "__main__":
    main()
