"""The parser of commands whose options are the fields of dataclasses, added by transformers' `HfArgumentParser`."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any

from transformers import HfArgumentParser

from hf_xtc.checks import check_given
from hf_xtc.errors import XTCError
from hf_xtc.files.safe_json import read_json
from hf_xtc.runs.plain_parser import Formatter, PlainParser, suggestion


class OptionParser(PlainParser, HfArgumentParser):
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
        HfArgumentParser.__init__(self, dataclass_types, formatter_class=Formatter, **kwargs)
        for name in positionals:
            self.add_argument(f"positional {name}", nargs="?", metavar=name.upper(), help=argparse.SUPPRESS)
            self._option(name).required = False
        if groups is not None:
            self.add_argument("--help-all", action=_HelpAll, help="Show all options, those of TrainingArguments too.")

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
        if unknown := [name + suggestion(name, known) for name in values if name not in known]:
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


class _HelpAll(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None):
        super().__init__(option_strings, dest=dest, default=argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: Any, *_: Any) -> None:
        print(parser.format_full_help())
        parser.exit()
