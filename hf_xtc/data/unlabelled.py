"""Rows without labels, for distillation: reads them, drops those that must not be trained on, labels the rest.

The teacher labels them, where train rows have labels. `new_rows`, `teacher_labels` and `reserved_rows` also serve
augmentation.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hf_xtc.data.glue import GLUE, glue_tables
from hf_xtc.data.tables import check_rows, read_file, select
from hf_xtc.data.task_data import DataArguments, TaskData
from hf_xtc.data.texts import all_texts
from hf_xtc.errors import DataError, needs_extra

with needs_extra("cli"):
    import pandas as pd
    import pyarrow.compute as pc
    from datasets import Dataset, Features, Value, concatenate_datasets

logger = logging.getLogger(__name__)

TEXTS = ("text", "text_pair")
LABEL_ROWS = 128  # per forward pass of the teacher


def load_unlabelled(args: DataArguments, data: TaskData) -> Dataset | None:
    """The texts of `args.unlabelled` that may train a student of `data`; `None` if there are no sources.

    Leaves out repeated rows, train rows, and rows that share a text with a validation or held-out row. Texts are
    compared ignoring case and white space.

    Returns:
        `datasets.Dataset`: `text` and, of pairs, `text_pair`.

    Raises:
        DataError: if a source cannot be read or lacks a text, if only one of source and
            data has pairs, or if no row is left.
    """
    if not args.unlabelled:
        return None
    sides = [side for side in TEXTS if side in data.train.column_names]
    plain = "label" not in data.train.column_names
    rows = concatenate_datasets([_texts(source, args, sides, plain=plain) for source in args.unlabelled])
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


def _texts(source: str, args: DataArguments, sides: Sequence[str], *, plain: bool) -> Dataset:
    if source in GLUE:
        name, rows, columns = glue_tables(source, args.data_dir)["train"]
    else:
        name, rows, columns = source, read_file(source, args.separator), args.columns
    if plain:
        texts = all_texts(name, rows, columns, blanks_allowed=source in GLUE)
        return Dataset.from_dict({"text": texts}, features=Features({"text": Value("string")}))
    found = select(name, rows, columns._replace(label=None))
    if list(found.columns) != list(sides):
        theirs, ours = ("two texts" if len(names) == 2 else "one text" for names in (found.columns, sides))
        raise DataError(f"{name} has {theirs} per row, the train data {ours}. Leave it out.")
    check_rows(found, blank_allowed=source in GLUE, numbers=False)
    return Dataset.from_dict(found.columns, features=Features({side: Value("string") for side in sides}))


def with_teacher_labels(rows: Dataset, train: Dataset, teacher: Any, tokenizer: Any, max_length: int) -> Dataset:
    """The train rows, then the unlabelled ones, with what the teacher predicts if train rows have labels.

    Args:
        rows (`datasets.Dataset`): As `load_unlabelled` returns them.
        train (`datasets.Dataset`): Their texts and, if they have one, `label`.
        teacher (`PreTrainedModel`), tokenizer (`PreTrainedTokenizerBase`): Its class ids are those of `train`.
        max_length (`int`): Tokens of a row.
    """
    if "label" not in train.column_names:
        return concatenate_datasets([train.select_columns(rows.column_names), rows])
    labels = teacher_labels(teacher, tokenizer, rows, rows.column_names, max_length)
    columns = [*rows.column_names, "label"]
    labelled = rows.add_column("label", list(labels), feature=train.features["label"])
    return concatenate_datasets([train.select_columns(columns), labelled])


def new_rows(old: Sequence[Dataset], varied: Dataset, sides: Sequence[str]) -> np.ndarray:
    """Indices of the rows of `varied` whose texts occur neither in `old` nor in an earlier row of `varied`."""
    keys = pd.concat([pd.DataFrame({side: _folded(split, side) for side in sides}) for split in (*old, varied)])
    seen: np.ndarray = keys.duplicated().to_numpy()
    new: np.ndarray = np.flatnonzero(~seen[sum(map(len, old)) :])
    return new


def _folded(dataset: Dataset, side: str) -> pd.Series:
    """A column of texts in lower case, each run of white space one space."""
    texts = pc.utf8_lower(dataset.select_columns([side]).with_format("arrow")[:][side])
    folded = pc.utf8_trim_whitespace(pc.replace_substring_regex(texts, r"\s+", " "))
    return pd.Series(folded.to_numpy(zero_copy_only=False), dtype="str")


@torch.no_grad()
def teacher_labels(
    teacher: Any, tokenizer: Any, dataset: Dataset, sides: Sequence[str], max_length: int
) -> np.ndarray:
    """The class that the teacher predicts for each row, the number if it has one output, or which labels it gives.

    Returns:
        `numpy.ndarray`: `(rows,)`, int64 or float32; of a multi-label teacher `(rows, labels)`, float32 0 and 1.
    """
    texts = [dataset[side][:] for side in sides]
    order = np.argsort([sum(map(len, row)) for row in zip(*texts, strict=True)], kind="stable")
    outputs = np.zeros((len(dataset), teacher.config.num_labels), dtype=np.float32)
    training = teacher.training
    teacher.eval()
    for start in range(0, len(order), LABEL_ROWS):
        rows = order[start : start + LABEL_ROWS]
        batch = [[column[row] for row in rows] for column in texts]
        inputs = tokenizer(*batch, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
        outputs[rows] = teacher(**inputs.to(teacher.device)).logits.float().cpu().numpy()
    teacher.train(training)
    if teacher.config.problem_type == "multi_label_classification":
        return (outputs > 0).astype(np.float32)
    labels: np.ndarray = outputs[:, 0] if outputs.shape[1] == 1 else outputs.argmax(axis=1)
    return labels
