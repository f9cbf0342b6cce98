"""The runtime without PyTorch: its logits are those of the "auto" backend in PyTorch, bit for bit."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from families import CLASSIFIERS, make_tokenizer
from families import make_teacher as make_family
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForMaskedLM, PreTrainedTokenizerFast

from hf_xtc import ARCHITECTURES, XTCRecipe, compress, pack_model, runtime
from hf_xtc.backends import layouts
from hf_xtc.errors import ExtraError, HubError, PackedFileError, StateError, XTCError
from hf_xtc.native.library import variants
from hf_xtc.reader import FAMILIES
from hf_xtc.runtime import Pipeline

pytestmark = pytest.mark.skipif(not variants(), reason="the native operator is not built")
EXAMPLE = Path(__file__).parent.parent / "examples" / "minilm-3l-1bit-sst2"
WORDS = ["a", "joy", "from", "start", "to", "end", "dull", "the", "film", "is", "not", "bad", "at", "all"]
TEXTS = [
    "a joy from start to end",
    "dull",
    "",
    "the film is not bad " * 20,
    ("a film", "not bad at all"),
    ("", "dull"),
]


def tiny_tokenizer():
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=40, model_input_names=inputs, **names)


@pytest.fixture
def folder(tiny_teacher, tmp_path):
    """A packed folder of the default recipe."""
    return written(tiny_teacher, tmp_path / "packed")


def written(teacher, path, **recipe):
    model = pack_model(compress(teacher, XTCRecipe(**recipe)))
    model.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def edit(path, file, **values):
    content = json.loads((path / file).read_text())
    (path / file).write_text(json.dumps({**content, **values}))
    return path


def in_pytorch(folder, texts, **inputs):
    """What PyTorch makes of texts, one at a time."""
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder).eval(), tiny_tokenizer()
    rows = [(text, None) if isinstance(text, str) else text for text in texts]
    with torch.inference_mode():
        encoded = [tokenizer(*row, return_tensors="pt", truncation=True, **inputs) for row in rows]
        return model, encoded, torch.cat([model(**batch).logits for batch in encoded])


@pytest.mark.parametrize("variant", list(variants()))
@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param({}, id="binary"),
        pytest.param({"weights": "ternary", "embedding_weights": "ternary"}, id="ternary"),
        pytest.param({"weights": "int4", "embedding_weights": None, "position_weights": None}, id="int4"),
        pytest.param({"quantize_pooler": False, "granularity": "per_tensor"}, id="float-pooler"),
        pytest.param({"rest_dtype": "bfloat16", "scale_dtype": "bfloat16"}, id="bfloat16"),
    ],
)
@pytest.mark.filterwarnings("ignore:Asking to truncate")
def test_logits_are_those_of_pytorch(recipe, variant, tiny_teacher, tmp_path, monkeypatch):
    """In batches of any size, on any number of threads: texts, pairs, truncated and empty ones."""
    monkeypatch.setenv("XTC_NATIVE", variant)
    folder = written(tiny_teacher, tmp_path / "packed", **recipe)
    expected = in_pytorch(folder, TEXTS)[2].numpy()
    for threads, batch_size in ((1, 1), (2, 4), (3, 100)):
        found = Pipeline(folder, threads=threads).logits(TEXTS, batch_size=batch_size)
        assert found.dtype == np.float32
        assert np.array_equal(found, expected)


CLASSIFIED = [(f, h) for f, h in CLASSIFIERS if f"xtc_{f.replace('-', '_')}" in FAMILIES]


def family_folder(family, head, path, **recipe):
    """A packed folder of any family, its tokenizer without token types, and the model in PyTorch."""
    model = pack_model(compress(make_family(family, head), XTCRecipe(keep_layers=2, **recipe)).eval())
    model.save_pretrained(path)
    tokenizer = make_tokenizer(model.config)
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(path)
    return ARCHITECTURES[family].model_classes[head].from_pretrained(path).eval(), tokenizer


@pytest.mark.parametrize("variant", list(variants()))
@pytest.mark.parametrize("recipe", [{}, {"weights": "ternary", "quantize_pooler": False, "embedding_weights": None}])
@pytest.mark.parametrize("family, head", CLASSIFIED)
def test_families(family, head, recipe, variant, tmp_path, monkeypatch):
    """Hidden states and logits are PyTorch's bit for bit, also of a text with the padding token in its midst."""
    monkeypatch.setenv("XTC_NATIVE", variant)
    model, tokenizer = family_folder(family, head, tmp_path, **recipe)
    texts = ["w1 w7 w3 w80", "w5", "w8 [P] w9", " ".join(f"w{i}" for i in range(60))]
    pipe = Pipeline(tmp_path, threads=2)
    longest = 40 if family in ("bert", "electra", "distilbert") else 38
    with torch.inference_mode():
        rows = [tokenizer(t, return_tensors="pt", truncation=True, max_length=longest) for t in texts]
        hidden = [model.base_model(**row)[0][0] for row in rows]
        logits = torch.cat([model(**row).logits for row in rows]).numpy()
    lengths, outputs = pipe._model.run(pipe._tokenizer.encode_batch(texts), with_types=False, threads=1)
    assert lengths.tolist() == [4, 1, 3, longest]
    assert np.array_equal(outputs.hidden, torch.cat(hidden).numpy())
    found = pipe.logits(texts, batch_size=2)
    assert np.array_equal(found, logits)
    assert np.ptp(found, axis=0).min() > 0.01


def test_a_bert_with_a_tokenizer_of_another_family(tmp_path):
    """As multilingual-e5: the tokenizer gives no token types, though the encoder has them."""
    model, tokenizer = family_folder("bert", "BertModel", tmp_path)
    with torch.inference_mode():
        expected = model(**tokenizer("w1 w2", return_tensors="pt"))[0][0, 0]
    assert np.array_equal(Pipeline(tmp_path).embed("w1 w2", pooling="cls")[0], expected.numpy())


@pytest.mark.parametrize("family, head", [("albert", "AlbertModel"), ("modernbert", "ModernBertModel")])
def test_families_that_run_layer_by_layer_are_refused(family, head, tmp_path):
    pack_model(compress(make_family(family, head)).eval()).save_pretrained(tmp_path)
    message = rf"holds a xtc_{family} model in state packed; this reads packed models of: xtc_bert, xtc_roberta"
    with pytest.raises(PackedFileError, match=message):
        Pipeline(tmp_path)


def test_the_choice_of_layouts_is_logged_once(folder, caplog, monkeypatch):
    monkeypatch.setenv("XTC_NATIVE", "portable")
    runtime._say_choice.cache_clear()
    with caplog.at_level("INFO"):
        Pipeline(folder), Pipeline(folder)
    assert caplog.messages == [f"Packed linears run on {layouts.describe_choice('binary', 8, 8)}."]


@pytest.mark.parametrize(
    "kind, given", [("TokenizersBackend", False), ("DistilBertTokenizer", False), ("BertTokenizerFast", True)]
)
def test_the_class_of_a_tokenizer_tells_whether_it_gives_token_types(kind, given, folder):
    """Where its options do not say it: transformers saves them only if they differ from those of the class."""
    file = folder / "tokenizer_config.json"
    options = json.loads(file.read_text())
    del options["model_input_names"]
    file.write_text(json.dumps({**options, "tokenizer_class": kind}))
    assert ("token_type_ids" in getattr(transformers, kind).model_input_names) is given
    pair = [("dull", "bad")]
    expected = in_pytorch(folder, pair, return_token_type_ids=given)[2].numpy()
    assert np.array_equal(Pipeline(folder).logits(pair), expected)
    assert not np.array_equal(expected, in_pytorch(folder, pair, return_token_type_ids=not given)[2].numpy())


def test_token_types_are_left_out_where_the_tokenizer_has_none(folder):
    with_types = Pipeline(folder).logits(("dull", "bad"))
    edit(folder, "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"])
    without = Pipeline(folder).logits(("dull", "bad"))
    assert not np.array_equal(without, with_types)
    assert np.array_equal(without, in_pytorch(folder, [("dull", "bad")], return_token_type_ids=False)[2].numpy())


def test_classes_and_scores(folder):
    edit(folder, "config.json", id2label={"0": "bad", "1": "good", "2": "odd"})
    pipe = Pipeline(folder)
    probabilities = torch.from_numpy(pipe.logits(TEXTS)).softmax(1)
    assert pipe.labels == ["bad", "good", "odd"]
    for best, row in zip(pipe(TEXTS), probabilities, strict=True):
        assert best["label"] == pipe.labels[int(row.argmax())]
        assert best["score"] == pytest.approx(float(row.max()), abs=1e-6)
    everything = pipe(TEXTS, top_k=None)
    assert [len(found) for found in everything] == [3] * len(TEXTS)
    assert all(found[0]["score"] >= found[1]["score"] >= found[2]["score"] for found in everything)
    assert pipe(TEXTS, top_k=2) == [found[:2] for found in everything]
    assert pipe("dull") == pipe(["dull"]) == [everything[1][0]]
    assert pipe([]) == []


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_scores_of_other_problems(folder, problem):
    pipe = Pipeline(edit(folder, "config.json", problem_type=problem))
    logits = torch.from_numpy(pipe.logits("dull"))[0]
    expected = logits if problem == "regression" else logits.sigmoid()
    found = {entry["label"]: entry["score"] for entry in pipe("dull", top_k=None)[0]}
    assert [found[label] for label in pipe.labels] == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.filterwarnings("ignore:Asking to truncate")
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_embeddings(folder, pooling, normalize):
    """As the folder of a sentence-transformers model says, or as asked."""
    model, encoded, _ = in_pytorch(folder, TEXTS)
    with torch.inference_mode():
        hidden = [model.bert(**batch).last_hidden_state[0] for batch in encoded]
    expected = torch.stack([states.mean(0) if pooling == "mean" else states[0] for states in hidden])
    if normalize:
        expected = torch.nn.functional.normalize(expected)
    asked = Pipeline(folder).embed(TEXTS, pooling=pooling, normalize=normalize, batch_size=4)
    torch.testing.assert_close(torch.from_numpy(asked), expected, rtol=1e-5, atol=1e-6)
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": f"{i}_{kind}"} for i, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    mode = "mean_tokens" if pooling == "mean" else "cls_token"
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{mode}": True, "other": False}))
    assert np.array_equal(Pipeline(folder).embed(TEXTS, batch_size=4), asked)


def test_truncation(folder):
    """To the tokenizer's length, the model's positions, or as asked."""
    text = "dull " * 100
    assert np.array_equal(Pipeline(folder).logits(text), Pipeline(folder).logits("dull " * 38))
    assert np.array_equal(Pipeline(folder, max_length=5).logits(text), Pipeline(folder).logits("dull dull dull"))
    edit(folder, "tokenizer_config.json", model_max_length=10)
    assert np.array_equal(Pipeline(folder).logits(text), Pipeline(folder).logits("dull " * 8))
    for length in (11, 3, 0):
        with pytest.raises(XTCError, match=rf"^max_length={length} must lie between 4 and 10, the model's limit\.$"):
            Pipeline(folder, max_length=length)


def test_other_models_are_refused(tiny_teacher, tiny_config, tmp_path):
    for i, (recipe, why) in enumerate(
        [
            ({"weights": None}, "its weights are None"),
            ({"weights": "int8"}, "its weights are 'int8'"),
            ({"activation_bits": 4}, "its recipe says activation_bits=4"),
            ({"activation_symmetric": False}, "its recipe says activation_symmetric=False"),
            ({"granularity": "per_group", "group_size": 2}, "its scales are per group"),
        ]
    ):
        with pytest.raises(
            PackedFileError, match=rf"^The native operator does not run this model: {why}\. Load it with"
        ):
            Pipeline(written(tiny_teacher, tmp_path / str(i), **recipe))
    other = written(BertForMaskedLM(tiny_config).eval(), tmp_path / "masked")
    assert Pipeline(other).embed("dull").shape == (1, 36)
    with pytest.raises(
        PackedFileError, match=r"holds no sequence classifier, but \['XTCBertForMaskedLM'\]\. Use embed"
    ):
        Pipeline(other)("dull")


def test_bad_folders(folder, tmp_path, monkeypatch):
    with pytest.raises(
        PackedFileError, match=r"is not a folder\. Give a packed folder, or a repository on the Hub\.$"
    ):
        Pipeline(tmp_path / "none")
    with pytest.raises(HubError, match=r"^nobody/none is not a folder, and cannot be downloaded from the Hub: "):
        Pipeline("nobody/none")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ExtraError, match=r"Run: pip install huggingface_hub$"):
        Pipeline("nobody/none")
    with pytest.raises(PackedFileError, match=r"holds no config\.json that can be read"):
        Pipeline(tmp_path)
    copy = shutil.copytree(folder, tmp_path / "copy")
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[:-1])
    with pytest.raises(PackedFileError, match=r"cannot be read"):
        Pipeline(copy)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(PackedFileError, match=r"tokenizer\.json cannot be read .* fast tokenizer\.$"):
        Pipeline(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(PackedFileError, match=r"tokenizer\.json cannot be read \(there is no such file\)"):
        Pipeline(folder)
    monkeypatch.setenv("XTC_NATIVE", "off")
    with pytest.raises(StateError, match=r"^The native operator is not in use here "):
        Pipeline(folder)


@pytest.mark.parametrize(
    "pooling",
    [{"pooling_mode_max_tokens": True}, {}, {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}],
)
def test_other_poolings_are_refused(folder, pooling):
    modules = [{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "1_Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    with pytest.raises(PackedFileError, match=r"1_Pooling pools by \[.*\]; use one of: "):
        Pipeline(folder).embed("dull")
    (folder / "modules.json").write_text(json.dumps([*modules, {"type": "x.Dense", "path": "2"}]))
    with pytest.raises(PackedFileError, match=r"modules\.json has modules \['Dense', 'Pooling', 'Transformer'\]"):
        Pipeline(folder).embed("dull")


def test_bad_arguments(folder):
    pipe = Pipeline(folder)
    for call, message in (
        (lambda: pipe("dull", top_k=0), r"^top_k=0 must be at least 1, or None for all labels\.$"),
        (lambda: pipe("dull", batch_size=0), r"^batch_size=0 must be at least 1\.$"),
        (lambda: pipe([1]), r"^1 is not a text\. Give a str, or a tuple of two for a pair\.$"),
        (lambda: pipe([("a", "b", "c")]), r"^\('a', 'b', 'c'\) is not a text\."),
        (lambda: pipe.embed("dull", pooling="max"), r"^pooling='max' does not exist here\. Use 'mean' or 'cls'\.$"),
        (lambda: Pipeline(folder, threads=0), r"^threads=0 must be at least 1\.$"),
    ):
        with pytest.raises(XTCError, match=message):
            call()


def test_a_tokenizer_of_another_model(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["joy"] = 101
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(
        PackedFileError, match=r"^The tokenizer of .* is not the model's: index out of range: token id 101"
    ):
        Pipeline(folder)("joy")


def test_the_example_without_pytorch_and_transformers():
    """In a process where importing them, or any other dependency of the package, fails."""
    blocked = ["torch", "transformers", "accelerate", "huggingface_hub", "filelock", "jinja2", "pandas", "peft"]
    code = f"""
import sys
sys.modules.update(dict.fromkeys({blocked!r}))
import hf_xtc
from hf_xtc.runtime import Pipeline
print(Pipeline({str(EXAMPLE)!r})(["A joy from start to end.", "Dull."]))
print(sorted(name for name in sys.modules if name.split(".")[0] in {blocked!r} and sys.modules[name]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == ""
    answers, imported = done.stdout.splitlines()
    assert [answer["label"] for answer in json.loads(answers.replace("'", '"'))] == ["positive", "negative"]
    assert imported == "[]"


def test_the_example_is_tokenized_as_transformers_does():
    texts = ["A joy, from START to end!", "naïve café 北京 👍", "dull " * 600]
    pipe, tokenizer = Pipeline(EXAMPLE), AutoTokenizer.from_pretrained(EXAMPLE)
    expected = tokenizer(texts, truncation=True)["input_ids"]
    assert [encoding.ids for encoding in pipe._tokenizer.encode_batch(texts)] == expected
