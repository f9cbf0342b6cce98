"""Swapped modules on the devices that accelerate chooses: empty models, parts on the disk, hooks."""

import copy

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model, init_empty_weights, load_checkpoint_and_dispatch
from trainers import make_teacher
from transformers import AutoConfig, BertForMaskedLM, BertForSequenceClassification

from hf_xtc.compression.convert import compress, pack_model
from hf_xtc.recipe.xtc_recipe import XTCRecipe

pytestmark = [
    pytest.mark.usefixtures("reference_backend", "one_thread"),
    pytest.mark.filterwarnings("ignore:.*TypedStorage is deprecated"),
]

BODY = {"bert.embeddings": "cpu", "bert.encoder.layer.0": "disk", "bert.encoder.layer.1": "cpu"}
HEADS = {
    BertForSequenceClassification: {"bert.pooler": "cpu", "classifier": "disk"},
    BertForMaskedLM: {"cls": "cpu"},
}
MAPS = {"one": {"": "cpu"}, "auto": "auto", "disk": None}


@pytest.fixture(params=["packed", "latent"])
def state(request):
    return request.param


@pytest.fixture(params=HEADS, ids=lambda head: head.__name__)
def model(request, state):
    student = compress(make_teacher(cls=request.param), XTCRecipe(keep_layers=2))
    return pack_model(student) if state == "packed" else student


@pytest.fixture(params=MAPS)
def device_map(request, model):
    head = next(head for head in HEADS if f"XTC{head.__name__}" == type(model).__name__)
    return MAPS[request.param] or {**BODY, **HEADS[head]}


def logits(model, batch):
    with torch.no_grad():
        return model.eval()(**batch)[0]


def assert_same(found, saved, batch):
    assert torch.equal(logits(found, batch), logits(saved, batch))
    assert {k: t.dtype for k, t in found.state_dict().items()} == {k: t.dtype for k, t in saved.state_dict().items()}


def empty(folder, model):
    with init_empty_weights():
        made = type(model)(AutoConfig.from_pretrained(folder))
    made.tie_weights()
    return made


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "5KB"}], ids=["whole", "shards"])
@pytest.mark.parametrize("one_device", ["auto", {"": "cpu"}], ids=str)
def test_an_empty_model_is_filled_and_dispatched(tmp_path, tiny_batch, model, one_device, shards):
    model.save_pretrained(tmp_path, **shards)
    found = load_checkpoint_and_dispatch(empty(tmp_path, model), str(tmp_path), device_map=one_device)
    assert_same(found, type(model).from_pretrained(tmp_path), tiny_batch)


@pytest.mark.parametrize("offload_buffers", [False, True], ids=["", "buffers too"])
def test_a_model_is_loaded_in_parts(tmp_path, tiny_batch, model, device_map, offload_buffers):
    model.save_pretrained(tmp_path / "model")
    options = {"offload_folder": str(tmp_path / "off"), "offload_buffers": offload_buffers}
    found = type(model).from_pretrained(tmp_path / "model", device_map=device_map, **options)
    assert torch.equal(logits(found, tiny_batch), logits(model, tiny_batch))


def test_a_model_is_dispatched_and_offloaded(tmp_path, tiny_batch, model, device_map):
    expected = logits(model, tiny_batch)
    if device_map != "auto":
        found = dispatch_model(copy.deepcopy(model), device_map, offload_dir=str(tmp_path / "parts"))
        assert torch.equal(logits(found, tiny_batch), expected)
    for buffers in (False, True):
        found = cpu_offload(copy.deepcopy(model), "cpu", offload_buffers=buffers)
        assert torch.equal(logits(found, tiny_batch), expected)
        found = disk_offload(copy.deepcopy(model), str(tmp_path / str(buffers)), "cpu", offload_buffers=buffers)
        assert torch.equal(logits(found, tiny_batch), expected)
