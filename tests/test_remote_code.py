"""The code that packed folders carry: current, complete, and bit-identical where hf_xtc cannot be imported."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BertConfig, pipeline
from transformers.testing_utils import CaptureLogger

from hf_xtc import ARCHITECTURES, XTCBertForSequenceClassification, XTCRecipe, compress, pack_model, unpack_model
from hf_xtc.modeling.bert import CODE, auto_map
from hf_xtc.runs.export import plain_config
from remote_code import MODULES, ROOTS, WRITTEN, generate

HEADS = ARCHITECTURES["bert"].model_classes
EXAMPLE = Path(__file__).parent.parent / "examples" / "minilm-3l-1bit-sst2"
RECIPES = {
    "default": XTCRecipe(keep_layers=2),
    "ternary-groups-asymmetric": XTCRecipe("ternary", "per_group", 2, "ternary", activation_symmetric=False),
    "int8-static": XTCRecipe("int8", activation_calibration="static", scale_dtype="bfloat16"),
    "int4-tensor-static": XTCRecipe("int4", "per_tensor", embedding_weights="int4", activation_calibration="static"),
    "float-activations": XTCRecipe(activation_bits=None, quantize_pooler=False, position_weights=None),
    "float-weights": XTCRecipe(weights=None, embedding_weights=None),
    "paper": XTCRecipe.paper(),
}
CASES = [(head, "default") for head in HEADS] + [("BertForSequenceClassification", name) for name in RECIPES][1:]
# A process in which the package cannot be imported, wherever it is installed.
ABSENT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_xtc":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
"""


def run_without_package(code, tmp_path):
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment.pop("XTC_BACKEND")
    command = [sys.executable, "-c", ABSENT + code]
    return subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def auto_class(head):
    return f"AutoModel{head.removeprefix('Bert').removeprefix('Model')}"


def make_packed(config, batch, head, recipe):
    config.num_labels = 2 if head == "BertForQuestionAnswering" else 3
    transformers.set_seed(0)
    teacher = getattr(transformers, head)(config)
    for name, parameter in teacher.named_parameters():
        nn.init.normal_(parameter, mean=float("LayerNorm.weight" in name), std=0.2)
    student = compress(teacher, recipe)
    if recipe.activation_calibration == "static":
        student.train()(**batch)
    return pack_model(student.eval())


def outputs(model, batch):
    if "MultipleChoice" in type(model).__name__:
        batch = {key: value.unsqueeze(0) for key, value in batch.items()}
    with torch.no_grad():
        return {key: value for key, value in model(**batch).items() if isinstance(value, torch.Tensor)}


@pytest.fixture
def folder(tiny_config, tiny_batch, tmp_path):
    """A packed classifier of the default recipe."""
    packed = make_packed(tiny_config, tiny_batch, "BertForSequenceClassification", RECIPES["default"])
    packed.save_pretrained(tmp_path / "packed")
    return tmp_path / "packed"


# The file


@pytest.fixture(scope="module")
def code():
    return CODE.read_text(encoding="utf-8")


def test_committed_files_are_what_the_sources_give(code):
    """If not: `python tools/remote_code.py`."""
    assert CODE in WRITTEN
    assert {file.read_text(encoding="utf-8") for file in WRITTEN} == {code}
    # Compared as trees: another Python may quote otherwise.
    assert ast.dump(ast.parse(code)) == ast.dump(ast.parse(generate()))


def test_it_imports_nothing_that_transformers_does_not_need(code):
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {(node.module if isinstance(node, ast.ImportFrom) else node.names[0].name) for node in imports}
    others = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
    assert others == {"torch", "transformers", "safetensors", "huggingface_hub"}


def test_it_neither_trains_nor_loads_native_code(code):
    for name in ("fake_quantize", "XTCLinear", "XTCEmbedding", "ctypes", "pickle.", "eval(", "exec("):
        assert name not in code, name


def test_every_registered_piece_is_in_it(code):
    """Whatever the sources register must be among the roots, or known to be left out."""
    registered = set()
    for module in MODULES:
        tree = ast.parse((CODE.parent.parent / f"{module}.py").read_text(encoding="utf-8"))
        registered |= {n.name for n in tree.body if isinstance(n, ast.ClassDef) and "register(" in ast.unparse(n)}
    models = {model.__name__ for model in HEADS.values()}
    assert set(ROOTS) == (registered - {"PackedBackend", "AutoBackend", "Registry"}) | models | {"XTCBertConfig"}


def test_auto_map_names_every_registered_class(code, folder):
    config = AutoConfig.from_pretrained(folder)
    found = auto_map(config)
    assert found.pop("AutoConfig") == "modeling_xtc_bert.XTCBertConfig"
    assert found == {auto_class(head): f"modeling_xtc_bert.{model.__name__}" for head, model in HEADS.items()}
    for auto, path in found.items():
        assert getattr(transformers, auto)._model_mapping[type(config)].__name__ == path.partition(".")[2]
        assert f"class {path.partition('.')[2]}(" in code


# Which folders carry it


def test_packed_folders_carry_it_and_latent_ones_do_not(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    packed = AutoModelForSequenceClassification.from_pretrained(folder)
    assert config["auto_map"] == auto_map(packed.config)
    assert (folder / "modeling_xtc_bert.py").read_bytes() == CODE.read_bytes()
    unpack_model(packed).save_pretrained(tmp_path / "latent")
    assert sorted(file.name for file in (tmp_path / "latent").iterdir()) == ["config.json", "model.safetensors"]
    assert "auto_map" not in json.loads((tmp_path / "latent" / "config.json").read_text())


def test_exported_config_names_no_code(folder):
    plain = plain_config(AutoConfig.from_pretrained(folder))
    assert type(plain) is BertConfig
    assert not hasattr(plain, "auto_map")


# With the package


@pytest.mark.parametrize("trust", [None, True, False])
def test_class_of_the_package_wins_without_a_prompt(trust, folder, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    with CaptureLogger(transformers.logging.get_logger("transformers")) as log:
        model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=trust)
    assert type(model) is XTCBertForSequenceClassification
    assert log.out == ""


# Without the package


def test_outputs_are_bit_identical(tiny_config, tiny_batch, tmp_path):
    """All heads, all recipes: against the reference backend, in one process without the package."""
    save_file(tiny_batch, tmp_path / "batch.safetensors")
    jobs, expected = [], {}
    for head, name in CASES:
        packed = make_packed(tiny_config, tiny_batch, head, RECIPES[name])
        packed.save_pretrained(tmp_path / f"{head}-{name}")
        jobs.append((auto_class(head), f"{head}-{name}"))
        expected[f"{head}-{name}"] = outputs(packed, tiny_batch)
    script = f"""
import torch, transformers
from safetensors.torch import load_file, save_file
torch.set_num_threads({torch.get_num_threads()})
batch = load_file("batch.safetensors")
for auto, name in {jobs!r}:
    loader = getattr(transformers, auto)
    model, info = loader.from_pretrained(name, trust_remote_code=True, output_loading_info=True)
    assert not any(info.values()), info
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    assert model.backend == "reference"
    choices = {{key: value.unsqueeze(0) for key, value in batch.items()}} if "Choice" in auto else batch
    with torch.no_grad():
        found = {{key: value for key, value in model(**choices).items() if isinstance(value, torch.Tensor)}}
    save_file(found, name + ".safetensors")
assert "hf_xtc" not in sys.modules
"""
    done = run_without_package(script, tmp_path)
    assert done.returncode == 0, done.stderr
    for name, tensors in expected.items():
        found = load_file(tmp_path / f"{name}.safetensors")
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[key], tensors[key]) for key in tensors), name


def test_integers_half_precision_bare_encoder_and_saving(folder, tiny_batch, tmp_path, monkeypatch):
    """The same file on the integer backend, in bfloat16, as encoder and saved again."""
    save_file(tiny_batch, tmp_path / "batch.safetensors")
    script = f"""
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification
torch.set_num_threads({torch.get_num_threads()})
batch, found = load_file("batch.safetensors"), {{}}
def load(auto, **options):
    return auto.from_pretrained("packed", trust_remote_code=True, **options)
with torch.no_grad():
    model = load(AutoModelForSequenceClassification)
    model.set_backend("int8")
    found["int8"] = model(**batch).logits
    found["half"] = load(AutoModelForSequenceClassification, dtype=torch.bfloat16)(**batch).logits
    found["hidden"] = load(AutoModel)(**batch).last_hidden_state
model.save_pretrained("again")
save_file(found, "found.safetensors")
"""
    done = run_without_package(script, tmp_path)
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "found.safetensors")
    monkeypatch.setenv("XTC_NATIVE", "off")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    half = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16)
    assert torch.equal(found["half"], outputs(half, tiny_batch)["logits"])
    assert torch.equal(found["hidden"], outputs(model.bert, tiny_batch)["last_hidden_state"])
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "again")
    assert torch.equal(outputs(again, tiny_batch)["logits"], outputs(model, tiny_batch)["logits"])
    model.set_backend("int8")
    assert torch.equal(found["int8"], outputs(model, tiny_batch)["logits"])


def test_pipeline(tmp_path):
    text = "a quietly moving film that never begs for tears"
    script = f"""
import torch
from transformers import pipeline
torch.set_num_threads({torch.get_num_threads()})
classify = pipeline("text-classification", {str(EXAMPLE)!r}, trust_remote_code=True)
print(classify({text!r})[0])
"""
    done = run_without_package(script, tmp_path)
    assert done.returncode == 0, done.stderr
    model = AutoModelForSequenceClassification.from_pretrained(EXAMPLE)
    classify = pipeline("text-classification", model, tokenizer=AutoTokenizer.from_pretrained(EXAMPLE))
    assert done.stdout == f"{classify(text)[0]}\n"


def test_without_trust_the_error_is_that_of_transformers(folder, tmp_path):
    script = """
from transformers import AutoModelForSequenceClassification
try:
    AutoModelForSequenceClassification.from_pretrained("packed", trust_remote_code=False)
except ValueError as error:
    print("refused:", error)
AutoModelForSequenceClassification.from_pretrained("packed")
"""
    done = run_without_package(script, tmp_path)
    text = "The repository packed contains custom code which must be executed to correctly load the model."
    assert done.stdout.startswith(f"refused: {text}")
    assert f"ValueError: {text}" in done.stderr  # nobody is there to answer its question


def test_what_it_does_not_run_is_refused(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "state": "latent"}))
    script = """
from transformers import AutoConfig
AutoConfig.from_pretrained("packed", trust_remote_code=True)
"""
    done = run_without_package(script, tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("state='latent' does not exist. Use one of: packed.")
