"""What an ablation gained: a table and a plot of each candidate against the base, run by run."""

import math
import statistics
from pathlib import Path
from typing import Any

from tried.candidates import BASE, CANDIDATES


def against_base(lines: list[dict[str, Any]]) -> dict[str, list[dict[str, float]]]:
    """Candidate -> its runs, each compared with the base's run of the same task and seed."""
    bases = {(line["task"], line["seed"]): line for line in lines if line["candidate"] == BASE}
    compared: dict[str, list[dict[str, float]]] = {}
    for line in lines:
        base = bases.get((line["task"], line["seed"]))
        if base is None:
            continue
        pair = {
            "points": 100 * (line["score"] - base["score"]),
            "divergence": line["divergence"] / base["divergence"],
        }
        compared.setdefault(line["candidate"], []).append({**pair, "task": line["task"]})
    return compared


def _spread(values: list[float]) -> str:
    return f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""


def markdown(lines: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    """The table, best first by divergence."""
    rows = []
    for name, runs in against_base(lines).items():
        points = [run["points"] for run in runs]
        logs = [math.log(run["divergence"]) for run in runs]
        better = sum(value < 0 for value in logs)
        ratio = math.exp(statistics.mean(logs))
        wins = "-" if name == BASE else f"{better} of {len(runs)}"
        cells = [name, CANDIDATES[name].what, f"{ratio:.3f}", wins, f"{statistics.mean(points):+.2f}{_spread(points)}"]
        rows.append((ratio, cells))
    tasks = ", ".join(sorted({line["task"] for line in lines}))
    seeds = len({line["seed"] for line in lines})
    header = "| candidate | what | divergence, ratio to base | runs with less | points |"
    body = ["| " + " | ".join(cells) + " |" for _, cells in sorted(rows)]
    stated = ", ".join(f"{name} {value}" for name, value in settings.items())
    told = f"Tasks {tasks}; {seeds} seeds; {stated}. Scored on held-out train rows; ± is the spread over runs."
    return "\n".join([header, "|---|---|---|---|---|", *body, "", told]) + "\n"


def draw(lines: list[dict[str, Any]], file: str | Path) -> None:
    """Writes the PNG: a dot for each run, a bar at the mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    compared = {name: runs for name, runs in against_base(lines).items() if name != BASE}
    means = {name: statistics.mean(math.log(run["divergence"]) for run in runs) for name, runs in compared.items()}
    order = sorted(means, key=means.__getitem__, reverse=True)
    tasks = sorted({line["task"] for line in lines})
    figure, axes = pyplot.subplots(
        1, 2, figsize=(11, 1.2 + 0.36 * max(len(order), 2)), sharey=True, layout="constrained"
    )
    for place, name in enumerate(order):
        for run in compared[name]:
            color = f"C{tasks.index(str(run['task']))}"
            axes[0].plot(run["divergence"], place, "o", color=color, alpha=0.8)
            axes[1].plot(run["points"], place, "o", color=color, alpha=0.8)
        axes[0].plot(math.exp(means[name]), place, "|", color="black", markersize=18, markeredgewidth=2)
        mean = statistics.mean(run["points"] for run in compared[name])
        axes[1].plot(mean, place, "|", color="black", markersize=18, markeredgewidth=2)
    axes[0].set_xscale("log")
    axes[0].xaxis.set_major_formatter("{x:.1f}")
    axes[0].xaxis.set_minor_formatter("{x:.1f}")
    axes[0].axvline(1, color="grey", linewidth=0.8)
    axes[1].axvline(0, color="grey", linewidth=0.8)
    axes[0].set_yticks(range(len(order)), order)
    axes[0].set_xlabel("divergence from the teacher, ratio to base (less is better)")
    axes[1].set_xlabel("metric, points above base (more is better)")
    for index, task in enumerate(tasks):
        axes[1].plot([], [], "o", color=f"C{index}", label=task)
    axes[1].plot([], [], "|", color="black", markersize=12, markeredgewidth=2, label="mean")
    axes[1].legend(fontsize=8)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
