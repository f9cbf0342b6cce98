"""Feeds damaged and hostile files to everything of hf_xtc that reads files, and reports the outcomes.

Each input depends only on the seed, its kind and its number: `--kinds packed --first 17 --count 1` repeats one. It
must either load, giving finite values of the right shape, or be refused with one `XTCError` or an error that a
library's loader raises by design; within 5 seconds of CPU, with less than twice the memory of the undamaged files, and
without creating a file, a process or a connection or running code. Inputs run in a child process, which is replaced if
it dies.
"""

import json
import logging
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
# How 20,000 inputs are shared out: by what a kind can hold, and what an input of it costs.
SHARES = {
    "packed": 3000,
    "adapter": 300,
    "teacher cache": 4500,
    "deepspeed": 5200,
    "recipe": 3800,
    "recipe text": 3200,
}
SECONDS, HANG, TIMES = 5.0, 60.0, 2.0
HUNG, CRASHED = "a hang", "a crash"
FORK = multiprocessing.get_context("fork")
# Memory that a child may take beyond what it has after the good files: a net, far above the limit that is measured.
NET = 2**31
FORBIDDEN = (
    *("subprocess.Popen", "os.system", "os.exec", "os.fork", "socket.connect", "pickle.find_class"),
    *("os.mkdir", "os.rename", "os.remove", "os.symlink", "shutil.rmtree"),
)


@dataclass
class FuzzArguments:
    """What to run."""

    kinds: list[str] = field(default_factory=lambda: list(SHARES), metadata={"help": "Some of them, by name."})
    count: int = field(default=20_000, metadata={"help": "Inputs in all; of one kind alone, if one is named."})
    first: int = field(default=0, metadata={"help": "Number of the first input of each kind."})
    seed: int = field(default=0, metadata={"help": "Of all damage."})
    output: str | None = field(default=None, metadata={"help": "JSON file for the results."})


@dataclass
class Case:
    """The result of one input: its outcome, CPU and wall seconds, peak bytes, and the requirement it broke, if any.

    The peak is that of a process that has only loaded the undamaged files before.
    """

    kind: str
    number: int
    damage: str
    outcome: str = ""
    broken: str = ""
    cpu: float = 0.0
    wall: float = 0.0
    peak: int = 0


class Watch:
    """Records audit events while an input is loaded; Python cannot remove an audit hook."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.seen: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        code = event == "exec" and getattr(args[0], "co_filename", "").startswith((self.folder, "<string>"))
        written = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if event in FORBIDDEN or code or written:
            self.seen.append(f"{event} {args!r:.200}")


def status(key: str) -> int:
    """Bytes of this process, by the key of `/proc`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def measured(target: Any, folder: Path, case: Case, watch: Watch, expected: tuple[Any, ...]) -> None:
    """Loads one input and fills in its case."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    resident = status("VmRSS")
    cpu, wall, watch.folder = time.process_time(), time.perf_counter(), str(folder)
    try:
        case.outcome = target.load(folder)
    except (*expected, OSError, *target.standard) as error:
        case.outcome = type(error).__name__
    except BaseException as error:
        frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        ours = any(Path(name).is_relative_to(ROOT / "hf_xtc") for name in frames)
        case.outcome = f"{type(error).__name__} of {Path(frames[-1]).name}"
        if ours or not isinstance(error, target.foreign):
            case.broken = f"{case.outcome}: {str(error)[:300]}"
    watch.folder = None
    case.cpu, case.wall = time.process_time() - cpu, time.perf_counter() - wall
    case.peak += status("VmHWM") - resident


def tell(case: Case, log: Path) -> None:
    """Adds a case to the log; one that broke a requirement is also printed when it is finished."""
    line = json.dumps(vars(case)) + "\n"
    with open(log, "a", encoding="utf-8") as content:
        content.write(line)
    if case.broken:
        print(line, end="", flush=True)


def work(kind: str, seed: int, numbers: range, log: Path) -> None:
    """Runs inputs in this process; reports the undamaged file's case, then each input's before and after loading."""
    from transformers.utils.logging import disable_progress_bar

    from targets import EXPECTED, TARGETS

    logging.disable()
    disable_progress_bar()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        scratch, watch = Path(name), Watch()
        os.chdir(scratch)
        (scratch / "good").mkdir()
        target = TARGETS[kind](scratch / "good")
        for good in target.good * 2:  # the second time nothing is imported any more
            base = Case(kind, -1, "none", peak=status("VmRSS"))
            target.write(good, scratch / "case" / "files")
            measured(target, scratch / "case" / "files", base, watch, ())
            shutil.rmtree(scratch / "case")
        watch.seen.clear()
        tell(base, log)
        resident = status("VmRSS")
        resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + NET,) * 2)
        for number in numbers:
            folder = scratch / "case" / "files"
            folder.mkdir(parents=True)
            case = Case(kind, number, target.damage(random.Random(f"{seed} {kind} {number}"), folder), peak=resident)
            tell(case, log)
            measured(target, folder, case, watch, EXPECTED)
            case.broken = case.broken or judged(case, base, watch, scratch, target.readers)
            watch.seen.clear()
            tell(case, log)
            shutil.rmtree(scratch / "case")


def judged(case: Case, base: Case, watch: Watch, scratch: Path, readers: int) -> str:
    """The requirements that an input broke, although it was loaded or refused."""
    if watch.seen:
        return watch.seen[0]
    if sorted(path.name for path in scratch.iterdir()) != ["case", "good"]:
        return f"files {sorted(path.name for path in scratch.iterdir())}"
    if case.cpu > SECONDS * readers:
        return f"{case.cpu:.1f} seconds"
    return f"{case.peak} bytes, {base.peak} of good files" if case.peak > TIMES * base.peak else ""


def run_kind(kind: str, seed: int, numbers: range) -> tuple[Case, list[Case]]:
    """Runs all inputs of a kind, in as many processes as needed; returns the undamaged file's case, and theirs."""
    cases: list[Case] = []
    with tempfile.TemporaryDirectory() as name:
        log = Path(name) / "log"
        while True:
            log.touch()
            child = FORK.Process(target=work, args=(kind, seed, numbers[len(cases) :], log), daemon=True)
            child.start()
            outcome = HUNG if hangs(child, log) else CRASHED
            base, *told = (Case(**json.loads(line)) for line in log.read_text().splitlines())
            log.unlink()
            if base.broken:
                raise SystemExit(f"The good files of {kind} do not load: {base.broken}")
            if len(told) % 2:  # told before and after: the last one ended its process
                told += [replace(told[-1], outcome=outcome, broken=outcome)]
            cases += told[1::2]
            if len(cases) >= len(numbers):
                return base, cases


def hangs(child: Any, log: Path) -> bool:
    """Waits for a process; kills it, and reports that, if its log has not grown for too long."""
    size, since = -1, time.monotonic()
    while child.is_alive():
        child.join(1.0)
        if log.stat().st_size != size:
            size, since = log.stat().st_size, time.monotonic()
        elif time.monotonic() - since > HANG:
            child.kill()
            child.join()
            return True
    return False


def summary(base: Case, cases: list[Case]) -> dict[str, Any]:
    """Counts by outcome and by damage, the costliest inputs, and those that broke a requirement."""
    slowest, largest = max(cases, key=lambda case: case.cpu), max(cases, key=lambda case: case.peak)
    return {
        "inputs": len(cases),
        "outcomes": dict(Counter(case.outcome for case in cases).most_common()),
        "damage": dict(Counter(case.damage for case in cases).most_common()),
        "good_cpu_seconds": round(base.cpu, 3),
        "good_peak_bytes": base.peak,
        "slowest_cpu_seconds": round(slowest.cpu, 3),
        "slowest": f"{slowest.number} ({slowest.damage})",
        "longest_wall_seconds": round(max(case.wall for case in cases), 3),
        "largest_peak_bytes": largest.peak,
        "largest_peak_of_good": round(largest.peak / base.peak, 3),
        "largest": f"{largest.number} ({largest.damage})",
        "broken": sum(bool(case.broken) for case in cases),
        "broken_cases": [vars(case) for case in cases if case.broken],
    }


def main() -> None:
    from transformers import HfArgumentParser

    import targets  # noqa: F401 (here once, rather than in each child)
    from machine import facts

    (options,) = HfArgumentParser(FuzzArguments, description=__doc__).parse_args_into_dataclasses()
    if unknown := set(options.kinds) - set(SHARES):
        raise SystemExit(f"There is no kind {', '.join(sorted(unknown))}; there are: {', '.join(SHARES)}.")
    whole, kinds = sum(SHARES[kind] for kind in options.kinds), {}
    made = facts(1, "torch", "transformers", "safetensors", "peft", "numpy")
    made["command"] = " ".join(["python", "tests/stress/fuzz.py", *sys.argv[1:]])
    for kind in options.kinds:
        numbers = range(options.first, options.first + max(1, options.count * SHARES[kind] // whole))
        kinds[kind] = summary(*run_kind(kind, options.seed, numbers))
        print(json.dumps({kind: kinds[kind]["outcomes"]}), flush=True)
        totals = {key: sum(entry[key] for entry in kinds.values()) for key in ("inputs", "broken")}
        if options.output is not None:
            text = json.dumps({"seed": options.seed, **made, **totals, "kinds": kinds}, indent=2)
            Path(options.output).write_text(text + "\n", encoding="utf-8")
    print(f"{totals['inputs']} inputs, {totals['broken']} broke a promise")
    sys.exit(bool(totals["broken"]))


if __name__ == "__main__":
    main()
