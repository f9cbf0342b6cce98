"""load_task, tokenize and align_labels on tiny files; every refusal with its exact text."""

import csv
import dataclasses
import gzip
import hashlib
import json
import logging
import os
import socket
from decimal import Decimal
from pathlib import Path

import datasets
import huggingface_hub.constants
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import BertTokenizer, HfArgumentParser

import hf_xtc.data.glue
from hf_xtc.data.glue import GLUE
from hf_xtc.data.task_data import DataArguments, TaskData, align_labels, hold_out, load_task, tokenize
from hf_xtc.errors import DataError

TASKS = "cola, mnli, mrpc, qnli, qqp, rte, sst2, stsb, wnli"
ROWS = {"text": ["bad", "good", "fine"], "label": ["neg", "pos", "pos"]}
EXTENSIONS = [".csv", ".tsv", ".json", ".jsonl", ".parquet"]
STARS = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["two", "one", "three"]))


@pytest.fixture(autouse=True)
def quiet_datasets():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # so that messages name short, known paths


def write(path, columns):
    """Writes `columns` in the format of the extension; a str or bytes is written unchanged."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(columns, (str, bytes)):
        path.write_bytes(columns if isinstance(columns, bytes) else columns.encode())
    elif path.suffix in {".csv", ".tsv"}:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="," if path.suffix == ".csv" else "\t")
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
    elif path.suffix == ".parquet":
        columns = columns if isinstance(columns, pa.Table) else pa.table(columns)
        pq.write_table(columns, path)
    else:
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        text = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
        path.write_text(text, encoding="utf-8")
    return str(path)


def own(train=None, validation=None, extension=".jsonl", **kwargs):
    """DataArguments for files with these contents; the validation data is valid by default."""
    train = write(f"train{extension}", ROWS if train is None else train)
    validation = write(f"validation{extension}", (ROWS if validation is None else validation))
    return DataArguments(train_file=train, validation_file=validation, **kwargs)


def refusal(function, *args, **kwargs):
    with pytest.raises(DataError) as error:
        function(*args, **kwargs)
    return str(error.value)


def glue_table(task, labels, features=None):
    columns = {GLUE[task].text: [f"first {i}" for i in range(len(labels))]}
    if GLUE[task].text_pair:
        columns[GLUE[task].text_pair] = [f"second {i}" for i in range(len(labels))]
    return pa.table(columns | {"label": labels, "idx": list(range(len(labels)))})


def write_glue(task, folder, train=(0, 1), validation=(1,)):
    splits = {"train": train, "validation": validation}
    if task == "mnli":
        splits = {"train": train, "validation_matched": validation, "validation_mismatched": (2, 0)}
    for split, labels in splits.items():
        write(f"{folder}/{split}.parquet", glue_table(task, list(labels)))


# ---- arguments


def test_every_argument_has_help():
    assert all(field.metadata["help"] for field in dataclasses.fields(DataArguments))


def test_arguments_from_the_command_line():
    (args,) = HfArgumentParser(DataArguments).parse_args_into_dataclasses(
        ["--train_file", "a.csv", "--validation_file", "b.csv", "--regression", "--max_eval_samples", "5"]
    )
    assert (args.train_file, args.regression, args.max_eval_samples, args.text_pair_column) == ("a.csv", True, 5, None)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {},
            "Pass one of --task_name, --dataset_name, or both --train_file and --validation_file; got none of them.",
        ),
        (
            {"train_file": "a.csv"},
            "Pass one of --task_name, --dataset_name, or both --train_file and --validation_file; got "
            "train_file='a.csv'.",
        ),
        (
            {"task_name": "rte", "dataset_name": "glue", "validation_file": "b.csv"},
            "Pass one of --task_name, --dataset_name, or both --train_file and --validation_file; got "
            "task_name='rte', dataset_name='glue', validation_file='b.csv'.",
        ),
        (
            {"train_file": "a.csv", "validation_file": "b.csv", "test_split_name": "test"},
            "--test_split_name=test has no effect without --dataset_name.",
        ),
        (
            {"dataset_name": "rows", "test_file": "c.csv"},
            "--test_file=c.csv has no effect without --train_file.",
        ),
        (
            {"train_file": "a.csv", "validation_file": "b.csv", "separator": "||"},
            "--separator='||' is not one character. Give that between two cells.",
        ),
        ({"task_name": "sst-2"}, f"Unknown GLUE task 'sst-2'. Use one of: {TASKS}."),
        (
            {"train_file": "a.csv", "validation_file": "b.csv", "data_dir": "glue"},
            "--data_dir is for GLUE and needs --task_name; own data goes to --dataset_name or --train_file.",
        ),
        (
            {"task_name": "rte", "regression": True},
            "GLUE task rte is a classification; --regression is for own files.",
        ),
        (
            {"train_file": "a.csv", "validation_file": "b.csv", "label_column": "text"},
            "The text, text pair and label columns must differ, but are ['text', None, 'text'].",
        ),
        ({"task_name": "rte", "max_length": 0}, "--max_length must be at least 1, but is 0."),
        ({"task_name": "rte", "max_train_samples": -1}, "--max_train_samples must be at least 1, but is -1."),
        ({"task_name": "rte", "max_eval_samples": 0}, "--max_eval_samples must be at least 1, but is 0."),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, dict) else "",
)
def test_arguments_refused(kwargs, message):
    assert refusal(DataArguments, **kwargs) == message


# ---- own files


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_own_files(extension):
    data = load_task(own(extension=extension))
    assert data.train.to_dict() == {"text": ["bad", "good", "fine"], "label": [0, 1, 1]}
    assert data.train.features == {"text": datasets.Value("string"), "label": datasets.Value("int64")}
    assert data.label_names == ("neg", "pos")
    assert (data.task, data.extra_validation, data.regression, data.has_pairs) == (None, {}, False, False)


def test_own_pairs_and_column_names():
    rows = {"a": ["x", "y"], "b": ["X", "Y"], "target": ["no", "yes"], "unused": [1, 2]}
    data = load_task(own(rows, rows, ".csv", text_column="a", text_pair_column="b", label_column="target"))
    assert data.train.to_dict() == {"text": ["x", "y"], "label": [0, 1], "text_pair": ["X", "Y"]}
    assert data.has_pairs


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_regression(extension):
    rows = {"text": ["a", "b", "c"], "label": [-1, 0.1, 5]}
    if extension == ".parquet":
        rows["label"] = [-1.0, 0.1, 5.0]
    data = load_task(own(rows, rows, extension, regression=True))
    assert data.train.features["label"] == datasets.Value("float32")
    assert data.train["label"][:] == [-1.0, float(np.float32(0.1)), 5.0]
    assert data.regression
    assert data.label_names is None


@pytest.mark.parametrize(
    ("labels", "names", "ids"),
    [
        (["b", "a", "b"], ("a", "b"), [1, 0, 1]),
        ([10, 9, 10], ("9", "10"), [1, 0, 1]),
        ([1.0, 0.0, 1.0], ("0", "1"), [1, 0, 1]),
        ([True, False, True], ("False", "True"), [1, 0, 1]),
        (["10", "9", "-2"], ("-2", "9", "10"), [2, 1, 0]),
        (["01", "1", "2"], ("01", "1", "2"), [0, 1, 2]),
        ([1, "x", 2.0], ("1", "2", "x"), [0, 2, 1]),
    ],
    ids=["strings", "integers", "whole-floats", "booleans", "integer-strings", "codes", "mixed"],
)
def test_label_names(labels, names, ids, request):
    if "mixed" in request.node.name:
        pytest.importorskip("datasets", minversion="4.7", reason="refuses them in a JSON file")
    data = load_task(own({"text": ["t", "u", "v"], "label": labels}, {"text": ["t"], "label": labels[:1]}))
    assert data.label_names == names
    assert data.train["label"][:] == ids
    assert data.validation["label"][:] == ids[:1]


def test_class_label_keeps_its_names():
    for split, labels in {"train": [0, 1, 1], "validation": [1]}.items():
        rows = {"text": ["x"] * len(labels), "label": labels}
        datasets.Dataset.from_dict(rows, features=STARS).to_parquet(f"{split}.parquet")
    data = load_task(DataArguments(train_file="train.parquet", validation_file="validation.parquet"))
    assert data.label_names == ("two", "one", "three")
    assert (data.train["label"][:], data.validation["label"][:]) == ([0, 1, 1], [1])


def test_validation_labels_are_matched_by_name():
    datasets.Dataset.from_dict({"text": ["x", "y"], "label": [0, 1]}, features=STARS).to_parquet("train.parquet")
    write("validation.csv", "text,label\nx,one\ny,two\n")
    data = load_task(DataArguments(train_file="train.parquet", validation_file="validation.csv"))
    assert data.validation["label"][:] == [1, 0]


@pytest.mark.parametrize("extension", [".csv", ".tsv"])
def test_cells_stay_text(extension):
    texts = ["null", "NA", "None", "007", "1e5", "True", " padded "]
    rows = {"text": texts, "label": ["NA", "null", "NA", "null", "NA", "null", "NA"]}
    data = load_task(own(rows, rows, extension))
    assert data.train["text"][:] == texts
    assert data.label_names == ("NA", "null")


def test_csv_quotes_and_tsv_quotes():
    quoted = load_task(own('text,label\n"a, ""b""\nc",0\nd,1\n', "text,label\nx,0\n", ".csv"))
    assert quoted.train["text"][:] == ['a, "b"\nc', "d"]
    plain = load_task(own('text\tlabel\n"a\t0\nb" c\t1\n', "text\tlabel\nx\t0\n", ".tsv"))
    assert plain.train["text"][:] == ['"a', 'b" c']


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")).filter(str.strip), min_size=2))
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_survives_csv_and_jsonl(texts):
    rows = {"text": texts, "label": [i % 2 for i in range(len(texts))]}
    loaded = [load_task(own(rows, rows, extension)) for extension in (".csv", ".jsonl")]
    assert [data.train["text"][:] for data in loaded] == [texts, texts]


@pytest.mark.parametrize("extension", [".csv", ".tsv", ".jsonl"])
def test_byte_order_mark_is_not_part_of_the_first_column(extension):
    path = Path(write(f"plain{extension}", ROWS))
    data = load_task(own(b"\xef\xbb\xbf" + path.read_bytes(), None, extension))
    assert data.train["text"][:] == ROWS["text"]


def test_limits_keep_the_first_rows_and_all_label_names():
    rows = {"text": list("abcd"), "label": ["x", "y", "z", "x"]}
    data = load_task(own(rows, rows, max_train_samples=2, max_eval_samples=3))
    assert (data.train["text"][:], data.validation["text"][:]) == (["a", "b"], ["a", "b", "c"])
    assert data.label_names == ("x", "y", "z")


@pytest.mark.parametrize(("path", "name"), [("reviews/train.csv", "reviews"), ("x/reviews.v2.csv", "reviews.v2")])
def test_name_of_own_data(path, name):
    train = write(path, ROWS)
    assert load_task(DataArguments(train_file=train, validation_file=train)).name == name


def test_path_with_glob_characters():
    train = write("a [b]*?{c}/train.csv", ROWS)
    assert len(load_task(DataArguments(train_file=train, validation_file=train)).train) == 3


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_changed_file_of_the_same_time_and_size_is_read_anew(extension):
    args = own(extension=extension)
    before, stat = load_task(args), os.stat(args.train_file)
    write(args.train_file, ROWS | {"text": ["BAD", "GOOD", "FINE"]})
    os.utime(args.train_file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = load_task(args)
    assert os.stat(args.train_file).st_size == stat.st_size
    assert after.train["text"][:] == ["BAD", "GOOD", "FINE"]
    assert after.fingerprint != before.fingerprint


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_local_files_need_no_network(extension, monkeypatch):
    def no_network(*args, **kwargs):
        raise AssertionError("network access")

    for module in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    assert len(load_task(own(extension=extension)).train) == 3


# ---- fingerprint


def test_fingerprint_is_a_hash_of_the_contents():
    contents = [["neg", "pos"], {"label": [0, 1, 1], "text": ["bad", "good", "fine"]}]
    expected = hashlib.sha256(json.dumps([*contents, contents[1]]).encode()).hexdigest()
    assert load_task(own()).fingerprint == expected
    assert expected == "b16698a95b886e849b1cc9a24f49576ffd5b2fdfe8bc84cbaf41e827b34c1f38"


def test_fingerprint_is_the_same_for_every_format_folder_and_unused_column():
    fingerprints = {load_task(own(ROWS | {"unused": [1, 2, 3]}, None, e)).fingerprint for e in EXTENSIONS}
    elsewhere = write("else/where.csv", ROWS)
    fingerprints.add(load_task(DataArguments(train_file=elsewhere, validation_file=elsewhere)).fingerprint)
    assert len(fingerprints) == 1


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        (ROWS | {"text": ["bad", "good", "Fine"]}, ROWS),
        (ROWS | {"label": ["neg", "pos", "neg"]}, ROWS),
        (ROWS | {"label": ["Neg", "pos", "pos"]}, ROWS | {"label": ["Neg", "pos", "pos"]}),
        ({column: values[::-1] for column, values in ROWS.items()}, ROWS),
        (ROWS, {column: values[:2] for column, values in ROWS.items()}),
    ],
    ids=["text", "label", "label-name", "order", "validation"],
)
def test_fingerprint_changes_with(train, validation):
    assert load_task(own(train, validation)).fingerprint != load_task(own()).fingerprint


# ---- own files refused


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.csv", None, "no.csv does not exist, or is not a file."),
        (
            "a.xlsx",
            "x",
            "a.xlsx has an extension that is not supported. Use one of: .csv, .tsv, .json, .jsonl, .parquet, .txt.",
        ),
        ("a.csv", "", "a.csv has no rows."),
        ("a.csv", " \n\n", "a.csv has no rows."),
        ("a.csv", "text,label\n", "a.csv has no rows."),
        ("a.tsv", "text\tlabel\n", "a.tsv has no rows."),
        ("a.json", "[]", "a.json has no rows."),
        ("a.jsonl", "", "a.jsonl has no rows."),
        (
            "a.parquet",
            {"text": pa.array([], pa.string()), "label": pa.array([], pa.int64())},
            "a.parquet has no rows.",
        ),
        (
            "a.csv",
            b"text,label\ncaf\xe9,1\n",
            "a.csv is not UTF-8: byte 0xe9 at offset 14. Convert it, for example from Latin-1: "
            "iconv -f latin1 -t utf-8 a.csv > utf8-a.csv",
        ),
        (
            "a.jsonl",
            '{"text": "a", "label": 1}\n'.encode("utf-16"),
            "a.jsonl is not UTF-8: byte 0xff at offset 0. Convert it, for example from UTF-16: "
            "iconv -f utf-16 -t utf-8 a.jsonl > utf8-a.jsonl",
        ),
        (
            "a.csv",
            "sentence,target\na,1\n",
            "a.csv has no column text, label; its columns are sentence, target. For your files pass --text_column, "
            "--text_pair_column and --label_column. The first line must name the columns.",
        ),
        (
            "a.csv",
            "text;label\na;1\n",
            "a.csv has no column text, label; its columns are text;label. It seems to be separated by ';'; pass "
            "--separator ';'.",
        ),
        (
            "a.tsv",
            "text,label\na,1\n",
            "a.tsv has no column text, label; its columns are text,label. It seems to be separated by ','; pass "
            "--separator ','.",
        ),
        (
            "a.csv",
            "text, Label\na,1\n",
            "a.csv has no column label; its columns are text,  Label. Names must agree in blanks and case: ' Label'.",
        ),
        (
            "a.csv",
            "text,label,label\na,1,2\n",
            "a.csv has more than one column called label. Rename or remove one.",
        ),
        (
            "a.csv",
            "text,label\na\0b,1\n",
            "a.csv is not text: byte 0x00 at offset 12. If it is UTF-16, convert it with iconv.",
        ),
        (
            "a.csv.gz",
            gzip.compress(b"text,label,label\na,1,2\n", mtime=0),
            "a.csv.gz has more than one column called label. Rename or remove one.",
        ),
        (
            "b.csv.gz",
            gzip.compress(b"text,label\na,1\n", mtime=0)[:-9],
            "b.csv.gz cannot be unpacked with gzip: Compressed file ended before the end-of-stream marker was "
            "reached.",
        ),
        (
            "a.csv.bz2",
            b"BZh91AY",
            "a.csv.bz2 is compressed, or a spreadsheet. Unpack or save it as one of: .csv, .tsv, .json, .jsonl, "
            ".parquet, .txt.",
        ),
        ("https://a.org/b.csv", None, "https://a.org/b.csv is a URL. Download it, and give the file."),
        (".", None, ". is a folder. Give a file in it. Use one of: .csv, .tsv, .json, .jsonl, .parquet, .txt."),
    ],
)
def test_file_refused(name, content, message):
    good = write("good.csv", ROWS)
    bad = name if content is None else write(name, content)
    assert refusal(load_task, DataArguments(train_file=bad, validation_file=good)) == message
    assert refusal(load_task, DataArguments(train_file=good, validation_file=bad)) == message


def test_a_text_column_is_no_column_of_labels():
    rows = {"text": [f"t{i}" for i in range(200)], "label": [f"a sentence {i}" for i in range(200)]}
    assert refusal(load_task, own(rows)) == (
        "train.jsonl: the labels have 200 different values in 200 rows, such as 'a sentence 0': texts or ids, not "
        "classes. Name another column with --label_column."
    )
    rows |= {"label": [f"class {i % 100}" for i in range(200)]}
    assert len(load_task(own(rows, rows)).label_names) == 100


def test_decimal_labels_are_numbers():
    labels = pa.array([Decimal("1.0"), Decimal("0.0"), Decimal("1.0")])
    path = write("a.parquet", {"text": pa.array(["a", "b", "c"]), "label": labels})
    assert load_task(DataArguments(train_file=path, validation_file=path)).train["label"][:] == [1, 0, 1]


NOT_UTF8 = pa.StringArray.from_buffers(1, *pa.array([b"\xff\xfe"]).buffers()[1:])


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", "text,label\na,1\nb,c,2\n", "line 3"),
        ("a.csv", "text,label\na,b,1\nc,d,2\n", "loss of data"),
        ("a.csv", 'text,label\n"a,1\nb,2\n', "EOF inside string"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": ', "row 1"),
        ("a.parquet", b"PAR1 and then nothing of the kind", "magic bytes"),
        ("a.parquet", {"text": NOT_UTF8, "label": pa.array([1])}, "UTF8"),
    ],
    ids=["long-row", "long-rows", "open-quote", "cut-json", "no-parquet", "parquet-not-utf-8"],
)
def test_file_that_cannot_be_parsed(name, content, reason):
    bad, kind = write(name, content), {".csv": "csv", ".jsonl": "json", ".parquet": "parquet"}[Path(name).suffix]
    message = refusal(load_task, DataArguments(train_file=bad, validation_file=bad))
    assert message.startswith(f"{name} cannot be read as {kind}: ")
    assert reason in message  # the rest is the parser's own wording


@pytest.mark.parametrize(
    ("rows", "kwargs", "message"),
    [
        (
            {"text": ["a", "", " \t", "d"], "label": [0, 1, 0, 1]},
            {},
            "empty text in 2 of 4 rows (first: row 2). Fill or remove them.",
        ),
        (
            {"text": ["a", None], "label": [0, 1]},
            {},
            "empty text in 1 of 2 rows (first: row 2). Fill or remove them.",
        ),
        (
            {"text": ["a", "b"], "other": [None, "x"], "label": [0, 1]},
            {"text_pair_column": "other"},
            "empty text_pair in 1 of 2 rows (first: row 1). Fill or remove them.",
        ),
        (
            {"text": [1, 2], "label": [0, 1]},
            {},
            "text that is not a string in 2 of 2 rows (first: row 1). Write it as text, or name another column.",
        ),
        (
            {"text": ["a", "b", "c"], "label": ["x", "", None]},
            {},
            "no label in 2 of 3 rows (first: row 2). Fill or remove them.",
        ),
        (
            {"text": ["a", "b", "c"], "label": [1.5, None, 2.5]},
            {"regression": True},
            "no label in 1 of 3 rows (first: row 2). Fill or remove them.",
        ),
        (
            {"text": ["a", "b"], "label": [["x"], ["y"]]},
            {},
            "several labels (multi-label data) in 2 of 2 rows (first: row 1). Pass --task multi-label-classification.",
        ),
        (
            {"text": ["a", "b"], "label": [{"x": 1}, {"x": 2}]},
            {},
            "labels that are neither strings nor numbers in 2 of 2 rows (first: row 1). Name another column with "
            "--label_column.",
        ),
        (
            {"text": ["a", "b", "c"], "label": [0, -1, 1]},
            {},
            "label -1 (unlabelled) in 1 of 3 rows (first: row 2). Use a labelled split; if -1 is one of your "
            "classes, write it as a word.",
        ),
        (
            {"text": ["a", "b", "c"], "label": ["1", "good", "bad"]},
            {"regression": True},
            "labels that are not numbers (such as 'good') in 2 of 3 rows (first: row 2). Correct or remove them.",
        ),
        (
            {"text": ["a", "b"], "label": [True, False]},
            {"regression": True},
            "labels that are not numbers (such as True) in 2 of 2 rows (first: row 1). Correct or remove them.",
        ),
        (
            {"text": ["a", "b", "c", "d"], "label": ["1", "inf", "nan", "1e39"]},
            {"regression": True},
            "labels that are not finite in float32 in 3 of 4 rows (first: row 2). Correct or remove them.",
        ),
        (
            {"text": ["a", "b", "c"], "label": [0.5, 1, 2.25]},
            {},
            "the labels are fractional numbers (3 different ones), not classes. Pass --regression to fit them.",
        ),
        (
            {"text": ["a", "b"], "label": ["same", "same"]},
            {},
            "all 2 train rows used have the label 'same'. Training needs at least two classes.",
        ),
        (
            {"text": ["a", "b", "c"], "label": ["x", "x", "y"]},
            {"max_train_samples": 2},
            "all 2 train rows used have the label 'x'. Training needs at least two classes.",
        ),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value)[:25].replace(" ", "-"),
)
def test_rows_refused(rows, kwargs, message):
    assert refusal(load_task, own(rows, rows, **kwargs)) == f"train.jsonl: {message}"


def test_several_label_columns_are_multi_label_data():
    rows = {"text": ["a", "b"], "toxic": ["0", "1"], "insult": ["1", "0"]}
    assert refusal(load_task, own(rows, rows, label_column="toxic,insult")) == (
        "train.jsonl: several label columns (toxic,insult) are multi-label data. Pass --task "
        "multi-label-classification, or name one column with --label_column."
    )


def test_classes_are_logged_with_their_counts(caplog):
    labels = {"text": ["a", "b", "c", "d"], "label": ["spam", "ham", "spam", "spam"]}
    with caplog.at_level(logging.INFO, logger="hf_xtc.data.task_data"):
        load_task(own(labels, labels))
    assert caplog.messages == ["train.jsonl: 2 classes, with their rows: 'ham' 1, 'spam' 3."]


@pytest.mark.parametrize(
    "labels, message",
    [
        (["a", "b", "-"], "train.jsonl: the class '-' may stand for a missing label. Remove its rows if so."),
        (["a", "b", "N/A"], "train.jsonl: the class 'N/A' may stand for a missing label. Remove its rows if so."),
        (["pos", "neg", " pos"], "train.jsonl: the classes ' pos' and 'pos' differ only in blanks or case."),
        (["Spam", "ham", "spam"], "train.jsonl: the classes 'Spam' and 'spam' differ only in blanks or case."),
    ],
)
def test_classes_that_are_probably_none_are_warned_of(labels, message, caplog):
    rows = {"text": ["a", "b", "c"], "label": labels}
    load_task(own(rows, rows))
    assert caplog.messages == [message]


def test_whole_numbers_are_one_class_however_they_are_written():
    data = load_task(own("text,label\na,0.0\nb,1.0\n", "text,label\na,1\nb,0\n", ".csv"))
    assert data.label_names == ("0", "1")
    assert data.validation["label"][:] == [1, 0]
    assert refusal(load_task, own("text,label\na,0\nb,1\n", "text,label\na,1.0\nb,x\n", ".csv")) == (
        "validation.csv: labels that are not among 0, 1 (such as 'x') in 1 of 2 rows (first: row 2). Each class must "
        "occur in the train data."
    )


def test_csv_labels_are_checked():
    assert refusal(load_task, own("text,label\na\nb,1\n", None, ".csv")) == (
        "train.csv: no label in 1 of 2 rows (first: row 1). Fill or remove them."
    )
    assert refusal(load_task, own("text,label\na,1.5\nb,2\n", None, ".csv")) == (
        "train.csv: the labels are fractional numbers (2 different ones), not classes. Pass --regression to fit them."
    )


def test_parquet_nan_is_a_missing_class():
    rows = {"text": ["a", "b"], "label": [1.0, float("nan")]}
    assert refusal(load_task, own(rows, rows, ".parquet")) == (
        "train.parquet: no label in 1 of 2 rows (first: row 2). Fill or remove them."
    )


def test_validation_label_that_train_lacks():
    validation = {"text": ["a", "b", "c"], "label": ["neg", "awful", "worse"]}
    assert refusal(load_task, own(None, validation)) == (
        "validation.jsonl: labels that are not among neg, pos (such as 'awful') in 2 of 3 rows (first: row 2). Each "
        "class must occur in the train data."
    )


def test_long_lists_of_labels_are_abbreviated():
    train = {"text": [f"t{i}" for i in range(20)], "label": list(range(20))}
    assert "among 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 ... (20 in all) (such as '20')" in refusal(
        load_task, own(train, {"text": ["a"], "label": [20]})
    )


# ---- GLUE


@pytest.mark.parametrize("nested", [True, False], ids=["task-folder", "flat"])
@pytest.mark.parametrize("task", list(GLUE))
def test_glue_files(task, nested):
    write_glue(task, f"glue/{task}" if nested else "glue")
    data = load_task(DataArguments(task_name=task, data_dir="glue"))
    assert (data.name, data.task, data.label_names) == (task, task, GLUE[task].label_names)
    assert data.train["text"][:] == ["first 0", "first 1"]
    assert data.has_pairs is (GLUE[task].text_pair is not None)
    assert data.train["label"][:] == [0, 1]
    assert data.regression is (task == "stsb")
    assert list(data.extra_validation) == (["mismatched"] if task == "mnli" else [])


def test_label_names_of_the_file_take_precedence_over_glue():
    for split in ("train", "validation"):
        rows = {"sentence": ["x", "y"], "label": [1, 0]}
        features = datasets.Features(
            sentence=datasets.Value("string"), label=datasets.ClassLabel(names=["bad", "good"])
        )
        datasets.Dataset.from_dict(rows, features=features).to_parquet(f"{split}.parquet")
    data = load_task(DataArguments(task_name="sst2", data_dir="."))
    assert (data.label_names, data.train["label"][:]) == (("bad", "good"), [1, 0])


def test_mnli_mismatched_is_cut_too():
    write_glue("mnli", ".")
    data = load_task(DataArguments(task_name="mnli", data_dir=".", max_eval_samples=1))
    assert data.extra_validation["mismatched"].to_dict() == {
        "text": ["first 0"],
        "text_pair": ["second 0"],
        "label": [2],
    }


def test_glue_may_have_empty_text():
    table = pa.table({"question1": ["a", "b"], "question2": ["", "c"], "label": [0, 1]})
    for split in ("train", "validation"):
        write(f"{split}.parquet", table)
    assert load_task(DataArguments(task_name="qqp", data_dir=".")).train["text_pair"][:] == ["", "c"]


@pytest.mark.parametrize(("task", "label"), [("rte", -1), ("stsb", -1.0)])
def test_glue_test_split_is_refused(task, label):
    write_glue(task, ".", validation=[label])
    assert refusal(load_task, DataArguments(task_name=task, data_dir=".")) == (
        "validation.parquet: label -1 (unlabelled) in 1 of 1 rows (first: row 1). Use a labelled split; if -1 is one "
        "of your classes, write it as a word."
    )


def test_glue_label_out_of_range():
    write_glue("rte", ".", train=[0, 1, 2])
    assert refusal(load_task, DataArguments(task_name="rte", data_dir=".")) == (
        "train.parquet: labels that are not among entailment, not_entailment (such as '2') in 1 of 3 rows (first: "
        "row 3). Each class must occur in the train data."
    )


def test_glue_files_of_another_task():
    write_glue("sst2", ".")
    assert refusal(load_task, DataArguments(task_name="mrpc", data_dir=".")) == (
        "train.parquet has no column sentence1, sentence2; its columns are sentence, label, idx. For your files pass "
        "--text_column, --text_pair_column and --label_column."
    )


def test_glue_files_missing():
    assert refusal(load_task, DataArguments(task_name="rte", data_dir="glue")) == (
        "--data_dir holds no GLUE rte: there is neither glue/rte/train.parquet nor glue/train.parquet."
    )
    write_glue("mnli", "glue/mnli")
    Path("glue/mnli/validation_mismatched.parquet").unlink()
    assert refusal(load_task, DataArguments(task_name="mnli", data_dir="glue")) == (
        "glue/mnli/validation_mismatched.parquet does not exist, or is not a file."
    )


def test_glue_from_the_hub(monkeypatch):
    def hub(path, name):
        assert (path, name) == ("nyu-mll/glue", "mnli")
        splits = ("train", "validation_matched", "validation_mismatched")
        return datasets.DatasetDict({split: datasets.Dataset(glue_table("mnli", [0, 1, 2])) for split in splits})

    monkeypatch.setattr(hf_xtc.data.glue, "load_dataset", hub)
    data = load_task(DataArguments(task_name="mnli"))
    assert (len(data.train), len(data.validation), list(data.extra_validation)) == (3, 3, ["mismatched"])


@pytest.mark.parametrize("kind", [ConnectionError, ValueError, TimeoutError], ids=lambda kind: kind.__name__)
def test_hub_out_of_reach(kind, monkeypatch):
    def unreachable(path, name):
        raise kind("no route to it")

    monkeypatch.setattr(hf_xtc.data.glue, "load_dataset", unreachable)
    assert refusal(load_task, DataArguments(task_name="rte")) == (
        "GLUE task rte cannot be loaded from nyu-mll/glue on the Hub: no route to it. Pass --data_dir with its "
        "parquet files, or your own data with --train_file and --validation_file."
    )


# ---- tokenize


@pytest.fixture
def tokenizer():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"]
    return BertTokenizer(vocab={word: i for i, word in enumerate(words)}, model_max_length=16)


def test_tokenize(tokenizer):
    data = load_task(own({"text": ["a b c", "a"], "label": ["x", "y"]}, {"text": ["a"], "label": ["x"]}))
    assert tokenize(data.train, tokenizer, max_length=4).to_dict() == {
        "labels": [0, 1],
        "input_ids": [[2, 5, 6, 3], [2, 5, 3]],
        "token_type_ids": [[0, 0, 0, 0], [0, 0, 0]],
        "attention_mask": [[1, 1, 1, 1], [1, 1, 1]],
    }


def test_tokenize_pairs_and_numbers(tokenizer):
    rows = {"text": ["a", "b"], "text2": ["b c", "c"], "label": [0.1, 2]}
    data = load_task(own(rows, rows, text_pair_column="text2", regression=True))
    tokens = tokenize(data.train, tokenizer, max_length=16)
    assert tokens["input_ids"][:] == [[2, 5, 3, 6, 7, 3], [2, 6, 3, 7, 3]]
    assert tokens["token_type_ids"][:] == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1]]
    assert tokens.features["labels"] == datasets.Value("float32")
    assert "label" in data.train.column_names


def test_tokenize_beyond_the_model(tokenizer):
    data = load_task(own())
    assert refusal(tokenize, data.train, tokenizer, max_length=17) == (
        "max_length is 17, but the tokenizer's model takes 16 tokens. Lower it."
    )


def test_tokenize_below_the_special_tokens(tokenizer):
    data = load_task(own())
    assert tokenize(data.train, tokenizer, max_length=2)["input_ids"][:] == [[2, 3]] * 3
    assert refusal(tokenize, data.train, tokenizer, max_length=1) == (
        "max_length is 1, less than the special tokens of a row. Raise it."
    )


# ---- align_labels


def task_data(names, labels=None, extra=None):
    rows = {"text": ["t"] * len(labels or names), "label": labels or list(range(len(names)))}
    split = datasets.Dataset.from_dict(rows)
    return TaskData("toys", None, split, split, {"mismatched": split} if extra else {}, names, "f" * 64)


REGRESSION = dataclasses.replace(task_data(("x",)), label_names=None)


def test_the_positive_class_is_the_models_class_1_or_the_one_chosen():
    data = load_task(own())
    assert data.positive_class == "pos"
    assert align_labels(data, {"pos": 0, "neg": 1}, "t").positive_class == "neg"
    chosen = load_task(own(positive_label="pos"))
    assert chosen.positive_class == "pos"
    assert align_labels(chosen, {"POS": 0, "NEG": 1}, "t").positive_class == "POS"
    three = ROWS | {"label": ["a", "b", "c"]}
    assert load_task(own(three, three)).positive_class is None
    assert REGRESSION.positive_class is None


def test_the_positive_class_of_glue_is_its_class_1(monkeypatch):
    write_glue("mrpc", "glue/mrpc")
    data = load_task(DataArguments(task_name="mrpc", data_dir="glue"))
    assert data.positive_class == "equivalent"
    assert align_labels(data, {"equivalent": 0, "not_equivalent": 1}, "t").positive_class == "equivalent"
    write_glue("sst2", "glue/sst2")
    assert load_task(DataArguments(task_name="sst2", data_dir="glue")).positive_class is None


def test_a_positive_label_that_cannot_be_is_refused():
    assert refusal(load_task, own(positive_label="spam")) == (
        "--positive_label=spam is to be a class of train.jsonl, which it does not have. Its classes are neg, pos."
    )
    three = ROWS | {"label": ["a", "b", "c"]}
    assert refusal(load_task, own(three, three, positive_label="a")) == (
        "--positive_label=a is to be a class of train.jsonl, which has an F1 for two classes only. Its classes are "
        "a, b, c."
    )
    assert refusal(own, regression=True, positive_label="a") == (
        "--positive_label=a is for own files with two classes; a regression has none."
    )
    assert refusal(DataArguments, task_name="sst2", positive_label="a") == (
        "--positive_label=a is for own files with two classes; GLUE's sst2 has metrics of its own."
    )


def test_align_by_name_ignoring_case(caplog):
    data = align_labels(task_data(("neg", "neu", "pos"), extra=True), {"POS": 0, "NEG": 1, "NEU": 2}, "bert-toys")
    assert data.label_names == ("POS", "NEG", "NEU")
    for split in (data.train, data.validation, data.extra_validation["mismatched"]):
        assert split["label"][:] == [1, 2, 0]
    assert data.fingerprint == "f" * 64
    assert not caplog.records


def test_align_prefers_exact_names():
    data = align_labels(task_data(("US", "us")), {"us": 0, "US": 1}, "bert-toys")
    assert (data.label_names, data.train["label"][:]) == (("us", "US"), [1, 0])


@given(st.permutations(["a", "b", "c", "d"]), st.lists(st.integers(0, 3), min_size=1, max_size=9))
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_align_never_changes_the_name_of_a_row(heads, labels):
    data = task_data(("a", "b", "c", "d"), labels)
    aligned = align_labels(data, {name.upper(): i for i, name in enumerate(heads)}, "bert-toys")
    before = [data.label_names[label] for label in labels]
    assert [aligned.label_names[label].lower() for label in aligned.train["label"]] == before


@pytest.mark.parametrize(
    ("names", "label2id", "expected", "pairs"),
    [
        (("neg", "pos"), {"LABEL_0": 0, "LABEL_1": 1}, ("neg", "pos"), "neg = LABEL_0, pos = LABEL_1"),
        (("1", "2"), {"neg": 0, "pos": 1}, ("neg", "pos"), "1 = neg, 2 = pos"),
        (("0", "1"), {"LABEL_1": 1, "LABEL_0": 0}, ("0", "1"), "0 = LABEL_0, 1 = LABEL_1"),
    ],
    ids=["generic-teacher", "integer-data", "both"],
)
def test_align_by_position_warns(names, label2id, expected, pairs, caplog):
    with caplog.at_level(logging.WARNING, logger="hf_xtc.data.task_data"):
        data = align_labels(task_data(names), label2id, "bert-toys")
    assert (data.label_names, data.train["label"][:]) == (expected, [0, 1])
    assert caplog.messages == [f"The labels of toys and bert-toys are matched by position: {pairs}."]


def test_align_regression():
    assert align_labels(REGRESSION, {"LABEL_0": 0}, "bert-toys") is REGRESSION


@pytest.mark.parametrize(
    ("data", "label2id", "message"),
    [
        (
            task_data(("neg", "pos")),
            {"neg": 0, "neu": 1, "pos": 2},
            "toys has labels that do not match the head: the data has 2 (neg, pos), bert-toys has 3 (neg, neu, pos). "
            "Use a teacher trained on these labels.",
        ),
        (
            task_data(("neg", "pos")),
            {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2},
            "toys has labels that do not match the head: the data has 2 (neg, pos), bert-toys has 3 (LABEL_0, "
            "LABEL_1, LABEL_2). Use a teacher trained on these labels.",
        ),
        (
            task_data(("neg", "pos")),
            {"spam": 1, "ham": 0},
            "toys has labels that do not match the head: the data has 2 (neg, pos), bert-toys has 2 (ham, spam). Use "
            "a teacher trained on these labels.",
        ),
        (
            task_data(("neg", "pos")),
            {"LABEL_0": 0},
            "toys has the labels neg, pos, but the head of bert-toys has one output, for regression. Use a teacher "
            "trained on these labels, or --regression if they are numbers.",
        ),
        (
            REGRESSION,
            {"neg": 0, "pos": 1},
            "toys is a regression, but the head of bert-toys has 2 outputs: neg, pos. Use a teacher with "
            "num_labels=1.",
        ),
        (
            task_data(("neg", "pos")),
            {"neg": 0, "pos": 2},
            "label2id of bert-toys does not number its labels from 0: {'neg': 0, 'pos': 2}.",
        ),
    ],
    ids=["more-outputs", "more-generic-outputs", "other-names", "one-output", "regression", "numbering"],
)
def test_labels_that_do_not_match_the_head(data, label2id, message):
    assert refusal(align_labels, data, label2id, "bert-toys") == message


def test_hold_out_splits_the_rows_and_keeps_their_order():
    rows = datasets.Dataset.from_dict({"text": [f"row {i}" for i in range(50)], "label": [i % 2 for i in range(50)]})
    train, selection = hold_out(rows, 0.1)
    assert (len(train), len(selection)) == (45, 5)
    merged = sorted([*train["text"], *selection["text"]], key=lambda text: int(text.split()[1]))
    assert merged == rows["text"][:]
    assert train["text"][:] == [text for text in rows["text"] if text not in selection["text"][:]]
    assert hold_out(rows, 0.1)[1]["text"][:] == selection["text"][:]
    assert hold_out(rows, 0.1, seed=1)[1]["text"][:] != selection["text"][:]


def test_hold_out_is_limited_and_share_zero_holds_out_nothing():
    rows = datasets.Dataset.from_dict({"text": ["a"] * 20_000})
    assert len(hold_out(rows, 0.5)[1]) == 1000
    assert hold_out(rows, 0.0) == (rows, None)


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_hold_out_refuses_an_empty_part(share):
    with pytest.raises(DataError, match="leaves one part without rows"):
        hold_out(datasets.Dataset.from_dict({"text": ["a"] * 10}), share)


def test_selection_share_must_be_below_one():
    with pytest.raises(DataError, match=r"--selection_share must be at least 0 and below 1, but is 1\.5"):
        DataArguments(task_name="rte", selection_share=1.5)


def test_selection_rows_are_taken_from_train_and_follow_the_labels_of_the_teacher(tmp_path):
    train, validation = tmp_path / "train.csv", tmp_path / "dev.csv"
    train.write_text("text,label\n" + "".join(f"t{i},{'good' if i % 2 else 'bad'}\n" for i in range(40)))
    validation.write_text("text,label\na,good\nb,bad\n")
    args = DataArguments(train_file=str(train), validation_file=str(validation), selection_share=0.25)
    data = load_task(args)
    assert (len(data.train), len(data.selection), len(data.validation)) == (30, 10, 2)
    assert not set(data.train["text"]) & set(data.selection["text"])
    moved = align_labels(data, {"good": 0, "bad": 1}, "teacher")
    assert moved.selection["label"][:] == [1 - label for label in data.selection["label"]]
    assert load_task(dataclasses.replace(args, selection_share=0.0)).fingerprint == data.fingerprint
