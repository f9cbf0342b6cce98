"""Runs the native operator under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer (GCC, Linux).

Writes what was run and its outcome to --output_file; exits with 1 at the first report of a sanitizer.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import hypothesis
import torch

import hf_xtc
from hf_xtc.files.writing import write_text
from hf_xtc.native.library import LIBRARY

PACKAGE = Path(hf_xtc.__file__).parent
SOURCES = PACKAGE / "native" / "csrc"
HERE = Path(__file__).parent
FLAGS = ["-std=c++17", "-O1", "-g", "-fno-omit-frame-pointer", "-fno-math-errno", "-fno-trapping-math"]
FLAGS += ["-ffp-contract=off", "-w"]


def gcc(*arguments: object) -> str:
    return subprocess.run(["g++", *map(str, arguments)], check=True, capture_output=True, text=True).stdout.strip()


def copy_of_package(folder: Path) -> Path:
    """A copy of the package whose native operator reports memory errors and undefined behaviour."""
    package = folder / "hf_xtc"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("_native*", "__pycache__"))
    options = [*FLAGS, "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fPIC", "-shared"]
    gcc(*options, "-o", package / "native" / LIBRARY, *sorted(SOURCES.glob("*.cpp")))
    return folder


def memory(folder: Path, calls: int, seed: int) -> str:
    """Random calls in a process that has the sanitizers' runtime; returns what it counted."""
    preload = " ".join(gcc(f"-print-file-name=lib{name}.so") for name in ("asan", "ubsan"))
    settings = {
        "PYTHONPATH": str(copy_of_package(folder)),
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": "detect_leaks=0",  # Python and PyTorch keep memory until the end
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
    }
    command = [sys.executable, HERE / "operator_calls.py", "--calls", calls, "--seed", seed]
    return run(command, settings)


def races(folder: Path, rounds: int) -> str:
    """The operator on threads that ThreadSanitizer sees; returns what each variant did."""
    program = folder / "races"
    gcc(
        *FLAGS,
        "-fsanitize=thread",
        f"-I{SOURCES}",
        "-o",
        program,
        HERE / "races.cpp",
        *SOURCES.glob("*.cpp"),
        "-lpthread",
    )
    return run([program, rounds], {"TSAN_OPTIONS": "halt_on_error=1"})


def run(command: list[object], settings: dict[str, str]) -> str:
    done = subprocess.run([*map(str, command)], env={**os.environ, **settings}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout[-2000:]}{done.stderr[:8000]}\nexit status {done.returncode}")
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=20000, help="Examples of hypothesis; some make several calls.")
    parser.add_argument("--rounds", type=int, default=100, help="Rounds of each of three callers, in each variant.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_file", type=Path)
    args = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "examples": args.calls,
            "seed": args.seed,
            "memory": memory(Path(folder), args.calls, args.seed),
            "races": races(Path(folder), args.rounds).splitlines(),
            "seconds": round(time.monotonic() - start),
            "machine": platform.machine(),
            "versions": {
                "gcc": gcc("-dumpfullversion"),
                "torch": torch.__version__,
                "hypothesis": hypothesis.__version__,
            },
        }
    text = json.dumps(found, indent=2) + "\n"
    print(text, end="")
    if args.output_file:
        write_text(args.output_file, text)


if __name__ == "__main__":
    main()
