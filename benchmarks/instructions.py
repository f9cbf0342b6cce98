"""Instructions per multiply-add of the native operator's products, counted under emulation.

For processors that are not at hand: a count is no time, but exact, and the same on every machine. The operator is
compiled for x86-64 and for 64-bit ARM, linked to `tests/native/driver.cpp`, and run by QEMU with a plugin that counts
(`benchmarks/count.c`). A cell is one linear on one thread: quantization of the activations, tables of lookups and the
scaling of the sums are in it; it is the difference of a run with two calls and a run with one, over the multiply-adds.
QEMU has no AVX512.

    python benchmarks/instructions.py --output_file benchmarks/results/instructions.json

Needs g++, g++-aarch64-linux-gnu and qemu-user (Debian).
"""

import json
import re
import runpy
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
import torch
from transformers import HfArgumentParser

from hf_xtc.files.writing import write_json
from hf_xtc.native import encoder as native
from hf_xtc.quantization.packing import pack_weight
from hf_xtc.quantization.quantizers import get_quantizer
from hf_xtc.quantization.specs import QuantSpec

ROOT = Path(__file__).resolve().parents[1]
MACHINES = {"x86_64": "g++", "aarch64": "aarch64-linux-gnu-g++"}
VARIANTS = {
    "avx2": "x86_64",
    "neon": "aarch64",
    "neon_dotprod": "aarch64",
    "neon_i8mm": "aarch64",
    "portable": "x86_64",
}
LAYOUTS = {"bytes": native.BYTES, "pairs": native.PAIRS, "nibbles": native.NIBBLES}
CODES = {"binary": ("nibbles", "bytes"), "ternary": ("pairs", "bytes")}
WEIGHTS = {"768": (768, 768), "3072 x 768": (3072, 768), "768 x 3072": (768, 3072)}


@dataclass
class InstructionArguments:
    """What to count."""

    tokens: list[int] = field(default_factory=lambda: [1, 16, 128], metadata={"help": "Rows of activations."})
    seed: int = field(default=0, metadata={"help": "Of weights and activations."})
    output_file: str | None = field(default=None, metadata={"help": "JSON file for the results."})


def flags() -> list[str]:
    """The compiler's flags, as setup.py has them."""
    with mock.patch("setuptools.setup"):
        found: list[str] = runpy.run_path(str(ROOT / "setup.py"))["FLAGS"]
    return found


def build(folder: Path) -> dict[str, list[str]]:
    """Machine -> the command that runs the driver and counts."""
    plugin, source = folder / "count.so", ROOT / "hf_xtc" / "native" / "csrc"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", plugin, ROOT / "benchmarks" / "count.c"], check=True)
    sources = [ROOT / "tests" / "native" / "driver.cpp", *sorted(source.glob("*.cpp"))]
    commands = {}
    for machine, compiler in MACHINES.items():
        program = str(folder / machine)
        subprocess.run([compiler, *flags(), "-w", "-static", f"-I{source}", "-o", program, *sources], check=True)
        commands[machine] = [f"qemu-{machine}", "-cpu", "max", "-plugin", str(plugin), program]
    return commands


def write_case(quantizer: str, layout: int, rows: int, columns: int, tokens: int, path: Path) -> None:
    """One linear, as the driver reads it."""
    weight = pack_weight(torch.randn(rows, columns), QuantSpec(quantizer))
    levels, x = get_quantizer(quantizer).levels, torch.randn(tokens, columns)
    numbers = np.array([1, 0, layout, levels, rows, columns, weight.packed.numel()])
    arrays = [numbers, weight.packed, weight.scale.float().flatten().expand(rows), torch.zeros(rows)]
    path.write_bytes(b"".join(np.ascontiguousarray(part).tobytes() for part in [*arrays, np.array([tokens]), x]))


def count(command: list[str], variant: str, case: Path, calls: int) -> int:
    """Instructions of a whole run."""
    arguments = [f"{variant}:{calls}", str(case), str(case.with_suffix(".out"))]
    found = subprocess.run([*command, *arguments], check=True, capture_output=True, text=True)
    (number,) = re.findall(r"^instructions: (\d+)$", found.stderr, re.M)
    return int(number)


def main() -> None:
    (args,) = HfArgumentParser(InstructionArguments).parse_args_into_dataclasses()
    torch.manual_seed(args.seed)
    cells: dict[str, dict[str, float]] = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        commands, case = build(folder), folder / "case"
        for weight, (rows, columns) in WEIGHTS.items():
            for tokens in args.tokens:
                cell = cells[f"{weight}, {tokens} tokens"] = {}
                for quantizer, layouts in CODES.items():
                    for layout in layouts:
                        write_case(quantizer, LAYOUTS[layout], rows, columns, tokens, case)
                        for variant, machine in VARIANTS.items():
                            once, twice = (count(commands[machine], variant, case, calls) for calls in (1, 2))
                            rate = (twice - once) / (rows * columns * tokens)
                            cell[f"{quantizer}, {variant} {layout}"] = round(rate, 4)
                print(f"{weight}, {tokens} tokens", json.dumps(cell), flush=True)
    if args.output_file:
        versions = {
            tool: subprocess.run([tool, "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[
                0
            ]
            for tool in (*MACHINES.values(), "qemu-aarch64")
        }
        command = f"python benchmarks/instructions.py --output_file {args.output_file}"
        facts = {"command": command, "date": time.strftime("%Y-%m-%d"), "versions": versions}
        write_json(args.output_file, {**facts, "unit": "instructions per multiply-add", "cells": cells})


if __name__ == "__main__":
    main()
