"""Where the time of a packed classifier goes: products, the rest of the native call, Python.

Medians of rounds in which all parts take turns. "Products" are the layers' linears through the native operator, the
quantizing of their inputs and the scaling of their sums included; the rest of the call is embeddings, attention, GELU,
LayerNorm, pooler and head; Python is the model's forward less the call. `int_mm` is the time that PyTorch's integer
product takes for the same products alone, of int8 matrices that are there already.

    python benchmarks/split.py --output_file benchmarks/results/split.json
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from transformers import HfArgumentParser

from hf_xtc import XTCRecipe, compress, pack_model
from hf_xtc.backends.layouts import fastest_layout
from hf_xtc.files.writing import write_json
from hf_xtc.native import arrays
from hf_xtc.native import encoder as native
from hf_xtc.native.library import variant
from hf_xtc.quantization.quantizers import get_quantizer
from latency.models import build, vocab_size
from latency.shapes import FIXED
from machine import cpu_flags, facts


@dataclass
class SplitArguments:
    """What to measure."""

    models: list[str] = field(default_factory=lambda: ["bert-base-5", "minilm-6"])
    shapes: list[str] = field(default_factory=lambda: ["1x16", "1x128", "8x32"], metadata={"help": "Rows x tokens."})
    weights: str = field(default="binary", metadata={"help": "Quantizer of the linears."})
    threads: int = field(default=2, metadata={"help": "Threads of PyTorch and of the operator."})
    rounds: int = field(default=31, metadata={"help": "Timed calls of each part."})
    seed: int = field(default=0, metadata={"help": "Of weights and tokens."})
    output_file: str | None = field(default=None, metadata={"help": "JSON file for the results."})


class Calls:
    """The seconds spent in the native operator since the last reset."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._call: Any = arrays.call

    def __call__(self, *arguments: Any, threads: int) -> int:
        began = time.perf_counter()
        status = self._call(*arguments, threads=threads)
        self.seconds += time.perf_counter() - began
        return status


def products(model: Any, tokens: int, weights: str) -> list[Callable[[], object]]:
    """The products of all layers: q, k and v as one, as in the native encoder."""
    made, levels = [], get_quantizer(weights).levels
    for layer in model.bert.encoder.layer:
        own = layer.attention.self
        groups = [[own.query, own.key, own.value], [layer.attention.output.dense]]
        for group in [*groups, [layer.intermediate.dense], [layer.output.dense]]:
            codes = [native.Codes(m.weight_packed, m.weight_scale, m.bias, m.columns, levels) for m in group]
            rows, columns = sum(len(code.packed) for code in codes), group[0].columns
            weight = native.NativeWeight(codes, fastest_layout(weights, rows, columns))
            x = torch.randn(tokens, columns)
            made.append(lambda weight=weight, x=x: weight.linear(x))
    return made


def int_products(model: Any, tokens: int) -> list[Callable[[], object]]:
    """The same products of int8 matrices by PyTorch."""
    made = []
    for layer in model.bert.encoder.layer:
        hidden, inner = layer.attention.output.dense.columns, layer.output.dense.columns
        for rows, columns in ((3 * hidden, hidden), (hidden, hidden), (inner, hidden), (hidden, inner)):
            a = torch.randint(-128, 128, (max(tokens, 17), columns), dtype=torch.int8)
            b = torch.randint(-1, 2, (rows, columns), dtype=torch.int8).t()
            made.append(lambda a=a, b=b: torch._int_mm(a, b))
    return made


def timed(calls: list[Callable[[], object]]) -> float:
    """Seconds of all calls, one after the other, after an untimed round."""
    for call in calls:
        call()
    began = time.perf_counter()
    for call in calls:
        call()
    return time.perf_counter() - began


def split(name: str, shape: str, args: SplitArguments) -> dict[str, Any]:
    """Milliseconds of each part."""
    model = pack_model(compress(build(name, args.seed), XTCRecipe(weights=args.weights))).eval()
    rows, tokens = FIXED[shape]
    batch = {
        "input_ids": torch.randint(1, vocab_size(name), (rows, tokens)),
        "attention_mask": torch.ones(rows, tokens).long(),
    }
    linears, integers = products(model, rows * tokens, args.weights), int_products(model, rows * tokens)
    calls = Calls()
    times: dict[str, list[float]] = {"forward": [], "native call": [], "products": [], "int_mm": []}
    with patch.object(arrays, "call", calls):
        for _ in range(args.rounds):
            model(**batch)
            calls.seconds = 0
            times["forward"].append(timed([lambda: model(**batch)]))
            times["native call"].append(calls.seconds / 2)
            times["products"].append(timed(linears))
            times["int_mm"].append(timed(integers))
    found = {part: statistics.median(seconds) * 1e3 for part, seconds in times.items()}
    return {
        "model": name,
        "shape": shape,
        "milliseconds": {part: round(value, 3) for part, value in found.items()},
        "rest_of_the_call": round(1 - found["products"] / found["native call"], 3),
        "python": round(1 - found["native call"] / found["forward"], 3),
        "forward_over_int_mm": round(found["forward"] / found["int_mm"], 2),
    }


def main(arguments: list[str] | None = None) -> None:
    """Prints a line per model and shape, and writes them if asked."""
    args: SplitArguments = HfArgumentParser(SplitArguments).parse_args_into_dataclasses(arguments)[0]
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    cells = []
    with torch.no_grad():
        for name in args.models:
            for shape in args.shapes:
                cells.append(split(name, shape, args))
                print(cells[-1], flush=True)
    if args.output_file:
        head = facts(args.threads, "hf_xtc", "torch")
        write_json(args.output_file, {**head, "flags": cpu_flags(), "variant": variant(), "cells": cells})


if __name__ == "__main__":
    main()
