"""The option `--separator`: the character between the cells of csv and tsv files."""

from hf_xtc.errors import DataError

MARKS = ";|\t, "  # what usually separates cells


def parse_separator(given: str) -> str:
    r"""The character that an option says; the two characters `\t` are a tab.

    Raises:
        DataError: if it is not one character, or a quote or the end of a line.
    """
    separator = given.replace(r"\t", "\t")
    if len(separator) != 1 or separator in '\r\n"':
        raise DataError(f"--separator={given!r} is not one character. Give that between two cells.")
    return separator


def likely_separator(header: str, instead: str | None) -> str | None:
    """The first of the usual separators in a header, other than `instead`, that is not in it; else `None`."""
    if instead is not None and instead in header:
        return None
    return next((mark for mark in MARKS if mark in header), None)


def check_separator(path: str, separator: str | None, header: str) -> None:
    """Raises `DataError` if a separator does not occur in a header, and another does."""
    other = likely_separator(header.strip(), separator)
    if separator is not None and other not in (None, " "):  # names of columns may hold blanks
        raise DataError(
            f"--separator={separator!r} does not occur in the first line of {path}, which seems to be separated by "
            f"{other!r}."
        )
