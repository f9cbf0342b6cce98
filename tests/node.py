"""Node.js for the tests of the JavaScript module: a process that answers lines of JSON, and what is needed for it."""

import functools
import json
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WEB = ROOT / "web"
EXAMPLE = ROOT / "examples" / "minilm-3l-1bit-sst2"
NODE = shutil.which("node")
CHROMIUM = shutil.which("chromium")

needs_node = pytest.mark.skipif(NODE is None, reason="Node.js is not installed")
needs_packages = pytest.mark.skipif(
    NODE is None or not (WEB / "node_modules").is_dir(), reason="the npm packages of web/ are not installed"
)


@functools.cache
def relaxed_options():
    """The option by which Node before 21 runs relaxed SIMD; later ones run it without, and do not know it."""
    option = "--experimental-wasm-relaxed-simd"
    known = subprocess.run([NODE, "--v8-options"], capture_output=True, text=True, check=True).stdout
    return [option] if option in known else []


class Process:
    """A script of tests/web in Node.js, to which each call sends a line of JSON."""

    def __init__(self, script):
        command = [NODE, str(ROOT / "tests" / "web" / script)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, **request):
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()
