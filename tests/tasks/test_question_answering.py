"""Questions: windows of long contexts, SQuAD's scores, empty answers, and data that are refused."""

import numpy as np
import pytest
from compress_options import VOCAB
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertTokenizerFast, EvalPrediction

from hf_xtc.data.task_data import DataArguments
from hf_xtc.data.token_predictions import LONGEST
from hf_xtc.errors import DataError
from hf_xtc.tasks.question_answering import (
    QuestionAnswering,
    answer_f1,
    best_answers,
    exact_match,
    normalized,
)

TASK = QuestionAnswering()
CONTEXT = "good film bad actor very sad plot nice movie"


def arguments(max_length=10, doc_stride=3):
    return DataArguments(
        train_file="rows.jsonl", validation_file="rows.jsonl", max_length=max_length, doc_stride=doc_stride
    )


def load(*answers, context=CONTEXT):
    """One row for each list of answers."""
    cells = [{"text": list(texts), "answer_start": [context.find(text) for text in texts]} for texts in answers]
    rows = Dataset.from_dict(
        {"question": ["is film"] * len(cells), "context": [context] * len(cells), "answers": cells}
    )
    return TASK.load(arguments(), {split: ("rows.jsonl", rows, None) for split in ("train", "validation")})


def windows(data, **options):
    return TASK.tokenize(data.train, BertTokenizerFast(vocab=VOCAB), arguments(**options))


def test_windows_overlap_and_mark_the_answer_where_it_is_whole():
    rows = windows(load(["very sad"]))
    # [CLS] is film [SEP] of 10 tokens leave 5 of the context, and each window begins with 3 of the one before
    texts = [[CONTEXT[a:b] for a, b in offsets if a >= 0] for offsets in rows["offsets"]]
    words = CONTEXT.split()
    assert texts == [words[i : i + 5] for i in (0, 2, 4)]
    marked = list(zip(rows["start_positions"], rows["end_positions"], strict=True))
    assert marked == [(0, 0), (4 + 2, 4 + 3), (4 + 0, 4 + 1)]
    assert (rows["row"][:], rows["answers"][0]) == ([0, 0, 0], ["very sad"])


def logits(rows, best, value=5.0):
    """Logits that are 0 but for the start and the end of one span, `(window, first, last)`."""
    starts, ends = np.zeros((2, len(rows), max(map(len, rows["input_ids"])) + 3), dtype=np.float32)
    window, first, last = best
    starts[window, first] = ends[window, last] = value
    starts[:, -3:] = ends[:, -3:] = 100.0  # padding
    return starts, ends


def test_the_answer_is_the_best_span_of_all_windows():
    rows = windows(load(["sad plot nice"]))
    assert best_answers(rows, *logits(rows, (2, 5, 7)), may_abstain=False) == {0: "sad plot nice"}


def test_only_spans_of_the_context_in_order_are_answers():
    rows = windows(load(["good"]))
    starts, ends = logits(rows, (0, 6, 4))
    starts[0, 1] = ends[0, 2] = 9.0  # of the question
    found = best_answers(rows, starts, ends, may_abstain=False)[0]
    assert found in CONTEXT
    assert found.split()[0] == "bad" or found.split()[-1] == "good"


def test_answers_are_not_longer_than_the_limit():
    context = " ".join(["film"] * 60)
    rows = windows(load(["film"], context=context), max_length=70)
    starts, ends = logits(rows, (0, 4, 63))
    assert len(best_answers(rows, starts, ends, may_abstain=False)[0].split()) <= LONGEST


@pytest.mark.parametrize("no_answer, expected", [(3.0, "film"), (6.0, "")])
def test_the_empty_answer_needs_a_higher_score_in_every_window(no_answer, expected):
    rows = windows(load(["film"]))
    starts, ends = logits(rows, (0, 5, 5))
    starts[:, 0] = ends[:, 0] = no_answer
    assert best_answers(rows, starts, ends, may_abstain=True) == {0: expected}
    assert best_answers(rows, starts, ends, may_abstain=False) == {0: "film"}
    starts[1, 0] = -9.0
    assert best_answers(rows, starts, ends, may_abstain=True) == {0: "film"}


def test_models_abstain_only_on_data_with_unanswerable_questions():
    for answers, scores in ((["film"], (1.0, 1.0)), ([], (1.0, 1.0))):
        data = load(answers)
        rows = windows(data)
        starts, ends = logits(rows, (0, 5, 5))
        starts[:, 0] = ends[:, 0] = 9.0
        found = TASK.compute_metrics(data, rows)(EvalPrediction((starts, ends), None))
        assert (found["exact_match"], found["f1"]) == scores
    assert TASK.facts(load([], ["film"])) == {"unanswerable_rows": 1}


def test_answers_are_compared_as_squad_does():
    assert normalized("The  Quick, (brown) fox!") == "quick brown fox"
    assert exact_match("the film.", ["a plot", "Film"]) == 1.0
    assert exact_match("", []) == exact_match("the", []) == 1.0
    assert exact_match("film", []) == 0.0
    assert answer_f1("good film", ["good", "a bad film plot"]) == pytest.approx(2 / 3)
    assert answer_f1("film film", ["film"]) == pytest.approx(2 / 3)
    assert answer_f1("film", []) == answer_f1("", ["film"]) == 0.0


@given(st.text("ab. ", max_size=9), st.lists(st.text("ab. ", min_size=1, max_size=9), max_size=3))
def test_f1_is_at_least_the_exact_match(answer, gold):
    assert exact_match(answer, gold) <= answer_f1(answer, gold) <= 1.0
    assert answer_f1(gold[0] if gold else "", gold) == 1.0


def test_answers_may_be_a_list_of_objects():
    rows = Dataset.from_dict(
        {"question": ["is film"], "context": [CONTEXT], "answers": ['[{"text": "film", "answer_start": 5}]']}
    )
    data = TASK.load(arguments(), {split: ("rows.csv", rows, None) for split in ("train", "validation")})
    assert (data.train["answers"][:], data.train["starts"][:]) == ([["film"]], [[5]])


REFUSED = {
    "rows.jsonl: an answer that its context does not hold at answer_start in 1 of 1 rows (first: row 1)": {
        "answers": [{"text": ["film"], "answer_start": [6]}]
    },
    "rows.jsonl: answers without text and answer_start in 1 of 1 rows": {"answers": ["film"]},
    "rows.jsonl: no question in 1 of 1 rows": {"question": [" "]},
    "rows.jsonl has no column answers; its columns are question, context, reply.": {
        "answers": None,
        "reply": ["film"],
    },
}


@pytest.mark.parametrize("message", REFUSED)
def test_data_that_do_not_fit_are_refused(message):
    good = {"question": ["is"], "context": [CONTEXT], "answers": [{"text": ["film"], "answer_start": [5]}]}
    rows = Dataset.from_dict({name: column for name, column in {**good, **REFUSED[message]}.items() if column})
    with pytest.raises(DataError) as error:
        TASK.load(arguments(), {"train": ("rows.jsonl", rows, None)})
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("max_length, doc_stride", [(5, 1), (10, 6)])
def test_lengths_that_leave_no_room_for_the_context_are_refused(max_length, doc_stride):
    with pytest.raises(DataError, match=rf"^max_length {max_length} with doc_stride {doc_stride} leaves no room"):
        windows(load(["film"]), max_length=max_length, doc_stride=doc_stride)


def test_windows_that_do_not_move_are_refused():
    with pytest.raises(DataError, match=r"^--doc_stride must be from 0 to max_length - 1, but is 10\."):
        arguments(doc_stride=10)
