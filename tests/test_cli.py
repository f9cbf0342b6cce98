"""The console script: usage, help, exit status."""

import json
import subprocess
import sys

import pytest

from hf_xtc.cli import USAGE, main


def test_without_a_command_it_prints_usage_on_stderr(capsys):
    assert main([]) == 2
    assert capsys.readouterr().err.strip() == USAGE.strip()


def test_help_prints_usage_on_stdout(capsys):
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.strip() == USAGE.strip()


def test_unknown_command_is_wrong_usage(capsys):
    assert main(["squeeze"]) == 2
    assert "compress" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command, option", [("compress", "--keep_layers"), ("evaluate", "--model"), ("export", "--format")]
)
def test_each_command_lists_its_options(command, option, capsys):
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    assert done.value.code == 0
    assert option in capsys.readouterr().out


def test_module_runs_as_a_process():
    done = subprocess.run([sys.executable, "-m", "hf_xtc", "nonsense"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (2, USAGE.strip())


def test_options_may_come_from_a_json_file(tmp_path, capsys):
    file = tmp_path / "options.json"
    file.write_text(json.dumps({"model": str(tmp_path), "train_file": "no.csv", "validation_file": "no.csv"}))
    assert main(["evaluate", str(file)]) == 1
    assert "no.csv" in capsys.readouterr().err


def test_a_refusal_of_training_arguments_is_one_message(tmp_path, capsys):
    options = ["--teacher=x", "--task_name=sst2", f"--output_dir={tmp_path / 'out'}", "--load_best_model_at_end"]
    assert main(["compress", *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("hf-xtc: --load_best_model_at_end requires the save and eval strategy to match")
    assert "Traceback" not in error
