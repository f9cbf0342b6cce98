"""The parser of a command whose options are few: argparse with suggestions for mistyped options, and short errors.

It imports neither PyTorch nor transformers, so that such a command starts at once.
"""

import argparse
import difflib
import sys
from typing import Any, NoReturn


class Formatter(argparse.HelpFormatter):
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


def suggestion(word: str, known: Any) -> str:
    """Returns " (did you mean X?)" with the known word closest to a mistyped one; empty if none is close."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


class PlainParser(argparse.ArgumentParser):
    """An `ArgumentParser` with suggestions for mistyped options, and errors of one sentence."""

    def _option(self, name: str) -> argparse.Action:
        found: argparse.Action = next(action for action in self._actions if action.dest == name)
        return found

    def _require_known(self, arguments: list[str]) -> None:
        """Names mistyped options first: argparse would only say which required ones are missing."""
        names = {word: word.partition("=")[0] for word in arguments if word.startswith("--")}
        known = self._option_string_actions
        unknown = [word for word, name in names.items() if not any(option.startswith(name) for option in known)]
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(self._with_suggestion(word) for word in unknown)}")

    def _with_suggestion(self, word: str) -> str:
        return word + suggestion(word.partition("=")[0], self._option_string_actions)

    def error(self, message: str) -> NoReturn:
        """Prints the error and how to get help, without the long usage; ends the process with status 2."""
        print(f"{self.prog}: {message}\nTry: {self.prog} --help", file=sys.stderr)
        sys.exit(2)
