"""Ten families, every head: compressed, trained, packed, saved, loaded, adapted, in pipelines, without the package."""

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import transformers
from families import (
    CELLS,
    CLASSIFIERS,
    CONFIGS,
    FEWER,
    assert_equal,
    make_batch,
    make_config,
    make_teacher,
    make_tokenizer,
    outputs,
)
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from test_remote_code import ABSENT
from torch import nn
from trainers import make_args, refuses
from transformers import pipeline

from hf_xtc import ARCHITECTURES, XTCRecipe, XTCTrainer, compress, ledger, pack_model, unpack_model
from hf_xtc.compression.convert import is_packed
from hf_xtc.errors import RecipeError, XTCError
from hf_xtc.modeling.attention import SCORES, return_scores
from hf_xtc.modeling.base import CODE

pytestmark = [
    pytest.mark.usefixtures("reference_backend", "one_thread"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT uses it
]
cells = pytest.mark.parametrize("family, head", CELLS, ids=[head for _, head in CELLS])
families = pytest.mark.parametrize("family", CONFIGS)
PIPELINES = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "fill-mask",
    "Model": "feature-extraction",
}


def auto_class(family, head):
    """The Auto class that loads a head, the most specific one."""
    classes = ARCHITECTURES[family].auto_classes
    return next(getattr(transformers, name) for name in reversed(classes) if classes[name].__name__ == f"XTC{head}")


def classifier(family):
    return next(head for name, head in CLASSIFIERS if name == family)


@functools.cache
def make_student(family, head):
    return compress(make_teacher(family, head), XTCRecipe(keep_layers=FEWER.get(family, 2), rest_dtype="float32"))


@functools.cache
def make_packed(family, head):
    return pack_model(make_student(family, head))


@functools.cache
def _folder():
    return tempfile.TemporaryDirectory()


@functools.cache
def make_folder(family, head):
    folder = Path(_folder().name) / head
    make_packed(family, head).save_pretrained(folder)
    return folder


def test_every_head_that_transformers_knows_for_an_encoder_is_there():
    assert sorted(CONFIGS) == sorted(ARCHITECTURES)
    for family in CONFIGS:
        config, found = type(make_config(family)), ARCHITECTURES[family]
        for task in ("", *(name for name in dir(transformers) if name.startswith("MODEL_FOR_"))):
            mapping = getattr(transformers, task or "MODEL_MAPPING")
            if config in mapping and task not in ("MODEL_FOR_CAUSAL_LM_MAPPING", "MODEL_FOR_TEXT_ENCODING_MAPPING"):
                assert mapping[config].__name__ in found.model_classes, (family, task)
        for name, cls in found.auto_classes.items():
            assert getattr(transformers, name)._model_mapping[found.config_class] is cls


def test_the_table_of_the_docs_names_these_heads():
    page = (CODE.parents[2] / "docs" / "families.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    titles = rows[0][1:]
    autos = {"Base": "", "Masked LM": "ForMaskedLM", "Pre-training": "ForPreTraining"}
    autos["Next sentence"] = "ForNextSentencePrediction"
    names = [f"AutoModel{autos.get(title, 'For' + title.title().replace(' ', ''))}" for title in titles]
    table = {row[0]: row[1:] for row in rows[2 : 2 + len(CONFIGS)]}
    assert sorted(table) == sorted(CONFIGS)
    for family, cells_of_row in table.items():
        known = ARCHITECTURES[family].auto_classes
        assert set(known) <= set(names)
        assert cells_of_row == ["yes" if name in known else "–" for name in names], family


# Float tables that no scope names: transformers reads their weights, or they are a few values for each head.
LEFT = {"encoder.rel_embeddings", "encoder.relative_attention_bias"}


@families
def test_every_linear_and_embedding_of_an_encoder_is_in_a_scope(family):
    base = transformers.AutoModel.from_config(make_config(family))
    for path, module in base.named_modules():
        quantized = isinstance(module, nn.Linear | nn.Embedding) and path not in LEFT
        assert (ARCHITECTURES[family].scope_of(path) is not None) == quantized, path


@cells
def test_a_packed_model_comes_back_bit_for_bit(family, head, tmp_path):
    student, packed, folder = make_student(family, head), make_packed(family, head), make_folder(family, head)
    batch = make_batch(packed.config, head)
    expected = outputs(packed, batch)
    assert_equal(outputs(student, batch), expected)
    loaded, info = auto_class(family, head).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    assert type(loaded) is type(packed)
    assert type(loaded.base_model).__name__ == f"XTC{next(iter(ARCHITECTURES[family].model_classes))}"
    assert_equal(outputs(loaded, batch), expected)
    loaded.save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    for options in ({}, {"device_map": "auto"}):
        assert_equal(outputs(type(packed).from_pretrained(tmp_path / "shards", **options), batch), expected)
    again = pack_model(unpack_model(loaded))
    codes = {name: tensor for name, tensor in loaded.state_dict().items() if name.endswith("weight_packed")}
    assert len(codes) > 8
    for name, tensor in codes.items():
        assert torch.equal(again.state_dict()[name], tensor) or tensor.shape[1] in (20, 36, 40), (
            name
        )  # 8-bit positions
    file = (folder / "model.safetensors").read_bytes()
    assert len(file) == ledger(packed.config, model_class=type(packed)).total_bytes + 8 + int.from_bytes(
        file[:8], "little"
    )
    student.save_pretrained(tmp_path / "latent")
    latent = type(student).from_pretrained(tmp_path / "latent")
    assert not is_packed(latent)
    assert_equal(outputs(latent, batch), expected)


@cells
def test_the_ledger_of_a_teacher_is_that_of_the_packed_file(family, head):
    recipe, config = XTCRecipe(keep_layers=FEWER.get(family, 2)), make_teacher(family, head).config
    packed = pack_model(compress(make_teacher(family, head), recipe))
    before = config.to_dict()
    assert ledger(config, recipe, model_class=type(packed)) == ledger(packed.config, model_class=type(packed))
    assert config.to_dict() == before
    stored = {entry.name: entry.numel for entry in ledger(packed.config, model_class=type(packed)).entries}
    names = packed.state_dict().keys() - packed.all_tied_weights_keys.keys()
    assert stored == {name: packed.state_dict()[name].numel() for name in names}


@cells
def test_it_is_trained_by_all_terms(family, head, tmp_path):
    teacher = make_teacher(family, head)
    student = compress(teacher, XTCRecipe(keep_layers=FEWER.get(family, 2)))
    before = {name: tensor.clone() for name, tensor in student.named_parameters()}
    terms = {name: 1.0 for name in ("logits", "hidden_states", "attention_scores")}
    if head.endswith("Model"):
        del terms["logits"]
    batch = make_batch(teacher.config, head)
    rows = [{key: value[0] for key, value in batch.items()}] * 4
    trainer = XTCTrainer(
        student,
        make_args(tmp_path, terms=terms, max_steps=2),
        teacher_model=teacher,
        train_dataset=rows,
        data_collator=lambda rows: {key: torch.stack([row[key] for row in rows]) for key in rows[0]},
    )
    trainer.train()
    for entry in trainer.state.log_history[:2]:
        assert {name for name in terms if entry[name] > 0} == terms.keys()
    frozen = [name for name, tensor in student.named_parameters() if torch.equal(tensor, before[name])]
    assert [name for name in frozen if "layer" in name and name.endswith("weight")] == []
    assert teacher.config._attn_implementation != SCORES
    trainer.save_model(tmp_path / "packed")
    loaded = auto_class(family, head).from_pretrained(tmp_path / "packed")
    assert_equal(outputs(loaded, batch), outputs(pack_model(student.eval()), batch))


@cells
def test_an_adapter_is_trained_on_it_and_comes_back(family, head, tmp_path):
    make_folder(family, head)
    packed = auto_class(family, head).from_pretrained(make_folder(family, head))
    batch = make_batch(packed.config, head)
    model = get_peft_model(packed, LoraConfig(target_modules="all-linear", r=2, init_lora_weights=False))
    assert any("lora_A" in name for name, _ in model.named_parameters())
    found = model(**batch)
    sum(value.square().sum() for value in found.values() if isinstance(value, torch.Tensor)).backward()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and "lora" in name:
                parameter -= 1e-3 * parameter.grad
    model.save_pretrained(tmp_path)
    base = auto_class(family, head).from_pretrained(make_folder(family, head))
    assert_equal(outputs(PeftModel.from_pretrained(base, tmp_path), batch), outputs(model, batch))


@pytest.mark.parametrize("family, head", CLASSIFIERS, ids=[head for _, head in CLASSIFIERS])
def test_an_adapter_trains_the_classifier_too(family, head, tmp_path):
    """PEFT copies the classifier for this task; where it has a packed linear, that is copied with it."""
    packed = auto_class(family, head).from_pretrained(make_folder(family, head))
    batch, config = make_batch(packed.config), LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", r=2)
    model = get_peft_model(packed, config)
    model(**batch, labels=torch.tensor([0, 1, 2])).loss.backward()
    trained = [name for name, p in model.named_parameters() if p.grad is not None and "modules_to_save" in name]
    assert any(name.endswith("weight") for name in trained)
    model.save_pretrained(tmp_path)
    base = auto_class(family, head).from_pretrained(make_folder(family, head))
    assert_equal(outputs(PeftModel.from_pretrained(base, tmp_path), batch), outputs(model.eval(), batch))


@cells
def test_pipelines_run_it(family, head):
    task = next((task for ending, task in PIPELINES.items() if head.endswith(ending)), None)
    if task is None or head.endswith("ForPreTraining"):
        pytest.skip("transformers has no pipeline for this head")
    model = auto_class(family, head).from_pretrained(make_folder(family, head))
    run = pipeline(task, model, tokenizer=make_tokenizer(model.config))
    found = run("w1 w2 [M] w3")
    ids = run.tokenizer("w1 w2 [M] w3", return_tensors="pt")
    ids.pop("token_type_ids", None)
    expected = next(iter(outputs(model, ids).values()))[0]
    if task == "text-classification":
        assert found[0]["score"] == pytest.approx(float(expected.softmax(-1).max()), abs=1e-6)
    elif task == "fill-mask":
        assert found[0]["token"] == int(expected[2].argmax())
    elif task == "token-classification":
        assert {entry["word"] for entry in found} <= {"w1", "w2", "w3", "[M]"}
        assert found[0]["score"] == pytest.approx(float(expected.softmax(-1).amax(-1)[0]), abs=1e-6)
    else:
        assert torch.equal(torch.tensor(found)[0], expected)


def test_folders_load_without_the_package(tmp_path):
    """All cells in one process: bit for bit, saved again as they were."""
    jobs = []
    for family, head in CELLS:
        folder = make_folder(family, head)
        assert (folder / CODE.name).read_bytes() == CODE.read_bytes()
        batch = make_batch(make_packed(family, head).config, head)
        save_file({key: value.contiguous() for key, value in batch.items()}, folder / "batch")
        jobs.append((auto_class(family, head).__name__, str(folder)))
    script = f"""
import torch, transformers
from safetensors.torch import load_file, save_file
torch.set_num_threads({torch.get_num_threads()})
for auto, folder in {jobs!r}:
    loader = getattr(transformers, auto)
    model, info = loader.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not any(info.values()), info
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    for parameter in model.parameters():  # see `families.outputs`
        parameter.data = parameter.data.clone()
    with torch.no_grad():
        found = model(**load_file(folder + "/batch"))
    save_file({{k: v for k, v in found.items() if isinstance(v, torch.Tensor)}}, folder + "/found")
    model.save_pretrained(folder + "/again")
assert "hf_xtc" not in sys.modules
"""
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run([sys.executable, "-c", ABSENT + script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for family, head in CELLS:
        folder, packed = make_folder(family, head), make_packed(family, head)
        assert_equal(load_file(folder / "found"), outputs(packed, make_batch(packed.config, head)))
        assert_equal(load_file(folder / "again" / "model.safetensors"), load_file(folder / "model.safetensors"))
        configs = [json.loads((path / "config.json").read_text()) for path in (folder, folder / "again")]
        assert configs[0] == configs[1]


@families
def test_integer_backends_agree_with_the_reference(family):
    packed = pack_model(make_student(family, classifier(family)))
    batch = make_batch(packed.config)
    expected = outputs(packed, batch)["logits"]
    for backend in ("int8", "packed", "auto"):
        packed.set_backend(backend)
        assert packed.base_model.backend == backend
        torch.testing.assert_close(outputs(packed, batch)["logits"], expected, atol=0.02, rtol=0.02)


@families
def test_padding_changes_nothing_and_is_zero(family):
    head = next(iter(ARCHITECTURES[family].model_classes))
    packed = make_packed(family, head)
    batch = make_batch(packed.config)
    hidden = outputs(packed, batch)["last_hidden_state"]
    assert not hidden[batch["attention_mask"] == 0].any()
    assert hidden[batch["attention_mask"] == 1].any(-1).all()
    alone = {key: value[2:, :3] for key, value in batch.items()}
    torch.testing.assert_close(outputs(packed, alone)["last_hidden_state"], hidden[2:, :3], atol=1e-5, rtol=1e-5)
    by_place = packed(batch["input_ids"], batch["attention_mask"], return_dict=False)
    assert torch.equal(by_place[0], hidden)


# Attention scores and hidden states


def real_rows(tensor, batch):
    """The rows of queries that are tokens, of a tensor `(batch, heads, queries, keys)`."""
    return tensor.transpose(1, 2)[batch["attention_mask"] == 1]


def masked(scores, batch, config, layer):
    """Scores as a layer's softmax reads them."""
    hidden = batch["attention_mask"][:, None, None, :] == 0
    if getattr(config, "layer_types", ["full_attention"] * 9)[layer] == "sliding_attention":
        places = torch.arange(scores.shape[-1])
        hidden = hidden | ((places - places[:, None]).abs() > config.sliding_window)
    return scores.masked_fill(hidden, torch.finfo(torch.float32).min)


@pytest.mark.parametrize("kind", ["teacher", "student"])
@families
def test_scores_are_those_before_softmax_and_nothing_else_changes(family, kind):
    head = classifier(family)
    teacher = make_teacher(family, head)
    model = teacher if kind == "teacher" else compress(teacher)
    batch, asked = make_batch(model.config), {"output_attentions": True, "output_hidden_states": True}
    model.set_attn_implementation("eager")
    before = model(**batch, **asked)
    restore = return_scores(model)
    found = model(**batch, **asked)
    depth = model.config.num_hidden_layers
    assert len(found.attentions) == len(found.hidden_states) - 1 == depth == 4
    torch.testing.assert_close(found.logits, before.logits, atol=1e-5, rtol=1e-5)
    for layer, (scores, probabilities) in enumerate(zip(found.attentions, before.attentions, strict=True)):
        assert scores.shape == (3, 4, 11, 11)
        assert scores.abs().max() < 1e4, "the mask must not be in the scores"
        assert not torch.isclose(scores.sum(-1), torch.ones(())).any(), "these are probabilities"
        softmax = masked(scores, batch, model.config, layer).softmax(-1)
        torch.testing.assert_close(real_rows(softmax, batch), real_rows(probabilities, batch), atol=1e-6, rtol=1e-5)
    found.attentions[0].sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())
    restore()
    assert model.config._attn_implementation == "eager"
    after = model(**batch, **asked)
    assert all(torch.equal(a, b) for a, b in zip(after.attentions, before.attentions, strict=True))


@families
def test_scores_of_padding_reach_no_other_token(family):
    model = make_teacher(family, classifier(family))
    batch = make_batch(model.config)
    return_scores(model)
    noise = batch["input_ids"].where(batch["attention_mask"] == 1, torch.tensor(77))
    if family in (
        "roberta",
        "xlm-roberta",
        "camembert",
        "mpnet",
    ):  # they count positions of tokens that are no padding
        noise = batch["input_ids"]
    found = [
        model(input_ids=ids, attention_mask=batch["attention_mask"], output_attentions=True).attentions
        for ids in (batch["input_ids"], noise)
    ]
    pairs = (batch["attention_mask"][:, None, :, None] * batch["attention_mask"][:, None, None, :]) == 1
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours.masked_fill(~pairs, 0), theirs.masked_fill(~pairs, 0))


def test_scores_outside_a_window_are_zeros():
    model = make_teacher("modernbert", "ModernBertForSequenceClassification")
    return_scores(model)
    found = model(**make_batch(model.config), output_attentions=True).attentions
    places = torch.arange(11)
    outside = (places - places[:, None]).abs() > model.config.sliding_window
    kinds = model.config.layer_types
    assert set(kinds) == {"full_attention", "sliding_attention"}
    for kind, scores in zip(kinds, found, strict=True):
        assert bool(scores[..., outside].any()) == (kind == "full_attention")
        assert scores[..., ~outside].all()


LAYERS = {"distilbert": "transformer.layer", "modernbert": "layers"}


@families
def test_hidden_states_are_those_of_the_embeddings_and_of_each_layer(family):
    model = make_teacher(family, next(iter(ARCHITECTURES[family].model_classes)))
    inputs, results = [], []

    def keep(module, args, kwargs, output):
        inputs.append(args[0] if args else kwargs["hidden_states"])
        results.append(output[0] if isinstance(output, tuple) else output)

    path = LAYERS.get(family, "encoder.layer")
    layers = (
        [group for group in model.encoder.albert_layer_groups] if family == "albert" else model.get_submodule(path)
    )
    for layer in layers:
        layer.register_forward_hook(keep, with_kwargs=True)
    found = model(**make_batch(model.config), output_hidden_states=True)
    assert len(found.hidden_states) == 5
    assert torch.equal(found.hidden_states[0], inputs[0])
    for state, result in zip(found.hidden_states[1:-1], results[:-1], strict=True):
        assert torch.equal(state, result)
    assert torch.equal(found.hidden_states[-1], found.last_hidden_state)


# Cutting layers


@families
def test_kept_layers_compute_what_they_did(family):
    """A float student of all layers, or of the first ones, computes what these layers of the teacher do."""
    if family == "albert":
        pytest.skip("ALBERT's layers cannot be cut")
    head = next(iter(ARCHITECTURES[family].model_classes))
    teacher = make_teacher(family, head)
    recipe = XTCRecipe(
        weights=None, embedding_weights=None, position_weights=None, activation_bits=None, layers=(0, 1)
    )
    student, batch = compress(teacher, recipe), make_batch(teacher.config)
    states = [model(**batch, output_hidden_states=True).hidden_states for model in (teacher, student)]
    assert torch.equal(states[0][0], states[1][0])
    assert torch.equal(states[0][1], states[1][1])


def test_a_kept_layer_of_modernbert_keeps_its_kind_of_attention():
    teacher = make_teacher("modernbert", "ModernBertModel", num_hidden_layers=8)
    kinds = teacher.config.layer_types
    assert kinds[0] == kinds[3] == kinds[6] == "full_attention"
    assert kinds.count("sliding_attention") == 5
    student = compress(teacher, XTCRecipe(layers=(1, 3, 4, 6)))
    assert student.config.layer_types == [kinds[layer] for layer in (1, 3, 4, 6)]
    assert [layer.attention_type for layer in student.layers] == student.config.layer_types
    assert compress(student).config.layer_types == student.config.layer_types
    assert ledger(teacher.config, XTCRecipe(keep_layers=4)).total_bytes == ledger(student.config).total_bytes


def test_a_layer_of_modernbert_that_becomes_the_first_takes_the_scale_of_its_norm_into_its_weights():
    teacher = make_teacher("modernbert", "ModernBertModel")
    student = compress(teacher, XTCRecipe(layers=(2, 3)))
    assert isinstance(student.layers[0].attn_norm, nn.Identity)
    old = teacher.layers[2]
    assert torch.equal(student.layers[0].attn.Wqkv.weight, old.attn.Wqkv.weight * old.attn_norm.weight)
    assert torch.equal(student.layers[1].attn.Wqkv.weight, teacher.layers[3].attn.Wqkv.weight)
    assert torch.equal(student.layers[1].attn_norm.weight, teacher.layers[3].attn_norm.weight)


def test_layers_of_albert_are_not_cut():
    text = (
        "The recipe keeps 2 of 4 layers, but the layers of albert share their weights, so that cutting them makes no "
        "file smaller. Keep all layers; quantizing them works."
    )
    teacher = make_teacher("albert", "AlbertModel")
    for call in (
        lambda: compress(teacher, XTCRecipe(keep_layers=2)),
        lambda: ledger(teacher.config, XTCRecipe(keep_layers=2)),
    ):
        with refuses(text, RecipeError):
            call()


# What is refused


def test_a_head_of_deberta_that_reads_float_embeddings_is_refused():
    teacher = make_teacher("deberta-v2", "DebertaV2ForMaskedLM", legacy=False)
    with refuses(
        "legacy=False gives DebertaV2ForMaskedLM a head that reads float word embeddings, but the recipe says "
        "embedding_weights='binary'; use embedding_weights=None."
    ):
        compress(teacher)
    packed = pack_model(compress(teacher, XTCRecipe(embedding_weights=None)))
    assert outputs(packed, make_batch(packed.config))["logits"].shape == (3, 11, 101)


def fit(student, teacher, folder, **changes):
    return XTCTrainer(student, make_args(folder, **changes), teacher_model=teacher, train_dataset=[])


def test_a_teacher_of_another_family_or_vocabulary_is_refused(tmp_path):
    student = make_student("bert", "BertForSequenceClassification")
    with refuses(
        "The student is of the family 'bert', the teacher of 'roberta'; a student learns from a teacher of its own "
        "family."
    ):
        fit(student, make_teacher("roberta", "RobertaForSequenceClassification"), tmp_path)
    with refuses(
        "The student has embeddings for 101 tokens, the teacher for 102; give both the same tokenizer, since a token "
        "of one is another token, or none, of the other."
    ):
        fit(student, make_teacher("bert", "BertForSequenceClassification", vocab_size=102), tmp_path)


def test_scores_of_a_family_without_any_are_refused(tmp_path, monkeypatch):
    import dataclasses

    known = ARCHITECTURES["mpnet"]
    monkeypatch.setitem(ARCHITECTURES, "mpnet", dataclasses.replace(known, scores=None))
    head = "MPNetForSequenceClassification"
    student, teacher = make_student("mpnet", head), make_teacher("mpnet", head)
    with refuses("Models of type 'mpnet' give no attention scores before softmax; drop the term 'attention_scores'."):
        fit(student, teacher, tmp_path)
    fit(student, teacher, tmp_path, terms={"logits": 1.0, "hidden_states": 1.0})


def test_a_model_of_no_known_family_has_no_scores():
    config = transformers.ErnieConfig(**{"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1})
    with pytest.raises(XTCError, match=r"^XTC does not know the model type 'ernie'; it compresses "):
        return_scores(transformers.ErnieModel(config))
