"""Counting what trimming leaves, on two texts."""

import json

import pyarrow as pa
import pyarrow.parquet as parquet

import vocabulary


def test_tokens_that_are_used_more_often_are_fewer(tmp_path):
    parquet.write_table(pa.table({"text": ["a wonderful film", "a film"]}), tmp_path / "texts.parquet")
    argv = ["--texts_file", str(tmp_path / "texts.parquet"), "--column", "text", "--min_counts", "1", "2", "3"]
    vocabulary.main([*argv, "--output_file", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["tokens"], found["texts"]) == (30522, 2)
    once, twice, never = found["kept"].values()
    assert (once - twice, twice - never) == (1, 1)  # "wonderful", "film"; "a" is a character, and these stay
