"""Augmentation as in TinyBERT (its `data_augmentation.py`), vectorised and in `datasets.map`.

A text is copied N times; each replaceable word of a copy is replaced, with probability p, by one of its M candidates.
The original rows come first in the result, unchanged; no augmented row equals another row or an excluded one, ignoring
case and blanks. Each draw depends on seed, row, column, copy and word alone, so neither batches nor processes change a
row. Of a pair one text is varied and the *original* other one kept, in all copies of the first text, then in those of
the second: at most 2N + 1 rows (TinyBERT pairs the copies of the second with the last copy of the first).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from hf_xtc.checks import check_count
from hf_xtc.data.unlabelled import TEXTS, new_rows, teacher_labels
from hf_xtc.data.word_table import Candidates, word_spans
from hf_xtc.errors import DataError, RecipeError, needs_extra

with needs_extra("cli"):
    import pyarrow as pa
    import pyarrow.compute as pc
    from datasets import Dataset, Features, List, Value, concatenate_datasets

logger = logging.getLogger(__name__)

# N of the GLUE tasks as published; wnli has none.
PUBLISHED_COPIES = {"cola": 30, "mrpc": 30, "rte": 30, "stsb": 30, "sst2": 20, "qnli": 20, "mnli": 10, "qqp": 10}
NO_SOURCE = (
    "Augmentation has no source of candidates. Pass a WordTable (WordTable.from_model(teacher, tokenizer) needs "
    "nothing else) or a MaskedLM."
)


@dataclass(frozen=True)
class Augmentation:
    """How much to augment; candidates and probability as published.

    Args:
        copies (`int`): N, the copies of each text that are tried; see `PUBLISHED_COPIES`.
        candidates (`int`): M, the candidates per word.
        probability (`float`): p, of replacing a word, in [0, 1].
        seed (`int`): Of all draws, not negative.

    Raises:
        RecipeError: if a number is out of range.
    """

    copies: int = 20
    candidates: int = 15
    probability: float = 0.4
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("copies", self.copies)
        check_count("candidates", self.candidates)
        if not isinstance(self.probability, float | int) or not 0 <= self.probability <= 1:
            raise RecipeError(f"probability={self.probability!r} must be a number from 0 to 1.")
        if not isinstance(self.seed, int) or self.seed < 0:
            raise RecipeError(f"seed={self.seed!r} must be a whole number, 0 or more.")


class CandidateSource(Protocol):
    """Where candidates come from: a `WordTable` or a `MaskedLM`."""

    @property
    def name(self) -> str:
        """Its name in messages and cards."""

    def candidates(self, texts: Sequence[str], count: int) -> Candidates:
        """At most `count` candidates for each replaceable word of each text."""


def augment(
    dataset: Dataset,
    settings: Augmentation,
    source: CandidateSource | None,
    *,
    exclude: Sequence[Dataset] = (),
    teacher: Any = None,
    tokenizer: Any = None,
    max_length: int = 128,
    batch_size: int = 1000,
    num_proc: int | None = None,
) -> Dataset:
    """The rows of `dataset`, then the augmented ones in order of the rows they come from.

    Args:
        dataset (`datasets.Dataset`): The train split of a `TaskData`: `text`, `text_pair` (pairs only), and `label`
            where texts have one: a class, a number, or 0 and 1 for each of several labels.
        settings (`Augmentation`): N, M, p and the seed.
        source (`CandidateSource`): A `WordTable` or a `MaskedLM`.
        exclude (sequence of `datasets.Dataset`): Splits whose rows must not be made: those that choose or report.
        teacher (`PreTrainedModel`, *optional*): Labels the augmented rows, by the class ids of `dataset`; without it
            they take the label of the row they come from, if there is one.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): The teacher's; `max_length` is its limit per row.
        batch_size (`int`): Rows per call of `datasets.map`.
        num_proc (`int`, *optional*): Processes of `datasets.map`.

    Returns:
        `datasets.Dataset`: the texts of `dataset`, its `label` if it has one, and `augmented` (`bool`).

    Raises:
        RecipeError: if there is no source of candidates, or a teacher without its tokenizer.
        DataError: if a column is missing, or the teacher's head does not fit the labels.
    """
    sides = [column for column in TEXTS if column in dataset.column_names]
    if source is None:
        raise RecipeError(NO_SOURCE)
    labels = ["label"] if teacher is not None or "label" in dataset.column_names else []
    _check([(dataset, [*sides, "text", *labels]), *((split, sides) for split in exclude)], teacher, tokenizer)
    dataset = dataset.select_columns([*sides, *labels])
    features = Features({**dataset.features, "augmented": Value("bool")})
    found = {side: source.candidates(dataset[side][:], settings.candidates) for side in sides}
    varied = dataset.map(
        _vary,
        batched=True,
        batch_size=batch_size,
        with_indices=True,
        num_proc=num_proc,
        remove_columns=dataset.column_names,
        features=features,
        fn_kwargs={"settings": settings, "found": found},
    )
    varied = varied.select(new_rows([dataset, *exclude], varied, sides))
    if teacher is not None:
        predicted = teacher_labels(teacher, tokenizer, varied, sides, max_length)
        varied = varied.map(
            _label, batched=True, with_indices=True, features=features, fn_kwargs={"labels": predicted}
        )
    logger.info("%d rows and %d augmented ones; candidates: %s.", len(dataset), len(varied), source.name)
    return concatenate_datasets(
        [dataset.add_column("augmented", [False] * len(dataset), feature=Value("bool")), varied]
    )


def _check(needs: Sequence[tuple[Dataset, list[str]]], teacher: Any, tokenizer: Any) -> None:
    """Checks that the splits have the columns they need, and that the teacher's head fits the labels of the first."""
    for split, columns in needs:
        if missing := [column for column in columns if column not in split.column_names]:
            raise DataError(
                f"Augmentation needs the column {missing[0]} in every split; one has {split.column_names}."
            )
    if teacher is None:
        return
    if tokenizer is None:
        raise RecipeError("A teacher cannot label augmented rows without its tokenizer. Pass both.")
    feature, outputs = needs[0][0].features["label"], teacher.config.num_labels
    label = "lists" if isinstance(feature, List) else feature.dtype
    several = teacher.config.problem_type == "multi_label_classification"
    if several != (label == "lists") or label.startswith("float") != (outputs == 1 and not several):
        raise DataError(
            f"The labels are {label}, but the head of the teacher has {outputs} outputs. Use its own task."
        )


def _vary(
    batch: dict[str, list[Any]], rows: list[int], settings: Augmentation, found: dict[str, Candidates]
) -> pa.Table:
    """The changed copies of a batch, for `datasets.map`, in the order of the rows they come from."""
    made, parents = [], []
    for number, (side, candidates) in enumerate(found.items()):
        texts, parent = _copies(batch[side], np.array(rows), candidates, settings, number)
        columns = {name: pa.array(values).take(pa.array(parent)) for name, values in batch.items()}
        made.append(pa.table(columns | {side: texts, "augmented": pa.array([True] * len(parent), pa.bool_())}))
        parents.append(parent)
    return pa.concat_tables(made).take(pa.array(np.argsort(np.concatenate(parents), kind="stable")))


def _copies(
    texts: list[str], rows: np.ndarray, found: Candidates, settings: Augmentation, side: int
) -> tuple[pa.Array, np.ndarray]:
    """The copies that differ from their text, and the index into `texts` of each."""
    pieces = [_cut(text) for text in texts]  # other, word, other, word, other
    lengths = np.array([len(cut) for cut in pieces])
    parents = np.repeat(np.arange(len(texts)), settings.copies)
    copy, word = _ragged(lengths[parents] // 2)
    bits = _bits(settings.seed, side, rows, lengths // 2 * settings.copies)
    kind = found.kinds[found.offsets[rows[parents[copy]]] + word]
    counts = found.counts[kind]
    chance, draw = (bits >> np.uint64(32)).astype(np.int64), (bits & np.uint64(2**32 - 1)).astype(np.int64)
    chosen = (chance < settings.probability * 2**32) & (counts > 0)
    copy, word, draw = copy[chosen], word[chosen], draw[chosen] * counts[chosen] >> 32

    kept, place = np.unique(copy, return_inverse=True)
    parents = parents[kept]
    owner, inner = _ragged(lengths[parents])
    ids = (np.cumsum(lengths) - lengths)[parents][owner] + inner
    ends = np.cumsum(lengths[parents])
    ids[(ends - lengths[parents])[place] + 2 * word + 1] = lengths.sum() + found.choices[kind[chosen], draw]
    strings = pa.array([piece for cut in pieces for piece in cut] + found.strings, pa.string()).take(pa.array(ids))
    lists = pa.ListArray.from_arrays(pa.array([0, *ends.tolist()], pa.int32()), strings)
    return pc.binary_join(lists, ""), parents


def _cut(text: str) -> list[str]:
    edges = [0, *(edge for span in word_spans(text) for edge in span), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


def _ragged(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each element of a list of lists of these lengths, the index of its list and its index in that."""
    owner = np.repeat(np.arange(len(lengths)), lengths)
    return owner, np.arange(len(owner)) - (np.cumsum(lengths) - lengths)[owner]


def _bits(seed: int, side: int, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The first `counts[i]` draws of 64 bits for each of the `rows`, one after the other.

    Each row has a generator of its own, seeded with `[seed, side, row]`. Its raw output is the same in all versions of
    numpy, which the floats of `numpy.random.Generator` need not be.
    """
    draws = [
        np.random.PCG64([seed, side, row]).random_raw(count)
        for row, count in zip(rows.tolist(), counts.tolist(), strict=True)
    ]
    return np.concatenate(draws)


def _label(batch: dict[str, list[Any]], rows: list[int], labels: np.ndarray) -> dict[str, Any]:
    return {"label": labels[rows]}
