"""The GPU benchmark without a GPU: every line but the recording of CUDA graphs, on a tiny model."""

import json

import pytest

import gpu
from hf_xtc.native import gpu as kernels


def test_a_smoke_run(tmp_path, monkeypatch, capsys):
    file = tmp_path / "gpu.json"
    monkeypatch.setattr("sys.argv", ["gpu.py", "--device", "cpu", "--smoke", "--output_file", str(file)])
    assert gpu.main() == 0
    results = json.loads(file.read_text())
    cells = {(cell["way"], cell["shape"]) for cell in results["cells"]}
    ways = {"fp16", "hf_xtc int8 (torch._int_mm)", "hf_xtc reference"}
    assert {(way, shape) for way in ways for shape in ("1x16", "3x20")} <= cells
    assert all(cell["how"] == "eager: no GPU" and len(cell["seconds"]) == 2 for cell in results["cells"])
    weights = {cell["way"]: cell["weight_bytes"] for cell in results["cells"]}
    assert weights["hf_xtc reference"] < weights["fp16"]
    printed = capsys.readouterr().out
    assert gpu.table(results) in printed
    if not kernels.interpreted():
        expected = "tiny, hf_xtc packed (Triton), binary: RuntimeError: the Triton kernel does not run here"
        assert expected in results["left_out"]
        assert results["equal_products"] == 0


def test_ways_that_do_not_fit_into_the_time_are_named():
    args = gpu.GpuArguments(device="cpu", smoke=True)
    prepared, left_out = gpu.prepare(args, "tiny", deadline=0.0)
    assert prepared == {}
    assert left_out[0] == "tiny, fp16: TimeoutError: not prepared: the 280 seconds of the run were over"
    assert len(left_out) == len(gpu.ways("cpu"))


def test_other_products_end_the_run(monkeypatch):
    """A kernel with other bits is not timed."""
    monkeypatch.setattr(kernels, "multiply", lambda x, codes, blocks: x.new_zeros(len(x), len(codes.packed)))
    with pytest.raises(AssertionError, match=r"^binary, 16 tokens, 32 to 64, Blocks\(.*\): other bits$"):
        gpu.check_products("cpu", smoke=True)


def test_a_cpu_is_only_for_the_smoke_run():
    with pytest.raises(ValueError, match="figures of a CPU say nothing about a GPU"):
        gpu.GpuArguments(device="cpu")
    with pytest.raises(ValueError, match="figures of a CPU say nothing about a GPU"):
        gpu.GpuArguments(smoke=True)
