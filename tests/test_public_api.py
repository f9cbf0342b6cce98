"""The public API: the exports of `hf_xtc`, their documentation, and the time to import them."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import hf_xtc

ROOT = Path(hf_xtc.__file__).parent
PUBLIC = [
    "ARCHITECTURES",
    "BACKENDS",
    "QUANTIZERS",
    "TERMS",
    "DistillationTerm",
    "GlueMetric",
    "LayerMap",
    "PackedEmbedding",
    "PackedLinear",
    "PackedSizeCallback",
    "QuantSpec",
    "QuantizationCallback",
    "Quantizer",
    "WeightStatisticsCallback",
    "XTCBertConfig",
    "XTCBertForMaskedLM",
    "XTCBertForMultipleChoice",
    "XTCBertForNextSentencePrediction",
    "XTCBertForPreTraining",
    "XTCBertForQuestionAnswering",
    "XTCBertForSequenceClassification",
    "XTCBertForTokenClassification",
    "XTCBertModel",
    "XTCEmbedding",
    "XTCError",
    "XTCLinear",
    "XTCRecipe",
    "XTCTrainer",
    "XTCTrainingArguments",
    "__version__",
    "compress",
    "fake_quantize",
    "ledger",
    "pack_model",
    "unpack_model",
]


def test_all_is_pinned():
    assert hf_xtc.__all__ == PUBLIC


def test_all_is_sorted_constants_first_then_classes_then_functions():
    assert hf_xtc.__all__ == sorted(PUBLIC, key=lambda name: (not name.isupper(), not name[0].isupper(), name))


def test_nothing_else_is_public():
    others = {name: value for name, value in vars(hf_xtc).items() if not name.startswith("_") and name not in PUBLIC}
    submodules = {name for name, value in others.items() if isinstance(value, ModuleType)}
    assert submodules <= {"sys", *(path.stem for path in ROOT.iterdir())}
    imported = {"Any", "ModuleSpec", "ModuleType", "Sequence", "TYPE_CHECKING", "find_spec", "import_module"}
    assert others.keys() - submodules == imported


def test_no_module_is_named_like_a_function():
    functions = {name for name in PUBLIC if inspect.isfunction(getattr(hf_xtc, name))}
    assert functions & {path.stem for path in ROOT.rglob("*")} == set()


def test_unknown_name():
    with pytest.raises(AttributeError, match=r"^module 'hf_xtc' has no attribute 'GlueMetrics'$"):
        _ = hf_xtc.GlueMetrics


@pytest.mark.parametrize("name", [name for name in PUBLIC if not name.isupper() and name != "__version__"])
def test_public_names_are_documented(name):
    exported = getattr(hf_xtc, name)
    assert inspect.isclass(exported) or inspect.isfunction(exported)
    first_line = (exported.__doc__ or "").strip().partition("\n")[0]
    assert len(first_line) > 20
    assert not first_line.startswith(f"{name}(")  # what @dataclass writes where nobody has


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_what_they_define_are_documented(path):
    module = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(module)
    definitions = [node for node in module.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert [d.name for d in definitions if not d.name.startswith("_") and not ast.get_docstring(d)] == []


def test_importing_takes_no_longer_than_the_trainer():
    code = """
import sys
from transformers import BertModel, Trainer
before = {name.partition(".")[0] for name in sys.modules}
import hf_xtc
after = {name.partition(".")[0] for name in sys.modules}
assert "hf_xtc" in after
print(*sorted(after - before))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    added = set(done.stdout.split())
    # datasets and peft are in before already: transformers.Trainer imports them where they are installed.
    assert added.isdisjoint({"evaluate", "datasets", "peft", "pandas", "sklearn", "scipy"})
    assert added.isdisjoint({"onnx", "onnxruntime", "openvino"})
    assert "hf_xtc" in added


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("import hf_xtc, transformers", id="before"),
        pytest.param("import transformers, hf_xtc", id="after"),
        pytest.param("import hf_xtc\nfrom transformers.models.auto.modeling_auto import AutoModel", id="submodule"),
        pytest.param("from hf_xtc.modeling.bert import XTCBertModel\nimport transformers", id="models"),
        pytest.param("from hf_xtc.data.masked_lm import *\nimport transformers", id="data"),
    ],
)
def test_models_are_registered_in_whatever_order_packages_are_imported(code):
    code += """
from transformers import AutoConfig, AutoModel
config = AutoConfig.for_model("xtc_bert", hidden_size=8, num_attention_heads=2, num_hidden_layers=1)
print(type(AutoModel.from_config(config)).__name__)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["XTCBertModel"], done.stderr
