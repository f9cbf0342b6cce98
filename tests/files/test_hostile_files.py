"""Malicious files, found by the fuzzer or likely in attacks: each gives one error, quickly, without side effects."""

import json
import os

import pytest
import torch
import transformers
from damage import edit_config, edit_tensors, load
from huggingface_hub.errors import StrictDataclassError
from packaging.version import Version
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification, set_seed

from hf_xtc import XTCRecipe, compress, pack_model
from hf_xtc.errors import PackedFileError, RecipeError, XTCError
from hf_xtc.files.safe_json import read_json
from hf_xtc.modeling.base import XTCModel
from hf_xtc.reader import PackedEncoder, ReadError
from hf_xtc.runs.arguments import RecipeArguments
from hf_xtc.runs.report import read_metrics

FLOAT32 = XTCRecipe.paper(2)
DEEP = '{"a": ' * 100_000


@pytest.fixture
def folder(tiny_teacher, tmp_path):
    """A packed checkpoint with float32 scales."""
    pack_model(compress(tiny_teacher, FLOAT32)).save_pretrained(tmp_path / "packed")
    return tmp_path / "packed"


@pytest.fixture
def shards(tiny_teacher, tmp_path):
    """The same in shards."""
    pack_model(compress(tiny_teacher, FLOAT32)).save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    return tmp_path / "shards"


def both_refuse(folder, text):
    """Asserts that transformers refuses with this message, and the numpy reader with any."""
    with pytest.raises(PackedFileError, match=text):
        load(folder)
    with pytest.raises(ReadError):
        PackedEncoder(folder).logits([[1, 2, 3]])


# Sizes that would be built, or allocated, before the file is looked at


@pytest.mark.parametrize("value", [0, -1, 10**12, 2**63])
@pytest.mark.parametrize("name", ["num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"])
def test_impossible_sizes_are_refused_before_anything_is_built(name, value, folder):
    edit_config(folder, lambda config: config.update({name: value}))
    edit_config(folder, lambda config: config["xtc"].update(layer_map=None))
    both_refuse(folder, f"{name}={value}")


@pytest.mark.parametrize("value", [10**9, 0, -1, "3"])
def test_an_impossible_number_of_labels_is_refused(value, folder):
    edit_config(folder, lambda config: (config.pop("id2label"), config.update(num_labels=value)))
    with pytest.raises(PackedFileError, match="num_labels="):
        load(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "none of them"},
        {"pad_token_id": 2**63},
        {"dtype": False},
        {"some_model": {"dtype": [5]}},
        {"architectures": [False]},
        {"id2label": {"0": "a", "1": [["b"]], "2": "c"}},
        {"num_attention_heads": 5},
        {"layer_norm_eps": -1.0},
        {"layer_norm_eps": float("nan")},
        {"hidden_dropout_prob": 7.0},
        {"id2label": [1, 2]},
        {"architectures": 5},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
    ],
    ids=lambda changes: json.dumps(changes),
)
def test_values_that_a_bert_cannot_have_are_one_error(changes, folder):
    edit_config(folder, lambda config: config.update(changes))
    older = Version(transformers.__version__) < Version("5.20")  # refuses some of them itself
    with pytest.raises((PackedFileError, StrictDataclassError) if older else PackedFileError):
        load(folder)


# Values that no training ends with


@pytest.mark.parametrize("value", [3e38, -1e30, 1e6])
@pytest.mark.parametrize("name", ["bert.encoder.layer.0.output.LayerNorm.weight", "classifier.weight"])
def test_values_that_overflow_are_refused(name, value, folder):
    edit_tensors(folder, lambda tensors: tensors[name].view(-1)[:2].fill_(value))
    both_refuse(folder, f"^{name} holds the value")


def test_a_range_whose_end_is_below_its_start_is_refused(tiny_teacher, tmp_path):
    recipe = XTCRecipe(activation_calibration="static", activation_symmetric=False)
    pack_model(compress(tiny_teacher, recipe)).save_pretrained(tmp_path)
    name = "bert.encoder.layer.0.attention.self.query.activation.range"
    edit_tensors(tmp_path, lambda tensors: tensors[name].copy_(torch.tensor([2.0, -1.0])))
    with pytest.raises(PackedFileError, match=f"^{name} ends at -1, below its start 2"):
        load(tmp_path)


# Places


@pytest.mark.parametrize("place", ["../outside.safetensors", "{outside}", "a/../../outside.safetensors", ".", ""])
def test_an_index_cannot_name_files_elsewhere(place, shards, tmp_path):
    shard = sorted(shards.glob("*.safetensors"))[0]
    shard.rename(tmp_path / "outside.safetensors")
    index = read_json(shards / "model.safetensors.index.json")
    named = place.format(outside=tmp_path / "outside.safetensors")
    index["weight_map"] = {k: named if v == shard.name else v for k, v in index["weight_map"].items()}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    both_refuse(shards, "is no index of shards")


@pytest.mark.parametrize("content", ["[]", "5", "{}", '{"weight_map": {"a": 5}, "metadata": {}}', DEEP, "\0"])
def test_an_invalid_shard_index_is_refused(content, shards):
    (shards / "model.safetensors.index.json").write_text(content)
    both_refuse(shards, "is no index of shards")


def test_links_are_read_as_in_the_cache_of_the_hub(folder, tmp_path):
    (folder / "model.safetensors").rename(tmp_path / "blob")
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    assert isinstance(load(folder), XTCModel)
    assert PackedEncoder(folder).logits([[1, 2]]).shape == (1, 3)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "model-00002-of-00002.safetensors"])
def test_reading_pipes_and_devices_does_not_block(name, shards, folder):
    target = shards if name.startswith("model-") else folder
    (target / name).unlink(missing_ok=True)
    os.mkfifo(target / name)
    with pytest.raises((ValueError, OSError)):
        load(target)
    with pytest.raises(ReadError, match=r"not a regular file|cannot be read"):
        PackedEncoder(target)
    (target / name).unlink()
    (target / name).symlink_to("/dev/zero")
    with pytest.raises((ValueError, OSError)):
        load(target)
    with pytest.raises(ReadError, match=r"not a regular file|cannot be read"):
        PackedEncoder(target)


def test_a_file_with_a_hole_of_a_terabyte_is_refused_unread(folder):
    with open(folder / "model.safetensors", "ab") as content:
        content.truncate(2**40)
    both_refuse(folder, "is truncated or not a safetensors file")


# Code


def test_code_that_a_config_names_is_not_run(folder, tmp_path):
    for name in ("modeling_xtc.py", "trap.py"):
        (folder / name).write_text(f"open({str(tmp_path / 'exploded')!r}, 'w')")
    trap = {auto: "trap.Trap" for auto in ("AutoConfig", "AutoModelForSequenceClassification")}
    edit_config(folder, lambda config: config.update(auto_map=trap))
    assert isinstance(load(folder), XTCModel)
    edit_config(folder, lambda config: config.update(model_type="unheard of"))
    with pytest.raises(ValueError, match=r"trust_remote_code|does not recognize"):
        AutoConfig.from_pretrained(folder, trust_remote_code=False)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("value", ["someone/kernel", "someone/kernel@main:forward", {"": "someone/kernel"}, 5])
@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation"])
def test_attention_code_from_the_hub_is_not_asked_for(name, value, folder):
    edit_config(folder, lambda config: config.update({name: value}))
    with pytest.raises(PackedFileError, match="attn_implementation="):
        load(folder)


# JSON


@pytest.mark.parametrize("content", [DEEP, '{"a": 1' + "0" * 5000 + "}", "\ufeff{}", ""], ids=len)
def test_json_is_read_or_refused(content, tmp_path):
    file = tmp_path / "recipe.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(RecipeError):
        RecipeArguments(recipe_file=str(file)).recipe()
    with pytest.raises(RecipeError):
        XTCRecipe.from_json(content)
    file.rename(tmp_path / "metrics.json")
    with pytest.raises(XTCError):
        read_metrics(tmp_path)


def test_a_recipe_is_not_read_from_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "recipe.json")
    with pytest.raises(RecipeError, match="not a regular file"):
        RecipeArguments(recipe_file=str(tmp_path / "recipe.json")).recipe()


# The numpy reader: shapes that would broadcast


@pytest.mark.parametrize(
    "name, shape",
    [
        ("bert.embeddings.LayerNorm.weight", (1,)),
        ("bert.encoder.layer.0.output.dense.bias", (1,)),
        ("classifier.bias", (1,)),
        ("classifier.weight", (3, 1)),
        ("bert.embeddings.position_embeddings.weight", (40, 1)),
        ("bert.embeddings.position_embeddings.weight", ()),
    ],
)
def test_the_reader_refuses_what_would_broadcast(name, shape, folder):
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = torch.ones(shape)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    both_refuse(folder, "has shape")


def test_the_files_are_sound_without_damage(folder, shards):
    set_seed(0)
    for path in (folder, shards):
        model = AutoModelForSequenceClassification.from_pretrained(path)
        assert bool(torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all())
