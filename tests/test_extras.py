"""What works without the optional packages, and the message that names the extra to install."""

import subprocess
import sys
from pathlib import Path

import pytest

from hf_xtc.errors import ExtraError, XTCError, needs_extra

EXAMPLE = Path(__file__).parent.parent / "examples" / "minilm-3l-1bit-sst2"
# Run first in a child process: to its imports, and to those who ask, these packages are not installed.
HIDE = """
import sys

HIDDEN = {"datasets", "evaluate", "matplotlib", "onnx", "onnxruntime", "openvino", "pandas", "peft", "pyarrow",
          "scipy", "sklearn"}


class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)


sys.meta_path[:] = map(Without, sys.meta_path)
"""


def run_without(code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs code in a process without the optional packages."""
    return subprocess.run([sys.executable, "-c", HIDE + code, *arguments], capture_output=True, text=True)


def test_a_packed_model_is_loaded_and_run_without_any_optional_package():
    done = run_without(
        """
import torch
from transformers import AutoModelForSequenceClassification

import hf_xtc

model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
print(type(model).__name__, tuple(model(input_ids=torch.tensor([[101, 2307, 102]])).logits.shape))
print(sorted(HIDDEN & set(sys.modules)))
""",
        str(EXAMPLE),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["XTCBertForSequenceClassification (1, 2)", "[]"]


def test_a_student_is_trained_and_saved_without_any_optional_package(tmp_path):
    done = run_without(
        """
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

import hf_xtc

sizes = dict(vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
teacher = BertForSequenceClassification(BertConfig(**sizes))
student = hf_xtc.compress(teacher, hf_xtc.XTCRecipe(keep_layers=1))
rows = [{"input_ids": torch.tensor([1, 2, 3]), "labels": i % 2} for i in range(4)]
arguments = hf_xtc.XTCTrainingArguments(
    sys.argv[1], max_steps=1, use_cpu=True, report_to="none", disable_tqdm=True, teacher_cache=sys.argv[1] + "/cache"
)
trainer = hf_xtc.XTCTrainer(student, arguments, teacher_model=teacher, train_dataset=rows)
trainer.train()
trainer.save_model()
print(AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).packed, sorted(HIDDEN & set(sys.modules)))
""",
        str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "True []"


@pytest.mark.parametrize(
    "code, package, extra",
    [
        ("import hf_xtc; hf_xtc.GlueMetric", "scipy", "cli"),
        ("from hf_xtc.data.metrics import build_compute_metrics", "scipy", "cli"),
        ("from hf_xtc.modeling.adapters import with_adapter; with_adapter(None, 'folder')", "peft", "peft"),
    ],
)
def test_a_missing_package_is_named_with_the_line_that_installs_it(code, package, extra):
    done = run_without(code)
    assert done.stderr.splitlines()[-1] == (
        f"hf_xtc.errors.ExtraError: The package {package} cannot be imported (No module named '{package}'). "
        f"Run: pip install 'hf_xtc[{extra}]'"
    )


def test_the_command_line_without_its_extra_answers_in_one_line():
    done = run_without("from hf_xtc.cli import main; sys.exit(main(['evaluate', '--model=x', '--task_name=sst2']))")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("hf-xtc: The package ")
    assert done.stderr.endswith("Run: pip install 'hf_xtc[cli]'\n")


@pytest.mark.parametrize("caught", [ExtraError, XTCError, ImportError])
def test_a_missing_extra_is_also_an_import_error(caught):
    with pytest.raises(caught, match=r"no_such_package.*pip install 'hf_xtc\[report\]'$"), needs_extra("report"):
        import no_such_package  # noqa: F401


@pytest.mark.parametrize(
    "first, second",
    [("import hf_xtc", "from peft import LoraConfig"), ("from peft import LoraConfig", "import hf_xtc")],
)
def test_packed_layers_are_registered_with_peft_in_either_import_order(first, second):
    code = f"""
{first}
{second}
import sys
from peft import get_peft_model
from transformers import AutoModelForSequenceClassification

model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
adapted = get_peft_model(model, LoraConfig(target_modules=["query"], r=2))
print({{type(module).__name__ for name, module in adapted.named_modules() if name.endswith("query")}})
"""
    done = subprocess.run([sys.executable, "-c", code, str(EXAMPLE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "{'LoraPackedLinear'}"
