"""`hf-xtc predict`: texts in, labels and scores out, without PyTorch."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from hf_xtc.cli import main
from hf_xtc.native.library import variants
from hf_xtc.runtime import Pipeline

pytestmark = pytest.mark.skipif(not variants(), reason="the native operator is not built")
EXAMPLE = str(Path(__file__).parent.parent.parent / "examples" / "minilm-3l-1bit-sst2")
TEXTS = ["A joy from start to end.", 'Dull, and "long".', "naïve"]


@pytest.fixture(scope="module")
def expected():
    return Pipeline(EXAMPLE)(TEXTS)


def table(delimiter, column="text"):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerows([["id", column], *([str(i), line] for i, line in enumerate(TEXTS))])
    return text.getvalue()


@pytest.mark.parametrize(
    "name, content, options",
    [
        ("t.txt", "\n".join(TEXTS), []),
        ("t.csv", table(","), []),
        ("t.tsv", table("\t", "sentence"), []),
        ("t.csv", table(",", "review"), ["--text_column=review"]),
        ("t.json", json.dumps(TEXTS), []),
        ("t.json", json.dumps([{"text": text} for text in TEXTS]), ["--threads=1", "--batch_size=2"]),
        ("t.jsonl", "\n".join(json.dumps({"review": text}) for text in TEXTS), ["--text_column", "review"]),
    ],
)
def test_files(name, content, options, expected, tmp_path, capsys):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert main(["predict", EXAMPLE, str(tmp_path / name), *options]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert rows == [{"row": str(i), **row, "score": f"{row['score']:.6f}"} for i, row in enumerate(expected)]


def test_standard_input_and_jsonl(expected, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(TEXTS)))
    out = tmp_path / "out.jsonl"
    assert main(["predict", "--model", EXAMPLE, "--top_k=2", f"--output_file={out}"]) == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["row"] for record in records] == [0, 0, 1, 1, 2, 2]
    assert [{key: record[key] for key in ("label", "score")} for record in records[::2]] == expected


def test_pairs(tmp_path, capsys):
    (tmp_path / "t.csv").write_text("a,b\nA joy,Dull\n")
    assert main(["predict", EXAMPLE, str(tmp_path / "t.csv"), "--text_column=a", "--text_pair_column=b"]) == 0
    (best,) = Pipeline(EXAMPLE)(("A joy", "Dull"))
    assert capsys.readouterr().out == f"row,label,score\n0,{best['label']},{best['score']:.6f}\n"


@pytest.mark.parametrize(
    "words, message",
    [
        (
            [EXAMPLE, "none.csv"],
            "hf-xtc: none.csv cannot be read ([Errno 2] No such file or directory: 'none.csv').\n",
        ),
        ([EXAMPLE, "t.csv"], "hf-xtc: Row 0 of t.csv has no text in text. Give --text_column.\n"),
        ([EXAMPLE, "t.csv", "--text_column=y"], "hf-xtc: Row 0 of t.csv has no text in y. Give --text_column.\n"),
        ([EXAMPLE, "t.xls"], "hf-xtc: --file=t.xls must end in one of: .txt, .csv, .tsv, .json, .jsonl.\n"),
        ([EXAMPLE, "t.json"], "hf-xtc: t.json cannot be read (it is not a list of texts or objects).\n"),
        ([EXAMPLE, "--top_k=0"], "hf-xtc: top_k=0 must be a positive whole number.\n"),
        ([EXAMPLE, "--output_file=o.xls"], "hf-xtc: --output_file=o.xls must end in one of: .csv, .jsonl.\n"),
        ([], "hf-xtc predict: the following arguments are required: MODEL\nTry: hf-xtc predict --help\n"),
        (
            [EXAMPLE, "--batchsize=3"],
            "hf-xtc predict: unrecognized arguments: --batchsize=3 (did you mean --batch_size?)\n"
            "Try: hf-xtc predict --help\n",
        ),
    ],
)
def test_errors(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("x\n1\n")
    Path("t.json").write_text("{}")
    assert main(["predict", *words]) in (1, 2)
    assert capsys.readouterr().err == message


def test_it_runs_on_few_packages(tmp_path):
    """In a process where importing the package's other dependencies fails."""
    blocked = ["torch", "transformers", "accelerate", "huggingface_hub", "filelock", "jinja2", "pandas"]
    (tmp_path / "t.txt").write_text("Dull.\n")
    words = ["predict", EXAMPLE, str(tmp_path / "t.txt"), f"--output_file={tmp_path / 'out.csv'}"]
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked})); from hf_xtc.cli import main; main({words})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("Packed linears run on the native operator")
    assert (tmp_path / "out.csv").read_text().startswith("row,label,score\n0,negative,0.99")
