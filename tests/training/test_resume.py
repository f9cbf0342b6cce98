"""A training resumed from a checkpoint ends in the same bytes as an uninterrupted one."""

import itertools
import os

import pytest
import torch
from safetensors.torch import load_file
from task_cases import trainer_options
from trainers import DATA, DEFAULT, logged, make_teacher, make_trainer, snapshot
from transformers import TrainerCallback

from hf_xtc.compression.convert import compress
from hf_xtc.recipe.xtc_recipe import XTCRecipe
from hf_xtc.tasks import TASKS

pytestmark = pytest.mark.usefixtures("one_thread")

STATIC = XTCRecipe(keep_layers=2, activation_calibration="static")
BEST = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "loss"}
GROUPED = {"train_sampling_strategy": "group_by_length", "num_train_epochs": 2, "max_steps": -1}
EVERYTHING = {
    "recipe": STATIC,
    "gradient_accumulation_steps": 2,
    "bf16": True,
    "distillation_stages": 2,
    "weight_annealing": 0.9,
    "activation_quantization_start": 3,
    "teacher_cache": "cache",
}
CASES = {
    "plain": {},
    "accumulated": {"gradient_accumulation_steps": 3},
    "bf16": {"bf16": True},
    "static": {"recipe": STATIC},
    "static_late": {"recipe": STATIC, "activation_quantization_start": 0.5},
    "two_stages": {"distillation_stages": 2},
    "three_stages": {"distillation_stages": 3, "gradient_accumulation_steps": 2},
    "late": {"weight_quantization_start": 0.25, "activation_quantization_start": 6},
    "annealed": {"weight_annealing": 1.0},
    "ternary": {"recipe": XTCRecipe(keep_layers=2, weights="ternary")},
    "adafactor": {"terms": {"logits": 1.0, "labels": 0.3}, "optim": "adafactor"},
    "cached": {"teacher_cache": "cache"},
    "best": BEST,
    "grouped": GROUPED,
    "workers": {"dataloader_num_workers": 2},
    "everything": EVERYTHING,
    "everything_best": {**EVERYTHING, **BEST, "weight_annealing": 0.2, "activation_quantization_start": 0.0},
}


class FirstStep(TrainerCallback):
    """Keeps the step at which the last training began."""

    def on_train_begin(self, args, state, control, **_):
        self.value = state.global_step


def assert_resumes(folder, steps, save_steps=2, **changes):
    """File, weights and log after resuming from each checkpoint in `steps` are the same; the teacher has dropout."""
    recipe = changes.pop("recipe", XTCRecipe(keep_layers=2))
    teacher = changes.pop("teacher", None) or make_teacher(dropout=0.1)
    options = {"max_steps": 8, "save_strategy": "steps", "save_steps": save_steps, **changes}
    if "teacher_cache" in options:
        options["teacher_cache"] = str(folder / options["teacher_cache"])

    first_step = FirstStep()

    def finish(name, resume=None):
        student = compress(teacher, recipe)
        if resume:
            for parameter in student.parameters():
                torch.nn.init.ones_(parameter)  # so nothing of the result is left over from the start
        trainer = make_trainer(folder / name, teacher, student, **options)
        trainer.add_callback(first_step)
        trainer.train(resume_from_checkpoint=resume)
        trainer.save_model(str(folder / name / "packed"))
        return trainer, (folder / name / "packed" / "model.safetensors").read_bytes()

    whole, file = finish("whole")
    for step in steps:
        resumed, again = finish(f"resumed-{step}", str(folder / "whole" / f"checkpoint-{step}"))
        keys = ("loss", "grad_norm", "step", *DEFAULT)
        assert first_step.value == step
        assert logged(resumed, *keys) == logged(whole, *keys)
        expected = snapshot(whole.model)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in snapshot(resumed.model).items())
        assert again == file
    return whole


@pytest.mark.parametrize("case", CASES)
def test_resuming_is_exact(tmp_path, case):
    """Each case resumes from another checkpoint; `make stress` tests all of them."""
    step = 2 * (1 + list(CASES).index(case) % 3)
    steps = [2, 4, 6] if os.environ.get("HF_XTC_STRESS") else [step]
    if case == "grouped":
        steps = [18] if steps == [step] else [6, 16, 18]
    whole = assert_resumes(tmp_path, steps, **CASES[case])
    ranges = [tensor for name, tensor in whole.model.named_buffers() if name.endswith("activation.range")]
    assert len(ranges) == (13 if CASES[case].get("recipe") is STATIC else 0)
    assert all(low < high for low, high in ranges)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_resumes_in_its_stages_from_a_cache(tmp_path, name):
    dropout = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.1)
    options = {**trainer_options(name, **dropout), "distillation_stages": 3, "teacher_cache": "cache"}
    assert_resumes(tmp_path, [2, 6], **options)


def test_training_resumes_from_every_checkpoint(tmp_path):
    assert_resumes(tmp_path, range(1, 8), save_steps=1, data=DATA[:20])


def test_a_folder_that_was_moved_after_its_last_save_keeps_its_best_checkpoint(tmp_path):
    teacher = make_teacher()
    scores = itertools.count(9, -1)  # the first evaluation is the best
    options = {**BEST, "metric_for_best_model": "score", "greater_is_better": True, "max_steps": 8}
    options |= {"save_strategy": "steps", "save_steps": 2, "compute_metrics": lambda _: {"score": next(scores)}}

    class Stop(TrainerCallback):
        def on_save(self, args, state, control, **_):
            if state.global_step == 8:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "before", teacher, callbacks=[Stop()], **options).train()
    (tmp_path / "before").rename(tmp_path / "after")
    trainer = make_trainer(tmp_path / "after", teacher, **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "after" / "checkpoint-8"))
    assert trainer.state.best_model_checkpoint == str(tmp_path / "after" / "checkpoint-2")
    best = load_file(tmp_path / "after" / "checkpoint-2" / "model.safetensors")
    assert all(torch.equal(tensor, best[name]) for name, tensor in trainer.model.state_dict().items() if name in best)
