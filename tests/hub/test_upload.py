"""Publishing over real HTTP: the published files, their commits, and that models load back bitwise equal."""

import io
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import huggingface_hub
import huggingface_hub.constants as constants
import pytest
import torch
import transformers
from commands import blocks
from families import make_batch
from families import make_teacher as make_family
from huggingface_hub import HfApi, ModelCard, snapshot_download
from huggingface_hub.errors import OfflineModeIsEnabled
from packaging.version import Version
from peft import LoraConfig, get_peft_model
from safetensors.torch import load
from trainers import DATA, make_args, make_trainer
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    BertTokenizerFast,
    pipeline,
    set_seed,
)

from hf_xtc import XTCBertForSequenceClassification, XTCRecipe, compress, pack_model
from hf_xtc.cli import main
from hf_xtc.errors import HubError, RecipeError, StateError, XTCError
from hf_xtc.hub.publish import write_model_card
from hf_xtc.hub.upload import FOLDER_ARGUMENT, push_folder, shipped_files

# huggingface_hub hands files to its HTTP client in a way that this one discourages.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

HEADS = {
    BertForSequenceClassification: AutoModelForSequenceClassification,
    BertForTokenClassification: AutoModelForTokenClassification,
    BertForQuestionAnswering: AutoModelForQuestionAnswering,
    BertForMaskedLM: AutoModelForMaskedLM,
    BertModel: AutoModel,
}
EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "minilm-3l-1bit-sst2"
FILES = {".gitattributes", "README.md", "config.json", "model.safetensors", "modeling_xtc.py"}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film"]


def tokenizer() -> BertTokenizerFast:
    return BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)}, model_max_length=40)


@pytest.fixture
def student(tiny_teacher):
    return compress(tiny_teacher, XTCRecipe(keep_layers=2))


@pytest.fixture
def folder(student, tmp_path):
    """A packed folder with a tokenizer, and files that must not be published."""
    path = tmp_path / "packed"
    pack_model(student).save_pretrained(path)
    tokenizer().save_pretrained(path)
    torch.save({"learning_rate": 1.0}, path / "training_args.bin")
    torch.save({}, path / "optimizer.pt")
    student.save_pretrained(path / "checkpoint-2")
    (path / "metrics.json").write_text("{}")
    return path


def outputs(model, batch):
    with torch.no_grad():
        return model(**batch).to_tuple()


def commits(hub, name="user/tiny", branch="main"):
    """The commits after the repository was created."""
    return hub.repos[name].branches[branch][1:]


def assert_packed(commit):
    """Asserts that a commit has no latent weight, optimizer state or pickle, in any folder."""
    assert all("/" not in path for path in commit.files)
    assert not [path for path in commit.files if path.endswith((".bin", ".pt", ".pth", ".pkl"))]
    tensors = load(commit.files["model.safetensors"])
    assert "bert.encoder.layer.0.attention.self.query.weight_packed" in tensors
    assert "bert.encoder.layer.0.attention.self.query.weight" not in tensors
    assert all(tensor.dtype in (torch.uint8, torch.float16, torch.float32) for tensor in tensors.values())


# Models


@pytest.mark.parametrize("weights", ["binary", "ternary"])
@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
def test_a_pushed_model_comes_back_bit_for_bit(hub, tiny_config, tiny_batch, head, weights):
    set_seed(0)
    tiny_config.num_labels = 2  # a start and an end, for question answering
    latent = compress(head(tiny_config).eval(), XTCRecipe(weights=weights, embedding_weights=weights, keep_layers=2))
    packed = pack_model(latent)
    commit = packed.push_to_hub("user/tiny")
    assert set(HfApi().list_repo_files("user/tiny")) == FILES
    assert [made.oid for made in commits(hub)] == [commit.oid]
    found = HEADS[head].from_pretrained("user/tiny", revision=commit.oid)
    assert type(found) is type(packed)
    for ours, theirs in zip(outputs(packed, tiny_batch), outputs(found, tiny_batch), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "family, head, auto",
    [
        ("mpnet", "MPNetModel", "AutoModel"),
        ("xlm-roberta", "XLMRobertaForTokenClassification", "AutoModelForTokenClassification"),
        ("distilbert", "DistilBertForSequenceClassification", "AutoModelForSequenceClassification"),
    ],
)
@pytest.mark.usefixtures("reference_backend")
def test_a_pushed_family_comes_back_with_and_without_the_package(hub, family, head, auto, tmp_path):
    """In another process, where hf_xtc cannot be imported, the repository's own code gives the same bits."""
    packed = pack_model(compress(make_family(family, head), XTCRecipe(keep_layers=2)).eval())
    packed.push_to_hub("user/tiny")
    assert set(HfApi().list_repo_files("user/tiny")) == FILES
    batch = make_batch(packed.config)
    found = getattr(transformers, auto).from_pretrained("user/tiny")
    assert type(found) is type(packed)
    expected = outputs(packed, batch)[0]
    assert torch.equal(outputs(found, batch)[0], expected)
    code = f"""
import io, sys, torch, transformers
sys.modules["hf_xtc"] = None
batch = torch.load(io.BytesIO(sys.stdin.buffer.read()))
model = transformers.{auto}.from_pretrained("user/tiny", trust_remote_code=True).eval()
torch.save(model(**batch)[0].detach(), sys.stdout.buffer)
"""
    home = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_user"}
    environment = {**os.environ, **home, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    sent = io.BytesIO()
    torch.save(batch, sent)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, input=sent.getvalue())
    assert torch.equal(torch.load(io.BytesIO(done.stdout)), expected)


@pytest.mark.usefixtures("reference_backend")
def test_a_latent_model_is_packed_first_and_stays_latent(hub, student, tiny_batch):
    student.push_to_hub("user/tiny", tokenizer=tokenizer(), private=True, tags="films", commit_message="First")
    (commit,) = commits(hub)
    assert_packed(commit)
    assert commit.message == "First"
    assert hub.repos["user/tiny"].private
    assert {"tokenizer.json", "tokenizer_config.json"} < set(commit.files)
    assert not student.packed
    found = AutoModelForSequenceClassification.from_pretrained("user/tiny")
    assert torch.equal(found(**tiny_batch).logits, pack_model(student)(**tiny_batch).logits)
    assert "films" in ModelCard.load("user/tiny").data.tags


def test_saving_with_push_to_hub_publishes_packed_and_keeps_the_state_on_disk(hub, student, tmp_path):
    student.save_pretrained(tmp_path / "tiny", push_to_hub=True, private=True)
    assert_packed(commits(hub)[0])
    assert hub.repos["user/tiny"].private
    assert not AutoModelForSequenceClassification.from_pretrained(tmp_path / "tiny").packed


def loaded_as_shown(card):
    """Runs the example of a card and returns its pipeline or, without one, its model."""
    (code,) = blocks(card, "python")
    assert len([line for line in code.splitlines() if line]) <= 3
    names: dict = {}
    exec(compile(code, "card", "exec"), names)
    return names["pipe"] if "pipe" in names else names["model"]


def test_card_states_the_known_facts_and_its_example_runs(hub, student):
    student.push_to_hub("user/tiny", tokenizer=tokenizer())
    card = ModelCard.load("user/tiny")
    card.validate()
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.license is None
    assert "Not measured." in card.text
    assert "- teacher license: not stated" in card.text
    assert loaded_as_shown(card.text)("good film")[0]["label"].startswith("LABEL_")


HEADS_WITHOUT_PIPELINE = [BertModel, BertForMultipleChoice]


@pytest.mark.parametrize("head", HEADS_WITHOUT_PIPELINE, ids=lambda head: head.__name__)
def test_a_model_without_a_pipeline_is_loaded_as_its_card_shows(hub, tiny_config, head):
    packed = pack_model(compress(head(tiny_config), XTCRecipe(keep_layers=2)))
    packed.push_to_hub("user/tiny")
    assert type(loaded_as_shown(ModelCard.load("user/tiny").text)) is type(packed)


def test_a_folders_card_shows_what_runs_there_and_a_pushed_one_what_runs_anywhere(hub, folder, monkeypatch, tmp_path):
    config = AutoConfig.from_pretrained(folder)
    write_model_card(config, XTCBertForSequenceClassification, folder, "packed")
    monkeypatch.chdir(folder)
    assert loaded_as_shown(Path("README.md").read_text())("good film")[0]["label"].startswith("LABEL_")
    push_folder(folder, "tiny")
    monkeypatch.chdir(tmp_path)
    card = ModelCard.load("user/tiny")
    assert 'pipe = pipeline("text-classification", "user/tiny")\n' in card.text
    assert loaded_as_shown(card.text)("good film")[0]["label"].startswith("LABEL_")
    push_folder(folder, "user/tiny")
    assert len(commits(hub)) == 1, "the same card again"


# The teacher and its licence


def test_a_licence_is_taken_from_the_card_in_the_teachers_folder(hub, tiny_teacher, tmp_path):
    tiny_teacher.save_pretrained(tmp_path / "teacher")
    (tmp_path / "teacher" / "README.md").write_text("---\nlicense: mit\n---\n# Teacher\n")
    teacher = BertForSequenceClassification.from_pretrained(tmp_path / "teacher")
    compress(teacher, XTCRecipe(keep_layers=2)).push_to_hub("user/tiny")
    card = ModelCard.load("user/tiny")
    assert (card.data.license, card.data.base_model) == ("mit", None)
    assert "- teacher: teacher\n- teacher license: mit\n" in card.text


def test_a_licence_is_taken_from_the_teachers_card_on_the_hub(hub, tiny_teacher, tmp_path, monkeypatch):
    tiny_teacher.save_pretrained(tmp_path / "teacher")
    card = "---\nlicense:\n- apache-2.0\n- cc-by-4.0\n---\n"
    (tmp_path / "teacher" / "README.md").write_text(card)
    HfApi().create_repo("user/teacher")
    HfApi().upload_folder(repo_id="user/teacher", folder_path=tmp_path / "teacher")
    teacher = BertForSequenceClassification.from_pretrained("user/teacher")
    student = compress(teacher, XTCRecipe(keep_layers=2))
    student.push_to_hub("user/tiny")
    card = ModelCard.load("user/tiny")
    assert (card.data.license, card.data.base_model) == (["apache-2.0", "cc-by-4.0"], "user/teacher")
    assert "- teacher: user/teacher\n- teacher license: apache-2.0; cc-by-4.0\n" in card.text
    monkeypatch.setattr("hf_xtc.compression.origin.hf_hub_download", Mock(side_effect=OfflineModeIsEnabled("offline")))
    student.push_to_hub("user/tiny")
    card = ModelCard.load("user/tiny")
    assert (card.data.license, card.data.base_model) == (None, "user/teacher")
    assert "- teacher license: not stated" in card.text


@pytest.mark.parametrize("license", ["Apache 2.0", "{a: b}", "[1, 2]", "''", "'<b>mine</b>: --- x'"])
def test_an_unknown_licence_is_not_in_the_metadata(hub, tiny_teacher, tmp_path, license):
    tiny_teacher.save_pretrained(tmp_path / "teacher")
    (tmp_path / "teacher" / "README.md").write_text(f"---\nlicense: {license}\n---\n")
    teacher = BertForSequenceClassification.from_pretrained(tmp_path / "teacher")
    compress(teacher, XTCRecipe(keep_layers=2)).push_to_hub("user/tiny")
    card = ModelCard.load("user/tiny")
    assert card.data.license is None
    assert "- teacher license: " in card.text
    assert "<b>" not in card.text


def test_metadata_that_the_hub_refuses_gives_one_message(hub, folder, capsys):
    (folder / "README.md").write_text("---\nlicense: mine\n---\n")
    assert main(["push", str(folder), "user/tiny"]) == 1
    error = capsys.readouterr().err
    assert 'The Hub refuses the metadata of README.md: "license" must be one of [apache-2.0, ' in error
    assert "Nothing was published; correct it and push again." in error
    assert commits(hub) == []


def test_a_name_without_an_owner_belongs_to_the_user(hub, student):
    student.push_to_hub("tiny", private=True)
    (commit,) = commits(hub)
    assert hub.repos["user/tiny"].private
    assert '"user/tiny"' in commit.files["README.md"].decode()


def test_a_second_push_commits_only_changed_files(hub, student):
    student.push_to_hub("user/tiny", tokenizer=tokenizer())
    student.push_to_hub("user/tiny", tokenizer=tokenizer())
    assert len(commits(hub)) == 1
    with torch.no_grad():
        student.classifier.bias += 1
    commit = student.push_to_hub("user/tiny", tokenizer=tokenizer())
    first, second = commits(hub)
    assert second.oid == commit.oid
    if Version(huggingface_hub.__version__) >= Version("1.17"):  # before it, files that did not change go along
        assert second.changed == ("README.md", "model.safetensors")  # the card holds the file's hash
    assert second.files.keys() == first.files.keys()


def test_weights_of_an_earlier_model_are_removed(hub, student):
    packed = pack_model(student)
    packed.push_to_hub("user/tiny", max_shard_size="4KB")
    shards = {path for path in commits(hub)[0].files if path.startswith("model-")}
    assert len(shards) > 1
    packed.push_to_hub("user/tiny")
    assert set(commits(hub)[1].files) == FILES
    assert shards < set(commits(hub)[1].changed)


def test_code_of_an_earlier_version_is_replaced(hub, student):
    """The committed example has code of an earlier version; pushing a model to its repository replaces that code."""
    push_folder(EXAMPLE, "user/tiny")
    student.push_to_hub("user/tiny")
    first, second = ({path for path in commit.files if path.startswith("modeling_")} for commit in commits(hub))
    assert (first, second) == ({"modeling_xtc_bert.py"}, {"modeling_xtc.py"})
    AutoModelForSequenceClassification.from_pretrained("user/tiny")


def test_a_revision_is_a_branch_that_is_made(hub, student):
    student.push_to_hub("user/tiny", revision="next")
    assert commits(hub) == []
    assert_packed(commits(hub, branch="next")[0])
    AutoModelForSequenceClassification.from_pretrained("user/tiny", revision="next")


# Folders


def test_a_folder_publishes_model_tokenizer_and_card_alone(hub, folder, capsys):
    (folder / "README.md").write_text("---\ntags: [mine]\n---\n# Mine\n")
    assert main(["push", str(folder), "user/tiny", "--commit_message=Mine", "--private"]) == 0
    (commit,) = commits(hub)
    assert capsys.readouterr().out.strip().endswith(f"/user/tiny/commit/{commit.oid}")
    assert set(commit.files) == FILES | {"tokenizer.json", "tokenizer_config.json"}
    assert commit.files["README.md"] == (folder / "README.md").read_bytes()
    assert_packed(commit)


def test_a_downloaded_snapshot_equals_the_folder(hub, folder):
    push_folder(folder, "user/tiny")
    copy = snapshot_download("user/tiny")
    for name, content in shipped_files(folder).items():
        assert Path(copy, name).read_bytes() == content


def test_a_folder_without_a_card_gets_one(hub, folder):
    assert main(["push", str(folder), "user/tiny"]) == 0
    here = ModelCard.load(folder / "README.md").text
    assert ModelCard.load("user/tiny").text == here.replace(FOLDER_ARGUMENT, '"user/tiny")')
    assert 'pipeline("text-classification", "user/tiny")' in ModelCard.load("user/tiny").text


@pytest.mark.parametrize("state", ["float", "latent", "nothing"])
def test_what_is_not_packed_is_refused_before_anything_is_sent(hub, tiny_teacher, student, tmp_path, capsys, state):
    path = tmp_path / "model"
    path.mkdir()
    if state != "nothing":
        (tiny_teacher if state == "float" else student).save_pretrained(path)
    assert main(["push", str(path), "user/tiny"]) == 1
    expected = {
        "float": "holds a float model (model_type 'bert'), not a packed one. Compress it first: hf-xtc compress",
        "latent": "holds a latent model: float weights, for training. Load it, and save pack_model(model) instead.",
        "nothing": "holds no model: config.json cannot be read",
    }
    assert expected[state] in capsys.readouterr().err
    assert hub.repos == {}


def test_a_damaged_folder_is_refused(hub, folder, capsys):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:100])
    assert main(["push", str(folder), "user/tiny"]) == 1
    assert "the weights cannot be read" in capsys.readouterr().err
    assert hub.repos == {}


# Failures


def test_an_upload_cut_in_the_middle_is_resumed(hub, folder, monkeypatch):
    pytest.importorskip("huggingface_hub", minversion="1.25", reason="does not try again")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits before it tries again
    hub.cuts = 2
    push_folder(folder, "user/tiny")
    assert hub.cuts == 0
    assert len(commits(hub)) == 1


@pytest.mark.parametrize("failure", ["cuts", "refused_commits"])
def test_a_failed_upload_publishes_nothing_and_may_be_retried(hub, folder, monkeypatch, failure):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    setattr(hub, failure, 1000)
    before = sorted(folder.rglob("*"))
    with pytest.raises(HubError, match=r"user/tiny.*Nothing was published"):
        push_folder(folder, "user/tiny")
    assert commits(hub) == []
    assert sorted(folder.rglob("*")) == before
    setattr(hub, failure, 0)
    push_folder(folder, "user/tiny")
    (commit,) = commits(hub)
    assert_packed(commit)


@pytest.mark.parametrize(
    "token, repo_id, message",
    [
        ("", "user/tiny", "The Hub refused access to user/tiny: there is no valid token"),
        ("hf_old", "user/tiny", "The Hub refused access to user/tiny: there is no valid token"),
        ("hf_stranger", "user/tiny", "The Hub refused access to user/tiny: the token lacks the permission"),
        ("hf_user", "user/tiny/model", "'user/tiny/model' is neither a folder nor a valid repository name"),
        ("hf_user", "user/ti ny", "'user/ti ny' is neither a folder nor a valid repository name"),
    ],
    ids=["no token", "old token", "no permission", "two names", "space"],
)
def test_hub_errors_state_cause_and_next_step(hub, folder, monkeypatch, capsys, token, repo_id, message):
    monkeypatch.setenv("HF_TOKEN", token)
    assert main(["push", str(folder), repo_id]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert hub.repos == {}


@pytest.mark.parametrize("offline", [True, False], ids=["offline", "no server"])
def test_without_network_nothing_is_published(hub, folder, monkeypatch, offline):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    message = "HF_HUB_OFFLINE is set. Unset it" if offline else "local files are unchanged; try again"
    with pytest.raises(HubError, match=message):
        push_folder(folder, "user/tiny")


def test_a_trainer_publishes_in_private(hub, tmp_path):
    trainer = make_trainer(tmp_path / "out", hub_model_id="user/out", max_steps=1)
    trainer.push_to_hub(private=True)
    assert hub.repos["user/out"].private
    assert trainer.args.hub_private_repo is None


# Reading


def test_a_private_repository_needs_a_token(hub, student, monkeypatch):
    student.push_to_hub("user/tiny", private=True)
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(OSError, match=r"private|gated|not a valid model identifier"):
        AutoModelForSequenceClassification.from_pretrained("user/tiny")
    AutoModelForSequenceClassification.from_pretrained("user/tiny", token="hf_user")


def test_a_wrong_revision_is_an_error(hub, student):
    student.push_to_hub("user/tiny")
    with pytest.raises(OSError, match="nowhere"):
        AutoModelForSequenceClassification.from_pretrained("user/tiny", revision="nowhere")


def test_a_warm_cache_serves_offline_and_is_not_written_to(hub, folder, tmp_path, monkeypatch, tiny_batch):
    push_folder(folder, "user/tiny")
    first = AutoModelForSequenceClassification.from_pretrained("user/tiny")
    pipeline("text-classification", "user/tiny")
    cache = tmp_path / "hub-cache"
    places = [cache, *cache.rglob("*")]
    for place in places:
        place.chmod(0o555 if place.is_dir() else 0o444)
    before = {place: place.stat().st_mtime_ns for place in places}
    for offline in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        again = AutoModelForSequenceClassification.from_pretrained("user/tiny")
        assert torch.equal(first(**tiny_batch).logits, again(**tiny_batch).logits)
        pipeline("text-classification", "user/tiny")("good film")
    assert {place: place.stat().st_mtime_ns for place in [cache, *cache.rglob("*")]} == before
    for place in reversed(places):
        place.chmod(0o755)


def test_push_and_pull_work_in_other_processes(hub, folder, tmp_path, tiny_batch):
    """The console command and `from_pretrained`, each in a new process that only gets environment variables."""
    home = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_user"}
    environment = {**os.environ, **home, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "hf_xtc", "push", str(folder), "user/tiny"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    code = """
import io, sys, torch, hf_xtc
from transformers import AutoModelForSequenceClassification
batch = torch.load(io.BytesIO(sys.stdin.buffer.read()))
model = AutoModelForSequenceClassification.from_pretrained("user/tiny")
torch.save(model(**batch).logits.detach(), sys.stdout.buffer)
"""
    sent = io.BytesIO()
    torch.save(tiny_batch, sent)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, input=sent.getvalue()
    )
    here = AutoModelForSequenceClassification.from_pretrained(folder)
    assert torch.equal(torch.load(io.BytesIO(done.stdout)), here(**tiny_batch).logits)


# The Trainer


@pytest.mark.usefixtures("reference_backend")
def test_a_trainer_publishes_packed_models_only(hub, tmp_path):
    every = {"push_to_hub": True, "hub_model_id": "tiny", "hub_strategy": "every_save", "hub_always_push": True}
    trainer = make_trainer(
        tmp_path / "out",
        **every,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        processing_class=tokenizer(),
    )
    assert commits(hub) == []
    trainer.train()
    during = len(commits(hub))
    assert during == 2
    commit = trainer.push_to_hub(license="apache-2.0", tags="films")
    for made in commits(hub):
        assert_packed(made)
        assert {"README.md", "tokenizer.json"} < set(made.files)
    assert commits(hub)[-1].oid == commit.oid
    assert [made.message for made in commits(hub)] == [
        "Training in progress, step 2",
        "Training in progress, step 4",
        "End of training",
    ]
    assert (tmp_path / "out" / "checkpoint-4" / "optimizer.pt").is_file()
    found = AutoModelForSequenceClassification.from_pretrained("user/tiny")
    batch = {key: torch.tensor([DATA[0][key]]) for key in ("input_ids", "attention_mask")}
    assert torch.equal(found(**batch).logits, pack_model(trainer.model)(**batch).logits)


def test_a_trainers_card_has_its_last_metrics(hub, tmp_path):
    trainer = make_trainer(tmp_path / "out", max_steps=1)
    trainer.train()
    measured = trainer.evaluate()
    trainer.push_to_hub(license="apache-2.0", tags="films", dataset="reviews")
    card = ModelCard.load("user/out")
    assert card.data.license == "apache-2.0"
    assert card.data.datasets == "reviews"
    assert "films" in card.data.tags
    assert f"| loss | {measured['eval_loss']:.4f} |" in card.text
    assert "- training: steps 1, epochs" in card.text
    assert "TinyBERT" in card.text


def test_a_trainers_card_has_the_metrics_of_all_evaluation_sets(hub, tmp_path):
    trainer = make_trainer(tmp_path / "out", max_steps=1, eval_dataset={"a": DATA[:4], "b": DATA[4:8]})
    trainer.train()
    measured = trainer.evaluate()
    trainer.push_to_hub()
    card = ModelCard.load("user/out").text
    assert f"| a_loss | {measured['eval_a_loss']:.4f} |" in card
    assert f"| b_loss | {measured['eval_b_loss']:.4f} |" in card


def test_saving_a_model_publishes_it_where_the_arguments_say_so(hub, tmp_path):
    trainer = make_trainer(tmp_path / "out", push_to_hub=True, hub_strategy="end", max_steps=1, save_strategy="steps")
    trainer.train()
    assert commits(hub, "user/out") == []
    trainer.save_model()
    (commit,) = commits(hub, "user/out")
    assert commit.message == "Model save"
    assert_packed(commit)


def test_a_push_in_the_background(hub, tmp_path):
    trainer = make_trainer(tmp_path / "out", max_steps=1)
    job = trainer.push_to_hub(blocking=False)
    assert job.result().oid == commits(hub, "user/out")[0].oid


def test_a_push_that_fails_during_training_does_not_end_it(hub, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    trainer = make_trainer(tmp_path / "out", push_to_hub=True, max_steps=2, save_strategy="steps", save_steps=2)
    hub.refused_commits = 1000
    trainer.train()
    assert "A push during training failed; training continues: The Hub refused" in caplog.text
    with pytest.raises(HubError, match="Nothing was published"):
        trainer.push_to_hub()
    hub.refused_commits = 0
    trainer.push_to_hub()
    assert len(commits(hub, "user/out")) == 1


def test_a_trainer_without_access_stops_before_training(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(HubError, match="there is no valid token"):
        make_trainer(tmp_path / "out", push_to_hub=True)


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_checkpoints_are_not_published(tmp_path, strategy):
    with pytest.raises(
        RecipeError, match=f"^hub_strategy='{strategy}' would publish checkpoints: float latent weights"
    ):
        make_args(tmp_path, push_to_hub=True, hub_strategy=strategy)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
@pytest.mark.parametrize("kind", ["float", "adapters"])
def test_a_model_that_is_not_a_student_is_refused_by_a_trainer(hub, tmp_path, student, kind):
    config = BertConfig(vocab_size=101, hidden_size=36, num_hidden_layers=1, num_attention_heads=4, num_labels=3)
    model, message = BertForSequenceClassification(config), r"is a float model.*\(hf-xtc compress, or compress\(model"
    if kind == "adapters":
        model = get_peft_model(student, LoraConfig(target_modules=["query"], task_type="SEQ_CLS"))
        message = r"has adapters.*: trainer\.model\.push_to_hub\('user/name'\)"
    options = {"student": model, "teacher_model": None, "terms": {"labels": 1.0}, "max_steps": 1}
    with pytest.raises(XTCError, match=message):
        make_trainer(tmp_path / "out", **options, push_to_hub=True)
    trainer = make_trainer(tmp_path / "out", **options)
    with pytest.raises(XTCError, match=message):
        trainer.push_to_hub()
    assert hub.repos == {}
    trainer.model.push_to_hub("user/own")
    assert not [path for commit in commits(hub, "user/own") for path in commit.files if path.endswith(".bin")]


def test_a_student_without_quantized_weights_is_published_in_the_packed_form(hub, tmp_path, tiny_teacher, tiny_batch):
    recipe = XTCRecipe(weights=None, embedding_weights=None, position_weights=None, rest_dtype="float32")
    student = compress(tiny_teacher, recipe)
    make_trainer(tmp_path / "out", student=student, terms={"labels": 1.0}, max_steps=1).push_to_hub()
    (commit,) = commits(hub, "user/out")
    assert not [path for path in commit.files if path.endswith(".bin")]
    found = AutoModelForSequenceClassification.from_pretrained("user/out")
    assert found.packed
    assert torch.equal(found(**tiny_batch).logits, student.eval()(**tiny_batch).logits)


def test_errors_are_ours():
    assert issubclass(HubError, XTCError)
    assert not issubclass(HubError, StateError)
