"""A short run of the comparison of JavaScript with Python, in Node and Chromium."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from node import CHROMIUM, EXAMPLE, needs_packages

import web_logits
from hf_xtc.native.library import variants

TEXTS = ["A quietly moving film.", "dull", "Two hours of naïve shouting 👍, and not one idea " * 9, "dull"]


@needs_packages
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.skipif(not variants(), reason="the native operator is not built")
def test_few_texts(tmp_path):
    parquet.write_table(pa.table({"text": TEXTS}), tmp_path / "texts.parquet")
    argv = ["--models", str(EXAMPLE), "--texts_files", str(tmp_path / "texts.parquet")]
    with pytest.raises(SystemExit) as done:
        web_logits.main([*argv, "--output_file", str(tmp_path / "found.json")])
    assert not done.value.code
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    places = [(row["place"], row["wasm"]) for row in rows]
    assert places == [(place, wasm) for wasm in web_logits.WASM for place in ("node", "chromium")]
    assert {(row["texts"], row["numbers"], row["classes"]) for row in rows} == {(3, 6, 3)}


@pytest.mark.parametrize(
    ("found", "auto", "broken"),
    [
        ([[0, 1], [3, 2]], [[0, 1], [3, 2]], False),
        ([[0, 1], [3, 2.001]], [[0, 1], [3, 2]], True),
        ([[0, 1], [3, np.nan]], [[0, 1], [3, 2]], True),
        ([[0, 1], [3, 2, 4]], [[0, 1], [3, 2]], True),
        ([[0, 1], [3, 2]], [[0, 1], [2, 3]], False),  # as the portable variant
    ],
)
def test_what_differs_is_found(found, auto, broken):
    portable = [[0, 1], [3, 2]]
    rows = ([np.array(row, np.float32) for row in outputs] for outputs in (found, portable, auto))
    assert web_logits.compare(*rows, 2)["broken"] is broken


def test_a_class_that_only_javascript_changes_is_found():
    own, other = (np.array([row], np.float32) for row in ([1, 1 + 1e-6], [1 + 1e-6, 1]))
    row = web_logits.compare([own], [other], [other], 2)
    assert row["broken"]
    assert row["largest_difference"] < web_logits.WITHIN
    assert (row["different_classes"], row["different_classes_of_portable"]) == (1, 0)
