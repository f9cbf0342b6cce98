"""Answers and entities from the logits of tokens; transformers' pipelines are compared in tests/tasks/test_runs.py."""

import numpy as np
import pytest
from compress_options import VOCAB
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers import BertTokenizerFast

from hf_xtc.data.task_data import DataArguments
from hf_xtc.data.token_predictions import LONGEST, answer, best_span, entities, softmax
from hf_xtc.tasks.question_answering import QuestionAnswering, best_answers

TOKENIZER = BertTokenizerFast(vocab=VOCAB)
CONTEXT = "good film bad actor very sad plot nice movie"
LOGITS = st.floats(-20, 20, width=32)


@given(arrays(np.float32, (2, 40), elements=LOGITS), arrays(bool, 40))
def test_the_best_span_is_the_best_of_all(logits, inside):
    start, end = logits.astype(np.float64)
    spans = [(i, j) for i in range(40) for j in range(i, min(i + LONGEST, 40)) if inside[i] and inside[j]]
    score, first, last = best_span(start, end, inside)
    if not spans:
        assert score == -np.inf
    else:
        assert (first, last) in spans
        assert score == max(start[i] + end[j] for i, j in spans) == start[first] + end[last]


def windows(logits):
    """Windows of the question and the context with these logits, as the tokenizer and as the task makes them."""
    backend = BertTokenizerFast(vocab=VOCAB).backend_tokenizer
    backend.enable_truncation(10, stride=3, strategy="only_second")
    encoding = backend.encode("is very", CONTEXT)
    encodings = [encoding, *encoding.overflowing]
    args = DataArguments(train_file="a.jsonl", validation_file="a.jsonl", max_length=10, doc_stride=3)
    row = {"question": "is very", "context": CONTEXT, "answers": [], "starts": []}
    rows = QuestionAnswering().tokenize(Dataset.from_list([row]), TOKENIZER, args)
    assert [encoding.ids for encoding in encodings] == rows["input_ids"][:]
    return [(e, logits[i, : len(e.ids)]) for i, e in enumerate(encodings)], rows


@settings(max_examples=25, deadline=None)
@given(arrays(np.float32, (4, 10, 2), elements=LOGITS), st.booleans())
def test_an_answer_is_the_one_that_evaluation_scores(logits, unanswerable):
    found, rows = windows(logits)
    assert 1 < len(found) <= 4
    record = answer(CONTEXT, found, unanswerable=unanswerable)
    logits = logits[: len(found)]
    assert record["answer"] == best_answers(rows, logits[..., 0], logits[..., 1], may_abstain=unanswerable)[0]
    assert 0 <= record["score"] <= 1
    if record["answer"]:
        assert CONTEXT[record["start"] : record["end"]] == record["answer"]
    else:
        assert (record["start"], record["end"]) == (None, None)


def test_there_may_be_no_answer():
    logits = np.zeros((4, 10, 2), np.float32)
    logits[:, 0] = 5  # [CLS]
    found, _ = windows(logits)
    assert answer(CONTEXT, found, unanswerable=True)["answer"] == ""
    assert answer(CONTEXT, found, unanswerable=False)["answer"] != ""
    certain = answer(CONTEXT, found, unanswerable=True)["score"]
    assert certain == pytest.approx(softmax(np.array([5.0] + [0.0] * (len(found[0][0].ids) - 5)))[0] ** 2)


def test_entities_end_where_another_begins():
    backend = TOKENIZER.backend_tokenizer
    text = "good film is bad"
    encoding, labels = backend.encode(text), ["O", "B-x", "I-x"]
    tags = [0, 1, 1, 2, 0, 0]
    (first, second) = entities(text, encoding, np.eye(3)[tags] * 9, labels, backend, "simple")
    assert [first[key] for key in ("entity_group", "word", "start", "end")] == ["x", "good", 0, 4]
    assert [second[key] for key in ("entity_group", "word", "start", "end")] == ["x", "film is", 5, 12]
