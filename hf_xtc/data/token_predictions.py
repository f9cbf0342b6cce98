"""From the logits of tokens to entities and answers, in numpy: what pipelines do after the model.

Entities are those of transformers' token-classification pipeline; answers are chosen as `evaluate` scores them.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

Array = NDArray[Any]

LONGEST = 30  # tokens of a predicted answer, as in transformers' run_qa.py


def softmax(logits: Array) -> Array:
    """Probabilities over the last axis."""
    exps = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(exps / exps.sum(-1, keepdims=True))


def best_span(start: Array, end: Array, inside: Array) -> tuple[float, int, int]:
    """The span with the highest sum of its logits, of at most `LONGEST` tokens.

    Args:
        start, end (`numpy.ndarray` of shape `(tokens,)`): Logits of the first and the last token of an answer.
        inside (`numpy.ndarray` of shape `(tokens,)`, bool): Which tokens are of the context.

    Returns:
        `tuple[float, int, int]`: The sum, -inf if no token is of the context; the first token and the last.
    """
    padded = np.concatenate([np.where(inside, end, -np.inf), np.full(LONGEST, -np.inf)])
    ends = np.lib.stride_tricks.sliding_window_view(padded, LONGEST)[:-1]
    spans = np.where(inside, start, -np.inf)[:, None] + ends
    first, length = np.unravel_index(int(spans.argmax()), spans.shape)
    return float(spans[first, length]), int(first), int(first + length)


def answer(context: str, windows: Sequence[tuple[Encoding, Array]], *, unanswerable: bool) -> dict[str, Any]:
    """The best span of a context over its windows.

    Args:
        context (`str`): The text that holds the answer.
        windows (sequence of `Encoding` and `numpy.ndarray` of shape `(tokens, 2)`): The tokens of question and part of
            the context, and their logits of starts and ends.
        unanswerable (`bool`): Whether the answer is empty where [CLS] scores more than the best span in every window.

    Returns:
        `dict`: `answer`; `score`, the probability of its start times that of its end among the places of its window;
        `start` and `end`, characters of the context, `None` of an empty answer.
    """
    best: tuple[float, dict[str, Any]] = -np.inf, {"answer": "", "score": 0.0, "start": None, "end": None}
    none: tuple[float, float] = np.inf, 0.0
    for encoding, logits in windows:
        start, end = logits.astype(np.float64).T
        inside = np.array([part == 1 for part in encoding.sequence_ids])
        places = inside.copy()
        places[0] = True  # [CLS], which stands for no answer
        starts, ends = (softmax(np.where(places, side, -np.inf)) for side in (start, end))
        none = min(none, (float(start[0] + end[0]), float(starts[0] * ends[0])))
        score, first, last = best_span(start, end, inside)
        if score > best[0]:
            left, right = encoding.offsets[first][0], encoding.offsets[last][1]
            found = {"answer": context[left:right], "score": float(starts[first] * ends[last])}
            best = score, {**found, "start": left, "end": right}
    if unanswerable and none[0] > best[0]:
        return {"answer": "", "score": none[1], "start": None, "end": None}
    return best[1]


def entities(
    text: str, encoding: Encoding, logits: Array, labels: Sequence[str], tokenizer: Tokenizer, strategy: str
) -> list[dict[str, Any]]:
    """The entities of a text, as transformers' token-classification pipeline gives them.

    Args:
        text (`str`), encoding (`Encoding`): A text and its tokens.
        logits (`numpy.ndarray` of shape `(tokens, labels)`): Of the tags.
        labels (`Sequence[str]`): Their names; "O" is no entity.
        tokenizer (`Tokenizer`): That of the encoding.
        strategy (`str`): The pipeline's `aggregation_strategy`: "none", "simple", "first", "average" or "max".

    Returns:
        `list[dict]`: `entity_group`, `score`, `word`, `start` and `end` (characters); with "none", of each token
        `entity`, `score`, `index`, `word`, `start` and `end`.
    """
    tokens = _tokens(text, encoding, softmax(logits), tokenizer)
    if strategy in ("none", "simple"):
        found = [{**_best(token["scores"], labels), **token} for token in tokens]
    else:
        starts = [i for i, token in enumerate(tokens) if i == 0 or not token["continues"]]
        words = [tokens[i:j] for i, j in pairwise([*starts, len(tokens)])]
        found = [_merged(word, _best(_word_scores(word, strategy), labels), tokenizer) for word in words]
    if strategy == "none":
        keys = ("entity", "score", "index", "word", "start", "end")
        return [{key: token[key] for key in keys} for token in found if token["entity"] != "O"]
    return [group for group in _groups(found, tokenizer) if group["entity_group"] != "O"]


def _tokens(text: str, encoding: Encoding, scores: Array, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    prefix, unknown = (getattr(tokenizer.model, name, None) for name in ("continuing_subword_prefix", "unk_token"))
    tokens = []
    for i, (word, (start, end), special) in enumerate(
        zip(encoding.tokens, encoding.offsets, encoding.special_tokens_mask, strict=True)
    ):
        if special:
            continue
        if prefix:
            continues = len(word) != end - start
        else:
            continues = start > 0 and " " not in text[start - 1 : start + 1]
        if word == unknown:
            word, continues = text[start:end], False
        token = {"word": word, "scores": scores[i], "start": start, "end": end, "index": i, "continues": continues}
        tokens.append(token)
    return tokens


def _best(scores: Array, labels: Sequence[str]) -> dict[str, Any]:
    best = int(scores.argmax())
    return {"entity": labels[best], "score": float(scores[best])}


def _word_scores(word: Sequence[dict[str, Any]], strategy: str) -> Array:
    """The scores of a word: those of its first token, of the token with the highest, or the mean of all."""
    if strategy == "first":
        return np.asarray(word[0]["scores"])
    if strategy == "max":
        return np.asarray(max(word, key=lambda token: token["scores"].max())["scores"])
    return np.asarray(np.mean([token["scores"] for token in word], axis=0))


def _merged(parts: Sequence[dict[str, Any]], entity: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    words = [part["word"] for part in parts]
    word = " ".join(words) if tokenizer.decoder is None else tokenizer.decoder.decode(words)
    return {**entity, "word": word, "start": parts[0]["start"], "end": parts[-1]["end"]}


def _groups(found: Sequence[dict[str, Any]], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Neighbours with one type as one group, of which B- begins another."""
    groups: list[list[dict[str, Any]]] = []
    for part in found:
        same = groups and _type(part["entity"]) == _type(groups[-1][-1]["entity"])
        if same and not part["entity"].startswith("B-"):
            groups[-1].append(part)
        else:
            groups.append([part])
    return [
        _merged(
            group,
            {
                "entity_group": group[0]["entity"].split("-", 1)[-1],
                "score": float(np.mean([part["score"] for part in group])),
            },
            tokenizer,
        )
        for group in groups
    ]


def _type(tag: str) -> str:
    return tag[2:] if tag.startswith(("B-", "I-")) else tag
