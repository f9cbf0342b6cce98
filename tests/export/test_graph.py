"""The graphs of all families that the native encoder runs, in the real runtimes: outputs, inputs, refusals."""

from importlib import import_module

import numpy as np
import pytest
import torch
from families import CELLS, FEWER, make_batch, make_teacher, make_tokenizer
from transformers import AutoConfig, AutoTokenizer, BertTokenizerFast

from hf_xtc import ARCHITECTURES, XTCError, XTCRecipe, compress, pack_model
from hf_xtc.cli import main
from hf_xtc.export.exporting import default_weights, export_model
from hf_xtc.export.graph import IDS, MASK, TYPES, interface_of
from hf_xtc.export.verify import model_outputs

BOTH = pytest.mark.parametrize("format", ["onnx", "openvino"])
OPENVINO = {"INFERENCE_PRECISION_HINT": "f32"}  # else bfloat16, where the processor has it
FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "mpnet")
HEADS = ("Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM")
SERVED = [(family, head) for family, head in CELLS if family in FAMILIES and head.endswith(HEADS)]


def make_packed(family, head, **changes):
    """A packed model on the reference backend, of two layers where they can be cut."""
    recipe = XTCRecipe(keep_layers=FEWER.get(family, 2))
    packed = pack_model(compress(make_teacher(family, head, **changes), recipe).eval())
    packed.set_backend("reference")
    return packed


def write(model, folder, format, token_types=True):
    """Writes a file without the package's verification, which these tests are stricter than."""
    runtime = import_module(f"hf_xtc.export.{format}")
    runtime.check(model, default_weights(format))
    return runtime.write(model, interface_of(model, token_types), folder, default_weights(format))[0]


def run(format, path, batch):
    return import_module(f"hf_xtc.export.{format}").Runner(path)(batch)


def assert_close(found, expected):
    """Half of the numbers are equal up to the order of float sums; in some rows it moves an activation to another
    level. A wrong position, bias or mask moves all rows, some by a tenth of the largest number or more."""
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert (found[name].shape, found[name].dtype) == (values.shape, np.float32)
        differences = np.abs(found[name] - values) / np.abs(values).max()
        assert np.median(differences) <= 1e-4, name
        assert differences.max() <= 0.05, name


@BOTH
@pytest.mark.parametrize("family, head", SERVED)
def test_outputs_are_those_of_the_package(family, head, format, tmp_path):
    """Token types are given where the model tells them apart; padding, and padding between tokens, are masked."""
    model = make_packed(family, head)
    batch = make_batch(model.config)
    batch[MASK][0, 4:6] = 0
    if family in ("bert", "electra"):
        batch[TYPES] = (batch[IDS] % 2) * batch[MASK]
    assert interface_of(model).inputs == tuple(batch)
    assert_close(run(format, write(model, tmp_path, format), batch), model_outputs(model, batch))


@BOTH
@pytest.mark.parametrize("family", FAMILIES)
def test_any_batch_size_up_to_the_longest_row(family, format, tmp_path):
    model = make_packed(family, next(iter(ARCHITECTURES[family].model_classes)))
    path, longest = write(model, tmp_path, format), interface_of(model).longest
    assert longest == (40 if family in ("bert", "distilbert", "electra") else 38)
    for rows, length in ((1, 1), (2, longest), (1, longest + 1)):
        ids = torch.randint(5, 101, (rows, length), generator=torch.Generator().manual_seed(1))
        batch = {name: ids if name == IDS else (ids > 0).long() for name in interface_of(model).inputs}
        if length <= longest:
            assert_close(run(format, path, batch), model_outputs(model, batch))
        else:
            with pytest.raises(Exception, match=r"\d+|out of data bounds|not compatible"):
                run(format, path, batch)


@BOTH
@pytest.mark.parametrize("family", ["bert", "mpnet"])
@pytest.mark.parametrize("pooling, normalize", [("mean", True), ("cls", False), ("mean", False), ("cls", True)])
def test_a_sentence_embedders_vectors(pooling, normalize, family, format, tmp_path):
    """Also of a row that starts with padding."""
    model = make_packed(family, "BertModel" if family == "bert" else "MPNetModel")
    sentences = {"pooling": pooling, "normalize": normalize, "max_length": None, "prompts": {}}
    model.config.xtc.update(task="sentence-embedding", sentences=sentences)
    batch = {**make_batch(model.config), **({TYPES: torch.zeros(3, 11, dtype=torch.long)} if family == "bert" else {})}
    batch[MASK][2, :2] = 0
    found, expected = run(format, write(model, tmp_path, format), batch), model_outputs(model, batch)
    assert list(expected) == ["last_hidden_state", "pooler_output", "sentence_embedding"]
    assert_close(found, expected)


@BOTH
def test_a_graph_without_token_types_takes_all_tokens_for_the_first_type(format, tmp_path):
    model = make_packed("bert", "BertForSequenceClassification")
    tokenizer = without_types(make_tokenizer(model.config))
    path, batch = export_model(model, tmp_path, format=format, tokenizer=tokenizer), make_batch(model.config)
    assert interface_of(model, token_types=False).inputs == (IDS, MASK)
    assert_close(run(format, path, batch), model_outputs(model, batch))


def test_layer_by_layer_families_are_refused(tmp_path):
    model = make_packed("albert", "AlbertModel")
    with pytest.raises(XTCError) as error:
        export_model(model, tmp_path)
    assert str(error.value) == (
        "XTCAlbertModel cannot be exported, since albert runs layer by layer. Families that can: bert, camembert, "
        "distilbert, electra, mpnet, roberta, xlm-roberta."
    )


def test_a_family_that_counts_positions_in_its_own_way_is_refused(tmp_path, monkeypatch):
    model = make_packed("roberta", "RobertaModel")
    monkeypatch.setitem(model.native_form.__dict__, "positions", lambda embeddings, input_ids: input_ids)
    with pytest.raises(XTCError) as error:
        export_model(model, tmp_path)
    assert str(error.value) == "XTCRobertaModel cannot be exported: its family counts positions in a way of its own."


def without_types(tokenizer):
    tokenizer.model_input_names = [IDS, MASK]
    return tokenizer


TEXTS = ["w1 w7 w3", "w5", "w8 w9 w70 w11", "w2 w2", "w33 w34", "w50 w1 w6 w8 w17 w20 w54"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(90))]
BERT_TOKENIZER = BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)})


@BOTH
@pytest.mark.parametrize(
    "family, tokenizer, inputs",
    [
        ("bert", BERT_TOKENIZER, {IDS, MASK, TYPES}),
        ("bert", None, {IDS, MASK}),  # as multilingual-e5
        ("distilbert", BERT_TOKENIZER, {IDS, MASK}),
        ("electra", BERT_TOKENIZER, {IDS, MASK, TYPES}),
        *((family, None, {IDS, MASK}) for family in ("roberta", "xlm-roberta", "camembert", "mpnet")),
    ],
)
def test_the_folders_own_tokenizer_gives_what_the_graph_reads(family, tokenizer, inputs, format, tmp_path):
    """As a user calls it: everything that the tokenizer returns goes into the session."""
    head = next(name for name in ARCHITECTURES[family].model_classes if name.endswith("ForSequenceClassification"))
    model, folder, out = make_packed(family, head), str(tmp_path / "model"), str(tmp_path / "out")
    model.save_pretrained(folder)
    (tokenizer or without_types(make_tokenizer(model.config))).save_pretrained(folder)
    assert main(["export", "--model", folder, "--output_dir", out, "--format", format]) == 0
    rows = dict(AutoTokenizer.from_pretrained(out)(TEXTS, return_tensors="np", padding=True))
    assert rows.keys() == inputs
    if format == "onnx":
        session = import_module("onnxruntime").InferenceSession(f"{out}/model.onnx")
        found = session.run(["logits"], rows)[0]
    else:
        found = import_module("openvino").compile_model(f"{out}/openvino_model.xml", "CPU", OPENVINO)(rows)["logits"]
    expected = model_outputs(model, {name: torch.from_numpy(values) for name, values in rows.items()})
    assert_close({"logits": found}, expected)
    config = AutoConfig.from_pretrained(out)
    assert (config.model_type, config.architectures) == (family, [head])
