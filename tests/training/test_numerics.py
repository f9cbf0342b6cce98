"""Numerical edge cases: dead rows, constant activations, one token or 512, padding, half precision, overflow."""

import math
import re

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from trainers import make_teacher, make_trainer

from hf_xtc import XTCBertForSequenceClassification
from hf_xtc.compression.convert import compress, pack_model
from hf_xtc.errors import StateError
from hf_xtc.files.writing import last_checkpoint
from hf_xtc.modeling.layers import XTCEmbedding, XTCLinear
from hf_xtc.recipe.xtc_recipe import XTCRecipe

pytestmark = pytest.mark.usefixtures("one_thread")

POSITIONS = 512
FLOAT32 = {"scale_dtype": "float32", "rest_dtype": "float32"}


def edge_batch(name):
    """A batch with labels, whose shape or mask is an edge case."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 101, (3, {"one_token": 1, "512_tokens": POSITIONS}.get(name, 7)), generator=generator)
    mask = torch.ones_like(ids)
    if name == "padding_rows":
        mask[0], mask[2, 1:] = 0, 0
    if name == "all_padding":
        mask[:] = 0
    if name == "one_row":
        ids, mask = ids[:1], mask[:1]
    return {"input_ids": ids, "attention_mask": mask, "labels": ids[:, 0] % 3}


def spoil(student, how):
    """Dead weights, constant activations, or values at the limits of float16."""
    with torch.no_grad():
        for layer in student.modules():
            if isinstance(layer, XTCLinear | XTCEmbedding):
                if how == "dead_rows":
                    layer.weight[::3] = 0.0
                elif how == "dead_layer":
                    layer.weight.zero_()
                elif how == "tiny_weights":
                    layer.weight.mul_(1e-7)
            elif how == "constant_activations" and isinstance(layer, torch.nn.LayerNorm):
                layer.weight.zero_()


@pytest.fixture(scope="module")
def teacher():
    return make_teacher(max_position_embeddings=POSITIONS)


@pytest.mark.parametrize("batch", ["usual", "one_token", "512_tokens", "padding_rows", "all_padding", "one_row"])
@pytest.mark.parametrize("how", ["", "dead_rows", "dead_layer", "tiny_weights", "constant_activations"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("weights", ["binary", "ternary"])
@pytest.mark.usefixtures("reference_backend")
def test_losses_gradients_and_packed_logits_are_finite(tmp_path, teacher, weights, dtype, how, batch):
    """A step of XTCTrainer, then the packed model, in its precision; its float32 logits are the student's."""
    student = compress(teacher, XTCRecipe(keep_layers=2, weights=weights, **FLOAT32))
    spoil(student, how)
    trainer = make_trainer(tmp_path, teacher, student)
    inputs = edge_batch(batch)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        loss = trainer.compute_loss(trainer.model.train(), dict(inputs))
    loss.backward()
    assert math.isfinite(loss.item())
    gradients = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    assert len(gradients) > 30
    if dtype is not torch.float16:  # there, gradients that overflow are the business of Trainer's gradient scaler
        assert [name for name, gradient in gradients.items() if not torch.isfinite(gradient).all()] == []
    packed = pack_model(student.eval())
    with torch.no_grad():
        assert torch.equal(packed(**inputs).logits, student(**inputs).logits)
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            assert torch.isfinite(packed(**inputs).logits).all()


@pytest.mark.parametrize("batch", ["one_token", "512_tokens", "padding_rows", "all_padding", "one_row"])
def test_the_integer_backend_agrees_with_the_reference(tmp_path, teacher, batch):
    inputs = edge_batch(batch)
    pack_model(compress(teacher, XTCRecipe())).save_pretrained(tmp_path)
    logits = {}
    for backend in ("auto", "reference"):
        model = XTCBertForSequenceClassification.from_pretrained(tmp_path)
        model.set_backend(backend)
        with torch.no_grad():
            logits[backend] = model(**inputs).logits
    torch.testing.assert_close(logits["auto"], logits["reference"], rtol=0.02, atol=0.02)


def checkpoints_are_whole(folder, step):
    """The checkpoint of `step` is the last, and its weights are finite."""
    last = last_checkpoint(str(folder))
    model = XTCBertForSequenceClassification.from_pretrained(last)
    return last.endswith(f"checkpoint-{step}") and all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_a_learning_rate_far_too_high_stops_with_one_message_and_keeps_the_last_good_checkpoint(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=30, save_strategy="steps", save_steps=3)
    optimizer = trainer.create_optimizer()
    trainer.lr_scheduler = LambdaLR(optimizer, lambda step: 1.0 if step < 3 else 1e33)
    with pytest.raises(StateError, match=r"(?s)NaN or infinite.*checkpoint-3.*lower learning_rate than"):
        trainer.train()
    assert checkpoints_are_whole(tmp_path, 3)


def test_nonfinite_gradients_stop_training(tmp_path):
    """The loss is finite, its gradient is not: clipping turns infinite entries into NaN."""
    trainer = make_trainer(tmp_path, max_steps=6, save_strategy="steps", save_steps=2)

    def overflow(*args, **kwargs):
        if trainer.state.global_step == 3:
            trainer.model.bert.pooler.dense.weight.grad[0, 0] = math.inf

    trainer.create_optimizer()
    trainer.optimizer.register_step_pre_hook(overflow)
    with pytest.raises(StateError, match=re.escape("training stopped")):
        trainer.train()
    assert checkpoints_are_whole(tmp_path, 2)
