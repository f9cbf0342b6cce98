"""Interleaved timing: in each round every runtime runs each shape once, so that a slow minute of the machine hits all.

A slow runtime takes part in fewer rounds, evenly spread over the run, so that it costs no more than a given time.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parent.parent
# However slow, a runtime is timed this often, unless one run alone takes longer than what is allowed for all.
LEAST_REPEATS = 3
# Keeps the current folder from the module path; new in Python 3.11.
SAFE_PATH = ["-P"] if sys.version_info >= (3, 11) else []


class WorkerError(RuntimeError):
    """A runtime's process ended before it answered; its messages are on stderr."""


class Worker:
    """The process of one runtime; `cost` is what it took to its first logits."""

    def __init__(self, config: dict[str, Any]):
        paths = (str(BENCHMARKS), os.environ.get("PYTHONPATH"), config.pop("packages", None))
        path = os.pathsep.join(filter(None, paths))
        quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
        environment = {**os.environ, **quiet, "PYTHONPATH": path, "OMP_NUM_THREADS": str(config["threads"])}
        environment |= config.pop("environment", {})
        self.name = config["runtime"]
        self.process = subprocess.Popen(
            [sys.executable, *SAFE_PATH, "-m", "latency.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.cost: dict[str, float] = self.ask(config)

    def ask(self, question: dict[str, Any]) -> Any:
        """The process's answer.

        Raises:
            WorkerError: if the process ended.
        """
        try:
            print(json.dumps(question), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.close()
            raise WorkerError(f"{self.name} ended with status {self.process.returncode}")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate()


def takes_part(round_index: int, rounds: int, repeats: int) -> bool:
    """Whether one that runs `repeats` times in `rounds` rounds runs in this one; spread evenly."""
    return (round_index + 1) * repeats // rounds > round_index * repeats // rounds


def planned_repeats(estimate: float, repeats: int, seconds: float) -> int:
    """How often something that takes `estimate` seconds is timed, if it may take `seconds` in all."""
    if estimate > seconds:
        return 1
    return min(repeats, max(LEAST_REPEATS, int(seconds / estimate)))


def plan(
    workers: list[Worker], shapes: dict[str, Any], repeats: int, seconds: float
) -> tuple[dict[tuple[str, str], int], dict[tuple[str, str], float]]:
    """(runtime, shape) -> how often to time it, after calls that prepare; and the seconds of a batch of the first call
    of all, which compiles or calibrates where a runtime does."""
    planned, first = {}, {}
    for worker in workers:
        for shape, batches in shapes.items():
            taken = worker.ask({"time": shape})
            first[worker.name, shape] = taken["after_pause_seconds"]
            planned[worker.name, shape] = planned_repeats(taken["seconds"] * len(batches), repeats, seconds)
    return planned, first


def run_rounds(
    workers: list[Worker], planned: dict[tuple[str, str], int]
) -> dict[tuple[str, str], list[dict[str, float]]]:
    """(runtime, shape) -> the worker's answers about a batch, one per round that it took part in."""
    times: dict[tuple[str, str], list[dict[str, float]]] = {cell: [] for cell in planned}
    rounds = max(planned.values(), default=0)
    by_name = {worker.name: worker for worker in workers}
    for index in range(rounds):
        cells = [cell for cell, repeats in planned.items() if takes_part(index, rounds, repeats)]
        cells.sort(key=lambda cell: cell[1])  # shape by shape; within a shape the order of the workers
        for runtime, shape in cells if index % 2 == 0 else reversed(cells):
            times[runtime, shape].append(by_name[runtime].ask({"time": shape}))
    return times
