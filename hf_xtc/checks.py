"""Checks of single values."""

import re

from hf_xtc.errors import RecipeError


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raises `RecipeError` unless `value` is one of the choices, with the same type."""
    if value not in choices or type(value) not in map(type, choices):
        raise RecipeError(f"{name}={value!r} does not exist. Use one of: {', '.join(map(str, choices))}.")


def check_count(name: str, value: object) -> None:
    """Raises `RecipeError` unless `value` is a positive whole number."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise RecipeError(f"{name}={value!r} must be a positive whole number.")


def check_pattern(name: str, pattern: str) -> None:
    """Raises `RecipeError` if searching a regular expression may take forever.

    The time of backtracking grows with the number of repeats, exponentially if a repeated group contains repeats.
    """
    plain = re.sub(r"\\.|\(\?", "", pattern)
    if len(pattern) > 200 or len(re.findall("[*+?{]", plain)) > 3 or re.search(r"\)[*+?{]", plain):
        raise RecipeError(
            f"{name}: the pattern {pattern!r:.80} is longer than 200 characters, has more than three repeats "
            "(*, +, ?, {}) or repeats a group; a search for it may never end. Simplify it or split it into several."
        )
