"""`hf-xtc predict`: texts in, labels and scores out, without PyTorch."""

import csv
import gzip
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from families import CLASSIFIERS, make_teacher, make_tokenizer
from safetensors.numpy import load_file
from transformers import pipeline

from hf_xtc import XTCRecipe, compress, pack_model
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


@pytest.mark.parametrize("name, options", [("t.csv.gz", []), ("t.txt", ["--input_format=csv"]), ("t.csv", [])])
def test_separators_and_compressed_files(name, options, expected, tmp_path, capsys):
    content = table(";").encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    words = ["predict", EXAMPLE, str(tmp_path / name), "--separator=;", "--output_format=jsonl", *options]
    assert main(words) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert records == [{"row": row, **best} for row, best in enumerate(expected)]


def test_pairs(tmp_path, capsys):
    (tmp_path / "t.csv").write_text("a,b\nA joy,Dull\n")
    assert main(["predict", EXAMPLE, str(tmp_path / "t.csv"), "--text_column=a", "--text_pair_column=b"]) == 0
    (best,) = Pipeline(EXAMPLE)(("A joy", "Dull"))
    assert capsys.readouterr().out == f"row,label,score\n0,{best['label']},{best['score']:.6f}\n"


@pytest.mark.parametrize("kind", ["npy", "safetensors", "jsonl"])
def test_embeddings_as_files(kind, tmp_path, folder_of_an_embedder):
    out = tmp_path / f"vectors.{kind}"
    (tmp_path / "t.txt").write_text("\n".join(TEXTS))
    assert main(["predict", folder_of_an_embedder, str(tmp_path / "t.txt"), f"--output_file={out}"]) == 0
    expected = Pipeline(folder_of_an_embedder).embed(TEXTS)
    if kind == "jsonl":
        found = np.array([json.loads(line)["embedding"] for line in out.read_text().splitlines()], np.float32)
    else:
        found = np.load(out) if kind == "npy" else load_file(out)["embeddings"]
    assert found.dtype == np.float32
    assert np.array_equal(found, expected)


def test_embeddings_are_no_csv(tmp_path, folder_of_an_embedder, capsys):
    (tmp_path / "t.txt").write_text("a")
    assert main(["predict", folder_of_an_embedder, str(tmp_path / "t.txt"), "--output_format=csv"]) == 1
    assert capsys.readouterr().err.endswith(
        "hf-xtc: A csv table cannot hold embeddings. Write jsonl, or name a .npy or .safetensors file.\n"
    )


@pytest.fixture(scope="module")
def folder_of_an_embedder(tmp_path_factory):
    """The example's encoder: a classifier's file opens as one, too."""
    path = tmp_path_factory.mktemp("embedder") / "model"
    shutil.copytree(EXAMPLE, path)
    config = json.loads((path / "config.json").read_text())
    config["xtc"]["task"] = "sentence-embedding"
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


@pytest.mark.parametrize("family, head", CLASSIFIERS)
def test_models_that_pytorch_runs(family, head, tmp_path, capsys):
    """Float ones, and those of other families, as transformers' pipeline runs them."""
    teacher = make_teacher(family, head)
    for name, model in (("float", teacher), ("packed", pack_model(compress(teacher, XTCRecipe())))):
        model.save_pretrained(tmp_path / name)
        make_tokenizer(teacher.config).save_pretrained(tmp_path / name)
        texts = ["w1 w2 w3 w4", "w5", " ".join(["w7"] * 60)]
        (tmp_path / "t.txt").write_text("\n".join(texts))
        capsys.readouterr()
        assert main(["predict", str(tmp_path / name), str(tmp_path / "t.txt"), "--output_format=jsonl"]) == 0
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert len(found) == 3, "a text that is too long is truncated"
        found, expected = found[:2], pipeline("text-classification", model=str(tmp_path / name))(texts[:2])
        assert [record["label"] for record in found] == [best["label"] for best in expected]
        assert [record["score"] for record in found] == pytest.approx([best["score"] for best in expected], abs=1e-5)


@pytest.mark.parametrize(
    "words, message",
    [
        (
            [EXAMPLE, "none.csv"],
            "hf-xtc: none.csv cannot be read ([Errno 2] No such file or directory: 'none.csv').\n",
        ),
        ([EXAMPLE, "t.csv"], "hf-xtc: Row 0 of t.csv has no text in text; its columns are x. Give --text_column.\n"),
        (
            [EXAMPLE, "t.csv", "--text_column=y"],
            "hf-xtc: Row 0 of t.csv has no text in y; its columns are x. Give --text_column.\n",
        ),
        ([EXAMPLE, "t.xls"], "hf-xtc: --file=t.xls must end in one of: .txt, .csv, .tsv, .json, .jsonl.\n"),
        ([EXAMPLE, "t.json"], "hf-xtc: t.json cannot be read (it is not a list of texts or objects).\n"),
        ([EXAMPLE, "--top_k=0"], "hf-xtc: top_k=0 must be a positive whole number.\n"),
        (
            [EXAMPLE, "--output_file=o.xls"],
            "hf-xtc: --output_file=o.xls must end in one of: .csv, .jsonl, .npy, .safetensors.\n",
        ),
        (
            [EXAMPLE, "t.csv", "--text_column=x", "--threshold=0.2"],
            f"hf-xtc: --threshold is for multi-label-classification, but {EXAMPLE} is a model for "
            "sequence-classification. Leave it out.\n",
        ),
        (
            [EXAMPLE, "t.csv", "--text_column=x", "--output_file=o.npy"],
            f"hf-xtc: A .npy file holds embeddings, but {EXAMPLE} is for sequence-classification. Write csv or "
            "jsonl.\n",
        ),
        ([EXAMPLE, "--threshold=0.2", "--top_k=2"], "hf-xtc: --threshold=0.2 and --top_k=2 exclude each other.\n"),
        ([EXAMPLE, "--threshold=2"], "hf-xtc: threshold=2.0 must be at least 0 and below 1.\n"),
        (
            [EXAMPLE, "--aggregation_strategy=last"],
            "hf-xtc: aggregation_strategy='last' does not exist. Use one of: none, simple, first, average, max.\n",
        ),
        ([EXAMPLE, "--separator=ab"], "hf-xtc: --separator='ab' is not one character. Give that between two cells.\n"),
        (
            [EXAMPLE, "--input_format=xml"],
            "hf-xtc: input_format='xml' does not exist. Use one of: txt, csv, tsv, json, jsonl.\n",
        ),
        (
            [EXAMPLE, "t.csv.gz"],
            "hf-xtc: t.csv.gz cannot be read (Not a gzipped file (b'x\\n')).\n",
        ),
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
    Path("t.csv.gz").write_text("x\n")
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
