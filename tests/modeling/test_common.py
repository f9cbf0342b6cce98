"""What transformers promises of every model, for each head in both states."""

import copy
import functools
import json

import pytest
import torch
import transformers
from torch import nn
from transformers import set_seed

from hf_xtc import ARCHITECTURES, XTCBertForSequenceClassification, XTCRecipe, compress, pack_model
from hf_xtc.errors import PackedFileError

HEADS = ARCHITECTURES["bert"].model_classes
CLASSIFIER = "BertForSequenceClassification"
LAYERS, ROWS, TOKENS, HEAD_COUNT = 2, 3, 11, 4
# Padding is skipped by the integer backends, which also round differently: one 8-bit step of an activation.
STEP = 0.02

pytestmark = pytest.mark.usefixtures("one_thread")
states = pytest.mark.parametrize("state", ["latent", "packed"])
heads = pytest.mark.parametrize("head", HEADS)


@pytest.fixture
def make(tiny_config):
    """Makes a model of two layers without dropout, in eval mode."""

    def make(head, state, **changes):
        config = copy.deepcopy(tiny_config)
        labels = 2 if head == "BertForQuestionAnswering" else 3
        changes = {"num_labels": labels, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **changes}
        for name, value in changes.items():
            setattr(config, name, value)
        set_seed(0)
        student = compress(getattr(transformers, head)(config), XTCRecipe(keep_layers=LAYERS))
        return student.eval() if state == "latent" else pack_model(student).eval()

    return make


def inputs(head, batch):
    """The batch as a head takes it; multiple choice takes the rows as choices of one example."""
    return {name: ids[None] for name, ids in batch.items()} if head == "BertForMultipleChoice" else batch


def labels(head, batch):
    ids = batch["input_ids"]
    return {
        "BertForSequenceClassification": {"labels": torch.tensor([0, 1, 2])},
        "BertForTokenClassification": {"labels": ids % 3},
        "BertForQuestionAnswering": {"start_positions": torch.ones(3).long(), "end_positions": torch.ones(3).long()},
        "BertForMaskedLM": {"labels": ids},
        "BertForMultipleChoice": {"labels": torch.tensor([1])},
        "BertForNextSentencePrediction": {"labels": torch.tensor([0, 1, 0])},
        "BertForPreTraining": {"labels": ids, "next_sentence_label": torch.tensor([0, 1, 0])},
    }[head]


def first(model, head, batch, **options):
    """The first output, of real tokens only."""
    with torch.no_grad():
        output = model(**{**inputs(head, batch), **options})[0]
    return output[batch["attention_mask"].bool()] if output.shape[:2] == (ROWS, TOKENS) else output


def close(ours, theirs, atol=STEP):
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


@states
@heads
def test_outputs(head, state, make, tiny_batch):
    model, batch = make(head, state), inputs(head, tiny_batch)
    model.set_attn_implementation("eager")
    asked = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        outputs = model(**batch, **asked)
        as_tuple = model(**batch, **asked, return_dict=False)
        for name in ("output_hidden_states", "output_attentions"):
            setattr(model.config, name, True)
        by_config = model(**batch)
    assert [tuple(state.shape) for state in outputs.hidden_states] == [(ROWS, TOKENS, 36)] * (LAYERS + 1)
    assert [tuple(each.shape) for each in outputs.attentions] == [(ROWS, HEAD_COUNT, TOKENS, TOKENS)] * LAYERS
    close(outputs.attentions[0].sum(-1), torch.ones(ROWS, HEAD_COUNT, TOKENS), atol=1e-5)
    assert len(as_tuple) == len(outputs)
    for ours, theirs, third in zip(as_tuple, outputs.to_tuple(), by_config.to_tuple(), strict=True):
        for a, b, c in zip(*(x if isinstance(x, tuple) else (x,) for x in (ours, theirs, third)), strict=True):
            assert torch.equal(a, b)
            assert torch.equal(a, c)
    model.config.output_hidden_states = model.config.output_attentions = model.config.return_dict = False
    assert isinstance(model(**batch), tuple)


@states
@heads
def test_inputs_may_be_given_in_other_ways(head, state, make, tiny_batch):
    model = make(head, state)
    expected, ids = first(model, head, tiny_batch), inputs(head, tiny_batch)["input_ids"]
    assert torch.equal(first(model, head, tiny_batch), expected)
    explicit = {"position_ids": torch.arange(TOKENS).expand(ids.shape), "token_type_ids": torch.zeros_like(ids)}
    close(first(model, head, tiny_batch, **explicit), expected, atol=1e-5)
    embeds = {"input_ids": None, "inputs_embeds": model.get_input_embeddings()(ids)}
    close(first(model, head, tiny_batch, **embeds), expected)
    mask = inputs(head, tiny_batch)["attention_mask"]
    for other in (mask.bool(), mask.float()):
        close(first(model, head, tiny_batch, attention_mask=other), expected, atol=1e-5)
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        first(model, head, tiny_batch, inputs_embeds=embeds["inputs_embeds"])


@states
@heads
def test_attention_and_chunks_do_not_change_the_outputs(head, state, make, tiny_batch):
    model = make(head, state)
    expected = first(model, head, tiny_batch)
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        assert model.config._attn_implementation == implementation
        close(first(model, head, tiny_batch), expected)
    close(first(make(head, state, chunk_size_feed_forward=1), head, tiny_batch), expected)


@states
@heads
def test_gradients_reach_states_and_attentions(head, state, make, tiny_batch):
    model = make(head, state)
    model.set_attn_implementation("eager")
    model.enable_input_require_grads()
    outputs = model(**inputs(head, tiny_batch), output_hidden_states=True, output_attentions=True)
    kept = (outputs.hidden_states[0], outputs.attentions[0])
    for tensor in kept:
        tensor.retain_grad()
    outputs[0].square().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in kept)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
@states
@pytest.mark.parametrize("head", [head for head in HEADS if head != "BertModel"])
def test_training_with_and_without_checkpointing(head, state, reentrant, make, tiny_batch):
    gradients = []
    for checkpointing in (False, True):
        model = make(head, state).train()
        model.enable_input_require_grads()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        assert all(layer.gradient_checkpointing == checkpointing for layer in model.base_model.encoder.layer)
        model(**inputs(head, tiny_batch), **labels(head, tiny_batch)).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert gradients[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    "problem, count, target",
    [
        ("multi_label_classification", 2, torch.ones(ROWS, 2)),
        ("single_label_classification", 2, torch.tensor([0, 1, 1])),
        ("regression", 1, torch.tensor([0.1, -1.0, 2.0])),
    ],
)
@states
def test_problem_types(state, problem, count, target, make, tiny_batch):
    model = make(CLASSIFIER, state, num_labels=count, problem_type=problem)
    loss = model(**tiny_batch, labels=target).loss
    logits = first(model, CLASSIFIER, tiny_batch)
    losses = {
        "multi_label_classification": nn.functional.binary_cross_entropy_with_logits,
        "single_label_classification": nn.functional.cross_entropy,
        "regression": lambda found, wanted: nn.functional.mse_loss(found.squeeze(), wanted),
    }
    close(loss.detach(), losses[problem](logits, target), atol=1e-5)


@states
@heads
def test_a_state_dict_in_memory_gives_the_model(head, state, make, tiny_batch):
    model = make(head, state)
    values = model.state_dict()
    filled = type(model)(copy.deepcopy(model.config)).eval()
    filled.load_state_dict(values)
    for again in (filled, type(model).from_pretrained(None, config=copy.deepcopy(model.config), state_dict=values)):
        assert again.dtype == torch.float32
        assert torch.equal(first(again, head, tiny_batch), first(model, head, tiny_batch))
        for copied, source in again.all_tied_weights_keys.items():
            tensors = [again.get_parameter_or_buffer(name) for name in (copied, source)]
            assert tensors[0].data_ptr() == tensors[1].data_ptr()


@states
@heads
def test_every_tensor_is_a_parameter_or_buffer_and_can_be_missing_unless_packed(head, state, make):
    model = make(head, state)
    plain = [
        key for module in model.modules() for key, value in vars(module).items() if isinstance(value, torch.Tensor)
    ]
    assert plain == []
    load = functools.partial(type(model).from_pretrained, None, config=copy.deepcopy(model.config), state_dict={})
    if state == "packed":
        with pytest.raises(PackedFileError, match=r"state_dict"):
            load()
    else:
        for name, tensor in load().state_dict().items():
            assert torch.isfinite(tensor).all(), name
            spread = tensor.std() if "weight" in name and tensor.dim() > 1 else torch.zeros(())
            assert spread <= 2 * model.config.initializer_range, name
    with torch.device("meta"):
        hollow = type(model)(copy.deepcopy(model.config))
    assert all(tensor.is_meta for tensor in (*hollow.parameters(), *hollow.buffers()))


@states
def test_a_folder_loads_in_every_way(state, make, tiny_batch, tmp_path):
    model = make(CLASSIFIER, state)
    model.save_pretrained(tmp_path)
    assert (
        not {"attn_implementation", "_attn_implementation"} & json.loads((tmp_path / "config.json").read_text()).keys()
    )
    load = XTCBertForSequenceClassification.from_pretrained
    for implementation in ("eager", "sdpa"):
        assert load(tmp_path, attn_implementation=implementation).config._attn_implementation == implementation
    for name in ("dtype", "torch_dtype"):
        for value in (torch.bfloat16, "bfloat16", "auto"):
            expected = torch.float32 if value == "auto" else torch.bfloat16
            assert load(tmp_path, **{name: value}).dtype == expected
    assert all(parameter.is_meta for parameter in load(tmp_path, device_map="meta").parameters())
    with torch.device("cpu"):
        loaded = load(tmp_path)
    assert all(tensor.is_contiguous() for tensor in (*loaded.parameters(), *loaded.buffers()))
    with torch.device("meta"), pytest.raises(RuntimeError, match="meta device context manager"):
        load(tmp_path)
    with pytest.raises(ImportError, match=r"[Ff]lash"):
        load(tmp_path, attn_implementation="flash_attention_2")


@states
def test_modules_kept_in_float32(state, make, tmp_path, monkeypatch):
    make(CLASSIFIER, state).save_pretrained(tmp_path)
    monkeypatch.setattr(XTCBertForSequenceClassification, "_keep_in_fp32_modules", ["LayerNorm"], raising=False)
    model = XTCBertForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float16)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if "LayerNorm" in name else torch.float16), name


@states
@heads
def test_embeddings_names_and_generation(head, state, make):
    model = make(head, state)
    assert (model.main_input_name, model.base_model_prefix) == ("input_ids", "bert")
    assert (model.base_model is model) == (head == "BertModel")
    assert not model.can_generate()
    new = nn.Embedding(5, 36)
    model.set_input_embeddings(new)
    assert model.get_input_embeddings() is new
    assert (model.get_output_embeddings() is None) == (head not in ("BertForMaskedLM", "BertForPreTraining"))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head", [CLASSIFIER, "BertForMaskedLM", "BertForPreTraining"])
def test_a_latent_vocabulary_grows_and_shrinks(head, tied, make, tiny_batch):
    model = make(head, "latent", tie_word_embeddings=tied)
    small = {**tiny_batch, "input_ids": tiny_batch["input_ids"].clamp(max=80)}
    for size in (111, 91):
        model.resize_token_embeddings(size, mean_resizing=False)
        embedding, decoder = model.get_input_embeddings(), model.get_output_embeddings()
        assert (model.config.vocab_size, embedding.weight.shape[0]) == (size, size)
        if decoder is not None:
            assert decoder.weight.shape[0] == decoder.bias.shape[0] == size
            assert (decoder.weight is embedding.weight) == tied
        assert torch.isfinite(first(model, head, small)).all()
