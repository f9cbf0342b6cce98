"""PEFT's tuners on latent and packed models: each works as for the teacher's class, or is refused in one sentence."""

import logging

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer

from hf_xtc import XTCRecipe, compress, pack_model
from hf_xtc.errors import StateError, XTCError
from hf_xtc.modeling.adapters import has_adapters, merged

# PEFT 0.21 asks a property of models that transformers 5.23 has renamed.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type .*LayerNorm:UserWarning"),  # PEFT's tuner of LayerNorms
    pytest.mark.usefixtures("one_thread"),
]
LINEARS = ["query", "value"]
PROMPTS = {"num_virtual_tokens": 3}
QUERY = "bert.encoder.layer.0.attention.self.query"
WORDS = "bert.embeddings.word_embeddings"


def config(kind, **options):
    """A configuration of PEFT by the name of its class."""
    return getattr(peft, kind)(task_type="SEQ_CLS", **options)


def lora(**options):
    return config("LoraConfig", r=2, **options)


CONFIGS = {
    "lora": lora,
    "lora on all linears": lambda: lora(target_modules="all-linear"),
    "lora of rank-stable scale": lambda: lora(use_rslora=True, bias="lora_only"),
    "layer norms": lambda: config("LNTuningConfig", target_modules=["LayerNorm"]),
    "prefix": lambda: config("PrefixTuningConfig", **PROMPTS),
    "projected prefix": lambda: config("PrefixTuningConfig", **PROMPTS, prefix_projection=True, encoder_hidden_size=8),
}
LATENT_ONLY = {
    "lora on embeddings": lambda: lora(target_modules=["word_embeddings"]),
    "lora on a parameter": lambda: lora(target_modules=[], target_parameters=["attention.self.query.weight"]),
    "a copied module": lambda: lora(modules_to_save=["pooler"]),
    "copied embeddings": lambda: lora(modules_to_save=["word_embeddings"]),
    "dora": lambda: lora(use_dora=True),
    "ia3": lambda: config("IA3Config"),
    "vera": lambda: config("VeraConfig", r=4, target_modules=LINEARS),
    "loha": lambda: config("LoHaConfig", r=2),
    "lokr": lambda: config("LoKrConfig", r=2),
    "oft": lambda: config("OFTConfig", r=0, oft_block_size=6),
    "prompt": lambda: config("PromptTuningConfig", **PROMPTS),
    "p-tuning": lambda: config("PromptEncoderConfig", **PROMPTS, encoder_hidden_size=8),
}
ADALORA = {"adalora": lambda: config("AdaLoraConfig", total_step=10, init_r=3, target_r=2)}  # PEFT cannot load it
WORKING = [(state, name) for state in ("latent", "packed") for name in CONFIGS]
WORKING += [("latent", name) for name in (*LATENT_ONLY, *ADALORA)]
EVERY = {**CONFIGS, **LATENT_ONLY, **ADALORA}

NO_PROMPTS = (
    " puts its prompts before float word embeddings, and those of this model are packed. "
    "Use PrefixTuningConfig or LoraConfig, or call unpack_model and train the latent model."
)
NO_TOKENS = (
    f"Trainable tokens are rows of a float embedding, but {WORDS} is quantized. "
    "On a latent model, use modules_to_save=['word_embeddings']; train a packed one after unpack_model."
)
NO_COPY = (
    "modules_to_save names {}, which is packed: a copy of its codes cannot be trained either. "
    "Leave it out, or train the model that unpack_model returns."
)
NO_INIT = (
    f"init_lora_weights='pissa_niter_2' changes the weight of {QUERY}, which is quantized. "
    "Use True, False, 'gaussian' or 'eva'."
)


def not_on(kind, name=QUERY):
    return (
        f"{kind} adapts layers with a float weight, but {name} is packed. Use LoraConfig with target_modules that are "
        "linears, PrefixTuningConfig or LNTuningConfig, or call unpack_model and train the latent model."
    )


def bypasses(kind):
    return (
        f"{kind} would compute with the latent weight of {QUERY} and not with its quantized values, as the packed "
        "model does. Use LoraConfig, or another tuner that adds to the output of the layer."
    )


REFUSED = [
    (
        "packed",
        lambda: lora(modules_to_save=[5]),
        "modules_to_save=[5, 'classifier', 'score'] of the adapter must be names of modules.",
    ),
    ("packed", LATENT_ONLY["lora on embeddings"], not_on("LORA", WORDS)),
    (
        "packed",
        LATENT_ONLY["lora on a parameter"],
        f"target_parameters names the weight of {QUERY}, which is packed and no parameter. "
        "Use target_modules, or call unpack_model and train the latent model.",
    ),
    ("packed", LATENT_ONLY["a copied module"], NO_COPY.format("bert.pooler.dense")),
    ("packed", LATENT_ONLY["copied embeddings"], NO_COPY.format(WORDS)),
    *(("packed", LATENT_ONLY[name], not_on(name.upper())) for name in ("ia3", "vera", "loha", "lokr", "oft")),
    ("packed", ADALORA["adalora"], not_on("ADALORA")),
    ("packed", lambda: config("OSFConfig", target_modules=LINEARS), not_on("OSF")),  # else it would adapt nothing
    ("packed", LATENT_ONLY["prompt"], "PROMPT_TUNING" + NO_PROMPTS),
    ("packed", LATENT_ONLY["p-tuning"], "P_TUNING" + NO_PROMPTS),
    *((state, lambda: lora(trainable_token_indices=[1, 2]), NO_TOKENS) for state in ("latent", "packed")),
    *((state, lambda: lora(trainable_token_indices={WORDS: [1]}), NO_TOKENS) for state in ("latent", "packed")),
    *(
        (state, lambda: config("TrainableTokensConfig", token_indices=[1]), NO_TOKENS)
        for state in ("latent", "packed")
    ),
    *((state, lambda: lora(init_lora_weights="pissa_niter_2"), NO_INIT) for state in ("latent", "packed")),
    ("latent", lambda: config("HRAConfig", r=2), bypasses("HRA")),
    ("latent", lambda: config("ShiraConfig", r=2), bypasses("SHIRA")),
]


@pytest.fixture
def make(tiny_teacher):
    """Makes the teacher, or a latent or packed student of it."""

    def make(state):
        if state == "teacher":
            return tiny_teacher
        student = compress(tiny_teacher, XTCRecipe(keep_layers=2))
        return student if state == "latent" else pack_model(student)

    return make


@pytest.fixture
def batch(tiny_batch):
    return {
        **tiny_batch,
        "token_type_ids": torch.zeros_like(tiny_batch["input_ids"]),
        "labels": torch.tensor([0, 1, 2]),
    }


def logits(model, batch):
    with torch.no_grad():
        return model.eval()(**batch).logits


def train(model, batch):
    """Two steps; returns the names of what they move."""
    trained = {name: p for name, p in model.train().named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    optimizer = torch.optim.Adam(trained.values(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return {name for name, p in trained.items() if not torch.equal(p, before[name])}


def adapted_layers(model):
    return {name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


@pytest.mark.parametrize("state, name", WORKING)
def test_a_tuner_trains_its_adapter_and_comes_back(state, name, make, batch, tmp_path):
    model = get_peft_model(make(state), EVERY[name]())
    expected = adapted_layers(get_peft_model(compress(make("teacher"), XTCRecipe(keep_layers=2)), EVERY[name]()))
    assert adapted_layers(model) == expected
    frozen = {n: t.clone() for n, t in model.state_dict().items() if n.endswith("weight_packed")}
    assert any("classifier" not in moved for moved in train(model, batch))
    assert all(torch.equal(model.state_dict()[n], t) for n, t in frozen.items())
    if name in ADALORA:
        return
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(make(state), tmp_path)
    assert torch.equal(logits(again, batch), logits(model, batch))


@pytest.mark.parametrize("kind", ["LoraConfig", "IA3Config", "LoHaConfig", "OFTConfig", "AdaLoraConfig"])
def test_default_target_modules_are_the_teachers(kind, make):
    options = {"AdaLoraConfig": {"total_step": 10}, "OFTConfig": {"r": 0, "oft_block_size": 6}}.get(kind, {})
    found = []
    for state in ("teacher", "latent"):
        options_of = config(kind, **options)
        get_peft_model(make(state), options_of)
        found.append((options_of.target_modules, getattr(options_of, "feedforward_modules", None)))
    assert found[0] == found[1]
    assert found[0][0]


@pytest.mark.parametrize("state, make_config, text", REFUSED)
def test_what_cannot_work_is_refused_before_the_model_is_changed(state, make_config, text, make, batch):
    model = make(state)
    before, trainable = logits(model, batch), [p.requires_grad for p in model.parameters()]
    with pytest.raises(XTCError) as error:
        get_peft_model(model, make_config())
    assert str(error.value) == text
    assert not has_adapters(model)
    assert [p.requires_grad for p in model.parameters()] == trainable
    assert torch.equal(logits(model, batch), before)


def test_a_second_adapter_is_checked_too(make, batch):
    model = get_peft_model(make("packed"), lora())
    with pytest.raises(XTCError, match=r"^use_dora=True"):
        model.add_adapter("second", lora(use_dora=True))
    model.add_adapter("third", lora(target_modules="all-linear"))
    assert set(model.peft_config) == {"default", "third"}


def test_tokens_of_a_float_embedding_can_be_trained(tiny_teacher, batch):
    recipe = XTCRecipe(embedding_weights=None, keep_layers=2)
    for model in (compress(tiny_teacher, recipe), pack_model(compress(tiny_teacher, recipe))):
        moved = train(get_peft_model(model, lora(trainable_token_indices=[1, 2])), batch)
        assert any("trainable_tokens_delta" in name for name in moved)


@pytest.mark.parametrize("merge", ["merge_and_unload", "merge_adapter"])
def test_merging_into_latent_weights_warns_once(merge, make, batch, caplog):
    model = get_peft_model(make("latent"), lora(target_modules="all-linear", init_lora_weights=False))
    before = logits(model, batch)
    with caplog.at_level(logging.WARNING, "hf_xtc"):
        whole = getattr(model, merge)() or model
    assert [record.message for record in caplog.records] == [
        "Merged into latent weights, adapters are quantized with them: the model computes other values than with the "
        "adapters beside it. Evaluate it again, and train it further before pack_model; or do not merge."
    ]
    assert not torch.allclose(logits(whole, batch), before, atol=1e-4)


def test_what_merging_does_not_change_is_not_warned_of(make, batch, caplog):
    on_parameters = get_peft_model(
        make("latent"), lora(target_modules=[], target_parameters=["query.weight"], init_lora_weights=False)
    )
    for model in (on_parameters, get_peft_model(make("teacher"), lora(init_lora_weights=False))):
        before = logits(model, batch)
        torch.testing.assert_close(logits(model.merge_and_unload(), batch), before, atol=1e-5, rtol=0)
    assert caplog.records == []


def test_merging_into_packed_weights_merges_nothing(make):
    model = get_peft_model(make("packed"), LoraConfig(target_modules=["dense", "classifier"]))
    weight = model.get_base_model().classifier.get_base_layer().weight
    torch.nn.init.ones_(model.get_base_model().classifier.lora_B["default"].weight)
    before = weight.clone()
    with pytest.raises(StateError, match="cannot be merged into packed weights"):
        model.merge_adapter()
    assert torch.equal(weight, before)


@pytest.mark.parametrize("state", ["teacher", "latent"])
def test_prompts_count_as_adapters_and_are_not_merged(state, make):
    model = get_peft_model(make(state), CONFIGS["prefix"]())
    assert has_adapters(model)
    for merging in (merged, compress):
        with pytest.raises(XTCError, match=r"has prompts \(PREFIX_TUNING\), which cannot be merged into weights"):
            merging(model)
    assert not has_adapters(model.get_base_model())
