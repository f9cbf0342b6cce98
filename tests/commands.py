"""The commands of README and docs, parsed as the command line parses them."""

import re
import shlex
from pathlib import Path

from hf_xtc.cli import command_parser


def blocks(page: Path | str, language: str) -> list[str]:
    """The code blocks of a page: a file, or its text."""
    text = page.read_text(encoding="utf-8") if isinstance(page, Path) else page
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.S | re.M)


def commands(page: Path) -> list[list[str]]:
    """The words of each command of a page; of a pipe the last command, without the files that it reads and writes."""
    lines = [line for block in blocks(page, "sh") for line in block.replace("\\\n", "").splitlines()]
    return [_last(words) for line in lines if (words := shlex.split(line, comments=True))]


def _last(words: list[str]) -> list[str]:
    """The last command of a line."""
    words = words[len(words) - words[::-1].index("|") :] if "|" in words else words
    return words[: min((words.index(mark) for mark in "<>" if mark in words), default=len(words))]


def parse(words: list[str]) -> None:
    """Parses the words of an `hf-xtc` command; raises or exits where the command line would."""
    command, options = words[1], words[2:]
    command_parser(command).options([*options, "--use_cpu"] if command == "compress" else options)
