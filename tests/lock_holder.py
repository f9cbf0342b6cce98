"""A process of its own that holds the lock of a folder."""

import subprocess
import sys
from pathlib import Path

# hf_xtc/__init__.py would import transformers.
HOLD = f"""
import sys, time, types
package = types.ModuleType("hf_xtc")
package.__path__ = [{str(Path(__file__).parent.parent / "hf_xtc")!r}]
sys.modules["hf_xtc"] = package
from hf_xtc.files.lock import FolderLock
with FolderLock(sys.argv[1]) as lock:
    print("held" if lock.held else "free", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def hold(folder, seconds=60.0):
    """Another process that holds a folder."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    return holder
