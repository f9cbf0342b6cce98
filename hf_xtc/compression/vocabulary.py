"""A smaller vocabulary: the tokens that given texts use, in the tokenizer and in the tables of the model.

The rows of the word embedding are most of a small model's bytes, and most of them are never used by the texts of one
task. What is left out is spelled in smaller pieces: all single characters (or bytes) stay.
"""

import copy
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedModel
from transformers.initialization import no_init_weights

from hf_xtc.checks import check_count
from hf_xtc.errors import XTCError

TOKENIZER = "tokenizer.json"
BATCH = 1024  # texts that are encoded together

# Files that hold the whole vocabulary a second time, and are read in place of tokenizer.json where they are there.
OTHER_FILES = ("vocab.txt", "vocab.json", "merges.txt", "spm.model", "sentencepiece.bpe.model", "spiece.model")


def trim_vocabulary(
    model: PreTrainedModel, tokenizer: Any, texts: Iterable[str], *, min_count: int = 1
) -> tuple[PreTrainedModel, Any]:
    """A copy of a model and its tokenizer that know the tokens of `texts` only.

    With `min_count=1` each of the texts is encoded in the same pieces as before. Any other text still encodes, in more
    pieces where it has to; none of them is the unknown token unless one was before, if each character
    of the vocabulary is a token too (for WordPiece also inside a word), as in all-MiniLM-L6-v2's.

    Args:
        model (`PreTrainedModel`): A float model, any head; left untouched.
        tokenizer (`PreTrainedTokenizerFast`): Its tokenizer, of WordPiece, BPE or Unigram; left untouched.
        texts (`Iterable[str]`): Texts of the task. Pairs are two texts.
        min_count (`int`): Tokens that the texts have less often are left out.

    Returns:
        `(PreTrainedModel, PreTrainedTokenizerFast)`: Word embedding (and the output layer of a masked language model)
            have one row for each token that is left, in their former order.

    Raises:
        XTCError: if the tokenizer is of another kind, or the model has fewer rows than the tokenizer has tokens.
    """
    kept, trimmed = trim_tokenizer(tokenizer, count_tokens(tokenizer, texts), min_count=min_count)
    return trim_model(model, kept), trimmed


def trim_model(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """A copy of a float model whose tables of the vocabulary have the rows `kept` only, in this order.

    Raises:
        XTCError: if the model has no row for one of them.
    """
    size = model.config.vocab_size
    if max(kept) >= size:
        raise XTCError(
            f"The tokenizer has a token {max(kept)}, and {type(model).__name__} has rows for {size} tokens. Give the "
            "model and the tokenizer that belong together."
        )
    config = copy.deepcopy(model.config)
    config.vocab_size = len(kept)
    number = {old: new for new, old in enumerate(kept)}
    for name in ("pad", "bos", "eos", "cls", "sep", "mask", "unk"):
        old = getattr(config, f"{name}_token_id", None)
        if isinstance(old, int):
            setattr(config, f"{name}_token_id", number.get(old))
    with no_init_weights(), torch.device("cpu"):
        trimmed: PreTrainedModel = type(model)(config).eval()
    trimmed.tie_weights()
    rows, shapes = torch.tensor(kept), {name: tensor.shape for name, tensor in trimmed.state_dict().items()}
    trimmed.load_state_dict(
        {
            name: tensor if tensor.shape == shapes[name] else tensor[rows.to(tensor.device)]
            for name, tensor in model.state_dict().items()
        }
    )
    return trimmed.to(model.device).train(model.training)  # type: ignore[no-any-return, arg-type]


def trim_tokenizer(tokenizer: Any, counts: Mapping[int, int], *, min_count: int = 1) -> tuple[list[int], Any]:
    """The former numbers of the tokens that stay, ascending, and a tokenizer of these; see `trim_vocabulary`.

    Args:
        tokenizer (`PreTrainedTokenizerFast`): Of WordPiece, BPE or Unigram; left untouched.
        counts (`dict[int, int]`): How often texts of the task have each token, by its number.
        min_count (`int`): Tokens that they have less often are left out.
    """
    described, order = _kept(tokenizer, counts, min_count)
    number = {old: new for new, old in enumerate(order)}
    _renumber(described, number)
    return order, _reload(tokenizer, described, number)


def kept_tokens(tokenizer: Any, counts: Mapping[int, int], *, min_count: int = 1) -> list[int]:
    """The numbers of the tokens that stay, ascending, as `trim_tokenizer` returns them."""
    return _kept(tokenizer, counts, min_count)[1]


def can_trim(tokenizer: Any) -> bool:
    """Whether a tokenizer is of a kind whose vocabulary can be trimmed."""
    return getattr(tokenizer, "is_fast", False) and _description(tokenizer)["model"]["type"] in _KEEPERS


def _kept(tokenizer: Any, counts: Mapping[int, int], min_count: int) -> tuple[dict[str, Any], list[int]]:
    """A description of a tokenizer without the merges of tokens that go, and the numbers of those that stay."""
    check_count("min_count", min_count)
    described = _description(tokenizer)
    model = described["model"]
    if model["type"] not in _KEEPERS:
        raise XTCError(
            f"A vocabulary of {' or '.join(_KEEPERS)} can be trimmed; that of {type(tokenizer).__name__} is "
            f"{model['type']}. Leave trimming out."
        )
    used = {number for number, count in counts.items() if count >= min_count}
    kept = {entry["id"] for entry in described["added_tokens"]} | _KEEPERS[model["type"]](model, used)
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id < 16:
        kept |= set(range(tokenizer.pad_token_id))  # RoBERTa counts positions from the number of the padding token
    return described, sorted(kept)


def _description(tokenizer: Any) -> dict[str, Any]:
    """The contents of its tokenizer.json."""
    described: dict[str, Any] = json.loads(_backend(tokenizer).to_str())
    return described


def count_tokens(tokenizer: Any, texts: Iterable[str]) -> dict[int, int]:
    """How often texts, of any length, have each token of a fast tokenizer, by its number."""
    backend = Tokenizer.from_str(_backend(tokenizer).to_str())
    backend.no_truncation()
    backend.no_padding()
    counts: Counter[int] = Counter()
    remaining = iter(texts)
    while batch := list(islice(remaining, BATCH)):
        for encoding in backend.encode_batch_fast(batch, add_special_tokens=False):
            counts.update(encoding.ids)
    return counts


def _backend(tokenizer: Any) -> Any:
    if not getattr(tokenizer, "is_fast", False):
        raise XTCError(
            f"{type(tokenizer).__name__} has no {TOKENIZER}, which trimming the vocabulary rewrites. Load the model's "
            "fast tokenizer."
        )
    return tokenizer.backend_tokenizer


# Kind of tokenizer -> the numbers of the tokens of its vocabulary that have to stay beside those that are used.


def _word_pieces(model: dict[str, Any], used: set[int]) -> set[int]:
    """Single characters, at the start of a word and in it, and each piece with a character that is none by itself."""
    vocabulary, prefix = model["vocab"], model["continuing_subword_prefix"]

    def spelled(piece: str) -> bool:
        inner = piece.startswith(prefix)
        characters = piece.removeprefix(prefix)
        singles = [character if i == 0 and not inner else prefix + character for i, character in enumerate(characters)]
        return len(singles) > 1 and all(single in vocabulary for single in singles)

    return {number for piece, number in vocabulary.items() if number in used or not spelled(piece)}


def _byte_pairs(model: dict[str, Any], used: set[int]) -> set[int]:
    """The tokens that no merge makes, and those that used ones are merged from."""
    vocabulary, merges = model["vocab"], [_pair(merge) for merge in model["merges"]]
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    prefix = model.get("continuing_subword_prefix") or ""
    made = {left + right.removeprefix(prefix) for left, right in merges}
    names = {number: token for token, number in vocabulary.items()}
    kept = {token for token in vocabulary if token not in made}
    for number in used:
        if number in names:
            kept |= _merged_from(names[number], ranks, prefix, model.get("end_of_word_suffix") or "")
    model["merges"] = [
        merge
        for merge, (left, right) in zip(model["merges"], merges, strict=True)
        if {left, right, left + right.removeprefix(prefix)} <= kept
    ]
    return {vocabulary[token] for token in kept if token in vocabulary}


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _merged_from(token: str, ranks: dict[tuple[str, str], int], prefix: str, suffix: str) -> set[str]:
    """The token and all that it is merged from, in the order of the merges."""
    inner = bool(prefix) and token.startswith(prefix)
    letters = token.removeprefix(prefix) if inner else token
    end = suffix if suffix and letters.endswith(suffix) else ""
    letters = letters.removesuffix(end) if end else letters
    parts = [letter if i == 0 and not inner else prefix + letter for i, letter in enumerate(letters)]
    if end and parts:
        parts[-1] += end
    found = {token, *parts}
    while len(parts) > 1:
        pairs = list(pairwise(parts))
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        merged, i = [], 0
        while i < len(parts):
            if tuple(parts[i : i + 2]) == best:
                merged.append(best[0] + best[1].removeprefix(prefix))
                i += 2
            else:
                merged.append(parts[i])
                i += 1
        parts = merged
        found.update(parts)
    return found


def _unigrams(model: dict[str, Any], used: set[int]) -> set[int]:
    """Single characters, bytes, and each piece with a character that is none by itself."""
    pieces = [piece for piece, _ in model["vocab"]]
    known = set(pieces)
    keep = {model["unk_id"]} if model["unk_id"] is not None else set()
    for number, piece in enumerate(pieces):
        is_byte = model.get("byte_fallback") and piece.startswith("<0x")
        if number in used or is_byte or len(piece) == 1 or not all(character in known for character in piece):
            keep.add(number)
    return keep


_KEEPERS = {"WordPiece": _word_pieces, "BPE": _byte_pairs, "Unigram": _unigrams}


def _renumber(described: dict[str, Any], number: dict[int, int]) -> None:
    """Gives tokens their new numbers, everywhere in a description of a tokenizer."""
    model = described["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [entry for old, entry in enumerate(model["vocab"]) if old in number]
        model["unk_id"] = None if model["unk_id"] is None else number[model["unk_id"]]
    else:
        model["vocab"] = {token: number[old] for token, old in model["vocab"].items() if old in number}
    for entry in described["added_tokens"]:
        entry["id"] = number[entry["id"]]
    if described.get("padding"):
        described["padding"]["pad_id"] = number[described["padding"]["pad_id"]]
    _renumber_processor(described.get("post_processor"), number)


def _renumber_processor(processor: Any, number: dict[int, int]) -> None:
    for inner in (processor or {}).get("processors", []):
        _renumber_processor(inner, number)
    for name in ("cls", "sep"):  # of RobertaProcessing and BertProcessing: a token and its number
        if processor and isinstance(processor.get(name), list):
            processor[name][1] = number[processor[name][1]]
    for entry in ((processor or {}).get("special_tokens") or {}).values():
        entry["ids"] = [number[old] for old in entry["ids"]]


def _reload(tokenizer: Any, described: dict[str, Any], number: dict[int, int]) -> Any:
    """A tokenizer with the options of `tokenizer` and the vocabulary of a description."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for name in OTHER_FILES:
            Path(folder, name).unlink(missing_ok=True)
        file = Path(folder, "tokenizer_config.json")
        options = json.loads(file.read_text(encoding="utf-8"))
        if "added_tokens_decoder" in options:
            decoder = options["added_tokens_decoder"]
            options["added_tokens_decoder"] = {str(number[int(old)]): entry for old, entry in decoder.items()}
        file.write_text(json.dumps(options), encoding="utf-8")
        Path(folder, TOKENIZER).write_text(json.dumps(described), encoding="utf-8")
        trimmed = AutoTokenizer.from_pretrained(folder)
    trimmed.name_or_path = tokenizer.name_or_path
    return trimmed
