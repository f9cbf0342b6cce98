"""The order of the rooms: each imports only rooms before it in `rooms.ORDER`; the numerics import no transformers."""

import subprocess
import sys

import pytest

from rooms import ALONE, ORDER, PACKAGE, forbidden, imports, package_imports


def test_every_room_has_a_place():
    found = {
        path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix == ".py" or any(path.glob("*.py"))
    }
    assert sorted(found - {"__init__", "__main__", "__pycache__"}) == sorted([*ORDER, *ALONE])


def test_few_modules_stand_outside_the_rooms():
    assert len(list(PACKAGE.glob("*.py"))) <= 9


def test_imports_go_down():
    assert [message for message in map(forbidden, package_imports()) if message is not None] == []


@pytest.mark.parametrize(
    "room, source, message",
    [
        ("modeling", "from hf_xtc.quantization.packing import pack", None),
        ("backends", "from hf_xtc.backends.base import Backend", None),
        ("modeling", "from hf_xtc.hub.publish import push_model", "x.py:1: modeling -> hf_xtc.hub.publish"),
        ("modeling", "import hf_xtc.training.trainer", "x.py:1: modeling -> hf_xtc.training.trainer"),
        ("cli", "from hf_xtc import compress", "x.py:1: cli -> hf_xtc.compress"),
        ("reader", "import hf_xtc.errors", "x.py:1: reader -> hf_xtc.errors"),
        ("data", "from . import x", "x.py:1: write an absolute import (from hf_xtc.room.module import name)"),
        ("native", "if TYPE_CHECKING:\n    import transformers", "x.py:2: native must run without transformers"),
        ("files", "def f():\n    from transformers.x import y", "x.py:2: files must run without transformers"),
        ("modeling", "import transformers", None),
    ],
)
def test_the_check_itself(room, source, message):
    assert [forbidden(found) for found in imports(room, source, "x.py")] == [message]


def test_backends_and_what_is_below_run_without_transformers():
    code = f"""
import sys, types
package = types.ModuleType("hf_xtc")  # a stub, so that hf_xtc/__init__.py does not run
package.__path__ = [{str(PACKAGE)!r}]
sys.modules["hf_xtc"] = package
import hf_xtc.backends, hf_xtc.quantization.packing, hf_xtc.files.writing
print("transformers" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
