"""Loads GLUE, a data set or own files for the command line.

Tables have the columns `text`, `text_pair` (pairs only) and `label`. Checks of data that need no model are here. In a
`TaskData` each row has its texts (blank ones in GLUE only: official QQP has two empty questions) and a label that is a
class id below the number of names, or a finite number. Anything else raises a `DataError`; nothing is dropped or
guessed.
"""

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hf_xtc.data.data_set import read_data_set
from hf_xtc.data.glue import GLUE, GLUE_DIR_HELP, glue_tables
from hf_xtc.data.separators import parse_separator
from hf_xtc.data.tables import FORMATS, Columns, check_rows, class_names, listed, numbered, read_file, select
from hf_xtc.errors import DataError, needs_extra
from hf_xtc.files.sentence_files import POOLINGS

with needs_extra("cli"):
    from datasets import Dataset

logger = logging.getLogger(__name__)

MAX_SELECTION_ROWS = 1000


@dataclass
class DataArguments:
    """What to train and evaluate on, for `HfArgumentParser`: a GLUE task, a data set, or own files.

    Raises:
        DataError: if not exactly one of the three is given, an option belongs to another of them, the task is unknown,
            columns coincide, or a number is not positive.
    """

    task: str | None = field(
        default=None,
        metadata={"help": "Task; default: that of teacher and columns."},
    )
    task_name: str | None = field(default=None, metadata={"help": f"GLUE task: {', '.join(GLUE)}."})
    data_dir: str | None = field(default=None, metadata={"help": GLUE_DIR_HELP})
    dataset_name: str | None = field(default=None, metadata={"help": "Data set: a folder of its files, or a Hub id."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Revision of a data set on the Hub."})
    train_split_name: str | None = field(default=None, metadata={"help": "Its split to train on; default: train."})
    validation_split_name: str | None = field(
        default=None, metadata={"help": "Its split to evaluate on; default: validation."}
    )
    test_split_name: str | None = field(default=None, metadata={"help": "Its split to report on beside that."})
    train_file: str | None = field(default=None, metadata={"help": f"Train data ({', '.join(FORMATS)})."})
    validation_file: str | None = field(default=None, metadata={"help": "Own validation data, in the same formats."})
    test_file: str | None = field(default=None, metadata={"help": "Own data to report on beside the validation data."})
    separator: str | None = field(
        default=None, metadata={"help": "Character between the cells of csv and tsv files; default: comma and tab."}
    )
    text_column: str = field(
        default="text", metadata={"help": "Column with the text.", "aliases": ["--text_column_name"]}
    )
    text_pair_column: str | None = field(default=None, metadata={"help": "Column with a second text."})
    label_column: str = field(
        default="label", metadata={"help": "Column with the class or number.", "aliases": ["--label_column_name"]}
    )
    regression: bool = field(default=False, metadata={"help": "The labels are numbers, not classes."})
    positive_label: str | None = field(
        default=None,
        metadata={"help": "Of two classes, the one whose F1 is reported; default: class 1 of the model."},
    )
    pooling: str | None = field(
        default=None,
        metadata={
            "help": "Pooling of sentence embeddings: mean or cls; default: as the model's modules.json says, or mean."
        },
    )
    max_length: int = field(default=128, metadata={"help": "Tokens per row; longer rows are truncated."})
    doc_stride: int | None = field(
        default=None,
        metadata={
            "help": "Tokens that windows of a long context share (question answering); default: max_length / 3."
        },
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first N rows only."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on the first N rows only."})
    selection_share: float = field(
        default=0.0,
        metadata={"help": "Share of the train rows (1,000 at most) held out to choose rates and checkpoints."},
    )
    unlabelled: list[str] = field(
        default_factory=list,
        metadata={
            "help": "More texts to distil on, labels unknown or ignored: files with the train data's text "
            "columns, or GLUE tasks, whose train rows are taken."
        },
    )

    def __post_init__(self) -> None:
        files = {"train_file": self.train_file, "validation_file": self.validation_file}
        given = {"task_name": self.task_name, "dataset_name": self.dataset_name, **files}
        given = {name: value for name, value in given.items() if value is not None}
        if list(given) not in (["task_name"], ["dataset_name"], list(files)):
            found = ", ".join(f"{name}={value!r}" for name, value in given.items()) or "none of them"
            raise DataError(
                f"Pass one of --task_name, --dataset_name, or both --train_file and --validation_file; got {found}."
            )
        of = {"dataset_name": ("dataset_config_name", "dataset_revision", *SPLITS), "train_file": ("test_file",)}
        for needed, options in of.items():
            for name in options:
                if getattr(self, name) is not None and getattr(self, needed) is None:
                    raise DataError(f"--{name}={getattr(self, name)} has no effect without --{needed}.")
        if self.separator is not None:
            self.separator = parse_separator(self.separator)
        if self.task_name is not None and self.task_name not in GLUE:
            raise DataError(f"Unknown GLUE task {self.task_name!r}. Use one of: {', '.join(GLUE)}.")
        if self.task_name is None and self.data_dir is not None:
            raise DataError(
                "--data_dir is for GLUE and needs --task_name; own data goes to --dataset_name or --train_file."
            )
        if self.regression and self.task_name not in (None, "stsb"):
            raise DataError(f"GLUE task {self.task_name} is a classification; --regression is for own files.")
        if self.regression and self.task not in (None, "regression"):
            raise DataError(f"--regression is the task regression, but --task is {self.task}. Leave one of them out.")
        if self.positive_label is not None and (self.regression or self.task_name is not None):
            raise DataError(
                f"--positive_label={self.positive_label} is for own files with two classes; "
                + (f"GLUE's {self.task_name} has metrics of its own." if self.task_name else "a regression has none.")
            )
        if self.pooling is not None and self.pooling not in POOLINGS:
            raise DataError(f"--pooling={self.pooling} does not exist. Use one of: {', '.join(POOLINGS)}.")
        if not 0 <= self.selection_share < 1:
            raise DataError(f"--selection_share must be at least 0 and below 1, but is {self.selection_share}.")
        columns = [self.text_column, self.text_pair_column, self.label_column]
        if len(set(columns)) < len(columns):
            raise DataError(f"The text, text pair and label columns must differ, but are {columns}.")
        if self.doc_stride is not None and not 0 <= self.doc_stride < self.max_length:
            raise DataError(f"--doc_stride must be from 0 to max_length - 1, but is {self.doc_stride}.")
        for name in ("max_length", "max_train_samples", "max_eval_samples"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise DataError(f"--{name} must be at least 1, but is {getattr(self, name)}.")

    @property
    def partial(self) -> bool:
        """Whether there are no train rows, so that the labels of a model's head may be more than those of the rows."""
        return False

    @property
    def numbers(self) -> bool:
        """Whether the labels are numbers."""
        return self.regression or self.task in ("regression", "reranking") or self.task_name == "stsb"

    @property
    def columns(self) -> Columns:
        """The columns of the train data."""
        own = Columns(self.text_column, self.text_pair_column, label=self.label_column)
        return own if self.task_name is None else GLUE[self.task_name]


# Options of `DataArguments` that name a split of a data set -> that split's default, if it has one.
SPLITS = {"train_split_name": "train", "validation_split_name": "validation", "test_split_name": ""}


@dataclass(frozen=True)
class TaskData:
    """Train and validation data with the columns `text`, `text_pair` (pairs only) and `label`.

    Args:
        name (`str`): GLUE task, data set, or the name of the train file (of its folder, if it is called train).
        task (`str` or `None`): GLUE task; `None` for own files.
        train (`datasets.Dataset`): `label` is a class id (`int64`), or for regression a finite `float32`.
        validation (`datasets.Dataset`): Likewise.
        extra_validation (`dict[str, datasets.Dataset]`): `{"mismatched": ...}` for mnli, and `{"test": ...}` where a
            test split was given.
        label_names (`tuple[str, ...]` or `None`): Names by class id; `None` for regression.
        fingerprint (`str`): sha256 (hex) of label names, train and validation rows as loaded (`align_labels` keeps
            it): equal for equal contents, whatever the file, process or cache.
        selection (`datasets.Dataset`, *optional*): Rows held out of `train`, to select learning rates and checkpoints.
        positive (`int`, *optional*): Of two classes, the id of the one whose F1 is reported; default: the model's 1.
        partial (`bool`): Whether there are no train rows: `train` repeats the validation rows, and a model's head may
            have more labels.
    """

    name: str
    task: str | None
    train: Dataset
    validation: Dataset
    extra_validation: dict[str, Dataset]
    label_names: tuple[str, ...] | None
    fingerprint: str
    selection: Dataset | None = None
    positive: int | None = None
    partial: bool = False

    @property
    def positive_class(self) -> str | None:
        """Name of the class whose F1 is reported; `None` if no such score is."""
        if self.label_names is None or len(self.label_names) != 2 or self.task not in (None, "mrpc", "qqp"):
            return None
        return self.label_names[1 if self.positive is None else self.positive]

    @property
    def regression(self) -> bool:
        """Whether the labels are numbers."""
        return self.label_names is None

    @property
    def reserved(self) -> list[Dataset]:
        """The splits for selection and evaluation, which are never trained on."""
        held_out = [] if self.selection is None else [self.selection]
        return [self.validation, *held_out, *self.extra_validation.values()]

    @property
    def has_pairs(self) -> bool:
        """Whether each row has two texts."""
        return "text_pair" in self.train.column_names


Source = tuple[str, Dataset, Columns]
"""A table's name for messages, its rows as read, and the columns to take."""

Splits = dict[str, Source]
"""The source of each split."""


def load_task(args: DataArguments, sources: Splits | None = None) -> TaskData:
    """The train and validation data that `args` names, checked, with class ids or numbers for labels.

    Label names come from a `ClassLabel` column, else from GLUE, else from the train data: strings in alphabetical,
    integers in numerical order. `max_train_samples` and `max_eval_samples` keep the first rows, after the checks.

    Args:
        args (`DataArguments`): What to load.
        sources (`Splits`, *optional*): What `read_splits` gives, if it was called already.

    Raises:
        DataError: if a file is missing, unreadable, empty or not UTF-8; lacks a column, a text or a label; has a label
            that the train data lacks; if only one class is left to train on; or if the Hub cannot be reached.
    """
    regression = args.numbers
    tables = {split: select(*table) for split, table in (sources or read_splits(args)).items()}
    for table in tables.values():
        check_rows(table, blank_allowed=args.task_name is not None, numbers=regression and args.task_name is None)
    names = None if regression else class_names(tables["train"])
    limits = {"train": args.max_train_samples}
    splits = {k: numbered(table, names, limits.get(k, args.max_eval_samples)) for k, table in tables.items()}
    train = splits["train"]
    if names and len(set(train["label"])) == 1 and not args.partial:
        only = f"all {len(train)} train rows used have the label {names[train['label'][0]]!r}"
        raise DataError(f"{tables['train'].source}: {only}. Training needs at least two classes.")
    positive = _positive(args, names or (), tables["train"].source)
    if names:
        _log_classes(tables["train"].source, names, train)
    return task_data(args, splits, names, positive)


def task_data(
    args: DataArguments, splits: dict[str, Dataset], names: tuple[str, ...] | None, positive: int | None = None
) -> TaskData:
    """Checked splits as `TaskData`: named, fingerprinted, and with rows held out of "train" where asked for.

    Args:
        args (`DataArguments`): Where they come from.
        splits (`dict[str, Dataset]`): "train", "validation" and, if there are more, others to report on.
        names (`tuple[str, ...]`, *optional*), positive (`int`, *optional*): See `TaskData`.

    Raises:
        DataError: if the held-out part, or the rest, would have no rows.
    """
    train, validation = splits["train"], splits["validation"]
    extra = {name: rows for name, rows in splits.items() if name not in ("train", "validation")}
    contents = json.dumps([names, train.to_dict(), validation.to_dict()], sort_keys=True)
    fingerprint = hashlib.sha256(contents.encode()).hexdigest()
    train, selection = hold_out(train, args.selection_share)
    name, task = _data_name(args), args.task_name
    return TaskData(name, task, train, validation, extra, names, fingerprint, selection, positive, args.partial)


def _data_name(args: DataArguments) -> str:
    """The name of the data in messages and cards, without the path of a file or folder."""
    if args.task_name is not None:
        return args.task_name
    if args.dataset_name is not None:
        folder = Path(args.dataset_name)
        name = folder.resolve().name if folder.is_dir() else args.dataset_name
        return name if args.dataset_config_name is None else f"{name} {args.dataset_config_name}"
    path = Path(args.train_file or "").resolve()
    stem = path.name.partition(".")[0] if path.suffix == ".gz" else path.stem
    return path.parent.name if stem == "train" else stem


def _positive(args: DataArguments, names: tuple[str, ...], source: str) -> int | None:
    """Class id of the positive label: in GLUE always 1; `None` if none is given."""
    label = args.positive_label
    if label is None:
        return None if args.task_name is None else 1
    if label not in names or len(names) != 2:
        what = "which has an F1 for two classes only" if label in names else "which it does not have"
        raise DataError(
            f"--positive_label={label} is to be a class of {source}, {what}. Its classes are {listed(names)}."
        )
    return names.index(label)


# What tables write where a label is missing.
_PLACEHOLDERS = {"-", "--", "?", "n/a", "na", "nan", "null", "none", "unknown"}


def class_counts(names: tuple[str, ...], rows: Dataset) -> dict[str, int]:
    """Number of rows of each class, in the order of `names`."""
    counts = Counter(rows["label"])
    return {name: counts[i] for i, name in enumerate(names)}


def _log_classes(source: str, names: tuple[str, ...], train: Dataset) -> None:
    """Logs the classes with their counts, and warns of names that are probably not classes of their own."""
    classes = ", ".join(f"{name!r} {count:,}" for name, count in class_counts(names, train).items())
    logger.info("%s: %d classes, with their rows: %s.", source, len(names), classes)
    if placeholders := [name for name in names if name.strip().lower() in _PLACEHOLDERS]:
        logger.warning(
            "%s: the class %r may stand for a missing label. Remove its rows if so.", source, placeholders[0]
        )
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(" ".join(name.lower().split()), []).append(name)
    for same in alike.values():
        if len(same) > 1:
            logger.warning("%s: the classes %s differ only in blanks or case.", source, " and ".join(map(repr, same)))


def hold_out(train: Dataset, share: float, seed: int = 0) -> tuple[Dataset, Dataset | None]:
    """Splits train rows in two; the second part is random, `share` of the rows but at most `MAX_SELECTION_ROWS`.

    Both parts keep the order of the rows. Which rows are held out depends on their number and the seed alone, and must
    stay as it is: published figures were chosen on these rows. `Dataset.train_test_split` draws others.

    Raises:
        DataError: if one of the parts would have no rows.
    """
    if not share:
        return train, None
    count = min(round(share * len(train)), MAX_SELECTION_ROWS)
    if not 0 < count < len(train):
        raise DataError(f"selection_share={share} of {len(train)} train rows leaves one part without rows. Change it.")
    held = set(np.random.RandomState(seed).permutation(len(train))[:count].tolist())
    rest = [row for row in range(len(train)) if row not in held]
    return train.select(rest), train.select(sorted(held))


def read_splits(args: DataArguments) -> Splits:
    """The rows that `args` names as they were read, before any check of them.

    Raises:
        DataError: if a file or a split is missing, unreadable, empty or not UTF-8, or the Hub cannot be reached.
    """
    if args.task_name is not None:
        return glue_tables(args.task_name, args.data_dir)
    if args.dataset_name is not None:
        names = {option.partition("_")[0]: getattr(args, option) or default for option, default in SPLITS.items()}
        names = {split: name for split, name in names.items() if name}
        rows = read_data_set(args.dataset_name, args.dataset_config_name, args.dataset_revision, {*names.values()})
        return {split: (f"{args.dataset_name} {name}", rows[name], args.columns) for split, name in names.items()}
    files = {"train": args.train_file, "validation": args.validation_file, "test": args.test_file}
    paths = {split: path for split, path in files.items() if path is not None}
    tables = {path: read_file(path, args.separator) for path in {*paths.values()}}  # one file may be two splits
    return {split: (path, tables[path], args.columns) for split, path in paths.items()}


def tokenize(dataset: Dataset, tokenizer: Callable[..., Any], max_length: int) -> Dataset:
    """Tokenizes rows, truncated to `max_length` tokens and not padded.

    Args:
        dataset (`datasets.Dataset`): A split of a `TaskData`.
        tokenizer (`PreTrainedTokenizerBase`): Only called, with lists of texts.
        max_length (`int`): Tokens, special ones included.

    Returns:
        `datasets.Dataset`: lists of integers `input_ids`, `attention_mask` (and `token_type_ids`) of a row's length;
        `labels`, `int64` or `float32`.

    Raises:
        DataError: if `max_length` exceeds what the tokenizer's model takes, or is below its special tokens.
    """
    check_length(tokenizer, max_length)
    texts = [column for column in ("text", "text_pair") if column in dataset.column_names]
    arguments = {"tokenizer": tokenizer, "texts": texts, "max_length": max_length}
    return dataset.rename_column("label", "labels").map(
        encode, batched=True, fn_kwargs=arguments, remove_columns=texts
    )


def check_length(tokenizer: Any, max_length: int) -> None:
    """Raises `DataError` if `max_length` exceeds what a tokenizer's model takes."""
    limit = getattr(tokenizer, "model_max_length", max_length)
    if max_length > limit:
        raise DataError(f"max_length is {max_length}, but the tokenizer's model takes {limit} tokens. Lower it.")


def encode(batch: dict[str, list[str]], tokenizer: Callable[..., Any], texts: list[str], max_length: int) -> Any:
    """The tokens of the columns `texts` of a batch of rows, truncated and not padded.

    Raises:
        DataError: if `max_length` is below the special tokens of a row.
    """
    encoded = dict(tokenizer(*(batch[column] for column in texts), truncation=True, max_length=max_length))
    # fast tokenizers silently do not truncate if the special tokens alone are too many
    if any(len(ids) > max_length for ids in encoded["input_ids"]):
        raise DataError(f"max_length is {max_length}, less than the special tokens of a row. Raise it.")
    return encoded


def align_labels(data: TaskData, label2id: dict[str, int], teacher: str) -> TaskData:
    """`data` with the class ids of the teacher's head.

    Unlike `Dataset.align_labels_with_mapping`, it matches names exactly first and then ignoring case. If those of the
    teacher are generic (`LABEL_0`), or those of the data integers, ids are matched by position, with a warning.
    Regression data is returned as it is.

    Args:
        data (`TaskData`): As `load_task` returns it.
        label2id (`dict[str, int]`): Of the teacher's config.
        teacher (`str`): Its name, for messages.

    Raises:
        DataError: if the labels do not match the head: another number of them, other names, or a classification but
            a head with one output.
    """
    head_names = _head_names(label2id, teacher)
    if data.label_names is None:
        if len(head_names) != 1:
            raise DataError(
                f"{data.name} is a regression, but the head of {teacher} has {len(head_names)} outputs: "
                f"{listed(head_names)}. Use a teacher with num_labels=1."
            )
        return data
    if len(head_names) == 1:
        raise DataError(
            f"{data.name} has the labels {listed(data.label_names)}, but the head of {teacher} has one output, for "
            f"regression. Use a teacher trained on these labels, or --regression if they are numbers."
        )
    ids, names = match_names(data, label2id, teacher)
    positive = None if data.positive is None else ids[data.positive]
    moved = np.array(ids, dtype=np.int64)
    return replace(map_labels(data, names, lambda rows: moved[rows["label"][:]]), positive=positive)


def _head_names(label2id: dict[str, int], teacher: str) -> tuple[str, ...]:
    names = tuple(sorted(label2id, key=label2id.__getitem__))
    if [label2id[name] for name in names] != list(range(len(names))):
        raise DataError(f"label2id of {teacher} does not number its labels from 0: {label2id}.")
    return names


def map_labels(data: TaskData, names: tuple[str, ...], labels: Callable[[Dataset], Any]) -> TaskData:
    """`data` with other label names, and in each split the column `label` that `labels` gives for its rows."""

    def moved(rows: Dataset) -> Dataset:
        return Dataset.from_dict(rows.to_dict() | {"label": labels(rows)}, features=rows.features)

    return replace(
        data,
        label_names=names,
        train=moved(data.train),
        validation=moved(data.validation),
        extra_validation={split: moved(rows) for split, rows in data.extra_validation.items()},
        selection=None if data.selection is None else moved(data.selection),
    )


def match_names(
    data: TaskData, label2id: dict[str, int], teacher: str, *, subset: bool = False
) -> tuple[list[int], tuple[str, ...]]:
    """The teacher's id of each of the data's ids, and the label names by the teacher's ids.

    Args:
        data (`TaskData`), label2id (`dict[str, int]`), teacher (`str`): As of `align_labels`.
        subset (`bool`): Whether the data may lack labels that the teacher has, as `partial` data may.

    Raises:
        DataError: if the labels do not match.
    """
    names, head_names = data.label_names or (), _head_names(label2id, teacher)
    positions, subset = list(range(len(names))), subset or data.partial
    for fold in (str, str.casefold):  # exact names first, so that "us" and "US" may be two labels
        by_name = {fold(name): i for i, name in enumerate(head_names)}
        ids = [by_name.get(fold(name), -1) for name in names]
        if sorted(ids) == list(range(len(head_names))) or (subset and -1 not in ids and len({*ids}) == len(ids)):
            return ids, head_names
    generic_head = all(re.fullmatch(r"LABEL_\d+", name, re.IGNORECASE) for name in head_names)
    if len(head_names) == len(names) and (generic_head or all(re.fullmatch(r"-?\d+", name) for name in names)):
        pairs = ", ".join(f"{name} = {head}" for name, head in zip(names, head_names, strict=True))
        logger.warning("The labels of %s and %s are matched by position: %s.", data.name, teacher, pairs)
        return positions, names if generic_head else head_names
    if data.partial and all(name.isdecimal() and int(name) < len(head_names) for name in names):
        return [int(name) for name in names], head_names
    raise DataError(
        f"{data.name} has labels that do not match the head: the data has {len(names)} ({listed(names)}), {teacher} "
        f"has {len(head_names)} ({listed(head_names)}). Use a teacher trained on these labels."
    )
