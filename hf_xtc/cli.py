"""The command line `hf-xtc`, also `python -m hf_xtc`: one function a command.

Options are the fields of dataclasses, parsed by `HfArgumentParser`; a single `.json` file may hold them instead.
"""

import logging
import sys
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from hf_xtc.data.task_data import DataArguments
from hf_xtc.errors import XTCError
from hf_xtc.runs.arguments import (
    AugmentationArguments,
    EvaluateArguments,
    ExportArguments,
    ExportDataArguments,
    InspectArguments,
    JobArguments,
    PushArguments,
    RecipeArguments,
    ReportArguments,
    VerifyArguments,
)
from hf_xtc.training.arguments import XTCTrainingArguments

USAGE = """usage: hf-xtc {compress,evaluate,export,push,inspect,verify,report} [options | options.json]

  compress   compress a fine-tuned BERT into a packed checkpoint (hf-xtc compress --help)
  evaluate   measure a checkpoint on a task's validation split (hf-xtc evaluate --help)
  export     write a packed checkpoint for ONNX Runtime or OpenVINO, and verify it (hf-xtc export --help)
  push       publish a packed checkpoint: hf-xtc push FOLDER user/name
  inspect    show what a packed checkpoint is made of: hf-xtc inspect FOLDER or user/name
  verify     compare a packed checkpoint with what is recorded of it: hf-xtc verify FOLDER or user/name
  report     draw what a finished compression did, as one HTML file: hf-xtc report FOLDER
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


# Options that may be given without their names, as the first words.
NAMELESS = {"push": ("folder", "repo_id"), "inspect": ("model",), "verify": ("model",), "report": ("folder",)}


def named(arguments: list[str], *names: str) -> list[str]:
    """Leading words without an option's name, given those of `names`; a lone `.json` file stays one of options."""
    if len(arguments) == 1 and arguments[0].endswith(".json"):
        return arguments
    count = next((i for i, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    if count > len(names):
        raise XTCError(f"{arguments[len(names)]!r} is one word too many; expected: {' '.join(names)} [options].")
    named = [word for pair in zip((f"--{name}" for name in names), arguments[:count], strict=False) for word in pair]
    return [*named, *arguments[count:]]


def _compress(arguments: list[str]) -> None:
    parser = HfArgumentParser(
        (JobArguments, DataArguments, RecipeArguments, XTCTrainingArguments, AugmentationArguments),
        prog="hf-xtc compress",
    )
    options = _parse(parser, arguments)
    from hf_xtc.hub.run_card import results_table
    from hf_xtc.runs.compress_run import run_compress

    run = run_compress(*options)
    print(f"\n{results_table(run)}\n\n{run.ledger}\n\nWritten to {options[3].output_dir}")


def _evaluate(arguments: list[str]) -> None:
    options = _parse(HfArgumentParser((EvaluateArguments, DataArguments), prog="hf-xtc evaluate"), arguments)
    from hf_xtc.runs.evaluation import run_evaluate

    for name, value in run_evaluate(*options).items():
        print(f"{name}: {value:.6f}")


def _export(arguments: list[str]) -> None:
    options = _parse(HfArgumentParser((ExportArguments, ExportDataArguments), prog="hf-xtc export"), arguments)
    from hf_xtc.runs.export import run_export

    exported = run_export(*options)
    rows = "rows of the validation split" if options[1].given else "rows of random tokens (no data was given)"
    print(f"agreement: {exported.agreement}")
    print(f"own noise: {exported.noise}")
    print(f"verified on: {exported.agreement.rows} {rows}")
    print(f"bytes: {exported.bytes}")
    print(f"written to: {exported.path}")


def _push(arguments: list[str]) -> None:
    parser = HfArgumentParser(PushArguments, prog="hf-xtc push")
    (args,) = _parse(parser, named(arguments, *NAMELESS["push"]))
    from hf_xtc.hub.publish import write_plain_card
    from hf_xtc.hub.upload import push_folder
    from hf_xtc.runs.inspection import run_inspect

    looked = run_inspect(InspectArguments(args.folder))  # a damaged or latent file is refused here
    if not Path(args.folder, "README.md").exists():
        write_plain_card(looked.config, looked.model_class, args.folder, args.repo_id)
    options = {"revision": args.revision, "commit_message": args.commit_message}
    print(push_folder(args.folder, args.repo_id, private=args.private or None, **options))


def _inspect(arguments: list[str]) -> None:
    (args,) = _parse(HfArgumentParser(InspectArguments, prog="hf-xtc inspect"), named(arguments, *NAMELESS["inspect"]))
    from hf_xtc.runs.inspection import run_inspect

    print(run_inspect(args))


def _verify(arguments: list[str]) -> None:
    parser = HfArgumentParser((VerifyArguments, ExportDataArguments), prog="hf-xtc verify")
    args, data_args = _parse(parser, named(arguments, *NAMELESS["verify"]))
    from hf_xtc.runs.inspection import require_agreement, run_verify

    checks = run_verify(args, data_args)
    print(*checks, sep="\n")
    require_agreement(checks, args.model)


def _report(arguments: list[str]) -> None:
    (args,) = _parse(HfArgumentParser(ReportArguments, prog="hf-xtc report"), named(arguments, *NAMELESS["report"]))
    from hf_xtc.runs.report import write_report

    print(f"Written to {write_report(args.folder, args.output_file)}")


COMMANDS = {
    "compress": _compress,
    "evaluate": _evaluate,
    "export": _export,
    "push": _push,
    "inspect": _inspect,
    "verify": _verify,
    "report": _report,
}


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
