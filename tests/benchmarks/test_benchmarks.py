"""The parts of the inference benchmark: shapes, plans, bars and reports on invented figures; one tiny run in torch."""

import json
import math
import re

import numpy as np
import pytest

import cache
import inference
from latency.bars import bars
from latency.report import docs_table, markdown
from latency.rounds import Worker, WorkerError, planned_repeats, takes_part
from latency.runtimes import PEERS, RUNTIMES, TEACHER, Runtime
from latency.shapes import FIXED, HELD_OUT, SHAPES, SST2, make_batches, make_shape, read_lengths

SECONDS = {"torch_fp32": 0.080, "torch_int8": 0.050, "ort_int8": 0.030, "openvino_int8": 0.040, "ours_auto": 0.020}
PEAKS = {"torch_fp32": 900, "ours_auto": 640, "ours_int8": 700, "ours_packed": 580}


@pytest.fixture
def results():
    """What a run could have written: "bert-base-12" and "bert-base-5", every peer, imports of 500 MB."""
    models = ["bert-base-12", "bert-base-5"]
    seconds = {("bert-base-5", TEACHER): 0.170}
    seconds |= {(model, name): value for model in models for name, value in SECONDS.items()}
    return {
        "arguments": {"models": models, "shapes": list(SHAPES), "sst2_batches": 3},
        "command": "python benchmarks/inference.py",
        "date": "2026-01-02",
        "cpu": "A CPU",
        "flags": ["avx2"],
        "threads": 2,
        "versions": {"torch": "2.13.0"},
        "latency": [
            inference.latency_row(
                model,
                name,
                shape,
                [{"seconds": f * value, "after_pause_seconds": 2 * value} for f in (0.9, 1, 1.3)],
                2 * value,
            )
            for (model, name), value in seconds.items()
            for shape in SHAPES
        ],
        "processes": [
            {
                "model": model,
                "runtime": name,
                "load_seconds": 0.5,
                "first_logits_seconds": 3.0,
                "imports_bytes": 500_000_000,
                "peak_bytes": PEAKS.get(name, 800) * 1_000_000,
                "file_bytes": 14_500_000,
            }
            for model in models
            for name in dict.fromkeys([*SECONDS, *PEAKS, TEACHER])
        ],
        "left_out": ["bert-base-5, OpenVINO fp32: openvino not installed"],
    }


def test_shapes_are_rows_by_tokens():
    assert make_shape("8x32", {}, 0, 0) == [[32] * 8]
    assert set(FIXED) == {"1x16", "1x128", "8x32", "8x128"}
    assert make_shape("3x77", {}, 0, 0) == [[77] * 3]
    assert not set(HELD_OUT) & set(FIXED)


def test_sst2_batches_draw_real_lengths_with_a_seed():
    lengths = read_lengths()
    shape = make_shape(SST2, lengths, 3, seed=1)
    assert [len(rows) for rows in shape] == [32, 32, 32]
    assert {length for rows in shape for length in rows} <= set(lengths)
    assert shape == make_shape(SST2, lengths, 3, seed=1)
    assert shape != make_shape(SST2, lengths, 3, seed=2)


def test_committed_lengths_count_the_validation_split():
    lengths = read_lengths()
    assert sum(lengths.values()) == 872
    assert (min(lengths), max(lengths)) == (4, 55)


def test_batches_are_padded_to_their_longest_row():
    (batch,) = make_batches([[3, 5]], vocab_size=50, seed=0)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    np.testing.assert_array_equal(batch["input_ids"] != 0, batch["attention_mask"] == 1)
    assert batch["input_ids"].max() < 50
    assert not batch["token_type_ids"].any()
    assert all(values.dtype == np.int64 for values in batch.values())


@pytest.mark.parametrize(
    "estimate, expected",
    [(0.01, 15), (0.5, 12), (1.9, 3), (5.9, 3), (6.1, 1)],
    ids=["fast", "capped", "just thrice", "at least thrice", "once"],
)
def test_slow_runtimes_are_timed_less_often(estimate, expected):
    assert planned_repeats(estimate, repeats=15, seconds=6.0) == expected
    assert planned_repeats(estimate, repeats=2, seconds=6.0) == min(expected, 2)


@pytest.mark.parametrize("repeats", [0, 1, 3, 7, 15])
def test_repeats_are_spread_evenly_over_the_rounds(repeats):
    rounds = [index for index in range(15) if takes_part(index, 15, repeats)]
    assert len(rounds) == repeats
    gaps = np.diff(rounds)
    assert repeats < 2 or gaps.max() - gaps.min() <= 1


def test_speed_is_held_against_the_fastest_quantized_peer(results):
    made = {(bar.model, bar.shape): bar for bar in bars(results) if bar.peer in PEERS}
    assert len(made) == 2 * len(SHAPES)
    assert {bar.peer for bar in made.values()} == {"ort_int8"}
    assert all(bar.ratio == pytest.approx(1.5) for bar in made.values())
    wanted = {shape: made["bert-base-12", shape].wanted for shape in SHAPES}
    assert wanted == {**dict.fromkeys(SHAPES, 1.5), SST2: 2.5}


def test_teacher_bars(results):
    made = [bar for bar in bars(results) if bar.kind == "speed" and bar.peer not in PEERS]
    assert {(bar.model, bar.peer) for bar in made} == {("bert-base-5", TEACHER)}
    assert {bar.shape: bar.wanted for bar in made} == {**dict.fromkeys(SHAPES, 15.0), "8x128": 10.0}
    assert all(not bar.met and bar.ratio == pytest.approx(8.5) for bar in made)


@pytest.mark.parametrize("report", [markdown, lambda results: docs_table(results, "bert-base-5")], ids=["all", "docs"])
def test_tables_say_which_peer_won_where(results, report):
    slow = {"runtime": "ours_ternary_auto", "median_seconds": 0.025}
    (row,) = (
        r for r in results["latency"] if (r["model"], r["runtime"], r["shape"]) == ("bert-base-5", "ours_auto", "1x37")
    )
    results["latency"].append({**row, **slow})
    results["latency"].append({**row, "runtime": "ort_4bit", "median_seconds": 0.015})
    table = report(results)
    shapes = list(SHAPES)
    cells = {line.split(" | ")[0]: line.split(" | ")[1:] for line in table.split("bert-base-5 |")[1].splitlines()}
    names = cells["| *fastest quantized peer*"]
    assert names[shapes.index("1x37")] == "ONNX Runtime 4-bit"
    assert names[0] == "ONNX Runtime dynamic int8"
    assert cells["| *hf_xtc auto: times faster*"][: len(shapes)] == [
        "**0.75, peer wins**" if shape == "1x37" else "1.50" for shape in shapes
    ]
    assert cells["| *hf_xtc auto, ternary: times faster*"][shapes.index("1x37")] == "**0.60, peer wins**"


def test_memory_counts_what_the_imports_do_not_take(results):
    made = {bar.ours: bar for bar in bars(results) if bar.kind == "memory"}
    assert made["ours_int8"].ratio == pytest.approx(200 / 400)
    assert made["ours_packed"].ratio == pytest.approx(80 / 400)
    assert made["ours_int8"].met
    assert made["ours_packed"].met


def test_bars_need_both_sides(results):
    results["latency"] = [row for row in results["latency"] if row["runtime"] != "ours_auto"]
    results["processes"] = []
    assert bars(results) == []
    assert markdown(results).endswith("Bars: none, for want of `hf_xtc auto` or of its peers.\n")


@pytest.mark.parametrize(
    "logits, error",
    [([[1.0, -2.0]], 0.0), ([[1.5, -2.0]], 0.25), ([[1.0, math.nan]], math.nan)],
    ids=["equal", "other", "nan"],
)
def test_relative_error(logits, error):
    assert inference.relative_error(logits, [[1.0, -2.0]]) == pytest.approx(error, nan_ok=True)


def test_unknown_names_and_half_a_source_of_lengths_are_refused():
    with pytest.raises(ValueError, match=r"^Unknown: bert\. There are: bert-base-12, .*, tiny\.$"):
        inference.InferenceArguments(models=["bert"])
    with pytest.raises(ValueError, match=r"^Give sst2_parquet and sst2_tokenizer together, or neither\.$"):
        inference.InferenceArguments(sst2_parquet="validation.parquet")


def test_a_missing_package_leaves_its_runtime_out(tmp_path, monkeypatch, capsys):
    absent = Runtime("torch", lambda: None, RUNTIMES["torch_fp32"].load, "Absent", needs=("no_such_package",))
    monkeypatch.setitem(RUNTIMES, "ort_fp32", absent)
    results = inference.measure(inference.InferenceArguments(models=["tiny"], runtimes=["ort_fp32"]))
    assert results["latency"] == []
    assert results["left_out"] == ["tiny, Absent: no_such_package not installed"]
    assert capsys.readouterr().out.startswith("Left out: tiny, Absent: no_such_package not installed\n")


def test_a_process_that_ends_is_an_error_not_a_hang(tmp_path):
    config = {"runtime": "ort_fp32", "folder": str(tmp_path), "threads": 1, "seed": 0, "vocab_size": 101, "shapes": {}}
    with pytest.raises(WorkerError, match=r"^ort_fp32 ended with status 1$"):
        Worker(config)


@pytest.mark.parametrize("logits, error", [([[2.0, 3.0]] * 4, r"[1-9]\d*\.\d\d"), ([[math.nan, 0.0]] * 4, "nan")])
def test_a_runtime_with_other_logits_is_not_timed(tmp_path, monkeypatch, logits, error):
    class Broken:
        """A process whose logits are wrong."""

        name, cost, closed = "torch_fp32", {}, 0

        def __init__(self, config):
            assert config["shapes"] == {"1x16": [[16]]}

        def ask(self, question):
            assert question == {"logits": None}
            return logits

        def close(self):
            Broken.closed += 1

    monkeypatch.setattr(inference, "Worker", Broken)
    args = inference.InferenceArguments(models=["tiny"], runtimes=["torch_fp32"], shapes=["1x16"])
    results = inference.measure(args)
    assert results["latency"] == results["processes"] == []
    (line,) = results["left_out"]
    assert re.fullmatch(rf"tiny, torch fp32: its logits differ by {error} of the largest", line)
    assert Broken.closed == 1


def test_a_tiny_run_in_torch(tmp_path):
    args = inference.InferenceArguments(
        models=["tiny"], runtimes=["torch_fp32", "ours_reference"], shapes=["1x16", SST2], threads=1, repeats=2
    )
    results = inference.measure(args)
    assert {(row["runtime"], row["shape"], row["repeats"]) for row in results["latency"]} == {
        (runtime, shape, 2) for runtime in args.runtimes for shape in args.shapes
    }
    ours = results["processes"][1]
    assert ours["runtime"] == "ours_reference"
    assert ours["error"] < 1e-6
    assert 0 < ours["imports_bytes"] < ours["peak_bytes"]
    assert ours["load_seconds"] < ours["first_logits_seconds"]
    inference.write(results, tmp_path / "results")
    stored = json.loads((tmp_path / "results" / "inference.json").read_text())
    assert markdown(stored) == (tmp_path / "results" / "inference.md").read_text()
    assert stored["row_lengths"]["1x16"] == [[16]]


def test_a_tiny_run_of_the_cache(tmp_path, monkeypatch, capsys):
    file = tmp_path / "cache.json"
    options = "--rows 12 --batch_size 4 --hidden_size 24 --teacher_layers 2 --student_layers 1 --repeats 2"
    monkeypatch.setattr(
        "sys.argv", ["cache.py", *options.split(), "--cache_dir", str(tmp_path), "--output_file", str(file)]
    )
    cache.main()
    results = json.loads(file.read_text())
    assert results == json.loads(capsys.readouterr().out)
    assert results["ratio"] == pytest.approx(results["cache_seconds"] / results["teacher_seconds"])
    assert results["ratio_min"] <= results["ratio_max"]
    # two hidden states of 24 and 12 heads of scores in float16, two logits in float32, and the tokens as int64
    lengths = cache.row_lengths(cache.BenchmarkArguments(rows=12))
    data = sum(2 * (2 * 24 * length + 12 * length**2) + 2 * 4 + 8 for length in lengths)
    assert data < results["cache_bytes"] < data + 4096
    assert [path.name for path in tmp_path.iterdir()] == ["cache.json"]
