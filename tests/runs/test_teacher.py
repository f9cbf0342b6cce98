"""Teachers of a run: the folder of an adapter means its base with the adapter merged."""

import json
import shutil
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from huggingface_hub import HfApi
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel, BertTokenizerFast, set_seed

from hf_xtc import XTCRecipe, compress, pack_model
from hf_xtc.cli import main
from hf_xtc.errors import HubError, StateError, XTCError
from hf_xtc.runs.fingerprint import model_digest
from hf_xtc.runs.teacher import load_config, load_model, load_tokenizer, teacher_origin, teacher_title

# PEFT 0.21 asks a property of models that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

load_classifier = partial(load_model, auto_class=AutoModelForSequenceClassification)
WORDS = ["good", "bad", "so", "film", "plot"]
VOCAB = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
SHAPE = {"hidden_size": 36, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 50}


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """`base`, an encoder without a head, and `adapter`, LoRA and a head of three labels on it."""
    monkeypatch.chdir(tmp_path)
    set_seed(0)
    BertModel(BertConfig(vocab_size=len(VOCAB), max_position_embeddings=40, **SHAPE)).save_pretrained("base")
    BertTokenizerFast(vocab=VOCAB, model_max_length=40).save_pretrained("base")
    base = AutoModelForSequenceClassification.from_pretrained("base", num_labels=3)
    options = {"target_modules": ["query", "dense"], "r": 2, "task_type": "SEQ_CLS", "init_lora_weights": False}
    get_peft_model(base, LoraConfig(**options)).save_pretrained("adapter")
    return tmp_path


def adapter_config(**changes):
    file = Path("adapter/adapter_config.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def logits(model, tokenizer):
    with torch.no_grad():
        return model.eval()(**tokenizer(["good film", "so bad a plot"], padding=True, return_tensors="pt")).logits


def test_an_adapter_is_merged_into_the_base_that_it_names(folders):
    assert load_config("adapter").num_labels == 3
    tokenizer, model = load_tokenizer("adapter"), load_classifier("adapter", num_labels=3)
    assert type(model).__name__ == "BertForSequenceClassification"
    assert not any("lora" in name for name in model.state_dict())
    base = AutoModelForSequenceClassification.from_pretrained("base", num_labels=3)
    expected = logits(PeftModel.from_pretrained(base, "adapter"), tokenizer)
    torch.testing.assert_close(logits(model, tokenizer), expected, atol=1e-5, rtol=0)
    assert teacher_title("adapter") == "base with the adapter adapter"


def test_an_adapters_own_tokenizer_is_used(folders):
    BertTokenizerFast(vocab={**VOCAB, "new": len(VOCAB)}).save_pretrained("adapter")
    assert "new" in load_tokenizer("adapter").get_vocab()


def test_the_digest_is_that_of_adapter_and_base(folders):
    def weights():
        return model_digest(load_config("adapter"), load_classifier("adapter", num_labels=3))["weights"]

    digests = [weights(), weights()]
    assert digests[0] == digests[1]
    adapter_config(lora_alpha=3)
    digests.append(weights())
    BertModel(BertConfig(vocab_size=len(VOCAB), **SHAPE)).save_pretrained("base")
    digests.append(weights())
    assert len(set(digests)) == 3


def test_the_adapters_licence_overrides_the_bases(folders):
    (folders / "base" / "README.md").write_text("---\nlicense: mit\n---\n")
    assert teacher_origin("adapter") == {"teacher_license": "mit"}
    (folders / "adapter" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert teacher_origin("adapter") == {"teacher_license": "apache-2.0"}


def test_a_run_compresses_what_the_adapter_makes_of_its_base(folders, capsys):
    table = pd.DataFrame({"text": ["good film", "bad plot", "so so"] * 8, "label": ["good", "bad", "so"] * 8})
    for split in ("train", "validation"):
        table.to_csv(f"{split}.csv", index=False)
    data = ["--train_file=train.csv", "--validation_file=validation.csv"]
    quick = ["--use_cpu", "--max_steps=1", "--max_length=16", "--disable_tqdm=True"]
    assert main(["compress", "--teacher=adapter", "--output_dir=out", "--keep_layers=2", *data, *quick]) == 0
    config = json.loads((folders / "out" / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good", "2": "so"}
    assert config["xtc"]["provenance"]["teacher"] == "base with the adapter adapter"
    shutil.rmtree("base")
    assert main(["compress", "--teacher=adapter", "--output_dir=out2", *data, *quick]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("hf-xtc: adapter holds an adapter of base, which cannot be loaded: ")
    assert error.endswith("the folder or the Hub id of the model that it was trained on.")
    assert not (folders / "out2").exists()


@pytest.mark.parametrize("load", [load_config, load_tokenizer, load_classifier])
@pytest.mark.parametrize("base", [None, "", "nowhere"])
def test_a_base_that_cannot_be_found_is_one_error(folders, load, base):
    adapter_config(base_model_name_or_path=base)
    with pytest.raises(XTCError, match=r"does not say what base model|of nowhere, which cannot be loaded"):
        load("adapter")


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_a_configuration_that_cannot_be_read_is_one_error(folders, content):
    (folders / "adapter" / "adapter_config.json").write_text(content)
    with pytest.raises(XTCError, match=r"adapter_config.json does not say what base model the adapter is for"):
        load_config("adapter")


def test_an_adapter_of_another_shape_is_refused(folders):
    wide = BertConfig(vocab_size=len(VOCAB), **{**SHAPE, "hidden_size": 48})
    BertModel(wide).save_pretrained("base")
    with pytest.raises(XTCError, match=r"^The adapter in adapter does not fit its base model Bert"):
        load_classifier("adapter", num_labels=3)


def test_prompts_cannot_be_merged(folders):
    base = AutoModelForSequenceClassification.from_pretrained("base", num_labels=3)
    get_peft_model(base, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)).save_pretrained("adapter")
    with pytest.raises(XTCError, match=r"of a kind that cannot be merged into weights: PROMPT_TUNING\.$"):
        load_classifier("adapter", num_labels=3)


def test_a_packed_base_is_refused(folders):
    base = AutoModelForSequenceClassification.from_pretrained("base", num_labels=3)
    pack_model(compress(base, XTCRecipe())).save_pretrained("base")
    with pytest.raises(StateError, match="cannot be merged into packed weights"):
        load_classifier("adapter", num_labels=3)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(XTCError, match=r"^There is no folder .*missing\. Give the folder or the Hub id"):
        load_config(str(tmp_path / "missing"))


def edit_adapter(change):
    tensors = load_file("adapter/adapter_model.safetensors")
    change(tensors)
    save_file(tensors, "adapter/adapter_model.safetensors")


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_an_adapter_with_missing_tensors_is_refused(folders):
    edit_adapter(lambda tensors: tensors.pop(next(name for name in tensors if "lora_A" in name)))
    with pytest.raises(XTCError, match=r"does not hold 1 tensors that its adapter_config.json promises"):
        load_classifier("adapter", num_labels=3)


def test_an_adapter_with_nan_or_infinite_weights_is_refused(folders):
    edit_adapter(lambda tensors: tensors[next(name for name in tensors if "lora_B" in name)].fill_(float("nan")))
    with pytest.raises(XTCError, match="holds NaN or infinite values"):
        load_classifier("adapter", num_labels=3)


def test_an_adapter_is_never_unpickled(folders):
    tensors = load_file("adapter/adapter_model.safetensors")
    torch.save(tensors, "adapter/adapter_model.bin")
    Path("adapter/adapter_model.safetensors").unlink()
    with pytest.raises(XTCError, match=r"adapter_model.safetensors is truncated or not a safetensors file"):
        load_classifier("adapter", num_labels=3)


@pytest.mark.parametrize(
    "changes",
    [
        {"r": 10**12},
        {"r": -1},
        {"r": "x"},
        {"target_modules": "(.*)*x"},
        {"target_modules": {"a": {}}},
        {"rank_pattern": {"(.*)*x": 2}},
        {"peft_type": "unheard of"},
        {"lora_alpha": None},
        {"alora_invocation_tokens": [1, 2]},
    ],
    ids=str,
)
def test_a_configuration_that_peft_cannot_take_is_one_error(folders, changes):
    adapter_config(**changes)
    with pytest.raises(XTCError):
        load_classifier("adapter", num_labels=3)


@pytest.mark.parametrize("load", [load_config, load_tokenizer])
def test_a_repository_or_revision_that_does_not_exist_is_one_sentence(hub, load):
    with pytest.raises(HubError, match=r"^There is no repository user/none, or it is private"):
        load("user/none")
    hub_api = HfApi()
    hub_api.create_repo("user/empty")
    with pytest.raises(HubError, match=r"^user/empty has no revision 'no-such'\. Name a branch, a tag or a commit"):
        load("user/empty", "no-such")


@pytest.mark.parametrize("load", [load_config, load_tokenizer])
def test_a_name_that_is_neither_folder_nor_repository_is_one_sentence(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"^'no/such/folder' is neither a folder nor a valid repository name\."):
        load("no/such/folder")
    with pytest.raises(HubError, match=r"^user/name cannot be reached, and is not in the cache\."):
        load("user/name")
    Path("file").touch()
    with pytest.raises(XTCError, match=r"^file is a file\. Give the folder of the model"):
        load("file")
