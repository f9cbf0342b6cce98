"""A model that lacks a head, a vocabulary or a consistent configuration is refused before anything is written."""

import json
import logging
import shutil
from types import SimpleNamespace

import pytest
import torch
from compress_options import QUICK, VOCAB, data_options
from compress_options import folder as folder
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertTokenizerFast

from hf_xtc import XTCRecipe, compress, pack_model
from hf_xtc.cli import main
from hf_xtc.errors import XTCError
from hf_xtc.runs.model_checks import check_config, check_tokenizer, check_weights

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = {"vocab_size": len(VOCAB), "max_position_embeddings": 40}


@pytest.fixture
def model(folder, tmp_path, monkeypatch):
    """A copy of the teacher's folder, `model` in the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder / "teacher", "model")
    return tmp_path / "model"


def edit_config(model, **changes):
    values = json.loads((model / "config.json").read_text())
    values.update(changes)
    (model / "config.json").write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def without_vocabulary(model):
    (model / "tokenizer.json").unlink()


def without_tokenizer(model):
    for file in model.glob("tokenizer*"):
        file.unlink()


def without_head(model):
    weights = load_file(model / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("classifier.")}
    save_file(kept, model / "model.safetensors", metadata={"format": "pt"})


def without_a_layer(model):
    weights = load_file(model / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layer.2.output" not in name}
    save_file(kept, model / "model.safetensors", metadata={"format": "pt"})


def without_padding(model):
    file = model / "tokenizer_config.json"
    values = {**json.loads(file.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}
    values.pop("pad_token")
    file.write_text(json.dumps(values))


def edit_weight(model, change):
    weights = load_file(model / "model.safetensors")
    weights["classifier.weight"] = change(weights["classifier.weight"])
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def without_unknown(model):
    values = json.loads((model / "tokenizer.json").read_text())
    values["model"]["vocab"].pop("[UNK]")
    values["added_tokens"] = [token for token in values["added_tokens"] if token["content"] != "[UNK]"]
    (model / "tokenizer.json").write_text(json.dumps(values))


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n"
REFUSED = {
    "list": (lambda model: (model / "config.json").write_text("[]"), "model/config.json is not a JSON object;"),
    "no config": (lambda model: (model / "config.json").unlink(), "model holds no model: config.json cannot be read"),
    "truncated": (
        lambda model: (model / "model.safetensors").write_bytes(b"x"),
        "The model model cannot be loaded: Error while deserializing header: header too small",
    ),
    "pointer": (
        lambda model: (model / "model.safetensors").write_text(POINTER),
        "The model model cannot be loaded: model.safetensors is a pointer of Git LFS, not its content. Run git lfs",
    ),
    "tokenizer file": (
        lambda model: (model / "tokenizer.json").write_text("{"),
        "The tokenizer of model cannot be loaded: Expecting property name",
    ),
    "unknown words": (
        without_unknown,
        "The tokenizer of model fails on a word that it does not know: WordPiece error",
    ),
    "NaN": (
        lambda model: edit_weight(model, lambda weight: weight / 0),
        "The weights of model hold NaN or infinite values (in classifier.weight).",
    ),
    "shape": (
        lambda model: edit_weight(model, lambda weight: weight[:, :30].clone()),
        "The weights of model do not fit its config.json: classifier.weight has the shape (2, 30), and is to have "
        "(2, 36).",
    ),
    "depth": (
        lambda model: edit_config(model, num_hidden_layers=0),
        "The config.json of model says num_hidden_layers=0.",
    ),
    "label numbers": (
        lambda model: edit_config(model, id2label={"0": 5, "1": 7}),
        "The config.json of model has id2label={0: 5, 1: 7}, which does not map numbers to names.",
    ),
    "label words": (
        lambda model: edit_config(model, label2id={"positive": "zero", "negative": "one"}),
        "The config.json of model has label2id={'positive': 'zero', 'negative': 'one'}, which does not map names to",
    ),
    "head": (without_head, "model has no trained head: classifier.bias, classifier.weight are not in its weights."),
    "layer": (without_a_layer, "The weights of model lack 4 tensors of BertForSequenceClassification (first: bert."),
    "vocabulary": (without_vocabulary, "model has no vocabulary: its tokenizer knows 5 special tokens and no word"),
    "tokenizer": (without_tokenizer, "model has no vocabulary: its tokenizer knows 5 special tokens and no word"),
    "padding": (without_padding, "The tokenizer of model has no padding token, which batches need."),
    "type": (lambda model: edit_config(model, model_type=None), "The configuration of model cannot be loaded: "),
    "unknown": (lambda model: edit_config(model, model_type="tiny"), "The configuration of model cannot be loaded: "),
    "multi-label": (
        lambda model: edit_config(model, problem_type="multi_label_classification"),
        "model is a model for multi-label-classification, but ",
    ),
    "names": (
        lambda model: edit_config(model, label2id={"positive": 1, "negative": 0}),
        "The config.json of model contradicts itself: id2label is {0: 'positive', 1: 'negative'}, label2id is "
        "{'positive': 1, 'negative': 0}. Correct the one that is wrong.",
    ),
}


@pytest.mark.parametrize("damage, message", REFUSED.values(), ids=REFUSED)
def test_a_model_that_cannot_be_used_is_refused_and_nothing_is_written(folder, model, damage, message, capsys):
    damage(model)
    assert main(["compress", "--teacher=model", "--output_dir=out", *data_options(folder), *QUICK]) == 1
    error = capsys.readouterr().err
    assert [line for line in error.splitlines() if line.startswith(f"hf-xtc: {message}")], error
    assert "Traceback" not in error
    assert not (model.parent / "out").exists()
    assert main(["evaluate", "--model=model", *data_options(folder), "--max_length=32"]) == 1
    assert f"hf-xtc: {message}" in capsys.readouterr().err


def test_a_packed_model_is_no_teacher(folder, model, capsys):
    teacher = BertForSequenceClassification.from_pretrained(model)
    pack_model(compress(teacher, XTCRecipe(keep_layers=1))).save_pretrained(model)
    assert main(["compress", "--teacher=model", "--output_dir=out", *data_options(folder), *QUICK]) == 1
    text = "hf-xtc: model holds a packed model, which cannot teach. Name the float model it was made of.\n"
    assert capsys.readouterr().err.endswith(text)
    assert not (model.parent / "out").exists()


def test_rows_longer_than_the_positions_are_refused(folder, model, capsys):
    tokenizer = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "model_max_length": 10**30}))
    options = [option for option in QUICK if "max_length" not in option]
    assert main(["compress", "--teacher=model", "--output_dir=out", *data_options(folder), *options]) == 1
    text = "hf-xtc: max_length is 128, but model has positions for 40 tokens. Pass --max_length 40.\n"
    assert text in capsys.readouterr().err
    assert not (model.parent / "out").exists()


def test_a_missing_label2id_is_derived_from_id2label(folder, model, capsys):
    edit_config(model, label2id=None)
    assert main(["evaluate", "--model=model", *data_options(folder), "--max_length=32"]) == 0
    assert "accuracy" in capsys.readouterr().out


def test_a_validation_file_alone_is_enough_to_evaluate(folder, model, capsys):
    assert (
        main(["evaluate", "--model=model", f"--validation_file={folder / 'validation.csv'}", "--max_length=32"]) == 0
    )
    alone = capsys.readouterr().out
    assert main(["evaluate", "--model=model", *data_options(folder), "--max_length=32"]) == 0
    assert alone == capsys.readouterr().out
    assert main(["evaluate", "--model=model"]) == 1
    text = "hf-xtc: There is nothing to evaluate on. Pass --task_name, --dataset_name or --validation_file.\n"
    assert capsys.readouterr().err.endswith(text)


def test_switches_of_a_teachers_config_change_nothing(folder, model, capsys):
    edit_config(model, return_dict=False, output_hidden_states=True, output_attentions=True)
    assert main(["evaluate", "--model=model", *data_options(folder), "--max_length=32"]) == 0
    switched = capsys.readouterr().out
    assert main(["evaluate", f"--model={folder / 'teacher'}", *data_options(folder), "--max_length=32"]) == 0
    assert switched == capsys.readouterr().out


def test_fine_tuning_replaces_a_head_of_another_size(folder, model, caplog):
    config = BertConfig.from_pretrained(model, num_labels=3)
    BertForSequenceClassification(config).save_pretrained(model)
    options = ["--fine_tune", "--fine_tune_epochs=1", "--max_steps=2", "--keep_layers=2", *QUICK]
    with caplog.at_level(logging.INFO):
        assert main(["compress", "--teacher=model", "--output_dir=out", *data_options(folder), *options]) == 0
    assert "The head of model is new: classifier.bias, classifier.weight." in caplog.text
    assert json.loads((model.parent / "out" / "config.json").read_text())["id2label"] == {
        "0": "negative",
        "1": "positive",
    }


def test_a_quantized_model_is_refused_whatever_becomes_of_its_head():
    config = BertConfig(**SIZES)
    config.quantization_config = {"quant_method": "bitsandbytes"}
    for fresh_head in (False, True):
        with pytest.raises(XTCError, match=r"^m is quantized already .*Name its float original\.$"):
            check_config(config, "m", fresh_head=fresh_head)


def test_two_classes_of_one_name_are_refused():
    config = BertConfig(**SIZES)
    config.id2label, config.label2id = {0: "a", 1: "a"}, None
    with pytest.raises(XTCError, match=r"^The config.json of m (contradicts itself|gives two classes one name)"):
        check_config(config, "m", fresh_head=False)
    check_config(config, "m", fresh_head=True)


def test_tokens_without_an_embedding_are_refused(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder / "teacher")
    check_tokenizer(tokenizer, BertConfig(**SIZES), "m", 40)
    tokenizer.add_tokens(["extra"])
    text = (
        rf"^The tokenizer of m has token ids up to {len(VOCAB)}, but the model has embeddings for {len(VOCAB)} tokens"
    )
    with pytest.raises(XTCError, match=text):
        check_tokenizer(tokenizer, BertConfig(**SIZES), "m", 40)


def test_an_adapters_own_head_is_no_missing_one():
    model = SimpleNamespace(base_model_prefix="bert")
    info = {"missing_keys": ["classifier.weight"], "mismatched_keys": []}
    check_weights(model, info, "m", fresh_head=False, own_head=True)
    with pytest.raises(XTCError, match=r"^m has no trained head: classifier.weight are not"):
        check_weights(model, info, "m", fresh_head=False)
    info["mismatched_keys"] = [("bert.embeddings.word_embeddings.weight", torch.Size([3, 4]), torch.Size([5, 4]))]
    for options in ({"fresh_head": True}, {"fresh_head": False, "own_head": True}):
        with pytest.raises(XTCError, match=r"^The weights of m do not fit its config.json: bert.embeddings"):
            check_weights(model, info, "m", **options)


def test_a_tokenizer_of_special_tokens_alone_is_no_vocabulary():
    special = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])}
    with pytest.raises(XTCError, match=r"^m has no vocabulary: its tokenizer knows 5 special tokens and no word"):
        check_tokenizer(BertTokenizerFast(vocab=special), BertConfig(**SIZES), "m", 40)
