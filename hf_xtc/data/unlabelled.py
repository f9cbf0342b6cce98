"""Rows without labels, for distillation: reads them, drops those that must not be trained on, labels the rest.

The teacher labels them, where train rows have labels: how rows are read and labelled is the task's. `new_rows`,
`teacher_labels` and `reserved_rows` also serve augmentation.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from hf_xtc.data.glue import GLUE, glue_tables
from hf_xtc.data.tables import Columns, check_rows, read_file, select
from hf_xtc.data.task_data import DataArguments, Source, TaskData
from hf_xtc.data.texts import all_texts
from hf_xtc.errors import DataError, needs_extra

with needs_extra("cli"):
    import pandas as pd
    import pyarrow.compute as pc
    from datasets import Dataset, Features, Value, concatenate_datasets

logger = logging.getLogger(__name__)

TEXTS = ("text", "text_pair")
SIDES = (*TEXTS, "tokens")  # columns of what a row says; `tokens` are lists of words
LABEL_ROWS = 128  # per forward pass of the teacher


def load_unlabelled(
    args: DataArguments, data: TaskData, read: Callable[[Source, TaskData, bool], Dataset]
) -> Dataset | None:
    """The rows of `args.unlabelled` that may train a student of `data`; `None` if there are no sources.

    Leaves out repeated rows, train rows, and rows that share a text with a validation or held-out row. Texts are
    compared ignoring case and white space.

    Args:
        args (`DataArguments`), data (`TaskData`): Options, and the data that the rows are added to.
        read (`Callable`): The task's `unlabelled_rows`.

    Returns:
        `datasets.Dataset`: The columns of the train rows but `label`: those of `SIDES` that they have.

    Raises:
        DataError: if a source cannot be read or lacks a text, if only one of source and
            data has pairs, or if no row is left.
    """
    if not args.unlabelled:
        return None
    sides = [side for side in SIDES if side in data.train.column_names]
    rows = concatenate_datasets([read(_source(source, args), data, source in GLUE) for source in args.unlabelled])
    rows = rows.select(new_rows([data.train], rows, sides))
    reserved = pd.concat([_folded(split, side) for split in reserved_rows(data) for side in sides])
    shared = np.any([_folded(rows, side).isin(reserved).to_numpy() for side in sides], axis=0)
    if shared.all():
        raise DataError(
            f"All unlabelled rows of {', '.join(args.unlabelled)} occur in the train data, or share a text with a "
            "validation or held-out row. Leave them out."
        )
    logger.info(
        "%d unlabelled rows; %d more share a text with a validation or held-out row.", (~shared).sum(), shared.sum()
    )
    return rows.select(np.flatnonzero(~shared))


def reserved_rows(data: TaskData) -> list[Dataset]:
    """The splits that are never trained on, in the text columns of the train rows: of plain texts both of a pair."""
    if "label" in data.train.column_names:
        return data.reserved
    sides = [(split, side) for split in data.reserved for side in TEXTS if side in split.column_names]
    return [split.select_columns([side]).rename_columns({side: "text"}) for split, side in sides]


def _source(source: str, args: DataArguments) -> Source:
    """A source's name for messages, its rows, and the columns to take."""
    if source in GLUE:
        return glue_tables(source, args.data_dir)["train"]
    return source, read_file(source, args.separator), args.columns


def read_texts(source: Source, data: TaskData, blanks_allowed: bool) -> Dataset:
    """The texts of a table in the columns of the train rows; of rows without labels all its texts, one by one.

    A table without the column of single texts, but with a column `text`, as text files have, gives that one.

    Raises:
        DataError: if a text is missing, or if only one of table and train rows has pairs.
    """
    name, rows, columns = source
    sides = [side for side in TEXTS if side in data.train.column_names]
    if "label" not in data.train.column_names:
        texts = all_texts(name, rows, columns, blanks_allowed=blanks_allowed)
        return Dataset.from_dict({"text": texts}, features=Features({"text": Value("string")}))
    if "text" in rows.column_names and columns.text not in rows.column_names and sides == ["text"]:
        columns = Columns("text")
    found = select(name, rows, columns._replace(label=None))
    if list(found.columns) != sides:
        theirs, ours = ("two texts" if len(names) == 2 else "one text" for names in (found.columns, sides))
        raise DataError(f"{name} has {theirs} per row, the train data {ours}. Leave it out.")
    check_rows(found, blank_allowed=blanks_allowed, numbers=False)
    return Dataset.from_dict(found.columns, features=Features({side: Value("string") for side in sides}))


def with_teacher_labels(rows: Dataset, train: Dataset, label: Callable[[Dataset], list[Any]]) -> Dataset:
    """The train rows, then the unlabelled ones, with what the teacher predicts if train rows have labels.

    Args:
        rows (`datasets.Dataset`): As `load_unlabelled` returns them.
        train (`datasets.Dataset`): Their texts and, if they have one, `label`.
        label (`Callable`): Gives the labels of `rows`, in the class ids of `train`.
    """
    if "label" not in train.column_names:
        return concatenate_datasets([train.select_columns(rows.column_names), rows])
    columns = [*rows.column_names, "label"]
    labelled = rows.add_column("label", label(rows), feature=train.features["label"])
    return concatenate_datasets([train.select_columns(columns), labelled])


def new_rows(old: Sequence[Dataset], varied: Dataset, sides: Sequence[str]) -> np.ndarray:
    """Indices of the rows of `varied` whose texts occur neither in `old` nor in an earlier row of `varied`."""
    keys = pd.concat([pd.DataFrame({side: _folded(split, side) for side in sides}) for split in (*old, varied)])
    seen: np.ndarray = keys.duplicated().to_numpy()
    new: np.ndarray = np.flatnonzero(~seen[sum(map(len, old)) :])
    return new


def _folded(dataset: Dataset, side: str) -> pd.Series:
    """A column of texts in lower case, each run of white space one space; of lists of words, however split, none."""
    column = dataset.select_columns([side]).with_format("arrow")[:][side]
    lists = side == "tokens"
    texts = pc.utf8_lower(pc.binary_join(column, "") if lists else column)
    folded = pc.utf8_trim_whitespace(pc.replace_substring_regex(texts, r"\s+", "" if lists else " "))
    return pd.Series(folded.to_numpy(zero_copy_only=False), dtype="str")


def teacher_labels(
    teacher: Any, tokenizer: Any, dataset: Dataset, sides: Sequence[str], max_length: int
) -> np.ndarray:
    """The class that the teacher predicts for each row, the number if it has one output, or which labels it gives.

    Returns:
        `numpy.ndarray`: `(rows,)`, int64 or float32; of a multi-label teacher `(rows, labels)`, float32 0 and 1.
    """
    texts = [dataset[side][:] for side in sides]
    lengths = [sum(map(len, row)) for row in zip(*texts, strict=True)]
    outputs = np.zeros((len(dataset), teacher.config.num_labels), dtype=np.float32)

    def encode(rows: np.ndarray) -> Any:
        batch = [[column[row] for row in rows] for column in texts]
        return tokenizer(*batch, truncation=True, max_length=max_length, padding=True, return_tensors="pt")

    for rows, logits in teacher_logits(teacher, lengths, encode):
        outputs[rows] = logits.numpy()
    if teacher.config.problem_type == "multi_label_classification":
        return (outputs > 0).astype(np.float32)
    labels: np.ndarray = outputs[:, 0] if outputs.shape[1] == 1 else outputs.argmax(axis=1)
    return labels


@torch.no_grad()
def teacher_logits(
    teacher: Any, lengths: Sequence[int], encode: Callable[[np.ndarray], Any]
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """The teacher's logits, for batches of rows of similar length: the rows' numbers, and float32 logits on the CPU.

    Args:
        teacher (`PreTrainedModel`): Any head that gives `logits`.
        lengths (`Sequence[int]`): Of each row.
        encode (`Callable`): Gives the inputs of the rows of such numbers.
    """
    order = np.argsort(lengths, kind="stable")
    training = teacher.training
    teacher.eval()
    for start in range(0, len(order), LABEL_ROWS):
        rows = order[start : start + LABEL_ROWS]
        yield rows, teacher(**encode(rows).to(teacher.device)).logits.float().cpu()
    teacher.train(training)
