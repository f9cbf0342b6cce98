"""Adapters: PEFT with a plain `LoraConfig` on packed and latent models, and teachers that carry adapters."""

import copy

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments
from transformers.integrations.peft import MIN_PEFT_VERSION

from hf_xtc import XTCRecipe, XTCTrainer, XTCTrainingArguments, compress, pack_model
from hf_xtc.errors import StateError, XTCError
from hf_xtc.files.headers import read_header
from hf_xtc.modeling.adapters import has_adapters, merged
from hf_xtc.modeling.lora import LoraPackedLinear

# PEFT 0.21 asks a property of models that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

QUIET = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "save_strategy": "no", "seed": 0}
STEPS = {"max_steps": 6, "learning_rate": 5e-2, "warmup_steps": 0, "per_device_train_batch_size": 4}
STEPS |= {"train_sampling_strategy": "random"}


@pytest.fixture(params=["binary", "ternary"])
def packed(request, tiny_teacher):
    return pack_model(compress(tiny_teacher, XTCRecipe(weights=request.param, keep_layers=2)))


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 101, (12, 9), generator=generator).tolist()
    return Dataset.from_dict(
        {"input_ids": ids, "attention_mask": [[1] * 9] * 12, "labels": [i % 3 for i in range(12)]}
    )


def lora(**options):
    return LoraConfig(**{"target_modules": ["query", "value"], "r": 2, "task_type": "SEQ_CLS", **options})


def logits(model, batch):
    with torch.no_grad():
        return model.eval()(**batch).logits


def stock_trained(model, rows, folder):
    """The loss on all rows before and after."""
    arguments = TrainingArguments(str(folder), **QUIET, **STEPS)
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    return before, trainer.evaluate()["eval_loss"]


@pytest.mark.usefixtures("reference_backend")
def test_a_fresh_adapter_changes_nothing_and_a_trained_one_the_adapter_alone(packed, tiny_batch, rows, tmp_path):
    before, state = logits(packed, tiny_batch), copy.deepcopy(packed.state_dict())
    model = get_peft_model(packed, lora())
    layers = [module for module in model.modules() if isinstance(module, LoraPackedLinear)]
    assert len(layers) == 4
    assert torch.equal(logits(model, tiny_batch), before)
    first, last = stock_trained(model, rows, tmp_path)
    assert last < first
    assert not torch.equal(logits(model, tiny_batch), before)
    base = model.get_base_model().state_dict()
    for name, tensor in state.items():
        wrapped = name.replace("query.", "query.base_layer.").replace("value.", "value.base_layer.")
        wrapped = wrapped.replace("classifier.", "classifier.original_module.")
        assert torch.equal(base[wrapped], tensor), name
    with model.disable_adapter():
        assert torch.equal(logits(model, tiny_batch), before)


def test_adapters_are_saved_alone_and_come_back_on_the_packed_base(packed, tiny_batch, rows, tmp_path):
    packed.save_pretrained(tmp_path / "base")
    model = get_peft_model(AutoModelForSequenceClassification.from_pretrained(tmp_path / "base"), lora())
    stock_trained(model, rows, tmp_path / "run")
    model.save_pretrained(tmp_path / "adapter")
    names = read_header(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(names) == 4 * 2 + 2
    assert all("lora_" in name or "classifier" in name for name in names)
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    again = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert torch.equal(logits(again, tiny_batch), logits(model, tiny_batch))


def test_many_adapters_on_one_base(packed, tiny_batch, rows, tmp_path):
    model = get_peft_model(packed, lora(), adapter_name="first")
    stock_trained(model, rows, tmp_path)
    first = logits(model, tiny_batch)
    model.add_adapter("second", lora(r=3))
    model.set_adapter("second")
    assert not torch.equal(logits(model, tiny_batch), first)
    model.set_adapter("first")
    assert torch.equal(logits(model, tiny_batch), first)


@pytest.mark.parametrize("safe", [True, False])
def test_merging_into_packed_weights_is_refused(packed, tiny_batch, rows, tmp_path, safe):
    model = get_peft_model(packed, lora())
    stock_trained(model, rows, tmp_path)
    before = logits(model, tiny_batch)
    with pytest.raises(StateError, match="cannot be merged into packed weights"):
        model.merge_and_unload(safe_merge=safe)
    assert torch.equal(logits(model, tiny_batch), before)


@pytest.mark.parametrize(
    "options, words",
    [({"use_dora": True}, "use_dora=True"), ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'")],
)
def test_what_needs_float_weights_is_refused(packed, options, words):
    with pytest.raises(XTCError, match=words):
        get_peft_model(packed, lora(**options))


def distilled(student, teacher, rows, folder, **options):
    trainer = XTCTrainer(
        student,
        XTCTrainingArguments(str(folder), **QUIET, **{**STEPS, "logging_steps": 1, **options}),
        teacher_model=teacher,
        train_dataset=rows,
    )
    trainer.train()
    return trainer


def test_distillation_trains_adapters_on_a_packed_base(packed, tiny_teacher, tiny_batch, rows, tmp_path):
    state = {name: tensor.clone() for name, tensor in packed.named_buffers() if "weight_packed" in name}
    model = get_peft_model(packed, lora())
    trainer = distilled(model, tiny_teacher, rows, tmp_path / "run")
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    found = {name.replace(".base_layer", ""): t for name, t in model.get_base_model().named_buffers()}
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "saved" / "model.safetensors").exists()


def test_a_packed_student_without_adapters_is_refused(packed, tiny_teacher, tmp_path):
    with pytest.raises(StateError, match="get_peft_model"):
        XTCTrainer(packed, XTCTrainingArguments(str(tmp_path), **QUIET), teacher_model=tiny_teacher)


def test_adapters_on_a_latent_student_train_and_are_merged_before_packing(tiny_teacher, tiny_batch, rows, tmp_path):
    student = compress(tiny_teacher, XTCRecipe(keep_layers=2))
    latent = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    model = get_peft_model(student, lora())
    distilled(model, tiny_teacher, rows, tmp_path)
    with pytest.raises(StateError, match="carries adapters"):
        pack_model(model)
    with pytest.raises(StateError, match="carries adapters"):
        pack_model(student)
    whole = model.merge_and_unload()
    query = "bert.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(whole.state_dict()[query], latent[query])
    assert pack_model(whole).config.state == "packed"


@pytest.fixture
def adapted_teacher(tiny_teacher, rows, tmp_path):
    model = get_peft_model(copy.deepcopy(tiny_teacher), lora(target_modules=["query", "dense"]))
    stock_trained(model, rows, tmp_path / "teacher")
    return model.eval()


def test_a_teacher_with_adapters_is_compressed_with_them(adapted_teacher, tiny_batch):
    before = logits(adapted_teacher, tiny_batch)
    whole = merged(adapted_teacher)
    torch.testing.assert_close(logits(whole, tiny_batch), before, atol=1e-5, rtol=0)
    assert not has_adapters(whole)
    recipe = XTCRecipe(keep_layers=2)
    student, expected = compress(adapted_teacher, recipe), compress(whole, recipe)
    assert all(torch.equal(student.state_dict()[name], t) for name, t in expected.state_dict().items())
    assert has_adapters(adapted_teacher)
    assert torch.equal(logits(adapted_teacher, tiny_batch), before)


def test_a_model_without_adapters_is_merged_as_it_is(tiny_teacher):
    assert merged(tiny_teacher) is tiny_teacher


def test_a_teacher_with_adapters_needs_no_merging(adapted_teacher, rows, tmp_path):
    finals = []
    for teacher in (adapted_teacher, merged(adapted_teacher)):
        student = compress(teacher, XTCRecipe(keep_layers=2))
        finals.append(distilled(student, teacher, rows, tmp_path, learning_rate=1e-3).state.log_history[-2]["loss"])
    assert finals[0] == pytest.approx(finals[1], rel=1e-3)
    assert has_adapters(adapted_teacher)


def test_adapters_added_by_transformers_are_merged(tiny_teacher, tiny_batch):
    pytest.importorskip("peft", minversion=MIN_PEFT_VERSION)
    model = copy.deepcopy(tiny_teacher)
    model.add_adapter(LoraConfig(target_modules=["query"], r=2, init_lora_weights=False))
    before = logits(model, tiny_batch)
    whole = merged(model)
    assert not has_adapters(whole)
    torch.testing.assert_close(logits(whole, tiny_batch), before, atol=1e-5, rtol=0)
