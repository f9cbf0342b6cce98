"""Damaged, mixed-up and malicious checkpoints: each gives one clear error, never a model with random weights."""

import math
import os
import pickle
import re
import shutil
import subprocess

import pytest
import torch
from damage import drop, edit_config, edit_tensors, load, put, put_value
from transformers import AutoModel, AutoModelForMaskedLM, BertForMaskedLM, set_seed

from hf_xtc import XTCRecipe, compress, pack_model
from hf_xtc.errors import PackedFileError, RecipeError, StateError

TERNARY = XTCRecipe(weights="ternary", embedding_weights="ternary", activation_calibration="static")
LINEAR = "bert.encoder.layer.1.intermediate.dense"
NORM = "bert.encoder.layer.2.output.LayerNorm.weight"
MIXED = "Config and weights do not belong together; download or write both again."
FOREIGN = "The file was not written by this package; write it again with pack_model."
DAMAGED = "The file is damaged; download or write it again."


@pytest.fixture
def student(tiny_teacher):
    """A latent ternary classifier with static activation ranges that are not set yet."""
    return compress(tiny_teacher, TERNARY)


@pytest.fixture
def folder(student, tmp_path):
    """A valid packed checkpoint, to be damaged."""
    pack_model(student).save_pretrained(tmp_path / "packed")
    return tmp_path / "packed"


@pytest.fixture
def latent(student, tmp_path):
    """The latent checkpoint of the same model."""
    student.save_pretrained(tmp_path / "latent")
    return tmp_path / "latent"


def refuses(text, error=PackedFileError):
    return pytest.raises(error, match=f"^{re.escape(text)}$")


def test_the_checkpoints_are_sound(folder, latent):
    for path in (folder, latent):
        _, info = load(path, output_loading_info=True)
        assert not any(info.values())


# Truncation


@pytest.mark.parametrize("length", [0, 1, 8, 9, 200, 5_000, -5_000, -1])
@pytest.mark.parametrize("state", ["packed", "latent"])
def test_truncated(state, length, folder, latent):
    path = {"packed": folder, "latent": latent}[state] / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:length])
    assert path.stat().st_size < len(data)
    text = rf"^{re.escape(str(path))} is truncated or not a safetensors file \(.+\)\. Download or write it again\.$"
    with pytest.raises(PackedFileError, match=text):
        load(path.parent)


def test_lengthened(folder):
    with open(folder / "model.safetensors", "ab") as file:
        file.write(b"\0")
    with pytest.raises(PackedFileError, match="is truncated or not a safetensors file"):
        load(folder)


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_shard(damage, folder, student):
    pack_model(student).save_pretrained(folder, max_shard_size="8KB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(PackedFileError, match=f"^{re.escape(str(shard))} is truncated or not a safetensors file"):
        load(folder)


# Tensors that are not what config.json promises


@pytest.mark.parametrize(
    "change, text",
    [
        (
            drop(f"{LINEAR}.weight_scale"),
            "packed/model.safetensors does not hold 1 of the 126 tensors that its config.json promises "
            f"(first: {LINEAR}.weight_scale). {MIXED}",
        ),
        (
            drop(f"{LINEAR}.weight_packed"),
            "packed/model.safetensors does not hold 1 of the 126 tensors that its config.json promises "
            f"(first: {LINEAR}.weight_packed). {MIXED}",
        ),
        (
            drop(NORM),
            "packed/model.safetensors does not hold 1 of the 126 tensors that its config.json promises "
            f"(first: {NORM}). {MIXED}",
        ),
        (
            drop("classifier.weight", "classifier.bias"),
            "packed/model.safetensors does not hold 2 of the 126 tensors that its config.json promises "
            f"(first: classifier.weight). {MIXED}",
        ),
        (
            drop(
                *(f"bert.pooler.dense.{key}" for key in ("weight_packed", "weight_scale", "bias", "activation.range"))
            ),
            "packed/model.safetensors does not hold 4 of the 126 tensors that its config.json promises "
            f"(first: bert.pooler.dense.bias). {MIXED}",
        ),
        (
            lambda tensors: tensors.update(distillation_projection=torch.zeros(2)),
            "packed/model.safetensors holds 1 tensors that its config.json does not promise "
            f"(first: distillation_projection). {MIXED}",
        ),
        (
            put(f"{LINEAR}.weight_packed", lambda t: t[:, :-1]),
            f"packed/model.safetensors: {LINEAR}.weight_packed has shape [50, 7], but config.json promises [50, 8]. "
            f"{MIXED}",
        ),
        (
            put(f"{LINEAR}.weight_scale", lambda t: t[:1]),
            f"packed/model.safetensors: {LINEAR}.weight_scale has shape [1, 1], but config.json promises [50, 1]. "
            f"{MIXED}",
        ),
        (
            put("classifier.weight", lambda t: t.T),
            "packed/model.safetensors: classifier.weight has shape [36, 3], but config.json promises [3, 36]. "
            f"{MIXED}",
        ),
        (
            put(f"{LINEAR}.weight_packed", lambda t: t.view(torch.int8)),
            f"packed/model.safetensors: {LINEAR}.weight_packed has dtype torch.int8, "
            f"but config.json promises torch.uint8. {FOREIGN}",
        ),
        (
            put(f"{LINEAR}.weight_packed", lambda t: t.half()),
            f"packed/model.safetensors: {LINEAR}.weight_packed has dtype torch.float16, "
            f"but config.json promises torch.uint8. {FOREIGN}",
        ),
        (
            put(f"{LINEAR}.weight_scale", lambda t: t.view(torch.bfloat16)),
            f"packed/model.safetensors: {LINEAR}.weight_scale has dtype torch.bfloat16, "
            f"but config.json promises torch.float16. {FOREIGN}",
        ),
        (
            put(f"{LINEAR}.weight_scale", lambda t: t.float()),
            f"packed/model.safetensors: {LINEAR}.weight_scale has dtype torch.float32, "
            f"but config.json promises torch.float16. {FOREIGN}",
        ),
        (
            put(NORM, lambda t: t.int()),
            f"packed/model.safetensors: {NORM} has dtype I32, but config.json promises torch.float32. {FOREIGN}",
        ),
        (
            put_value(f"{LINEAR}.weight_packed", 243),
            f"{LINEAR}.weight_packed holds the byte 243, but bytes of 3-level codes end at 242. {DAMAGED}",
        ),
        (
            put_value("bert.embeddings.word_embeddings.weight_packed", 255),
            "bert.embeddings.word_embeddings.weight_packed holds the byte 255, but bytes of 3-level codes end at 242. "
            f"{DAMAGED}",
        ),
        *(
            (
                put_value(f"{LINEAR}.weight_scale", value),
                f"{LINEAR}.weight_scale holds a negative, NaN or infinite scale. {DAMAGED}",
            )
            for value in (-0.5, math.nan, math.inf)
        ),
        *(
            (put_value(NORM, value), f"{NORM} holds NaN or infinite values in torch.float32. {DAMAGED}")
            for value in (math.nan, -math.inf)
        ),
        (
            put(f"{LINEAR}.activation.range", lambda t: t * math.nan),
            f"{LINEAR}.activation.range holds NaN or infinite values in torch.float32. {DAMAGED}",
        ),
    ],
    ids=[
        "no scale",
        "no codes",
        "no LayerNorm",
        "no head",
        "no pooler",
        "unknown tensor",
        "codes narrower",
        "scale shorter",
        "head transposed",
        "codes int8",
        "codes float16",
        "scale bfloat16",
        "scale float32",
        "LayerNorm int32",
        "trits above 242",
        "embedding trits above 242",
        "scale negative",
        "scale NaN",
        "scale infinite",
        "LayerNorm NaN",
        "LayerNorm infinite",
        "range NaN",
    ],
)
def test_tensors(change, text, folder):
    edit_tensors(folder, change)
    with refuses(text):
        load(folder)


@pytest.mark.parametrize("name", [f"{LINEAR}.weight_scale", NORM])
def test_auto_model_refuses_the_damaged_encoder_of_a_classifier(name, folder):
    edit_tensors(folder, drop(name))
    text = (
        "packed/model.safetensors does not hold 1 of the 124 tensors that its config.json promises "
        f"(first: {name.removeprefix('bert.')}). {MIXED}"
    )
    with refuses(text):
        load(folder, AutoModel)


@pytest.mark.parametrize("name", ["cls.predictions.bias", "bert.embeddings.word_embeddings.weight_packed"])
def test_missing_tied_tensors_are_refused(name, tiny_config, tmp_path):
    set_seed(0)
    pack_model(compress(BertForMaskedLM(tiny_config))).save_pretrained(tmp_path / "packed")
    edit_tensors(tmp_path / "packed", drop(name))
    with pytest.raises(PackedFileError, match=re.escape(f"(first: {name})")):
        load(tmp_path / "packed", AutoModelForMaskedLM)


@pytest.mark.parametrize("name", [NORM, "classifier.bias", f"{LINEAR}.weight", f"{LINEAR}.activation.range"])
def test_incomplete_latent_file_is_refused(name, latent):
    edit_tensors(latent, drop(name))
    text = (
        "latent/model.safetensors does not hold 1 of the 98 tensors that its config.json promises "
        f"(first: {name}). {MIXED}"
    )
    with refuses(text):
        load(latent)


# Config and file of two models


def test_latent_config_with_packed_file(folder):
    edit_config(folder, lambda config: config.update(state="latent"))
    with refuses(
        "packed/model.safetensors holds packed codes, but config.json says state='latent'. "
        "Config and weights do not belong together; download or write both again."
    ):
        load(folder)


def test_packed_config_with_latent_file(folder, latent):
    shutil.copy(latent / "model.safetensors", folder)
    text = (
        "packed/model.safetensors does not hold 56 of the 126 tensors that its config.json promises "
        f"(first: bert.embeddings.word_embeddings.weight_packed). {MIXED}"
    )
    with refuses(text):
        load(folder)


CHANGED = "If it was changed, restore the config written with the file."


def fewer_layers(config):
    config.update(num_hidden_layers=3)


def fewer_layers_and_map(config):
    fewer_layers(config)
    config["xtc"]["layer_map"]["layers"] = [0, 1, 2]


def more_layers_without_map(config):
    config.update(num_hidden_layers=5)
    config["xtc"]["layer_map"] = None


@pytest.mark.parametrize(
    "change, text",
    [
        (
            fewer_layers,
            f"config.json: num_hidden_layers=3, but the layer map keeps 4 layers [0, 1, 2, 3]. {CHANGED}",
        ),
        (
            fewer_layers_and_map,
            "packed/model.safetensors holds 28 tensors that its config.json does not promise "
            f"(first: bert.encoder.layer.3.attention.output.LayerNorm.bias). {MIXED}",
        ),
        (
            more_layers_without_map,
            "packed/model.safetensors does not hold 28 of the 154 tensors that its config.json promises "
            f"(first: bert.encoder.layer.4.attention.self.query.bias). {MIXED}",
        ),
        (
            lambda config: config.update(hidden_size=40),
            "packed/model.safetensors: bert.embeddings.position_embeddings.weight_packed has shape [40, 36], "
            f"but config.json promises [40, 40]. {MIXED}",
        ),
        (
            lambda config: config.update(vocab_size=100),
            "packed/model.safetensors: bert.embeddings.word_embeddings.weight_packed has shape [101, 8], "
            f"but config.json promises [100, 8]. {MIXED}",
        ),
        (
            lambda config: config["xtc"]["recipe"].update(weights="binary"),
            "packed/model.safetensors: bert.encoder.layer.0.attention.self.query.weight_packed has shape [36, 8], "
            f"but config.json promises [36, 5]. {MIXED}",
        ),
        (
            lambda config: config.pop("xtc"),
            "packed/model.safetensors holds 25 tensors that its config.json does not promise "
            f"(first: bert.encoder.layer.0.attention.output.dense.activation.range). {MIXED}",
        ),
        (
            lambda config: config["xtc"].update(format_version=99),
            "config.json: format_version=99; this version of hf_xtc reads 1. "
            f"Upgrade hf_xtc, or write the checkpoint again. {CHANGED}",
        ),
    ],
    ids=[
        "fewer layers",
        "fewer layers and map",
        "more layers",
        "hidden_size",
        "vocab_size",
        "weights of the recipe",
        "no xtc",
        "format_version",
    ],
)
def test_config(change, text, folder):
    edit_config(folder, change)
    with refuses(text):
        load(folder)


def test_a_value_of_the_caller_is_not_blamed_on_the_file(folder):
    with refuses("num_labels=0 must be a whole number from 1 to 1000000."):
        load(folder, num_labels=0)


def test_unknown_state(folder):
    edit_config(folder, lambda config: config.update(state="frozen"))
    with refuses("state='frozen' does not exist. Use one of: latent, packed.", RecipeError):
        load(folder)


def test_config_that_is_not_json(folder):
    (folder / "config.json").write_text('{"model_type": "xtc_bert",')
    with pytest.raises(OSError, match=r"config\.json' is not a valid JSON file"):
        load(folder)


# Pickles


class Bomb:
    """Creates a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kwargs", [{}, {"use_safetensors": False}], ids=["auto", "asked"])
def test_pickle_is_never_opened(kwargs, folder, tmp_path):
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    file.write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with refuses(f"{file} is not a safetensors file; XTC checkpoints are never read from pickles."):
        load(folder, **kwargs)
    assert not (tmp_path / "exploded").exists()
    pickle.loads(file.read_bytes())
    assert (tmp_path / "exploded").exists()


def test_pickle_under_the_name_of_a_safetensors_file(folder, tmp_path):
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(PackedFileError, match="is truncated or not a safetensors file"):
        load(folder)
    assert not (tmp_path / "exploded").exists()


# Models that must not become files


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    "name, text",
    [
        (
            f"{LINEAR}.weight",
            f"{LINEAR}.weight holds 1 NaN or infinite values of 1800, which cannot be packed. "
            "Go back to an earlier checkpoint and train with a lower learning rate.",
        ),
        (
            "bert.embeddings.word_embeddings.weight",
            "bert.embeddings.word_embeddings.weight holds 1 NaN or infinite values of 3636, "
            "which cannot be packed. "
            "Go back to an earlier checkpoint and train with a lower learning rate.",
        ),
        *(
            (
                name,
                f"{name} holds NaN, infinity or values beyond torch.{dtype}, which cannot be packed. "
                "Go back to an earlier checkpoint, or pack with rest_dtype='float32'.",
            )
            for name, dtype in (
                (f"{LINEAR}.bias", "float16"),
                (NORM, "float16"),
                ("classifier.weight", "float16"),
                (f"{LINEAR}.activation.range", "float32"),
            )
        ),
    ],
    ids=["linear", "embedding", "linear bias", "LayerNorm", "head", "range"],
)
def test_nan_and_infinity_are_not_packed(name, text, value, student, tmp_path):
    with torch.no_grad():
        student.get_parameter_or_buffer(name).view(-1)[1] = value
    with refuses(text, StateError):
        pack_model(student).save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_save_into_a_file(student, tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(StateError, match=f"^Could not write {re.escape(str(tmp_path / 'taken'))}: "):
        pack_model(student).save_pretrained(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.fixture
def small_disk(tmp_path):
    """A mounted disk of 112 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=112k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small disk needs root")
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("max_shard_size", ["1GB", "8KB"], ids=["one file", "shards"])
def test_full_disk(max_shard_size, student, small_disk):
    target = small_disk / "model"
    text = r"^Could not write .*model: .*No space left on device.*\. Nothing half-written was left there\.$"
    with pytest.raises(StateError, match=text):
        student.save_pretrained(target, max_shard_size=max_shard_size)
    assert list(small_disk.iterdir()) == []
    pack_model(student).save_pretrained(target)
    before = {file.name: file.read_bytes() for file in target.iterdir()}
    with pytest.raises(StateError, match=text):
        student.save_pretrained(target, max_shard_size=max_shard_size)
    assert {file.name: file.read_bytes() for file in target.iterdir()} == before
    _, info = load(target, output_loading_info=True)
    assert not any(info.values())
