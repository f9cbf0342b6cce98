"""Callbacks: the quantization schedule as a function of the step, and the packed size logged before training."""

import logging
from types import SimpleNamespace

import pytest
import torch
from transformers import BertForMaskedLM, TrainerControl, TrainerState

from hf_xtc.compression.convert import compress, pack_model
from hf_xtc.files.headers import read_header
from hf_xtc.modeling.layers import XTCEmbedding, XTCLinear
from hf_xtc.quantization.quantizers import fake_quantize
from hf_xtc.recipe.xtc_recipe import XTCRecipe
from hf_xtc.training.callbacks import (
    BestCheckpointCallback,
    PackedSizeCallback,
    QuantizationCallback,
    WeightStatisticsCallback,
    set_quantization,
    start_step,
)


@pytest.fixture
def student(tiny_teacher):
    """Two layers of the teacher, latent."""
    return compress(tiny_teacher, XTCRecipe(keep_layers=2))


def train_layers(model):
    """Puts latent layers in train mode and everything else, including dropout, in eval mode."""
    for module in model.modules():
        module.training = isinstance(module, XTCLinear | XTCEmbedding)


def quantized(model):
    """Whether weights and whether activations are quantized in training, which must be the same in all layers."""
    train_layers(model)
    weights = {m.quantized_part for m in model.modules() if isinstance(m, XTCLinear | XTCEmbedding)}
    activations = {m.quantize_activation for m in model.modules() if isinstance(m, XTCLinear)}
    assert len(weights) == len(activations) == 1
    return weights.pop(), activations.pop()


def fire(callback, event, model, step, max_steps=10):
    state = TrainerState(global_step=step, max_steps=max_steps)
    getattr(callback, event)(SimpleNamespace(torch_compile=False), state, TrainerControl(), model=model)
    return state


@pytest.mark.parametrize(
    "start, max_steps, step",
    [(0, 10, 0), (0.0, 0, 0), (0.5, 10, 5), (0.25, 10, 2), (0.99, 10, 9), (1, 10, 1), (7.0, 10, 7), (30, 10, 30)],
)
def test_start_step(start, max_steps, step):
    found = start_step(start, max_steps)
    assert found == step
    assert isinstance(found, int)


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("activations", [True, False])
def test_set_quantization(student, tiny_batch, weights, activations):
    """The schedule only affects training; in an evaluation everything is quantized."""
    with torch.no_grad():
        full = student(**tiny_batch).logits
        set_quantization(student, weights=weights, activations=activations)
        evaluated = student(**tiny_batch).logits
        train_layers(student)
        found = student(**tiny_batch).logits
    assert quantized(student) == (weights, activations)
    assert torch.equal(found, full) == (weights and activations)
    assert torch.equal(evaluated, full)


def test_a_recipe_without_quantizers_gives_the_float_model(student, tiny_teacher, tiny_batch):
    set_quantization(student, weights=False, activations=False)
    train_layers(student)
    recipe = XTCRecipe(
        weights=None, embedding_weights=None, position_weights=None, activation_bits=None, keep_layers=2
    )
    with torch.no_grad():
        assert torch.equal(student(**tiny_batch).logits, compress(tiny_teacher, recipe)(**tiny_batch).logits)


@pytest.mark.parametrize("event", ["on_train_begin", "on_step_begin"])
@pytest.mark.parametrize(
    "starts, expected",
    [
        ((0.5, 0), ["fa", "fa", "wa", "wa"]),
        ((0, 7), ["wf", "wf", "wf", "wa"]),
        ((5, 0.9), ["ff", "ff", "wf", "wa"]),
    ],
    ids=["weights_by_share", "activations_by_step", "both"],
)
def test_schedule_is_a_function_of_the_step(student, event, starts, expected):
    callback = QuantizationCallback(*starts)
    # In any order, as a run that resumes goes: no state is kept.
    for i in (3, 0, 2, 1, 3):
        fire(callback, event, student, (0, 4, 5, 9)[i])
        assert quantized(student) == (expected[i][0] == "w", expected[i][1] == "a")


def test_without_a_schedule_everything_is_quantized_from_the_start(student):
    set_quantization(student, weights=False, activations=False)
    fire(QuantizationCallback(), "on_train_begin", student, 0)
    assert quantized(student) == (True, True)


def test_without_a_schedule_steps_change_nothing(student):
    set_quantization(student, weights=False, activations=True)
    fire(QuantizationCallback(), "on_step_begin", student, 3)
    assert quantized(student) == (False, True)


@pytest.mark.parametrize(
    "start, annealing, expected",
    [
        (0, 0.5, [0.0, 0.4, 1.0, 1.0]),
        (0, 10, [0.0, 0.2, 0.5, 0.9]),
        (0.2, 5, [0.0, 0.0, 0.6, 1.0]),
        (5, 0.01, [0.0, 0.0, 1.0, 1.0]),
    ],
    ids=["share", "steps", "after_a_start", "less_than_a_step"],
)
def test_annealing_is_a_function_of_the_step(student, start, annealing, expected):
    callback = QuantizationCallback(start, 0, annealing)
    for i in (3, 0, 2, 1, 3):
        fire(callback, "on_step_begin", student, (0, 2, 5, 9)[i])
        assert quantized(student) == (pytest.approx(expected[i]), True)
    fire(callback, "on_train_end", student, 1)
    assert quantized(student) == (1.0, True)


def test_the_end_of_training_quantizes_everything(student):
    callback = QuantizationCallback(30, 40)
    fire(callback, "on_train_begin", student, 0)
    assert quantized(student) == (False, False)
    fire(callback, "on_train_end", student, 10)
    assert quantized(student) == (True, True)


@pytest.mark.parametrize("head", ["sequence", "masked_lm"])
@pytest.mark.parametrize(
    "recipe",
    [
        XTCRecipe(keep_layers=2),
        XTCRecipe(weights="ternary", granularity="per_group", group_size=2, activation_calibration="static"),
        XTCRecipe.paper(),
    ],
    ids=["default", "ternary_groups", "paper"],
)
def test_logged_size_is_that_of_the_file(tiny_teacher, tiny_config, tmp_path, caplog, recipe, head):
    teacher = tiny_teacher if head == "sequence" else BertForMaskedLM(tiny_config)
    student = compress(teacher, recipe)
    with caplog.at_level(logging.INFO, logger="hf_xtc.training.callbacks"):
        (entry,) = fire(PackedSizeCallback(), "on_train_begin", student, 4).log_history
    pack_model(student).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert len(read_header(file)) > 10
    assert entry["packed_bytes"] == file.stat().st_size - header
    float32 = sum(4 * parameter.numel() for parameter in student.parameters())
    assert entry["packed_ratio"] == round(float32 / entry["packed_bytes"], 2)
    assert entry["step"] == 4
    ratio = float32 / entry["packed_bytes"]
    assert caplog.messages == [
        f"The packed file will take {entry['packed_bytes']} bytes, {ratio:.1f} times less than float32."
    ]


def test_size_is_logged_by_one_process(student):
    state = TrainerState(is_world_process_zero=False)
    PackedSizeCallback().on_train_begin(None, state, TrainerControl(), model=student)
    assert state.log_history == []


def test_a_model_that_is_not_packed_has_no_size(tiny_teacher, caplog):
    with caplog.at_level(logging.INFO, logger="hf_xtc.training.callbacks"):
        assert fire(PackedSizeCallback(), "on_train_begin", tiny_teacher, 0).log_history == []
    assert caplog.messages == []


def test_statistics_of_each_part(student):
    callback = WeightStatisticsCallback()
    state = TrainerState(global_step=5, max_steps=10, is_world_process_zero=True)
    logs = {"loss": 1.0}
    callback.on_train_begin(None, state, TrainerControl())
    callback.on_log(None, state, TrainerControl(), model=student, logs=logs)
    first = state.log_history[-1]
    assert {key for key in first if key.startswith("quantization_error/")} == {
        f"quantization_error/{part}" for part in ("layer 0", "layer 1", "pooler")
    }
    assert not any(key.startswith("flip_rate/") for key in first)
    weight = student.bert.pooler.dense.weight
    error = (weight - fake_quantize(weight, student.bert.pooler.dense.spec)).square().sum() / weight.square().sum()
    assert first["quantization_error/pooler"] == pytest.approx(error.item(), abs=1e-6)
    with torch.no_grad():
        student.bert.pooler.dense.weight[0].neg_()
    callback.on_log(None, state, TrainerControl(), model=student, logs=logs)
    second = state.log_history[-1]
    assert second["flip_rate/pooler"] == pytest.approx(1 / weight.shape[0], abs=1e-5)
    assert second["flip_rate/layer 0"] == 0
    assert second["step"] == 5


def test_statistics_follow_losses_alone_and_latent_layers_alone(student, tiny_teacher):
    callback, state = WeightStatisticsCallback(), TrainerState(is_world_process_zero=True)
    callback.on_log(None, state, TrainerControl(), model=student, logs={"eval_loss": 1.0})
    callback.on_log(None, state, TrainerControl(), model=tiny_teacher, logs={"loss": 1.0})
    assert state.log_history == []


@pytest.mark.parametrize("exists", [True, False], ids=["there", "moved"])
def test_a_best_checkpoint_is_looked_for_only_where_it_is_missing(tmp_path, exists):
    for folder in ("first", "second"):
        (tmp_path / folder / "checkpoint-2").mkdir(parents=True)
    recorded = tmp_path / ("first" if exists else "gone") / "checkpoint-2"
    state = TrainerState(best_global_step=2, best_model_checkpoint=str(recorded))
    args = SimpleNamespace(output_dir=str(tmp_path / "second"))
    BestCheckpointCallback().on_train_begin(args, state, TrainerControl())
    expected = recorded if exists else tmp_path / "second" / "checkpoint-2"
    assert state.best_model_checkpoint == str(expected)
