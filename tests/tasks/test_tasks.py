"""Every registered task: what it decides of real tables, and that the command line and the cards follow it."""

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from compress_options import VOCAB
from task_cases import OPTIONS, RECORDED, ROWS, table
from transformers import BertConfig, BertTokenizerFast, EvalPrediction

from hf_xtc.data.task_data import DataArguments, read_splits
from hf_xtc.errors import DataError, XTCError
from hf_xtc.hub.card import usage
from hf_xtc.runs.arguments import EvaluationDataArguments
from hf_xtc.tasks import TASKS, Task, find_task, kind_of, task_of_model

SHAPE = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
LABELLED = [name for name, task in TASKS.items() if task.labelled and name not in RECORDED]


def arguments(folder, name, suffix="jsonl", **options):
    path, rows = folder / f"rows.{suffix}", table(name)
    if suffix.startswith("parquet"):
        rows.to_parquet(path)
    elif suffix.startswith(("csv", "tsv")):
        for column in rows.columns:
            nested = rows[column].map(lambda cell: isinstance(cell, (list, dict))).all()
            rows[column] = rows[column].map(json.dumps) if nested else rows[column]
        rows.to_csv(
            path, index=False, sep="\t" if suffix.startswith("tsv") else ",", quoting=3 * (suffix[:3] == "tsv")
        )
    else:
        rows.to_json(path, orient="records", lines=suffix.startswith("jsonl"))
    given = {"train_file": str(path), "validation_file": str(path), "max_length": 32, **OPTIONS.get(name, {})}
    return DataArguments(**given, **options)


def load(folder, name):
    args = arguments(folder, name)
    return TASKS[name]().load(args, read_splits(args))


def config(task, **changes):
    head = task.head if isinstance(task, type) else task
    return BertConfig(architectures=[f"Bert{head}"], **changes)


def test_every_task_has_rows_here():
    assert sorted(ROWS) == sorted(TASKS)


@pytest.mark.parametrize("name", LABELLED)
def test_data_find_their_task_and_fit_no_other(tmp_path, name):
    args = arguments(tmp_path, name)
    sources = read_splits(args)
    assert type(find_task(args, sources)) is TASKS[name]
    assert [other for other in TASKS if TASKS[other]().reads(args, sources["train"][1])] == [name]


@pytest.mark.parametrize("name", RECORDED)
def test_a_task_that_columns_do_not_tell_is_recorded(tmp_path, name):
    args = arguments(tmp_path, name)
    args.task = None
    student = config(TASKS[name])
    student.xtc = TASKS[name]().recorded()["xtc"]
    assert kind_of(student) == name
    assert type(find_task(args, read_splits(args), student, "student")) is TASKS[name]
    assert not TASKS[name]().reads(args, read_splits(args)["train"][1])


@pytest.mark.parametrize("name", [name for name in TASKS if name not in RECORDED])
def test_a_teachers_class_agrees_with_the_data(tmp_path, name):
    args = arguments(tmp_path, name)
    args.task = None
    problem = TASKS[name]().head_config(load(tmp_path, name)).get("problem_type")
    for teacher in (config(TASKS[name]), config(TASKS[name], problem_type=problem)):
        assert type(find_task(args, read_splits(args), teacher, "teacher")) is TASKS[name]


@pytest.mark.parametrize("name", TASKS)
def test_a_task_can_be_said(tmp_path, name):
    args = arguments(tmp_path, name)
    args.task = name
    assert type(find_task(args, read_splits(args), config("Model"), "teacher")) is TASKS[name]
    args.task = "tagging"
    with pytest.raises(XTCError, match=r"^Unknown task 'tagging'; registered: .*sequence-classification"):
        find_task(args, read_splits(args))


OTHERS = {"token-classification": "question-answering"}


@pytest.mark.parametrize("name", LABELLED)
def test_a_teacher_of_another_task_is_refused_unless_its_head_is_new(tmp_path, name):
    args, other = arguments(tmp_path, name), OTHERS.get(name, "token-classification")
    sources, teacher = read_splits(args), config(TASKS[other])
    with pytest.raises(
        DataError, match=rf"^teacher is a model for {other}, but .*rows\.jsonl has the columns .*{name}"
    ):
        find_task(args, sources, teacher, "teacher")
    assert type(find_task(args, sources, teacher, "teacher", fresh_head=True)) is TASKS[name]
    args.task = name
    with pytest.raises(DataError, match=rf"^teacher is a model for {other}, but --task is {name}"):
        find_task(args, sources, teacher, "teacher")


@pytest.mark.parametrize(
    "name, advice",
    [
        ("sentence-embedding", "Name a model that embeds texts: a folder of sentence-transformers, or an encoder"),
        ("masked-lm", "Name a model with the head of its pre-training, such as BertForMaskedLM"),
        ("token-classification", "Name a model of that task, or train a new head: hf-xtc compress --fine_tune."),
    ],
)
def test_the_advice_fits_the_task(tmp_path, name, advice):
    args = arguments(tmp_path, name)
    args.task = name
    with pytest.raises(DataError) as error:
        find_task(args, read_splits(args), config("ForSequenceClassification"), "teacher")
    owners = "sequence-classification or regression or reranking or multi-label-classification"
    said, told = str(error.value).split(f", but --task is {name}. ")
    assert said.startswith("teacher is a model for ")
    assert set(said.removeprefix("teacher is a model for ").split(" or ")) == set(owners.split(" or "))
    assert told.startswith(advice)


# Task -> a change of its rows that makes labels of another kind, and what is said of it.
WRONG = {
    "sequence-classification": (lambda rows: rows.assign(label=[0.5 + i for i in range(12)]), "fractional numbers"),
    "regression": (lambda rows: rows.assign(label="good"), "labels that are not numbers"),
    "reranking": (lambda rows: rows.assign(label="good"), "labels that are not numbers"),
    "multi-label-classification": (lambda rows: rows.assign(labels="good"), "labels that is not a list of names"),
    "token-classification": (lambda rows: rows.assign(tags=[[0.5]] * 12), "tags that is not a list of tags"),
    "question-answering": (lambda rows: rows.assign(answers="good"), "answers without text and answer_start"),
}


@pytest.mark.parametrize("name", WRONG)
def test_labels_of_another_kind_are_refused(tmp_path, name):
    args = arguments(tmp_path, name)
    WRONG[name][0](table(name)).to_json(args.train_file, orient="records", lines=True)
    with pytest.raises(DataError, match=rf"rows\.jsonl: .*{WRONG[name][1]}") as error:
        TASKS[name]().load(args, read_splits(args))
    assert "\n" not in str(error.value)


def test_an_answer_that_its_context_does_not_hold_is_refused(tmp_path):
    args, rows = arguments(tmp_path, "question-answering"), table("question-answering")
    rows.at[4, "answers"] = {"text": ["nothing of it"], "answer_start": [0]}
    rows.to_json(args.train_file, orient="records", lines=True)
    with pytest.raises(DataError) as error:
        TASKS["question-answering"]().load(args, read_splits(args))
    assert str(error.value) == (
        f"{args.train_file}: an answer that its context does not hold at answer_start in 1 of 12 rows (first: row 5). "
        "answer_start counts the characters of the context from 0; correct it."
    )


def test_a_multi_label_teacher_is_refused_for_single_labels(tmp_path):
    args, teacher = arguments(tmp_path, "sequence-classification"), config("ForSequenceClassification")
    teacher.problem_type = "multi_label_classification"
    with pytest.raises(DataError, match=r"^teacher is a model for multi-label-classification, but "):
        find_task(args, read_splits(args), teacher, "teacher")


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "parquet", "csv.gz", "jsonl.gz", "parquet.gz"])
@pytest.mark.parametrize("name", TASKS)
def test_files_of_every_format_hold_the_same_rows(tmp_path, name, suffix):
    if suffix == "parquet.gz":
        args = arguments(tmp_path, name, "parquet")
        (tmp_path / "rows.parquet.gz").write_bytes(gzip.compress((tmp_path / "rows.parquet").read_bytes()))
        args.train_file = args.validation_file = str(tmp_path / "rows.parquet.gz")
    else:
        args = arguments(tmp_path, name, suffix)
    sources = read_splits(args)
    data, expected = find_task(args, sources).load(args, sources), load(tmp_path, name)
    assert data.train.to_dict() == expected.train.to_dict()
    assert (data.name, data.fingerprint) == ("rows", expected.fingerprint)


@pytest.mark.parametrize("name", TASKS)
def test_a_missing_column_is_told_with_those_that_there_are(tmp_path, name):
    args = arguments(tmp_path, name)
    source, rows, columns = read_splits(args)["train"]
    column = rows.column_names[-1]
    sources = {"train": (source, rows.rename_column(column, "other"), columns)}
    there = ", ".join([*rows.column_names[:-1], "other"])
    with pytest.raises(DataError, match=rf"has no column \w+; its columns are {there}\."):
        TASKS[name]().load(args, sources)


@pytest.mark.parametrize("name", [name for name in TASKS if TASKS[name].has_loss])
def test_a_head_by_the_tasks_config_trains_and_is_scored(tmp_path, name):
    args, data, tokenizer = arguments(tmp_path, name), load(tmp_path, name), BertTokenizerFast(vocab=VOCAB)
    task: Task = TASKS[name]()
    model = task.auto_class.from_config(BertConfig(vocab_size=len(VOCAB), **SHAPE, **task.head_config(data))).eval()
    assert type(model).__name__.endswith(task.head)
    rows = task.tokenize(task.align_labels(data, model.config, "teacher").train, tokenizer, args)
    inputs = ("input_ids", "attention_mask", "token_type_ids", "labels", "start_positions", "end_positions")
    batch = task.collator(tokenizer)([{key: row[key] for key in inputs if key in row} for row in rows])
    output = model(**batch)
    assert output.loss.isfinite()
    problem = task.head_config(data).get("problem_type")
    assert model.config.problem_type == problem, "stated, not guessed at the first loss"
    logits = tuple(value.detach() for key, value in output.items() if key.endswith("logits"))
    kept = task.reduce_outputs(logits if len(logits) > 1 else logits[0], None)
    labels = batch.get("labels", torch.zeros(len(rows)))
    predictions = tuple(map(np.asarray, kept)) if isinstance(kept, tuple) else kept.numpy()
    scores = task.compute_metrics(data, rows)(EvalPrediction(predictions, labels.numpy()))
    assert tuple(scores) == task.metric_names(data)
    assert task.main_metric(data) in scores
    assert all(isinstance(score, float) and np.isfinite(score) for score in scores.values())


@pytest.mark.parametrize("name", [name for name in TASKS if TASKS[name].has_loss])
def test_a_model_that_diverged_scores_nan(tmp_path, name):
    args, data, tokenizer = arguments(tmp_path, name), load(tmp_path, name), BertTokenizerFast(vocab=VOCAB)
    task: Task = TASKS[name]()
    rows = task.tokenize(data.train, tokenizer, args)
    batch = task.collator(tokenizer)(
        [{key: row[key] for key in ("input_ids", "labels") if key in row} for row in rows]
    )
    outputs = task.head_config(data).get("num_labels", 2)
    shape = batch["input_ids"].shape if "Sequence" not in task.head else (len(rows),)
    nan = torch.full((*shape, outputs), torch.nan)
    kept = task.reduce_outputs((nan[..., 0], nan[..., 1]) if "Question" in task.head else nan, None)
    predictions = tuple(map(np.asarray, kept)) if isinstance(kept, tuple) else kept.numpy()
    labels = batch.get("labels", torch.zeros(len(rows))).numpy()
    scores = task.compute_metrics(data, rows)(EvalPrediction(predictions, labels))
    assert all(np.isnan(score) for score in scores.values()), scores


@pytest.mark.parametrize("name", TASKS)
def test_cards_know_the_task(name):
    task = TASKS[name]
    problem = (task.problem_types or (None,))[-1]
    found = task_of_model(f"XTCBert{task.head}", problem)
    assert (found.head, found.pipeline_tag) == (task.head, task.pipeline_tag)
    snippet = usage(f"XTCBert{task.head}", problem_type=problem)
    assert snippet.startswith("import hf_xtc  # registers the architecture\n")


def test_label_names_of_the_data_name_the_head(tmp_path):
    head = TASKS["sequence-classification"]().head_config(load(tmp_path, "sequence-classification"))
    assert head["id2label"] == {0: "no", 1: "yes"}
    assert head["label2id"] == {"no": 0, "yes": 1}


def test_labels_that_are_not_the_heads_are_refused(tmp_path):
    data = load(tmp_path, "regression")
    with pytest.raises(DataError, match=r"rows is a regression, but the head of teacher has 2 outputs"):
        TASKS["regression"]().align_labels(data, BertConfig(num_labels=2), "teacher")


@pytest.mark.parametrize("label, ids", [("yes", {1}), ("YES", {1}), (1, {1}), (0, {0})])
def test_rows_of_one_class_evaluate_a_model_of_several(tmp_path, label, ids):
    rows = table("sequence-classification").assign(label=label)
    rows.to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    args = EvaluationDataArguments(validation_file=str(tmp_path / "rows.jsonl"))
    task = TASKS["sequence-classification"]()
    head = BertConfig(id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1})
    data = task.align_labels(task.load(args, read_splits(args)), head, "model")
    assert (set(data.validation["label"]), data.label_names) == (ids, ("no", "yes"))


@pytest.mark.parametrize("name, column", [("multi-label-classification", "labels"), ("token-classification", "tags")])
def test_lists_of_one_label_evaluate_a_model_of_several(tmp_path, name, column):
    rows = table(name)
    rows[column] = [["O"] * len(cell) if column == "tags" else ["bad"] for cell in rows[column]]
    rows.to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    args, task = EvaluationDataArguments(validation_file=str(tmp_path / "rows.jsonl")), TASKS[name]()
    (tmp_path / "all").mkdir()
    names = task.head_config(load(tmp_path / "all", name))
    head = BertConfig(id2label=names["id2label"], label2id=names["label2id"])
    data = task.align_labels(task.load(args, read_splits(args)), head, "model")
    assert data.label_names == tuple(names["label2id"])


def test_a_label_that_no_class_of_the_model_has_is_refused(tmp_path):
    table("sequence-classification").assign(label="maybe").to_json(tmp_path / "r.jsonl", orient="records", lines=True)
    args, task = EvaluationDataArguments(validation_file=str(tmp_path / "r.jsonl")), TASKS["sequence-classification"]()
    with pytest.raises(DataError, match=r"^r has labels that do not match the head: the data has 1 \(maybe\), model"):
        task.align_labels(task.load(args, read_splits(args)), BertConfig(label2id={"no": 0, "yes": 1}), "model")


def test_regression_is_no_other_task(tmp_path):
    with pytest.raises(DataError, match=r"^--regression is the task regression, but --task is sequence-"):
        arguments(tmp_path, "regression", task="sequence-classification")


def test_data_of_no_task_are_told_their_columns(tmp_path):
    args = arguments(tmp_path, "sequence-classification", label_column="class")
    sources = read_splits(args)
    with pytest.raises(DataError, match=r"has no column class; its columns are text, label\."):
        find_task(args, sources).load(args, sources)


def test_cards_do_not_need_the_libraries_of_data():
    code = """
import sys
for name in ("datasets", "sklearn", "scipy", "pandas"):
    sys.modules[name] = None
import hf_xtc.hub.card
from hf_xtc.tasks import TASKS
print(*sorted(TASKS))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == sorted(TASKS)
