"""Billions of multiply-adds a second of the native operator's products, and of PyTorch's integer product.

Each cell is the product of one packed weight and float32 activations, their quantization and the scaling of the sums
included; `int_mm` is `torch._int_mm` of int8 matrices alone. As in a model, other weights are used before one comes
round again: those of a few layers, which for wide layers are more than the caches hold. All ways take turns, round
after round; a cell is the median of its rounds. Layouts: bytes, pairs (2 bits a code), nibbles (looked up by fours),
sextets (by sixes).

At the end it says how far the layouts that `auto` chooses are behind the best of the same cell, at worst. A layout is
made once for all numbers of tokens, so another may be the best for some: "single" is how far the single layout that is
the best for each shape is behind, at worst.

    python benchmarks/products.py --output_file benchmarks/results/products.json
"""

import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from transformers import HfArgumentParser

from hf_xtc.backends.calibration import processor
from hf_xtc.backends.layouts import NAMES, candidates, fastest_layout
from hf_xtc.files.writing import write_json
from hf_xtc.native import encoder as native
from hf_xtc.native.library import variants
from hf_xtc.quantization.packing import pack_weight
from hf_xtc.quantization.quantizers import get_quantizer
from hf_xtc.quantization.specs import QuantSpec
from machine import cpu_flags, facts

# The portable variant is left out: it has one layout.
VARIANTS = ("avx512_vbmi", "avx512_vnni", "avx2")
QUANTIZERS = ("binary", "ternary")
WEIGHTS = {"384": (384, 384), "1536 x 384": (1536, 384), "768": (768, 768), "3072 x 768": (3072, 768)}
WEIGHTS["768 x 3072"] = (768, 3072)


@dataclass
class ProductArguments:
    """What to measure."""

    tokens: list[int] = field(default_factory=lambda: [8, 16, 128, 1024], metadata={"help": "Rows of activations."})
    layers: int = field(default=6, metadata={"help": "Layers of a BERT of this width whose weights are used in turn."})
    threads: int = field(default=1, metadata={"help": "Threads of PyTorch and of the operator."})
    rounds: int = field(default=9, metadata={"help": "Timed calls of each way, in turn."})
    seconds: float = field(default=0.02, metadata={"help": "Least time of a timed call; short products are repeated."})
    seed: int = field(default=0, metadata={"help": "Of weights and activations."})
    output_file: str | None = field(default=None, metadata={"help": "JSON file for the results."})


def ways(rows: int, columns: int, tokens: int, layers: int) -> dict[str, Callable[[], object]]:
    """Name of a way to multiply -> the product by the next copy of the weight."""
    x, found = torch.randn(tokens, columns), {}
    copies = range(max(1, 12 * layers * min(rows, columns) ** 2 // (rows * columns)))
    for quantizer in QUANTIZERS:
        weight, levels = pack_weight(torch.randn(rows, columns), QuantSpec(quantizer)), get_quantizer(quantizer).levels
        codes = native.Codes(weight.packed, weight.scale, None, columns, levels)
        laid_out: dict[int, list[native.NativeWeight]] = {}
        for variant in [variant for variant in VARIANTS if variant in variants()]:
            for layout in candidates(variant, quantizer):
                if layout not in laid_out:
                    laid_out[layout] = [native.NativeWeight([codes], layout) for _ in copies]
                weights = itertools.cycle(laid_out[layout])

                def multiply(weights: Iterator[native.NativeWeight] = weights, variant: str = variant) -> None:
                    os.environ["XTC_NATIVE"] = variant
                    next(weights).linear(x)

                found[f"{quantizer}, {variant} {NAMES[layout]}"] = multiply
    a = torch.randint(-128, 128, (tokens, columns), dtype=torch.int8)
    matrices = itertools.cycle([torch.randint(-1, 2, (rows, columns), dtype=torch.int8).t() for _ in copies])
    found["int_mm"] = lambda: torch._int_mm(a, next(matrices))
    return found


def rates(products: dict[str, Callable[[], object]], operations: int, args: ProductArguments) -> dict[str, float]:
    """Name -> billions of multiply-adds a second."""
    times: dict[str, list[float]] = {name: [] for name in products}
    repeats = {}
    for name, product in products.items():
        product()
        start = time.perf_counter()
        product()
        repeats[name] = max(1, round(args.seconds / (time.perf_counter() - start)))
    for _ in range(args.rounds):
        for name, product in products.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                product()
            times[name].append((time.perf_counter() - start) / repeats[name])
    return {name: round(operations / statistics.median(found) / 1e9, 1) for name, found in times.items()}


def behind(cells: dict[str, dict[str, float]]) -> dict[str, dict[str, float | str]]:
    """Quantizer and variant -> the worst cell of the layouts that `auto` chooses, the layout there, and how much
    slower it is than the variant's best layout there ("slower"); at worst, the best single layout ("single")."""
    found: dict[str, dict[str, float | str]] = {}
    for quantizer, variant in itertools.product(QUANTIZERS, [name for name in VARIANTS if name in variants()]):
        os.environ["XTC_NATIVE"] = variant
        worst, single = (0.0, "", ""), 0.0
        for shape, (rows, columns) in WEIGHTS.items():
            slower: dict[str, list[tuple[float, str, str]]] = {}
            for cell, rates in cells.items():
                if cell.rpartition(", ")[0] == shape:
                    own = {
                        layout: rates[f"{quantizer}, {variant} {NAMES[layout]}"]
                        for layout in candidates(variant, quantizer)
                    }
                    for layout, rate in own.items():
                        slower.setdefault(NAMES[layout], []).append(
                            (max(own.values()) / rate - 1, cell, NAMES[layout])
                        )
            worst = max(worst, *slower[NAMES[fastest_layout(quantizer, rows, columns)]])
            single = max(single, min(max(entries)[0] for entries in slower.values()))
        found[f"{quantizer}, {variant}"] = {
            "slower": round(worst[0], 3),
            "cell": worst[1],
            "layout": worst[2],
            "single": round(single, 3),
        }
    return found


def main() -> None:
    (args,) = HfArgumentParser(ProductArguments).parse_args_into_dataclasses()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    cells = {}
    for name, (rows, columns) in WEIGHTS.items():
        for tokens in args.tokens:
            cell = f"{name}, {tokens} tokens"
            cells[cell] = rates(ways(rows, columns, tokens, args.layers), rows * columns * tokens, args)
            print(cell, json.dumps(cells[cell]), flush=True)
    worst = behind(cells)
    for name, cell in worst.items():
        at = f", {cell['layout']} in {cell['cell']}" if cell["slower"] else ""
        print(
            f"{name}: at worst {cell['slower']:.1%} behind the best layout{at}; a single layout: {cell['single']:.1%}"
        )
    if args.output_file:
        machine = {**facts(args.threads, "hf_xtc", "torch"), "processor": processor(), "flags": cpu_flags()}
        write_json(args.output_file, {**machine, "behind": worst, "cells": cells})


if __name__ == "__main__":
    main()
