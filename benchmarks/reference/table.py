"""The comparison as Markdown: a row per task, the targets for accuracy, and the time to the same accuracy."""

import math
import statistics
from dataclasses import dataclass

from reference.runs import SIDES, Record, best_rate, dev_score
from reference.scores import main_score

ALL_TASKS = ("sst2", "mrpc", "rte", "cola", "stsb")
# Targets: points of our mean above DeepSpeed's over these tasks; our fraction of its time to equal accuracy on sst2.
WANTED_POINTS = 1.0
WANTED_TIME = 1 / 3
TIMED_TASK = "sst2"
HEAD = (
    "| task | score | teacher | ours | DeepSpeed | difference | seconds a step | bytes | learning rate | seeds |\n"
    "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"
)
NOTE = (
    "Scores on dev in points, mean ± standard deviation over seeds; of two figures in a cell the first is ours. Of "
    "each run the weights with the best score on the selection rows; ours are scored from the packed file, read back, "
    "DeepSpeed's after `redundancy_clean` with inputs still in 8 bits. Seconds: median of a run's steps, median of "
    "runs. `*`: the chosen rate is at an end of the grid."
)


@dataclass(frozen=True)
class Side:
    """The runs of one side of a task at its chosen learning rate; dev scores in points."""

    runs: list[Record]
    rate: float
    at_end: bool

    @property
    def points(self) -> dict[int, float]:
        """Seed -> dev score."""
        return {run["key"]["seed"]: 100 * dev_score(run) for run in self.runs}

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.mean(self.points.values())

    @property
    def spread(self) -> float:
        """Standard deviation over seeds; 0.0 for one seed."""
        return statistics.stdev(self.points.values()) if len(self.points) > 1 else 0.0

    @property
    def step_seconds(self) -> float:
        """Median over runs of a run's median step."""
        return statistics.median(run["step_seconds"] for run in self.runs)

    @property
    def bytes(self) -> int:
        """Bytes of the weights that a run wrote."""
        return sum(self.runs[0]["files"].values())

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.spread:.1f}"


def side_of(records: list[Record], task: str, side: str, seeds: list[int]) -> Side | None:
    """The side's runs at the learning rate chosen with the first seed; `None` if there are no runs."""
    runs = [run for run in records if (run["key"]["task"], run["key"]["side"]) == (task, side)]
    searched = [run for run in runs if run["key"]["seed"] == seeds[0]]
    if not searched:
        return None
    rate, grid = best_rate(searched), {run["key"]["learning_rate"] for run in searched}
    at_rate = {run["key"]["seed"]: run for run in runs if run["key"]["learning_rate"] == rate}
    kept = [at_rate[seed] for seed in seeds if seed in at_rate]
    return Side(kept, rate, len(grid) > 1 and rate in (min(grid), max(grid)))


def markdown(records: list[Record], tasks: list[str], seeds: list[int]) -> str:
    """The whole report of one comparison.

    Args:
        records: Runs that differ in task, side, learning rate and seed only.
        seeds: The first is the seed of the learning rate search.
    """
    pairs = {
        task: (side_of(records, task, "ours", seeds), side_of(records, task, "deepspeed", seeds)) for task in tasks
    }
    rows = [_row(task, *pair) for task, pair in pairs.items() if any(pair)]
    if not rows:
        return "No runs.\n"
    table = "\n".join([HEAD, *rows])
    both = {task: (ours, theirs) for task, (ours, theirs) in pairs.items() if ours and theirs}
    parts = [_head(records), table, NOTE, *_bars(both)]
    if TIMED_TASK in both:
        parts.append(time_to(*both[TIMED_TASK]))
    return "\n\n".join(parts) + "\n"


def _head(records: list[Record]) -> str:
    last, key = records[-1], records[-1]["key"]
    steps = {record["key"]["task"]: record["key"]["steps"] for record in records}
    lines = [
        f"{last['date']}, {last['cpu']}, {key['threads']} threads; batches of {key['batch_size']}, at most "
        f"{key['max_length']} tokens; steps: {', '.join(f'{task} {count}' for task, count in steps.items())}.",
        f"`{last['command']}`",
    ]
    return "\n".join([*lines, *(_about(records, side) for side in SIDES)])


def _about(records: list[Record], side: str) -> str:
    """Settings and versions of the side's latest run."""
    record = next((record for record in reversed(records) if record["key"]["side"] == side), None)
    if record is None:
        return f"- {side}: no runs"
    key = record["key"]
    padding = "rows padded to their batch" if key["padding"] is None else f"rows padded to {key['padding']}"
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    return f"- {side}: {'bfloat16' if key['bf16'] else 'float32'}, {padding}, {key['settings']}; {versions}"


def _row(task: str, ours: Side | None, theirs: Side | None) -> str:
    sides = [side for side in (ours, theirs) if side is not None]
    teacher = 100 * sides[0].runs[0]["teacher_scores"]["dev"][main_score(task)]
    difference = f"{ours.mean - theirs.mean:+.1f}" if ours and theirs else ""
    cells = [
        task,
        main_score(task),
        f"{teacher:.1f}",
        str(ours or ""),
        str(theirs or ""),
        difference,
        ", ".join(f"{side.step_seconds:.2f}" for side in sides),
        ", ".join(f"{side.bytes:,}" for side in sides),
        ", ".join(f"{side.rate:g}{'*' if side.at_end else ''}" for side in sides),
        ", ".join(str(n) for n in dict.fromkeys(len(side.runs) for side in sides)),
    ]
    return f"| {' | '.join(cells)} |"


def _bars(both: dict[str, tuple[Side, Side]]) -> list[str]:
    if not both:
        return []
    differences = {task: ours.mean - theirs.mean for task, (ours, theirs) in both.items()}
    mean = statistics.mean(differences.values())
    worse = [task for task, (ours, theirs) in both.items() if differences[task] < -max(ours.spread, theirs.spread)]
    missing = [task for task in ALL_TASKS if task not in both]
    verdict = f"{', '.join(missing)} missing" if missing else _verdict(mean >= WANTED_POINTS)
    return [
        f"- Mean difference over {', '.join(both)}: {mean:+.2f} points (at least {WANTED_POINTS:+.1f}): {verdict}.\n"
        f"- Tasks worse by more than the larger spread: {', '.join(worse) or 'none'} (none): {_verdict(not worse)}."
    ]


def _verdict(met: bool) -> str:
    return "met" if met else "NOT met"


def time_to(ours: Side, theirs: Side) -> str:
    """Training seconds until dev accuracy first reaches that of DeepSpeed's chosen weights, by seed.

    Accuracy is known every `eval_steps` steps, when a side is scored; the time of scoring is not counted.
    """
    lines, ratios = [], []
    theirs_by_seed = {run["key"]["seed"]: run for run in theirs.runs}
    for run in ours.runs:
        other = theirs_by_seed.get(run["key"]["seed"])
        if other is not None:
            target = other["selected"]["dev"][main_score(TIMED_TASK)]
            reached, needed = reach(run, target), reach(other, target)
            ratios.append(reached / needed if reached and needed else math.inf)
            lines.append(
                f"- seed {run['key']['seed']}, dev {100 * target:.1f}: DeepSpeed {_seconds(needed)}, ours "
                f"{_seconds(reached)}: {ratios[-1]:.2f}x"
            )
    if not ratios:
        return f"Time to the same accuracy on {TIMED_TASK}: the two sides have no seed in common."
    middle = statistics.median(ratios)
    verdict = f"median {middle:.2f}x (at most {WANTED_TIME:.2f}x): {_verdict(middle <= WANTED_TIME)}"
    return "\n".join([f"Time to the same accuracy on {TIMED_TASK}, {verdict}.", *lines])


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.0f} s"


def reach(run: Record, target: float) -> float | None:
    """Training seconds at the first point of the curve whose dev score is at least `target`; `None` if none is."""
    main = main_score(run["key"]["task"])
    return next((point["seconds"] for point in run["curve"] if point["dev"][main] >= target), None)
