"""Publishing the checkpoints on a Hub on this machine: what is there afterwards, and what is refused before."""

import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, snapshot_download

import publish

# huggingface_hub hands files to its HTTP client in a way that this one discourages.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def places(tmp_path):
    """Two places: two checkpoints in the first, one of the same name in the second."""
    for path in ("checkpoints/one", "checkpoints/two", "examples/one"):
        shutil.copytree(EXAMPLES / "minilm-3l-1bit-sst2", tmp_path / path)
    (tmp_path / "examples" / "one" / "tokenizer_config.json").write_text("{}")
    (tmp_path / "checkpoints" / "two" / "optimizer.pt").write_text("not to publish")
    return [str(tmp_path / "checkpoints"), str(tmp_path / "examples")]


def test_each_checkpoint_becomes_a_repository_of_the_organization(hub, places, tmp_path, capsys):
    assert publish.main(["--organization=user", "--places", *places]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in shown] == ["user/one", "user/two"]
    for name in ("one", "two"):
        found = Path(snapshot_download(f"user/{name}"))
        source = tmp_path / "checkpoints" / name
        for file in ("model.safetensors", "tokenizer_config.json", "config.json"):
            assert (found / file).read_bytes() == (source / file).read_bytes()
        card = (found / "README.md").read_text(encoding="utf-8")
        assert f'pipeline("text-classification", "user/{name}")' in card
        assert ModelCard(card).data.license == "apache-2.0"
        assert not (found / "optimizer.pt").exists()


def test_started_again_it_commits_nothing(hub, places, capsys):
    options = ["--organization=user", "--names", "two", "--places", *places]
    assert publish.main(options) == 0
    first = capsys.readouterr().out
    assert publish.main(options) == 0
    assert capsys.readouterr().out == first


def test_a_dry_run_sends_nothing(hub, places, capsys):
    assert publish.main(["--organization=user", "--dry_run", "--places", *places]) == 0
    assert "not published (dry run)" in capsys.readouterr().out
    assert not hub.calls


@pytest.mark.parametrize(
    "broken, message",
    [
        (lambda folder: (folder / "README.md").unlink(), "has no card with a licence"),
        (lambda folder: (folder / "README.md").write_text("# a card"), "has no card with a licence"),
        (lambda folder: (folder / "config.json").write_text('{"state": "latent"}'), "holds a latent model"),
    ],
    ids=["no card", "no licence", "latent"],
)
def test_one_that_is_not_fit_stops_all_of_them(hub, places, tmp_path, capsys, broken, message):
    broken(tmp_path / "checkpoints" / "two")
    assert publish.main(["--organization=user", "--places", *places]) == 1
    assert message in capsys.readouterr().err
    assert not hub.calls


def test_an_organization_that_refuses_is_one_sentence(hub, places, capsys):
    assert publish.main(["--organization=someone-else", "--places", *places]) == 1
    assert "someone-else/one" in capsys.readouterr().err


@pytest.mark.parametrize("names, message", [(["--names", "three"], "no checkpoint three"), ([], "no checkpoint in")])
def test_what_is_not_there_is_said(tmp_path, capsys, names, message):
    assert publish.main(["--organization=user", *names, "--places", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err


def test_the_examples_of_the_repository_are_ready(capsys):
    assert publish.main(["--organization=user", "--dry_run", "--places", str(EXAMPLES)]) == 0
    assert "user/minilm-3l-1bit-sst2: " in capsys.readouterr().out
