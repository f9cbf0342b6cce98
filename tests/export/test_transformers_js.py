"""Exports for transformers.js, run by its npm package in Node, and in headless Chromium by WebAssembly.

Files come from a server on loopback; nothing else is asked for.
"""

import json
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import blocks
from families import CONFIGS, make_batch, make_teacher
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertTokenizerFast, set_seed

from hf_xtc import ARCHITECTURES, XTCError, XTCRecipe, compress, pack_model
from hf_xtc.cli import main
from hf_xtc.export.exporting import export_model
from hf_xtc.export.transformers_js import HEADS, MODEL_TYPES
from hf_xtc.export.verify import model_outputs

DRIVER = Path(__file__).with_name("transformers_js.mjs")
MODULES = Path(__file__).parents[2] / "web" / "node_modules"
EXAMPLE = str(Path(__file__).parents[2] / "examples" / "minilm-3l-1bit-sst2")
TEXTS = [
    *("a gripping film", "dull and overlong , alas", "not bad at all", "I would not see it twice, nor once."),
    *("Une surprise : charming, funny & sad; its 2nd half drags", "", "the best of the year " * 20),
]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "sentence", *(f"w{i}" for i in range(94))]
SENTENCES = ["w1 w7 w3", "w5", "w8 w9 w70 w11", "w33 w34 w35 w36 w37 w38"]

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or not (MODULES / "@huggingface" / "transformers").is_dir(),
    reason="needs Node, and the packages that `npm ci --prefix web --ignore-scripts` installs",
)
CHROMIUM = pytest.param(
    "chromium", marks=pytest.mark.skipif(not Path("/usr/bin/chromium").exists(), reason="needs /usr/bin/chromium")
)


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder without a log."""

    extensions_map = {
        ".mjs": "text/javascript",
        ".js": "text/javascript",
        ".wasm": "application/wasm",
        "": "text/plain",
    }

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder that a server on loopback serves, and its address: models, and the npm packages."""
    root = tmp_path_factory.mktemp("site")
    (root / "models").mkdir()
    (root / "modules").symlink_to(MODULES)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=root))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield root, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join(timeout=30)


def ask(where, site, requests):
    """What transformers.js answers."""
    root, origin = site
    command = ["node", str(DRIVER), where, origin, str(MODULES), str(root / "cache")]
    done = subprocess.run(command, input=json.dumps(requests), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def make_packed(family, head, **changes):
    packed = pack_model(compress(make_teacher(family, head, **changes), XTCRecipe(keep_layers=2)).eval())
    packed.set_backend("reference")
    return packed


def assert_close(found, expected):
    """As in test_graph.py: a float sum in another order may move an activation to another level."""
    found = np.array(found, np.float32)
    assert found.shape == expected.shape
    differences = np.abs(found - expected) / np.abs(expected).max()
    assert np.median(differences) <= 1e-4
    assert differences.max() <= 0.05


def exported(folder, out, *options):
    command = ["export", "--format", "transformers.js", "--model", str(folder), "--output_dir", str(out)]
    assert main([*command, *options]) == 0


def softmax(logits):
    return torch.softmax(torch.as_tensor(logits), -1).numpy()


@pytest.mark.parametrize("where", ["node", CHROMIUM])
def test_a_trained_classifier_gives_pythons_probabilities(where, site):
    """Text in, label out, with the tokenizer of transformers.js; both files, each under its name."""
    forms = {"packed": ("q8", 0.02), "2bit": ("q2", 0.05)}
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(EXAMPLE),
        AutoTokenizer.from_pretrained(EXAMPLE),
    )
    rows = tokenizer(TEXTS, return_tensors="pt", padding=True, truncation=True, max_length=512)
    for form in forms:
        if not (site[0] / "models" / form).exists():
            export_model(
                model,
                site[0] / "models" / form,
                format="transformers.js",
                weights=form,
                tokenizer=tokenizer,
                batches=[dict(rows)],
            )
    with torch.inference_mode():
        expected = softmax(model(**rows).logits)
    task = {"task": "text-classification", "input": [TEXTS], "options": {"top_k": None}}
    for form, answer in zip(forms, ask(where, site, [{"folder": form, **task} for form in forms]), strict=True):
        dtype, tolerance = forms[form]
        config = json.loads((site[0] / "models" / form / "config.json").read_text())
        assert config["transformers.js_config"] == {"dtype": dtype}
        assert [scores[0]["label"] for scores in answer] == [model.config.id2label[i] for i in expected.argmax(1)]
        found = [
            [{s["label"]: s["score"] for s in scores}[name] for name in ("negative", "positive")] for scores in answer
        ]
        np.testing.assert_allclose(found, expected, atol=tolerance)


def test_every_family_and_head(site):
    """Outputs for the same ids, of packed files; token types where the family tells them apart."""
    requests, expected = [], []
    for family in MODEL_TYPES:
        for head in HEADS if family == "bert" else HEADS[:2]:
            name = next(name for name in ARCHITECTURES[family].model_classes if name.endswith(head))
            model = make_packed(family, name)
            folder, batch = f"{family}-{head}", make_batch(model.config)
            export_model(model, site[0] / "models" / folder, format="transformers.js")
            arrays = {key: values.tolist() for key, values in batch.items()}
            requests.append(
                {"folder": folder, "auto_class": f"Auto{head if head == 'Model' else f'Model{head}'}"}
                | {"arrays": arrays}
            )
            expected.append(model_outputs(model, batch))
    for answer, outputs in zip(ask("node", site, requests), expected, strict=True):
        assert outputs.keys() <= answer.keys()
        for key, values in outputs.items():
            assert_close(answer[key], values)


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    """Saves a packed BERT and its tokenizer of words; gives the folder and the model."""

    def make(head, xtc=None, **changes):
        set_seed(0)
        folder = tmp_path_factory.mktemp(head)
        model = make_packed("bert", head, **changes)
        model.config.xtc.update(xtc or {})
        model.save_pretrained(folder)
        BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(folder)
        return folder, model

    return make


def test_pipelines(bert_folder, site):
    """Embeddings, entities, answers and several labels, as pipelines return them, from texts of several lengths."""
    sentences = {"pooling": "mean", "normalize": True, "max_length": 12, "prompts": {}}
    models = {
        "feature-extraction": bert_folder("BertModel", {"task": "sentence-embedding", "sentences": sentences}),
        "token-classification": bert_folder("BertForTokenClassification"),
        "question-answering": bert_folder("BertForQuestionAnswering"),
        "text-classification": bert_folder("BertForSequenceClassification", problem_type="multi_label_classification"),
    }
    options = {
        "feature-extraction": {"pooling": "mean", "normalize": True},
        "token-classification": {"ignore_labels": []},
        "text-classification": {"top_k": None},
    }
    requests = []
    for task, (folder, _) in models.items():
        exported(folder, site[0] / "models" / task)
        given = [SENTENCES[0], SENTENCES[2]] if task == "question-answering" else [SENTENCES]
        requests.append({"folder": task, "task": task, "input": given, "options": options.get(task, {})})
    vectors, tags, answer, labels = ask("node", site, requests)
    tokenizer = AutoTokenizer.from_pretrained(site[0] / "models" / "feature-extraction")
    assert tokenizer.model_max_length == 12
    rows = tokenizer(SENTENCES, return_tensors="pt", padding=True)

    assert_close(vectors, model_outputs(models["feature-extraction"][1], dict(rows))["sentence_embedding"])
    logits = model_outputs(models["token-classification"][1], dict(rows))["logits"]
    for row, found in enumerate(tags):
        assert [entry["word"] for entry in found] == SENTENCES[row].split()
        best = softmax(logits[row]).max(-1)[1 : len(found) + 1]
        assert_close([entry["score"] for entry in found], best)
    pair = tokenizer(SENTENCES[0], SENTENCES[2], return_tensors="pt")
    spans = model_outputs(models["question-answering"][1], dict(pair))
    words, first = SENTENCES[2].split(), len(SENTENCES[0].split()) + 2
    start, end = (spans[name][0, first : first + len(words)] for name in ("start_logits", "end_logits"))
    scores = np.triu(start[:, None] + end[None])
    scores[np.tril_indices(len(words), -1)] = -np.inf
    i, j = np.unravel_index(scores.argmax(), scores.shape)
    assert answer["answer"] == " ".join(words[i : j + 1])
    logits = model_outputs(models["text-classification"][1], dict(rows))["logits"]
    by_label = [{entry["label"]: entry["score"] for entry in scores} for scores in labels]
    found = [[scores[f"LABEL_{i}"] for i in range(3)] for scores in by_label]
    assert_close(found, torch.sigmoid(torch.from_numpy(logits)).numpy())


HEADS_ON_CARDS = {
    "BertForSequenceClassification": {},
    "BertForTokenClassification": {},
    "BertForQuestionAnswering": {},
    "BertForMaskedLM": {},
    "BertModel": {"task": "sentence-embedding", "sentences": {"pooling": "cls", "normalize": True}},
}
RERANKER = ("BertForSequenceClassification", {"task": "reranking"}, 1)


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
@pytest.mark.parametrize("head, xtc, labels", [*((head, xtc, 3) for head, xtc in HEADS_ON_CARDS.items()), RERANKER])
def test_the_code_on_a_pushed_card_runs(head, xtc, labels, bert_folder, hub, tmp_path):
    """As a user copies it, from a Hub on loopback: packed model and ONNX file are in one repository."""
    changes = {"num_labels": labels} if head == "BertForSequenceClassification" else {}
    folder, _ = bert_folder(head, xtc, **changes)
    assert main(["push", str(folder), "user/tiny", "--with_onnx"]) == 0
    files = hub.repos["user/tiny"].commit("main").files
    assert {"model.safetensors", "onnx/model_quantized.onnx", "config.json", "tokenizer.json"} <= files.keys()
    card = files["README.md"].decode()
    assert {"onnx", "transformers.js", "xtc"} <= set(ModelCard(card).data.tags)
    assert f"({len(files['onnx/model_quantized.onnx']):,} bytes)" in card
    assert card.index("## In JavaScript") < card.index("## Results")
    (tmp_path / "card.md").write_text(card)
    (code,) = blocks(tmp_path / "card.md", "js")
    library = MODULES / "@huggingface" / "transformers" / "dist" / "transformers.node.mjs"
    setup = f"""import {{ env }} from "{library}";
env.allowLocalModels = false;
env.remoteHost = "{hub.endpoint}/";
env.cacheDir = "{tmp_path / "cache"}";
"""
    (tmp_path / "card.mjs").write_text(setup + code.replace('"@huggingface/transformers"', f'"{library}"'))
    done = subprocess.run(["node", str(tmp_path / "card.mjs")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    printed = {
        "BertForSequenceClassification": "label: 'LABEL_" if labels == 3 else "[ [ ",
        "BertForTokenClassification": "entity_group",
        "BertForQuestionAnswering": "answer",
        "BertForMaskedLM": "token_str",
        "BertModel": "dims: [ 1, 36 ]",
    }[head]
    assert printed in done.stdout
    assert main(["push", str(folder), "user/tiny"]) == 0
    files = hub.repos["user/tiny"].commit("main").files
    assert "onnx/model_quantized.onnx" not in files
    assert "In JavaScript" not in files["README.md"].decode()


def test_a_model_without_a_class_there_is_refused(tmp_path):
    model = make_packed("bert", "BertForNextSentencePrediction")
    with pytest.raises(XTCError) as error:
        export_model(model, tmp_path, format="transformers.js")
    assert str(error.value) == (
        "transformers.js has no class for XTCBertForNextSentencePrediction (model type 'bert'). It has those of the "
        "model types bert, camembert, distilbert, electra, mpnet, roberta, xlm-roberta that end in Model, "
        "ForSequenceClassification, ForTokenClassification, ForQuestionAnswering, ForMaskedLM. Export with "
        "format='onnx'."
    )
    assert not any(tmp_path.iterdir())


def test_every_family_with_a_graph_has_a_class_there():
    bases = {family: ARCHITECTURES[family].auto_classes["AutoModel"] for family in CONFIGS}
    assert set(MODEL_TYPES) == {family for family, base in bases.items() if getattr(base, "native_form", None)}
