"""Billions of multiply-adds a second of the native operator's products, and of PyTorch's integer product.

Each cell is the product of one packed weight and float32 activations, their quantization and the scaling of the sums
included; `int_mm` is `torch._int_mm` of int8 matrices alone. All ways take turns, round after round; a cell is the
median of its rounds. Layouts: bytes, pairs (2 bits a code), nibbles (looked up by fours), sextets (by sixes).

    python benchmarks/products.py --output_file benchmarks/results/products.json
"""

import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers import HfArgumentParser

from hf_xtc.files.writing import write_json
from hf_xtc.native import encoder as native
from hf_xtc.native.library import variants
from hf_xtc.quantization.packing import pack_weight
from hf_xtc.quantization.quantizers import get_quantizer
from hf_xtc.quantization.specs import QuantSpec
from machine import cpu_flags, facts

LAYOUTS = {"bytes": native.BYTES, "pairs": native.PAIRS, "nibbles": native.NIBBLES, "sextets": native.SEXTETS}
# Layouts that are expanded before they are multiplied are left out, as is the portable variant.
WAYS = {
    "binary": {"avx512_vbmi": ("sextets",), "avx512_vnni": ("nibbles", "bytes"), "avx2": ("nibbles", "bytes")},
    "ternary": {"avx512_vnni": ("pairs", "bytes"), "avx2": ("pairs", "bytes")},
}
WEIGHTS = {"384": (384, 384), "1536 x 384": (1536, 384), "768": (768, 768), "3072 x 768": (3072, 768)}
WEIGHTS["768 x 3072"] = (768, 3072)


@dataclass
class ProductArguments:
    """What to measure."""

    tokens: list[int] = field(default_factory=lambda: [16, 128, 1024], metadata={"help": "Rows of activations."})
    threads: int = field(default=1, metadata={"help": "Threads of PyTorch and of the operator."})
    rounds: int = field(default=9, metadata={"help": "Timed calls of each way, in turn."})
    seconds: float = field(default=0.02, metadata={"help": "Least time of a timed call; short products are repeated."})
    seed: int = field(default=0, metadata={"help": "Of weights and activations."})
    output_file: str | None = field(default=None, metadata={"help": "JSON file for the results."})


def ways(rows: int, columns: int, tokens: int) -> dict[str, Callable[[], object]]:
    """Name of a way to multiply -> the product."""
    x, found = torch.randn(tokens, columns), {}
    for quantizer, by_variant in WAYS.items():
        weight, levels = pack_weight(torch.randn(rows, columns), QuantSpec(quantizer)), get_quantizer(quantizer).levels
        codes = native.Codes(weight.packed, weight.scale, None, columns, levels)
        for variant, layouts in by_variant.items():
            for layout in layouts if variant in variants() else ():
                laid_out = native.NativeWeight([codes], LAYOUTS[layout])

                def multiply(laid_out: native.NativeWeight = laid_out, variant: str = variant) -> None:
                    os.environ["XTC_NATIVE"] = variant
                    laid_out.linear(x)

                found[f"{quantizer}, {variant} {layout}"] = multiply
    a = torch.randint(-128, 128, (tokens, columns), dtype=torch.int8)
    b = torch.randint(-1, 2, (rows, columns), dtype=torch.int8).t()
    found["int_mm"] = lambda: torch._int_mm(a, b)
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


def main() -> None:
    (args,) = HfArgumentParser(ProductArguments).parse_args_into_dataclasses()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    cells = {}
    for name, (rows, columns) in WEIGHTS.items():
        for tokens in args.tokens:
            cell = f"{name}, {tokens} tokens"
            cells[cell] = rates(ways(rows, columns, tokens), rows * columns * tokens, args)
            print(cell, json.dumps(cells[cell]), flush=True)
    if args.output_file:
        write_json(args.output_file, {**facts(args.threads, "hf_xtc", "torch"), "flags": cpu_flags(), "cells": cells})


if __name__ == "__main__":
    main()
