"""The fused encoder: its results are those of the layers, and it is used only where it supports every input."""

import copy
import gc
import itertools
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from families import CLASSIFIERS, make_batch
from families import make_teacher as make_family
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    set_seed,
)
from transformers.activations import GELUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.bert.modeling_bert import BertIntermediate

from hf_xtc import ARCHITECTURES, PackedLinear, XTCError, XTCRecipe, compress, pack_model, unpack_model
from hf_xtc.backends import layouts
from hf_xtc.backends.choice import say_choice
from hf_xtc.backends.layouts import fastest_layout
from hf_xtc.errors import StateError
from hf_xtc.modeling import fused as fused_module
from hf_xtc.modeling.fused import FusedEncoder, forget_fused_encoder, fused_encoder
from hf_xtc.modeling.layers import _PREPARED
from hf_xtc.native import encoder as native
from hf_xtc.native import library as native_library
from hf_xtc.quantization.specs import ActivationSpec

pytestmark = pytest.mark.skipif(not native_library.variants(), reason="the native operator is not built")
BACKENDS = ["int8", "packed", "auto"]


@pytest.fixture
def packed(tiny_teacher):
    return pack_model(compress(tiny_teacher, XTCRecipe(keep_layers=3)))


@pytest.fixture
def calls(monkeypatch):
    """Records each batch that the fused encoder computes."""
    made, call = [], native.NativeEncoder.__call__
    monkeypatch.setattr(native.NativeEncoder, "__call__", lambda *args: made.append(1) or call(*args))
    return made


def outputs(model, batch, backend, **kwargs):
    model.set_backend(backend)
    with torch.inference_mode():
        return model(**batch, **kwargs)


@pytest.mark.parametrize("variant", list(native_library.variants()))
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weights", ["binary", "ternary", "int4"])
@pytest.mark.parametrize("embeddings", ["binary", "ternary", "int8", None])
def test_equals_the_reference(weights, embeddings, backend, variant, tiny_teacher, tiny_batch, calls, monkeypatch):
    """On a ragged batch of odd widths. Only float rounding differs: no activation of this model is a rounding tie."""
    monkeypatch.setenv("XTC_NATIVE", variant)
    recipe = XTCRecipe(weights=weights, embedding_weights=embeddings, position_weights=embeddings)
    model = pack_model(compress(tiny_teacher, recipe))
    types = torch.arange(11).expand(3, 11) // 5 % 2
    batch = {**tiny_batch, "token_type_ids": types, "position_ids": torch.arange(11).flip(0)[None]}
    expected = outputs(model, batch, "reference").logits
    found = outputs(model, batch, backend).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert len(calls) == (0 if backend == "packed" and weights == "int4" else 1)


@pytest.mark.parametrize("variant", list(native_library.variants()))
@pytest.mark.parametrize("weights", ["binary", "ternary", "int4"])
def test_weight_layout_of_every_backend(weights, variant, tiny_teacher, monkeypatch):
    monkeypatch.setenv("XTC_NATIVE", variant)
    model = pack_model(compress(tiny_teacher, XTCRecipe(weights=weights))).bert
    packed = {"binary": native.NIBBLES, "ternary": native.PAIRS}.get(weights)
    for backend in ("int8", "packed", "auto"):
        model.set_backend(backend)
        fused = fused_encoder(model)
        if backend == "packed" and packed is None:
            assert fused is None
            continue
        layers = [layer.struct for layer in fused._encoder._layers]
        found = [w for x in layers for w in (x.qkv, x.attention_output, x.intermediate, x.output)]
        by_shape = [fastest_layout(weights, w.rows, w.columns) for w in found]
        expected = {"int8": [native.BYTES] * len(found), "packed": [packed] * len(found), "auto": by_shape}
        assert [w.layout for w in found] == expected[backend]


def test_the_layouts_that_auto_chooses_change_no_bit(packed, tiny_batch, monkeypatch):
    """Not even if each weight has another one."""
    everywhere = [native.BYTES, native.PAIRS, native.NIBBLES, native.SEXTETS]
    by_turns = itertools.cycle(everywhere)
    choices = [*[lambda *shape, layout=layout: layout for layout in everywhere], lambda *shape: next(by_turns)]
    found = []
    for choice in choices:
        monkeypatch.setattr(fused_module, "fastest_layout", choice)
        forget_fused_encoder(packed.bert)
        found.append(outputs(packed, tiny_batch, "auto").logits)
    assert all(torch.equal(logits, found[0]) for logits in found)


def test_the_choice_is_logged_once_for_each_size_of_weight(packed, tiny_batch, caplog, monkeypatch):
    def choice(quantizer, rows, columns):
        return layouts.Choice(native.NIBBLES, "large weights" if rows > 100 else "small weights", "by the test")

    monkeypatch.setattr(layouts, "choose_layout", choice)
    monkeypatch.setattr(layouts, "processor", lambda: "X")
    say_choice.cache_clear()
    forget_fused_encoder(packed.bert)
    with caplog.at_level("INFO"):
        outputs(packed, tiny_batch, "auto"), outputs(packed, tiny_batch, "auto")
    way = f"Packed linears run on the 'auto' backend, the native operator ({native_library.variant()}) on X: "
    assert caplog.messages == [f"{way}{size} weights as nibbles, by the test." for size in ("large", "small")]


@pytest.mark.parametrize("variant", list(native_library.variants()))
@pytest.mark.parametrize("hidden, heads, intermediate", [(64, 1, 1600), (96, 6, 40), (36, 36, 50), (800, 8, 16)])
def test_widths_heads_and_lengths(hidden, heads, intermediate, variant, monkeypatch):
    """One layer, compared by mean difference, since a rounding tie may change single values."""
    monkeypatch.setenv("XTC_NATIVE", variant)
    set_seed(0)
    config = BertConfig(
        vocab_size=101,
        hidden_size=hidden,
        num_hidden_layers=1,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        max_position_embeddings=150,
    )
    model = pack_model(compress(BertForSequenceClassification(config).eval())).bert
    lengths = torch.tensor([1, 2, 37, 150, 16])
    mask = (torch.arange(150) < lengths[:, None]).long()
    batch = {"input_ids": torch.randint(1, 101, (5, 150)) * mask, "attention_mask": mask}
    expected = outputs(model, batch, "reference").last_hidden_state[mask.bool()]
    found = outputs(model, batch, "auto").last_hidden_state
    assert bool((found[~mask.bool()] == 0).all()), "padding is not computed"
    difference = (found[mask.bool()] - expected).abs()
    assert difference.median() < 1e-5
    assert difference.mean() < 2e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_do_not_depend_on_their_batch(packed, tiny_batch, backend):
    """Alone, together or padded, rows are bitwise equal, since sums are exact and rows are independent."""
    together = outputs(packed.bert, tiny_batch, backend)
    for row, length in enumerate((11, 6, 3)):
        alone = outputs(packed.bert, {"input_ids": tiny_batch["input_ids"][row : row + 1, :length]}, backend)
        assert torch.equal(alone.last_hidden_state[0], together.last_hidden_state[row, :length])
        assert torch.equal(alone.pooler_output[0], together.pooler_output[row])


def test_a_masked_language_model(tiny_config, tiny_batch):
    set_seed(0)
    model = pack_model(compress(BertForMaskedLM(tiny_config).eval()))
    kept = tiny_batch["attention_mask"].bool()
    expected = outputs(model, tiny_batch, "reference").logits[kept]
    torch.testing.assert_close(outputs(model, tiny_batch, "auto").logits[kept], expected, rtol=1e-4, atol=1e-4)


def test_tuples(packed, tiny_batch, calls):
    whole = outputs(packed.bert, tiny_batch, "auto")
    hidden, pooled = outputs(packed.bert, tiny_batch, "auto", return_dict=False)
    assert torch.equal(hidden, whole.last_hidden_state)
    assert torch.equal(pooled, whole.pooler_output)
    assert len(calls) == 2


@pytest.mark.parametrize("asked", ["output_hidden_states", "output_attentions", "inputs_embeds", "mask of scores"])
def test_what_needs_the_layers_runs_layer_by_layer(packed, tiny_batch, calls, asked):
    kwargs = {}
    if asked == "output_attentions":
        packed.set_attn_implementation("eager")
    if asked.startswith("output"):
        kwargs[asked] = True
    elif asked == "inputs_embeds":
        tiny_batch["inputs_embeds"] = packed.bert.embeddings.word_embeddings(tiny_batch.pop("input_ids"))
    else:
        tiny_batch["attention_mask"] = tiny_batch["attention_mask"][:, None, None].expand(3, 1, 11, 11).bool()
    expected = outputs(packed, tiny_batch, "reference", **kwargs)
    found = outputs(packed, tiny_batch, "auto", **kwargs)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    if asked.startswith("output"):
        assert len(found[asked.removeprefix("output_")]) == len(expected[asked.removeprefix("output_")]) > 0
    assert calls == []


def test_recording_outputs_once_does_not_disable_the_fused_encoder(packed, tiny_batch, calls):
    outputs(packed, tiny_batch, "auto", output_hidden_states=True)
    outputs(packed, tiny_batch, "auto")
    assert len(calls) == 1


@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_are_called(packed, tiny_batch, calls, kind):
    outputs(packed, tiny_batch, "auto")
    seen = []
    handle = getattr(packed.bert.encoder.layer[1].output.dense, kind)(lambda *args: seen.append(1))
    outputs(packed, tiny_batch, "auto")
    assert (len(seen), len(calls)) == (1, 1)
    handle.remove()
    outputs(packed, tiny_batch, "auto")
    assert (len(seen), len(calls)) == (1, 2)


def test_left_padding_is_computed(packed, tiny_batch, calls):
    """The pooler reads the first token, so its state must be that of the reference."""
    flipped = {name: values.flip(1) for name, values in tiny_batch.items()}
    expected = outputs(packed, flipped, "reference").logits
    torch.testing.assert_close(outputs(packed, flipped, "auto").logits, expected, rtol=1e-4, atol=1e-4)
    assert calls == []


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
@pytest.mark.parametrize(
    "batch",
    [
        pytest.param({"input_ids": torch.tensor([[101]])}, id="beyond"),
        pytest.param({"input_ids": torch.tensor([[-1]])}, id="negative"),
        pytest.param({"input_ids": torch.ones(1, 41, dtype=torch.long)}, id="too-long"),
        pytest.param({"input_ids": torch.ones(1, 3)}, id="float"),
        pytest.param({"input_ids": torch.ones(1, 101, dtype=torch.bool)}, id="bool"),
        pytest.param({"input_ids": torch.ones(1, 3).long(), "token_type_ids": torch.full((1, 3), 2)}, id="types"),
        pytest.param({"input_ids": torch.ones(1, 3).long(), "position_ids": torch.full((1, 3), 40)}, id="positions"),
    ],
)
def test_ids_that_are_no_rows_raise_as_in_torch(packed, batch, backend):
    message = r"index out of range|expanded size|size of tensor|scalar types: Long, Int|out of bounds"
    with pytest.raises((IndexError, RuntimeError), match=message):
        outputs(packed, batch, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["input_ids", "attention_mask", "token_type_ids"])
def test_inputs_on_another_device_are_refused(packed, tiny_batch, name, backend, calls):
    batch = {**tiny_batch, name: torch.zeros_like(tiny_batch["input_ids"], device="meta")}
    with pytest.raises(RuntimeError, match="meta"):
        outputs(packed, batch, backend)
    assert calls == []


def test_changes_of_the_model_are_seen(packed, tiny_batch):
    before = outputs(packed, tiny_batch, "auto").logits
    layer = packed.bert.encoder.layer[0]
    with torch.no_grad():
        layer.output.LayerNorm.bias.add_(1)
    changed = outputs(packed, tiny_batch, "auto").logits
    assert not torch.equal(changed, before)
    other = PackedLinear(36, 36, spec=layer.attention.self.query.spec, activation=None)
    layer.attention.self.query = other
    assert fused_encoder(packed.bert) is None
    other.activation = layer.attention.self.key.activation
    other.bias.requires_grad_(False)
    found = outputs(packed, tiny_batch, "auto").logits
    torch.testing.assert_close(found, outputs(packed, tiny_batch, "reference").logits, rtol=1e-4, atol=1e-4)


def test_a_packed_model_is_not_expanded_before_its_first_forward(packed, tmp_path, monkeypatch):
    """Not when it is moved, saved, loaded, copied or inspected."""
    monkeypatch.setattr(native, "NativeWeight", None)
    monkeypatch.setattr(FusedEncoder, "__init__", None)
    packed.set_backend("int8")
    packed.save_pretrained(tmp_path)
    loaded = type(packed).from_pretrained(tmp_path)
    copy.deepcopy(loaded).to("cpu").half().float()
    assert "PackedLinear" in repr(loaded)
    assert not any(module in _PREPARED for module in loaded.modules())


def test_packed_models_are_frozen_except_their_heads(packed):
    trainable = {name for name, parameter in packed.named_parameters() if parameter.requires_grad}
    assert trainable == {"classifier.weight", "classifier.bias"}
    assert all(parameter.requires_grad for parameter in unpack_model(packed).parameters())


@pytest.mark.parametrize("backend", ["int8", "packed"])
@pytest.mark.parametrize("part", ["embeddings.LayerNorm.bias", "encoder.layer.2.output.LayerNorm.weight"])
def test_training_through_integers_is_refused(packed, tiny_batch, backend, part):
    outputs(packed, tiny_batch, backend)  # the fused encoder exists when training starts
    packed.bert.get_parameter(part).requires_grad_(True)
    with pytest.raises(StateError, match=f"^The '{backend}' backend computes with integers, which have no gradient"):
        packed(**tiny_batch)
    packed.set_backend("auto")
    packed(**tiny_batch).logits.sum().backward()
    assert packed.bert.get_parameter(part).grad is not None


def test_set_backend_refuses_unknown_names_and_latent_models(packed, tiny_teacher):
    with pytest.raises(XTCError, match=r"^Unknown backend 'int9'; registered: auto, int8, packed, reference\.$"):
        packed.set_backend("int9")
    message = (
        r"^set_backend\('int8'\) chooses how packed weights are multiplied, but this model is latent\. "
        r"Call pack_model first\.$"
    )
    with pytest.raises(StateError, match=message):
        compress(tiny_teacher).set_backend("int8")


def test_set_backend_reaches_every_packed_linear(packed):
    packed.set_backend("packed")
    assert {m.backend for m in packed.modules() if isinstance(m, PackedLinear)} == {"packed"}
    assert packed.backend == packed.bert.backend == "packed"


def test_threads_share_a_model(packed, tiny_batch):
    """Several Python threads at once; each call has its own buffers."""
    expected = outputs(packed, tiny_batch, "auto").logits
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: outputs(packed, tiny_batch, "auto").logits, range(32)))
    assert all(torch.equal(found, expected) for found in results)


def test_other_dtypes_run_layer_by_layer(packed, tiny_batch, calls):
    expected = outputs(packed, tiny_batch, "auto").logits
    found = outputs(packed.bfloat16(), tiny_batch, "auto").logits
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)
    assert len(calls) == 1


def test_a_model_that_ran_can_be_forgotten(packed, tiny_batch):
    """Its expanded weights do not keep the model or its codes alive."""
    outputs(packed, tiny_batch, "auto")
    copied = copy.deepcopy(packed)
    outputs(copied, tiny_batch, "auto")
    alive = [weakref.ref(copied.bert), weakref.ref(copied.bert.encoder.layer[0].output.dense)]
    del copied
    gc.collect()
    assert [reference() for reference in alive] == [None, None]


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_a_model_made_in_inference_mode(packed, tiny_batch, backend):
    """Tensors made in inference mode have no version counter."""
    expected = outputs(packed, tiny_batch, backend).logits
    with torch.inference_mode():
        again = copy.deepcopy(packed)
    assert torch.equal(outputs(again, tiny_batch, backend).logits, expected)


def scale_output(module, args, output):
    return output * 2


class Doubled(ModelHook):
    """A hook of accelerate."""

    def post_forward(self, module, output):
        return output * 2


class Half(nn.Module):
    """A parametrization."""

    def forward(self, weight):
        return weight / 2


def replace_forward(model, layer):
    forward = layer.attention.forward
    layer.attention.forward = lambda *args, **kwargs: (forward(*args, **kwargs)[0] / 2, None)


def use_function(model, layer):
    del layer.intermediate.intermediate_act_fn
    layer.intermediate.intermediate_act_fn = torch.nn.functional.silu


def drop_everything(model, layer):
    layer.output.dropout.p = 1.0
    layer.output.dropout.train()


def widen_heads(model, layer):
    own = layer.attention.self
    own.num_attention_heads, own.attention_head_size = own.num_attention_heads // 2, own.attention_head_size * 2


def set_(path, value):
    """Sets an attribute of a layer, or of the model if the path begins with a dot."""

    def change(model, layer):
        parent, _, name = path.rpartition(".")
        root = model if path.startswith(".") else layer
        setattr(root.get_submodule(parent.removeprefix(".")), name, value() if callable(value) else value)

    return change


def every_norm(model, layer):
    for module in model.encoder.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 0.3


# Changes of a model's modules, by name; True where the native encoder still computes them.
CHANGES = {
    "epsilon of one LayerNorm": (set_("output.LayerNorm.eps", 0.5), False),
    "epsilon of the layers' LayerNorms": (every_norm, True),
    "epsilon of the embeddings": (set_(".embeddings.LayerNorm.eps", 0.5), True),
    "no LayerNorm bias": (set_("output.LayerNorm.bias", None), False),
    "no LayerNorm": (set_("attention.output.LayerNorm", nn.Identity), False),
    "RMSNorm": (set_("output.LayerNorm", lambda: nn.RMSNorm(36)), False),
    "ReLU": (set_("intermediate.intermediate_act_fn", nn.ReLU), False),
    "tanh GELU": (set_("intermediate.intermediate_act_fn", lambda: nn.GELU(approximate="tanh")), False),
    "PyTorch's GELU": (set_("intermediate.intermediate_act_fn", lambda: nn.GELU().eval()), True),
    "an attribute of the activation": (set_("intermediate.intermediate_act_fn.act", lambda: torch.relu), False),
    "a function as activation": (use_function, False),
    "forward of an instance": (replace_forward, False),
    "accelerate's hook": (lambda model, layer: add_hook_to_module(layer.output, Doubled()), False),
    "hook": (lambda model, layer: layer.output.dense.register_forward_hook(scale_output), False),
    "parametrization": (
        lambda model, layer: parametrize.register_parametrization(layer.output.LayerNorm, "weight", Half()),
        False,
    ),
    "dropout": (drop_everything, False),
    "scaling": (set_("attention.self.scaling", 0.1), False),
    "heads": (widen_heads, False),
    "position ids": (lambda model, layer: model.embeddings.position_ids.copy_(torch.arange(40).flip(0)[None]), True),
    "token types": (set_(".embeddings.token_type_ids", lambda: torch.ones(1, 40, dtype=torch.int64)), True),
    "fewer layers": (lambda model, layer: model.encoder.layer.pop(0), True),
    "a layer twice": (lambda model, layer: model.encoder.layer.append(layer), True),
    "other layers": (lambda model, layer: model.encoder.layer.insert(0, copy.deepcopy(layer)), True),
    "feed-forward in chunks": (set_("chunk_size_feed_forward", 1), True),
    "activations in float": (set_("output.dense.activation", None), False),
    "activations of 4 bits": (set_("output.dense.activation.spec", lambda: ActivationSpec(4)), False),
    "a linear on the reference": (set_("output.dense.backend", "reference"), False),
    "codes": (lambda model, layer: layer.output.dense.weight_packed.bitwise_not_(), True),
    "scales": (lambda model, layer: layer.output.dense.weight_scale.mul_(2), True),
    "bias": (lambda model, layer: nn.init.ones_(layer.output.dense.bias), True),
    "no bias": (set_("output.dense.bias", None), True),
}


def strong_model(teacher):
    """A packed encoder with weights so large that each of its parts matters to its result."""
    model = pack_model(compress(teacher, XTCRecipe(keep_layers=3))).bert
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, PackedLinear):
            module.weight_scale.mul_(10)
        if isinstance(module, PackedLinear | nn.LayerNorm):
            module.bias.data = torch.randn(module.bias.shape, generator=generator)
    return model


def mean_difference(found, expected):
    """Compared by their mean, since a rounding tie of an activation may change single values."""
    return float((found.last_hidden_state - expected.last_hidden_state).abs().mean())


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_module_is_honoured(tiny_teacher, tiny_batch, calls, name):
    """After the native encoder was built: it computes the change, or the model runs layer by layer."""
    model, (change, served) = strong_model(tiny_teacher), CHANGES[name]
    before = outputs(model, tiny_batch, "auto")
    with torch.no_grad():
        change(model, model.encoder.layer[1])
        found = model(**tiny_batch)
    assert len(calls) == 1 + served
    difference = mean_difference(found, outputs(model, tiny_batch, "reference"))
    if name in ("feed-forward in chunks", "PyTorch's GELU", "a linear on the reference"):
        assert difference < 5e-3
    else:
        assert difference < 0.2 * mean_difference(found, before)


@settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
@given(names=st.lists(st.sampled_from(sorted(CHANGES)), unique=True, min_size=2, max_size=4), layer=st.integers(0, 1))
def test_changes_of_modules_together(tiny_teacher, tiny_batch, names, layer):
    model = strong_model(tiny_teacher)
    outputs(model, tiny_batch, "auto")
    with torch.no_grad():
        for name in names:
            try:
                CHANGES[name][0](model, model.encoder.layer[layer])
            except AttributeError:  # an earlier change took away what this one changes
                assume(False)
        found = model(**tiny_batch)
    assert mean_difference(found, outputs(model, tiny_batch, "reference")) < 1e-2


@pytest.fixture
def heads(monkeypatch):
    """Records, for each batch that the native encoder computes, whether it computes the pooler and the logits."""
    made, call = [], native.NativeEncoder.__call__

    def record(*arguments):
        outputs = call(*arguments)
        made.append((outputs.pooled is not None, outputs.logits is not None))
        return outputs

    monkeypatch.setattr(native.NativeEncoder, "__call__", record)
    return made


@pytest.mark.parametrize("variant", list(native_library.variants()))
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weights", ["binary", "ternary", None])
def test_pooler_and_classifier_are_part_of_the_call(
    weights, backend, variant, tiny_teacher, tiny_batch, heads, monkeypatch
):
    monkeypatch.setenv("XTC_NATIVE", variant)
    recipe = XTCRecipe(weights=weights or "binary", quantize_pooler=weights is not None)
    model = pack_model(compress(tiny_teacher, recipe))
    expected = outputs(model, tiny_batch, "reference")
    assert heads == []
    found = outputs(model, tiny_batch, backend)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    labels = torch.tensor([0, 1, 1])
    found = outputs(model, tiny_batch, backend, labels=labels)
    torch.testing.assert_close(found.loss, torch.nn.functional.cross_entropy(found.logits, labels))
    loss, logits = outputs(model, tiny_batch, backend, labels=labels, return_dict=False)
    assert torch.equal(logits, found.logits)
    assert torch.equal(loss, found.loss)
    assert heads == [(True, True)] * 3
    pooled = outputs(model.bert, tiny_batch, backend).pooler_output
    with torch.inference_mode():
        torch.testing.assert_close(model.classifier(pooled), found.logits, rtol=1e-5, atol=1e-6)
    assert heads[3:] == [(True, False)]


@pytest.mark.parametrize(
    "problem, labels", [("regression", torch.zeros(3, 3)), ("multi_label_classification", torch.ones(3, 3))]
)
def test_other_losses(packed, tiny_batch, heads, problem, labels):
    packed.config.problem_type = problem
    found = outputs(packed, tiny_batch, "auto", labels=labels)
    expected = outputs(packed, tiny_batch, "reference", labels=labels)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-4, atol=1e-4)
    assert heads == [(True, True)]


def halve_pooled(module, arguments, output):
    output.pooler_output = output.pooler_output / 2
    return output


class ScaledLinear(nn.Linear):
    """A linear of another class."""

    def forward(self, x):
        return super().forward(x) / 2


def other_forward(path):
    def change(model):
        module = model.get_submodule(path)
        forward = module.forward
        module.forward = lambda *args, **kwargs: forward(*args, **kwargs) / 2

    return change


def replace(path, make):
    def change(model):
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, make().eval())

    return change


def other_base_forward(model):
    forward = model.bert.forward

    def halved(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.pooler_output = output.pooler_output / 2
        return output

    model.bert.forward = halved


def drop_pooled(model):
    model.dropout.p = 1.0
    model.dropout.train()


def hook(path, function):
    return lambda model: model.get_submodule(path).register_forward_hook(function)


def with_lora(model):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"], init_lora_weights=False)
    return peft.get_peft_model(model, config).eval()


def with_saved_classifier(model):
    """PEFT's wrapper of a classifier that is trained whole."""
    wrapper = pytest.importorskip("peft.utils.other").ModulesToSaveWrapper(model.classifier, "default")
    wrapper.modules_to_save["default"].bias.data.add_(1)
    model.classifier = wrapper.eval()


# Changes of a classifier, by name; what the native encoder computes of pooler and logits afterwards.
HEADS = {
    "classifier's weight": (lambda model: model.classifier.weight.mul_(-1), (True, True)),
    "classifier's bias through .data": (lambda model: model.classifier.bias.data.add_(1), (True, True)),
    "no bias": (lambda model: setattr(model.classifier, "bias", None), (True, True)),
    "another classifier": (replace("classifier", lambda: nn.Linear(36, 3)), (True, True)),
    "a classifier of another class": (replace("classifier", lambda: ScaledLinear(36, 3)), (True, False)),
    "classifier's hook": (hook("classifier", lambda module, args, output: output / 2), (True, False)),
    "classifier's forward": (other_forward("classifier"), (True, False)),
    "classifier's parametrization": (
        lambda model: parametrize.register_parametrization(model.classifier, "weight", Half()),
        (True, False),
    ),
    "classifier in float64": (lambda model: replace("classifier", lambda: Widened(36, 3))(model), (True, False)),
    "PEFT's classifier": (with_saved_classifier, (True, False)),
    "dropout": (drop_pooled, (True, False)),
    "identity as dropout": (replace("dropout", nn.Identity), (True, False)),
    "hook of the dropout": (hook("dropout", lambda module, args, output: output / 2), (True, False)),
    "hook of the base": (hook("bert", halve_pooled), (True, False)),
    "forward of the base": (other_base_forward, (True, False)),
    "pooler's bias": (lambda model: model.bert.pooler.dense.bias.add_(1), (True, True)),
    "pooler's codes": (lambda model: model.bert.pooler.dense.weight_packed.bitwise_not_(), (True, True)),
    "pooler in float": (replace("bert.pooler.dense", lambda: nn.Linear(36, 36)), (True, True)),
    "pooler of another class": (replace("bert.pooler.dense", lambda: ScaledLinear(36, 36)), (False, False)),
    "pooler's activation": (replace("bert.pooler.activation", nn.ReLU), (False, False)),
    "pooler's hook": (hook("bert.pooler", lambda module, args, output: output / 2), (False, False)),
    "hook of the pooler's linear": (
        hook("bert.pooler.dense", lambda module, args, output: output / 2),
        (False, False),
    ),
    "pooler's forward": (other_forward("bert.pooler"), (False, False)),
    "pooler's activations in float": (
        lambda model: setattr(model.bert.pooler.dense, "activation", None),
        (False, False),
    ),
    "pooler on the reference": (
        lambda model: setattr(model.bert.pooler.dense, "backend", "reference"),
        (False, False),
    ),
}


class Widened(nn.Linear):
    """A linear in float64."""

    def forward(self, x):
        return torch.nn.functional.linear(x.double(), self.weight.double(), self.bias.double())


@pytest.mark.parametrize("name", HEADS)
def test_a_changed_head_is_honoured(packed, tiny_batch, heads, name):
    """After a first forward, in another one the model computes the change, as the reference does."""
    with torch.no_grad():
        for tensor in (packed.classifier.weight, packed.classifier.bias):
            tensor.normal_(generator=torch.Generator().manual_seed(0))
        packed.bert.pooler.dense.weight_scale.mul_(10)
    before = outputs(packed, tiny_batch, "auto").logits
    change, computed = HEADS[name]
    with torch.no_grad():
        change(packed)
        found = packed(**tiny_batch).logits
    assert heads == [(True, True), computed]
    expected = outputs(packed, tiny_batch, "reference").logits
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3, check_dtype=False)
    if name not in ("identity as dropout", "pooler on the reference", "classifier in float64"):
        assert (found - before).abs().mean() > 0.01


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_an_adapter_is_honoured(packed, tiny_batch, heads):
    packed.set_backend("auto")
    model = with_lora(packed)
    with torch.inference_mode():
        found = model(**tiny_batch).logits
    assert heads == []
    packed.set_backend("reference")
    with torch.inference_mode():
        torch.testing.assert_close(found, model(**tiny_batch).logits, rtol=1e-3, atol=1e-3)


def test_a_head_that_is_trained_runs_in_pytorch(packed, tiny_batch, heads):
    packed.set_backend("auto")
    packed(**tiny_batch).logits.sum().backward()
    assert packed.classifier.weight.grad is not None
    assert heads == [(True, False)]


@pytest.mark.parametrize("kind", ["register_module_forward_hook", "register_module_forward_pre_hook"])
def test_hooks_of_all_modules_are_called(packed, tiny_batch, calls, kind):
    outputs(packed, tiny_batch, "auto")
    seen = []
    handle = getattr(nn.modules.module, kind)(lambda module, *args: seen.append(type(module).__name__))
    try:
        outputs(packed, tiny_batch, "auto")
    finally:
        handle.remove()
    assert seen.count("BertLayer") == 3
    assert len(calls) == 1


def test_a_class_with_another_forward_is_honoured(packed, tiny_batch, calls, monkeypatch):
    outputs(packed, tiny_batch, "auto")
    monkeypatch.setattr(BertIntermediate, "forward", lambda self, hidden: self.dense(hidden).relu())
    found = outputs(packed, tiny_batch, "auto").logits
    torch.testing.assert_close(found, outputs(packed, tiny_batch, "reference").logits, rtol=1e-4, atol=1e-4)
    assert len(calls) == 1


def test_another_attention_function_is_honoured(packed, tiny_batch, calls):
    outputs(packed, tiny_batch, "auto")
    AttentionInterface.register("half", lambda *args, **kwargs: (sdpa_attention_forward(*args, **kwargs)[0] / 2, None))
    AttentionMaskInterface.register("half", sdpa_mask)
    packed.set_attn_implementation("half")
    found = outputs(packed, tiny_batch, "auto").logits
    torch.testing.assert_close(found, outputs(packed, tiny_batch, "reference").logits, rtol=1e-4, atol=1e-4)
    assert len(calls) == 1


def test_set_backend_prepares_operands_anew(packed, tiny_batch):
    """After a write through `.data`, which PyTorch does not count."""
    outputs(packed, tiny_batch, "auto")
    layer = packed.bert.encoder.layer[0]
    layer.output.dense.bias.data.add_(1)
    layer.output.dense.weight_packed.data.bitwise_not_()
    found = outputs(packed, tiny_batch, "auto").logits
    torch.testing.assert_close(found, outputs(packed, tiny_batch, "reference").logits, rtol=1e-4, atol=1e-4)
    found = layer.output.dense(torch.ones(1, layer.output.dense.in_features))
    layer.output.dense.weight_packed.data.bitwise_not_()
    packed.set_backend("auto")
    assert not torch.equal(layer.output.dense(torch.ones(1, layer.output.dense.in_features)), found)


CLASSIFIED = [
    (family, head)
    for family, head in CLASSIFIERS
    if hasattr(ARCHITECTURES[family].model_classes[head], "classifier_form") and family != "bert"
]
PATHS = {"distilbert": ("pre_classifier", "classifier", "dropout")}  # first linear, last linear, dropout
ROBERTAS = ("classifier.dense", "classifier.out_proj", "classifier.dropout")


def family_classifier(family, head):
    model = pack_model(compress(make_family(family, head), XTCRecipe(keep_layers=2)).eval())
    return model, make_batch(model.config), PATHS.get(family, ROBERTAS)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family, head", CLASSIFIED)
def test_the_head_of_every_family_is_part_of_the_call(family, head, backend, heads):
    """Also with labels, of classes and of numbers, and as a tuple."""
    model, batch, _ = family_classifier(family, head)
    expected = outputs(model, batch, "reference").logits
    found = outputs(model, batch, backend)
    assert heads == [(True, True)]
    torch.testing.assert_close(found.logits, expected, rtol=2e-2, atol=2e-2)
    for labels, loss in (
        (torch.tensor([0, 2, 1]), nn.functional.cross_entropy),
        (torch.randn(3, 3), nn.functional.binary_cross_entropy_with_logits),
    ):
        model.config.problem_type = None
        loss_found, logits = outputs(model, batch, backend, labels=labels, return_dict=False)
        assert torch.equal(logits, found.logits)
        assert torch.equal(loss_found, loss(logits, labels))
    assert heads == [(True, True)] * 3


@pytest.mark.parametrize("family, head", CLASSIFIED)
def test_changed_heads_of_families_are_honoured(family, head, heads):
    """After a first forward, the changed head computes what the reference does, in the call or module by module."""
    changes = {
        "weight": (lambda model, dense, output, dropout: model.get_submodule(output).weight.mul_(-1), True),
        "codes": (lambda model, dense, *_: model.get_submodule(dense).weight_packed.bitwise_not_(), True),
        "another": (lambda model, dense, output, _: replace(output, lambda: nn.Linear(36, 3))(model), True),
        "hook": (lambda model, dense, *_: hook(dense, lambda module, args, out: out / 2)(model), False),
        "dropout": (lambda model, dense, output, dropout: replace(dropout, nn.Tanh)(model), False),
        "gelu": (lambda model, dense, output, dropout: replace(dropout, lambda: GELUActivation())(model), False),
        "forward": (lambda model, dense, output, _: other_forward(output)(model), False),
        "float": (lambda model, dense, *_: replace(dense, lambda: nn.Linear(36, 36))(model), True),
        "scaled": (lambda model, dense, *_: replace(dense, lambda: ScaledLinear(36, 36))(model), False),
        "base": (lambda model, *_: model.base_model.register_forward_hook(lambda m, a, out: halved(out)), False),
    }
    for name, (change, computed) in changes.items():
        model, batch, paths = family_classifier(family, head)
        before = outputs(model, batch, "auto").logits
        heads.clear()
        with torch.no_grad():
            change(model, *paths)
            found = model(**batch).logits
        assert [logits for _, logits in heads] == [computed], name
        expected = outputs(model, batch, "reference").logits
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=3e-2)
        assert (found - before).abs().mean() > 0.01, name


def halved(output):
    output.last_hidden_state = output.last_hidden_state / 2
    return output


@pytest.mark.parametrize("family, head", CLASSIFIED)
def test_a_head_that_is_trained_runs_module_by_module(family, head, heads):
    model, batch, paths = family_classifier(family, head)
    model(**batch).logits.sum().backward()
    assert model.get_submodule(paths[1]).weight.grad is not None
    model.set_backend("reference")
    with torch.no_grad():
        model(**batch)
    assert all(not logits for _, logits in heads)
