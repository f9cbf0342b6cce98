"""A tag for each word of a text, such as named entities in the schemes IOB1, IOB2 and BIOES."""

import logging
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification

from hf_xtc.errors import DataError
from hf_xtc.tasks.base import TASKS, Task
from hf_xtc.tasks.sequence_classification import named_head

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_xtc.data.tables import Table
    from hf_xtc.data.task_data import DataArguments, Source, Splits, TaskData

logger = logging.getLogger(__name__)

# Columns where --text_column and --label_column name none of the table.
TOKENS = ("tokens", "words")
TAGS = ("tags", "ner_tags", "labels")
IGNORED = -100  # the label of pieces that are not the first of a word, and of special tokens
ENTITY = re.compile(r"([BIES])-(.+)")
WORD = re.compile(r"\w+|[^\w\s]")


@TASKS.register("token-classification")
class TokenClassification(Task):
    """Words in one column and their tags in another, both lists. In a `TaskData` they are `tokens` and `label`.

    Words are split into pieces by the tokenizer; the first piece of a word has its label. Words that are cut off by
    `--max_length`, or of which the tokenizer leaves nothing, are not scored.
    """

    auto_class = AutoModelForTokenClassification
    head = "ForTokenClassification"
    pipeline_tag = "token-classification"
    fixed_words = "where a word of an entity is replaced, its tags no longer hold"
    fixed_rows = None
    snippet = """import {package}  # registers the architecture
from transformers import pipeline

pipe = pipeline("{tag}", aggregation_strategy="simple", model={folder}"""

    def reads(self, args: "DataArguments", rows: "Dataset") -> bool:
        from hf_xtc.data.tables import is_list

        columns = _columns(args, rows.column_names)
        return all(name in rows.column_names and is_list(rows, name) for name in columns)

    def load(self, args: "DataArguments", sources: "Splits") -> "TaskData":
        from hf_xtc.data.task_data import task_data

        tables = {split: _table(args, *source[:2]) for split, source in sources.items()}
        names = _names(tables["train"], least=1 if args.partial else 2)
        limits = {"train": args.max_train_samples}
        splits = {k: _rows(table, names, limits.get(k, args.max_eval_samples)) for k, table in tables.items()}
        return task_data(args, splits, names)

    def tokenize(self, rows: "Dataset", tokenizer: Any, args: "DataArguments") -> "Dataset":
        from hf_xtc.data.task_data import check_length

        check_length(tokenizer, args.max_length)
        if not tokenizer.is_fast:
            raise DataError(
                f"{type(tokenizer).__name__} does not tell which word a piece is of; use a fast tokenizer."
            )
        options = {"tokenizer": tokenizer, "max_length": args.max_length, "space": _needs_space(tokenizer)}
        found = rows.map(_encode, batched=True, fn_kwargs=options, remove_columns=rows.column_names)
        words = sum(map(len, rows["label"]))
        if lost := words - sum(label != IGNORED for labels in found["labels"] for label in labels):
            logger.warning("%d of %d words are not used: beyond max_length, or without a piece.", lost, words)
        return found

    def unlabelled_rows(self, source: "Source", data: "TaskData", blanks_allowed: bool) -> "Dataset":
        """Lists of words, or else texts, which are split into words and single marks."""
        from datasets import Dataset, Features, List, Value

        from hf_xtc.data.tables import is_list
        from hf_xtc.data.texts import all_texts

        name, rows, columns = source
        lists = (column for column in (columns.text, *TOKENS) if column in rows.column_names and is_list(rows, column))
        column = next(lists, None)
        if column is not None:
            words = _words(name, rows, column)
        else:
            texts = all_texts(name, rows, columns, blanks_allowed=blanks_allowed)
            words = [WORD.findall(text) for text in texts]
        return Dataset.from_dict({"tokens": words}, features=Features({"tokens": List(Value("string"))}))

    def teacher_labels(self, teacher: Any, tokenizer: Any, rows: "Dataset", args: "DataArguments") -> list[list[int]]:
        """The likeliest tag of each word; 0 where a word has no piece within `--max_length`, which is not used."""
        from hf_xtc.data.unlabelled import teacher_logits

        words, space = rows["tokens"][:], _needs_space(tokenizer)
        labels, firsts = [[0] * len(row) for row in words], {}

        def encode(numbers: np.ndarray) -> Any:
            batch = _split([words[i] for i in numbers], tokenizer, args.max_length, space=space)
            firsts.update({i: _first_pieces(batch, row) for row, i in enumerate(numbers)})
            return tokenizer.pad(batch, return_tensors="pt")

        for numbers, logits in teacher_logits(teacher, [sum(map(len, row)) for row in words], encode):
            for i, tags in zip(numbers, logits.argmax(-1).tolist(), strict=True):
                for word, tag in zip(firsts[i], tags, strict=False):
                    if word is not None:
                        labels[i][word] = tag
        return labels

    def collator(self, tokenizer: Any) -> Any:
        return DataCollatorForTokenClassification(tokenizer, label_pad_token_id=IGNORED)

    def facts(self, data: "TaskData") -> dict[str, Any]:
        return {"tags": list(data.label_names or ())}

    def head_config(self, data: "TaskData") -> dict[str, Any]:
        return named_head(data.label_names or ())

    def align_labels(self, data: "TaskData", config: Any, model: str) -> "TaskData":
        from hf_xtc.data.task_data import map_labels, match_names

        ids, names = match_names(data, config.label2id, model, subset=True)
        return map_labels(data, names, lambda rows: [[ids[label] for label in row] for row in rows["label"]])

    def main_metric(self, data: "TaskData") -> str:
        return self.metric_names(data)[0]

    def metric_names(self, data: "TaskData") -> tuple[str, ...]:
        return ("f1", "precision", "recall", "accuracy") if has_entities(data.label_names or ()) else ("accuracy",)

    def compute_metrics(self, data: "TaskData", rows: "Dataset") -> Callable[[Any], dict[str, float]]:
        names = data.label_names or ()

        def compute(prediction: Any) -> dict[str, float]:
            pairs = zip(np.asarray(prediction.label_ids), np.asarray(prediction.predictions), strict=True)
            found = [(label[label != IGNORED], guess[label != IGNORED]) for label, guess in pairs]
            if any((guess < 0).any() for _, guess in found):
                return dict.fromkeys(self.metric_names(data), float("nan"))
            gold, predicted = ([[names[i] for i in row[side]] for row in found] for side in (0, 1))
            return tag_scores(gold, predicted, entities=has_entities(names))

        return compute

    def reduce_outputs(self, outputs: Any, labels: Any) -> Any:
        return likeliest(outputs)


def likeliest(logits: Any) -> Any:
    """The class of each token, `(rows, tokens)`, of logits `(rows, tokens, classes)`; -1 where one is NaN."""
    return logits.argmax(-1).masked_fill(logits.isnan().any(-1), -1)


def _columns(args: "DataArguments", columns: Sequence[str]) -> tuple[str, str]:
    """The columns of the words and of the tags: those that were named if they exist, else the usual names."""
    text, label = args.text_column, args.label_column
    words = text if text in columns else next((name for name in TOKENS if name in columns), text)
    return words, label if label in columns else next((name for name in TAGS if name in columns), label)


def _table(args: "DataArguments", source: str, rows: "Dataset") -> "Table":
    """The words and the tags of a split, as text."""
    from hf_xtc.data.tables import Table, json_value

    names = _columns(args, rows.column_names)
    if missing := [name for name in names if name not in rows.column_names]:
        raise DataError(
            f"{source} has no column {', '.join(missing)}; its columns are {', '.join(rows.column_names)}. Name the "
            "lists of words with --text_column, and those of their tags with --label_column."
        )
    words, tags = _words(source, rows, names[0]), [json_value(cell) for cell in rows[names[1]][:]]
    known = getattr(getattr(rows.features[names[1]], "feature", None), "names", None)
    table = Table(source, {"tokens": words, "label": tags}, tuple(known) if known else None)
    wrong = [not isinstance(row, list) or not all(isinstance(tag, str | int) for tag in row) for row in tags]
    table.refuse(wrong, f"{names[1]} that is not a list of tags", "Write them as lists, in csv as JSON.")
    uneven = [len(row) != len(tag) for row, tag in zip(words, tags, strict=True)]
    table.refuse(uneven, f"not as many {names[1]} as {names[0]}", "Give each word one tag.")
    named = [[known[tag] if known and isinstance(tag, int) else str(tag) for tag in row] for row in tags]
    return table._replace(columns={"tokens": words, "label": named})


def _words(source: str, rows: "Dataset", column: str) -> list[list[str]]:
    """The lists of words of a column, none of them empty."""
    from hf_xtc.data.tables import Table, json_value

    words = [json_value(cell) for cell in rows[column][:]]
    table = Table(source, {"tokens": words}, None)
    wrong = [not isinstance(row, list) or not all(isinstance(word, str) for word in row) for row in words]
    table.refuse(wrong, f"{column} that is not a list of words", "Write them as lists, in csv as JSON.")
    table.refuse([not row for row in words], f"empty {column}", "Remove them.")
    return words


def _names(train: "Table", least: int) -> tuple[str, ...]:
    """Tags by class id: the known ones, else those of the train rows, "O" first and the others in alphabetical order.

    Raises:
        DataError: if there are fewer than `least`, or if only some are tags of entities.
    """
    names = train.label_names or tuple(
        sorted({tag for row in train.columns["label"] for tag in row}, key=lambda tag: (tag != "O", tag))
    )
    if len(names) < least:
        raise DataError(f"{train.source} has {len(names)} different tags ({', '.join(names)}); two are needed.")
    odd = [name for name in names if name != "O" and not ENTITY.fullmatch(name)]
    if odd and has_entities(names):
        raise DataError(f"{train.source} has the tag {odd[0]!r}, which is neither O nor begins with B-, I-, E- or S-.")
    return names


def _rows(table: "Table", names: tuple[str, ...], limit: int | None) -> "Dataset":
    from datasets import Dataset, Features, List, Value

    table.refuse_unknown(names, "tag")
    ids, tags = {name: i for i, name in enumerate(names)}, table.columns["label"]
    columns = {"tokens": table.columns["tokens"][:limit], "label": [[ids[tag] for tag in row] for row in tags[:limit]]}
    features = Features({"tokens": List(Value("string")), "label": List(Value("int64"))})
    return Dataset.from_dict(columns, features=features)


def _needs_space(tokenizer: Any) -> bool:
    """Whether words must be given with the space before them to be split as in running text, as RoBERTa's are."""

    def pieces(words: list[str]) -> list[int]:
        return list(tokenizer(words, is_split_into_words=True)["input_ids"])

    text = list(tokenizer("a b")["input_ids"])
    return pieces(["a", "b"]) != text and pieces(["a", " b"]) == text


def _encode(batch: dict[str, list[Any]], tokenizer: Any, max_length: int, space: bool) -> dict[str, Any]:
    """Pieces of words, with the word's label at its first piece and `IGNORED` elsewhere."""
    encoded = _split(batch["tokens"], tokenizer, max_length, space=space)
    labels = [
        [IGNORED if word is None else tags[word] for word in _first_pieces(encoded, row)]
        for row, tags in enumerate(batch["label"])
    ]
    return {**encoded, "labels": labels}


def _split(rows: Sequence[list[str]], tokenizer: Any, max_length: int, *, space: bool) -> Any:
    """Lists of words in pieces; see `_needs_space`."""
    tokens = [[*row[:1], *(f" {word}" for word in row[1:])] if space else row for row in rows]
    return tokenizer(tokens, is_split_into_words=True, truncation=True, max_length=max_length)


def _first_pieces(encoded: Any, row: int) -> list[int | None]:
    """For each piece of a row the number of the word that it is the first piece of; `None` for others."""
    words = encoded.word_ids(row)
    return [word if word != before else None for word, before in zip(words, [None, *words], strict=False)]


def has_entities(names: Sequence[str]) -> bool:
    """Whether tags mark entities of several words, as in B-person, and not words one by one, as parts of speech do."""
    return any(ENTITY.fullmatch(name) for name in names)


def entities(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """The entities of a text, as (first word, word after the last, type).

    One reading serves IOB1, IOB2 and BIOES, that of `conlleval` and of seqeval's default mode: an entity begins at B
    and S, after O, E and S, and where the type changes; it lasts until the next begins, or O.

    Example:
        >>> sorted(entities(["B-per", "I-per", "O", "I-loc", "B-loc"]))
        [(0, 2, 'per'), (3, 4, 'loc'), (4, 5, 'loc')]
    """
    found, start, before = set(), 0, ("O", "")
    for i, tag in enumerate([*tags, "O"]):
        match = ENTITY.fullmatch(tag)
        mark, kind = match.groups() if match else ("O", "")
        begins = mark != "O" and (mark in "BS" or before[0] in "OES" or kind != before[1])
        if before[0] != "O" and (begins or mark == "O"):
            found.add((start, i, before[1]))
        start, before = i if begins else start, (mark, kind)
    return found


def tag_scores(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], *, entities: bool
) -> dict[str, float]:
    """Scores over the entities of all texts, where there are any to be found, and the share of words tagged right.

    Args:
        gold, predicted (sequences of sequences of `str`): The tags of each text; of the same lengths.
        entities (`bool`): Whether the tags mark entities.

    Returns:
        `dict`: `f1`, `precision` and `recall` of entities whose words and type are all right, 0 where undefined, if
        `entities`; and `accuracy`.
    """
    pairs = [pair for texts in zip(gold, predicted, strict=True) for pair in zip(*texts, strict=True)]
    accuracy = {"accuracy": sum(one == other for one, other in pairs) / max(len(pairs), 1)}
    if not entities:
        return accuracy
    true, guessed = (_numbered(texts) for texts in (gold, predicted))
    hits = len(true & guessed)
    scores = {"precision": hits / max(len(guessed), 1), "recall": hits / max(len(true), 1)}
    return {"f1": 2 * hits / max(len(true) + len(guessed), 1), **scores, **accuracy}


def _numbered(texts: Sequence[Sequence[str]]) -> set[tuple[int, tuple[int, int, str]]]:
    return {(i, entity) for i, tags in enumerate(texts) for entity in entities(tags)}
