"""Runs: the results file that stores them by key, their scores, and the process that makes one."""

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from machine import cpu_model
from reference.scores import main_score, rank

BENCHMARKS = Path(__file__).parent.parent
REPOSITORY = BENCHMARKS.parent
SIDES = ("ours", "deepspeed")
Record = dict[str, Any]


class Results:
    """The finished runs of a JSONL file, one per line, by their keys.

    An incomplete line of a killed process is ignored, so its run is made again.
    """

    def __init__(self, file: Path):
        self.file = file
        self.records: list[Record] = []
        if file.exists():
            for line in file.read_text().splitlines():
                try:
                    self.records.append(json.loads(line))
                except json.JSONDecodeError:
                    continue

    def find(self, key: dict[str, Any]) -> Record | None:
        """The latest run with the key; `None` if there is none."""
        return next((record for record in reversed(self.records) if record["key"] == key), None)

    def add(self, record: Record) -> None:
        """Appends a run to the file, on a new line even if the last one is incomplete."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        before = self.file.read_text() if self.file.exists() else ""
        with self.file.open("a") as stream:
            stream.write(("" if before.endswith("\n") or not before else "\n") + json.dumps(record) + "\n")
        self.records.append(record)


def selection_score(record: Record) -> float:
    """The main score on the selection rows of the run's chosen weights."""
    return float(record["selected"]["selection"][main_score(record["key"]["task"])])


def dev_score(record: Record) -> float:
    """The main score on dev of the model that the run wrote."""
    return float(record["dev"][main_score(record["key"]["task"])])


def best_rate(records: Iterable[Record]) -> float:
    """The learning rate of the run with the highest score on the selection rows; the first if several are equal."""
    best = max(records, key=lambda record: rank(selection_score(record)))
    return float(best["key"]["learning_rate"])


def shown_command(arguments: list[str]) -> str:
    """The command for the record; paths outside the working folder are shortened to their last part."""
    return shlex.join(["python", "benchmarks/accuracy.py", *map(_shortened, arguments)])


def _shortened(argument: str) -> str:
    name, sign, value = argument.rpartition("=")
    return f"{name}{sign}.../{Path(value).name}" if value.startswith(("/", "~")) else argument


def launch(side: str, python: str, config: dict[str, Any]) -> Record:
    """Makes one run in a new process, with the worker of its side; returns its record.

    Args:
        side (`str`): "ours" or "deepspeed".
        python (`str`): The interpreter of its environment.
        config (`dict`): The worker's config, without its files.

    Raises:
        RuntimeError: if the process fails; its output is on stderr.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "model").mkdir()
        files = {"folder": str(folder / "model"), "record_file": str(folder / "record.json")}
        (folder / "config.json").write_text(json.dumps({**config, **files}))
        command = [python, "-P", "-m", f"reference.{side}_worker", str(folder / "config.json")]
        status = subprocess.run(command, env=_environment(side, config["threads"]), stdout=sys.stderr).returncode
        if status:
            run = f"{side}, {config['task']}, seed {config['seed']}"
            raise RuntimeError(f"The run {run} ended with status {status}. See its output on stderr.")
        record: Record = json.loads((folder / "record.json").read_text())
    return {**record, "date": time.strftime("%Y-%m-%d"), "cpu": cpu_model()}


def _environment(side: str, threads: int) -> dict[str, str]:
    # Only our side may import hf_xtc.
    paths = [str(BENCHMARKS)] + ([str(REPOSITORY)] if side == "ours" else [])
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    fixed = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(threads), "DS_ACCELERATOR": "cpu"}
    return {**os.environ, **quiet, **fixed}
