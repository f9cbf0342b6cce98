"""Reads the splits of a data set: a repository of the Hub, or a folder of files, as `datasets.load_dataset` does."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

from hf_xtc.errors import DataError, needs_extra

with needs_extra("cli"):
    from datasets import Dataset, load_dataset


def read_data_set(name: str, config: str | None, revision: str | None, splits: Iterable[str]) -> dict[str, Dataset]:
    """Split -> its rows, as they are.

    The files of a folder are read in each call: the cache of datasets only compares modification times, so it may
    return stale rows. Code that a data set carries is never run.

    Args:
        name (`str`): A folder with a file for each split, such as `train.parquet`, or a Hub id.
        config (`str`, *optional*), revision (`str`, *optional*): Which of its configurations; branch, tag or commit.
        splits (iterable of `str`): The names of splits.

    Raises:
        DataError: if the data set cannot be loaded, or lacks a split or its rows.
    """
    if revision is not None and Path(name).is_dir():
        raise DataError(f"--dataset_revision={revision} is for a data set on the Hub, but {name} is a folder.")
    try:
        if Path(name).is_dir():
            with tempfile.TemporaryDirectory() as cache:
                found = load_dataset(name, config, cache_dir=cache, keep_in_memory=True)
        else:
            found = load_dataset(name, config, revision=revision)
    except Exception as error:  # of many types: files are read by several libraries, and the Hub may fail in any way
        reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
        said = name if config is None else f"{name} {config}"
        raise DataError(f"--dataset_name={said} cannot be loaded: {reason[0].rstrip('.')}.") from error
    for split in splits:
        if split not in found:
            raise DataError(
                f"{name} has no split {split}; its splits are {', '.join(map(str, found))}. Name one with "
                "--train_split_name, --validation_split_name or --test_split_name."
            )
        if not len(found[split]):
            raise DataError(f"{name} {split} has no rows.")
    return {split: found[split] for split in splits}
