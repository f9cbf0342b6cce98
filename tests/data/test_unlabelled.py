"""Rows without labels: which are used, which are left out, and their labels by the teacher."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from compress_options import compress_options, sentences
from compress_options import folder as folder
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_xtc.cli import main
from hf_xtc.data.task_data import DataArguments, load_task
from hf_xtc.data.unlabelled import load_unlabelled, read_texts, teacher_labels, with_teacher_labels
from hf_xtc.errors import DataError

pytestmark = pytest.mark.usefixtures("one_thread")

TRAIN = {"text": ["a one", "a two", "a three", "a four"], "label": ["x", "y", "x", "y"]}
DEV = {"text": ["dev one", "dev two"], "label": ["x", "y"]}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name, columns):
    pd.DataFrame(columns).to_json(name, orient="records", lines=True)
    return name


def arguments(*more, train=TRAIN, dev=DEV, **options):
    files = {"train_file": write("train.jsonl", train), "validation_file": write("dev.jsonl", dev)}
    return DataArguments(**files, unlabelled=list(more), **options)


def taken(args):
    return load_unlabelled(args, load_task(args), read_texts)


def pairs(first, second):
    return {"text": first, "other": second}


def test_no_sources_give_none():
    assert taken(arguments()) is None


def test_texts_without_a_label_column_in_order_of_the_sources():
    write("b.jsonl", {"text": ["b two", "b one"]})
    write("c.jsonl", {"text": ["c"], "label": ["of another task"], "more": [1]})
    assert taken(arguments("c.jsonl", "b.jsonl")).to_dict() == {"text": ["c", "b two", "b one"]}


def test_train_rows_and_validation_rows_are_left_out():
    texts = ["a one", "new", " A  Two ", "new", "NEW", "dev one", "DEV  two", "dev one and more"]
    args = arguments(write("b.jsonl", {"text": texts}))
    assert taken(args)["text"][:] == ["new", "dev one and more"]


def test_held_out_rows_are_left_out():
    train = {"text": [f"row {i}" for i in range(20)], "label": ["x", "y"] * 10}
    args = arguments(write("b.jsonl", {"text": [*train["text"], "new"]}), train=train, selection_share=0.2)
    assert taken(args)["text"][:] == ["new"]


def test_a_pair_that_shares_either_text_with_validation_is_left_out():
    more = pairs(["q", "dev one", "r", "a", "a"], ["dev two", "s", "DEV one", "other", "b"])
    args = arguments(
        write("b.jsonl", more),
        train={**pairs(["a", "c"], ["b", "d"]), "label": ["x", "y"]},
        dev={**pairs(["dev one"], ["dev two"]), "label": ["x"]},
        text_pair_column="other",
    )
    assert taken(args).to_dict() == {"text": ["a"], "text_pair": ["other"]}


def glue(task, columns):
    for split, prefix in (("train", ""), ("validation", "dev ")):
        rows = pd.DataFrame({name: [prefix + text for text in texts] for name, texts in columns.items()})
        Path("glue", task).mkdir(parents=True, exist_ok=True)
        rows.assign(label=[0, 1], idx=[0, 1]).to_parquet(f"glue/{task}/{split}.parquet")


def test_glue_tasks_by_name_with_their_own_columns():
    glue("rte", {"sentence1": ["p", "q"], "sentence2": ["h", "i"]})
    glue("qnli", {"question": ["why", "what"], "sentence": ["so", "that"]})
    args = DataArguments(task_name="rte", data_dir="glue", unlabelled=["qnli", "rte"])
    assert taken(args).to_dict() == {"text": ["why", "what"], "text_pair": ["so", "that"]}


def test_a_text_file_serves_a_task_whose_column_has_another_name():
    glue("cola", {"sentence": ["so", "that"]})
    Path("more.txt").write_text("one\nso\ndev so\ntwo\n")
    args = DataArguments(task_name="cola", data_dir="glue", unlabelled=["more.txt"])
    assert taken(args).to_dict() == {"text": ["one", "two"]}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a one", "dev two"]}, "All unlabelled rows of b.jsonl occur in the train data, or share a text"),
        ({"words": ["a"]}, "b.jsonl has no column text; its columns are words."),
        ({"text": ["new", " "]}, "b.jsonl: empty text in 1 of 2 rows (first: row 2). Fill or remove them."),
    ],
)
def test_refused(columns, message):
    args = arguments(write("b.jsonl", columns))
    with pytest.raises(DataError) as error:
        taken(args)
    assert str(error.value).startswith(message)


def test_pairs_and_single_texts_cannot_be_mixed():
    glue("rte", {"sentence1": ["p", "q"], "sentence2": ["h", "i"]})
    glue("cola", {"sentence": ["so", "that"]})
    for task, other, what in (
        ("rte", "cola", "one text per row, the train data two"),
        ("cola", "rte", "two texts per row"),
    ):
        with pytest.raises(DataError, match=f"{other}/train.parquet has {what}"):
            taken(DataArguments(task_name=task, data_dir="glue", unlabelled=[other]))


def test_missing_file():
    with pytest.raises(DataError, match=r"nothing\.jsonl does not exist, or is not a file\."):
        taken(arguments("nothing.jsonl"))


def test_labels_are_the_teachers(folder):
    teacher = AutoModelForSequenceClassification.from_pretrained(folder / "teacher").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "teacher")
    texts = sentences(200, seed=5)["text"].tolist()
    train = Dataset.from_dict({"text": ["good film"], "label": [1]})
    rows = with_teacher_labels(
        Dataset.from_dict({"text": texts}),
        train,
        lambda rows: list(teacher_labels(teacher, tokenizer, rows, ["text"], 32)),
    )
    assert (rows["text"][:], rows["label"][0]) == (["good film", *texts], 1)
    with torch.no_grad():
        expected = [teacher(**tokenizer(text, return_tensors="pt")).logits.argmax().item() for text in texts]
    assert rows["label"][1:] == expected
    assert rows.features == train.features


def test_unlabelled_rows_train_the_students_and_not_the_teacher(folder, tmp_path):
    more = tmp_path / "more.csv"
    sentences(96, seed=11)[["text"]].to_csv(more, index=False)
    out = tmp_path / "out"
    options = [*compress_options(folder, out), "--num_train_epochs=1", f"--unlabelled={more}"]
    assert main(["compress", *options]) == 0
    provenance = json.loads((out / "metrics.json").read_text())["provenance"]
    assert (provenance["train_rows"], provenance["augmented_rows"]) == (256, 0)
    assert 64 < provenance["unlabelled_rows"] <= 96
    assert provenance["unlabelled_from"] == ["more.csv"]
    assert provenance["stages"][-1]["steps"] == -(-(256 + provenance["unlabelled_rows"]) // 32)
    teacher = json.loads((out / "training" / "teacher" / "receipt.json").read_text())
    assert teacher["steps"] == 10 * 8
    assert "more.csv" in (out / "README.md").read_text()


def test_other_unlabelled_files_make_another_run(folder, tmp_path, capsys):
    out = tmp_path / "out"
    options = [*compress_options(folder, out), "--num_train_epochs=1", "--max_train_samples=64"]
    assert main(["compress", *options]) == 0
    more = tmp_path / "more.csv"
    sentences(8, seed=11)[["text"]].to_csv(more, index=False)
    assert main(["compress", *options, f"--unlabelled={more}"]) == 1
    assert "another run" in capsys.readouterr().err
