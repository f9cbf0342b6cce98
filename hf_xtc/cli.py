"""The command line `hf-xtc`, also `python -m hf_xtc`: a subparser and a function for each command.

Options are the fields of dataclasses, added by `HfArgumentParser`; a single `.json` file may hold them instead. What a
command needs is imported when it is named, so that `hf-xtc --help` and `hf-xtc predict` are quick.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

from hf_xtc.errors import XTCError
from hf_xtc.runs.plain_parser import suggestion
from hf_xtc.version import __version__

# Entry points of other packages, modules that declare families of models (docs/extending.md).
FAMILIES = "hf_xtc.families"

# What `hf-xtc compress --help` shows; `--help-all` shows all options.
COMPRESS_GROUPS = {
    "teacher": ("teacher", "fine_tune", "fine_tune_epochs"),
    "data": (
        *("task", "task_name", "dataset_name", "train_file", "validation_file", "text_column"),
        *("text_pair_column", "label_column", "regression", "max_length", "selection_share"),
    ),
    "recipe": ("weights", "keep_layers", "layers", "target_bytes"),
    "stages": ("schedule", "reduction_epochs", "teacher_cache", "augment"),
    "training": ("num_train_epochs", "learning_rate", "per_device_train_batch_size", "seed", "bf16"),
    "output": ("output_dir", "overwrite", "push_to_hub"),
}


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None):
        super().__init__(option_strings, dest=dest, default=argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: Any, *_: Any) -> None:
        from hf_xtc.native.library import variant

        operator = variant() or "none (packed models run on PyTorch's operations)"
        print(f"hf_xtc {__version__}\nnative operator: {operator}")
        parser.exit()


def _compress(options: tuple[Any, ...]) -> None:
    from hf_xtc.hub.results import results_table
    from hf_xtc.runs.compress_run import run_compress

    run = run_compress(*options)
    print(f"\n{results_table(run)}\n\n{run.ledger}\n\nWritten to {options[3].output_dir}")


def _evaluate(options: tuple[Any, ...]) -> None:
    from hf_xtc.runs.evaluation import run_evaluate

    for name, value in run_evaluate(*options).items():
        print(f"{name}: {value:.6f}")


def _export(options: tuple[Any, ...]) -> None:
    from hf_xtc.runs.export import run_export

    exported = run_export(*options)
    rows = "rows of the validation split" if options[1].given else "rows of random tokens (no data was given)"
    if exported.agreement is None:
        print("not verified: node (Node.js 20 or later) is not installed here")
    else:
        print(f"agreement: {exported.agreement}")
        print(f"own noise: {exported.noise}")
        print(f"verified on: {exported.agreement.rows} {rows}")
    print(f"bytes: {exported.bytes}")
    print(f"written to: {exported.path}")


def _push(options: tuple[Any, ...]) -> None:
    from hf_xtc.hub.publish import write_model_card
    from hf_xtc.hub.upload import open_repository, push_folder
    from hf_xtc.runs.arguments import InspectArguments
    from hf_xtc.runs.export import card_with_graph, onnx_form
    from hf_xtc.runs.inspection import run_inspect

    (args,) = options
    inspected = run_inspect(InspectArguments(args.folder))  # raises for a damaged or latent file
    graph = onnx_form(args.folder) if args.with_onnx else {}
    open_repository(args.repo_id, private=args.private or None)  # before a card is written
    if not Path(args.folder, "README.md").exists():
        write_model_card(inspected.config, inspected.model_class, args.folder, args.repo_id)
    if graph:
        graph["README.md"] = card_with_graph(args.folder, graph)
    more = {"revision": args.revision, "commit_message": args.commit_message, "replaced": graph}
    print(push_folder(args.folder, args.repo_id, private=args.private or None, **more))


def _inspect(options: tuple[Any, ...]) -> None:
    from hf_xtc.runs.inspection import run_inspect

    print(run_inspect(*options))


def _verify(options: tuple[Any, ...]) -> None:
    from hf_xtc.runs.inspection import require_agreement, run_verify

    checks = run_verify(*options)
    print(*checks, sep="\n")
    require_agreement(checks, options[0].model)


def _predict(options: tuple[Any, ...]) -> None:
    from hf_xtc.runs.predict import run_predict

    (args,) = options
    run_predict(args, before_torch=load_families)


def _report(options: tuple[Any, ...]) -> None:
    from hf_xtc.runs.report import write_report

    (args,) = options
    print(f"Written to {write_report(args.folder, args.output_file)}")


class Command(NamedTuple):
    """A command: its help, usage and function, the names of its dataclasses, and options of `OptionParser`."""

    help: str
    usage: str
    run: Callable[[tuple[Any, ...]], None]
    dataclasses: tuple[str, ...]
    positionals: tuple[str, ...] = ()
    groups: dict[str, tuple[str, ...]] | None = None


COMMANDS = {
    "compress": Command(
        "compress a fine-tuned encoder into a packed model",
        "--teacher MODEL (--task_name T | --dataset_name D | --train_file F --validation_file F) --output_dir FOLDER",
        _compress,
        ("JobArguments", "DataArguments", "RecipeArguments", "XTCTrainingArguments", "AugmentationArguments"),
        groups=COMPRESS_GROUPS,
    ),
    "evaluate": Command(
        "measure a model on a task's validation split",
        "--model MODEL (--task_name TASK | --dataset_name D | --validation_file F)",
        _evaluate,
        ("EvaluateArguments", "EvaluationDataArguments"),
    ),
    "export": Command(
        "write a packed model for ONNX Runtime, OpenVINO, a web page, or transformers, and verify it",
        "--model MODEL --output_dir FOLDER [--format onnx|openvino|web|transformers.js|transformers]",
        _export,
        ("ExportArguments", "EvaluationDataArguments"),
    ),
    "predict": Command(
        "classify, tag, answer, rank or embed texts with a packed model; starts at once, without PyTorch",
        "MODEL [FILE]",
        _predict,
        (),
    ),
    "push": Command("publish a packed model", "FOLDER USER/NAME", _push, ("PushArguments",), ("folder", "repo_id")),
    "inspect": Command("show what a packed model is made of", "MODEL", _inspect, ("InspectArguments",), ("model",)),
    "verify": Command(
        "compare a packed model with its commit, card and configuration",
        "MODEL [--task_name TASK | --dataset_name D | --validation_file F]",
        _verify,
        ("VerifyArguments", "EvaluationDataArguments"),
        ("model",),
    ),
    "report": Command(
        "write an HTML report of a finished compression", "FOLDER", _report, ("ReportArguments",), ("folder",)
    ),
}


def command_parser(name: str) -> Any:
    """Returns the parser of a command: an `OptionParser`, or a `PredictParser`, which starts at once."""
    if name == "predict":
        from hf_xtc.runs.predict import PredictParser

        return PredictParser(f"hf-xtc {name}", f"hf-xtc {name} {COMMANDS[name].usage} [options]")
    from hf_xtc.data import task_data
    from hf_xtc.runs import arguments as runs
    from hf_xtc.runs.option_parser import OptionParser
    from hf_xtc.training import arguments as training

    command = COMMANDS[name]
    modules = (runs, task_data, training)
    kinds = [
        next(getattr(module, kind) for module in modules if hasattr(module, kind)) for kind in command.dataclasses
    ]
    return OptionParser(
        kinds,
        prog=f"hf-xtc {name}",
        usage=f"hf-xtc {name} {command.usage} [options] | options.json",
        groups=command.groups,
        positionals=command.positionals,
    )


def _main_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("hf-xtc", description="Binary and ternary encoders: compress, measure, publish.")
    parser.add_argument("--version", action=_Version, help="show the version, and which native operator is in use")
    parser.add_argument("--debug", action="store_true", help="on an error, show the traceback; stands before COMMAND")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():  # `command_parser` adds their options
        commands.add_parser(name, help=command.help, add_help=False)
    parser.epilog = "hf-xtc COMMAND --help shows the options of a command."
    return parser


def load_families() -> None:
    """Imports the modules that installed packages name as entry points of the group `hf_xtc.families`.

    Raises:
        XTCError: if one of them cannot be imported; names it and its package.
    """
    for entry in entry_points(group=FAMILIES):
        try:
            entry.load()
        except Exception as error:  # of another package's module, which can raise anything
            package = "" if entry.dist is None else f" of the package {entry.dist.name}"
            raise XTCError(
                f"The entry point {entry.name} = {entry.value!r}{package} declares a family and cannot be imported "
                f"({type(error).__name__}: {error}); upgrade or uninstall that package."
            ) from error


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0 done, 1 bad input (one message on stderr), 2 wrong usage."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = arguments[:1] == ["--debug"]
    arguments = arguments[debug:]
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    parser = _main_parser()
    try:
        if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
            near = suggestion(arguments[0], COMMANDS)
            parser.error(f"there is no command {arguments[0]!r}{near}; use one of: {', '.join(COMMANDS)}")
        name = parser.parse_args(arguments[:1]).command
        options = command_parser(name).options(arguments[1:])
        if name != "predict":  # which starts at once, and loads them only before it needs PyTorch
            load_families()
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        COMMANDS[name].run(options)
    except SystemExit as ended:  # --help, --version or wrong usage
        return int(ended.code or 0)
    except (XTCError, OSError) as error:
        if debug:
            raise
        print(f"hf-xtc: {error}", file=sys.stderr)
        return 1
    except Exception as error:  # of transformers, datasets or torch, which know nothing of the command line
        if debug:
            raise
        lines = str(error).strip().splitlines() or ["no message"]
        print(
            f"hf-xtc: {type(error).__name__}: {lines[0]} (hf-xtc --debug {arguments[0]} ... shows the traceback)",
            file=sys.stderr,
        )
        return 1
    return 0
