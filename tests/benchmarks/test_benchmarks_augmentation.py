"""The augmentation benchmark: its plain procedure makes what the package makes, and one tiny run."""

import json
import sys

import datasets
import pytest

import augmentation as benchmark
from hf_xtc.data.augmentation import Augmentation
from hf_xtc.data.masked_lm import MaskedLM

TEXTS = [
    "The film is charming, the plot is not.",
    "GOOD actors don't save it",
    "the of",
    "",
    "Charming  film!",
    "a well-acted film , charming film",
    "good plot",
]


@pytest.fixture(autouse=True)
def quiet_datasets():
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def arguments(tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    small = {"rows": 7, "masked_rows": 3, "plain_rows": 4, "plain_masked_rows": 1, "copies": 3, "vocabulary": 60}
    return benchmark.BenchmarkArguments(data_file=str(tmp_path / "texts.txt"), **small)


@pytest.mark.parametrize("masked", [False, True], ids=["word table", "masked language model"])
def test_both_make_the_same_rows_where_nothing_is_left_to_chance(arguments, masked):
    table, language_model = benchmark.models(arguments, TEXTS)
    source = language_model if masked else table
    settings = Augmentation(copies=2, candidates=1, probability=1.0)
    made = benchmark.batched(TEXTS, settings, source)
    assert made == benchmark.one_at_a_time(TEXTS, settings, source)
    assert 4 <= len(made) <= 5


@pytest.mark.parametrize("masked", [False, True], ids=["word table", "masked language model"])
def test_both_draw_from_the_same_candidates(arguments, masked):
    table, language_model = benchmark.models(arguments, TEXTS)
    source = MaskedLM(language_model.model, language_model.tokenizer) if masked else table
    settings = Augmentation(copies=200, candidates=3, probability=0.5)
    made, plain = ([set(make(TEXTS[6:], settings, source))] for make in (benchmark.batched, benchmark.one_at_a_time))
    assert made == plain
    assert len(made[0]) >= 5


@pytest.mark.parametrize(
    ("word", "candidate", "expected"), [("film", "DVD", "DVD"), ("Film", "movie", "Movie"), ("FILM", "movie", "MOVIE")]
)
def test_capitals(word, candidate, expected):
    assert benchmark.like(word, candidate) == expected


def test_a_tiny_run_is_printed_and_written(arguments, tmp_path, monkeypatch, capsys):
    output = tmp_path / "augmentation.json"
    options = [f"--{name}={getattr(arguments, name)}" for name in ("data_file", "rows", "copies", "vocabulary")]
    options += ["--masked_rows=2", "--plain_rows=3", "--plain_masked_rows=1", "--together", "1", "2", "--bf16"]
    monkeypatch.setattr(sys, "argv", ["augmentation.py", *options, f"--output_file={output}"])
    benchmark.main()
    results = json.loads(output.read_text())
    assert json.loads(capsys.readouterr().out) == results
    assert list(results["sources"]) == [
        "word table",
        "masked language model, 1 at once",
        "masked language model, 2 at once",
        "masked language model, 2 at once, bfloat16",
    ]
    for found in results["sources"].values():
        assert found["met"] == (found["ratio"] >= results["bar"] == 20)
        assert min(found["plain"]["augmented"], found["batched"]["augmented"]) > 0
    assert results["sources"]["word table"]["batched"]["rows"] == 7
    assert results["versions"].keys() >= {"hf_xtc", "torch", "datasets"}
