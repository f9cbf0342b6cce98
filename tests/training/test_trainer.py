"""XTCTrainer: losses, files, and every refusal."""

import copy
import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from torch.nn import functional as F
from trainers import (
    DATA,
    DEFAULT,
    assert_equal_states,
    collate,
    logged,
    make_args,
    make_data,
    make_teacher,
    make_trainer,
    named,
    refuses,
    snapshot,
)
from transformers import (
    AutoModelForSequenceClassification,
    BertForQuestionAnswering,
    BertForTokenClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_xtc.compression.convert import compress, pack_model
from hf_xtc.distillation.matching import label_order, stage_terms
from hf_xtc.distillation.terms import TERMS, HiddenStatesTerm, soft_cross_entropy
from hf_xtc.errors import RecipeError, StateError
from hf_xtc.modeling.attention import SCORES
from hf_xtc.modeling.layers import PackedLinear, XTCLinear
from hf_xtc.recipe.layer_map import LayerMap
from hf_xtc.recipe.xtc_recipe import XTCRecipe
from hf_xtc.training.trainer import PROJECTION, XTCTrainer

pytestmark = pytest.mark.usefixtures("one_thread")


BATCH = collate(DATA[:4])


# Training and its log


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*")
def test_terms_reach_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    make_trainer(tmp_path / "run", report_to="tensorboard", max_steps=2, logging_steps=1).train()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    for term in DEFAULT:
        assert [event.step for event in events.Scalars(f"train/{term}")] == [1, 2]


@pytest.mark.parametrize("names", [DEFAULT, *([name] for name in TERMS)], ids="+".join)
def test_loss_falls(tmp_path, names):
    """On one repeated batch, for all terms; cross entropies do not fall below the entropy of their targets."""
    trainer = make_trainer(
        tmp_path,
        data=DATA[:8],
        terms=dict.fromkeys(names, 1.0),
        max_steps=30,
        learning_rate=5e-3,
        per_device_train_batch_size=8,
        logging_steps=10,
    )
    trainer.train()
    log = logged(trainer, "loss")
    assert len(log) == 3
    assert log[-1]["loss"] < 0.9 * log[0]["loss"]


@pytest.mark.parametrize(
    "changes",
    [
        {"terms": {"logits": 1.5, "hidden_states": 0.25, "attention_scores": 3.0, "labels": 0.5}},
        {"terms": {"logits": 2.0, "attention_scores": 0.5}, "gradient_accumulation_steps": 3},
        {"distillation_stages": 2, "max_steps": 6},  # the second entry spans both stages
        {"distillation_stages": 3, "max_steps": 6, "gradient_accumulation_steps": 2},
    ],
    ids=["four_terms", "accumulated", "two_stages", "three_stages"],
)
def test_loss_is_the_weighted_sum_of_the_terms_logged(tmp_path, changes):
    trainer = make_trainer(tmp_path, **{"logging_steps": 2, **changes})
    trainer.train()
    weights = trainer.args.term_weights
    log = logged(trainer, "loss", *weights)
    assert len(log) == trainer.args.max_steps // 2
    for entry in log:
        total = sum(weights[name] * entry[name] for name in weights if name in entry)
        assert entry["loss"] == pytest.approx(total, rel=1e-5, abs=1e-5)  # terms are logged to six decimals
    if "distillation_stages" not in changes:
        assert all(set(weights) < set(entry) for entry in log)


def test_terms_are_logged_under_their_names_only_while_they_train(tmp_path):
    trainer = make_trainer(tmp_path, distillation_stages=3, max_steps=6)
    trainer.train()
    names = [sorted(set(entry) - {"loss"}) for entry in logged(trainer, "loss", *DEFAULT)]
    intermediate = ["attention_scores", "hidden_states"]
    assert names == [intermediate] * 2 + [sorted(DEFAULT)] * 2 + [["logits"]] * 2


def test_log_starts_afresh_with_each_run(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=3, logging_steps=2, learning_rate=0.0)
    for _ in range(2):  # the third step of the first run is never logged
        trainer.train()
        (entry,) = logged(trainer, "loss", *DEFAULT)
        assert entry["loss"] == pytest.approx(sum(entry[name] for name in DEFAULT), rel=1e-5)


def test_loss_of_one_batch(tmp_path):
    teacher = make_teacher()
    trainer = make_trainer(tmp_path, teacher, terms={"logits": 2.0, "hidden_states": 0.5}, temperature=2.0)
    student = trainer.model.train()
    given = []
    hook = teacher.register_forward_pre_hook(lambda module, args, kwargs: given.append(set(kwargs)), with_kwargs=True)
    loss, outputs = trainer.compute_loss(student, dict(BATCH), return_outputs=True)
    hook.remove()
    assert given == [{"input_ids", "attention_mask", "output_hidden_states"}], "the teacher sees no labels"
    with torch.no_grad():
        ours, theirs = (m(**BATCH, output_hidden_states=True) for m in (student, teacher))
        expected = 2 * soft_cross_entropy(ours.logits, theirs.logits, 2.0).mean()
        expected += 0.5 * TERMS["hidden_states"]()(ours, theirs, BATCH, LayerMap((1, 3), 4))
    assert torch.equal(outputs.logits, ours.logits)
    torch.testing.assert_close(loss.detach(), expected)
    assert "loss" not in outputs, "labels must not be read where no term needs them"


def test_evaluation_gives_the_loss_of_the_head(tmp_path):
    trainer = make_trainer(tmp_path, per_device_eval_batch_size=8)
    found = trainer.evaluate()["eval_loss"]
    with torch.no_grad():
        batch = collate(DATA[:8])
        logits = trainer.model.eval()(batch["input_ids"], batch["attention_mask"]).logits
    assert found == pytest.approx(F.cross_entropy(logits, batch["labels"]).item(), rel=1e-5)
    trainer.train()
    assert logged(trainer, "loss")[0]["loss"] > 2 * found, "training has the terms instead"


def test_metrics_and_the_best_checkpoint(tmp_path):
    scores = iter([0.1, 0.9, 0.2])
    seen = []

    def compute_metrics(prediction):
        seen.append((prediction.predictions.shape, prediction.label_ids.tolist()))
        return {"score": next(scores)}

    trainer = make_trainer(
        tmp_path,
        compute_metrics=compute_metrics,
        max_steps=6,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="score",
    )
    trainer.train()
    assert [e["eval_score"] for e in trainer.state.log_history if "eval_score" in e] == [0.1, 0.9, 0.2]
    assert seen == [((8, 3), [row["labels"] for row in DATA[:8]])] * 3
    best = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    last = load_file(tmp_path / "checkpoint-6" / "model.safetensors")
    assert_equal_states({key: trainer.model.state_dict()[key] for key in best}, best)
    assert any(not torch.equal(best[key], last[key]) for key in best)


# Gradient accumulation


class Gradients(TrainerCallback):
    """Records the gradients passed to the optimizer."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.steps.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


@pytest.mark.parametrize("terms", [None, {"labels": 1.0}], ids=["distillation", "labels"])
@pytest.mark.parametrize("foreign", [False, True], ids=["latent", "plain_bert"])
def test_four_accumulated_batches_of_four_equal_one_of_sixteen(tmp_path, terms, foreign):
    """BERT's heads take `num_items_in_batch` and ignore it: with the stock Trainer gradients are 4 x too large."""
    runs = []
    for size, accumulation in ((16, 1), (4, 4)):
        student = make_teacher() if foreign else None
        teacher = make_teacher(initializer_range=0.5) if foreign else None
        gradients = Gradients()
        trainer = make_trainer(
            tmp_path,
            teacher,
            student,
            terms=terms,
            callbacks=[gradients],
            max_steps=3,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            max_grad_norm=0.0,
            optim="sgd",
        )
        trainer.train()
        runs.append((logged(trainer, "loss"), gradients.steps, snapshot(trainer.model)))
    for one, four in zip(runs[0][0], runs[1][0], strict=True):
        assert one["loss"] == pytest.approx(four["loss"], rel=1e-5)
    size = max(gradient.abs().max().item() for gradient in runs[0][1][0].values())
    for name, gradient in runs[0][1][0].items():  # sums in another order; some cancel out, such as all key biases
        torch.testing.assert_close(runs[1][1][0][name], gradient, rtol=1e-4, atol=1e-6 * size, msg=name)
    for name, weight in runs[0][2].items():
        torch.testing.assert_close(runs[1][2][name], weight, rtol=1e-5, atol=1e-5, msg=name)


def test_micro_batches_of_a_step_train_the_same_stage(tmp_path, monkeypatch):
    calls = []
    original = XTCTrainer.term_weights

    def term_weights(self):
        calls.append((self.state.global_step, list(original(self))))
        return original(self)

    monkeypatch.setattr(XTCTrainer, "term_weights", term_weights)
    make_trainer(tmp_path, distillation_stages=2, max_steps=3, gradient_accumulation_steps=3).train()
    intermediate = ["hidden_states", "attention_scores"]
    assert calls == [(0, intermediate)] * 3 + [(1, intermediate)] * 3 + [(2, ["logits"])] * 3


# Files


def test_checkpoints_are_latent_and_the_model_is_packed(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    latent = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert "bert.pooler.dense.weight" in latent
    assert not [name for name in latent if "packed" in name]
    assert json.loads((tmp_path / "checkpoint-2" / "config.json").read_text())["state"] == "latent"
    packed = load_file(tmp_path / "final" / "model.safetensors")
    layers = [name for name, module in trainer.model.named_modules() if isinstance(module, XTCLinear)]
    assert len(layers) == 13  # six in each of two layers, and the pooler
    for name in layers:
        assert packed[f"{name}.weight_packed"].dtype == torch.uint8
        assert f"{name}.weight" not in packed
    # No training_args.bin, optimizer or other pickle.
    files = sorted(file.name for file in (tmp_path / "final").iterdir())
    assert files == ["config.json", "model.safetensors", "modeling_xtc.py"]


@pytest.mark.parametrize("rest_dtype", ["float16", "float32"])
@pytest.mark.parametrize("calibration", ["dynamic", "static"])
@pytest.mark.usefixtures("reference_backend")
def test_saved_model_is_the_packed_student(tmp_path, calibration, rest_dtype):
    recipe = XTCRecipe(keep_layers=2, activation_calibration=calibration, rest_dtype=rest_dtype)
    trainer = make_trainer(tmp_path, recipe=recipe)
    trainer.train()
    latent = snapshot(trainer.model)
    trainer.save_model()
    assert_equal_states(snapshot(trainer.model), latent)
    assert trainer.model.config.state == "latent"
    inputs = {key: BATCH[key] for key in ("input_ids", "attention_mask")}
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    packed, trained = pack_model(trainer.model), trainer.model.eval()
    with torch.no_grad():
        found, expected, exact = (model(**inputs).logits for model in (reloaded, packed, trained))
    assert torch.equal(found, expected)
    assert torch.equal(found, exact) == (rest_dtype == "float32")  # what is not quantized is rounded to float16


def test_tokenizer_is_saved_with_the_model(tmp_path):
    class Tokenizer:
        def save_pretrained(self, folder):
            (Path(folder) / "tokenizer.json").write_text("{}")

    make_trainer(tmp_path, processing_class=Tokenizer()).save_model(str(tmp_path / "final"))
    files = sorted(file.name for file in (tmp_path / "final").iterdir())
    assert files == ["config.json", "model.safetensors", "modeling_xtc.py", "tokenizer.json"]


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    trainer = make_trainer(tmp_path)
    with torch.no_grad():
        trainer.model.bert.pooler.dense.weight[0, 0] = float("nan")
    with pytest.raises(StateError, match=r"bert\.pooler\.dense\.weight"):
        trainer.save_model(str(tmp_path / "final"))
    assert not (tmp_path / "final" / "model.safetensors").exists()


# The teacher


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_teacher_is_frozen_and_unchanged(tmp_path, dtype):
    teacher = make_teacher(dropout=0.5)
    student = compress(teacher, XTCRecipe(keep_layers=2))
    teacher = teacher.to(dtype).train()
    before = snapshot(teacher)
    trainer = make_trainer(tmp_path, teacher, student)
    trainer.train()
    assert not teacher.training
    assert all(not p.requires_grad and p.grad is None for p in teacher.parameters())
    assert next(teacher.parameters()).dtype == dtype
    assert_equal_states(snapshot(teacher), before)
    assert all(torch.isfinite(p).all() for p in student.parameters())
    taught = {id(p) for p in teacher.parameters()}
    assert not taught & {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert not [name for name in trainer.model.state_dict() if "teacher" in name]


def test_teacher_in_bfloat16_gives_nearly_the_same_losses(tmp_path):
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        teacher = make_teacher()
        student = compress(teacher, XTCRecipe(keep_layers=2))
        trainer = make_trainer(tmp_path, teacher.to(dtype), student)
        losses.append(trainer.compute_loss(student.train(), dict(BATCH)).item())
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.parametrize("first, second", [(True, False), (False, True), (True, True)], ids=str)
def test_each_trainer_runs_the_teacher_in_its_own_precision(tmp_path, first, second):
    """Whatever an earlier trainer ran it in; its own forward, and the first trainer's, stay as they were."""
    shared, student = make_teacher(), compress(make_teacher(), XTCRecipe(keep_layers=2))

    def losses(teacher, bf16):
        trainer = make_trainer(tmp_path, teacher, copy.deepcopy(student), bf16=bf16, max_steps=2)
        trainer.train()
        return trainer, logged(trainer, "loss", *DEFAULT)

    earlier = losses(shared, first)[0]
    assert losses(shared, second)[1] == losses(make_teacher(), second)[1]
    assert "forward" not in vars(shared)
    with torch.no_grad():
        plain = shared(**BATCH).logits
        assert torch.equal(plain, make_teacher()(**BATCH).logits)
        assert torch.equal(earlier.teacher(**BATCH).logits, plain) is not first


def test_a_teacher_and_a_student_of_a_plain_trainer_are_run_in_the_precision_of_this_one(tmp_path):
    """A plain Trainer leaves its precision on the model that it trained."""
    teacher, student = make_teacher(), compress(make_teacher(), XTCRecipe(keep_layers=2))
    fresh = make_trainer(tmp_path, make_teacher(), copy.deepcopy(student), max_steps=2)
    for model in (teacher, student):
        Trainer(model, make_args(tmp_path, bf16=True)).accelerator.prepare_model(model)
        with torch.no_grad():
            assert not torch.equal(model(**BATCH).logits, make_teacher()(**BATCH).logits)
    used = make_trainer(tmp_path, teacher, student, max_steps=2)
    for trainer in (fresh, used):
        trainer.train()
    assert logged(used, "loss", *DEFAULT) == logged(fresh, "loss", *DEFAULT)
    assert_equal_states(used.model.state_dict(), fresh.model.state_dict())


def test_labels_alone_need_no_teacher(tmp_path):
    student = compress(make_teacher(), XTCRecipe(keep_layers=2))
    trainer = make_trainer(tmp_path, student=student, teacher_model=None, terms={"labels": 2.0})
    with torch.no_grad():
        expected = 2 * student.train()(**BATCH).loss
    torch.testing.assert_close(trainer.compute_loss(student, dict(BATCH)).detach(), expected)
    trainer.train()
    assert [set(entry) for entry in logged(trainer, "loss", "labels", *DEFAULT)] == [{"loss", "labels"}] * 4


@pytest.mark.parametrize(
    "terms, named",
    [(None, "logits, hidden_states, attention_scores"), ({"labels": 1.0, "logits": 1.0}, "logits")],
    ids=["default", "one"],
)
def test_missing_teacher(tmp_path, terms, named):
    student = compress(make_teacher())
    with refuses(
        f"The terms {named} need a teacher. Give teacher_model, or terms={{'labels': 1.0}} to train on labels alone."
    ):
        make_trainer(tmp_path, student=student, teacher_model=None, terms=terms)


def test_attention_implementations_come_back(tmp_path):
    teacher = make_teacher()
    teacher.set_attn_implementation("eager")
    student = compress(teacher, XTCRecipe(keep_layers=2))
    student.set_attn_implementation("sdpa")
    seen = []

    class See(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            seen.append((model.config._attn_implementation, teacher.config._attn_implementation))

    trainer = make_trainer(tmp_path, teacher, student, callbacks=[See()])
    for _ in range(2):
        trainer.train()
        assert (student.config._attn_implementation, teacher.config._attn_implementation) == ("sdpa", "eager")
    assert seen == [(SCORES, SCORES)] * 8


def test_attention_implementations_come_back_after_a_failure(tmp_path):
    class Fail(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    trainer = make_trainer(tmp_path, callbacks=[Fail()])
    before = trainer.model.config._attn_implementation, trainer.teacher.config._attn_implementation
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert SCORES not in before
    assert (trainer.model.config._attn_implementation, trainer.teacher.config._attn_implementation) == before


def test_attention_implementation_is_left_where_no_term_reads_scores(tmp_path):
    seen = []

    class See(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            seen.append(model.config._attn_implementation)

    trainer = make_trainer(tmp_path, callbacks=[See()], terms={"logits": 1.0, "hidden_states": 1.0})
    trainer.train()
    assert set(seen) == {"sdpa"}


# Students


def test_packed_student_is_refused(tmp_path):
    student = pack_model(compress(make_teacher()))
    with refuses(
        "XTCBertForSequenceClassification is packed: its codes cannot be trained. Call unpack_model(model) and train "
        "the latent model it returns, or train an adapter on the packed one (get_peft_model).",
        StateError,
    ):
        make_trainer(tmp_path, student=student)


def test_stock_arguments_are_refused(tmp_path):
    with refuses("args is a TrainingArguments; XTCTrainer needs XTCTrainingArguments, its subclass."):
        XTCTrainer(compress(make_teacher()), TrainingArguments(str(tmp_path)), teacher_model=make_teacher())


def test_model_init_makes_a_new_student_for_each_run(tmp_path):
    teacher = make_teacher(hidden_size=48)
    narrow = make_teacher()
    made = []

    def model_init(trial=None):
        made.append(compress(narrow, XTCRecipe(keep_layers=2)))
        return made[-1]

    terms = {"logits": 1.0, "hidden_states": 1.0}
    trainer = make_trainer(tmp_path, teacher, model_init=model_init, terms=terms)
    results = []
    for trial in ({"learning_rate": 1e-3}, {"learning_rate": 1e-2}, {"learning_rate": 1e-3}):
        trainer.args.learning_rate = trial["learning_rate"]  # what hyperparameter_search does with a trial
        trainer.train()
        assert trainer.model is made[-1]
        assert trainer.terms["hidden_states"].projection is made[-1].get_submodule(PROJECTION)
        results.append(snapshot(trainer.model))
    assert len(made) == len({id(model) for model in made}) == 4  # one to begin with
    assert_equal_states(results[2], results[0])
    assert not torch.equal(results[1]["classifier.weight"], results[0]["classifier.weight"])


CHANGES = [
    {"temperature": 4.0},
    {"weight_annealing": 0.0},
    {"weight_quantization_start": 0.5},
    {"activation_quantization_start": 0.5},
    {"distillation_stages": 2},
    {"terms": {"logits": 1.0, "labels": 0.5}},
    {"terms": {"hidden_states": 1.0}},
    {"adversarial_epsilon": 0.5},
]


@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: next(iter(changes)))
@pytest.mark.parametrize("by_model_init", [False, True], ids=["model", "model_init"])
def test_arguments_changed_before_training_take_effect(tmp_path, changes, by_model_init):
    teacher = make_teacher(num_labels=3)

    def losses(given, later):
        def student():
            return compress(teacher, XTCRecipe(keep_layers=2))

        start = {"model_init": student} if by_model_init else {"student": student()}
        trainer = make_trainer(tmp_path, teacher, **start, **given)
        for name, value in later.items():
            setattr(trainer.args, name, value)
        trainer.train()
        return logged(trainer, "loss", *DEFAULT, "labels")

    assert losses({}, changes) == losses(changes, {}) != losses({}, {})


def test_a_search_of_hyper_parameters_trains_with_the_values_of_each_trial(tmp_path):
    teacher = make_teacher()
    options = {"model_init": lambda: compress(teacher, XTCRecipe(keep_layers=2)), "eval_strategy": "steps"}
    trainer = make_trainer(tmp_path, teacher, eval_steps=4, **options)
    found = []

    class Keep(TrainerCallback):
        def on_train_end(self, args, state, control, **_):
            found.append((args.temperature, trainer.terms["logits"].temperature, args.weight_annealing))

    trainer.add_callback(Keep())
    trainer.hyperparameter_search(
        hp_space=lambda trial: {
            "temperature": trial.suggest_float("temperature", 1.0, 4.0),
            "weight_annealing": trial.suggest_float("weight_annealing", 0.0, 1.0),
        },
        n_trials=3,
        backend="optuna",
        direction="minimize",
    )
    assert all(given == used for given, used, _ in found)
    assert len({temperature for temperature, _, _ in found}) == len({annealing for _, _, annealing in found}) == 3


def test_model_init_checks_each_student(tmp_path):
    students = iter([compress(make_teacher()), pack_model(compress(make_teacher()))])
    trainer = make_trainer(tmp_path, model_init=lambda: next(students))
    with pytest.raises(StateError, match="is packed: its codes cannot be trained"):
        trainer.train()


def test_foreign_student_gets_an_even_layer_map(tmp_path):
    student = make_teacher(num_hidden_layers=2)
    trainer = make_trainer(tmp_path, make_teacher(), student)
    assert trainer._layer_map == LayerMap((1, 3), 4)
    before = snapshot(student)
    trainer.train()
    assert [set(e) for e in logged(trainer, "loss", *DEFAULT)] == [{"loss", *DEFAULT}] * 4
    assert any(not torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    trainer.save_model(str(tmp_path / "final"))
    assert_equal_states(load_file(tmp_path / "final" / "model.safetensors"), snapshot(student))


def test_layer_map_of_another_teacher(tmp_path):
    with refuses(
        "The student's layer map names layers (1, 3) of a 4-layer teacher, but this teacher has 6. "
        "Use the teacher it was compressed from."
    ):
        make_trainer(tmp_path, make_teacher(num_hidden_layers=6), compress(make_teacher(), XTCRecipe(keep_layers=2)))


@pytest.mark.parametrize("shifted", [False, True])
def test_layer_map_of_the_student_is_used(tmp_path, shifted):
    teacher = make_teacher()
    student = compress(teacher, XTCRecipe(layers=(2, 3), shifted_hidden_map=shifted))
    trainer = make_trainer(tmp_path, teacher, student, terms={"hidden_states": 1.0})
    loss = trainer.compute_loss(student.train(), dict(BATCH)).detach()
    with torch.no_grad():
        ours, theirs = (m(**BATCH, output_hidden_states=True) for m in (student, teacher))
        layer_map = LayerMap((2, 3), 4, shifted)
        torch.testing.assert_close(loss, TERMS["hidden_states"]()(ours, theirs, BATCH, layer_map))
        other = LayerMap((2, 3), 4, not shifted)
        assert not torch.allclose(loss, TERMS["hidden_states"]()(ours, theirs, BATCH, other))


def test_narrower_student_learns_through_a_projection(tmp_path):
    teacher = make_teacher(hidden_size=48)
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    runs = []
    for name in ("whole", "resumed"):
        student = compress(make_teacher(), XTCRecipe(layers=(1, 3)))
        trainer = make_trainer(tmp_path / name, teacher, student, **options)
        projection = student.get_submodule(PROJECTION)
        assert projection.weight.shape == (48, 36)
        assert projection.bias is None
        start = projection.weight.detach().clone()
        trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2") if runs else None)
        runs.append(snapshot(student))
        assert not torch.equal(projection.weight, start)
    assert_equal_states(runs[1], runs[0])
    checkpoint = load_file(tmp_path / "whole" / "checkpoint-4" / "model.safetensors")
    assert torch.equal(checkpoint[f"{PROJECTION}.weight"], runs[0][f"{PROJECTION}.weight"])
    trainer.save_model(str(tmp_path / "final"))
    assert not [name for name in load_file(tmp_path / "final" / "model.safetensors") if PROJECTION in name]


def test_student_as_wide_as_its_teacher_has_no_projection(tmp_path):
    trainer = make_trainer(tmp_path)
    assert trainer.terms["hidden_states"].projection is None
    assert not [name for name in trainer.model.state_dict() if PROJECTION in name]


# Labels and heads


def test_data_without_labels(tmp_path):
    trainer = make_trainer(tmp_path, data=make_data(16, labels=False))
    trainer.train()
    assert len(logged(trainer, "loss")) == 4


def test_labels_term_needs_labels(tmp_path):
    trainer = make_trainer(tmp_path, data=make_data(16, labels=False), terms={"logits": 1.0, "labels": 1.0})
    with refuses("The term 'labels' needs labels in every batch. Add a column 'labels', or drop the term."):
        trainer.train()


def test_labels_in_another_order_are_aligned_by_name(tmp_path, caplog):
    teacher = named(make_teacher(), ["bad", "fair", "good"])
    student = named(compress(teacher, XTCRecipe(keep_layers=2)), ["Good", "bad", "fair"])
    with caplog.at_level(logging.WARNING, logger="hf_xtc.training.trainer"):
        trainer = make_trainer(tmp_path, teacher, student, terms={"logits": 1.0})
    assert caplog.messages == [
        "Teacher and student order their labels differently; the teacher's logits are reordered by name."
    ]
    loss = trainer.compute_loss(student.train(), dict(BATCH)).detach()
    with torch.no_grad():
        ours, theirs = student(**BATCH).logits, teacher(**BATCH).logits
    expected = soft_cross_entropy(ours, torch.stack([theirs[:, 2], theirs[:, 0], theirs[:, 1]], 1)).mean()
    torch.testing.assert_close(loss, expected)
    assert not torch.allclose(loss, soft_cross_entropy(ours, theirs).mean())


@pytest.mark.parametrize(
    "student, teacher",
    [
        (["a", "b", "c"], ["a", "b", "c"]),
        (["a", "b", "c"], ["A", "B", "C"]),
        (["LABEL_0", "LABEL_1", "LABEL_2"], ["c", "b", "a"]),
        (["c", "b", "a"], ["LABEL_0", "LABEL_1", "LABEL_2"]),
    ],
    ids=["same", "case", "student_generic", "teacher_generic"],
)
def test_labels_that_fit_by_position(tmp_path, student, teacher):
    models = (named(make_teacher(), names) for names in (student, teacher))
    assert label_order(*(model.config for model in models)) is None


def test_label_order_points_from_student_to_teacher():
    student, teacher = (named(make_teacher(), names).config for names in (["c", "a", "b"], ["a", "b", "c"]))
    assert label_order(student, teacher) == [2, 0, 1]
    assert label_order(teacher, student) == [1, 2, 0]


def test_labels_with_other_names(tmp_path):
    teacher = named(make_teacher(), ["bad", "fair", "good"])
    student = named(compress(teacher), ["contradiction", "neutral", "entailment"])
    with refuses(
        "The student's labels are ['contradiction', 'neutral', 'entailment'], the teacher's ['bad', 'fair', 'good']: "
        "their logits mean different things. Set label2id and id2label of both configs to the same names."
    ):
        make_trainer(tmp_path, teacher, student)


def test_heads_of_other_sizes(tmp_path):
    student = compress(make_teacher(), XTCRecipe(keep_layers=2))
    trainer = make_trainer(tmp_path, make_teacher(num_labels=5), student)
    with refuses(
        "Student and teacher give logits of shapes [4, 3] and [4, 5]. "
        "Use a teacher with the student's head, or drop the term 'logits'."
    ):
        trainer.train()
    make_trainer(
        tmp_path, make_teacher(num_labels=5), student, terms={"hidden_states": 1.0, "attention_scores": 1.0}
    ).train()


@pytest.mark.parametrize("terms", [None, {"logits": 1.0, "labels": 1.0}], ids=["distillation", "labels"])
@pytest.mark.parametrize("head", ["question_answering", "token_classification", "regression"])
def test_other_heads(tmp_path, head, terms):
    data = [dict(row) for row in make_data(16, labels=False)]
    for row in data:
        if head == "question_answering":
            row |= {"start_positions": 0, "end_positions": 2}
        elif head == "token_classification":
            row["labels"] = [-100, 1] + [0] * 18
            row["input_ids"] = row["input_ids"] + [0] * (20 - len(row["input_ids"]))
            row["attention_mask"] = row["attention_mask"] + [0] * (20 - len(row["attention_mask"]))
        else:
            row["labels"] = 0.5
    made = {
        "question_answering": lambda: make_teacher(cls=BertForQuestionAnswering),
        "token_classification": lambda: make_teacher(cls=BertForTokenClassification, num_labels=4),
        "regression": lambda: make_teacher(num_labels=1, problem_type="regression"),
    }
    teacher = made[head]()
    names = {"start_positions", "end_positions"} if head == "question_answering" else {"labels"}
    trainer = make_trainer(tmp_path, teacher, data=data, eval_dataset=data, terms=terms, max_steps=2)
    assert set(trainer.label_names) == names
    trainer.train()
    log = logged(trainer, "loss", "logits", "labels")
    assert len(log) == 2
    assert all(entry["logits"] > 0 for entry in log)
    assert trainer.evaluate()["eval_loss"] > 0


# Stages


@pytest.mark.parametrize(
    "stages, expected",
    [
        (1, [["logits", "hidden_states", "labels"]]),
        (2, [["hidden_states"], ["logits", "labels"]]),
        (3, [["hidden_states"], ["logits", "hidden_states", "labels"], ["logits", "labels"]]),
    ],
)
def test_stage_terms(stages, expected):
    assert [stage_terms(["logits", "hidden_states", "labels"], i, stages) for i in range(stages)] == expected


@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize(
    "terms, stage, kind",
    [
        (["logits", "labels"], 1, "intermediate terms (hidden_states, attention_scores)"),
        (["hidden_states", "attention_scores"], None, "terms of the head (logits, labels)"),
    ],
    ids=["head_only", "intermediate_only"],
)
def test_stage_without_terms(tmp_path, stages, terms, stage, kind):
    with refuses(
        f"distillation_stages={stages} with terms {', '.join(terms)}: stage {stage or stages} trains the {kind}, "
        "and there are none. Add one, or use distillation_stages=1.",
        RecipeError,
    ):
        make_trainer(tmp_path, terms=dict.fromkeys(terms, 1.0), distillation_stages=stages)
    make_trainer(tmp_path, terms=dict.fromkeys(terms, 1.0), distillation_stages=1)


def test_temperature_is_checked_before_training(tmp_path):
    with refuses("temperature=0.0 must be above 0 and below 1,000,000.", RecipeError):
        make_trainer(tmp_path, temperature=0.0)


# The schedule and compilation


# transformers 5.23 calls it activation_checkpointing, which 5.6 does not know yet.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_observe_each_batch_once_and_every_term_teaches(tmp_path, reentrant, caplog):
    def run(**changes):
        recipe = XTCRecipe(keep_layers=2, activation_calibration="static")
        trainer = make_trainer(tmp_path, recipe=recipe, **changes)
        trainer.train()
        ranges = [buffer for name, buffer in trainer.model.named_buffers() if name.endswith("activation.range")]
        return (
            logged(trainer, "loss", *DEFAULT),
            ranges,
            [entry["grad_norm"] for entry in logged(trainer, "grad_norm")],
        )

    losses, ranges, norms = run()
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    again, ranges_again, norms_again = run(**options)
    assert again == losses
    assert all(map(torch.equal, ranges_again, ranges))
    assert norms_again == pytest.approx(norms, rel=1e-5)
    assert ("Reentrant checkpointing would hide" in caplog.text) == reentrant


def test_schedule_reaches_the_layers(tmp_path):
    seen = []

    class See(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            layer = model.bert.pooler.dense
            seen.append((layer.quantized_part, layer.quantize_activation))

    starts = {"weight_quantization_start": 0.5, "activation_quantization_start": 3, "weight_annealing": 0.0}
    trainer = make_trainer(tmp_path, callbacks=[See()], **starts)
    trainer.train()
    assert seen == [(0.0, False), (0.0, False), (1.0, False), (1.0, True)]


def test_annealing_reaches_the_layers(tmp_path):
    seen = []

    class See(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            seen.append(model.bert.pooler.dense.quantized_part)

    make_trainer(tmp_path, callbacks=[See()], weight_annealing=0.5).train()
    assert seen == [0.0, 0.5, 1.0, 1.0]


def test_training_quantizes_at_its_end(tmp_path):
    trainer = make_trainer(tmp_path, weight_quantization_start=100, activation_quantization_start=100)
    trainer.train()
    layer = trainer.model.bert.pooler.dense
    assert layer.quantized_part == 1.0
    assert layer.quantize_activation


class PackedScores(TrainerCallback):
    """Each evaluation gives the loss that the model has on the same rows if it is packed at that step."""

    def __init__(self):
        self.packed, self.evaluated, self.ranges = {}, {}, {}

    def on_evaluate(self, args, state, control, model, metrics, **kwargs):
        packed = pack_model(model)
        packed.set_attn_implementation(model.config._attn_implementation)  # implementations round differently
        with torch.no_grad():
            self.packed[state.global_step] = packed(**collate(DATA[:8])).loss.item()
        self.evaluated[state.global_step] = metrics["eval_loss"]
        linears = [module for module in packed.modules() if isinstance(module, PackedLinear)]
        self.ranges[state.global_step] = all(linear.activation.has_range() for linear in linears)


EVERY_STEP = {"eval_strategy": "steps", "eval_steps": 1}
SCHEDULES = {
    "default": {},
    "annealed": {"weight_annealing": 1.0},
    "late_weights": {"weight_quantization_start": 3, "weight_annealing": 0.0},
    "late_activations": {"activation_quantization_start": 3, "weight_annealing": 0.0},
    "both_late": {"activation_quantization_start": 3, "weight_quantization_start": 0.5},
}


@pytest.mark.parametrize("calibration", ["dynamic", "static"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_evaluation_scores_what_would_be_packed(tmp_path, schedule, calibration):
    """At every step, and before the first, where static ranges are unknown and activations are float."""
    scores = PackedScores()
    recipe = XTCRecipe(keep_layers=2, rest_dtype="float32", activation_bits=4, activation_calibration=calibration)
    options = {**EVERY_STEP, **SCHEDULES[schedule], "eval_on_start": True}
    make_trainer(tmp_path, recipe=recipe, callbacks=[scores], **options).train()
    assert sorted(scores.packed) == [0, 1, 2, 3, 4]
    assert scores.evaluated == pytest.approx(scores.packed, rel=1e-5)
    assert scores.ranges == {step: step > 0 or calibration == "dynamic" for step in range(5)}


@pytest.mark.parametrize("schedule", ["default", "late_weights", "late_activations"])
def test_the_best_step_is_the_one_whose_packed_score_is_best(tmp_path, schedule):
    scores = PackedScores()
    trainer = make_trainer(
        tmp_path,
        recipe=XTCRecipe(keep_layers=2, rest_dtype="float32", activation_bits=4),
        callbacks=[scores],
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        save_strategy="steps",
        save_steps=1,
        **EVERY_STEP,
        **SCHEDULES[schedule],
    )
    trainer.train()
    best = min(scores.packed, key=scores.packed.__getitem__)
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    with torch.no_grad():
        kept = pack_model(trainer.model)(**collate(DATA[:8])).loss.item()
    assert trainer.state.best_metric == pytest.approx(kept, rel=1e-5)


@pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'> should not be:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor:UserWarning")
def test_compiled_training_gives_the_same_losses(tmp_path):
    pytest.importorskip("torch", minversion="2.7", reason="cannot compile transformers' BERT")
    losses = []
    for compiled in (False, True):
        options = {"torch_compile": True, "torch_compile_backend": "eager"} if compiled else {}
        trainer = make_trainer(tmp_path, max_steps=1, **options)
        trainer.train()
        losses.append([entry["loss"] for entry in logged(trainer, "loss")])
        assert trainer.model.config._attn_implementation == "sdpa"
        trainer.save_model(str(tmp_path / "final"))
        assert "bert.pooler.dense.weight_packed" in load_file(tmp_path / "final" / "model.safetensors")
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.filterwarnings("ignore")  # torch warns of its own code while compiling
def test_annealing_is_compiled_once_not_at_every_step(tmp_path):
    pytest.importorskip("torch", minversion="2.7", reason="cannot compile transformers' BERT")
    rows = [{key: (value * 9)[:9] if isinstance(value, list) else value for key, value in row.items()} for row in DATA]
    losses, graphs = [], []
    for annealing, options in ((0.0, {"torch_compile": True}), (1.0, {"torch_compile": True}), (1.0, {})):
        torch._dynamo.reset()
        counters.clear()
        options = {**options, "torch_compile_backend": "eager"} if options else {}
        trainer = make_trainer(tmp_path, data=rows, max_steps=12, weight_annealing=annealing, **options)
        trainer.train()
        losses.append([entry["loss"] for entry in logged(trainer, "loss")])
        graphs.append(counters["stats"]["unique_graphs"])
    assert 0 < graphs[1] <= graphs[0] + 3
    assert losses[1] == pytest.approx(losses[2], rel=1e-4)


def test_student_is_trained_in_place(tmp_path):
    student = compress(make_teacher(), XTCRecipe(keep_layers=2))
    before = copy.deepcopy(student.state_dict())
    make_trainer(tmp_path, student=student).train()
    assert [name for name, tensor in student.state_dict().items() if not torch.equal(tensor, before[name])]


def summed_loss(outputs, labels, num_items_in_batch):
    return torch.nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


@pytest.mark.parametrize("terms", [None, {"logits": 1.0, "labels": 1.0}], ids=["default terms", "labels and logits"])
@pytest.mark.parametrize("change", ["label_smoothing_factor", "compute_loss_func"])
def test_a_loss_on_labels_is_refused_beside_other_terms(tmp_path, change, terms):
    changes = {"label_smoothing_factor": 0.1} if change == "label_smoothing_factor" else {}
    keywords = {} if changes else {"compute_loss_func": summed_loss}
    with refuses(
        "compute_loss_func and label_smoothing_factor change the loss on labels, and can be used with "
        f"terms={{'labels': 1.0}} alone, but the terms are {', '.join(terms or DEFAULT)}. Drop them, or register a "
        "DistillationTerm of your own."
    ):
        student, arguments = compress(make_teacher()), make_args(tmp_path, terms=terms, **changes)
        XTCTrainer(student, arguments, teacher_model=make_teacher(), **keywords)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("change", ["label_smoothing_factor", "compute_loss_func"])
def test_a_loss_on_labels_is_that_of_trainer(tmp_path, change, accumulation):
    smoothing = 0.3 if change == "label_smoothing_factor" else 0.0
    keywords = {} if smoothing else {"compute_loss_func": summed_loss}
    stock = ("max_steps", "per_device_train_batch_size", "learning_rate", "warmup_steps", "logging_steps", "seed")
    stock += ("use_cpu", "disable_tqdm", "save_strategy", "label_smoothing_factor", "gradient_accumulation_steps")
    stock += ("train_sampling_strategy",)
    ours = make_args(
        tmp_path,
        terms={"labels": 1.0},
        label_smoothing_factor=smoothing,
        gradient_accumulation_steps=accumulation,
        weight_annealing=0,
        per_device_train_batch_size=4 // accumulation,
    )
    theirs = TrainingArguments(str(tmp_path), **{name: getattr(ours, name) for name in stock})
    losses = []
    for cls, arguments in ((XTCTrainer, ours), (Trainer, theirs)):
        student = compress(make_teacher(), XTCRecipe(keep_layers=2))
        trainer = cls(student, arguments, train_dataset=DATA, data_collator=collate, **keywords)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    plain = make_trainer(tmp_path, terms={"labels": 1.0}, weight_annealing=0)
    plain.train()
    smoothed = abs(losses[0][0] - logged(plain, "loss")[0]["loss"]) > 1e-3
    assert smoothed == bool(smoothing)


def test_multi_label_heads_learn_a_probability_for_each_label(tmp_path):
    teacher = make_teacher(problem_type="multi_label_classification")
    trainer = XTCTrainer(compress(teacher), make_args(tmp_path, terms={"logits": 1.0}), teacher_model=teacher)
    batch = collate(make_data(4, labels=False))
    student = trainer.model.eval()(**batch).logits
    found = trainer.terms["logits"]({"logits": student}, teacher(**batch), batch, trainer._layer_map)
    target = teacher(**batch).logits.sigmoid()
    expected = -(target * student.sigmoid().log() + (1 - target) * (1 - student.sigmoid()).log()).sum(1).mean()
    torch.testing.assert_close(found, expected)


def test_regression_of_several_outputs_is_a_mean_squared_error(tmp_path):
    teacher = make_teacher(problem_type="regression")
    trainer = XTCTrainer(compress(teacher), make_args(tmp_path, terms={"logits": 1.0}), teacher_model=teacher)
    batch = {key: value for key, value in collate(DATA[:4]).items() if key != "labels"}
    trainer.model.train()
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    with torch.no_grad():
        expected = (outputs["logits"] - teacher(**batch)["logits"]).square().mean()
    torch.testing.assert_close(loss.detach(), expected)


@pytest.mark.parametrize("saved", [False, True], ids=["nothing saved", "a checkpoint saved"])
def test_nonfinite_loss_stops_and_names_term_and_step(tmp_path, saved, monkeypatch):
    """The third batch makes the hidden states' term NaN."""
    trainer = make_trainer(tmp_path, max_steps=6, save_steps=2, save_strategy="steps" if saved else "no")
    compute, calls = HiddenStatesTerm.__call__, []

    def third_is_nan(*args):
        calls.append(1)
        return compute(*args) * (float("nan") if len(calls) == 3 else 1.0)

    monkeypatch.setattr(HiddenStatesTerm, "__call__", third_is_nan)
    kept = f"The last checkpoint is {tmp_path / 'checkpoint-2'}." if saved else "No checkpoint had been saved."
    message = (
        f"The term hidden_states is NaN or infinite at step 3; training stopped. {kept} Use a lower learning_rate "
        f"than {trainer.args.learning_rate:g}, or train without fp16."
    )
    with refuses(message, StateError):
        trainer.train()
    if saved:
        weights = load_file(tmp_path / "checkpoint-2" / "model.safetensors").values()
        assert all(bool(torch.isfinite(tensor).all()) for tensor in weights)


def test_nonfinite_weights_are_not_saved(tmp_path):
    class Break(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            if state.global_step == 4:
                with torch.no_grad():
                    model.bert.pooler.dense.bias[0] = float("nan")

    trainer = make_trainer(tmp_path, max_steps=6, save_steps=2, save_strategy="steps")
    trainer.add_callback(Break())
    message = (
        "Weights are NaN or infinite after step 4; training stopped, and earlier checkpoints are kept. Use a lower "
        f"learning_rate than {trainer.args.learning_rate:g}."
    )
    with refuses(message, StateError):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
