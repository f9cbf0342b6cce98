"""The command line `hf-xtc`, also `python -m hf_xtc`: a subparser and a function for each command.

Options are the fields of dataclasses, added by `HfArgumentParser`; a single `.json` file may hold them instead. The
dataclasses of a command are imported when it is named, so that `hf-xtc --help` is quick.
"""

import argparse
import difflib
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from transformers import HfArgumentParser

from hf_xtc.checks import check_given
from hf_xtc.errors import XTCError
from hf_xtc.files.safe_json import read_json
from hf_xtc.version import __version__

# Entry points of other packages, modules that declare families of models (docs/extending.md).
FAMILIES = "hf_xtc.families"

# What `hf-xtc compress --help` shows; `--help-all` shows all options.
COMPRESS_GROUPS = {
    "teacher": ("teacher", "fine_tune", "fine_tune_epochs"),
    "data": (
        *("task_name", "data_dir", "train_file", "validation_file", "text_column", "text_pair_column"),
        *("label_column", "regression", "max_length", "selection_share"),
    ),
    "recipe": ("weights", "keep_layers", "layers"),
    "stages": ("schedule", "reduction_epochs", "teacher_cache", "augment"),
    "training": ("num_train_epochs", "learning_rate", "per_device_train_batch_size", "seed", "bf16"),
    "output": ("output_dir", "overwrite", "push_to_hub"),
}


class _Formatter(argparse.HelpFormatter):
    """Lines of 100 columns; each option in one spelling, that of the documentation."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34, width=100)

    def _get_help_string(self, action: argparse.Action) -> str:
        unset = action.default in (None, False, argparse.SUPPRESS) or action.default == []
        return (action.help or "") + ("" if unset else " (default %(default)s)")

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        value = "" if action.nargs == 0 or action.nargs == "?" else f" {action.metavar or 'VALUE'}"
        spellings = action.option_strings if action.option_strings[0] == "-h" else action.option_strings[:1]
        return ", ".join(spellings) + value


class _Parser(HfArgumentParser):
    """An `HfArgumentParser` with a short help, positional arguments, and suggestions for mistyped options.

    Args:
        groups (`dict[str, tuple[str, ...]]`, *optional*): Name of each group of the short help -> its options;
            `--help-all` shows all options. Without groups `--help` does, too.
        positionals (`tuple[str, ...]`): Fields that may also be positional arguments, in this order.
    """

    def __init__(
        self,
        dataclass_types: Sequence[Any] = (),
        *,
        groups: dict[str, tuple[str, ...]] | None = None,
        positionals: tuple[str, ...] = (),
        **kwargs: Any,
    ):
        self.groups, self.positionals = groups, positionals
        super().__init__(dataclass_types, formatter_class=_Formatter, **kwargs)
        for name in positionals:
            self.add_argument(f"positional {name}", nargs="?", metavar=name.upper(), help=argparse.SUPPRESS)
            self._option(name).required = False
        if groups is not None:
            self.add_argument("--help-all", action=_HelpAll, help="Show all options, those of TrainingArguments too.")

    def _option(self, name: str) -> argparse.Action:
        found: argparse.Action = next(action for action in self._actions if action.dest == name)
        return found

    def format_help(self) -> str:
        """Returns the help of the grouped options, or of all if there are no groups."""
        if self.groups is None:
            return self.format_full_help()
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        for title, names in {**self.groups, "more": ("help", "help_all")}.items():
            formatter.start_section(title)
            formatter.add_arguments([self._option(name) for name in names])
            formatter.end_section()
        return str(formatter.format_help())

    def format_full_help(self) -> str:
        """Returns the help of all options, including those of transformers' `TrainingArguments`."""
        return str(super().format_help())

    def options(self, arguments: list[str]) -> tuple[Any, ...]:
        """Parses the arguments of a command, or a single `.json` file, into the dataclasses.

        Raises:
            XTCError: if a value is invalid; errors of argparse end the process with status 2.
        """
        try:
            if len(arguments) == 1 and arguments[0].endswith(".json"):
                return self._from_file(arguments[0])
            self._require_known(arguments)
            found, unknown = self.parse_known_args(arguments)
            if unknown:
                self.error(f"unrecognized arguments: {' '.join(self._with_suggestion(word) for word in unknown)}")
            for name in self.positionals:
                value = vars(found).pop(f"positional {name}")
                if value is not None:
                    setattr(found, name, value)
                elif getattr(found, name) is None:
                    self.error(f"the following arguments are required: {name.upper()}")
            values = vars(found)
            self._require_given(values)
            return tuple(
                kind(**{key: value for key, value in values.items() if key in kind.__dataclass_fields__})
                for kind in self.dataclass_types
            )
        except XTCError:
            raise
        except ValueError as error:  # transformers' own checks of TrainingArguments
            raise XTCError(str(error)) from error

    def _require_given(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if value != self._option(name).default:
                check_given(name, value)

    def _require_known(self, arguments: list[str]) -> None:
        """Names mistyped options first: argparse would only say which required ones are missing."""
        names = {word: word.partition("=")[0] for word in arguments if word.startswith("--")}
        known = self._option_string_actions
        unknown = [word for word, name in names.items() if not any(option.startswith(name) for option in known)]
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(self._with_suggestion(word) for word in unknown)}")

    def _from_file(self, file: str) -> tuple[Any, ...]:
        values = read_json(file)
        needed = [
            entry.name
            for kind in self.dataclass_types
            for entry in fields(kind)
            if entry.init and entry.default is MISSING and entry.default_factory is MISSING
        ]
        if not isinstance(values, dict) or not all(name in values for name in needed):
            raise XTCError(f"{file} must be a JSON object of options, with at least: {', '.join(needed)}.")
        known = {entry.name for kind in self.dataclass_types for entry in fields(kind) if entry.init}
        if unknown := [name + _suggestion(name, known) for name in values if name not in known]:
            raise XTCError(f"{file} has options that do not exist: {', '.join(unknown)}.")
        try:
            values = {name: self._parsed(self._option(name), value) for name, value in values.items()}
        except argparse.ArgumentError as error:
            raise XTCError(f"{file}: {error}.") from error
        self._require_given(values)
        return tuple(self.parse_dict(values))

    def _parsed(self, action: argparse.Action, value: Any) -> Any:
        """A value of a JSON file, as it would be if it stood on the command line."""
        if isinstance(value, list) and action.nargs != "+":
            raise argparse.ArgumentError(action, f"expected one value, not {value}")
        if isinstance(value, list):
            return [self._parsed(action, entry) for entry in value]
        if value is None:
            return None
        parsed = self._get_value(action, value if isinstance(value, str) else json.dumps(value))
        self._check_value(action, parsed)
        return parsed

    def _with_suggestion(self, word: str) -> str:
        return word + _suggestion(word.partition("=")[0], self._option_string_actions)

    def error(self, message: str) -> NoReturn:
        """Prints the error and how to get help, without the long usage; ends the process with status 2."""
        print(f"{self.prog}: {message}\nTry: {self.prog} --help", file=sys.stderr)
        sys.exit(2)


class _PrintAndExit(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None):
        super().__init__(option_strings, dest=dest, default=argparse.SUPPRESS, nargs=0, help=help)


class _Version(_PrintAndExit):
    def __call__(self, parser: Any, *_: Any) -> None:
        from hf_xtc.native.library import variant

        operator = variant() or "none (packed models run on PyTorch's operations)"
        print(f"hf_xtc {__version__}\nnative operator: {operator}")
        parser.exit()


class _HelpAll(_PrintAndExit):
    def __call__(self, parser: Any, *_: Any) -> None:
        print(parser.format_full_help())
        parser.exit()


def _suggestion(word: str, known: Any) -> str:
    """Returns " (did you mean X?)" with the known word closest to a mistyped one; empty if none is close."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


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
    print(f"agreement: {exported.agreement}")
    print(f"own noise: {exported.noise}")
    print(f"verified on: {exported.agreement.rows} {rows}")
    print(f"bytes: {exported.bytes}")
    print(f"written to: {exported.path}")


def _push(options: tuple[Any, ...]) -> None:
    from hf_xtc.hub.publish import write_model_card
    from hf_xtc.hub.upload import open_repository, push_folder
    from hf_xtc.runs.arguments import InspectArguments
    from hf_xtc.runs.inspection import run_inspect

    (args,) = options
    inspected = run_inspect(InspectArguments(args.folder))  # raises for a damaged or latent file
    open_repository(args.repo_id, private=args.private or None)  # before a card is written
    if not Path(args.folder, "README.md").exists():
        write_model_card(inspected.config, inspected.model_class, args.folder, args.repo_id)
    more = {"revision": args.revision, "commit_message": args.commit_message}
    print(push_folder(args.folder, args.repo_id, private=args.private or None, **more))


def _inspect(options: tuple[Any, ...]) -> None:
    from hf_xtc.runs.inspection import run_inspect

    print(run_inspect(*options))


def _verify(options: tuple[Any, ...]) -> None:
    from hf_xtc.runs.inspection import require_agreement, run_verify

    checks = run_verify(*options)
    print(*checks, sep="\n")
    require_agreement(checks, options[0].model)


def _report(options: tuple[Any, ...]) -> None:
    from hf_xtc.runs.report import write_report

    (args,) = options
    print(f"Written to {write_report(args.folder, args.output_file)}")


class Command(NamedTuple):
    """A command: its help, usage and function, the names of its dataclasses, and options of `_Parser`."""

    help: str
    usage: str
    run: Callable[[tuple[Any, ...]], None]
    dataclasses: tuple[str, ...]
    positionals: tuple[str, ...] = ()
    groups: dict[str, tuple[str, ...]] | None = None


COMMANDS = {
    "compress": Command(
        "compress a fine-tuned encoder into a packed model",
        "--teacher MODEL (--task_name TASK | --train_file F --validation_file F) --output_dir FOLDER",
        _compress,
        ("JobArguments", "DataArguments", "RecipeArguments", "XTCTrainingArguments", "AugmentationArguments"),
        groups=COMPRESS_GROUPS,
    ),
    "evaluate": Command(
        "measure a model on a task's validation split",
        "--model MODEL (--task_name TASK | --validation_file F)",
        _evaluate,
        ("EvaluateArguments", "EvaluationDataArguments"),
    ),
    "export": Command(
        "write a packed model for ONNX Runtime or OpenVINO, and verify it",
        "--model MODEL --output_dir FOLDER [--format onnx|openvino]",
        _export,
        ("ExportArguments", "EvaluationDataArguments"),
    ),
    "push": Command("publish a packed model", "FOLDER USER/NAME", _push, ("PushArguments",), ("folder", "repo_id")),
    "inspect": Command("show what a packed model is made of", "MODEL", _inspect, ("InspectArguments",), ("model",)),
    "verify": Command(
        "compare a packed model with its commit, card and configuration",
        "MODEL [--task_name TASK | --validation_file F]",
        _verify,
        ("VerifyArguments", "EvaluationDataArguments"),
        ("model",),
    ),
    "report": Command(
        "write an HTML report of a finished compression", "FOLDER", _report, ("ReportArguments",), ("folder",)
    ),
}


def command_parser(name: str) -> _Parser:
    """Returns the parser of a command."""
    from hf_xtc.data import task_data
    from hf_xtc.runs import arguments as runs
    from hf_xtc.training import arguments as training

    command = COMMANDS[name]
    modules = (runs, task_data, training)
    kinds = [
        next(getattr(module, kind) for module in modules if hasattr(module, kind)) for kind in command.dataclasses
    ]
    return _Parser(
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
            suggestion = _suggestion(arguments[0], COMMANDS)
            parser.error(f"there is no command {arguments[0]!r}{suggestion}; use one of: {', '.join(COMMANDS)}")
        name = parser.parse_args(arguments[:1]).command
        options = command_parser(name).options(arguments[1:])
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
