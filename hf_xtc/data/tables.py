"""Reads files as tables, for `hf_xtc.data.task_data`; independent of the command line and of GLUE.

Checks formats, encoding, and the presence of columns, texts and labels, and numbers the labels. What it cannot read
raises a `DataError`; nothing is dropped or guessed.
"""

import glob
import gzip
import math
import re
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hf_xtc.data.separators import check_separator, likely_separator
from hf_xtc.errors import DataError, needs_extra
from hf_xtc.files.safe_json import parse_json

with needs_extra("cli"):
    import pandas as pd
    from datasets import ClassLabel, Dataset, Features, Value, load_dataset
    from datasets.exceptions import DatasetGenerationError

# quoting=3 is csv.QUOTE_NONE: in the GLUE files quotes are text
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", {"sep": ",", "index_col": False, "keep_default_na": False}),
    ".tsv": ("csv", {"sep": "\t", "index_col": False, "keep_default_na": False, "quoting": 3}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
    ".txt": ("text", {}),
}


class Columns(NamedTuple):
    """Column names of a table, and its label names by class id if they are known beforehand; `label` may be `None`."""

    text: str
    text_pair: str | None = None
    label_names: tuple[str, ...] | None = None
    label: str | None = "label"


class Table(NamedTuple):
    """One split before its labels are numbered: columns by their new names, class ids replaced by names if known."""

    source: str
    columns: dict[str, list[Any]]
    label_names: tuple[str, ...] | None

    def refuse(self, bad: Sequence[bool], what: str, cure: str) -> None:
        """Raises `DataError` with the number of `bad` rows and the first of them (from 1), if there are any."""
        if rows := [row for row, is_bad in enumerate(bad, start=1) if is_bad]:
            where = f"{len(rows)} of {len(bad)} rows (first: row {rows[0]})"
            raise DataError(f"{self.source}: {what} in {where}. {cure}")

    def refuse_unknown(self, names: Sequence[str], kind: str) -> None:
        """Raises `DataError` if a list in the column `label` holds a name that the train data does not have.

        Args:
            names (`Sequence[str]`): The known names.
            kind (`str`): What they are, such as "tag".
        """
        known, lists = set(names), self.columns["label"]
        example = next((name for row in lists for name in row if name not in known), "")
        what = f"{kind}s that are not among {listed(names)} (such as {example!r})"
        self.refuse([not set(row) <= known for row in lists], what, f"Each {kind} must occur in the train data.")


def read_file(path: str, separator: str | None = None) -> Dataset:
    """The file as an in-memory table; all csv and tsv cells as text, so that "null" and "007" are kept.

    A file may be compressed with gzip (`rows.csv.gz`). Parsed in each call: the cache of datasets only compares
    modification times, so it may return stale rows.

    Args:
        path (`str`): A file in one of the `FORMATS`.
        separator (`str`, *optional*): The character between the cells of a csv or tsv file; of others it is ignored.

    Raises:
        DataError: if the file is missing, of another format, not UTF-8, not parseable, or has no rows.
    """
    if path.lower().endswith(".gz") and Path(path).is_file():
        return _read_compressed(path, separator)
    builder, options = FORMATS.get(Path(path).suffix.lower(), ("", {}))
    _check_file(path, known=bool(builder))
    if builder == "csv" and separator is not None:
        options = options | {"sep": separator}
    if builder != "parquet":
        _check_text_file(path)
    try:
        with tempfile.TemporaryDirectory() as cache, warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header would lose cells
            if builder == "csv":
                with open(path, encoding="utf-8-sig") as file:
                    check_separator(path, separator, file.readline())
                names = _column_names(path, options)
                options = options | {"converters": dict.fromkeys(names, str)}
            options = options | {"split": "train", "cache_dir": cache, "keep_in_memory": True}
            table = load_dataset(builder, data_files=glob.escape(path), **options)  # brackets would be a pattern
            table.data.table.validate(full=True)  # finds parquet strings that are not UTF-8
    except DataError:
        raise
    except (DatasetGenerationError, ValueError, StopIteration, pd.errors.ParserWarning) as error:
        reason = str(error.__cause__ or error).strip()
        if "corresponds to no data" in reason or "BatchSize must be greater" in reason:
            raise DataError(f"{path} has no rows.") from error
        raise DataError(f"{path} cannot be read as {builder}: {reason}") from error
    return table.filter(str.strip, input_columns="text") if builder == "text" else table  # lines that are not blank


def _read_compressed(path: str, separator: str | None) -> Dataset:
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, Path(path).name[: -len(".gz")])
        try:
            with gzip.open(path, "rb") as packed, plain.open("wb") as file:
                shutil.copyfileobj(packed, file)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} cannot be unpacked with gzip: {error}.") from error
        try:
            return read_file(str(plain), separator)
        except DataError as error:
            raise DataError(str(error).replace(str(plain), path)) from error


def _column_names(path: str, options: dict[str, Any]) -> list[str]:
    """The first line of a csv or tsv file.

    Raises:
        DataError: if two columns have one name, of which pandas would silently rename the second.
    """
    first = pd.read_csv(path, nrows=1, header=None, dtype=str, encoding="utf-8-sig", **options)
    names = [str(name) for name in first.iloc[0] if str(name).strip()] if len(first) else []  # the nameless ones fill
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path} has more than one column called {', '.join(twice)}. Rename or remove one.")
    return list(pd.read_csv(path, nrows=0, **options))


def _check_file(path: str, *, known: bool) -> None:
    """Raises `DataError` unless there is a file, of a `known` format."""
    formats = f"Use one of: {', '.join(FORMATS)}."
    if re.match(r"\w+://", path):
        raise DataError(f"{path} is a URL. Download it, and give the file.")
    if Path(path).is_dir():
        raise DataError(f"{path} is a folder. Give a file in it. {formats}")
    if not Path(path).is_file():
        raise DataError(f"{path} does not exist, or is not a file.")
    with open(path, "rb") as file:
        start = file.read(6)
    if not start.startswith(b"PAR1") and start.startswith(tuple(COMPRESSED)):
        raise DataError(f"{path} is compressed, or a spreadsheet. Unpack or save it as one of: {', '.join(FORMATS)}.")
    if not known:
        raise DataError(f"{path} has an extension that is not supported. {formats}")


# The first bytes of zip (and xlsx), gzip, bzip2, xz and zstd.
COMPRESSED = (b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


def _check_text_file(path: str) -> None:
    content = Path(path).read_bytes()
    utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    convert = f"iconv -f {'utf-16' if utf16 else 'latin1'} -t utf-8 {path} > utf8-{Path(path).name}"
    try:
        blank = not content.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        where = f"byte 0x{error.object[error.start]:02x} at offset {error.start}"
        kind = "UTF-16" if utf16 else "Latin-1"
        raise DataError(f"{path} is not UTF-8: {where}. Convert it, for example from {kind}: {convert}") from None
    if blank:
        raise DataError(f"{path} has no rows.")
    if (nul := content.find(0)) >= 0:
        raise DataError(f"{path} is not text: byte 0x00 at offset {nul}. If it is UTF-16, convert it with iconv.")


def select(source: str, dataset: Dataset, names: Columns) -> Table:
    """The columns given by `names`, as `text`, `text_pair` and `label`; the last two are optional.

    Raises:
        DataError: if `dataset` (`source` in messages) lacks one of them.
    """
    columns = {"text": names.text, "text_pair": names.text_pair, "label": names.label}
    used = {new: old for new, old in columns.items() if old is not None}
    several = (names.label or "").split(",")
    if len(several) > 1 and all(name in dataset.column_names for name in several):
        raise DataError(
            f"{source}: several label columns ({names.label}) are multi-label data. Pass --task "
            "multi-label-classification, or name one column with --label_column."
        )
    if missing := [old for old in used.values() if old not in dataset.column_names]:
        raise DataError(
            f"{source} has no column {', '.join(missing)}; its columns are {', '.join(dataset.column_names)}. "
            f"{_column_advice(source, missing, dataset.column_names)}"
        )
    values = {new: dataset[old][:] for new, old in used.items()}
    if "label" in values:
        values["label"] = [float(value) if isinstance(value, Decimal) else value for value in values["label"]]
    if names.label is None:
        return Table(source, values, None)
    feature = dataset.features[names.label]
    known = tuple(feature.names) if isinstance(feature, ClassLabel) else names.label_names
    if known:
        values["label"] = [known[v] if isinstance(v, int) and 0 <= v < len(known) else v for v in values["label"]]
    return Table(source, values, known)


def is_list(rows: Dataset, column: str) -> bool:
    """Whether a column, by its first row, holds lists: in csv and tsv files JSON, such as `["joy", "anger"]`."""
    return isinstance(json_value(rows[0][column]), list)


def json_value(cell: Any) -> Any:
    """The list or object that a cell holds as JSON; any other cell as it is."""
    if isinstance(cell, str) and cell.lstrip()[:1] in ("[", "{"):
        try:
            return parse_json(cell)
        except ValueError:
            return cell
    return cell


def _column_advice(source: str, missing: Sequence[str], columns: Sequence[str]) -> str:
    """What to do about missing columns: the likeliest cause first."""
    folded = {name.strip().casefold(): name for name in columns}
    if alike := [folded[name.casefold()] for name in missing if name.casefold() in folded]:
        return f"Names must agree in blanks and case: {', '.join(map(repr, alike))}."
    own = {".csv": ",", ".tsv": "\t"}.get(Path(source).suffix.lower())
    other = likely_separator(columns[0], own) if len(columns) == 1 else None
    if own and other:
        return f"It seems to be separated by {other!r}; pass --separator {other!r}."
    advice = "For your files pass --text_column, --text_pair_column and --label_column."
    return f"{advice} The first line must name the columns." if own else advice


def check_rows(table: Table, *, blank_allowed: bool, numbers: bool) -> None:
    """Raises `DataError` if a text is missing or not a string, or a label is missing or (unless `numbers`) -1."""
    for column in sorted(table.columns.keys() - {"label"}):
        texts = table.columns[column]
        wrong = [not isinstance(text, str | None) for text in texts]
        table.refuse(wrong, f"{column} that is not a string", "Write it as text, or name another column.")
        blank = [text is None or not (blank_allowed or text.strip()) for text in texts]
        table.refuse(blank, f"empty {column}", "Fill or remove them.")
    if "label" not in table.columns:
        return
    labels = table.columns["label"]
    table.refuse([_is_missing(label, numbers=numbers) for label in labels], "no label", "Fill or remove them.")
    lists = [isinstance(label, list | tuple | np.ndarray) for label in labels]
    table.refuse(lists, "several labels (multi-label data)", "Pass --task multi-label-classification.")
    wrong = [not isinstance(label, str | int | float) for label in labels]
    table.refuse(wrong, "labels that are neither strings nor numbers", "Name another column with --label_column.")
    if not numbers:
        cure = "Use a labelled split; if -1 is one of your classes, write it as a word."
        table.refuse([_whole(_label_text(label)) == "-1" for label in labels], "label -1 (unlabelled)", cure)


def class_names(train: Table) -> tuple[str, ...]:
    """Label names by class id: the known ones, else those found, in alphabetical order or, if integers, by value.

    Raises:
        DataError: if the labels are fractional numbers, or most rows have a label of their own.
    """
    if train.label_names:
        return train.label_names
    found = {_label_text(value) for value in train.columns["label"]}
    if all(_whole(name) for name in found):
        found = {_whole(name) for name in found}
    numbers = [_number(name) for name in found]
    if None not in numbers and any(number % 1 for number in numbers if number is not None):
        what = f"the labels are fractional numbers ({len(found)} different ones), not classes"
        raise DataError(f"{train.source}: {what}. Pass --regression to fit them.")
    if len(found) > max(50, len(train.columns["label"]) // 2):
        rows = len(train.columns["label"])
        raise DataError(
            f"{train.source}: the labels have {len(found):,} different values in {rows:,} rows, such as "
            f"{min(found)!r:.80}: texts or ids, not classes. Name another column with --label_column."
        )
    whole = all(re.fullmatch(r"0|-?[1-9]\d*", name) for name in found)
    return tuple(sorted(found, key=int if whole else None))


def numbered(table: Table, names: tuple[str, ...] | None, rows: int | None) -> Dataset:
    """The first `rows` rows with `label` as class id (`int64`), or as number (`float32`) if `names` is `None`.

    Raises:
        DataError: if a label is not among `names`, or is not a finite `float32`.
    """
    labels = _numbers(table) if names is None else _ids(table, names)
    features = {column: Value("string") for column in table.columns} | {"label": Value(str(labels.dtype))}
    columns = table.columns | {"label": labels}
    return Dataset.from_dict({name: values[:rows] for name, values in columns.items()}, features=Features(features))


def _numbers(table: Table) -> np.ndarray:
    labels = table.columns["label"]
    numbers = [_number(label) for label in labels]
    wrong = [number is None for number in numbers]
    example = next((label for label, is_wrong in zip(labels, wrong, strict=True) if is_wrong), None)
    table.refuse(wrong, f"labels that are not numbers (such as {example!r})", "Correct or remove them.")
    with np.errstate(over="ignore"):
        rounded = np.array(numbers, dtype=np.float32)
    table.refuse(list(~np.isfinite(rounded)), "labels that are not finite in float32", "Correct or remove them.")
    return rounded


def _ids(table: Table, names: tuple[str, ...]) -> np.ndarray:
    ids = {name: i for i, name in enumerate(names)}
    texts = [_label_text(label) for label in table.columns["label"]]
    texts = [text if text in ids else _whole(text) or text for text in texts]
    unknown = [text not in ids for text in texts]
    example = next((text for text, is_unknown in zip(texts, unknown, strict=True) if is_unknown), "")
    what = f"labels that are not among {listed(names)} (such as {example!r})"
    table.refuse(unknown, what, "Each class must occur in the train data.")
    return np.array([ids[text] for text in texts], dtype=np.int64)


def _is_missing(label: Any, *, numbers: bool) -> bool:
    if isinstance(label, float):
        return math.isnan(label) and not numbers  # in a regression nan is a wrong value, with another message
    return label is None or (isinstance(label, str) and not label.strip())


def _whole(text: str) -> str:
    """A whole number without its decimal point, "1" of "1.0"; empty if the text is another one."""
    return text.partition(".")[0] if re.fullmatch(r"-?\d+(\.0+)?", text) else ""


def _label_text(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _number(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


def listed(names: Sequence[str]) -> str:
    """The names, joined by commas; of more than 12 the first ten and the count."""
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:10])} ... ({len(names)} in all)"
