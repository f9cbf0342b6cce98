"""`hf-xtc inspect` and `hf-xtc verify`: files they read, their output, and the damage they detect."""

import json

import huggingface_hub.constants as constants
import pandas as pd
import pytest
from huggingface_hub import HfApi
from transformers import BertTokenizerFast

from hf_xtc import XTCRecipe, compress, ledger, pack_model
from hf_xtc.cli import main
from hf_xtc.errors import PackedFileError
from hf_xtc.files.headers import weights_sha256
from hf_xtc.hub.publish import write_model_card, write_packed
from hf_xtc.hub.upload import push_folder
from hf_xtc.runs.arguments import InspectArguments
from hf_xtc.runs.inspection import run_inspect

# huggingface_hub hands files to its HTTP client in a way that this one discourages.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film"]


@pytest.fixture
def folder(tiny_config, tiny_teacher, tmp_path):
    """A packed folder with a tokenizer and a card."""
    tiny_teacher.config.name_or_path = "someone/teacher"
    student = compress(tiny_teacher, XTCRecipe(keep_layers=2), provenance={"data": "reviews"})
    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)}, model_max_length=40)
    write_packed(student, tmp_path / "tiny", tokenizer=tokenizer)
    write_model_card(student.config, type(student), tmp_path / "tiny", "user/tiny")
    return tmp_path / "tiny"


@pytest.fixture
def rows(tmp_path):
    """Six rows of three classes."""
    file = tmp_path / "rows.csv"
    labels = [f"LABEL_{i % 3}" for i in range(6)]
    pd.DataFrame({"text": ["good film"] * 6, "label": labels}).to_csv(file, index=False)
    return file


def add_metric(folder, value):
    """Writes an accuracy into the card."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    entry = f"metrics: [{{type: accuracy, value: {value}}}]"
    task = "task: {type: text-classification}, dataset: {type: reviews, name: reviews}"
    index = f"model-index: [{{name: tiny, results: [{{{task}, {entry}}}]}}]"
    (folder / "README.md").write_text(card.replace("---\n", f"---\n{index}\n", 1), encoding="utf-8")


# inspect


def test_inspecting_a_folder_prints_ledger_recipe_and_provenance(folder, capsys):
    assert main(["inspect", str(folder)]) == 0
    told = capsys.readouterr().out
    looked = run_inspect(InspectArguments(str(folder)))
    assert told.strip() == str(looked).strip()
    assert told.splitlines()[0] == str(folder)
    assert "XTCBertForSequenceClassification, packed, format version" in told
    assert "layers 1, 3 of the 4 of its teacher" in told
    assert str(ledger(looked.config)) in told
    assert json.dumps(looked.config.recipe.to_dict(), indent=2) in told
    assert '"teacher": "someone/teacher"' in told
    assert '"data": "reviews"' in told


def test_a_repository_is_inspected_by_its_header_alone(hub, folder, capsys):
    # A file larger than what the client asks for at once; its tail is not needed to inspect it.
    whole = (folder / "model.safetensors").read_bytes()
    push_folder(folder, "user/tiny")
    commit = hub.repos["user/tiny"].branches["main"][-1]
    commit.files["model.safetensors"] = whole + bytes(200_000)
    assert main(["inspect", "user/tiny"]) == 0
    told = capsys.readouterr().out
    assert told.splitlines()[0] == f"user/tiny, commit {commit.oid}"
    local = str(run_inspect(InspectArguments(str(folder))))
    assert told.splitlines()[1:] == local.splitlines()[1:]
    calls = hub.downloads("model.safetensors")
    header = 8 + int.from_bytes(whole[:8], "little")
    assert [call.range for call in calls] == ["bytes=0-100000"]
    assert header <= calls[0].sent <= 100_001 < len(commit.files["model.safetensors"])


def test_a_revision_is_inspected_as_it_was(hub, folder):
    push_folder(folder, "user/tiny", revision="old")
    looked = run_inspect(InspectArguments("user/tiny", revision="old"))
    assert looked.commit == hub.repos["user/tiny"].branches["old"][-1].oid


def test_a_downloaded_repository_is_inspected_offline(hub, folder, monkeypatch):
    push_folder(folder, "user/tiny")
    assert main(["verify", "user/tiny"]) == 0
    before = len(hub.downloads("model.safetensors"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    looked = run_inspect(InspectArguments("user/tiny"))
    assert looked.commit == hub.repos["user/tiny"].branches["main"][-1].oid
    assert len(hub.downloads("model.safetensors")) == before


@pytest.mark.parametrize(
    "command, name, message",
    [
        ("inspect", "user/none", "There is no repository user/none, or it is private and the token cannot see it."),
        ("verify", "user/none", "There is no repository user/none, or it is private and the token cannot see it."),
        ("inspect", "user/tiny --revision=old", "user/tiny has no revision 'old'. Name a branch, a tag or a commit"),
        ("verify", "user/tiny --revision=old", "user/tiny has no revision 'old'. Name a branch, a tag or a commit"),
        ("inspect", "no/such/folder", "'no/such/folder' is neither a folder nor a valid repository name"),
    ],
    ids=["inspect none", "verify none", "inspect revision", "verify revision", "no folder"],
)
def test_unreadable_models_give_one_message(hub, folder, capsys, command, name, message):
    push_folder(folder, "user/tiny")
    assert main([command, *name.split()]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_private_repository_needs_a_token(hub, folder, monkeypatch, capsys):
    push_folder(folder, "user/tiny", private=True)
    monkeypatch.setenv("HF_TOKEN", "")
    assert main(["inspect", "user/tiny"]) == 1
    assert "Log in with `hf auth login`, or set HF_TOKEN" in capsys.readouterr().err


def test_without_network_and_cache_there_is_one_message(hub, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["inspect", "user/tiny"]) == 1
    assert "user/tiny cannot be reached, and is not in the cache." in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_named(hub, folder, monkeypatch, capsys):
    push_folder(folder, "user/tiny")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "config.json" / "cache"))  # a file is no folder
    assert main(["inspect", "user/tiny"]) == 1
    assert "config.json" in (error := capsys.readouterr().err)
    assert "cannot be read or written (Not a directory). Set HF_HUB_CACHE to a writable folder" in error


@pytest.mark.parametrize(
    "card",
    [
        "---\nmodel-index: 3\n---\n",
        "---\n: [\n---\n",
        "---\nmodel-index: [{results: [{}]}]\n---\n",
        "---\n3\n---\n",
        "",
        "\udcff",
    ],
    ids=["number", "no YAML", "no metrics", "no mapping", "empty", "no text"],
)
def test_a_card_that_cannot_be_read_records_nothing(folder, rows, capsys, card):
    (folder / "README.md").write_bytes(card.encode(errors="surrogateescape"))
    assert main(["verify", str(folder), f"--validation_file={rows}", "--max_length=32"]) == 0
    told = capsys.readouterr().out
    assert ("-", "recorded hash") in lines(told)
    assert "accuracy: 0.333333, not on the card" in told


def test_a_float_model_is_refused(hub, tiny_teacher, tmp_path, capsys):
    tiny_teacher.save_pretrained(tmp_path / "float")
    assert main(["inspect", str(tmp_path / "float")]) == 1
    assert "holds a float model (model_type 'bert'), not a packed one." in capsys.readouterr().err
    HfApi().create_repo("user/float")
    HfApi().upload_file(
        path_or_fileobj=tmp_path / "float" / "config.json", path_in_repo="config.json", repo_id="user/float"
    )
    for command in ("inspect", "verify"):
        assert main([command, "user/float"]) == 1
        assert "Compress it first: hf-xtc compress --teacher user/float" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["truncated", "missing", "another model's", "unknown architecture"])
def test_a_file_that_does_not_match_its_configuration_is_refused(folder, tiny_teacher, damage):
    file = folder / "model.safetensors"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:100])
    elif damage == "missing":
        file.unlink()
    elif damage == "another model's":
        pack_model(compress(tiny_teacher, XTCRecipe(keep_layers=3))).save_pretrained(folder / "three")
        (folder / "three" / "model.safetensors").rename(file)
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "architectures": ["XTCBertForPoetry"]}))
    with pytest.raises(PackedFileError):
        run_inspect(InspectArguments(str(folder)))


# verify


def lines(text):
    """State and name of each check."""
    return [tuple(line.split(":")[0].split(maxsplit=1)) for line in text.splitlines()]


def test_verify_accepts_an_intact_repository(hub, folder, rows, capsys):
    add_metric(folder, 1 / 3)
    push_folder(folder, "user/tiny")
    assert main(["verify", "user/tiny", f"--validation_file={rows}", "--max_length=32"]) == 0
    told = capsys.readouterr().out
    assert lines(told)[:4] == [("ok", "commit"), ("ok", "recorded hash"), ("ok", "ledger"), ("ok", "values")]
    assert ("ok", "accuracy") in lines(told)
    assert f"sha256 {weights_sha256(folder)}" in told
    assert "0.333333, on the card 0.333333" in told


def test_verifying_without_data_names_what_was_not_compared(folder, capsys):
    (folder / "README.md").unlink()
    assert main(["verify", str(folder)]) == 0
    expected = [("-", "commit"), ("-", "recorded hash"), ("ok", "ledger"), ("ok", "values"), ("-", "metrics")]
    assert lines(capsys.readouterr().out) == expected


def test_a_metric_that_differs_from_the_cards_is_an_error(folder, rows, capsys):
    add_metric(folder, 0.9)
    assert main(["verify", str(folder), f"--validation_file={rows}", "--max_length=32"]) == 1
    told, error = capsys.readouterr()
    assert ("DIFFERS", "accuracy") in lines(told)
    assert f"{folder} differs from what is recorded about it: accuracy." in error
    assert main(["verify", str(folder), f"--validation_file={rows}", "--max_length=32", "--tolerance=0.6"]) == 0


def test_changed_codes_are_found(hub, folder, tmp_path, capsys):
    """Changes the cached file after the download, with the right size and shape and only valid codes."""
    push_folder(folder, "user/tiny")
    assert main(["verify", "user/tiny"]) == 0
    capsys.readouterr()
    (blob,) = {path.resolve() for path in (tmp_path / "hub-cache").rglob("model.safetensors")}
    content = bytearray(blob.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    entry = json.loads(content[8:header])["bert.encoder.layer.0.attention.self.query.weight_packed"]
    content[header + entry["data_offsets"][0]] ^= 1
    blob.write_bytes(content)
    assert main(["verify", "user/tiny"]) == 1
    told, error = capsys.readouterr()
    assert ("DIFFERS", "commit") in lines(told)
    assert ("DIFFERS", "recorded hash") in lines(told)
    assert "content differs: model.safetensors" in told
    assert "user/tiny differs from what is recorded about it: commit, recorded hash." in error


def test_bytes_that_the_ledger_does_not_count_are_found(folder, capsys):
    with open(folder / "model.safetensors", "ab") as file:
        file.write(bytes(10))
    assert main(["verify", str(folder)]) == 1
    told, error = capsys.readouterr()
    assert [line for line in lines(told) if line[0] == "DIFFERS"] == [
        ("DIFFERS", "recorded hash"),
        ("DIFFERS", "ledger"),
        ("DIFFERS", "values"),
    ]
    assert "Traceback" not in error


def test_verifying_offline_does_not_compare_hashes_of_the_commit(hub, folder, monkeypatch, capsys):
    push_folder(folder, "user/tiny")
    assert main(["verify", "user/tiny"]) == 0
    capsys.readouterr()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["verify", "user/tiny"]) == 0
    told = capsys.readouterr().out
    assert lines(told)[:2] == [("-", "commit"), ("ok", "recorded hash")]
