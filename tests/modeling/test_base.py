"""The family of docs/extending.md, declared outside of the package: both states, files, training, publishing."""

from pathlib import Path

import pytest
import torch
from commands import blocks
from huggingface_hub import ModelCard
from trainers import make_teacher, make_trainer
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    ErnieConfig,
    ErnieForSequenceClassification,
    ErnieModel,
    set_seed,
)

from hf_xtc import ARCHITECTURES, XTCRecipe, compress, ledger, pack_model, unpack_model
from hf_xtc.cli import main
from hf_xtc.errors import PackedFileError

PAGE = Path(__file__).parent.parent.parent / "docs" / "extending.md"
RECIPES = {
    "binary": XTCRecipe(keep_layers=2),
    "ternary": XTCRecipe("ternary", "per_group", 2, "ternary", activation_symmetric=False),
    "int8": XTCRecipe("int8", embedding_weights="int4", activation_bits=None),
}


@pytest.fixture(autouse=True)
def ernie():
    """The family of the page, registered while a test runs."""
    known, names = dict(ARCHITECTURES), {"__name__": "extending"}
    for block in blocks(PAGE, "python"):
        if "register_family" in block:
            exec(compile(block, "extending.md", "exec"), names)
    yield
    ARCHITECTURES.clear()
    ARCHITECTURES.update(known)


@pytest.fixture
def config(tiny_config):
    shape = {**tiny_config.to_dict(), "model_type": "ernie", "use_task_id": True, "task_type_vocab_size": 3}
    return ErnieConfig(**shape)


@pytest.fixture
def teacher(config):
    set_seed(0)
    return ErnieForSequenceClassification(config).eval()


@pytest.fixture
def batch(tiny_batch):
    return tiny_batch


def outputs(model, batch):
    with torch.no_grad():
        return model.eval()(**batch).to_tuple()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("head", [ErnieModel, ErnieForSequenceClassification], ids=lambda head: head.__name__)
@pytest.mark.usefixtures("reference_backend")
def test_a_packed_model_comes_back_bit_for_bit(config, batch, tmp_path, head, recipe):
    set_seed(0)
    student = compress(head(config), recipe)
    packed = pack_model(student, rest_dtype="float32")
    packed.save_pretrained(tmp_path)
    auto = AutoModel if head is ErnieModel else AutoModelForSequenceClassification
    found = auto.from_pretrained(tmp_path)
    assert type(found) is type(packed)
    for ours, theirs, latent in zip(*(outputs(model, batch) for model in (packed, found, student)), strict=True):
        assert torch.equal(ours, theirs)
        assert torch.equal(ours, latent)
    size = (tmp_path / "model.safetensors").stat().st_size
    header = int.from_bytes((tmp_path / "model.safetensors").read_bytes()[:8], "little")
    assert size == ledger(packed.config).total_bytes + 8 + header
    assert not list(tmp_path.glob("*.py")), "the code for trust_remote_code is BERT's"
    again = pack_model(unpack_model(found)).state_dict()
    codes = {name: tensor for name, tensor in found.state_dict().items() if "query.weight_packed" in name}
    assert len(codes) == found.config.num_hidden_layers
    assert recipe.weights == "int8" or all(torch.equal(again[name], tensor) for name, tensor in codes.items())


def test_every_linear_and_embedding_of_the_encoder_is_in_one_scope(config):
    model = ErnieModel(config)
    kinds = (torch.nn.Linear, torch.nn.Embedding)
    architecture = ARCHITECTURES["ernie"]
    for path, module in model.named_modules():
        assert (architecture.scope_of(path) is not None) == isinstance(module, kinds), path


def test_a_classifiers_encoder_loads_alone_and_a_damaged_file_is_refused(teacher, batch, tmp_path):
    packed = pack_model(compress(teacher, RECIPES["binary"]))
    packed.save_pretrained(tmp_path)
    encoder = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(outputs(encoder, batch)[0], outputs(packed.ernie, batch)[0])
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(PackedFileError):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("backend", ["int8", "packed"])
def test_integer_backends_agree_with_the_reference(teacher, batch, backend):
    packed = pack_model(compress(teacher, RECIPES["binary"]))
    expected = outputs(packed, batch)[0]
    packed.set_backend(backend)
    assert packed.ernie.backend == backend
    torch.testing.assert_close(outputs(packed, batch)[0], expected, atol=2e-3, rtol=0)


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's way with its HTTP client
def test_a_new_architecture_is_distilled_by_all_terms_and_published(hub, teacher, batch, tmp_path, capsys):
    student = compress(teacher, RECIPES["binary"])
    before = student.ernie.encoder.layer[0].attention.self.query.weight.detach().clone()
    trainer = make_trainer(tmp_path / "out", student=student, teacher_model=teacher, max_steps=2)
    trainer.train()
    assert not torch.equal(student.ernie.encoder.layer[0].attention.self.query.weight, before)
    trainer.push_to_hub()
    found = AutoModelForSequenceClassification.from_pretrained("user/out")
    assert torch.equal(outputs(found, batch)[0], outputs(pack_model(trainer.model), batch)[0])
    card = ModelCard.load("user/out")
    assert "A 2-layer Ernie with binary weights" in card.text
    assert main(["inspect", "user/out"]) == 0
    assert "XTCErnieForSequenceClassification, packed" in capsys.readouterr().out


TIED = "cls.predictions.decoder.weight_packed"
WORDS = "bert.embeddings.word_embeddings.weight_packed"
LAYER = "bert.encoder.layer.0.output.dense.weight_packed"


def from_tensors(model, state_dict):
    return type(model).from_pretrained(None, config=model.config, state_dict=state_dict)


@pytest.mark.usefixtures("reference_backend")
@pytest.mark.parametrize("copies", [True, False], ids=["with copies", "without copies"])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "latent"])
@pytest.mark.parametrize("embedding", ["binary", None])
@pytest.mark.parametrize("head", [BertForMaskedLM, BertForPreTraining, BertForSequenceClassification, BertModel])
def test_a_model_is_made_of_its_tensors(tiny_batch, head, embedding, packed, copies):
    """Tensors that are one may be given once or twice; they are one afterwards, and float32 as before."""
    model = compress(make_teacher(cls=head), XTCRecipe(keep_layers=1, embedding_weights=embedding))
    model = pack_model(model) if packed else model
    tensors = {k: v for k, v in model.state_dict().items() if copies or k not in model.all_tied_weights_keys}
    made = from_tensors(model, tensors)
    for name, source in model.all_tied_weights_keys.items():
        assert made.get_parameter_or_buffer(name) is made.get_parameter_or_buffer(source)
    with torch.no_grad():
        assert torch.equal(made(**tiny_batch)[0], model(**tiny_batch)[0])
    assert made.dtype == torch.float32


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {LAYER: None},
            r"state_dict does not hold 1 of the 30 tensors .* \(first: encoder\.layer\.0\.output\.dense\.",
        ),
        (
            {LAYER: torch.zeros(36, 7)},
            r"state_dict: .* has dtype torch\.float32, but config\.json promises torch\.uint8",
        ),
        (
            {TIED: torch.ones(101, 5, dtype=torch.uint8)},
            rf"{TIED} and {WORDS} are one tensor in XTCBertForMaskedLM, but",
        ),
        ({WORDS: None}, r"state_dict does not hold 1 of"),
    ],
    ids=["missing", "dtype", "tied", "source"],
)
def test_tensors_that_do_not_fit_are_refused(change, message):
    model = pack_model(compress(make_teacher(cls=BertForMaskedLM), XTCRecipe(keep_layers=1)))
    tensors = {name: tensor for name, tensor in {**model.state_dict(), **change}.items() if tensor is not None}
    with pytest.raises(PackedFileError, match=f"^{message}"):
        from_tensors(model, tensors)


def test_a_converted_model_says_that_it_is_float32():
    """Also if the one it was made from was loaded in half precision."""
    packed = pack_model(compress(make_teacher(), XTCRecipe(keep_layers=1)))
    half = type(packed).from_pretrained(None, config=packed.config, state_dict=packed.state_dict(), dtype="float16")
    assert half.dtype == half.config.dtype == torch.float16
    for model in (packed, unpack_model(half)):
        assert model.dtype == model.config.dtype == from_tensors(model, model.state_dict()).dtype == torch.float32
