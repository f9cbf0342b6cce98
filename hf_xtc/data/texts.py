"""Texts without labels, and pairs of texts with scores: the data of sentence embeddings.

Train rows have one column, `text`. Validation rows have `text`, `text_pair` and, where the file has scores, `label`, a
`float32`. Without scores, each text is paired with the next one, and the teacher says how similar the two are.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_xtc.data.tables import Columns, Table, check_rows, numbered, select
from hf_xtc.data.task_data import DataArguments, Splits, TaskData, check_length, encode, task_data
from hf_xtc.errors import DataError, needs_extra

if TYPE_CHECKING:
    from collections.abc import Callable

with needs_extra("cli"):
    from datasets import Dataset, Features, Value

logger = logging.getLogger(__name__)


def load_texts(args: DataArguments, sources: Splits) -> TaskData:
    """The train texts, each once, and the validation pairs.

    `--text_column` may name several columns, joined by commas, whose texts are all used, as are those of
    `--text_pair_column` where a file has it. A file that has none of them, but a column `text`, gives that one: plain
    texts may train what scored pairs measure. `max_train_samples` and `max_eval_samples` keep the first rows.

    Args:
        args (`DataArguments`): The options.
        sources (`Splits`): As `read_splits` gives them.

    Raises:
        DataError: if a column, a text or a score is missing, or texts without scores are fewer than three.
    """
    source, rows, columns = sources["train"]
    if not any(columns.text_pair in (None, *table.column_names) for _, table, _ in sources.values()):
        select(source, rows, columns._replace(label=None))  # refuses the column that no file has
    blanks = args.task_name is not None
    texts = all_texts(source, rows, columns, blanks_allowed=blanks)
    unique = list(dict.fromkeys(texts))
    if len(unique) < len(texts):
        logger.info("%s: %d of %d texts occur before, and are left out.", source, len(texts) - len(unique), len(texts))
    splits = {"train": _dataset({"text": unique[: args.max_train_samples]})}
    for name, (path, table, names) in sources.items():
        if name != "train":
            splits[name] = _pairs(path, table, names, args.max_eval_samples, blanks_allowed=blanks)
    return task_data(args, splits, None)


def is_scored(rows: Dataset, columns: Columns) -> bool:
    """Whether a table has pairs of texts with scores, or is to have: a label column that is named must be there."""
    pairs = columns.text_pair is not None and {columns.text, columns.text_pair} <= {*rows.column_names}
    return pairs and (columns.label in rows.column_names or columns.label != "label")


def neighbours(texts: Sequence[str]) -> Dataset:
    """Pairs of each text and the next one, the last and the first: columns `text` and `text_pair`."""
    return _dataset({"text": list(texts), "text_pair": [*texts[1:], *texts[:1]]})


def encode_texts(rows: Dataset, tokenizer: "Callable[..., Any]", max_length: int, prompt: str = "") -> Dataset:
    """Texts as model inputs, truncated to `max_length` tokens and not padded.

    Args:
        rows (`datasets.Dataset`): `text`; or pairs, `text` and `text_pair`, with a `label` or without.
        prompt (`str`): What stands before each text.

    Returns:
        `datasets.Dataset`: a row for each text, of a pair first `text`, then `text_pair`; pairs with a `label` give
        both rows the column `score`.

    Raises:
        DataError: if `max_length` exceeds what the tokenizer's model takes, or is below its special tokens.
    """
    check_length(tokenizer, max_length)
    if "text_pair" in rows.column_names:
        columns: dict[str, Any] = {"text": _alternating(rows["text"][:], rows["text_pair"][:])}
        if "label" in rows.column_names:
            columns["score"] = np.repeat(np.array(rows["label"][:], np.float32), 2)
        rows = _dataset(columns)

    if prompt:
        rows = rows.map(lambda texts: {"text": [prompt + text for text in texts["text"]]}, batched=True)
    arguments = {"tokenizer": tokenizer, "texts": ["text"], "max_length": max_length}
    return rows.map(encode, batched=True, fn_kwargs=arguments, remove_columns=["text"])


def with_scores(rows: Dataset, scores: np.ndarray) -> Dataset:
    """Pairs with their scores, `(rows,)` float32, as `label`."""
    return _dataset({"text": rows["text"][:], "text_pair": rows["text_pair"][:], "label": scores})


def _alternating(first: Sequence[str], second: Sequence[str]) -> list[str]:
    return [text for pair in zip(first, second, strict=True) for text in pair]


def all_texts(source: str, rows: Dataset, columns: Columns, *, blanks_allowed: bool) -> list[str]:
    """The texts of all text columns of a table, row by row."""
    names = [name.strip() for name in columns.text.split(",")]
    if columns.text_pair is not None and columns.text_pair in rows.column_names:
        names.append(columns.text_pair)
    plain = "text" in rows.column_names and not {*names} & {*rows.column_names}
    names = ["text"] if plain else names  # `select` refuses what is missing
    tables = [select(source, rows, Columns(name, label=None)) for name in names]
    for table in tables:
        check_rows(table, blank_allowed=blanks_allowed, numbers=False)
    lists = [table.columns["text"] for table in tables]
    return [text for row in zip(*lists, strict=True) for text in row if text.strip()]


def _pairs(source: str, rows: Dataset, columns: Columns, limit: int | None, *, blanks_allowed: bool) -> Dataset:
    """The scored pairs of a table or, if it has no scores, each of its texts with the next."""
    if is_scored(rows, columns):
        table: Table = select(source, rows, columns._replace(label_names=None))
        check_rows(table, blank_allowed=blanks_allowed, numbers=True)
        return numbered(table, None, limit)
    texts = list(dict.fromkeys(all_texts(source, rows, columns, blanks_allowed=blanks_allowed)))[:limit]
    if len(texts) < 3:
        raise DataError(f"{source} has {len(texts)} different texts; three are needed to compare similarities.")
    return neighbours(texts)


def _dataset(columns: dict[str, Any]) -> Dataset:
    kinds = {name: Value("string" if name.startswith("text") else "float32") for name in columns}
    return Dataset.from_dict(columns, features=Features(kinds))
