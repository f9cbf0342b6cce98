"""Every registered task: what it decides of real tables, and that the command line and the cards follow it."""

import subprocess
import sys

import pandas as pd
import pytest
import torch
from transformers import BertConfig

from hf_xtc.data.task_data import DataArguments, read_splits
from hf_xtc.errors import DataError, XTCError
from hf_xtc.hub.card import usage
from hf_xtc.tasks import TASKS, Task, find_task, task_of_model

TABLES = {
    "sequence-classification": {"text": ["a b", "c", "b"], "label": ["no", "yes", "no"]},
    "regression": {"text": ["a b", "c", "b"], "label": [0.5, 1.5, -2.0]},
}
TABLES["sentence-embedding"] = {"text": ["a b", "c", "b"]}
TABLES["reranking"] = {"text": ["a b", "a b", "b"], "text_pair": ["c", "d", "e"], "label": [0, 1, 0]}
OPTIONS = {
    "regression": {"regression": True},
    "sentence-embedding": {"task": "sentence-embedding"},
    "reranking": {"task": "reranking", "text_pair_column": "text_pair"},
}
SAID = {name for name, options in OPTIONS.items() if "task" in options}  # the columns do not tell these
SHAPE = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}


def arguments(folder, name, **options):
    path = str(folder / "rows.jsonl")
    pd.DataFrame(TABLES[name]).to_json(path, orient="records", lines=True)
    return DataArguments(train_file=path, validation_file=path, **{**OPTIONS.get(name, {}), **options})


def load(folder, name):
    args = arguments(folder, name)
    return TASKS[name]().load(args, read_splits(args))


def config(task, **changes):
    head = task.head if isinstance(task, type) else task
    return BertConfig(architectures=[f"Bert{head}"], **changes)


@pytest.mark.parametrize("name", TASKS)
def test_data_find_their_task_and_fit_no_other(tmp_path, name):
    args = arguments(tmp_path, name)
    sources = read_splits(args)
    assert type(find_task(args, sources)) is TASKS[name]
    args.task = None
    readers = [other for other in TASKS if TASKS[other]().reads(args, sources["train"][1])]
    assert readers == ([] if name == "sentence-embedding" else ["sequence-classification"] if name in SAID else [name])


@pytest.mark.parametrize("name", TASKS)
def test_a_teachers_class_agrees_with_the_data(tmp_path, name):
    args = arguments(tmp_path, name)
    problem = TASKS[name]().head_config(load(tmp_path, name)).get("problem_type")
    for teacher in (config(TASKS[name]), config(TASKS[name], problem_type=problem), config("ForPreTraining")):
        assert type(find_task(args, read_splits(args), teacher, "teacher")) is TASKS[name]


@pytest.mark.parametrize("name", TASKS)
def test_a_task_can_be_said(tmp_path, name):
    args = arguments(tmp_path, name, task=name)
    assert type(find_task(args, read_splits(args), config("Model"), "teacher")) is TASKS[name]
    args.task = "tagging"
    with pytest.raises(XTCError, match=r"^Unknown task 'tagging'; registered: .*sequence-classification"):
        find_task(args, read_splits(args))


@pytest.mark.parametrize("name", [name for name in TASKS if TASKS[name].has_loss])
def test_a_head_by_the_tasks_config_trains_and_is_scored(tmp_path, name):
    data = load(tmp_path, name)
    task: Task = TASKS[name]()
    model = task.auto_class.from_config(BertConfig(vocab_size=9, **SHAPE, **task.head_config(data)))
    assert type(model).__name__.endswith(task.head)
    aligned = task.align_labels(data, model.config, "teacher")
    labels = torch.tensor(aligned.train["label"][:])
    output = model(input_ids=torch.tensor([[1, 2], [3, 4], [2, 0]]), labels=labels)
    assert output.loss.isfinite()
    assert model.config.problem_type == task.head_config(data)["problem_type"], "stated, not guessed at the first loss"

    class Prediction:
        predictions, label_ids = output.logits.detach().numpy(), labels.numpy()

    rows = data.train.add_column("query", [0, 0, 1]) if name == "reranking" else data.train
    scores = task.compute_metrics(data, rows)(Prediction)
    assert tuple(scores) == task.metric_names(data)
    assert task.main_metric(data) in scores


@pytest.mark.parametrize("name", TASKS)
def test_cards_know_the_task(name):
    task = TASKS[name]
    problem = (task.problem_types or (None,))[-1]
    found = task_of_model(f"XTCBert{task.head}", problem)
    assert (found.head, found.pipeline_tag) == (task.head, task.pipeline_tag)
    assert usage(f"XTCBert{task.head}", problem_type=problem).startswith(
        "import hf_xtc  # registers the architecture\n"
    )


def test_label_names_of_the_data_name_the_head(tmp_path):
    head = TASKS["sequence-classification"]().head_config(load(tmp_path, "sequence-classification"))
    assert head["id2label"] == {0: "no", 1: "yes"}
    assert head["label2id"] == {"no": 0, "yes": 1}


def test_labels_that_are_not_the_heads_are_refused(tmp_path):
    data = load(tmp_path, "regression")
    with pytest.raises(DataError, match=r"rows is a regression, but the head of teacher has 2 outputs"):
        TASKS["regression"]().align_labels(data, BertConfig(num_labels=2), "teacher")


def test_regression_is_no_other_task(tmp_path):
    with pytest.raises(
        DataError, match=r"^--regression is the task regression, but --task is sequence-classification"
    ):
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
