"""The demo's own part: which files it reads, and a split that shares no film."""

import bz2
import importlib.util
from pathlib import Path

import pandas as pd
import pytest

FILE = Path(__file__).parent.parent / "examples" / "rotten_tomatoes.py"


@pytest.fixture
def demo():
    spec = importlib.util.spec_from_file_location("rotten_tomatoes", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def corpus(demo, tmp_path, monkeypatch):
    """Forty films of three reviews and a plot each; two reviews are the same sentence, one is the word null."""
    rows = [("plot", f"plot of {film}", f"film{film}") for film in range(40)]
    rows += [
        (kind, f"{kind} {film} {i}", f"film{film}") for film in range(40) for i, kind in enumerate(["fresh", "rotten"])
    ]
    rows += [("fresh", "the same words", "film1"), ("rotten", "the same words", "film2"), ("fresh", "null", "film3")]
    table = pd.DataFrame(
        [(*row, True) for row in rows], columns=["category", "text", "movie_name", "has_plot_and_reviews"]
    )
    path = tmp_path / "corpus.csv.bz2"
    path.write_bytes(bz2.compress(table.to_csv(index=False).encode()))
    monkeypatch.setattr(demo, "packaged_file", lambda package, ending: path)
    return table


def test_no_film_is_in_both_splits(demo, corpus, tmp_path):
    train, validation = (pd.read_csv(p, keep_default_na=False) for p in demo.write_splits(tmp_path / "data", seed=1))
    film_of = dict(zip(corpus.text, corpus.movie_name, strict=True))
    films = [{film_of[text] for text in split.text if text != "the same words"} for split in (train, validation)]
    assert films[0].isdisjoint(films[1])
    assert len(films[1]) == 4, "a tenth of forty films"


def test_reviews_are_kept_once_and_plots_not_at_all(demo, corpus, tmp_path):
    splits = [pd.read_csv(path, keep_default_na=False) for path in demo.write_splits(tmp_path / "data", seed=1)]
    both = pd.concat(splits)
    assert list(both.columns) == ["text", "label"]
    assert set(both.label) == {"fresh", "rotten"}
    assert not both.text.duplicated().any()
    assert len(both) == 80 + 2
    assert "null" in set(both.text)


def test_split_depends_on_the_seed_alone(demo, corpus, tmp_path):
    first, again, other = (
        demo.write_splits(tmp_path / name, seed)[1].read_text() for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again
    assert first != other


def test_changed_weights_are_refused(demo, tmp_path, monkeypatch):
    weights = tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"other weights")
    monkeypatch.setattr(demo, "packaged_file", lambda package, ending: weights)
    with pytest.raises(
        ValueError, match=f"^model.safetensors has sha256 [0-9a-f]{{64}}, expected {demo.WEIGHTS_SHA256}.$"
    ):
        demo.base_encoder(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


def test_packaged_file_finds_one_file_without_importing(demo):
    assert demo.packaged_file("torch", "torch/version.py").name == "version.py"
    with pytest.raises(FileNotFoundError, match=r"^torch holds 0 files ending in no/such\.file; expected one\.$"):
        demo.packaged_file("torch", "no/such.file")
