"""Packed models in JavaScript and WebAssembly: their numbers are those of the native operator's portable variant."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from damage import drop, edit_config, edit_tensors, put, put_value
from families import CELLS, make_tokenizer
from families import make_teacher as make_family
from node import relaxed_options
from transformers import AutoTokenizer

from hf_xtc import XTCRecipe, compress, pack_model
from hf_xtc.native.library import variants
from hf_xtc.reader import FAMILIES, PackedEncoder, ReadError
from hf_xtc.runtime import Pipeline, _NativeModel

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "minilm-3l-1bit-sst2"
DIST = ROOT / "web" / "dist"
SCRIPT = Path(__file__).parent / "run_models.mjs"
TSC = ROOT / "web" / "node_modules" / ".bin" / "tsc"
NODE = shutil.which("node")
HEADS = ("Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
SERVED = [(f, h) for f, h in CELLS if f"xtc_{f.replace('-', '_')}" in FAMILIES and h.endswith(HEADS)]
RECIPES = {
    "binary": {},
    "ternary": {"weights": "ternary", "embedding_weights": "ternary", "position_weights": "ternary"},
    "int4": {"weights": "int4", "embedding_weights": "int4", "position_weights": "int4"},
    "float tables": {"embedding_weights": None, "position_weights": None, "rest_dtype": "float32"},
    "bytes, per tensor": {"embedding_weights": "int8", "granularity": "per_tensor", "scale_dtype": "float32"},
    "float pooler": {"quantize_pooler": False, "rest_dtype": "bfloat16", "scale_dtype": "bfloat16"},
}
# One text, a padding token within, and the longest that all families take.
IDS = [[2, 45, 6, 99, 3], [1], [7, 1, 9, 0, 12], [5 + i for i in range(38)]]

pytestmark = [
    pytest.mark.skipif(NODE is None, reason="needs Node"),
    pytest.mark.skipif(not variants(), reason="the native operator is not built"),
]


def in_node(cases, wasm="xtc.wasm"):
    """What run_models.mjs prints of (folder, ids, types)."""
    asked = [{"folder": str(folder), "ids": ids, "types": types} for folder, ids, types in cases]
    text = json.dumps({"wasm": str(DIST / wasm), "cases": asked})
    done = subprocess.run(
        [NODE, *relaxed_options(), str(SCRIPT)], input=text, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def in_python(folder, ids, types, monkeypatch):
    """Lengths, hidden states, pooled states and logits of the portable variant."""
    monkeypatch.setenv("XTC_NATIVE", "portable")
    model = _NativeModel(PackedEncoder(folder))
    rows = zip(ids, types or [[0] * len(row) for row in ids], strict=True)
    encodings = [SimpleNamespace(ids=row, type_ids=kinds) for row, kinds in rows]
    lengths, outputs = model.run(encodings, with_types=True, threads=1)
    return {"lengths": lengths, **outputs._asdict()}


def assert_equal(found, expected, logits_within=0.0):
    """Bitwise, but for the logits of tokens, whose sums numpy makes in another order."""
    assert "error" not in found, found
    for name, values in expected.items():
        assert (name in found) is (values is not None), name
        if values is None:
            continue
        own = np.array(found[name], np.float32)
        assert own.shape == (values.size,)
        assert np.isfinite(own).all()
        assert np.abs(own - values.ravel()).max() <= (logits_within if name == "logits" else 0.0), name


def write(family, head, folder, **recipe):
    """A packed folder of a family's head, of two layers."""
    pack_model(compress(make_family(family, head), XTCRecipe(keep_layers=2, **recipe)).eval()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of every family's head, and one of every recipe; by name."""
    base = tmp_path_factory.mktemp("models")
    found = {head: write(family, head, base / head) for family, head in SERVED}
    found["BertForMaskedLM"] = write("bert", "BertForMaskedLM", base / "masked")
    for i, (name, recipe) in enumerate(RECIPES.items()):
        found[name] = write("bert", "BertForSequenceClassification", base / str(i), **recipe)
        found[f"electra {name}"] = write("electra", "ElectraForSequenceClassification", base / f"e{i}", **recipe)
    return found


@pytest.mark.parametrize("wasm", ["xtc.wasm", "xtc-relaxed.wasm"])
def test_every_family_head_and_recipe(wasm, folders, monkeypatch):
    """Hidden and pooled states and logits, with token types where there are several."""
    cases = []
    for name, folder in folders.items():
        typed = name in RECIPES or name.startswith(("Bert", "Electra", "electra"))
        cases.append((folder, IDS, [[i % 2 for i in range(len(row))] for row in IDS] if typed else None))
    results = in_node(cases, wasm)["results"]
    for name, case, found in zip(folders, cases, results, strict=True):
        on_tokens = "TokenClassification" in name or "QuestionAnswering" in name
        expected = in_python(*case, monkeypatch)
        assert_equal(found, expected, 1e-5 if on_tokens else 0.0)
        assert np.ptp(found["hidden"]) > 1
        assert found["hiddenSize"] == 36
        labels = 2 if "QuestionAnswering" in name else 3
        assert found["numLabels"] == (0 if expected["logits"] is None else labels)


def test_properties_are_those_of_the_runtime(folders, monkeypatch):
    monkeypatch.setenv("XTC_NATIVE", "portable")
    names = ["BertModel", "MPNetForTokenClassification", "RobertaForQuestionAnswering", "BertForMaskedLM", "binary"]
    changed = {"problem_type": "regression"}, {"xtc": {"task": "reranking"}}, {}, {}, {}
    cases = []
    for name, changes in zip(names, changed, strict=True):
        folder, config = folders[name], json.loads((folders[name] / "config.json").read_text())
        make_tokenizer(SimpleNamespace(pad_token_id=1)).save_pretrained(folder)
        config["xtc"] |= changes.get("xtc", {})
        (folder / "config.json").write_text(json.dumps({**config, **changes, "xtc": config["xtc"]}))
        cases.append((folder, IDS[:1], None))
    for (folder, *_), found in zip(cases, in_node(cases)["results"], strict=True):
        pipe = Pipeline(folder)
        assert found["task"] == pipe.task
        assert found["numLabels"] == len(pipe.labels)
        assert found["maxLength"] == pipe._model.positions


@pytest.mark.parametrize("wasm", ["xtc.wasm", "xtc-relaxed.wasm"])
def test_the_published_checkpoint(wasm, monkeypatch):
    """On 300 texts: logits bit for bit."""
    tokenizer = AutoTokenizer.from_pretrained(EXAMPLE)
    words = (EXAMPLE / "README.md").read_text().split()
    texts = [" ".join(words[i : i + 1 + i % 40]) for i in range(300)]
    ids = tokenizer(texts, truncation=True, max_length=128)["input_ids"]
    (found,) = in_node([(EXAMPLE, ids, None)], wasm)["results"]
    assert_equal(found, in_python(EXAMPLE, ids, None, monkeypatch))
    assert np.ptp(found["logits"]) > 1


def test_buckets_of_distances(folders):
    reader = PackedEncoder(folders["MPNetModel"])
    table = reader.tensor(f"{reader.prefix}encoder.relative_attention_bias.weight").astype(np.float32)
    assert np.array_equal(table[in_node([])["buckets"]].T, reader.distances(701))


# What it refuses

QUERY = "bert.encoder.layer.0.attention.self.query"
SCALE, PACKED, BIAS = f"{QUERY}.weight_scale", f"{QUERY}.weight_packed", f"{QUERY}.bias"
CLASSIFIER = "classifier.weight"


def header(change):
    """A change of the header of a safetensors file."""

    def edit(folder):
        file = folder / "model.safetensors"
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        values = json.loads(data[8 : 8 + length])
        change(values)
        text = json.dumps(values).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])

    return edit


def bytes_of(change):
    def edit(folder):
        file = folder / "model.safetensors"
        file.write_bytes(change(file.read_bytes()))

    return edit


def config(**changes):
    return lambda folder: edit_config(folder, lambda values: values.update(changes))


def recipe(**changes):
    return lambda folder: edit_config(folder, lambda values: values["xtc"]["recipe"].update(changes))


def tensors(change):
    return lambda folder: edit_tensors(folder, change)


def text_of_config(change):
    def edit(folder):
        file = folder / "config.json"
        file.write_text(change(file.read_text()))

    return edit


REFUSED = [
    (text_of_config(lambda text: text[:-3]), "The config.json is no JSON"),
    (text_of_config(lambda text: "[1]"), "holds no object"),
    (text_of_config(lambda text: text + " " * 2**20), "more than any config"),
    (bytes_of(lambda data: (2**21).to_bytes(8, "little") + b"[" * 2**21), "its header has 2097152 bytes"),
    (config(state="latent"), "of a xtc_bert model in state latent; this runs packed models of: xtc_bert, xtc_roberta"),
    (config(model_type="constructor"), "of a constructor model in state packed"),
    (config(xtc={"format_version": 2}), "format version 2; this reads version 1"),
    (
        config(xtc={"format_version": 1, "recipe": {}}),
        "lacks activation_bits, activation_calibration, ",
    ),
    (config(hidden_size=None), "lacks hidden_size"),
    (config(num_attention_heads=5), "is invalid: 5 heads"),
    (config(layer_norm_eps=2), "layer_norm_eps=2"),
    (config(hidden_act="relu"), "its activation is relu"),
    (config(is_decoder=True), "it is a decoder"),
    (config(position_embedding_type="relative_key"), "its positions are relative_key"),
    (config(num_hidden_layers=2**30), "no tensor bert.encoder.layer.2.attention.self.query.weight_packed"),
    (config(hidden_size=2**30, num_attention_heads=1), "holds bytes"),
    (config(intermediate_size=49), "holds 50 rows, not 49"),
    (recipe(weights="int8"), "its weights are int8"),
    (recipe(activation_bits=4), "its recipe says activation_bits=4"),
    (recipe(activation_calibration="static"), "its recipe says activation_calibration=static"),
    (recipe(embedding_weights="quinary"), "embedding_weights=quinary; known: binary, ternary, int4, int8"),
    (tensors(drop(PACKED)), f"no tensor {PACKED}"),
    (tensors(drop(BIAS)), f"no tensor {BIAS} [36]"),
    (tensors(put(BIAS, lambda bias: bias[:-1])), f"no tensor {BIAS} [36]"),
    (tensors(put(BIAS, lambda bias: bias.to(torch.uint8))), f"{BIAS} holds no floats"),
    (tensors(put(BIAS, lambda bias: bias.double())), f"{BIAS} has dtype F64"),
    (tensors(put(PACKED, lambda packed: packed[:, :4])), "holds bytes [36,4] and scales [36,1] for 36 columns"),
    (tensors(put(SCALE, lambda scale: scale.expand(36, 2))), "its scales are per group"),
    (tensors(put(SCALE, lambda scale: -scale)), f"{QUERY} holds invalid bytes or scales"),
    (tensors(put(CLASSIFIER, lambda weight: weight[:, :-1])), f"no tensor {CLASSIFIER} [3, 36]"),
    (tensors(put_value(SCALE, float("nan"))), f"{SCALE} holds NaN, infinite or too large values"),
    (tensors(put_value(BIAS, float("inf"))), f"{BIAS} holds NaN, infinite or too large values"),
    (tensors(put(BIAS, lambda bias: bias.float() + 2.0**19)), f"{BIAS} holds NaN, infinite or too large values"),
    (tensors(put(BIAS, lambda bias: (bias + 2.0**19).bfloat16())), f"{BIAS} holds NaN, infinite or too large"),
    (bytes_of(lambda data: data[:-1]), "its tensors have"),
    (bytes_of(lambda data: data + b"\0"), "its tensors have"),
    (bytes_of(lambda data: data[:100]), "its header has"),
    (bytes_of(lambda data: data[:5]), "the file has 5 bytes"),
    (bytes_of(lambda data: b"\xff" * 8 + data[8:]), "its header has 18446744073709551615 bytes"),
    (bytes_of(lambda data: data[:8] + b"[" + data[9:]), "its header is no JSON"),
    (header(lambda values: values[BIAS].update(shape=[2**52, 2**52])), f"{BIAS} of shape"),
    (header(lambda values: values[BIAS].update(shape=[-36])), f"{BIAS} has no shape"),
    (header(lambda values: values[BIAS].update(data_offsets=values[SCALE]["data_offsets"])), "begins at"),
    (header(lambda values: values[BIAS].update(data_offsets=[0, 2**60])), "has no offsets"),
    (header(lambda values: values.pop(BIAS)), "begins at"),
]


def test_damaged_files_are_refused(folders, tmp_path):
    cases = []
    for i, (change, _) in enumerate(REFUSED):
        folder = shutil.copytree(folders["BertForSequenceClassification"], tmp_path / str(i))
        change(folder)
        cases.append((folder, IDS, None))
    for (_, text), found in zip(REFUSED, in_node(cases)["results"], strict=True):
        assert found["clean"] is True, found
        assert text in found["error"]
        assert found["error"].endswith(".")
        assert found["error"].count("\n") == 0


def test_trit_bytes_beyond_the_last_are_refused(folders, tmp_path):
    folder = shutil.copytree(folders["ternary"], tmp_path / "ternary")
    edit_tensors(folder, put_value(PACKED, 243))
    with pytest.raises(ReadError, match="invalid bytes or scales"):
        PackedEncoder(folder).packed(QUERY)
    (found,) = in_node([(folder, IDS, None)])["results"]
    assert found == {"error": f"{QUERY} holds invalid bytes or scales. Download the file again.", "clean": True}


def test_inputs_that_do_not_fit_are_refused(folders):
    bert, distilbert = folders["BertModel"], folders["DistilBertModel"]
    cases = {
        "token id 101, but the embedding has 101 rows": (bert, [[1, 101]], None),
        "token id -1, but": (bert, [[-1]], None),
        "token id 1.5, but": (bert, [[1.5]], None),
        "token type id 2, but the embedding has 2 rows": (bert, [[1, 2]], [[0, 2]]),
        "has 41 tokens; the model takes 1 to 40": (bert, [[1] * 41], None),
        "has 0 tokens; the model takes": (bert, [[1], []], None),
        "of at least one sequence": (bert, [], None),
        "Token types must be as many as": (bert, [[1, 2]], [[0]]),
        "knows no token types, but some are not 0": (distilbert, [[1, 2]], [[0, 1]]),
    }
    for text, found in zip(cases, in_node(cases.values())["results"], strict=True):
        assert found["clean"] is True, found
        assert text in found["error"]


@pytest.mark.skipif(
    not shutil.which("clang++-19") or not shutil.which("wasm-ld-19"), reason="needs clang 19 for wasm32"
)
def test_the_committed_file_is_what_the_sources_give(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "CXXFLAGS"}
    subprocess.run(["sh", str(ROOT / "web" / "build_wasm.sh"), str(tmp_path)], env=environment, check=True)
    built = sorted(file.name for file in tmp_path.iterdir())
    assert built == sorted(file.name for file in DIST.glob("*.wasm"))
    for name in built:
        assert (tmp_path / name).read_bytes() == (DIST / name).read_bytes(), (
            f"{name} is stale: npm run build --prefix web"
        )


@pytest.mark.skipif(not TSC.exists(), reason="needs the npm packages of web/")
def test_types():
    options = ["--noEmit", "--allowJs", "--checkJs", "--strict"]
    options += ["--target", "es2022", "--module", "nodenext", "--lib", "es2022,dom"]
    done = subprocess.run([str(TSC), *options, str(ROOT / "web" / "src" / "model.js")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
