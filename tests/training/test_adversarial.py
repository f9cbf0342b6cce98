"""Adversarial training: which embedding rows are moved, by how much, and that they are restored."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from trainers import assert_equal_states, make_teacher, make_trainer

from hf_xtc import XTCTrainingArguments
from hf_xtc.errors import RecipeError, XTCError
from hf_xtc.training import adversarial
from hf_xtc.training.adversarial import moved

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = {"terms": {"labels": 1.0}, "max_grad_norm": 0.0}


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 10), st.sampled_from([torch.float32, torch.bfloat16]))
def test_rows_move_by_epsilon_in_total_and_are_restored_bitwise(seed, epsilon, dtype):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(7, 4, generator=generator).to(dtype)
    gradient = torch.randn(7, 4, generator=generator) * 1e-3
    gradient[[1, 5]] = 0
    before = weight.clone()
    with moved(weight, gradient.to(dtype), epsilon):
        move = weight.float() - before.float()
        assert torch.equal(weight[[1, 5]], before[[1, 5]])
        assert_close(move.norm().item(), epsilon, rtol=2e-2, atol=5e-2 if dtype is torch.bfloat16 else 1e-6)
        if dtype is torch.float32:
            assert_close(move, epsilon * gradient / gradient.norm(), rtol=1e-3, atol=1e-6)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_a_zero_or_nonfinite_gradient_moves_nothing(bad):
    weight, gradient = torch.randn(3, 2), torch.zeros(3, 2)
    gradient[1] = bad
    before = weight.clone()
    with moved(weight, gradient, 1.0):
        assert torch.equal(weight, before)


def test_the_rows_are_restored_after_an_error():
    weight = torch.randn(3, 2)
    before = weight.clone()
    with pytest.raises(KeyError), moved(weight, torch.ones(3, 2), 1.0):
        raise KeyError
    assert torch.equal(weight, before)


SGD = {"max_steps": 1, "optim": "sgd", "learning_rate": 0.5, "lr_scheduler_type": "constant", "warmup_steps": 0}


def plain_trainer(folder, **options):
    """Of a plain BERT, on labels."""
    return make_trainer(folder, student=make_teacher().train(), teacher_model=None, **{**LABELS, **options})


def trained(folder, **options):
    trainer = plain_trainer(folder, **options)
    trainer.train()
    return trainer


@pytest.mark.parametrize("parts", [1, 2])
def test_each_batch_and_each_part_of_one_adds_its_own_moved_gradient(parts, tmp_path):
    """One step of plain gradient descent, against explicitly computed gradients."""
    options = {"per_device_train_batch_size": 4 // parts, "gradient_accumulation_steps": parts, **SGD}
    trainer = plain_trainer(tmp_path, adversarial_epsilon=0.7, **options)
    model, batches = make_teacher().requires_grad_(True), list(trainer.get_train_dataloader())[:parts]
    trainer.train()
    weight, total = model.get_input_embeddings().weight, [torch.zeros_like(one) for one in model.parameters()]
    for batch in batches:
        before = weight.detach().clone()
        for epsilon in (0.0, 0.7):
            if epsilon:
                weight.data += epsilon * weight.grad / weight.grad.norm()
            model.zero_grad()
            model(**batch).loss.backward()
            for one, parameter in zip(total, model.parameters(), strict=True):
                one += parameter.grad / parts
        weight.data = before
    for mine, start, gradient in zip(trainer.model.parameters(), model.parameters(), total, strict=True):
        assert_close(mine, start - 0.5 * gradient, rtol=0, atol=1e-6)


def test_the_logged_loss_is_that_of_unmoved_embeddings(tmp_path):
    plain, adversarial = (
        trained(tmp_path / str(epsilon), max_steps=1, logging_steps=1, adversarial_epsilon=epsilon)
        for epsilon in (0.0, 1.0)
    )
    assert adversarial.state.log_history[0]["labels"] == plain.state.log_history[0]["labels"]
    assert adversarial.state.log_history[0]["loss"] == plain.state.log_history[0]["loss"]


def test_a_resumed_training_ends_in_the_same_bits(tmp_path):
    options = {"max_steps": 4, "save_steps": 2, "save_strategy": "steps", "adversarial_epsilon": 1.0}
    whole = trained(tmp_path, **options)
    again = plain_trainer(tmp_path, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_equal_states(whole.model.state_dict(), again.model.state_dict())


def test_embeddings_that_processes_share_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(adversarial, "is_sharded", lambda model: True)
    with pytest.raises(XTCError, match="word embeddings that are not sharded; it does not work with DeepSpeed"):
        plain_trainer(tmp_path, adversarial_epsilon=1.0).train()


def test_frozen_embeddings_and_bad_lengths_are_refused(tmp_path):
    trainer = plain_trainer(tmp_path, adversarial_epsilon=1.0)
    trainer.model.get_input_embeddings().requires_grad_(False)
    with pytest.raises(XTCError, match="adversarial_epsilon needs the gradient of the word embeddings, which are"):
        trainer.train()
    for length in (-1.0, float("inf"), float("nan")):
        with pytest.raises(RecipeError, match=r"adversarial_epsilon=.* must be at least 0 and below"):
            XTCTrainingArguments(str(tmp_path), adversarial_epsilon=length)
