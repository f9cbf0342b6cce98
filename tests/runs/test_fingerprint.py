"""Fingerprints, which tell runs apart, and the folder of a run."""

import dataclasses
from pathlib import Path

import pytest
from transformers import TrainingArguments

from hf_xtc import XTCTrainingArguments
from hf_xtc.runs.fingerprint import deciding, open_run, read_run, remove_run


def arguments(**changes):
    return XTCTrainingArguments("out", use_cpu=True, **changes)


@pytest.mark.parametrize(
    "change", [{"weight_annealing": 0.1}, {"terms": {"logits": 2.0}}, {"teacher_cache": "cache"}], ids=str
)
def test_options_of_students_do_not_affect_fine_tuning(change):
    assert deciding(arguments(), distils=False) == deciding(arguments(**change), distils=False)
    assert deciding(arguments()) != deciding(arguments(**change))


def test_stock_options_affect_both_fingerprints():
    for distils in (True, False):
        assert deciding(arguments(), distils=distils) != deciding(arguments(learning_rate=0.5), distils=distils)
        assert deciding(arguments(), distils=distils) == deciding(arguments(logging_steps=7), distils=distils)


def test_fine_tuning_is_described_by_stock_arguments_alone():
    assert set(deciding(arguments(), distils=False)) <= {field.name for field in dataclasses.fields(TrainingArguments)}


def run_folder(tmp_path, description):
    """A folder that holds a run and its packed model."""
    out = tmp_path / "out"
    open_run(out, out / "training", description, overwrite=False)
    for name in ("config.json", "model.safetensors", "README.md", "metrics.json", "notes.txt", "training/x"):
        (out / name).write_text("old")
    return out, out / "training"


def test_opening_a_run_is_atomic(tmp_path, monkeypatch):
    """If killed before the last step, the folder has only scratch files, and the same command resumes."""
    out = tmp_path / "out"

    def kill(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", kill)
        with pytest.raises(KeyboardInterrupt):
            open_run(out, out / "training", {"seed": 1}, overwrite=False)
    assert [path.name for path in out.iterdir()] == [".incomplete-training"]
    open_run(out, out / "training", {"seed": 1}, overwrite=False)
    assert [path.name for path in out.iterdir()] == ["training"]
    assert read_run(out / "training") == {"seed": 1}


def test_remove_run_removes_config_json_first(tmp_path, monkeypatch):
    """Then, wherever the process is killed, no file of the old run can be loaded as the new run's."""
    out, training = run_folder(tmp_path, {"seed": 1})
    removed = []
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda path, *a, **k: removed.append(path.name) or unlink(path, *a, **k))
    remove_run(out, training)
    assert removed[0] == "config.json"
    assert set(removed[:4]) == {"config.json", "model.safetensors", "README.md", "metrics.json"}
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    open_run(out, training, {"seed": 2}, overwrite=True)
    assert read_run(training) == {"seed": 2}


def test_a_folder_without_a_run_keeps_its_files(tmp_path):
    (tmp_path / "config.json").write_text("mine")
    remove_run(tmp_path, tmp_path / "training")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    open_run(tmp_path, tmp_path / "training", {"seed": 1}, overwrite=True)
    assert (tmp_path / "config.json").read_text() == "mine"
