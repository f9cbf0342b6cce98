"""Tags: entities in every scheme, labels on first pieces, and data that are refused."""

import importlib.util
import random

import pandas as pd
import pytest
import torch
from compress_options import SHAPE, VOCAB
from datasets import ClassLabel, Dataset, Features, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    BertConfig,
    BertForTokenClassification,
    BertTokenizerFast,
    RobertaTokenizerFast,
    set_seed,
)

from hf_xtc.data.task_data import DataArguments
from hf_xtc.data.unlabelled import load_unlabelled
from hf_xtc.errors import DataError
from hf_xtc.tasks.token_classification import IGNORED, TokenClassification, entities, tag_scores

TAGS = ["O", *(f"{mark}-{kind}" for mark in "BIES" for kind in ("per", "loc"))]
SCHEMES = {
    "iob1": ["O", "I-per", "I-per", "B-per", "O", "I-loc"],
    "iob2": ["O", "B-per", "I-per", "B-per", "O", "B-loc"],
    "bioes": ["O", "B-per", "E-per", "S-per", "O", "S-loc"],
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_marks_the_same_entities(scheme):
    assert entities(SCHEMES[scheme]) == {(1, 3, "per"), (3, 4, "per"), (5, 6, "loc")}


@given(
    st.lists(st.tuples(st.integers(1, 3), st.sampled_from(["O", "per", "loc"])), max_size=8), st.sampled_from("126")
)
def test_written_entities_are_read_back(spans, scheme):
    tags, expected, before = [], set(), None
    for length, kind in spans:
        start = len(tags)
        if kind == "O":
            tags += ["O"] * length
        else:
            expected.add((start, start + length, kind))
            first = "B" if scheme != "1" or before == kind else "I"
            marks = [first, *"I" * (length - 1)]
            if scheme == "6":
                marks = ["S"] if length == 1 else ["B", *"I" * (length - 2), "E"]
            tags += [f"{mark}-{kind}" for mark in marks]
        before = kind
    assert entities(tags) == expected


def test_scores_count_entities_whose_words_and_type_are_right():
    gold = [["B-per", "I-per", "O", "B-loc"], ["B-loc", "O"]]
    predicted = [["B-per", "I-per", "O", "B-per"], ["O", "B-loc"]]
    scores = tag_scores(gold, predicted, entities=True)
    assert scores == pytest.approx({"f1": 1 / 3, "precision": 1 / 3, "recall": 1 / 3, "accuracy": 0.5})
    nothing = [["O", "O"]]
    assert tag_scores(nothing, nothing, entities=True) == {"f1": 0, "precision": 0, "recall": 0, "accuracy": 1}
    assert tag_scores([["NOUN", "VERB"]], [["NOUN", "NOUN"]], entities=False) == {"accuracy": 0.5}


# f1, precision, recall and accuracy by seqeval 1.2.2 in its default mode, for the tags that `drawn` makes.
SEQEVAL = {
    0: (0.812351543943, 0.810426540284, 0.814285714286, 0.796992481203),
    1: (0.856447688564, 0.850241545894, 0.862745098039, 0.822314049587),
    2: (0.844783715013, 0.834170854271, 0.855670103093, 0.778225806452),
}


def drawn(seed):
    chance = random.Random(seed)
    lengths = [chance.randint(1, 12) for _ in range(40)]
    gold = [[chance.choice(TAGS) for _ in range(length)] for length in lengths]
    return gold, [[tag if chance.random() < 0.8 else chance.choice(TAGS) for tag in row] for row in gold]


@pytest.mark.parametrize("seed", SEQEVAL)
def test_scores_are_those_of_seqeval_for_any_tags(seed):
    found = tuple(tag_scores(*drawn(seed), entities=True).values())
    assert found == pytest.approx(SEQEVAL[seed], abs=1e-9)


@settings(deadline=None)  # the first example imports it
@pytest.mark.skipif(importlib.util.find_spec("seqeval") is None, reason="seqeval is not installed")
@given(st.lists(st.lists(st.tuples(st.sampled_from(TAGS), st.sampled_from(TAGS)), min_size=1), min_size=1))
def test_scores_are_those_of_seqeval(texts):
    from seqeval.metrics import f1_score, precision_score, recall_score

    gold, predicted = ([[pair[side] for pair in text] for text in texts] for side in (0, 1))
    scores = tag_scores(gold, predicted, entities=True)
    for name, score in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        assert scores[name] == pytest.approx(score(gold, predicted, zero_division=0))


def sources(rows, features=None):
    return {
        split: ("rows.jsonl", Dataset.from_dict(rows, features=features), None) for split in ("train", "validation")
    }


ARGS = DataArguments(train_file="rows.jsonl", validation_file="rows.jsonl", max_length=8)


def test_the_first_piece_of_each_word_has_its_label():
    vocab = {**VOCAB, "##s": 19, "##ed": 20}
    rows = {"tokens": [["films", "is", "fine"]], "tags": [["B-x", "O", "I-x"]]}
    data = TokenClassification().load(ARGS, sources(rows))
    assert data.label_names == ("O", "B-x", "I-x")
    found = TokenClassification().tokenize(data.train, BertTokenizerFast(vocab=vocab), ARGS)[0]
    assert len(found["input_ids"]) == 6  # [CLS] film ##s is fine [SEP]
    assert found["labels"] == [IGNORED, 1, IGNORED, 0, 2, IGNORED]


def test_words_are_split_as_in_running_text():
    """A byte-level tokenizer tells a word by the space before it."""
    vocab = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4, "a": 5, "b": 6, "\u0120": 7, "\u0120b": 8}
    tokenizer = RobertaTokenizerFast(vocab=vocab, merges=[("\u0120", "b")])
    data = TokenClassification().load(ARGS, sources({"tokens": [["a", "b"]], "tags": [["B-x", "O"]]}))
    found = TokenClassification().tokenize(data.train, tokenizer, ARGS)[0]
    assert found["input_ids"] == tokenizer("a b")["input_ids"] == [0, 5, 8, 2]
    assert found["labels"] == [IGNORED, 1, 0, IGNORED]


def test_words_beyond_the_length_are_left_out_and_counted(caplog):
    rows = {"tokens": [["film"] * 9], "tags": [["B-x", "O"] * 4 + ["O"]]}
    data = TokenClassification().load(ARGS, sources(rows))
    with caplog.at_level("WARNING"):
        found = TokenClassification().tokenize(data.train, BertTokenizerFast(vocab=VOCAB), ARGS)[0]
    assert len(found["labels"]) == 8
    assert "3 of 9 words are not used: beyond max_length, or without a piece." in caplog.messages


def test_numbers_of_named_classes_are_tags():
    names = ["O", "B-x", "I-x", "B-y"]
    features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=names))})
    data = TokenClassification().load(ARGS, sources({"tokens": [["a", "b"]], "ner_tags": [[0, 3]]}, features))
    assert data.label_names == tuple(names)
    assert data.train["label"][:] == [[0, 3]]


def test_labels_take_the_ids_of_a_head_that_has_more():
    data = TokenClassification().load(ARGS, sources({"tokens": [["a", "b"]], "tags": [["B-x", "O"]]}))
    config = BertConfig(id2label={0: "I-x", 1: "B-x", 2: "O"}, label2id={"I-x": 0, "B-x": 1, "O": 2})
    found = TokenClassification().align_labels(data, config, "teacher")
    assert (found.train["label"][:], found.label_names) == ([[1, 2]], ("I-x", "B-x", "O"))
    with pytest.raises(DataError, match=r"has labels that do not match the head"):
        TokenClassification().align_labels(
            data, BertConfig(id2label={0: "O", 1: "B-y"}, label2id={"O": 0, "B-y": 1}), "t"
        )


def unlabelled(tmp_path, rows, name="more.jsonl"):
    """The words of a file of unlabelled rows that may train a tagger whose validation row is "A film-maker"."""
    file = tmp_path / name
    if file.suffix == ".csv":
        pd.DataFrame(rows).to_csv(file, index=False)
    else:
        pd.DataFrame(rows).to_json(file, orient="records", lines=True)
    args = DataArguments(train_file="rows.jsonl", validation_file="rows.jsonl", unlabelled=[str(file)])
    splits = sources({"tokens": [["a", "b"]], "tags": [["B-x", "O"]]})
    splits["validation"] = ("dev", Dataset.from_dict({"tokens": [["A", "film-maker"]], "tags": [["O", "O"]]}), None)
    data = TokenClassification().load(args, splits)
    return load_unlabelled(args, data, TokenClassification().unlabelled_rows)["tokens"][:]


def test_unlabelled_rows_are_lists_of_words_or_texts(tmp_path):
    words = [["one", "two."], ["three"]]
    assert unlabelled(tmp_path, {"tokens": words, "tags": [["no", "tags"], ["here"]]}) == words
    assert unlabelled(tmp_path, {"text": words}) == words
    assert unlabelled(tmp_path, {"words": ['["one", "two."]', '["three"]']}, "more.csv") == words
    assert unlabelled(tmp_path, {"text": ["One, two\u2019s.", "@me"]}) == [
        ["One", ",", "two", "\u2019", "s", "."],
        ["@", "me"],
    ]


def test_unlabelled_rows_of_other_splits_are_left_out_however_they_are_split(tmp_path):
    assert unlabelled(tmp_path, {"text": ["a  FILM-maker", "B a", "a b", "ab", "new", "NEW"]}) == [["B", "a"], ["new"]]
    assert unlabelled(tmp_path, {"tokens": [["a", "film", "-", "maker"], ["new"]]}) == [["new"]]
    assert unlabelled(tmp_path, {"tokens": [["a film-", "maker"], ["a b"], ["new"]]}) == [["new"]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"tokens": [["a"], []]}, "empty tokens in 1 of 2 rows (first: row 2). Remove them."),
        ({"text": ["c", " "]}, "empty text in 1 of 2 rows (first: row 2). Fill or remove them."),
        ({"sentence": ["c"]}, "has no column text; its columns are sentence."),
    ],
)
def test_unlabelled_rows_without_words_are_refused(tmp_path, rows, message):
    with pytest.raises(DataError) as error:
        unlabelled(tmp_path, rows)
    assert message in str(error.value)


def test_a_teacher_labels_each_word_by_its_first_piece(one_thread):
    vocab = {**VOCAB, "##s": len(VOCAB), "##ed": len(VOCAB) + 1}
    set_seed(0)
    teacher = BertForTokenClassification(BertConfig(vocab_size=len(vocab), num_labels=5, **SHAPE)).eval()
    torch.nn.init.normal_(teacher.classifier.weight)
    tokenizer = BertTokenizerFast(vocab=vocab)
    chance = random.Random(0)
    rows = [[chance.choice(["film", "films", "is", "fine", "filmed"]) for _ in range(n)] for n in range(1, 10)]
    found = TokenClassification().teacher_labels(teacher, tokenizer, Dataset.from_dict({"tokens": rows}), ARGS)
    assert len({tag for row in found for tag in row}) > 2
    for words, tags in zip(rows, found, strict=True):
        pieces = [tokenizer.tokenize(word) for word in words]
        ids = tokenizer(" ".join(words), truncation=True, max_length=8, return_tensors="pt")
        predicted = teacher(**ids).logits[0].argmax(-1).tolist()
        first = [1 + sum(map(len, pieces[:i])) for i in range(len(words))]
        assert tags == [predicted[place] if place < 7 else 0 for place in first]
    assert not teacher.training


REFUSED = {
    "rows.jsonl: tokens that is not a list of words in 1 of 1 rows": {"tokens": ["a b"], "tags": [["O", "B-x"]]},
    "rows.jsonl: empty tokens in 1 of 1 rows": {"tokens": [[]], "tags": [["O"]]},
    "rows.jsonl: tags that is not a list of tags in 1 of 1 rows": {"tokens": [["a"]], "tags": ["O"]},
    "rows.jsonl: not as many tags as tokens in 1 of 2 rows (first: row 2)": {
        "tokens": [["a"], ["a", "b"]],
        "tags": [["O"], ["B-x"]],
    },
    "rows.jsonl has 1 different tags (O); two are needed.": {"tokens": [["a"]], "tags": [["O"]]},
    "rows.jsonl has the tag 'person', which is neither O nor begins with": {
        "tokens": [["a", "b"]],
        "tags": [["person", "B-x"]],
    },
    "rows.jsonl has no column tags; its columns are tokens, other.": {"tokens": [["a"]], "other": [["O"]]},
}


@pytest.mark.parametrize("message", REFUSED)
def test_data_that_do_not_fit_are_refused(message):
    args = DataArguments(train_file="rows.jsonl", validation_file="rows.jsonl", label_column="tags")
    with pytest.raises(DataError) as error:
        TokenClassification().load(args, sources(REFUSED[message]))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
