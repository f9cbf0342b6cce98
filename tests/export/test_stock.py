"""Exports as stock models of transformers: exact decoded weights, loaded without the package, sentence embedders."""

import json
import subprocess
import sys

import pytest
import torch
import transformers
from families import CELLS, make_batch, make_teacher, make_tokenizer
from safetensors.torch import load_file
from transformers import AutoConfig, BertConfig, BertForSequenceClassification, set_seed

from hf_xtc import XTCError, XTCRecipe, compress, pack_model
from hf_xtc.cli import main
from hf_xtc.compression.convert import unpack_model
from hf_xtc.export.exporting import export_model
from hf_xtc.export.stock import FILE, UNVERIFIED
from hf_xtc.export.verify import model_outputs, with_float_inputs

SERVED = [(family, head) for family, head in CELLS if not head.endswith(UNVERIFIED)]


def make_packed(family, head, **recipe):
    packed = pack_model(compress(make_teacher(family, head), XTCRecipe(**recipe)).eval())
    packed.set_backend("reference")
    return packed


@pytest.mark.parametrize("family, head", SERVED)
def test_every_family_and_head(family, head, tmp_path):
    """Outputs are the packed model's without quantized activations, up to float16's rounding of int8 positions."""
    model = make_packed(family, head)
    assert export_model(model, tmp_path, format="transformers") == tmp_path / FILE
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.model_type, config.architectures, config.dtype) == (family, [head], torch.float16)
    stock = getattr(transformers, head).from_pretrained(tmp_path, dtype=torch.float32).eval()
    batch = make_batch(model.config)
    expected = model_outputs(with_float_inputs(model), batch)
    mask = batch["attention_mask"].bool()
    with torch.inference_mode():
        found = stock(**batch)
    assert expected
    for name, values in expected.items():
        wanted, given = torch.from_numpy(values), found[name]
        if wanted.shape[:2] == mask.shape:  # of other positions the packed model gives zeros
            wanted, given = wanted[mask], given[mask]
        torch.testing.assert_close(given, wanted, rtol=0, atol=0.01 * float(wanted.abs().max()))


@pytest.mark.parametrize("weights", ["binary", "ternary"])
def test_decoded_weights_are_exact(weights, tmp_path):
    """Of linears and of words: a scale in float16 times -1, 0 or 1."""
    model = make_packed("bert", "BertForSequenceClassification", weights=weights, embedding_weights=weights)
    export_model(model, tmp_path, format="transformers")
    found, decoded = load_file(tmp_path / FILE), unpack_model(model).state_dict()
    assert {tensor.dtype for tensor in found.values()} == {torch.float16}
    assert found.keys() == {name for name in decoded if not name.endswith("activation.range")}
    rounded = {name for name, tensor in found.items() if not torch.equal(tensor.float(), decoded[name])}
    tables = {f"bert.embeddings.{kind}_embeddings.weight" for kind in ("position", "token_type")}
    assert rounded <= tables  # of int8 rows
    for name in rounded:
        torch.testing.assert_close(found[name].float(), decoded[name], rtol=2**-11, atol=2**-25)


def test_an_installation_without_the_package_loads_it(tmp_path):
    model = make_packed("bert", "BertForSequenceClassification")
    path = export_model(model, tmp_path, format="transformers", tokenizer=make_tokenizer(model.config))
    code = f"""
import sys
sys.modules["hf_xtc"] = None  # importing it fails
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model = AutoModelForSequenceClassification.from_pretrained({str(path.parent)!r})
rows = AutoTokenizer.from_pretrained({str(path.parent)!r})(["w1 w2"], return_tensors="pt")
print(type(model).__name__, model.dtype, model(**rows).logits.shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "BertForSequenceClassification torch.float16 torch.Size([1, 3])"


def test_command_writes_a_sentence_embedder(tmp_path, capsys):
    """sentence-transformers opens it; its vectors are those of the packed model without quantized activations."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = make_packed("bert", "BertModel")
    sentences = {"pooling": "mean", "normalize": True, "max_length": 12, "prompts": {}}
    model.config.xtc.update(task="sentence-embedding", sentences=sentences)
    folder, out = tmp_path / "model", tmp_path / "out"
    model.save_pretrained(folder)
    tokenizer = make_tokenizer(model.config)
    tokenizer.save_pretrained(folder)
    assert main(["export", "--model", str(folder), "--output_dir", str(out), "--format", "transformers"]) == 0
    printed = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert printed["agreement"].startswith("largest difference ")
    assert int(printed["bytes"]) == (out / FILE).stat().st_size
    texts = ["w1 w7 w3", "w5"]
    found = sentence_transformers.SentenceTransformer(str(out), model_kwargs={"dtype": "float32"}).encode(texts)
    rows = tokenizer(texts, padding=True, return_tensors="pt")
    batch = {name: rows[name] for name in ("input_ids", "attention_mask")}
    expected = model_outputs(with_float_inputs(model), batch)["sentence_embedding"]
    torch.testing.assert_close(torch.from_numpy(found), torch.from_numpy(expected), rtol=0, atol=0.005)
    assert json.loads((out / "config.json").read_text())["model_type"] == "bert"


def test_values_beyond_float16_are_refused(tmp_path):
    set_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    teacher = BertForSequenceClassification(config)
    teacher.classifier.bias.data.fill_(70_000.0)
    model = pack_model(compress(teacher, XTCRecipe(rest_dtype="float32")).eval())
    with pytest.raises(XTCError) as error:
        export_model(model, tmp_path, format="transformers")
    assert str(error.value) == (
        "classifier.bias holds values beyond float16, so there is no stock form of the model in float16."
    )
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("family, head", [("bert", "BertForMultipleChoice"), ("electra", "ElectraForPreTraining")])
def test_heads_that_cannot_be_verified_are_refused(family, head, tmp_path):
    with pytest.raises(XTCError, match=rf"^XTC{head} cannot be exported: there is no way here to verify the result"):
        export_model(make_packed(family, head), tmp_path, format="transformers")


def test_weights_that_differ_are_found(tmp_path, monkeypatch):
    """A scale that is wrong by a tenth in one layer."""
    import hf_xtc.export.stock as module

    def unpack_wrong(model):
        latent = unpack_model(model)
        latent.bert.encoder.layer[0].output.dense.weight.data.mul_(1.1)
        return latent

    monkeypatch.setattr(module, "unpack_model", unpack_wrong)
    with pytest.raises(XTCError, match=r"^model\.safetensors \(float16\) disagrees with its model: "):
        export_model(make_packed("bert", "BertForSequenceClassification"), tmp_path / "out", format="transformers")
    assert not (tmp_path / "out").exists()
