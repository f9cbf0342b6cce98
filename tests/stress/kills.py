"""Kills `hf-xtc compress` repeatedly, in every phase, and compares the results.

    python tests/stress/kills.py --kills 100 --seed 0

Each kill is SIGKILL to the whole process group, at a random moment of a phase or before a random file operation there;
the same command then resumes. After each kill, no file or folder may look complete without being so; at the end,
everything published equals that of an undisturbed run byte for byte.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from intact import check, differences, leftovers, logits, published
from tiny_run import PHASES, Watched, about, command, make_inputs, start, tell


@dataclass
class KillArguments:
    """How many kills, and where."""

    kills: int = field(default=100, metadata={"help": "Kills of forked runs, at least."})
    real_kills: int = field(default=0, metadata={"help": "Kills of `python -m hf_xtc`, at random moments."})
    seed: int = field(default=0, metadata={"help": "Of the moments."})
    output_file: str | None = field(default=None, metadata={"help": "JSON of what was found."})


@dataclass
class Findings:
    """Counts of the kills, and the faults found."""

    phases: Counter[str] = field(default_factory=Counter)
    how: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        """All kills."""
        return self.phases.total()

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "kills": self.kills,
            "kills_by_phase": {phase: self.phases[phase] for phase in PHASES if self.phases[phase]},
            "kills_by_kind": dict(self.how),
            "runs_finished_and_compared": self.runs,
            "faults": self.faults,
        }


@dataclass
class Undisturbed:
    """The undisturbed run that all others are compared with."""

    inputs: Path
    files: dict[str, bytes]
    logits: Any
    spent: dict[str, tuple[float, int]]


def undisturbed(folder: Path) -> Undisturbed:
    """Makes the inputs and runs once."""
    make_inputs(folder)
    place = folder / "undisturbed"
    place.mkdir()
    run = start(command(folder, place), folder / "undisturbed.log")
    if run.wait() != 0:
        raise SystemExit(f"The undisturbed run failed:\n{run.log.read_text()[-3000:]}")
    assert not leftovers(place)
    return Undisturbed(folder, published(place / "student"), logits(place / "student"), run.spent)


def kill_in(phase: str, place: Path, truth: Undisturbed, chance: random.Random, found: Findings) -> bool:
    """Runs until a random moment of a phase; false if the run finished before."""
    seconds, operations = truth.spent.get(phase, (0.0, 0))
    timed = operations == 0 or chance.random() < 0.5
    stop = None if timed else (phase, chance.randint(1, operations))
    run = start(command(truth.inputs, place), place.with_suffix(".log"), stop)
    outside = _kill_within(run, phase, chance.uniform(0, seconds) if timed else float("inf"))
    code = run.wait()
    if code == 0:
        return False
    if code != -signal.SIGKILL:
        found.faults.append(f"exit status {code} after kills: {run.log.read_text()[-800:]}")
        return False
    found.phases[run.phase] += 1
    found.how["at a moment" if outside else "before a file operation"] += 1
    found.faults += [f"killed in {run.phase}: {fault}" for fault in check(place, truth.files, truth.logits)]
    return True


# Phases of one rank take turns; a kill that its phase escaped falls as soon as a later rank begins.
RANKS = {"start": 0, "teacher": 1, "cache": 2, "reduced": 2, "student": 3, "packing": 4, "measuring": 5, "card": 6}


def _rank(phase: str) -> int:
    return RANKS[phase.split(":")[0]]


def _kill_within(run: Watched, phase: str, delay: float) -> bool:
    """Kills the run after this many seconds in a phase, or after the phase; false if it finished before."""
    while True:
        left = delay - run.seconds(phase)
        if _rank(run.phase) > _rank(phase) or (run.phase == phase and left <= 0):
            run.kill()
            return True
        if not run.read(left if run.phase == phase and left < 1e6 else None):
            return False


def finish(place: Path, truth: Undisturbed, found: Findings) -> None:
    """Lets the run finish, and compares it."""
    run = start(command(truth.inputs, place), place.with_suffix(".log"))
    code = run.wait()
    if code:
        found.faults.append(f"exit status {code}: {run.log.read_text()[-800:]}")
    differ = differences(published(place / "student"), truth.files)
    found.faults += [f"run {found.runs}: {what}" for what in differ]
    found.faults += [f"run {found.runs}: {name} was left" for name in leftovers(place)]
    found.runs += 1


def kill_and_compare(
    truth: Undisturbed, kills: int, seed: int, after_each: Callable[[Findings], None] = lambda _: None
) -> Findings:
    """Makes runs, each killed once in each phase, until there are enough kills."""
    chance, found, phases = random.Random(seed), Findings(), PHASES
    while found.kills < kills and not found.faults:
        place = truth.inputs / f"run-{found.runs}"
        place.mkdir()
        wanted = sorted(chance.sample(range(len(phases)), min(len(phases), kills - found.kills)))
        for phase in [phases[index] for index in wanted]:
            kill_in(phase, place, truth, chance, found)
        finish(place, truth, found)
        after_each(found)
        if not found.faults:
            shutil.rmtree(place)
    return found


def real_kills(truth: Undisturbed, kills: int, seed: int) -> dict[str, Any]:
    """The same with new processes of the real command line, which take seconds to import; the weights are compared."""
    chance, place = random.Random(seed), truth.inputs / "real"
    place.mkdir()
    words = [sys.executable, "-m", "hf_xtc", *command(truth.inputs, place)]
    began = time.monotonic()
    subprocess.run(words, check=True, capture_output=True)
    seconds, killed = time.monotonic() - began, 0
    whole = (place / "student" / "model.safetensors").read_bytes() == truth.files["model.safetensors"]
    shutil.rmtree(place)
    place.mkdir()
    while killed < kills:
        run = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        with_time = chance.uniform(0.3, 1.0) * seconds
        try:
            run.wait(with_time)
            break
        except subprocess.TimeoutExpired:
            _kill_group(run)
            killed += 1
    subprocess.run(words, check=True, capture_output=True)
    equal = (place / "student" / "model.safetensors").read_bytes() == truth.files["model.safetensors"]
    return {"kills": killed, "seconds_undisturbed": round(seconds, 1), "same_bytes": whole and equal}


def _kill_group(run: subprocess.Popen[bytes]) -> None:
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()


def main() -> int:
    """Runs everything; returns 1 if a kill left something wrong."""
    (args,) = HfArgumentParser(KillArguments, prog="kills.py").parse_args_into_dataclasses()
    with tempfile.TemporaryDirectory() as folder:
        truth = undisturbed(Path(folder))
        began = time.monotonic()

        def note(found: Findings, real: dict[str, Any] | None = None) -> None:
            """Saves the results so far, so that they are not lost with the process."""
            seconds = round(time.monotonic() - began, 1)
            result = {**about(), "seed": args.seed, **found.to_dict(), "real_command_line": real}
            tell({**result, "seconds": seconds}, args.output_file)

        found = kill_and_compare(truth, args.kills, args.seed, note)
        if args.real_kills and not found.faults:
            note(found, real_kills(truth, args.real_kills, args.seed))
    print(json.dumps(found.to_dict()))
    return 1 if found.faults else 0


if __name__ == "__main__":
    sys.exit(main())
