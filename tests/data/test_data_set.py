"""Data sets by name: a folder of files, and a repository of a Hub; separators and test splits of own files."""

import io
import os
import subprocess
import sys

import pandas as pd
import pytest
from hub_server import Repo
from task_cases import OPTIONS, table

from hf_xtc.data.data_set import read_data_set
from hf_xtc.data.task_data import DataArguments, load_task, read_splits
from hf_xtc.errors import DataError
from hf_xtc.runs.arguments import EvaluationDataArguments
from hf_xtc.tasks import TASKS


def folder(path, name="sequence-classification", splits=("train", "validation", "test")):
    (path / "rows").mkdir()
    for i, split in enumerate(splits):
        table(name, 12 - i, seed=i).to_parquet(path / "rows" / f"{split}.parquet")
    return path / "rows"


@pytest.mark.parametrize("name", TASKS)
def test_a_folder_holds_the_rows_of_its_files(tmp_path, name):
    rows, task = folder(tmp_path, name), TASKS[name]()
    more = {"max_length": 24, **OPTIONS.get(name, {})}
    args = DataArguments(dataset_name=str(rows), test_split_name="test", **more)
    files = {f"{split}_file": str(rows / f"{split}.parquet") for split in ("train", "validation", "test")}
    own = DataArguments(**files, **more)
    found, expected = (task.load(given, read_splits(given)) for given in (args, own))
    assert (found.name, found.fingerprint) == ("rows", expected.fingerprint)
    assert found.extra_validation["test"].to_dict() == expected.extra_validation["test"].to_dict()
    assert len(found.extra_validation["test"]) in (10, 9)  # embeddings: a text that occurs twice counts once


def test_splits_by_other_names(tmp_path):
    rows = folder(tmp_path)
    args = DataArguments(dataset_name=str(rows), train_split_name="test", validation_split_name="train")
    data = load_task(args)
    assert (len(data.train), len(data.validation), data.extra_validation) == (10, 12, {})


def test_a_folder_is_read_again_when_it_changed(tmp_path):
    rows = folder(tmp_path)
    before, times = load_task(DataArguments(dataset_name=str(rows))), (rows / "train.parquet").stat()
    table("sequence-classification", 12, seed=7).to_parquet(rows / "train.parquet")
    os.utime(rows / "train.parquet", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert load_task(DataArguments(dataset_name=str(rows))).fingerprint != before.fingerprint


def test_evaluation_needs_no_train_split(tmp_path):
    rows = folder(tmp_path, splits=("validation",))
    args = EvaluationDataArguments(dataset_name=str(rows))
    assert args.partial
    assert load_task(args).train.to_dict() == load_task(args).validation.to_dict()
    table("sequence-classification", 9, seed=3).to_parquet(rows / "train.parquet")
    named = EvaluationDataArguments(dataset_name=str(rows), train_split_name="train")
    assert not named.partial
    assert len(load_task(named).train) == 9


def test_a_data_set_of_the_hub(tmp_path, hub_process):
    hub_process.clear()
    files = {}
    for split in ("train", "validation"):
        content = io.BytesIO()
        table("sequence-classification", 8, seed=len(split)).to_parquet(content)
        files[f"{split}.parquet"] = content.getvalue()
    repo = hub_process.repos["datasets/user/films"] = Repo(private=False)
    first = repo.add("main", "first", files, ())
    repo.add("main", "second", {"train.parquet": files["train.parquet"]}, ())
    code = f"""
from hf_xtc.data.task_data import DataArguments, load_task
from hf_xtc.errors import DataError
data = load_task(DataArguments(dataset_name="user/films", dataset_revision={first.oid!r}))
print(data.name, len(data.train), *data.train["text"][:], sep="|")
for options in ({{}}, {{"dataset_revision": "none"}}):
    try:
        load_task(DataArguments(dataset_name="user/films", **options))
    except DataError as error:
        print(error)
"""
    cache = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_DATASETS_CACHE": str(tmp_path / "datasets")}
    there = {"HF_ENDPOINT": hub_process.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", **cache}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **there}, capture_output=True, text=True, check=True
    )
    rows, split, revision = done.stdout.splitlines()
    texts = table("sequence-classification", 8, seed=len("train"))["text"]
    assert rows.split("|") == ["user/films", "8", *texts]
    assert split.startswith("user/films has no split validation; its splits are train. Name one with --train_split")
    assert revision.startswith("--dataset_name=user/films cannot be loaded: ")


@pytest.mark.parametrize(
    "splits, options, message",
    [
        (("train",), {}, r"rows has no split validation; its splits are train\. Name one with --train_split_name, "),
        ((), {}, r"^--dataset_name=.*rows cannot be loaded: .*\.$"),
        (("train", "validation"), {"dataset_config_name": "de"}, r"^--dataset_name=.*rows de cannot be loaded: .*de"),
        (("train", "validation"), {"dataset_revision": "v1"}, r"^--dataset_revision=v1 is for a data set on the Hub,"),
        (("train", "validation"), {"text_column": "review"}, r"rows train has no column review; its columns are text"),
    ],
)
def test_errors(tmp_path, splits, options, message):
    rows = folder(tmp_path, splits=splits)
    with pytest.raises(DataError, match=message) as error:
        load_task(DataArguments(dataset_name=str(rows), **options))
    assert "\n" not in str(error.value)


def test_a_split_without_rows_is_refused(tmp_path):
    rows = folder(tmp_path, splits=("train",))
    pd.DataFrame({"text": [], "label": []}).astype(str).to_parquet(rows / "validation.parquet")
    with pytest.raises(DataError, match=r"rows( validation)? (has no rows\.|cannot be loaded: )"):
        read_data_set(str(rows), None, None, ["train", "validation"])


def test_a_separator_that_does_not_occur(tmp_path):
    table("sequence-classification").to_csv(tmp_path / "rows.csv", index=False, sep=";")
    path = str(tmp_path / "rows.csv")
    with pytest.raises(DataError) as error:
        load_task(DataArguments(train_file=path, validation_file=path, separator="|"))
    assert str(error.value) == (
        f"--separator='|' does not occur in the first line of {path}, which seems to be separated by ';'."
    )


@pytest.mark.parametrize(
    "suffix, separator, given", [("csv", ";", ";"), ("tsv", "|", "|"), ("csv", "\t", r"\t"), ("csv.gz", ";", ";")]
)
def test_a_separator(tmp_path, suffix, separator, given):
    rows, path = table("sequence-classification"), str(tmp_path / f"rows.{suffix}")
    rows.to_csv(path, index=False, sep=separator)
    data = load_task(DataArguments(train_file=path, validation_file=path, separator=given))
    assert data.train["text"][:] == list(rows["text"])
