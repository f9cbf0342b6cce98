"""The native encoder of every family that declares it: the results of the layers, and changes of modules honoured."""

from types import SimpleNamespace

import pytest
import torch
from families import CONFIGS, make_batch, make_teacher
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.models.mpnet import modeling_mpnet
from transformers.models.roberta import modeling_roberta

from hf_xtc import ARCHITECTURES, XTCRecipe, compress, pack_model
from hf_xtc.modeling.fused import fused_encoder
from hf_xtc.modeling.layers import PackedLinear
from hf_xtc.modeling.native_form import positions_from_padding
from hf_xtc.native import encoder as native
from hf_xtc.native import library as native_library

pytestmark = pytest.mark.skipif(not native_library.variants(), reason="the native operator is not built")
FAMILIES = [name for name in CONFIGS if hasattr(ARCHITECTURES[name].auto_classes["AutoModel"], "native_form")]


def base_of(family, **recipe):
    head = ARCHITECTURES[family].auto_classes["AutoModel"].__name__.removeprefix("XTC")
    model = pack_model(compress(make_teacher(family, head), XTCRecipe(keep_layers=3, **recipe)))
    model.set_backend("int8")
    return model


@pytest.fixture
def calls(monkeypatch):
    """Records each batch that the native encoder computes."""
    made, call = [], native.NativeEncoder.__call__
    monkeypatch.setattr(native.NativeEncoder, "__call__", lambda *args: made.append(1) or call(*args))
    return made


def layer_by_layer(model, batch):
    """The same on the same backend: hidden states that are asked for come out of the layers."""
    return model(**batch, output_hidden_states=True)


def close(found, expected):
    """Within float32 rounding, but for single values whose quantized activation is a rounding tie."""
    difference = (found - expected).abs()
    return float(difference.median()) < 1e-6 and float(difference.mean()) < 1e-3


def test_which_families_declare_it():
    assert FAMILIES == ["bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "mpnet"]


@pytest.mark.parametrize("variant", list(native_library.variants()))
@pytest.mark.parametrize("family", FAMILIES)
def test_the_native_encoder_equals_the_layers(family, variant, calls, monkeypatch):
    monkeypatch.setenv("XTC_NATIVE", variant)
    model = base_of(family)
    whole = make_batch(model.config)
    batches = [
        whole,
        {"input_ids": whole["input_ids"][:1, :1]},
        {"input_ids": whole["input_ids"]},
        {**whole, "position_ids": torch.arange(11).flip(0)[None]},
        {"input_ids": torch.randint(5, 101, (2, 38), generator=torch.Generator().manual_seed(1))},
    ]
    for number, batch in enumerate(batches, 1):
        with torch.no_grad():
            found, expected = model(**batch), layer_by_layer(model, batch)
        assert len(calls) == number
        assert type(found) is type(expected)
        assert close(found.last_hidden_state, expected.last_hidden_state)
        assert found.keys() == expected.keys() - {"hidden_states"}
        if "pooler_output" in expected:
            assert close(found.pooler_output, expected.pooler_output)
        with torch.no_grad():
            as_tuple = model(**batch, return_dict=False)
        assert torch.equal(as_tuple[0], found.last_hidden_state)
        calls.pop()


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_between_tokens(family, calls):
    """Where scores depend on distances, the layers compute it."""
    model = base_of(family)
    batch = make_batch(model.config)
    batch["attention_mask"][0, 4:6] = 0
    with torch.no_grad():
        found, expected = model(**batch), layer_by_layer(model, batch)
    assert close(found.last_hidden_state, expected.last_hidden_state)
    assert len(calls) == (family != "mpnet")


@pytest.mark.parametrize("family", FAMILIES)
def test_classes_agree_on_random_texts(family, calls):
    head = next(name for name in ARCHITECTURES[family].model_classes if name.endswith("ForSequenceClassification"))
    model = pack_model(compress(make_teacher(family, head), XTCRecipe(keep_layers=3)))
    generator = torch.Generator().manual_seed(2)
    agreed = total = 0
    for _ in range(16):
        lengths = torch.randint(2, 30, (16, 1), generator=generator)
        mask = (torch.arange(30) < lengths).long()
        ids = torch.randint(5, 101, (16, 30), generator=generator)
        batch = {"input_ids": ids.where(mask == 1, torch.tensor(model.config.pad_token_id)), "attention_mask": mask}
        with torch.no_grad():
            found, expected = model(**batch).logits, layer_by_layer(model, batch).logits
        agreed, total = agreed + int((found.argmax(1) == expected.argmax(1)).sum()), total + 16
    assert len(calls) == 16
    assert agreed >= total - 1, "one of 256 may be a tie of its two best classes"


def layers_of(model):
    return model.get_submodule(ARCHITECTURES[model.config.model_type.removeprefix("xtc_").replace("_", "-")].layers)


def norms_of(layer):
    return [module for module in layer.modules() if isinstance(module, nn.LayerNorm)]


def linears_of(layer):
    return [module for module in layer.modules() if isinstance(module, PackedLinear)]


def no_activation(model):
    layer = layers_of(model)[1]
    for path, module in layer.named_modules():
        if type(module).__name__ == "GELUActivation":
            layer.set_submodule(path, nn.ReLU())


def other_forward(model):
    layer = layers_of(model)[1]
    forward = layer.forward
    layer.forward = lambda *args, **kwargs: forward(*args, **kwargs)


# Changes of a model's modules, by name; True where the native encoder still computes them.
CHANGES = {
    "epsilon of one LayerNorm": (lambda m: setattr(norms_of(layers_of(m)[1])[1], "eps", 0.5), False),
    "weights of a LayerNorm": (lambda m: norms_of(layers_of(m)[1])[0].weight.mul_(3), True),
    "another LayerNorm": (lambda m: setattr(norms_of(layers_of(m)[1])[0], "bias", None), False),
    "epsilon of the embeddings": (lambda m: setattr(m.embeddings.LayerNorm, "eps", 0.5), True),
    "word embeddings": (lambda m: m.embeddings.word_embeddings.weight_scale.mul_(-1), True),
    "positions": (lambda m: m.embeddings.position_embeddings.weight_scale.mul_(9), True),
    "codes": (lambda m: linears_of(layers_of(m)[1])[3].weight_packed.bitwise_not_(), True),
    "no bias": (lambda m: setattr(linears_of(layers_of(m)[1])[5], "bias", None), True),
    "activations in float": (lambda m: setattr(linears_of(layers_of(m)[1])[5], "activation", None), False),
    "activation": (no_activation, False),
    "hook": (lambda m: layers_of(m)[1].register_forward_hook(lambda module, given, output: output), False),
    "hook of a linear": (
        lambda m: linears_of(layers_of(m)[1])[2].register_forward_hook(lambda module, given, output: output * 2),
        False,
    ),
    "forward of an instance": (other_forward, False),
    "fewer layers": (lambda m: layers_of(m).pop(0), True),
    "dropout": (lambda m: [d.train() for d in layers_of(m)[1].modules() if isinstance(d, nn.Dropout)], False),
}
OWN_CHANGES = {
    ("mpnet", "distances"): (lambda m: m.encoder.relative_attention_bias.weight.mul_(-4), True),
    ("mpnet", "another table of distances"): (
        lambda m: setattr(m.encoder, "relative_attention_bias", nn.Embedding(32, 4).eval()),
        True,
    ),
    ("mpnet", "too few distances"): (
        lambda m: setattr(m.encoder, "relative_attention_bias", nn.Embedding(31, 4).eval()),
        False,
    ),
    ("mpnet", "heads"): (lambda m: setattr(layers_of(m)[1].attention.attn, "attention_head_size", 18), False),
    ("electra", "projection"): (lambda m: m.embeddings_project.weight_scale.mul_(-2), True),
    ("electra", "projection in float"): (lambda m: setattr(m, "embeddings_project", nn.Linear(20, 36).eval()), True),
    ("electra", "hook of the projection"): (
        lambda m: m.embeddings_project.register_forward_hook(lambda module, given, output: output * 2),
        False,
    ),
    ("roberta", "first position"): (lambda m: setattr(m.embeddings, "padding_idx", 4), True),
    ("roberta", "scaling"): (lambda m: setattr(layers_of(m)[1].attention.self, "scaling", 0.1), False),
    ("distilbert", "scaling"): (lambda m: setattr(layers_of(m)[1].attention, "scaling", 0.1), False),
}
CASES = [(family, name) for family in FAMILIES if family != "bert" for name in CHANGES] + list(OWN_CHANGES)


@pytest.mark.parametrize("family, name", CASES)
def test_a_changed_module_is_honoured(family, name, calls):
    """After the native encoder was built: it computes the change, or the model runs layer by layer."""
    model = base_of(family)
    change, served = OWN_CHANGES.get((family, name)) or CHANGES[name]
    batch = make_batch(model.config)
    with torch.no_grad():
        before = model(**batch).last_hidden_state
        change(model)
        if (family, name) == ("mpnet", "heads"):
            assert fused_encoder(model) is None
            return
        found, expected = model(**batch).last_hidden_state, layer_by_layer(model, batch).last_hidden_state
    assert len(calls) == 1 + served
    assert close(found, expected)
    if name not in ("hook", "forward of an instance", "dropout"):
        assert (found - before).abs().mean() > max(1e-3, 10 * float((found - expected).abs().mean()))


@given(
    st.integers(0, 3),
    st.integers(1, 8).flatmap(lambda n: st.lists(st.lists(st.integers(0, 4), min_size=n, max_size=n), min_size=1)),
)
def test_positions_are_those_of_transformers(padding, rows):
    ids, embeddings = torch.tensor(rows), SimpleNamespace(padding_idx=padding)
    found = positions_from_padding(embeddings, ids)
    assert found.dtype == torch.int64
    assert torch.equal(found, modeling_mpnet.create_position_ids_from_input_ids(ids, padding))
    expected = modeling_roberta.RobertaEmbeddings.create_position_ids_from_input_ids(ids, padding)
    assert torch.equal(found, expected)
