"""One table of results over many runs: a line of JSON per run, and a Markdown table of means and spreads."""

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from hf_xtc.checkpoint import write_text
from hf_xtc.model_card import Run


def record(run: Run, seed: int) -> dict[str, Any]:
    """What the table keeps of a run."""
    teacher, packed = run.rows[0], run.rows[-1]
    stages = run.provenance["stages"]
    return {
        "run": run.name,
        "task": run.task,
        "metric": run.metric,
        "weights": run.recipe.weights or "float",
        "layers": packed.layers,
        "ladder": run.provenance["job"].get("ladder", "default"),
        "seed": seed,
        "teacher": teacher.metrics[run.metric],
        "teacher_bytes": teacher.bytes,
        "packed": packed.metrics[run.metric],
        "packed_bytes": packed.bytes,
        "stages": {row.model: row.metrics[run.metric] for row in run.rows[1:-1]},
        "held_out": None if stages[-1]["selection"] is None else stages[-1]["selection"][run.metric],
        "learning_rate": stages[-1]["learning_rate"],
        "steps": sum(stage["steps"] for stage in stages),
        "seconds": round(sum(stage["seconds"] for stage in stages)),
        "versions": run.provenance["versions"],
    }


def append(path: Path, entry: dict[str, Any]) -> None:
    """Adds a record, in the place of an earlier one of the same run, and writes the table beside it."""
    kept = [line for line in read(path) if line["run"] != entry["run"]]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(line) + "\n" for line in [*kept, entry]))
    write_text(path.with_suffix(".md"), table(read(path)))


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a file; none if it is not there."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def table(records: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds of each kind of student, as Markdown."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for entry in records:
        groups[entry["task"], entry["weights"], entry["layers"], entry["ladder"]].append(entry)
    lines = [
        "| task | metric | weights | layers | ladder | teacher | packed file | kept | seeds | bytes | steps |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (task, weights, layers, ladder), entries in sorted(groups.items()):
        scores = [entry["packed"] for entry in entries]
        mean, teacher = statistics.mean(scores), statistics.mean(entry["teacher"] for entry in entries)
        spread = f" ± {statistics.stdev(scores):.4f}" if len(scores) > 1 else ""
        kept = f"{mean / teacher:.1%}" if teacher > 0 else "-"
        last = entries[-1]
        what = f"{task} | {last['metric']} | {weights} | {layers} | {ladder}"
        scored = f"{teacher:.4f} | {mean:.4f}{spread} | {kept} | {len(entries)}"
        lines.append(f"| {what} | {scored} | {last['packed_bytes']:,} | {last['steps']:,} |")
    return "\n".join(lines) + "\n"
