"""Runs `hf-xtc compress` on a disk that is too small, enlarges it step by step, and compares the results.

    python tests/stress/full_disk.py --step_kb 32

The run is on a small tmpfs (needs the permission to mount). Each time it stops for lack of space, it must give one
message with the path and the free bytes, and exit status 1; nothing half-written may be left, and what was saved
before must stay. Then the disk grows by a step and the same command resumes. At the end, everything published equals
that of a run with enough space byte for byte. `--limit_kb` works without a mount: it limits the size of each file.
"""

import json
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from hf_xtc.files.writing import last_checkpoint
from intact import check, differences, leftovers, published
from kills import Undisturbed, undisturbed
from tiny_run import about, command, start, tell

REFUSAL = re.compile(
    r"^hf-xtc: (Could not (write|lock) .+ \([\d,]+ bytes are free\)\..*"
    r"|The teacher cache needs \d+ more bytes in \S+, and \d+ are free\..*)$"
)


@dataclass
class DiskArguments:
    """How small the disk is, and how it grows."""

    first_kb: int = field(default=16, metadata={"help": "Kilobytes of the disk at first."})
    step_kb: int = field(default=32, metadata={"help": "Kilobytes by which it grows each time."})
    limit_kb: list[int] = field(
        default_factory=list, metadata={"help": "Instead: limits of the size of a file, one after the other."}
    )
    output_file: str | None = field(default=None, metadata={"help": "JSON of what was found."})


@dataclass
class Failures:
    """How often the run stopped for lack of space, and what was wrong then."""

    places: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[None]:
    """A tmpfs with this many kilobytes."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def attempt(truth: Undisturbed, place: Path, found: Failures, before: Callable[[], Any] = bool) -> bool:
    """Runs until the end or until space is lacking; true if it finished."""
    kept = _checkpoints(place)
    run = start(command(truth.inputs, place), truth.inputs / "disk.log", before=before)
    code, phase = run.wait(), run.phase
    if code == 0:
        return True
    said = [line for line in run.log.read_text().splitlines() if line.startswith("hf-xtc: ")]
    if code != 1 or len(said) != 1 or not REFUSAL.match(said[0]):
        found.faults.append(f"{phase}, exit status {code}: {said or run.log.read_text()[-1500:]}")
    found.places[phase] += 1
    found.messages += said
    found.faults += [f"{phase}: {fault}" for fault in check(place, truth.files, truth.logits)]
    lost = kept - _checkpoints(place, every=True)
    found.faults += [f"{phase}: {path} is lost" for path in lost if not _superseded(place / path)]
    found.faults += [f"{phase}: {path} was left" for path in leftovers(place)]
    return False


def _checkpoints(place: Path, *, every: bool = False) -> set[str]:
    """The last complete checkpoint of each stage, or all of them."""
    folders = list((place / "student" / "training").glob("*"))
    if every:
        return {str(path.relative_to(place)) for folder in folders for path in folder.glob("checkpoint-*")}
    found = [Path(last) for folder in folders if (last := last_checkpoint(folder)) is not None]
    return {str(path.relative_to(place)) for path in found}


def _superseded(checkpoint: Path) -> bool:
    return (last := last_checkpoint(checkpoint.parent)) is not None and last > str(checkpoint)


def compare(truth: Undisturbed, place: Path, found: Failures) -> None:
    """Compares the finished run with the undisturbed one."""
    found.faults += differences(published(place / "student"), truth.files)
    found.faults += [f"{path} was left" for path in leftovers(place)]


def fill(truth: Undisturbed, first: int, step: int) -> tuple[Failures, int]:
    """Runs on a disk that grows from `first` by `step` kilobytes; also returns the size that was enough."""
    found, place, size = Failures(), truth.inputs / "disk", first
    with small_disk(place, size):
        while not attempt(truth, place, found) and not found.faults:
            size += step
            subprocess.run(["mount", "-o", f"remount,size={size}k", str(place)], check=True)
        if not found.faults:
            compare(truth, place, found)
    return found, size


def limit(truth: Undisturbed, limits: list[int]) -> Failures:
    """Runs with a limit of this many kilobytes for each file, then without limit."""
    found, place = Failures(), truth.inputs / "limited"
    place.mkdir()
    for kilobytes in limits:
        bound = (kilobytes * 1024, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
        if attempt(truth, place, found, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, bound)):  # noqa: B023
            found.faults.append(f"nothing was larger than {kilobytes} kB")
    if not attempt(truth, place, found):
        found.faults.append("stopped without a limit")
    compare(truth, place, found)
    shutil.rmtree(place)
    return found


def main() -> int:
    """Runs everything; returns 1 if something was wrong."""
    (args,) = HfArgumentParser(DiskArguments, prog="full_disk.py").parse_args_into_dataclasses()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        truth = undisturbed(Path(folder))
        if args.limit_kb:
            found, size = limit(truth, args.limit_kb), None
        else:
            found, size = fill(truth, args.first_kb, args.step_kb)
        root = str(Path(__file__).parents[2])
        messages = [message.replace(folder, "...").replace(root, "...") for message in found.messages]
    result = {
        **about(),
        "stops": found.places.total(),
        "stops_by_phase": {phase: found.places[phase] for phase in sorted(found.places)},
        "kilobytes_that_were_enough": size,
        "faults": found.faults,
        "messages": messages,
        "seconds": round(time.monotonic() - began, 1),
    }
    tell(result, args.output_file)
    print(json.dumps(result))
    return 1 if found.faults else 0


if __name__ == "__main__":
    sys.exit(main())
