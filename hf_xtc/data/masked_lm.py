"""Candidates for replaceable words from a masked language model, and the choice between the sources.

As in TinyBERT, a word of one piece is masked alone in `[CLS] masked [SEP] original [SEP]`, and the likeliest pieces at
the mask are its candidates, except continuations (##). Words of several pieces get theirs from a word table, or stay
unchanged without one. A forward pass takes many rows of similar length and computes logits at the masks only.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from hf_xtc.checks import check_count
from hf_xtc.data.word_table import Candidates, Words, WordTable, choose, word_spans
from hf_xtc.errors import RecipeError


class Pairs(NamedTuple):
    """Tokens of `[CLS] text [SEP] text [SEP]` for many texts, end to end, and the positions of one-piece words.

    Args:
        inputs (`dict[str, np.ndarray]`): Model input -> the tokens of all texts, `(tokens,)`.
        starts (`np.ndarray` of shape `(texts + 1,)`): Where the tokens of each text begin.
        texts (`np.ndarray` of shape `(rows,)`): The text of each row; a row masks some of its words.
        rows (`np.ndarray` of shape `(words,)`): The row that masks each word of one piece.
        tokens (`np.ndarray` of shape `(words,)`): Index of that word within the tokens of its text.
        positions (`np.ndarray` of shape `(words,)`): Index of that word among all replaceable words.
    """

    inputs: dict[str, np.ndarray]
    starts: np.ndarray
    texts: np.ndarray
    rows: np.ndarray
    tokens: np.ndarray
    positions: np.ndarray


@dataclass(frozen=True)
class MaskedLM:
    """A masked language model with its fast tokenizer, as a source of candidates; see the module docstring.

    Args:
        model (`PreTrainedModel`): With a masked-language-modelling head, on the device to run on.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        table (`WordTable`, *optional*): For words of several pieces.
        together (`int`): Words of a text that are masked in the same row, as far apart as possible; TinyBERT has one.
            More is faster, but each word then sees the others masked too, and unmasked in the second segment only.
        tokens (`int`): Maximum per forward pass, padding included.
        name (`str`): Its name in messages and cards.

    Raises:
        RecipeError: if the tokenizer has no mask token or is not a fast one.
    """

    model: Any
    tokenizer: Any
    table: WordTable | None = None
    together: int = 1
    tokens: int = 4096
    name: str = "a masked language model"

    def __post_init__(self) -> None:
        check_count("together", self.together)
        check_count("tokens", self.tokens)
        if self.tokenizer.mask_token_id is None or not self.tokenizer.is_fast:
            raise RecipeError(f"The tokenizer of {self.name} needs a mask token, and must be a fast one.")

    @classmethod
    def from_pretrained(
        cls, source: str, table: WordTable | None = None, *, together: int = 1, device: Any = "cpu"
    ) -> "MaskedLM":
        """The model in a folder or on the Hub, on `device`.

        Raises:
            RecipeError: if it cannot be loaded, or has no head trained for masked language modelling.
        """
        try:
            model, report = AutoModelForMaskedLM.from_pretrained(source, output_loading_info=True)
            tokenizer = AutoTokenizer.from_pretrained(source)
        except Exception as error:  # of many types: the files are read by several libraries
            why = str(error).strip().partition("\n")[0] or type(error).__name__
            raise RecipeError(f"The masked language model {source} cannot be loaded: {why}") from error
        if missing := sorted(report["missing_keys"]):
            lacks = f"it lacks {missing[0]}. Use a pre-trained one."
            raise RecipeError(f"{source} is not a masked language model: {lacks}")
        return cls(model.to(device).eval(), tokenizer, table, together, name=f"masked language model {source}")

    def candidates(self, texts: Sequence[str], count: int) -> Candidates:
        """The `count` likeliest pieces at each replaceable word, without non-words and the word itself."""
        words, vocabulary = Words.of(texts), self._vocabulary()
        pairs = self._pairs(texts, words.offsets)
        ids = np.full((len(words.kinds), count), -1, dtype=np.int64)
        top = self._top(pairs, min(count, self.model.config.vocab_size))
        ids[pairs.positions, : top.shape[1]] = top
        if self.table is not None:
            rest = np.setdiff1d(np.arange(len(words.kinds)), pairs.positions)
            kinds, inverse = np.unique(words.kinds[rest], return_inverse=True)
            near = self.table.neighbours([words.distinct[kind] for kind in kinds], count)[inverse]
            ids[rest] = np.where(near < 0, -1, near + len(vocabulary))
            vocabulary += self.table.words
        every = Words([words.distinct[kind] for kind in words.kinds], np.arange(len(words.kinds)), words.offsets)
        return choose(every, vocabulary, ids)

    def _vocabulary(self) -> list[str]:
        """Pieces by id; empty for special tokens and unused ids."""
        pieces = [""] * max(self.model.config.vocab_size, len(self.tokenizer))
        for piece, i in self.tokenizer.get_vocab().items():
            pieces[i] = "" if piece in self.tokenizer.all_special_tokens else piece
        return pieces

    def _pairs(self, texts: Sequence[str], offsets: np.ndarray) -> Pairs:
        limit = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)
        encoded = self.tokenizer(list(texts), list(texts), truncation=True, max_length=limit)
        found: list[tuple[int, int, int]] = []
        for text, spans in enumerate(map(word_spans, texts)):
            for word, (start, end) in enumerate(spans):
                token = encoded.char_to_token(text, start, sequence_index=0)
                if token is not None and self._is_one_piece(encoded, text, token, (start, end)):
                    found.append((text, token, int(offsets[text]) + word))
        text_of, tokens, positions = np.array(found, dtype=np.int64).reshape(-1, 3).T
        starts = np.cumsum([0, *map(len, encoded["input_ids"])])
        inputs = {name: np.array([i for row in rows for i in row]) for name, rows in encoded.items()}
        return Pairs(inputs, starts, *_rows(text_of, self.together), tokens, positions)

    def _is_one_piece(self, encoded: Any, text: int, token: int, span: tuple[int, int]) -> bool:
        word = encoded.word_to_tokens(text, encoded.token_to_word(text, token), sequence_index=0)
        chars = encoded.token_to_chars(text, token)
        known = encoded["input_ids"][text][token] != self.tokenizer.unk_token_id
        return known and word.end - word.start == 1 and (chars.start, chars.end) == span

    @torch.no_grad()
    def _top(self, pairs: Pairs, count: int) -> np.ndarray:
        """Ids of the likeliest pieces at each mask, `(words, count)`, likeliest first."""
        top = np.full((len(pairs.rows), count), -1, dtype=np.int64)
        lengths = np.diff(pairs.starts)[pairs.texts]
        order = np.argsort(lengths, kind="stable")
        rank = np.argsort(order, kind="stable")[pairs.rows]
        words = np.argsort(rank, kind="stable")
        training, device = self.model.training, self.model.device
        self.model.eval()
        for start, stop in _batches(lengths[order], self.tokens):
            chosen = words[slice(*np.searchsorted(rank[words], [start, stop]))]
            rows, tokens = rank[chosen] - start, pairs.tokens[chosen]
            masked = self._masked(pairs, pairs.texts[order[start:stop]], rows, tokens)
            inputs = {name: torch.from_numpy(value).to(device) for name, value in masked.items()}
            with _only_at(self.model.base_model, torch.from_numpy(rows), torch.from_numpy(tokens)):
                scores = self.model(**inputs).logits[:, 0]
            top[chosen] = scores.topk(count).indices.cpu().numpy()
        self.model.train(training)
        return top

    def _masked(self, pairs: Pairs, texts: np.ndarray, rows: np.ndarray, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """The inputs of one pass: the tokens of `texts`, padded on the right, with the mask at `(rows, tokens)`."""
        lengths = (pairs.starts[texts + 1] - pairs.starts[texts])[:, None]
        column = np.arange(lengths.max())
        places = np.minimum(pairs.starts[texts][:, None] + column, pairs.starts[-1] - 1)
        inputs = {
            name: np.where(column < lengths, values[places], self.tokenizer.pad_token_id * (name == "input_ids"))
            for name, values in pairs.inputs.items()
        }
        inputs["input_ids"][rows, tokens] = self.tokenizer.mask_token_id
        return inputs


def _rows(texts: np.ndarray, together: int) -> tuple[np.ndarray, np.ndarray]:
    """The text of each row and the row of each word, from the text of each word; at most `together` words a row."""
    _, first, inverse, words = np.unique(texts, return_index=True, return_inverse=True, return_counts=True)
    rows = -(-words // together)  # of each text that has words of one piece
    starts = np.cumsum(rows) - rows
    rank = np.arange(len(texts)) - first[inverse]
    return np.repeat(texts[first], rows), starts[inverse] + rank % rows[inverse]


def _batches(lengths: np.ndarray, tokens: int) -> Iterator[tuple[int, int]]:
    """Start and end of parts of the increasing `lengths`, of at most `tokens` padded tokens each, or of one row."""
    start = 0
    while start < len(lengths):
        part = lengths[start : start + tokens]
        size = max(1, int(np.searchsorted(part * np.arange(1, len(part) + 1), tokens, side="right")))
        yield start, start + size
        start += size


@contextmanager
def _only_at(encoder: torch.nn.Module, rows: torch.Tensor, tokens: torch.Tensor) -> Iterator[None]:
    """Passes only these tokens to the head, `(words, 1, width)`; it treats each token separately."""

    def select(module: Any, args: Any, output: Any) -> Any:
        hidden = output.last_hidden_state
        output.last_hidden_state = hidden[rows.to(hidden.device), tokens.to(hidden.device)][:, None]
        return output

    handle = encoder.register_forward_hook(select)
    try:
        yield
    finally:
        handle.remove()


def candidate_source(
    teacher: Any, tokenizer: Any, *, masked_lm: str | None = None, glove: str | None = None, together: int = 1
) -> WordTable | MaskedLM:
    """The masked language model if given, else a word table: of GloVe if given, else of the teacher's embeddings.

    A masked language model runs on the teacher's device, and masks `together` words of a text at once.

    Raises:
        XTCError: if a source cannot be read, or the teacher has no whole words.
    """
    table = WordTable.from_model(teacher, tokenizer) if glove is None else WordTable.from_glove(glove)
    if masked_lm is None:
        return table
    return MaskedLM.from_pretrained(masked_lm, table, together=together, device=teacher.device)
