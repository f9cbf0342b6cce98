"""Answers to questions as spans of a context, as in SQuAD 1.1 and, with unanswerable questions, 2.0."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import AutoModelForQuestionAnswering

from hf_xtc.data.token_predictions import best_span
from hf_xtc.errors import DataError
from hf_xtc.tasks.base import TASKS, Task

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_xtc.data.task_data import DataArguments, Splits, TaskData

COLUMNS = ("question", "context", "answers")
OUTSIDE = -1  # offset of tokens that are not of the context


@TASKS.register("question-answering")
class QuestionAnswering(Task):
    """The columns `question`, `context` and `answers`, of which each has a `text` list and an `answer_start` list.

    A question without answers is unanswerable; if the data have any, a model may give the empty answer. Contexts that
    are too long are read in windows of `--max_length` tokens, which overlap by `--doc_stride`.
    """

    auto_class = AutoModelForQuestionAnswering
    head = "ForQuestionAnswering"
    fixed_words = "where words of a context are replaced, its answers are gone or elsewhere"
    pipeline_tag = "question-answering"  # of the Hub; transformers 5 has no such pipeline
    snippet = """import {package}  # registers the architecture
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({folder}
model = AutoModelForQuestionAnswering.from_pretrained({folder}
inputs = tokenizer("Who wrote it?", "It was written by Ada.", return_tensors="pt")
outputs = model(**inputs)
start, end = outputs.start_logits.argmax(), outputs.end_logits.argmax()
print(tokenizer.decode(inputs["input_ids"][0, start : end + 1]))"""

    def reads(self, args: "DataArguments", rows: "Dataset") -> bool:
        return set(COLUMNS) <= set(rows.column_names)

    def load(self, args: "DataArguments", sources: "Splits") -> "TaskData":
        from hf_xtc.data.task_data import task_data

        limits = {"train": args.max_train_samples}
        splits = {k: _rows(*table[:2], limits.get(k, args.max_eval_samples)) for k, table in sources.items()}
        return task_data(args, splits, None)

    def tokenize(self, rows: "Dataset", tokenizer: Any, args: "DataArguments") -> "Dataset":
        from hf_xtc.data.task_data import check_length

        check_length(tokenizer, args.max_length)
        if not tokenizer.is_fast:
            raise DataError(f"{type(tokenizer).__name__} does not tell where a token begins; use a fast tokenizer.")
        options = {"tokenizer": tokenizer, "max_length": args.max_length, "stride": _stride(args)}
        return rows.map(_encode, batched=True, with_indices=True, fn_kwargs=options, remove_columns=rows.column_names)

    def settings(self, args: "DataArguments") -> dict[str, Any]:
        return {"doc_stride": _stride(args)}

    def facts(self, data: "TaskData") -> dict[str, Any]:
        return {"unanswerable_rows": sum(not texts for texts in data.train["answers"])}

    def head_config(self, data: "TaskData") -> dict[str, Any]:
        return {}

    def main_metric(self, data: "TaskData") -> str:
        return "f1"

    def metric_names(self, data: "TaskData") -> tuple[str, ...]:
        return ("exact_match", "f1")

    def compute_metrics(self, data: "TaskData", rows: "Dataset") -> Callable[[Any], dict[str, float]]:
        may_abstain = any(not texts for split in (data.train, data.validation) for texts in split["answers"])

        def compute(prediction: Any) -> dict[str, float]:
            starts, ends = prediction.predictions
            if np.isnan(starts).any() or np.isnan(ends).any():
                return dict.fromkeys(self.metric_names(data), float("nan"))
            gold = {row: texts for row, texts in zip(rows["row"], rows["answers"], strict=True)}
            found = best_answers(rows, starts, ends, may_abstain=may_abstain)
            pairs = [(found[row], gold[row]) for row in gold]
            return {"exact_match": float(np.mean([exact_match(*pair) for pair in pairs])), "f1": _mean_f1(pairs)}

        return compute

    def units(self, rows: "Dataset") -> Any:
        return []  # finding the answers again and again would take longer than predicting them


def _mean_f1(pairs: Sequence[tuple[str, Sequence[str]]]) -> float:
    return float(np.mean([answer_f1(*pair) for pair in pairs]))


def _stride(args: "DataArguments") -> int:
    """Tokens that neighbouring windows share; by default a third of `max_length`, 128 of 384 as in run_qa.py."""
    return args.max_length // 3 if args.doc_stride is None else args.doc_stride


def _rows(source: str, rows: "Dataset", limit: int | None) -> "Dataset":
    """Checked rows: `question`, `context`, `answers` (texts) and `starts` (their first characters).

    Raises:
        DataError: if a column is missing, a text is empty, or a context does not hold its answer.
    """
    from datasets import Dataset, Features, List, Value

    from hf_xtc.data.tables import Table, json_value

    if missing := [name for name in COLUMNS if name not in rows.column_names]:
        raise DataError(
            f"{source} has no column {', '.join(missing)}; its columns are {', '.join(rows.column_names)}. Question "
            f"answering reads {', '.join(COLUMNS)}."
        )
    table = Table(source, {name: rows[name][:] for name in COLUMNS[:2]}, None)
    for name, texts in table.columns.items():
        table.refuse([not isinstance(text, str) or not text.strip() for text in texts], f"no {name}", "Fill it.")
    answers = [_answers(json_value(cell)) for cell in rows["answers"][:]]
    form = 'Write {"text": ["four"], "answer_start": [774]}, with empty lists where there is no answer.'
    table.refuse([found is None for found in answers], "answers without text and answer_start", form)
    pairs = [found or ([], []) for found in answers]
    apart = [
        not all(context[start : start + len(text)] == text for text, start in zip(*found, strict=True))
        for context, found in zip(table.columns["context"], pairs, strict=True)
    ]
    what = "an answer that its context does not hold at answer_start"
    table.refuse(apart, what, "answer_start counts the characters of the context from 0; correct it.")
    columns = {**table.columns, "answers": [texts for texts, _ in pairs], "starts": [starts for _, starts in pairs]}
    features = {name: Value("string") for name in COLUMNS[:2]} | {
        "answers": List(Value("string")),
        "starts": List(Value("int64")),
    }
    return Dataset.from_dict({k: values[:limit] for k, values in columns.items()}, features=Features(features))


def _answers(cell: Any) -> tuple[list[str], list[int]] | None:
    """Texts and starts of a cell, a dictionary of lists or a list of dictionaries; `None` if it is neither."""
    if isinstance(cell, list) and all(isinstance(answer, dict) for answer in cell):
        cell = {key: [answer.get(key) for answer in cell] for key in ("text", "answer_start")}
    texts, starts = (cell.get("text"), cell.get("answer_start")) if isinstance(cell, dict) else (None, None)
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        return None
    good = all(isinstance(text, str) and text for text in texts) and all(isinstance(i, int) and i >= 0 for i in starts)
    return (texts, starts) if good else None


def _encode(
    batch: dict[str, list[Any]], indices: list[int], tokenizer: Any, max_length: int, stride: int
) -> dict[str, Any]:
    """Windows of rows: inputs, positions of the first answer, and what `best_answers` needs to read answers.

    The positions are those of the first token, [CLS], if the answer is not wholly in the window. `offsets` holds the
    first and last character of each token of the context, `OUTSIDE` for others.
    """
    texts = [question.strip() for question in batch["question"]], batch["context"]
    windows = {"truncation": "only_second", "max_length": max_length, "stride": stride}
    try:
        encoded = tokenizer(*texts, **windows, return_overflowing_tokens=True, return_offsets_mapping=True)
    except BaseException as error:  # of the tokenizers library, in which a panic is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise DataError(
            f"max_length {max_length} with doc_stride {stride} leaves no room for a context after the longest of the "
            f"questions. Raise --max_length, or lower --doc_stride ({str(error).splitlines()[0]})."
        ) from None
    origin, spans = encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping")
    found: dict[str, list[Any]] = {name: [] for name in ("start_positions", "end_positions", "offsets", "row")}
    for window, (row, span) in enumerate(zip(origin, spans, strict=True)):
        inside = [part == 1 for part in encoded.sequence_ids(window)]
        offsets = [list(pair) if keep else [OUTSIDE, OUTSIDE] for pair, keep in zip(span, inside, strict=True)]
        start, end = _position(offsets, batch["answers"][row], batch["starts"][row])
        for name, value in zip(found, (start, end, offsets, indices[row]), strict=True):
            found[name].append(value)
    more = {name: [batch[name][row] for row in origin] for name in ("context", "answers")}
    return {**encoded, **found, **more}


def _position(offsets: Sequence[Sequence[int]], texts: Sequence[str], starts: Sequence[int]) -> tuple[int, int]:
    """The first and last token of the first answer; (0, 0) if there is none in the window."""
    if not texts:
        return 0, 0
    first, last = starts[0], starts[0] + len(texts[0])
    begins = [i for i, (start, end) in enumerate(offsets) if start != OUTSIDE and start <= first < end]
    ends = [i for i, (start, end) in enumerate(offsets) if start != OUTSIDE and start < last <= end]
    return (begins[0], ends[-1]) if begins and ends else (0, 0)


def best_answers(rows: "Dataset", starts: np.ndarray, ends: np.ndarray, *, may_abstain: bool) -> dict[int, str]:
    """The span with the highest sum of logits over all windows of each row, of at most `LONGEST` tokens.

    Args:
        rows (`datasets.Dataset`): Windows, as `QuestionAnswering.tokenize` makes them.
        starts, ends (`np.ndarray` of shape `(windows, tokens)`): Logits; padding is ignored.
        may_abstain (`bool`): Whether the answer is empty where [CLS] scores more than the best span in every window.

    Returns:
        `dict[int, str]`: The answer of each row, by its index.
    """
    best: dict[int, tuple[float, str]] = {}
    none: dict[int, float] = {}
    for window, (row, context, offsets) in enumerate(zip(rows["row"], rows["context"], rows["offsets"], strict=True)):
        inside = np.array(offsets)[:, 0] != OUTSIDE
        start, end = (logits[window, : len(inside)].astype(np.float64) for logits in (starts, ends))
        none[row] = min(none.get(row, np.inf), float(start[0] + end[0]))
        score, first, last = best_span(start, end, inside)
        if score > best.get(row, (-np.inf, ""))[0]:
            best[row] = score, context[offsets[first][0] : offsets[last][1]]
    return {
        row: "" if row not in best or (may_abstain and lowest > best[row][0]) else best[row][1]
        for row, lowest in none.items()
    }


def normalized(answer: str) -> str:
    """An answer in lower case, without punctuation and articles, single spaces; as in SQuAD's evaluation script."""
    text = "".join(char for char in answer.lower() if char not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(answer: str, gold: Sequence[str]) -> float:
    """1.0 if an answer equals one of the right ones when normalized, else 0.0; without right ones, if it is empty."""
    return float(any(normalized(answer) == normalized(text) for text in gold or [""]))


def answer_f1(answer: str, gold: Sequence[str]) -> float:
    """The best F1 of an answer's normalized words against those of each right answer, as in SQuAD's script.

    Example:
        >>> answer_f1("the four nations", ["four", "in four nations"])
        0.8
    """
    return max(_word_f1(normalized(answer).split(), normalized(text).split()) for text in gold or [""])


def _word_f1(answer: list[str], gold: list[str]) -> float:
    if not answer or not gold:
        return float(answer == gold)
    return 2 * sum((Counter(answer) & Counter(gold)).values()) / (len(answer) + len(gold))
