"""XTC BERT models: equal outputs of latent, packed and reloaded models, with the features of transformers."""

import inspect
import json
import re
import subprocess
import sys

import pytest
import torch
import transformers
from packaging.version import Version
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForNextSentencePrediction,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertTokenizer,
    pipeline,
    set_seed,
)
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from hf_xtc import ARCHITECTURES, XTCBertConfig, XTCBertForSequenceClassification, XTCRecipe, compress, pack_model
from hf_xtc.errors import PackedFileError, RecipeError, StateError
from hf_xtc.modeling.architecture import xtc_block
from hf_xtc.modeling.attention import SCORES
from hf_xtc.modeling.layers import PackedEmbedding, PackedLinear, XTCEmbedding, XTCLinear
from hf_xtc.recipe.xtc_recipe import SCOPES

BERT = ARCHITECTURES["bert"]
DECODER = "cls.predictions.decoder"
AUTO = {
    "BertModel": AutoModel,
    "BertForSequenceClassification": AutoModelForSequenceClassification,
    "BertForTokenClassification": AutoModelForTokenClassification,
    "BertForQuestionAnswering": AutoModelForQuestionAnswering,
    "BertForMaskedLM": AutoModelForMaskedLM,
    "BertForMultipleChoice": AutoModelForMultipleChoice,
    "BertForNextSentencePrediction": AutoModelForNextSentencePrediction,
    "BertForPreTraining": AutoModelForPreTraining,
}
FLOAT = XTCRecipe(weights=None, embedding_weights=None, position_weights=None, activation_bits=None)
RECIPES = {
    "binary": XTCRecipe(keep_layers=3),
    "ternary": XTCRecipe(weights="ternary", embedding_weights="ternary", granularity="per_group", group_size=2),
    "int4-static": XTCRecipe(embedding_weights="int4", activation_calibration="static", activation_symmetric=False),
    "paper": XTCRecipe.paper(),
    "float": FLOAT,
}
CLASSIFIER = "BertForSequenceClassification"
TIED = ["BertForMaskedLM", "BertForPreTraining"]
WRONG = "Config and weights do not belong together; download or write both again."

heads = pytest.mark.parametrize("head", BERT.model_classes)
# Per-tensor float32 scales with two heads only, one of them with a tied decoder; all else with all.
CASES = [
    (head, name) for head in BERT.model_classes for name in RECIPES if name != "paper" or head in (CLASSIFIER, TIED[0])
]
heads_and_recipes = pytest.mark.parametrize("head, name", CASES)


def run(model, batch):
    """All tensors that the model returns, by name; multiple choice sees the rows as choices of one example."""
    if "MultipleChoice" in type(model).__name__:
        batch = {key: value.unsqueeze(0) for key, value in batch.items()}
    with torch.no_grad():
        return {key: value for key, value in model(**batch).items() if isinstance(value, torch.Tensor)}


def equal(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def make_teacher(config, head):
    """A random teacher whose biases are not zero and whose LayerNorm weights are not one."""
    config.num_labels = 2 if head == "BertForQuestionAnswering" else 3
    set_seed(0)
    teacher = getattr(transformers, head)(config).eval()
    for parameter in teacher.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, std=0.2)
    return teacher


def make_student(config, batch, head=CLASSIFIER, recipe=RECIPES["binary"]):
    student = compress(make_teacher(config, head), recipe)
    if recipe.activation_calibration == "static":
        run(student.train(), batch)
    return student.eval()


def codes_and_scales(model):
    return {name: value for name, value in model.named_buffers() if name.endswith(("weight_packed", "weight_scale"))}


def says(error, text):
    return pytest.raises(error, match=f"^{re.escape(text)}$")


@pytest.fixture
def packed(tiny_config, tiny_batch):
    """A packed binary classifier of three layers."""
    return pack_model(make_student(tiny_config, tiny_batch))


@pytest.fixture
def folder(packed, tmp_path):
    """Where `packed` is saved."""
    packed.save_pretrained(tmp_path / "packed")
    return tmp_path / "packed"


# The architecture


def test_scopes_name_every_linear_and_embedding_of_the_encoder_once(tiny_config):
    architecture = ARCHITECTURES["bert"]
    assert tuple(architecture.scopes) == SCOPES
    base = make_teacher(tiny_config, "BertModel")
    named = [path for path, _ in base.named_modules() if architecture.scope_of(path)]
    found = [name for name, module in base.named_modules() if isinstance(module, nn.Linear | nn.Embedding)]
    assert sorted(named) == sorted(found)
    assert len(base.get_submodule(architecture.layers)) == tiny_config.num_hidden_layers


@pytest.mark.parametrize("head", TIED)
def test_tied_decoder_exists(head, tiny_config):
    teacher = make_teacher(tiny_config, head)
    decoder = teacher.get_submodule(DECODER)
    assert decoder is teacher.get_output_embeddings()
    assert decoder.weight is teacher.get_input_embeddings().weight


@pytest.mark.parametrize("packs", [False, True], ids=["latent", "packed"])
def test_modules_of_each_scope_are_swapped(packs, tiny_config, tiny_batch):
    recipe = XTCRecipe(weights="ternary", embedding_weights="int4", quantize_pooler=False)
    model = make_student(tiny_config, tiny_batch, recipe=recipe)
    model = pack_model(model) if packs else model
    linear, embedding = (PackedLinear, PackedEmbedding) if packs else (XTCLinear, XTCEmbedding)
    found = set()
    for path, module in model.bert.named_modules():
        scope = BERT.scope_of(path)
        if scope == "pooler":
            assert type(module) is nn.Linear
        elif scope is not None:
            assert type(module) is (embedding if "embeddings" in scope else linear)
            assert module.spec == recipe.spec(scope)
        found.add(scope)
    assert found == {*SCOPES, None}
    assert type(model.classifier) is nn.Linear


@heads
def test_forward_has_the_signature_of_the_teachers_class(head):
    ours, theirs = (inspect.signature(cls.forward) for cls in (BERT.model_classes[head], getattr(transformers, head)))
    assert ours == theirs


@heads
def test_losses_leave_scaling_to_the_trainer(head):
    assert BERT.model_classes[head].accepts_loss_kwargs is False


# From latent to packed to file


@heads_and_recipes
@pytest.mark.usefixtures("reference_backend")
def test_packed_in_float32_equals_latent(head, name, tiny_config, tiny_batch):
    student = make_student(tiny_config, tiny_batch, head, RECIPES[name])
    packed = pack_model(student, rest_dtype="float32")
    assert packed.packed
    assert not student.packed
    assert equal(run(packed, tiny_batch), run(student, tiny_batch))


@heads_and_recipes
def test_file_gives_equal_outputs_and_saves_again_to_equal_bytes(head, name, tiny_config, tiny_batch, tmp_path):
    packed = pack_model(make_student(tiny_config, tiny_batch, head, RECIPES[name]))
    packed.save_pretrained(tmp_path / "first")
    loaded, info = AUTO[head].from_pretrained(tmp_path / "first", output_loading_info=True)
    assert type(loaded) is BERT.model_classes[head]
    assert not any(info.values())
    assert equal(run(loaded, tiny_batch), run(packed, tiny_batch))
    loaded.save_pretrained(tmp_path / "second")
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "second" / file).read_bytes() == (tmp_path / "first" / file).read_bytes()


def test_every_auto_class_and_head_is_tested():
    assert AUTO.keys() == BERT.model_classes.keys()


def test_padding_changes_the_outputs_without_a_mask(tiny_config, tiny_batch):
    teacher = make_teacher(tiny_config, CLASSIFIER)
    assert not equal(run(teacher, tiny_batch), run(teacher, {"input_ids": tiny_batch["input_ids"]}))


@pytest.mark.parametrize("recipe", [RECIPES["binary"], FLOAT], ids=["binary", "float"])
def test_config_says_float32_where_the_file_holds_float16(recipe, tiny_config, tiny_batch, tmp_path):
    pack_model(make_student(tiny_config, tiny_batch, recipe=recipe)).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"
    tensors = load_file(tmp_path / "model.safetensors")
    expected = {torch.float16} if recipe is FLOAT else {torch.float16, torch.uint8}
    assert {tensor.dtype for tensor in tensors.values()} == expected
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path).dtype == torch.float32


def test_new_process_gives_bit_identical_logits(packed, folder, tiny_batch, tmp_path):
    save_file(tiny_batch, tmp_path / "batch.safetensors")
    code = f"""
import torch
import hf_xtc
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification
torch.set_num_threads({torch.get_num_threads()})
model = AutoModelForSequenceClassification.from_pretrained({str(folder)!r})
with torch.no_grad():
    logits = model(**load_file({str(tmp_path / "batch.safetensors")!r})).logits
save_file({{"logits": logits}}, {str(tmp_path / "logits.safetensors")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    logits = load_file(tmp_path / "logits.safetensors")["logits"]
    assert torch.equal(logits, run(packed, tiny_batch)["logits"])


def test_auto_model_takes_the_encoder_of_a_classifier(packed, folder, tiny_batch):
    encoder, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert info["missing_keys"] == set()
    assert info["unexpected_keys"] == {"classifier.weight", "classifier.bias"}
    assert equal(run(encoder, tiny_batch), run(packed.bert, tiny_batch))


@pytest.mark.parametrize("embeddings", ["binary", None])
@heads
def test_packed_models_are_frozen_except_their_heads(head, embeddings, tiny_config, tiny_batch, tmp_path):
    recipe = XTCRecipe(embedding_weights=embeddings, keep_layers=1)
    packed = pack_model(make_student(tiny_config, tiny_batch, head, recipe))
    packed.save_pretrained(tmp_path)
    loaded, _ = AUTO[head].from_pretrained(tmp_path, output_loading_info=True)
    encoder = AutoModel.from_pretrained(tmp_path)  # of some heads without its pooler
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    for model in (packed, loaded, BERT.model_classes[head](packed.config)):
        inside = {id(parameter) for parameter in model.base_model.parameters()}
        assert inside
        assert all(parameter.requires_grad != (id(parameter) in inside) for parameter in model.parameters())


def test_classifier_takes_a_bare_encoder(packed, tiny_batch, tmp_path):
    packed.bert.save_pretrained(tmp_path)
    model, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == {"classifier.weight", "classifier.bias"}  # which transformers reports
    assert info["unexpected_keys"] == set()
    assert equal(run(model.bert, tiny_batch), run(packed.bert, tiny_batch))


def test_pooler_missing_in_the_file_is_zero(tiny_config, tiny_batch, tmp_path):
    packed = pack_model(make_student(tiny_config, tiny_batch, "BertForTokenClassification"))
    packed.save_pretrained(tmp_path)
    encoder, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == {f"pooler.dense.{name}" for name in ("weight_packed", "weight_scale", "bias")}
    assert not any(tensor.any() for tensor in encoder.pooler.state_dict().values())
    outputs = run(encoder, tiny_batch)
    assert torch.equal(outputs["last_hidden_state"], run(packed.bert, tiny_batch)["last_hidden_state"])
    assert not outputs["pooler_output"].any()


def test_encoder_loads_without_its_pooler(packed, tiny_batch, tmp_path):
    packed.bert.save_pretrained(tmp_path)
    encoder = AutoModel.from_pretrained(tmp_path, add_pooling_layer=False)
    assert encoder.pooler is None
    expected = run(packed.bert, tiny_batch)["last_hidden_state"]
    assert torch.equal(run(encoder, tiny_batch)["last_hidden_state"], expected)


def test_new_head_on_request_only(packed, folder, tiny_batch):
    kwargs = {"num_labels": 5, "ignore_mismatched_sizes": True}
    model = AutoModelForSequenceClassification.from_pretrained(folder, **kwargs)
    assert run(model, tiny_batch)["logits"].shape == (3, 5)
    assert equal(run(model.bert, tiny_batch), run(packed.bert, tiny_batch))


@pytest.mark.parametrize("head", [CLASSIFIER, "BertForTokenClassification"])
@pytest.mark.parametrize("packs", [False, True], ids=["latent", "packed"])
def test_another_number_of_labels_needs_a_new_head(head, packs, tiny_config, tiny_batch, tmp_path):
    student = make_student(tiny_config, tiny_batch)
    (pack_model(student) if packs else student).save_pretrained(tmp_path / "model")
    text = (
        "model/model.safetensors: classifier.weight has shape [3, 36], but num_labels=42 needs [42, 36]. "
        "Load it with its own number of labels, or give ignore_mismatched_sizes=True for a new head."
    )
    for error in (PackedFileError, RuntimeError):  # transformers raises the latter
        with says(error, text):
            AUTO[head].from_pretrained(tmp_path / "model", num_labels=42)
    model = AUTO[head].from_pretrained(tmp_path / "model", num_labels=42, ignore_mismatched_sizes=True)
    assert model.classifier.out_features == 42


# Shards, dtypes, devices


def weight_files(path):
    return sorted(file.name for file in path.iterdir() if "safetensors" in file.name)


def test_shards_replace_one_file_and_one_file_replaces_shards(packed, tiny_batch, tmp_path):
    expected = run(packed, tiny_batch)
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)] + ["model.safetensors.index.json"]
    for size, files in (("5KB", shards), ("1GB", ["model.safetensors"]), ("5KB", shards)):
        packed.save_pretrained(tmp_path, max_shard_size=size)
        assert weight_files(tmp_path) == files
        model, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())
        assert equal(run(model, tiny_batch), expected)
    packed.save_pretrained(tmp_path, max_shard_size="9KB")
    assert len(weight_files(tmp_path)) == 3
    assert [file.name for file in tmp_path.glob(".*")] == []


def test_saving_removes_no_other_files(packed, folder):
    (folder / "model_notes.safetensors.md").write_text("mine")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    packed.save_pretrained(folder, is_main_process=False)  # as every process but the first of a parallel run does
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    packed.save_pretrained(folder, variant="v2")
    assert {file.name for file in folder.iterdir()} == {*before, "model.v2.safetensors"}
    packed.save_pretrained(folder, variant="v2", max_shard_size="5KB")
    shards = {f"model.v2-0000{i}-of-00003.safetensors" for i in (1, 2, 3)}
    assert {file.name for file in folder.iterdir()} == {*before, *shards, "model.safetensors.index.v2.json"}


@pytest.mark.parametrize("name", ["binary", "paper"])  # scales in float16, in float32
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loading_in_half_precision_leaves_codes_and_scales(dtype, name, tiny_config, tiny_batch, tmp_path):
    packed = pack_model(make_student(tiny_config, tiny_batch, recipe=RECIPES[name]))
    packed.save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=dtype)
    assert model.dtype == dtype
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    ours, theirs = codes_and_scales(model), codes_and_scales(packed)
    assert {value.dtype for value in ours.values()} == {torch.uint8, getattr(torch, RECIPES[name].scale_dtype)}
    assert equal(ours, theirs)
    logits = run(model, tiny_batch)["logits"]
    assert logits.dtype == dtype
    # Half precision moves activations across 8-bit steps: a sanity bound, not a promise.
    assert torch.allclose(logits.float(), run(packed, tiny_batch)["logits"], atol=0.05)


@pytest.mark.parametrize("device_map", ["cpu", "auto"])
def test_device_map(device_map, packed, folder, tiny_batch):
    model = AutoModelForSequenceClassification.from_pretrained(folder, device_map=device_map)
    logits = run(model, {key: value.to(model.device) for key, value in tiny_batch.items()})["logits"]
    expected = run(packed, tiny_batch)["logits"]
    if model.device.type == "cpu":
        assert torch.equal(logits, expected)
    else:  # another device adds up in another order, which may move an activation by one 8-bit step
        assert torch.allclose(logits.cpu(), expected, atol=0.02)


@pytest.mark.parametrize("offload_buffers", [False, True])
def test_offload_to_disk(offload_buffers, packed, folder, tiny_batch, tmp_path):
    if offload_buffers:
        pytest.importorskip("transformers", minversion="5.14", reason="cannot save buffers that are offloaded")
    parts = {"bert.encoder.layer.0": "cpu", "bert.encoder.layer.1": "disk", "bert.encoder.layer.2": "disk"}
    device_map = {"bert.embeddings": "cpu", **parts, "bert.pooler": "cpu", "classifier": "disk"}
    kwargs = {"device_map": device_map, "offload_folder": tmp_path / "offload", "offload_buffers": offload_buffers}
    model = AutoModelForSequenceClassification.from_pretrained(folder, **kwargs)
    assert model.classifier.weight.is_meta
    assert model.bert.encoder.layer[1].output.dense.weight_packed.is_meta is offload_buffers
    # The offloaded classifier runs on its own, and adds up in another order than in the native call.
    torch.testing.assert_close(run(model, tiny_batch), run(packed, tiny_batch), rtol=1e-5, atol=1e-6)
    with pytest.warns(UserWarning, match="Attempting to save a model with offloaded modules"):
        model.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


# Pipelines and compilation

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fine", "dull", "film"]


@pytest.fixture
def tokenizer(tiny_config):
    return BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})


def test_text_classification_pipeline(packed, folder, tokenizer):
    tokenizer.save_pretrained(folder)
    texts = ["a fine film", "dull"]
    classify = pipeline("text-classification", model=str(folder), top_k=None, device="cpu")
    assert type(classify.model) is XTCBertForSequenceClassification
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    expected = torch.softmax(run(packed, batch)["logits"], dim=-1)
    for row, scores in zip(classify(texts, batch_size=2), expected, strict=True):
        assert {entry["label"]: entry["score"] for entry in row} == pytest.approx(
            {f"LABEL_{i}": float(score) for i, score in enumerate(scores)}, abs=1e-6
        )


def test_fill_mask_pipeline(tiny_config, tiny_batch, tokenizer, tmp_path):
    packed = pack_model(make_student(tiny_config, tiny_batch, "BertForMaskedLM"))
    packed.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    fill = pipeline("fill-mask", model=str(tmp_path), device="cpu", top_k=2)
    logits = run(packed, tokenizer("a [MASK] film", return_tensors="pt"))["logits"][0, 2]
    best = torch.softmax(logits, dim=-1).topk(2)
    answers = fill("a [MASK] film")
    assert [answer["token"] for answer in answers] == best.indices.tolist()
    assert [answer["score"] for answer in answers] == pytest.approx(best.values.tolist(), abs=1e-6)


@pytest.mark.parametrize("backend", ["latent", "reference", "auto", "int8", "packed"])
def test_last_hidden_states_of_padding_are_zeros(backend, tiny_config, tiny_batch):
    """So a mean over all tokens is the same on all backends, and logits of padding are the head's bias."""
    student = make_student(tiny_config, tiny_batch, "BertForTokenClassification", XTCRecipe(keep_layers=1))
    model = student if backend == "latent" else pack_model(student)
    if backend != "latent":
        model.set_backend(backend)
    padding = tiny_batch["attention_mask"] == 0
    embeds = model.bert.embeddings.word_embeddings(tiny_batch["input_ids"])
    embedded = {"inputs_embeds": embeds, "attention_mask": tiny_batch["attention_mask"]}
    left = {name: values.flip(1) for name, values in tiny_batch.items()}
    scores = {**tiny_batch, "attention_mask": tiny_batch["attention_mask"][:, None, None].bool()}
    with torch.no_grad():
        for batch in (tiny_batch, embedded, {**tiny_batch, "output_hidden_states": True}):
            output = model.bert(**batch)
            assert torch.equal(output.last_hidden_state == 0, padding[..., None].expand_as(output.last_hidden_state))
            assert torch.equal(model.bert(**batch, return_dict=False)[0], output.last_hidden_state)
        assert bool((model.bert(**left).last_hidden_state[padding.flip(1)] == 0).all())
        assert bool((model.bert(**scores).last_hidden_state != 0).all()), "only a mask of tokens names the padding"
        logits = model(**tiny_batch).logits
    assert torch.equal(logits[padding], model.classifier.bias.expand_as(logits[padding]))
    assert bool((model.bert(**{**tiny_batch, "output_hidden_states": True}).hidden_states[-1] != 0).all())


# Dynamo itself makes a bare Function to stand for the context of a traced one.
@pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'> should not be:DeprecationWarning")
@pytest.mark.usefixtures("reference_backend")
def test_compiles_without_graph_breaks(tiny_config, tiny_batch):
    pytest.importorskip("torch", minversion="2.7", reason="cannot compile transformers' BERT")
    recipe = XTCRecipe(weights="ternary", embedding_weights="int4", keep_layers=1)
    packed = pack_model(make_student(tiny_config, tiny_batch, "BertForMaskedLM", recipe))
    compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
    assert equal(run(compiled, tiny_batch), run(packed, tiny_batch))
    packed.set_backend("auto")
    found, expected = run(compiled, tiny_batch), run(packed, tiny_batch)
    torch.testing.assert_close(found["logits"], expected["logits"], rtol=1e-4, atol=1e-4)


# Ties and vocabulary


@pytest.mark.parametrize("name", ["binary", "ternary", "float"])
@pytest.mark.parametrize("head", TIED)
def test_tied_decoder_is_stored_once_and_shared_after_loading(head, name, tiny_config, tiny_batch, tmp_path):
    packed = pack_model(make_student(tiny_config, tiny_batch, head, RECIPES[name]))
    packed.save_pretrained(tmp_path)
    model = AUTO[head].from_pretrained(tmp_path)
    keys = ["weight"] if name == "float" else ["weight_packed", "weight_scale"]
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        stored = set(file.keys())
    for tied in (packed, model):
        for key in keys:
            decoder, embedding = f"{DECODER}.{key}", f"bert.embeddings.word_embeddings.{key}"
            pair = [tied.get_parameter_or_buffer(path) for path in (decoder, embedding)]
            assert pair[0].data_ptr() == pair[1].data_ptr()
            assert pair[0].numel() > 0
            assert decoder not in stored
            assert embedding in stored
        assert tied.cls.predictions.decoder.bias is tied.cls.predictions.bias
    assert f"{DECODER}.bias" not in stored


def test_untied_decoder_stays_in_float(tiny_config, tiny_batch, tmp_path):
    tiny_config.tie_word_embeddings = False
    packed = pack_model(make_student(tiny_config, tiny_batch, "BertForMaskedLM"))
    assert type(packed.cls.predictions.decoder) is nn.Linear
    packed.save_pretrained(tmp_path)
    model, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert equal(run(model, tiny_batch), run(packed, tiny_batch))


def test_packed_vocabulary_cannot_be_resized(packed):
    text = (
        "A packed model cannot grow or shrink its vocabulary: rows of codes cannot be trained. "
        "Call unpack_model first, resize and train the latent model, then pack_model."
    )
    with says(StateError, text):
        packed.resize_token_embeddings(120)
    with says(StateError, text):
        packed.bert.resize_token_embeddings(120)


@pytest.mark.parametrize("head", [CLASSIFIER, "BertForMaskedLM"])
@pytest.mark.usefixtures("reference_backend")
def test_latent_vocabulary_can_be_resized(head, tiny_config, tiny_batch):
    student = make_student(tiny_config, tiny_batch, head)
    before = student.bert.embeddings.word_embeddings.weight.detach().clone()
    student.resize_token_embeddings(120, mean_resizing=False)
    embedding = student.bert.embeddings.word_embeddings
    assert type(embedding) is XTCEmbedding
    assert torch.equal(embedding.weight[:101], before)
    packed = pack_model(student, rest_dtype="float32")
    assert packed.config.vocab_size == 120
    assert packed.bert.embeddings.word_embeddings.weight_packed.shape[0] == 120
    assert equal(run(packed, tiny_batch), run(student, tiny_batch))


# Latent and plain checkpoints


@pytest.mark.parametrize("name", ["binary", "int4-static"])
@pytest.mark.parametrize("head", [CLASSIFIER, "BertForMaskedLM"])
def test_latent_checkpoint_round_trip(head, name, tiny_config, tiny_batch, tmp_path):
    student = make_student(tiny_config, tiny_batch, head, RECIPES[name])
    student.save_pretrained(tmp_path)
    model, info = AUTO[head].from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert model.config.state == "latent"
    assert equal(model.state_dict(), student.state_dict())
    assert equal(run(model, tiny_batch), run(student, tiny_batch))
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.float32}


def test_plain_bert_folder_loads_as_a_latent_model_of_the_default_recipe(tiny_config, tiny_batch, tmp_path):
    teacher = make_teacher(tiny_config, CLASSIFIER)
    teacher.save_pretrained(tmp_path)
    with CaptureLogger(logging.get_logger("transformers.configuration_utils")) as log:
        model, info = XTCBertForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert "You are using a model of type `bert` to instantiate a model of type `xtc_bert`" in log.out
    assert not any(info.values())
    assert (model.config.state, model.config.recipe, model.config.layer_map) == ("latent", XTCRecipe(), None)
    assert equal(run(model, tiny_batch), run(compress(teacher), tiny_batch))


def test_plain_bert_folder_does_not_load_as_packed(tiny_config, tmp_path):
    make_teacher(tiny_config, CLASSIFIER).save_pretrained(tmp_path / "plain")
    text = (
        "plain/model.safetensors does not hold 56 of the 99 tensors that its config.json promises "
        f"(first: embeddings.word_embeddings.weight_packed). {WRONG}"
    )
    with says(PackedFileError, text):
        XTCBertForSequenceClassification.from_pretrained(tmp_path / "plain", state="packed")


def test_ranges_missing_in_the_file_are_unseen(tiny_config, tiny_batch, tmp_path):
    make_teacher(tiny_config, CLASSIFIER).save_pretrained(tmp_path)
    config = XTCBertConfig.from_pretrained(tmp_path, xtc=xtc_block(RECIPES["int4-static"]))
    model = XTCBertForSequenceClassification.from_pretrained(tmp_path, config=config)
    ranges = [value for name, value in model.named_buffers() if name.endswith("activation.range")]
    assert len(ranges) == 4 * 6 + 1
    assert not any(value.any() for value in ranges)


# The configuration


def block(**changes):
    return {**xtc_block(XTCRecipe()), **changes}


FIELDS = (
    "weights, granularity, group_size, embedding_weights, position_weights, quantize_pooler, activation_bits, "
    "activation_symmetric, activation_calibration, keep_layers, layers, shifted_hidden_map, scale_dtype, rest_dtype"
)
MAP = {"layers": [0, 2], "num_teacher_layers": 4, "shifted": False}


@pytest.mark.parametrize(
    "values, error, text",
    [
        ({"state": "frozen"}, RecipeError, "state='frozen' does not exist. Use one of: latent, packed."),
        (
            {"xtc": block(format_version=2)},
            PackedFileError,
            "format_version=2; this version of hf_xtc reads 1. Upgrade hf_xtc, or write the checkpoint again.",
        ),
        (
            {"xtc": {}},
            PackedFileError,
            "format_version=None; this version of hf_xtc reads 1. Upgrade hf_xtc, or write the checkpoint again.",
        ),
        (
            {"xtc": block(layer_map=MAP), "num_hidden_layers": 3},
            PackedFileError,
            "num_hidden_layers=3, but the layer map keeps 2 layers [0, 2].",
        ),
        (
            {"xtc": block(layer_map=[0, 2])},
            PackedFileError,
            "[0, 2] stands in place of a layer map (layers, num_teacher_layers, shifted).",
        ),
        (
            {"xtc": block(layer_map={"layers": [0, 2]})},
            PackedFileError,
            "{'layers': [0, 2]} stands in place of a layer map (layers, num_teacher_layers, shifted).",
        ),
        (
            {"xtc": block(layer_map={**MAP, "layers": [0, 4]}), "num_hidden_layers": 2},
            RecipeError,
            "layers=(0, 4) names teacher layer 4, but the teacher has 4 layers (0-3). Use LayerMap.skip(4, 2).",
        ),
        (
            {"xtc": block(recipe={"weigths": "binary"})},
            RecipeError,
            f"A recipe has no field weigths; its fields are: {FIELDS}.",
        ),
        (
            {"xtc": block(recipe={"granularity": "per_row"})},
            RecipeError,
            "granularity='per_row' does not exist. Use one of: per_tensor, per_channel, per_group.",
        ),
        (
            {"xtc": block(recipe=None)},
            RecipeError,
            "A recipe is a JSON object, not None.",
        ),
    ],
    ids=[
        "state",
        "format_version",
        "no xtc",
        "depth",
        "map is a list",
        "map lacks fields",
        "map beyond teacher",
        "unknown field",
        "unknown value",
        "no recipe",
    ],
)
def test_config_with_bad_values(values, error, text):
    with says(error, text):
        XTCBertConfig(**values)


@pytest.mark.parametrize(
    "values, text",
    [
        ({"hidden_act": "x"}, "hidden_act='x' is no activation of transformers, such as 'gelu' or 'relu'."),
        ({"num_attention_heads": 5}, "num_attention_heads=5 does not divide hidden_size=768."),
        ({"hidden_size": 0}, "hidden_size=0 must be a whole number from 1 to 2147483647."),
        ({"pad_token_id": 30522}, "pad_token_id=30522 is not one of the 30522 tokens of vocab_size."),
        (
            {"layer_norm_eps": 1.5},
            "layer_norm_eps=1.5 must be above 0 and at most 1.",
        ),
        (
            {"quantization_config": {}},
            "quantization_config is given, but XTC models are quantized by their recipe. Remove it.",
        ),
        ({"architectures": [1]}, "architectures=[1] must be names of classes."),
        ({"id2label": {0: None}}, "id2label has labels that are not text. Give each label a name."),
    ],
)
def test_a_config_made_in_code_is_not_told_of_files(values, text, tmp_path):
    if Version(transformers.__version__) < Version("5.20") and not values.keys().isdisjoint(
        ("architectures", "id2label")
    ):
        pytest.skip("transformers refuses them itself")
    with says(PackedFileError, text):
        XTCBertConfig(**values)
    XTCBertConfig().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with says(PackedFileError, f"config.json: {text} If it was changed, restore the config written with the file."):
        XTCBertConfig.from_pretrained(tmp_path)


def test_the_largest_epsilon_is_one():
    assert XTCBertConfig(layer_norm_eps=1.0).layer_norm_eps == 1


def test_config_error_reaches_from_pretrained(folder):
    path = folder / "config.json"
    values = json.loads(path.read_text())
    values["xtc"]["recipe"]["weigths"] = "binary"
    path.write_text(json.dumps(values))
    with says(RecipeError, f"A recipe has no field weigths; its fields are: {FIELDS}."):
        AutoModelForSequenceClassification.from_pretrained(folder)


def test_group_size_that_does_not_divide_names_the_module(tiny_config, tiny_batch):
    text = (
        "encoder.layer.0.output.dense: group_size=4 does not divide the 50 input columns of a 36 x 50 weight, so its "
        "last group would be short. Choose a divisor, or granularity='per_channel'."
    )
    with says(RecipeError, text):
        make_student(tiny_config, tiny_batch, recipe=XTCRecipe(granularity="per_group", group_size=4))


def test_config_json_carries_recipe_and_layer_map(folder):
    config = XTCBertConfig.from_pretrained(folder)
    assert config.recipe == RECIPES["binary"]
    assert config.layer_map == RECIPES["binary"].layer_map(4)
    values = json.loads((folder / "config.json").read_text())
    assert (values["model_type"], values["state"], values["xtc"]["format_version"]) == ("xtc_bert", "packed", 1)
    assert "quantization_config" not in values


# Attention scores


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("kind", ["teacher", "latent", "packed"])
def test_scores_attention_changes_the_attentions_only(kind, masked, tiny_config, tiny_batch):
    models = {
        "teacher": lambda: make_teacher(tiny_config, CLASSIFIER),
        "latent": lambda: make_student(tiny_config, tiny_batch),
        "packed": lambda: pack_model(make_student(tiny_config, tiny_batch)),
    }
    model = models[kind]()
    batch = tiny_batch if masked else {"input_ids": tiny_batch["input_ids"]}
    with torch.no_grad():
        model.set_attn_implementation("eager")
        eager = model(**batch, output_attentions=True)
        model.set_attn_implementation(SCORES)
        ours = model(**batch, output_attentions=True)
    assert torch.equal(ours.logits, eager.logits)
    assert len(ours.attentions) == model.config.num_hidden_layers
    padding = torch.zeros(3, 11)
    if masked:
        padding[tiny_batch["attention_mask"] == 0] = torch.finfo(torch.float32).min
    for scores, probabilities in zip(ours.attentions, eager.attentions, strict=True):
        assert scores.shape == (3, 4, 11, 11)
        assert scores.abs().max() < 100  # no mask added
        assert torch.equal(torch.softmax(scores + padding[:, None, None, :], dim=-1), probabilities)
