"""Nonsense for every option of every command: one sentence that names the option or its value, and nothing written."""

import json
import shutil
from argparse import Action
from pathlib import Path

import pytest
from compress_options import data_options
from compress_options import folder as folder
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_xtc import XTCRecipe, pack_model
from hf_xtc.cli import COMMANDS, command_parser, main
from hf_xtc.compression.convert import compress

pytestmark = pytest.mark.usefixtures("one_thread")

# What a value may be without anyone knowing better: names that the user invents, or that a service knows.
FREE = {
    "logging_dir",  # of older versions of transformers
    *("run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
    *("hub_token", "hub_model_id", "hub_revision", "commit_message", "optim_target_modules", "teacher_license"),
    "local_rank",  # set by old launchers; transformers has stopped reading it
}
# Options that only training reads; the commands that evaluate take them so that one set of options serves all.
TRAINING_ONLY = {"unlabelled"}
NUMBERS = ["word", "1.5x", "-3", "nan", "1e400", str(10**30)]
TEXTS = ["nonsense", "no/such/file.csv", "a-folder", "a-file", "bad.json", "{", "-1"]
# What the parser makes of a type -> nonsense. Floats may be fractions; whole numbers may not.
NONSENSE = {"int": [*NUMBERS, "1.5"], "float": NUMBERS, "string_to_bool": ["maybe"], "<lambda>": ["nonsense"]}
NONSENSE |= {"dict": ["nonsense"], "DebugOption": ["nonsense"]}
# Results have any name that is free.
RESULTS = {"output_file": ["", "a-folder", "no/such/file"], "output_dir": ["", "a-file", "a-folder"]}
RESULTS |= {"teacher_cache": RESULTS["output_dir"]}
# Each command without nonsense either succeeds or fails at its end, with a sentence that names none of its options.
ENDS = {
    "compress": ["--teacher=teacher", "--output_dir=a-file/out", "--use_cpu", "--max_length=32"],
    "evaluate": ["--model=packed", "--max_length=32"],
    "export": ["--model=packed", "--output_dir=a-file/out", "--max_length=32"],
    "verify": ["--model=packed", "--max_length=32"],
    "push": ["--folder=packed", "--repo_id=user/name"],
    "inspect": ["--model=packed"],
    "report": ["--folder=teacher"],
    "predict": ["--model=packed", "--file=validation.csv"],
}


@pytest.fixture(scope="module")
def place(folder, tmp_path_factory):
    """A folder with a teacher, a packed model, data, a file and a folder."""
    path = tmp_path_factory.mktemp("nonsense")
    for name in ("train.csv", "validation.csv"):
        shutil.copy(folder / name, path)
    shutil.copytree(folder / "teacher", path / "teacher")
    teacher = AutoModelForSequenceClassification.from_pretrained(folder / "teacher")
    pack_model(compress(teacher, XTCRecipe(keep_layers=1))).save_pretrained(path / "packed")
    AutoTokenizer.from_pretrained(folder / "teacher").save_pretrained(path / "packed")
    (path / "a-folder").mkdir()
    (path / "a-folder" / "a-file").touch()
    (path / "a-file").write_text("x\n")
    (path / "bad.json").write_text("{")
    return path


def options_of(command: str) -> list[Action]:
    return [action for action in command_parser(command)._actions if action.option_strings and action.nargs != 0]


def nonsense(command: str, action: Action) -> list[str]:
    if action.dest in RESULTS:
        return RESULTS[action.dest]
    if action.dest in FREE or (command, action.dest) == ("push", "revision"):  # a new branch
        return [""]
    kind = getattr(action.type, "__name__", "")
    return [*([] if kind == "dict" else [""]), *(["nonsense"] if action.choices else NONSENSE.get(kind, TEXTS))]


CASES = [(command, action.dest) for command in COMMANDS for action in options_of(command)]


@pytest.mark.parametrize("command, option", CASES, ids=["-".join(case) for case in CASES])
def test_nonsense_is_refused(command, option, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before = sorted(Path().rglob("*"))
    action = next(action for action in options_of(command) if action.dest == option)
    name = action.option_strings[0]
    data = data_options(Path()) if {"train_file"} & {entry.dest for entry in options_of(command)} else []
    rest = [word for word in [*ENDS[command], *data] if not word.startswith(f"{name}=")]
    rest += ["--augment"] if option.startswith("augmentation_") else []
    for value in nonsense(command, action):
        if option in TRAINING_ONLY and command != "compress" and value:
            continue
        status = main([command, f"{name}={value}", *rest])
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-xtc")]
        said = f"{command} {name}={value}: {status} {lines}"
        assert status in (1, 2), said
        assert len(lines) == 1, said
        assert option in lines[0] or (value and value in lines[0]), said
        assert "--debug compress ..." not in lines[0], said
        assert sorted(Path().rglob("*")) == before, said


def test_nonsense_in_a_file_of_options_is_refused_too(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    wrong = {
        "max_length": ["word", 1.5, -3, float("nan"), True, {}, [2]],
        "selection_share": ["word", -3, float("inf"), "", []],
        "regression": ["maybe", 3],
        "text_column": [""],
        "no_such_option": [1],
    }
    file = Path("options.json")
    for option, values in wrong.items():
        for value in values:
            given = {"model": "packed", "validation_file": "validation.csv", option: value}
            file.write_text(json.dumps(given))
            assert main(["evaluate", str(file)]) == 1
            error = capsys.readouterr().err
            assert option in error, (option, value, error)
            assert "(hf-xtc --debug" not in error, (option, value, error)
    file.unlink()
