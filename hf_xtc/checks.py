"""Checks of single values."""

import math
import re

from hf_xtc.errors import RecipeError

ABOVE_ZERO = math.ulp(0)  # the smallest number that `check_range` can have as its lower limit, except 0


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raises `RecipeError` unless `value` is one of the choices, with the same type."""
    if value not in choices or type(value) not in map(type, choices):
        raise RecipeError(f"{name}={value!r} does not exist. Use one of: {', '.join(map(str, choices))}.")


def check_count(name: str, value: object) -> None:
    """Raises `RecipeError` unless `value` is a positive whole number."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise RecipeError(f"{name}={value!r} must be a positive whole number.")


def check_given(name: str, value: object) -> None:
    """Raises `RecipeError` for an option that is given as an empty text or as a number that no option can have.

    A number must be finite and below 2**32, the limit of seeds; each entry of a list is checked.
    """
    for entry in value if isinstance(value, list) else [value]:
        if isinstance(entry, str) and not entry.strip() and (name != "separator" or not entry):
            raise RecipeError(f"--{name} is empty. Give a value, or leave the option out.")
        if isinstance(entry, int | float) and not abs(entry) < 2**32:
            raise RecipeError(f"--{name}={entry} must be a finite number below 2**32.")


def check_range(name: str, value: object, low: float, high: float = math.inf) -> None:
    """Raises `RecipeError` unless `value` is a number of at least `low` and below `high`."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value < high:
        least = "above 0" if low == ABOVE_ZERO else f"at least {low:g}"
        limits = least if high == math.inf else f"{least} and below {high:,.12g}"
        raise RecipeError(f"{name}={value!r} must be {limits}.")


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
