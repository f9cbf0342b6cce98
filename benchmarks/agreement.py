"""Measures how closely the backends agree with the reference on real rows: classes and logits.

    python benchmarks/agreement.py --model demo/minilm-3l-1bit-rotten-tomatoes \
        --validation_file demo/rotten_tomatoes/validation.csv --max_length 64

An activation on the boundary between two 8-bit levels goes to either one, depending on float32 rounding. For the size
of that effect alone, the reference is also compared with itself: with LayerNorm weights changed by one part in
100,000, and in other batches, which change the order of its float sums.
"""

import os
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, HfArgumentParser

import hf_xtc
from hf_xtc.export.verify import with_noise
from hf_xtc.native import library as native_library
from hf_xtc.runs.arguments import EvaluateArguments, EvaluationDataArguments
from hf_xtc.runs.export import load_packed, validation_batches


@torch.inference_mode()
def logits(model: Any, rows: list[dict[str, Tensor]], backend: str) -> Tensor:
    """Logits of all rows, `(rows, labels)`, computed by one backend."""
    model.set_backend(backend)
    return torch.cat([model(**batch).logits for batch in rows])


def line(name: str, found: Tensor, expected: Tensor) -> str:
    """A row of the table: the logits `found` by one backend against the `expected` ones."""
    difference = (found - expected).abs().amax(1)
    equal = int((found.argmax(1) == expected.argmax(1)).sum())
    within = int((difference <= 1e-3).sum())
    return f"| {name} | {equal} | {within} | {float(difference.median()):.1e} | {float(difference.max()):.1e} |"


def main() -> None:
    """Prints one line for each backend, with each variant of the native operator and without it."""
    args, data_args = HfArgumentParser((EvaluateArguments, EvaluationDataArguments)).parse_args_into_dataclasses()
    model = load_packed(args.model)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    rows = list(validation_batches(model, tokenizer, args, data_args))
    few = list(validation_batches(model, tokenizer, replace(args, batch_size=7), data_args))
    expected = logits(model, rows, "reference")
    versions = f"hf_xtc {hf_xtc.__version__}, torch {torch.__version__}"
    print(f"{versions}, {len(expected)} rows, logits up to {float(expected.abs().max()):.2f}\n")
    print("| against the reference | equal classes | logits within 1e-3 | median difference | largest |")
    print("|---|---|---|---|---|")
    for variant in (*native_library.variants(), "off"):
        os.environ["XTC_NATIVE"] = variant
        for backend in ("int8", "packed"):
            print(line(f"{backend}, native operator {variant}", logits(model, rows, backend), expected), flush=True)
    os.environ.pop("XTC_NATIVE")
    for backend in ("auto", "reference"):
        same = f"{backend} in batches of 7, against itself in batches of {args.batch_size}"
        print(line(same, logits(model, few, backend), logits(model, rows, backend)), flush=True)
    print(line("reference, LayerNorm weights moved by 1e-5", logits(with_noise(model), rows, "reference"), expected))


if __name__ == "__main__":
    main()
