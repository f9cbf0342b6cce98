"""compress, pack_model, unpack_model: copied and rounded values, refusals, and unchanged arguments."""

import copy
import re

import pytest
import torch
import transformers
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertLMHeadModel,
    ErnieConfig,
    ErnieForSequenceClassification,
    set_seed,
)

from hf_xtc import ARCHITECTURES, XTCBertForSequenceClassification, XTCRecipe, compress, pack_model, unpack_model
from hf_xtc.compression.convert import is_packed
from hf_xtc.errors import RecipeError, StateError, XTCError
from hf_xtc.modeling.layers import PackedEmbedding, PackedLinear, XTCEmbedding, XTCLinear
from hf_xtc.quantization.quantizers import fake_quantize

FLOAT = XTCRecipe(weights=None, embedding_weights=None, position_weights=None, activation_bits=None)
MIXED = XTCRecipe(weights="ternary", keep_layers=2, activation_calibration="static")
HEADS = ARCHITECTURES["bert"].model_classes
POOLERLESS = ["BertForTokenClassification", "BertForQuestionAnswering", "BertForMaskedLM"]
SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
}


@pytest.fixture
def teacher(tiny_teacher):
    """The tiny teacher with biases that are not zero and LayerNorm weights that are not one."""
    for parameter in tiny_teacher.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, std=0.2)
    return tiny_teacher


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def pointers(model):
    return {tensor.data_ptr() for tensor in model.state_dict().values()}


def says(error, text):
    return pytest.raises(error, match=f"^{re.escape(text)}$")


# What is copied


def test_default_is_the_default_recipe_in_eval_mode_and_float32(teacher):
    teacher.train()
    student = compress(teacher)
    assert type(student) is XTCBertForSequenceClassification
    assert (student.config.state, student.config.recipe) == ("latent", XTCRecipe())
    assert student.config.layer_map.layers == (0, 1, 2, 3)
    assert not student.training
    assert teacher.training
    assert {parameter.dtype for parameter in student.parameters()} == {torch.float32}


def test_teacher_stays_as_it_was(teacher, tiny_batch):
    weights, config = snapshot(teacher), teacher.config.to_dict()
    teacher.requires_grad_(False)
    student = compress(teacher, MIXED)
    assert pointers(student).isdisjoint(pointers(teacher))
    assert all(parameter.requires_grad for parameter in student.parameters())
    student.train()(**tiny_batch, labels=torch.tensor([0, 1, 2])).loss.backward()
    torch.optim.SGD(student.parameters(), lr=1.0).step()
    assert equal(teacher.state_dict(), weights)
    assert teacher.config.to_dict() == config
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("layers", [(0, 2), (3,), (0, 1, 2, 3)])
def test_named_layers_are_copied(layers, teacher):
    student = compress(teacher, XTCRecipe(layers=layers))
    assert student.config.num_hidden_layers == len(layers)
    for ours, theirs in enumerate(layers):
        expected = teacher.bert.encoder.layer[theirs].state_dict()
        assert equal(student.bert.encoder.layer[ours].state_dict(), expected)
    for part in ("bert.embeddings", "bert.pooler", "classifier"):
        assert equal(student.get_submodule(part).state_dict(), teacher.get_submodule(part).state_dict())


def test_teacher_in_half_precision_gives_its_values_in_float32(teacher):
    student = compress(teacher.bfloat16(), FLOAT)
    assert equal(student.state_dict(), {name: tensor.float() for name, tensor in teacher.state_dict().items()})
    assert {tensor.dtype for tensor in student.state_dict().values()} == {torch.float32}


def test_labels_and_provenance_are_kept(teacher):
    teacher.config.id2label = {0: "bad", 1: "so-so", 2: "good"}
    teacher.config.label2id = {"bad": 0, "so-so": 1, "good": 2}
    teacher.config.name_or_path = "someone/teacher"
    config = compress(teacher, provenance={"data": "abc"}).config
    assert config.id2label == {0: "bad", 1: "so-so", 2: "good"}
    assert config.label2id == {"bad": 0, "so-so": 1, "good": 2}
    told = {"teacher": "someone/teacher", "base_model": "someone/teacher", "data": "abc"}
    assert config.xtc["provenance"] == told


@pytest.mark.parametrize("head", HEADS)
def test_float_student_of_all_layers_equals_its_teacher(head, tiny_config, tiny_batch):
    tiny_config.num_labels = 2
    set_seed(0)
    teacher = getattr(transformers, head)(tiny_config).eval()
    student = compress(teacher, FLOAT)
    assert type(student) is HEADS[head]
    batch = {k: v.unsqueeze(0) for k, v in tiny_batch.items()} if head == "BertForMultipleChoice" else tiny_batch
    with torch.no_grad():
        ours, theirs = student(**batch), teacher(**batch)
    assert ours.keys() == theirs.keys()
    kept = tiny_batch["attention_mask"].bool()
    for key in theirs:
        per_token = theirs[key].shape[:2] == kept.shape
        assert torch.equal(*(out[key][kept] if per_token else out[key] for out in (ours, theirs)))


def test_weights_from_a_reduced_model(teacher):
    reduced = compress(teacher, XTCRecipe(**{**FLOAT.to_dict(), "layers": (0, 2)}))
    with torch.no_grad():
        for parameter in reduced.parameters():
            parameter.add_(0.5)
    weights = snapshot(reduced)
    student = compress(teacher, XTCRecipe(layers=(0, 2)), weights_from=reduced)
    assert equal(student.state_dict(), weights)
    assert pointers(student).isdisjoint(pointers(reduced))
    assert student.config.layer_map.layers == (0, 2)
    assert student.config.layer_map.num_teacher_layers == 4
    assert student.config.recipe == XTCRecipe(layers=(0, 2))


def test_a_schedule_leaves_activation_ranges_to_the_new_student(teacher, tiny_batch):
    first = compress(teacher, MIXED).train()
    logits(first, tiny_batch)
    student = compress(teacher, MIXED, weights_from=first)
    ranges = [tensor for name, tensor in student.state_dict().items() if name.endswith("activation.range")]
    assert len(ranges) == 2 * 6 + 1
    assert not any(tensor.any() for tensor in ranges)


def test_a_student_can_be_compressed_again(teacher):
    first = compress(teacher, XTCRecipe(layers=(0, 2, 3)))
    second = compress(first, XTCRecipe(weights="ternary", layers=(1,)))
    assert equal(second.bert.encoder.layer[0].state_dict(), teacher.bert.encoder.layer[2].state_dict())
    assert second.config.layer_map.num_teacher_layers == 3


# What compress refuses


@pytest.mark.parametrize(
    "model, text",
    [
        (
            lambda: ErnieForSequenceClassification(ErnieConfig(**SIZES)),
            "XTC does not know the model type 'ernie'; it compresses albert, bert, camembert, deberta-v2, distilbert, "
            "electra, modernbert, mpnet, roberta, xlm-roberta, and what you declare with register_family "
            "(docs/extending.md).",
        ),
        (
            lambda: BertLMHeadModel(BertConfig(**SIZES, is_decoder=True)),
            "There is no compressed form of BertLMHeadModel. Load the teacher as one of: BertForMaskedLM, "
            "BertForMultipleChoice, BertForNextSentencePrediction, BertForPreTraining, BertForQuestionAnswering, "
            "BertForSequenceClassification, BertForTokenClassification, BertModel.",
        ),
    ],
    ids=["Ernie", "BertLMHeadModel"],
)
def test_teacher_without_compressed_form(model, text):
    with says(XTCError, text):
        compress(model())


def test_layers_beyond_the_teacher(teacher):
    text = "layers=(0, 4) names teacher layer 4, but the teacher has 4 layers (0-3). Use LayerMap.skip(4, 2)."
    with says(RecipeError, text):
        compress(teacher, XTCRecipe(layers=(0, 4)))


def test_packed_models_are_refused_as_weights_from(teacher):
    packed = pack_model(compress(teacher))
    text = "XTCBertForSequenceClassification is packed; compress needs float weights. Call unpack_model first."
    with says(StateError, text):
        compress(packed)
    with says(StateError, text):
        compress(teacher, weights_from=packed)


def test_weights_from_another_depth(teacher):
    text = "weights_from has 4 layers, the student has 2. Start from a model of the student's depth."
    with says(XTCError, text):
        compress(teacher, XTCRecipe(keep_layers=2), weights_from=teacher)


def test_weights_from_another_head(teacher, tiny_config):
    other = BertForTokenClassification(tiny_config)
    text = (
        "The teacher's weights do not fit XTCBertForSequenceClassification: "
        "bert.pooler.dense.bias, bert.pooler.dense.weight."
    )
    with says(XTCError, text):
        compress(teacher, weights_from=other)


@pytest.mark.parametrize(
    "verb, state, text",
    [
        (
            pack_model,
            "plain",
            "BertForSequenceClassification is not an XTC model; "
            "pack_model packs a latent XTC model; compress makes one.",
        ),
        (
            pack_model,
            "packed",
            "XTCBertForSequenceClassification is packed; pack_model packs a latent XTC model; compress makes one.",
        ),
        (
            unpack_model,
            "plain",
            "BertForSequenceClassification is not an XTC model; "
            "unpack_model unpacks a packed XTC model; pack_model makes one.",
        ),
        (
            unpack_model,
            "latent",
            "XTCBertForSequenceClassification is latent; "
            "unpack_model unpacks a packed XTC model; pack_model makes one.",
        ),
    ],
    ids=["pack plain", "pack packed", "unpack plain", "unpack latent"],
)
def test_wrong_state(verb, state, text, teacher):
    model = teacher
    if state != "plain":
        model = compress(teacher)
    if state == "packed":
        model = pack_model(model)
    with says(StateError, text):
        verb(model)


# pack_model


def test_packing_leaves_the_student_as_it_was(teacher, tiny_batch):
    student = compress(teacher, MIXED).train()
    logits(student, tiny_batch)
    weights, config = snapshot(student), copy.deepcopy(student.config.to_dict())
    packed = pack_model(student, rest_dtype="bfloat16")
    assert pointers(packed).isdisjoint(pointers(student))
    assert equal(student.state_dict(), weights)
    assert student.config.to_dict() == config
    assert student.training
    assert not packed.training
    assert (packed.config.state, packed.config.recipe.rest_dtype) == ("packed", "bfloat16")
    assert (is_packed(packed), is_packed(student), is_packed(teacher)) == (True, False, False)


def test_packed_weights_are_the_fake_quantized_ones(teacher):
    student = compress(teacher, XTCRecipe(weights="ternary", embedding_weights="int4"))
    packed = pack_model(student)
    layers = {name: module for name, module in packed.named_modules() if isinstance(module, PackedLinear)}
    layers |= {name: module for name, module in packed.named_modules() if isinstance(module, PackedEmbedding)}
    assert len(layers) == 4 * 6 + 1 + 3
    for name, layer in layers.items():
        assert torch.equal(layer.dequantize(), fake_quantize(student.get_submodule(name).weight, layer.spec))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_rest_is_rounded_to_what_the_file_stores(dtype, teacher):
    student = compress(teacher)
    packed = pack_model(student, rest_dtype=dtype)
    rest = dict(packed.named_parameters())
    assert "bert.encoder.layer.0.output.dense.bias" in rest
    assert "classifier.weight" in rest
    for name, parameter in rest.items():
        latent = student.get_parameter(name)
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, latent.to(getattr(torch, dtype)).float())
        assert torch.equal(parameter, latent) is (dtype == "float32")


def test_unknown_rest_dtype(teacher):
    text = "rest_dtype='float8' does not exist. Use one of: float16, bfloat16, float32."
    with says(RecipeError, text):
        pack_model(compress(teacher), rest_dtype="float8")


@pytest.mark.parametrize(
    "name", ["classifier.bias", "bert.pooler.dense.bias", "bert.encoder.layer.3.attention.output.LayerNorm.weight"]
)
@pytest.mark.usefixtures("reference_backend")
def test_float16_overflow_is_named_and_float32_avoids_it(name, teacher, tiny_batch):
    student = compress(teacher)
    with torch.no_grad():
        student.get_parameter(name)[0] = 1e5
    text = (
        f"{name} holds NaN, infinity or values beyond torch.float16, which cannot be packed. "
        "Go back to an earlier checkpoint, or pack with rest_dtype='float32'."
    )
    with says(StateError, text):
        pack_model(student)
    assert torch.equal(logits(pack_model(student, rest_dtype="float32"), tiny_batch), logits(student, tiny_batch))


def test_scale_that_overflows_is_named(teacher):
    student = compress(teacher)
    nn.init.constant_(student.bert.pooler.dense.weight, 1e5)
    text = "A scale of bert.pooler.dense.weight overflows float16. Use scale_dtype='float32'."
    with says(StateError, text):
        pack_model(student)


def test_what_training_added_is_left_out(teacher, tiny_batch):
    student = compress(teacher)
    expected = pack_model(student).state_dict()
    student.add_module("distillation_projection", nn.Linear(36, 20))
    assert "distillation_projection.weight" in student.state_dict()
    packed = pack_model(student)
    assert equal(packed.state_dict(), expected)


@pytest.mark.parametrize("head", POOLERLESS)
def test_heads_without_pooler(head, tiny_config):
    tiny_config.num_labels = 2
    set_seed(0)
    student = compress(getattr(transformers, head)(tiny_config))
    packed = pack_model(student)
    assert student.bert.pooler is None
    assert packed.bert.pooler is None
    assert not any("pooler" in name for name in packed.state_dict())


# unpack_model


@pytest.mark.parametrize("granularity, group_size", [("per_tensor", None), ("per_channel", None), ("per_group", 2)])
@pytest.mark.parametrize("quantizer", ["binary", "ternary"])
@pytest.mark.parametrize("head", ["BertForSequenceClassification", "BertForMaskedLM"])
def test_unpacking_and_packing_again_gives_the_same_model(head, quantizer, granularity, group_size, tiny_config):
    set_seed(0)
    teacher = getattr(transformers, head)(tiny_config)
    recipe = XTCRecipe(
        weights=quantizer,
        embedding_weights=quantizer,
        position_weights=quantizer,
        granularity=granularity,
        group_size=group_size,
    )
    packed = pack_model(compress(teacher, recipe))
    before = snapshot(packed)
    latent = unpack_model(packed)
    assert latent.config.state == "latent"
    assert pointers(latent).isdisjoint(pointers(packed))
    for name, layer in latent.named_modules():
        if isinstance(layer, XTCLinear | XTCEmbedding):
            assert torch.equal(layer.weight, packed.get_submodule(name).dequantize())
    assert equal(pack_model(latent).state_dict(), before)
    assert equal(packed.state_dict(), before)


def test_unpacked_model_keeps_ranges_and_trains(teacher, tiny_batch):
    student = compress(teacher, MIXED).train()
    logits(student, tiny_batch)
    latent = unpack_model(pack_model(student))
    name = "bert.encoder.layer.1.output.dense"
    expected = student.get_submodule(name).activation.range
    assert expected.any()
    assert torch.equal(latent.get_submodule(name).activation.range, expected)
    latent(**tiny_batch, labels=torch.tensor([0, 1, 2])).loss.backward()
    assert latent.get_submodule(name).weight.grad.abs().sum() > 0
    assert latent.bert.embeddings.word_embeddings.weight.grad.abs().sum() > 0


def test_unpacked_tie_is_kept(tiny_config):
    latent = unpack_model(pack_model(compress(transformers.BertForMaskedLM(tiny_config))))
    assert latent.cls.predictions.decoder.weight is latent.bert.embeddings.word_embeddings.weight
    assert latent.cls.predictions.decoder.bias is latent.cls.predictions.bias


def test_teacher_may_be_named_by_its_compressed_class(teacher):
    student = compress(compress(teacher))
    assert type(student) is XTCBertForSequenceClassification
    assert type(teacher) is BertForSequenceClassification


# Devices


def tensors(model):
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@pytest.mark.parametrize("calibration", ["dynamic", "static"])
@pytest.mark.parametrize("weights", ["binary", "ternary", "int4", "int8"])
def test_every_tensor_is_on_the_device_of_the_input(tiny_teacher, device, weights, calibration):
    """The default device is another one here, so that a tensor that is made without naming a device shows."""
    teacher = tiny_teacher.to(device)
    recipe = XTCRecipe(weights, embedding_weights=weights, activation_calibration=calibration)
    with torch.device("meta"):
        student = compress(teacher, recipe)
        packed = pack_model(student)
        unpacked = unpack_model(packed)
    for model in (student, packed, unpacked):
        assert {tensor.device.type for tensor in tensors(model).values()} == {device.type}
    for found, expected in ((packed, pack_model(student)), (unpacked, unpack_model(packed))):
        assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in found.state_dict().items())


def test_models_without_values_or_on_several_devices_are_refused(tiny_teacher):
    latent = compress(tiny_teacher)
    packed = pack_model(latent)
    for convert, model in ((compress, tiny_teacher), (pack_model, latent), (unpack_model, packed)):
        name = type(model).__name__
        model.classifier.to("meta")
        with pytest.raises(
            StateError, match=rf"^The tensors of {name} are on cpu and meta; they must be on one device"
        ):
            convert(model)
        with pytest.raises(StateError, match=rf"^The tensors of {name} are on meta; they must be on one device, with"):
            convert(model.to("meta"))
