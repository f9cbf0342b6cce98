"""The command line: `hf-xtc compress`, `hf-xtc evaluate` and `hf-xtc export`, also `python -m hf_xtc`.

Options are the fields of dataclasses, parsed by `HfArgumentParser`; a single `.json` file may hold them instead.
"""

import logging
import sys
from typing import Any

import torch
from transformers import HfArgumentParser

from hf_xtc.arguments import (
    AugmentationArguments,
    EvaluateArguments,
    ExportArguments,
    ExportDataArguments,
    JobArguments,
    RecipeArguments,
)
from hf_xtc.data import DataArguments
from hf_xtc.errors import XTCError
from hf_xtc.training_args import XTCTrainingArguments

# What suits short quantization-aware training better than Trainer's defaults.
DEFAULTS = {
    "num_train_epochs": 3.0,
    "learning_rate": 1e-3,
    "warmup_steps": 0.1,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "train_sampling_strategy": "group_by_length",
    "logging_steps": 50,
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "dataloader_pin_memory": torch.accelerator.is_available(),
}

USAGE = """usage: hf-xtc {compress,evaluate,export} [options | options.json]

  compress   compress a fine-tuned BERT into a packed checkpoint (hf-xtc compress --help)
  evaluate   measure a checkpoint on a task's validation split (hf-xtc evaluate --help)
  export     write a packed checkpoint for ONNX Runtime or OpenVINO, and verify it (hf-xtc export --help)
"""


def _parse(parser: HfArgumentParser, arguments: list[str]) -> tuple[Any, ...]:
    try:
        if len(arguments) == 1 and arguments[0].endswith(".json"):
            parsed: tuple[Any, ...] = parser.parse_json_file(arguments[0])
        else:
            parsed = parser.parse_args_into_dataclasses(arguments)
    except XTCError:
        raise
    except ValueError as error:  # transformers' own checks of TrainingArguments
        raise XTCError(str(error)) from error
    return parsed


def _compress(arguments: list[str]) -> None:
    parser = HfArgumentParser(
        (JobArguments, DataArguments, RecipeArguments, XTCTrainingArguments, AugmentationArguments),
        prog="hf-xtc compress",
    )
    parser.set_defaults(**DEFAULTS)
    options = _parse(parser, arguments)
    from hf_xtc.climb import run_compress
    from hf_xtc.model_card import results_table

    run = run_compress(*options)
    print(f"\n{results_table(run)}\n\n{run.ledger}\n\nWritten to {options[3].output_dir}")


def _evaluate(arguments: list[str]) -> None:
    options = _parse(HfArgumentParser((EvaluateArguments, DataArguments), prog="hf-xtc evaluate"), arguments)
    from hf_xtc.evaluation import run_evaluate

    for name, value in run_evaluate(*options).items():
        print(f"{name}: {value:.6f}")


def _export(arguments: list[str]) -> None:
    options = _parse(HfArgumentParser((ExportArguments, ExportDataArguments), prog="hf-xtc export"), arguments)
    from hf_xtc.export.command import run_export

    exported = run_export(*options)
    rows = "rows of the validation split" if options[1].given else "rows of random tokens (no data was given)"
    print(f"agreement: {exported.agreement}")
    print(f"own noise: {exported.noise}")
    print(f"verified on: {exported.agreement.rows} {rows}")
    print(f"bytes: {exported.bytes}")
    print(f"written to: {exported.path}")


COMMANDS = {"compress": _compress, "evaluate": _evaluate, "export": _export}


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0 done, 1 bad input (one message on stderr), 2 wrong usage."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] not in COMMANDS:
        asked = bool(arguments) and arguments[0] in ("-h", "--help")
        print(USAGE, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        COMMANDS[arguments[0]](arguments[1:])
    except (XTCError, OSError) as error:
        print(f"hf-xtc: {error}", file=sys.stderr)
        return 1
    return 0
