"""The code in packed folders: short, and bitwise equal to the package, without importing hf_xtc."""

import ast
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import transformers
from damage import drop, edit_config, edit_tensors, put, put_value
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    pipeline,
)
from transformers.testing_utils import CaptureLogger

from hf_xtc import ARCHITECTURES, XTCBertForSequenceClassification, XTCRecipe, compress, pack_model, unpack_model
from hf_xtc.errors import XTCError
from hf_xtc.export.stock import plain_config
from hf_xtc.modeling.base import CODE, auto_map
from hf_xtc.quantization.quantizers import get_quantizer
from hf_xtc.quantization.specs import QUANTIZERS

HEADS = ARCHITECTURES["bert"].model_classes
# Written by version 0.3, with the code of that version, modeling_xtc_bert.py.
OLD = Path(__file__).parent.parent / "examples" / "minilm-3l-1bit-sst2"
RECIPES = {
    "default": XTCRecipe(keep_layers=2),
    "ternary-groups-asymmetric": XTCRecipe("ternary", "per_group", 2, "ternary", activation_symmetric=False),
    "int8-static": XTCRecipe("int8", activation_calibration="static", scale_dtype="bfloat16"),
    "int4-tensor-static": XTCRecipe("int4", "per_tensor", embedding_weights="int4", activation_calibration="static"),
    "static-asymmetric": XTCRecipe("ternary", activation_symmetric=False, activation_calibration="static"),
    "4-bit-activations": XTCRecipe(activation_bits=4, position_weights="int4", rest_dtype="bfloat16"),
    "4-bit-asymmetric": XTCRecipe("int8", "per_tensor", activation_bits=4, activation_symmetric=False),
    "float-activations": XTCRecipe(activation_bits=None, quantize_pooler=False, position_weights=None),
    "float-weights": XTCRecipe(weights=None, embedding_weights=None),
    "paper": XTCRecipe.paper(),
}
LINEAR = "bert.encoder.layer.1.intermediate.dense"
NORM = "bert.encoder.layer.1.output.LayerNorm.weight"
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
    environment.pop("XTC_BACKEND", None)
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
        student.train()(**choices(student, batch))
    return pack_model(student.eval())


def choices(model, batch):
    several = "MultipleChoice" in type(model).__name__
    return {key: value.unsqueeze(0) for key, value in batch.items()} if several else batch


def outputs(model, batch):
    with torch.no_grad():
        return {k: v for k, v in model(**choices(model, batch)).items() if isinstance(v, torch.Tensor)}


@pytest.fixture
def folder(tiny_config, tiny_batch, tmp_path):
    """A packed classifier of the default recipe."""
    packed = make_packed(tiny_config, tiny_batch, "BertForSequenceClassification", RECIPES["default"])
    packed.save_pretrained(tmp_path / "packed")
    return tmp_path / "packed"


@pytest.fixture(scope="module")
def module():
    """The code as a module of this process, for what does not depend on the package's absence."""
    spec = importlib.util.spec_from_file_location("modeling_xtc", CODE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The file


@pytest.fixture(scope="module")
def tree():
    return ast.parse(CODE.read_text(encoding="utf-8"))


def test_it_is_short_enough_to_review():
    assert len(CODE.read_text(encoding="utf-8").splitlines()) <= 540


def test_it_imports_only_torch_transformers_and_the_standard_library(tree):
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports}
    packages = {name.partition(".")[0] for name in names}
    assert packages == {"torch", "transformers", "huggingface_hub", "json", "math", "os", "re", "typing"}
    named = [n for n in imports if isinstance(n, ast.ImportFrom) and n.module.startswith("transformers")]
    # transformers 4.57 has all of these, so the check of its version is reached.
    assert {alias.name for node in named for alias in node.names} == {
        *("PreTrainedModel", "ACT2FN", "load_state_dict")
    }


def test_it_runs_no_text_and_touches_no_file_but_the_index(tree):
    """As its first lines state, apart from what transformers does for any model."""
    called = [
        node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    assert not {"eval", "exec", "compile", "__import__", "input"} & set(called)
    assert called.count("open") == 1  # model.safetensors.index.json
    of_os = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert {name for name in of_os if name.startswith("os.") and name.count(".") == 1} == {
        *("os.path", "os.sep", "os.PathLike")
    }
    assert not {name for name in of_os if name in ("torch.load", "torch.hub", "torch.ops", "torch.utils")}


def test_it_knows_the_recipes_and_quantizers_of_the_package(module):
    values = asdict(XTCRecipe())
    assert {name: known[0] for name, known in module.RECIPE.items()} == {name: values[name] for name in module.RECIPE}
    assert set(values) == {*module.RECIPE, *module.OTHER_FIELDS}
    own = [name for name, quantizer in QUANTIZERS.items() if quantizer.__module__.startswith("hf_xtc.")]
    assert {name: get_quantizer(name).levels for name in own} == module.LEVELS
    for name, known in module.RECIPE.items():
        for value in known:
            XTCRecipe(**{name: value, **({"group_size": 2} if value == "per_group" else {})})
        with pytest.raises(XTCError):
            XTCRecipe(**{name: "another"})


def test_auto_map_names_every_registered_class(module, folder):
    config = AutoConfig.from_pretrained(folder)
    found = auto_map(config)
    assert found.pop("AutoConfig") == "modeling_xtc.XTCBertConfig"
    assert found == {auto_class(head): f"modeling_xtc.{model.__name__}" for head, model in HEADS.items()}
    for auto, path in found.items():
        name = path.partition(".")[2]
        assert getattr(transformers, auto)._model_mapping[type(config)].__name__ == name
        assert getattr(module, name).__mro__[2] is getattr(transformers, name.removeprefix("XTC"))


# Which folders carry it


def test_packed_folders_carry_it_and_latent_ones_do_not(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    packed = AutoModelForSequenceClassification.from_pretrained(folder)
    assert config["auto_map"] == auto_map(packed.config)
    assert (folder / "modeling_xtc.py").read_bytes() == CODE.read_bytes()
    unpack_model(packed).save_pretrained(tmp_path / "latent")
    assert sorted(file.name for file in (tmp_path / "latent").iterdir()) == ["config.json", "model.safetensors"]
    assert "auto_map" not in json.loads((tmp_path / "latent" / "config.json").read_text())


def test_a_model_saved_over_an_old_folder_leaves_none_of_its_code(tmp_path):
    shutil.copytree(OLD, tmp_path / "model")
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "model")
    assert [file.name for file in (tmp_path / "model").glob("*.py")] == ["modeling_xtc.py"]
    named = json.loads((tmp_path / "model" / "config.json").read_text())["auto_map"]
    assert {path.partition(".")[0] for path in named.values()} == {"modeling_xtc"}


def test_exported_config_names_no_code(folder):
    plain = plain_config(AutoConfig.from_pretrained(folder))
    assert type(plain) is BertConfig
    assert not hasattr(plain, "auto_map")


# With the package


@pytest.mark.parametrize("trust", [None, True, False])
@pytest.mark.parametrize("age", ["new", "old"])
def test_class_of_the_package_wins_without_a_prompt(age, trust, folder, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    with CaptureLogger(transformers.logging.get_logger("transformers")) as log:
        model = AutoModelForSequenceClassification.from_pretrained(
            OLD if age == "old" else folder, trust_remote_code=trust
        )
    assert type(model) is XTCBertForSequenceClassification
    assert log.out == ""


# Without the package


@pytest.mark.usefixtures("reference_backend")
def test_outputs_are_bitwise_equal_and_files_come_back(tiny_config, tiny_batch, tmp_path):
    """All heads and recipes, against the reference backend, in one process without the package."""
    save_file(tiny_batch, tmp_path / "batch.safetensors")
    jobs, expected = [], {}
    for head in HEADS:
        for name, recipe in RECIPES.items():
            packed = make_packed(tiny_config, tiny_batch, head, recipe)
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
    choices = {{key: value.unsqueeze(0) for key, value in batch.items()}} if "Choice" in auto else batch
    with torch.no_grad():
        found = {{key: value for key, value in model(**choices).items() if isinstance(value, torch.Tensor)}}
    save_file(found, name + ".safetensors")
    model.save_pretrained("again-" + name)
assert "hf_xtc" not in sys.modules
"""
    done = run_without_package(script, tmp_path)
    assert done.returncode == 0, done.stderr
    for name, tensors in expected.items():
        found = load_file(tmp_path / f"{name}.safetensors")
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[key], tensors[key]) for key in tensors), name
        first, second = (load_file(tmp_path / f"{again}{name}" / "model.safetensors") for again in ("", "again-"))
        assert first.keys() == second.keys()
        assert all(first[key].dtype == second[key].dtype for key in first), name
        assert all(torch.equal(first[key], second[key]) for key in first), name
    config = json.loads((tmp_path / f"again-{name}" / "config.json").read_text())
    assert config == json.loads((tmp_path / name / "config.json").read_text())
    assert (tmp_path / f"again-{name}" / "modeling_xtc.py").read_bytes() == CODE.read_bytes()


@pytest.mark.usefixtures("reference_backend")
def test_half_precision_bare_encoder_and_package_agree(folder, tiny_batch, tmp_path):
    """The same file in bfloat16, converted, and as an encoder; files that the code saves load with the package."""
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
    found["half"] = load(AutoModelForSequenceClassification, dtype=torch.bfloat16)(**batch).logits
    found["hidden"] = load(AutoModel)(**batch).last_hidden_state
    found["eager"] = load(AutoModelForSequenceClassification, attn_implementation="eager")(**batch).logits
    model.save_pretrained("again", max_shard_size="2KB")
    found["converted"] = model.to(torch.bfloat16)(**batch).logits
    model.save_pretrained("converted")
save_file(found, "found.safetensors")
"""
    done = run_without_package(script, tmp_path)
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "found.safetensors")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    half = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16)
    eager = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager")
    logits = outputs(model, tiny_batch)["logits"]
    assert torch.equal(found["hidden"], outputs(model.bert, tiny_batch)["last_hidden_state"])
    assert torch.equal(found["eager"], outputs(eager, tiny_batch)["logits"])
    assert len(list((tmp_path / "again").glob("model-*.safetensors"))) > 1
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "again")
    assert torch.equal(outputs(again, tiny_batch)["logits"], logits)
    for name, expected in (("half", half), ("converted", model.to(torch.bfloat16))):
        assert torch.equal(found[name], outputs(expected, tiny_batch)["logits"]), name
    converted = load_file(tmp_path / "converted" / "model.safetensors")
    assert converted[f"{LINEAR}.weight_scale"].dtype == torch.float16


def test_old_folders_load_with_the_code_they_carry(tmp_path):
    text = "a quietly moving film that never begs for tears"
    script = f"""
import torch
from transformers import pipeline
torch.set_num_threads({torch.get_num_threads()})
classify = pipeline("text-classification", {str(OLD)!r}, trust_remote_code=True)
print(type(classify.model).__module__.rpartition(".")[2], classify({text!r})[0])
"""
    done = run_without_package(script, tmp_path)
    assert done.returncode == 0, done.stderr
    model = AutoModelForSequenceClassification.from_pretrained(OLD)
    classify = pipeline("text-classification", model, tokenizer=AutoTokenizer.from_pretrained(OLD))
    assert done.stdout == f"modeling_xtc_bert {classify(text)[0]}\n"


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
    assert f"ValueError: {text}" in done.stderr  # the standard input is empty, so its question has no answer


def test_a_latent_checkpoint_is_refused(folder, tmp_path):
    edit_config(folder, lambda config: config.update(state="latent"))
    done = run_without_package(
        'from transformers import AutoConfig; AutoConfig.from_pretrained("packed", trust_remote_code=True)', tmp_path
    )
    assert done.returncode == 1
    error = "PackedFileError: Latent checkpoints are for training; install hf_xtc to load one."
    assert done.stderr.splitlines()[-1].endswith(error)


def test_an_old_transformers_gives_a_message_with_the_required_version(folder, tmp_path):
    script = """
import transformers
transformers.__version__ = "4.57.6"
transformers.AutoConfig.from_pretrained("packed", trust_remote_code=True)
"""
    done = run_without_package(script, tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ImportError: This model needs transformers 5.0 or newer, but 4.57.6 is installed. "
        "Run `pip install -U transformers`."
    )


# Other heads


@pytest.mark.usefixtures("reference_backend")
def test_a_classifier_on_a_file_without_pooler_has_zeros_there(module, tiny_config, tiny_batch, tmp_path):
    packed = make_packed(tiny_config, tiny_batch, "BertForTokenClassification", RECIPES["default"])
    packed.save_pretrained(tmp_path)
    model = module.XTCBertForSequenceClassification.from_pretrained(tmp_path)
    assert not model.bert.pooler.dense.weight_packed.any()
    assert not model.bert.pooler.dense.weight_scale.any()
    hidden, expected = (outputs(m, tiny_batch)["last_hidden_state"] for m in (model.bert, packed.bert))
    assert torch.equal(hidden, expected)


def test_gradients_pass_through_as_in_the_package(module, folder, tiny_batch):
    found = []
    for load in (module.XTCBertForSequenceClassification, AutoModelForSequenceClassification):
        model = load.from_pretrained(folder)
        embeds = model.bert.embeddings.word_embeddings(tiny_batch["input_ids"]).requires_grad_()
        model(inputs_embeds=embeds, attention_mask=tiny_batch["attention_mask"]).logits.square().sum().backward()
        found.append((embeds.grad, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (embeds, rest), (expected, expected_rest) = found
    assert embeds.any()
    assert torch.equal(embeds, expected)
    assert rest.keys() == expected_rest.keys()
    assert all(torch.equal(rest[name], expected_rest[name]) for name in rest)


def test_the_vocabulary_cannot_change(module, folder):
    model = module.XTCBertForSequenceClassification.from_pretrained(folder)
    with pytest.raises(module.PackedFileError, match="vocabulary"):
        model.resize_token_embeddings(200)


# Files that are damaged, mixed up or hostile


def recipe(**changes):
    return lambda config: config["xtc"]["recipe"].update(changes)


def both_refuse(module, folder, text):
    """Asserts that the code refuses with this message, and that the package refuses too."""
    with pytest.raises(module.PackedFileError, match=text):
        module.XTCBertForSequenceClassification.from_pretrained(folder)
    with pytest.raises(XTCError):
        AutoModelForSequenceClassification.from_pretrained(folder)


@pytest.mark.parametrize(
    "change, text",
    [
        (drop(f"{LINEAR}.weight_scale"), rf"packed/model.safetensors lacks 1 tensors .*{LINEAR}.weight_scale"),
        (drop("classifier.weight", "classifier.bias"), "lacks 2 tensors"),
        (lambda tensors: tensors.update(other=torch.zeros(2)), r"holds 1 unknown tensors \(first: other\)"),
        (
            put(f"{LINEAR}.weight_packed", lambda t: t[:, :-1]),
            r"of shape \[50, 4\], not torch.uint8 of shape \[50, 5\]",
        ),
        (put(f"{LINEAR}.weight_scale", lambda t: t[:1]), r"of shape \[1, 1\]"),
        (put(f"{LINEAR}.weight_packed", lambda t: t.half()), "weight_packed is torch.float16"),
        (put(f"{LINEAR}.weight_scale", lambda t: t.float()), "weight_scale is torch.float32"),
        (put(NORM, lambda t: t.int()), "LayerNorm.weight is torch.int32"),
        (put_value(f"{LINEAR}.weight_scale", -0.5), f"^{LINEAR}.weight_scale holds a negative scale"),
        (put_value(f"{LINEAR}.weight_scale", math.nan), f"^{LINEAR}.weight_scale holds values from nan"),
        (put_value(NORM, math.inf), f"^{NORM} holds values"),
        (put(NORM, lambda t: t.float() + 1e6), f"^{NORM} holds values from .*, beyond 262144"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tensors_that_config_json_does_not_describe(change, text, module, folder):
    edit_tensors(folder, change)
    both_refuse(module, folder, text)


def test_another_number_of_labels_needs_a_new_head(module, folder):
    with pytest.raises(RuntimeError, match=r"not torch.float32 of shape .*give ignore_mismatched_sizes=True"):
        module.XTCBertForSequenceClassification.from_pretrained(folder, num_labels=5)
    options = {"num_labels": 5, "ignore_mismatched_sizes": True}
    model = module.XTCBertForSequenceClassification.from_pretrained(folder, **options)
    assert model.classifier.out_features == 5


def test_bytes_and_ranges_that_the_format_does_not_have(module, tiny_config, tiny_batch, tmp_path):
    static = XTCRecipe("ternary", activation_calibration="static", activation_symmetric=False)
    for change, text in (
        (put_value(f"{LINEAR}.weight_packed", 243), "holds 243; its bytes end at 242"),
        (put(f"{LINEAR}.activation.range", lambda t: t.flip(0)), "activation.range ends at"),
    ):
        packed = make_packed(tiny_config, tiny_batch, "BertForSequenceClassification", static)
        packed.save_pretrained(tmp_path / "packed")
        edit_tensors(tmp_path / "packed", change)
        both_refuse(module, tmp_path / "packed", text)


@pytest.mark.parametrize("length", [0, 8, 200, -1])
def test_truncated_files(length, module, folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:length])
    both_refuse(module, folder, "is truncated or not a safetensors file")


def test_pickles_are_never_read(module, folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    both_refuse(module, folder, "never read from pickles")


@pytest.mark.parametrize("place", ["../outside.safetensors", ".", ""])
def test_an_index_cannot_name_files_elsewhere(place, module, folder):
    AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(folder, max_shard_size="2KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], place)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    both_refuse(module, folder, "is no index of shards")


@pytest.mark.parametrize(
    "change, text",
    [
        (lambda config: config["xtc"].update(format_version=2), "format_version=2"),
        (lambda config: config["xtc"].update(recipe=5), "recipe=5"),
        (recipe(weights="int3"), "recipe.weights=int3"),
        (recipe(quantize_pooler=1), "recipe.quantize_pooler=1"),
        (recipe(activation_bits=8.0), "recipe.activation_bits=8.0"),
        (recipe(group_size=2), "recipe.group_size=2"),
        (recipe(granularity="per_group", group_size=7), "recipe.group_size=7 for the 36 inputs of encoder.layer.0"),
        (recipe(unknown=1), "recipe.unknown=1"),
        (lambda config: config.update(hidden_size=10**12), f"hidden_size={10**12}"),
        (lambda config: config.update(num_hidden_layers=10**9), "num_hidden_layers="),
        (lambda config: (config.pop("id2label"), config.update(num_labels=10**9)), "num_labels="),
        (lambda config: config.update(num_attention_heads=5), "num_attention_heads=5"),
        (lambda config: config.update(hidden_act="none of them"), "hidden_act=none"),
        (lambda config: config.update(layer_norm_eps=math.nan), "layer_norm_eps=nan"),
        (lambda config: config.update(pad_token_id=2**63), "pad_token_id="),
        (lambda config: config.update(dtype=False), "dtype=False"),
        (lambda config: config.update(id2label=[1, 2]), "transformers cannot take"),
        (lambda config: config.update(quantization_config={"quant_method": "bitsandbytes"}), "quantization_config="),
        (lambda config: config.update(attn_implementation="someone/kernel"), "_attn_implementation=someone/kernel"),
        (lambda config: config.update(_attn_implementation="someone/kernel"), "_attn_implementation=someone/kernel"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_configs_that_no_packed_model_has(change, text, module, folder):
    edit_config(folder, lambda config: config["xtc"].update(layer_map=None))
    edit_config(folder, change)
    both_refuse(module, folder, text)


def test_a_config_without_a_dtype_means_float32(module, folder):
    edit_config(folder, lambda config: config.pop("dtype"))
    for load in (module.XTCBertForSequenceClassification, AutoModelForSequenceClassification):
        assert load.from_pretrained(folder).dtype == torch.float32
        assert load.from_pretrained(folder, dtype=torch.bfloat16).dtype == torch.bfloat16
    packed = AutoModelForSequenceClassification.from_pretrained(folder)
    made = type(packed).from_pretrained(
        None, config=AutoConfig.from_pretrained(folder), state_dict=packed.state_dict()
    )
    assert made.dtype == torch.float32


@pytest.mark.usefixtures("reference_backend")
def test_the_files_are_sound_without_damage(module, folder, tiny_batch):
    model, info = module.XTCBertForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    assert isinstance(model, BertForSequenceClassification)
    encoder = module.XTCBertModel.from_pretrained(folder)
    assert torch.equal(outputs(encoder, tiny_batch)["pooler_output"], outputs(model.bert, tiny_batch)["pooler_output"])
    package = AutoModel.from_pretrained(folder)
    assert torch.equal(outputs(package, tiny_batch)["pooler_output"], outputs(encoder, tiny_batch)["pooler_output"])
