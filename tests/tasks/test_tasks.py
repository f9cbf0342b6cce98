"""Every registered task: what it decides of real tables, and that the command line and the cards follow it."""

import subprocess
import sys

import pandas as pd
import pytest
import torch
from transformers import BertConfig

from hf_xtc.data.task_data import DataArguments, load_task
from hf_xtc.errors import DataError
from hf_xtc.hub.card import PIPELINES, usage
from hf_xtc.tasks import TASKS, Task, task_of
from hf_xtc.tasks import base as tasks_base

TABLES = {
    "sequence-classification": {"text": ["a b", "c", "b"], "label": ["no", "yes", "no"]},
    "regression": {"text": ["a b", "c", "b"], "label": [0.5, 1.5, -2.0]},
}


def load(folder, name):
    path = str(folder / "rows.csv")
    pd.DataFrame(TABLES[name]).to_csv(path, index=False)
    return load_task(DataArguments(train_file=path, validation_file=path, regression=name == "regression"))


@pytest.mark.parametrize("name", TASKS)
def test_data_find_their_task_and_fit_no_other(tmp_path, name):
    data = load(tmp_path, name)
    assert type(task_of(data)) is TASKS[name]
    assert [other for other in TASKS if TASKS[other]().fits(data)] == [name]


@pytest.mark.parametrize("name", TASKS)
def test_a_head_by_the_tasks_config_trains_and_is_scored(tmp_path, name):
    data = load(tmp_path, name)
    task: Task = TASKS[name]()
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = task.auto_class.from_config(BertConfig(vocab_size=9, **shape, **task.head_config(data)))
    assert type(model).__name__.endswith(task.head)
    aligned = task.align_labels(data, model.config, "teacher")
    labels = torch.tensor(aligned.train["label"][:])
    output = model(input_ids=torch.tensor([[1, 2], [3, 4], [2, 0]]), labels=labels)
    assert output.loss.isfinite()
    assert model.config.problem_type == task.head_config(data)["problem_type"], "stated, not guessed at the first loss"

    class Prediction:
        predictions, label_ids = output.logits.detach().numpy(), labels.numpy()

    assert task.main_metric(data) in task.compute_metrics(data)(Prediction)


@pytest.mark.parametrize("name", TASKS)
def test_cards_know_the_task(name):
    task = TASKS[name]
    assert PIPELINES[task.head] == task.pipeline_tag
    assert f'"{task.pipeline_tag}"' in usage(f"XTCBert{task.head}")


def test_label_names_of_the_data_name_the_head(tmp_path):
    head = TASKS["sequence-classification"]().head_config(load(tmp_path, "sequence-classification"))
    assert head["id2label"] == {0: "no", 1: "yes"}
    assert head["label2id"] == {"no": 0, "yes": 1}


def test_labels_that_are_not_the_heads_are_refused(tmp_path):
    data = load(tmp_path, "regression")
    with pytest.raises(DataError, match=r"rows is a regression, but the head of teacher has 2 outputs"):
        task_of(data).align_labels(data, BertConfig(num_labels=2), "teacher")


def test_data_of_no_task_are_refused(tmp_path, monkeypatch):
    data = load(tmp_path, "regression")
    monkeypatch.setattr(tasks_base, "TASKS", {"sequence-classification": TASKS["sequence-classification"]})
    with pytest.raises(DataError, match=r"^rows has the columns text, label, which fit none of the tasks: "):
        task_of(data)


def test_cards_do_not_need_the_libraries_of_data():
    code = """
import sys
for name in ("datasets", "sklearn", "scipy", "pandas"):
    sys.modules[name] = None
import hf_xtc.hub.card
print(sorted(hf_xtc.hub.card.TASKS))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['regression', 'sequence-classification']"
