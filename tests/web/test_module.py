"""The built JavaScript module in Node.js: it answers as hf_xtc.runtime does."""

import http.server
import json
import shutil
import threading

import numpy as np
import pytest
from families import make_teacher
from node import EXAMPLE, Process, needs_node
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from hf_xtc import XTCRecipe, compress, pack_model
from hf_xtc.data.token_predictions import answer, entities
from hf_xtc.files.sentence_files import SentenceSettings, write_sentence_files
from hf_xtc.native.library import variants
from hf_xtc.runtime import Pipeline

pytestmark = [needs_node, pytest.mark.skipif(not variants(), reason="the native operator is not built")]
TEXTS = ["a joy from start to end", "dull", "", "the film is not bad " * 20, "Naïve 👍 film, end!"]
PAIRS = [["a film", "not bad at all"], ["", "dull"], ["a joy " * 30, "dull " * 9]]
WORDS = [
    *("a", "joy", "from", "start", "to", "end", "dull", "the", "film", "is", "not", "bad", "at", "all", "naive"),
    *("!", ",", "##s", "##ing"),
]


@pytest.fixture(scope="module")
def node():
    process = Process("call.mjs")
    yield process
    process.close()


@pytest.fixture(autouse=True)
def portable(monkeypatch):
    """WebAssembly computes what the portable variant computes."""
    monkeypatch.setenv("XTC_NATIVE", "portable")


def written(folder, head, family="bert", names=("input_ids", "token_type_ids", "attention_mask"), **changes):
    """A packed folder with a tokenizer of WordPiece."""
    pack_model(compress(make_teacher(family, head, **changes), XTCRecipe(keep_layers=2)).eval()).save_pretrained(
        folder
    )
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(WordPiece({word: i for i, word in enumerate([*special, *WORDS])}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=30, model_input_names=list(names), unk_token="[UNK]"
    ).save_pretrained(folder)
    return folder


def value(answer):
    assert "error" not in answer, answer
    return answer["value"]


def as_pairs(texts):
    return [tuple(text) if isinstance(text, list) else text for text in texts]


@pytest.mark.parametrize("family", ["bert", "distilbert", "mpnet", "electra"])
def test_logits(family, node, tmp_path):
    """Of texts and pairs, in batches of any size; families without token types are given none."""
    head = {"bert": "Bert", "distilbert": "DistilBert", "mpnet": "MPNet", "electra": "Electra"}[family]
    folder = written(tmp_path, f"{head}ForSequenceClassification", family)
    pipe = Pipeline(folder)
    expected = pipe.logits(as_pairs(TEXTS + PAIRS))
    for batch_size in (1, 3, 32):
        found = node(folder=str(folder), method="logits", args=[TEXTS + PAIRS, {"batchSize": batch_size}])
        np.testing.assert_allclose(value(found), expected, rtol=0, atol=1e-6)
    about = value(node(folder=str(folder), method="about"))
    assert about["task"] == pipe.task
    assert about["labels"] == pipe.labels
    assert about["maxLength"] == 30


def test_token_types_are_left_out_where_the_tokenizer_has_none(node, tmp_path):
    folder = written(tmp_path / "without", "BertForSequenceClassification", names=["input_ids", "attention_mask"])
    found = value(node(folder=str(folder), method="logits", args=[PAIRS]))
    np.testing.assert_allclose(found, Pipeline(folder).logits(as_pairs(PAIRS)), rtol=0, atol=1e-6)
    other = written(tmp_path / "with", "BertForSequenceClassification")
    assert not np.allclose(found, value(node(folder=str(other), method="logits", args=[PAIRS])))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"problem_type": "regression"},
        {"problem_type": "multi_label_classification"},
        {"id2label": {"0": "bad", "1": "good", "2": "odd"}},
    ],
)
@pytest.mark.parametrize("top_k", [1, 2, None])
def test_classes_and_scores(config, top_k, node, tmp_path):
    folder = written(tmp_path, "BertForSequenceClassification")
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    expected = Pipeline(folder)(as_pairs(TEXTS + PAIRS), top_k=top_k)
    expected = [[row] for row in expected] if top_k == 1 else expected
    found = value(node(folder=str(folder), method="classify", args=[TEXTS + PAIRS, {"topK": top_k}]))
    for own, other in zip(found, expected, strict=True):
        assert [entry["label"] for entry in own] == [entry["label"] for entry in other]
        assert [entry["score"] for entry in own] == pytest.approx([entry["score"] for entry in other], abs=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_embeddings(pooling, normalize, node, tmp_path):
    """As modules.json says, or as asked; truncated as sentence_bert_config.json says."""
    folder = written(tmp_path, "BertModel")
    asked = {"pooling": pooling, "normalize": normalize}
    found = value(node(folder=str(folder), options={"cache": False}, method="embed", args=[TEXTS, asked]))
    np.testing.assert_allclose(found, Pipeline(folder).embed(TEXTS, **asked), rtol=1e-5, atol=1e-6)
    write_sentence_files(folder, SentenceSettings(pooling, normalize, max_length=9), 36)
    found = value(node(folder=str(folder), method="embed", args=[TEXTS]))
    np.testing.assert_allclose(found, Pipeline(folder).embed(TEXTS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("prompts", "default"), [({"query": "the end : "}, "query"), ({"query": "joy"}, None), ({"none": ""}, "none")]
)
def test_prompts(prompts, default, node, tmp_path):
    """The one that config_sentence_transformers.json names by default, the one that is given, or none."""
    folder = written(tmp_path, "BertModel")
    write_sentence_files(folder, SentenceSettings(), 36)
    file = folder / "config_sentence_transformers.json"
    file.write_text(json.dumps({"prompts": prompts, "default_prompt_name": default}))
    pipe = Pipeline(folder)
    for options in ({}, {"prompt": "dull "}, {"prompt": ""}):
        found = value(node(folder=str(folder), method="embed", args=[TEXTS + PAIRS, options]))
        expected = pipe.embed(as_pairs(TEXTS + PAIRS), **options)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    plain = value(node(folder=str(folder), method="embed", args=[TEXTS, {"prompt": ""}]))
    assert np.allclose(plain, value(node(folder=str(folder), method="embed", args=[TEXTS]))) is (default != "query")


@pytest.mark.parametrize("prompts", [{}, None, {"query": 1}])
def test_a_default_prompt_that_is_missing(prompts, node, tmp_path):
    folder = written(tmp_path, "BertModel")
    write_sentence_files(folder, SentenceSettings(), 36)
    file = folder / "config_sentence_transformers.json"
    file.write_text(json.dumps({"prompts": prompts, "default_prompt_name": "query"}))
    assert node(folder=str(folder), method="embed", args=[TEXTS])["error"] == (
        'config_sentence_transformers.json names "query" as its default prompt, which is none of its prompts. '
        "Correct it."
    )


def test_entities(node, tmp_path):
    folder = written(tmp_path, "BertForTokenClassification")
    file = folder / "config.json"
    labels = {"id2label": {"0": "O", "1": "B-PER", "2": "I-PER"}}
    file.write_text(json.dumps(json.loads(file.read_text()) | labels))
    pipe = Pipeline(folder)
    expected = [
        entities(text, *window, pipe.labels, pipe.tokenizer, "simple")
        for text, (window,) in zip(TEXTS, pipe.token_logits(TEXTS), strict=True)
    ]
    assert sum(map(len, expected)) > 5
    found = value(node(folder=str(folder), method="tag", args=[TEXTS]))
    for text, own, others in zip(TEXTS, found, expected, strict=True):
        for other in others:
            other |= {side: len(text[: other[side]].encode("utf-16-le")) // 2 for side in ("start", "end")}
            other["score"] = pytest.approx(other["score"], abs=1e-6)
        assert own == others


@pytest.mark.parametrize("unanswerable", [True, False])
def test_answers(unanswerable, node, tmp_path):
    """Also of contexts of several windows."""
    folder = written(tmp_path, "BertForQuestionAnswering")
    pipe = Pipeline(folder)
    questions = ["is the film dull", "joy", "not bad"]
    contexts = ["the film is a joy to all", "a dull end is not bad at all, the film " * 6, "joy"]
    expected = [
        answer(context, windows, unanswerable=unanswerable)
        for context, windows in zip(
            contexts, pipe.token_logits(list(zip(questions, contexts, strict=True)), stride=10), strict=True
        )
    ]
    found = value(
        node(folder=str(folder), method="answer", args=[questions, contexts, {"unanswerable": unanswerable}])
    )
    assert found == [row | {"score": pytest.approx(row["score"], abs=1e-6)} for row in expected]


def test_wrong_arguments(node):
    def error(method, *args, **options):
        return node(folder=str(EXAMPLE), options=options, method=method, args=args)["error"]

    assert error("classify", ["a"], {"topK": 0}) == "topK=0 must be at least 1, or null for all labels."
    assert error("classify", "a") == "Give a list of texts."
    assert error("classify", [1]) == "1 is not a text. Give a string, or a list of two for a pair."
    assert error("classify", [["a", "b", "c"]]).startswith('["a","b","c"] is not a text.')
    assert error("classify", ["a"], {"batchSize": 0}) == "batchSize=0 must be at least 1."
    assert error("embed", ["a"], {"pooling": "max"}) == 'pooling=max does not exist here. Use "mean" or "cls".'
    assert error("embed", ["a"], {"prompt": 1}) == "prompt=1 is no text. Give a string."
    assert error("tag", ["a"]) == "The model is no tagger: its task is sequence-classification."
    assert error("answer", ["a"], ["b"]).startswith("The model does not answer questions: its task is ")
    assert error("about", maxLength=3) == "maxLength=3 must lie between 4 and 512, the model's limit."
    assert value(node(folder=str(EXAMPLE), method="classify", args=[[]])) == []


def test_wrong_folders(node, tmp_path):
    def error(folder):
        return node(folder=str(folder), method="about")["error"]

    missing = tmp_path / "none" / "config.json"
    assert error(tmp_path / "none") == (
        f"{missing} cannot be read (there is no such file). Give the folder of a packed model."
    )
    for file, content, message in [
        ("config.json", "<html>", "config.json is a web page, not JSON. Check the address of the model's folder."),
        ("config.json", "{", "config.json is no JSON ("),
        ("tokenizer.json", "{}", "tokenizer.json cannot be read ("),
        ("model.safetensors", "version https://git-lfs", ""),
    ]:
        folder = tmp_path / f"{file}{len(content)}"
        shutil.copytree(EXAMPLE, folder)
        (folder / file).write_text(content)
        assert message in error(folder)
        assert not error(folder).startswith("not a ModelError")


def test_over_the_network(node, tmp_path):
    """A folder on a server, and servers that answer wrongly."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        found = node(folder=f"{address}/{EXAMPLE.name}", method="classify", args=[["dull and long"]])
        assert value(found)[0][0]["label"] == "negative"
        assert node(folder=f"{address}/none", method="about")["error"] == (
            f"{address}/none/config.json cannot be fetched: the server answers 404. Check the address."
        )
        server.shutdown()
    refused = node(folder=f"{address}/other", method="about")["error"]
    assert refused.startswith(f"{address}/other/config.json cannot be fetched (")
    assert refused.endswith("). Check the network, and that the server allows this page to ask.")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *args):
        super().__init__(*args, directory=EXAMPLE.parent)

    def log_message(self, *_):
        pass
