"""The arrows between modules: each imports what stands above it in ORDER only, and the numerics never transformers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "hf_xtc"
TORCH_ONLY = [
    *[
        "version",
        "reader",
        "plain_json",
        "errors",
        "registry",
        "specs",
        "deepspeed",
        "recipe",
        "native_library",
        "native_fake",
        "quantizers",
        "activations",
        "packing",
        "lock",
        "checkpoint",
        "hub",
        "guards",
    ],
    *["backends", "layers", "distillation", "teacher_cache"],
]
ORDER = [
    *TORCH_ONLY,
    *[
        "adapters",
        "lora",
        "attention",
        "modeling",
        "compress",
        "ledger",
        "plain_card",
        "publish",
        "packing_trainer",
        "adversarial",
    ],
    *["fitting", "training_args", "callbacks", "sampling", "sharding", "trainer", "ladder"],
    *[
        "metrics",
        "glue_metric",
        "tables",
        "glue",
        "data",
        "unlabelled",
        "word_table",
        "masked_lm",
        "augmentation",
        "arguments",
    ],
    *["evaluation", "inspection"],
    *["export"],
    *["teacher", "start", "identity", "stages", "model_card", "job", "outcome", "climb", "report", "cli", "__main__"],
]
# The code that packed folders carry is a copy of others, and imports nothing of the package.
MODULES = sorted(
    path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py" and path.parent != ROOT / "remote_code"
)


def own_name(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def violations(own, source):
    """What the imports of module `own` break, wherever in its source they stand."""
    above = {own, *ORDER[: ORDER.index(own)]}
    broken = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                broken.append(f"line {node.lineno}: write absolute imports (from hf_xtc.x import y)")
                continue
            names = [node.module]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            top, _, rest = name.partition(".")
            if top == "hf_xtc" and rest.split(".")[0] not in above:
                broken.append(f"line {node.lineno}: {own} -> {name}")
            if top == "transformers" and own in TORCH_ONLY:
                broken.append(f"line {node.lineno}: {own} is torch-only")
    return broken


def test_every_module_has_a_place():
    assert sorted(ORDER) == sorted({own_name(path) for path in MODULES})


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_up(path):
    assert violations(own_name(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "own, source, broken",
    [
        ("layers", "from hf_xtc.packing import pack", []),
        ("backends", "from hf_xtc.backends.base import Backend", []),
        ("layers", "from hf_xtc.compress import compress", ["line 1: layers -> hf_xtc.compress"]),
        ("layers", "import hf_xtc.trainer", ["line 1: layers -> hf_xtc.trainer"]),
        ("cli", "from hf_xtc import compress", ["line 1: cli -> hf_xtc"]),
        ("layers", "from . import packing", ["line 1: write absolute imports (from hf_xtc.x import y)"]),
        ("layers", "if TYPE_CHECKING:\n    import transformers", ["line 2: layers is torch-only"]),
        ("specs", "def f():\n    from transformers.utils import x", ["line 2: specs is torch-only"]),
        ("attention", "import transformers", []),
    ],
)
def test_the_check_itself(own, source, broken):
    assert violations(own, source) == broken


def test_layers_and_distillation_run_without_transformers():
    code = f"""
import sys, types
package = types.ModuleType("hf_xtc")  # a stub, so that hf_xtc/__init__.py does not run
package.__path__ = [{str(ROOT)!r}]
sys.modules["hf_xtc"] = package
import hf_xtc.layers, hf_xtc.distillation
print(hf_xtc.layers.__file__, "transformers" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(ROOT / "layers.py"), "False"]
