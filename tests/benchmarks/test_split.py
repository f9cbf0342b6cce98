"""The benchmark of where the time of a call goes, on a tiny model."""

import json

import pytest

import split
from hf_xtc.native import arrays
from hf_xtc.native.library import variants


@pytest.mark.skipif(not variants(), reason="the native operator is not built")
@pytest.mark.parametrize("weights", ["binary", "ternary"])
def test_parts_of_a_call(weights, tmp_path):
    call, file = arrays.call, tmp_path / "split.json"
    split.main(
        [
            "--models=tiny",
            "--shapes=1x16",
            f"--weights={weights}",
            "--rounds=2",
            "--threads=1",
            f"--output_file={file}",
        ]
    )
    assert arrays.call is call
    (cell,) = json.loads(file.read_text())["cells"]
    parts = cell["milliseconds"]
    assert parts.keys() == {"forward", "native call", "products", "int_mm"}
    assert 0 < parts["native call"] < parts["forward"]
