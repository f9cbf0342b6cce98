"""The console script: help, version, wrong usage, exit status."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import blocks

import hf_xtc
from hf_xtc.cli import COMMANDS, command_parser, main
from hf_xtc.native.library import variant
from hf_xtc.version import __version__


def test_without_a_command_it_says_that_one_is_required(capsys):
    assert main([]) == 2
    assert "the following arguments are required: COMMAND" in capsys.readouterr().err


def test_help_lists_the_commands(capsys):
    assert main(["--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert all(f"{name} {command.help}" in printed for name, command in COMMANDS.items())


@pytest.mark.parametrize("words", [["help"], ["help", "compress"]], ids=" ".join)
def test_help_is_a_command_too(words, capsys):
    assert main(words) == 0
    found = capsys.readouterr().out
    assert main([*words[1:], "--help"]) == 0
    assert found == capsys.readouterr().out


def test_a_mistyped_option_is_named_where_a_required_one_is_missing(capsys):
    assert main(["compress", "--teecher", "t"]) == 2
    assert capsys.readouterr().err == (
        "hf-xtc compress: unrecognized arguments: --teecher (did you mean --teacher?)\nTry: hf-xtc compress --help\n"
    )


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"hf_xtc {__version__}\nnative operator: {variant() or 'none'}")


def test_version_without_the_native_operator(capsys, monkeypatch):
    monkeypatch.setenv("XTC_NATIVE", "off")
    assert main(["--version"]) == 0
    assert "native operator: none (packed models run on PyTorch's operations)" in capsys.readouterr().out


def test_an_unknown_command_suggests_the_nearest(capsys):
    assert main(["compres"]) == 2
    error = capsys.readouterr().err
    assert "there is no command 'compres' (did you mean compress?); use one of: compress, evaluate, export" in error


def test_a_mistyped_option_suggests_the_nearest(capsys):
    assert main(["compress", "--teacher=x", "--task_name=sst2", "--output_dir=out", "--keep_layrs=3", "--qq"]) == 2
    assert capsys.readouterr().err == (
        "hf-xtc compress: unrecognized arguments: --keep_layrs=3 (did you mean --keep_layers?) --qq\n"
        "Try: hf-xtc compress --help\n"
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_each_help_fits_a_screen(name, capsys):
    assert main([name, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines[2:])) <= 100


def test_the_short_help_of_compress_leaves_out_what_help_all_shows(capsys):
    assert main(["compress", "--help"]) == 0
    short = capsys.readouterr().out
    assert main(["compress", "--help-all"]) == 0
    everything = capsys.readouterr().out
    for option in ("--keep_layers", "--teacher ", "--learning_rate", "--output_dir"):
        assert option in short
        assert option in everything
    for option in ("--weight_decay", "--augmentation_copies", "--weight_annealing"):
        assert option not in short
        assert option in everything


@pytest.mark.parametrize(
    "name, words, field, value",
    [
        ("push", ["folder", "user/name", "--private"], "repo_id", "user/name"),
        ("push", ["--folder=folder", "--repo_id=user/name"], "folder", "folder"),
        ("inspect", ["--revision", "x", "user/name"], "model", "user/name"),
        ("verify", ["user/name", "--task_name", "sst2"], "model", "user/name"),
        ("report", ["folder"], "folder", "folder"),
    ],
)
def test_words_without_an_option_name(name, words, field, value):
    assert getattr(command_parser(name).options(words)[0], field) == value


@pytest.mark.parametrize(
    "name, words, message",
    [
        ("push", ["folder"], "the following arguments are required: REPO_ID"),
        ("inspect", [], "the following arguments are required: MODEL"),
        ("report", ["a", "b"], "unrecognized arguments: b"),
    ],
)
def test_wrong_number_of_arguments(name, words, message, capsys):
    assert main([name, *words]) == 2
    assert capsys.readouterr().err == f"hf-xtc {name}: {message}\nTry: hf-xtc {name} --help\n"


def test_module_runs_as_a_process():
    done = subprocess.run([sys.executable, "-m", "hf_xtc", "nonsense"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "there is no command 'nonsense'" in done.stderr


def test_options_may_come_from_a_json_file(tmp_path, capsys):
    file = tmp_path / "options.json"
    file.write_text(json.dumps({"model": str(tmp_path), "train_file": "no.csv", "validation_file": "no.csv"}))
    assert main(["evaluate", str(file)]) == 1
    assert "no.csv" in capsys.readouterr().err


@pytest.mark.parametrize("text", [None, "{", "[1]", "{}", '{"folder": "x", "no_such_option": 1}'])
def test_a_json_file_that_cannot_be_used_is_one_message(text, tmp_path, capsys):
    file = tmp_path / "options.json"
    if text is not None:
        file.write_text(text)
    assert main(["report", str(file)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("hf-xtc: ")
    assert "Traceback" not in error


def test_refused_training_arguments_give_one_message(tmp_path, capsys):
    options = ["--teacher=x", "--task_name=sst2", f"--output_dir={tmp_path / 'out'}", "--load_best_model_at_end"]
    assert main(["compress", *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("hf-xtc: --load_best_model_at_end requires the save and eval strategy to match")
    assert "Traceback" not in error


def install(folder, name, declaration):
    """A package of one module that declares families, as pip would leave it in `folder`."""
    (folder / f"{name}.py").write_text(declaration)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[hf_xtc.families]\nernie = {name}\n")


def run_with(folder, *words):
    paths = os.pathsep.join([str(folder), str(Path(hf_xtc.__file__).parent.parent)])
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return subprocess.run([sys.executable, *words], env=environment, cwd=folder, capture_output=True, text=True)


def test_families_of_other_packages_are_known(tmp_path):
    page = Path(__file__).parent.parent / "docs" / "extending.md"
    install(tmp_path, "xtc_ernie", next(block for block in blocks(page, "python") if "register_family(" in block))
    code = """
import xtc_ernie
from transformers import ErnieForTokenClassification, ErnieConfig
from hf_xtc import compress, pack_model
config = ErnieConfig(vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
packed = pack_model(compress(ErnieForTokenClassification(config)))
assert type(packed) is xtc_ernie.XTCErnieForTokenClassification
packed.save_pretrained("packed")
"""
    made = run_with(tmp_path, "-c", code)
    assert made.returncode == 0, made.stderr
    done = run_with(tmp_path, "-m", "hf_xtc", "inspect", "packed")
    assert "XTCErnieForTokenClassification, packed" in done.stdout, done.stderr


def test_a_family_that_cannot_be_imported_is_named(tmp_path):
    install(tmp_path, "xtc_broken", "import no_such_module")
    done = run_with(tmp_path, "-m", "hf_xtc", "inspect", "packed")
    assert done.returncode == 1
    assert done.stderr.endswith(
        "hf-xtc: The entry point ernie = 'xtc_broken' of the package xtc_broken declares a family and cannot be "
        "imported (ModuleNotFoundError: No module named 'no_such_module'); upgrade or uninstall that package.\n"
    )
