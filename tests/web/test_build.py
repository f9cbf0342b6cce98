"""What is committed of web/dist: it is what the sources give, small, typed, and complete for npm."""

import gzip
import json
import subprocess

from node import NODE, WEB, needs_node, needs_packages

import web_unicode
from hf_xtc.version import __version__

MODULE = ("hf-xtc.js", "hf-xtc-worker.js", "tokenizers.js")
OPERATORS = ("xtc.wasm", "xtc-relaxed.wasm")


@needs_packages
def test_building_again_gives_the_same(tmp_path):
    subprocess.run([NODE, "build.mjs", str(tmp_path)], cwd=WEB, check=True, timeout=120)
    built = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {str(path) for path in built} >= {*MODULE, "types/hf-xtc.d.ts"}
    for path, content in built.items():
        assert (WEB / "dist" / path).read_bytes() == content, path


def test_sizes():
    """150 kB in all with gzip; a page with WordPiece loads no more than 60 kB of it."""
    sizes = {name: len(gzip.compress((WEB / "dist" / name).read_bytes())) for name in (*MODULE, *OPERATORS)}
    assert sum(sizes.values()) <= 150_000
    assert sum(sizes.values()) - sizes["tokenizers.js"] - min(sizes[name] for name in OPERATORS) <= 60_000


def test_the_classes_of_characters_are_those_of_the_library():
    assert web_unicode.FILE.read_text() == web_unicode.content()


@needs_node
def test_the_npm_package():
    command = ["npm", "pack", "--dry-run", "--json", "--ignore-scripts"]
    done = subprocess.run(command, cwd=WEB, capture_output=True, text=True, check=True, timeout=60)
    files = {entry["path"] for entry in json.loads(done.stdout)[0]["files"]}
    package = json.loads((WEB / "package.json").read_text())
    assert files >= {"README.md", "LICENSE", "package.json", *(f"dist/{name}" for name in (*MODULE, *OPERATORS))}
    assert {path for path in files if not path.startswith("dist/")} == {"README.md", "LICENSE", "package.json"}
    named = [package["types"], *(entry for entry in package["exports"].values() if isinstance(entry, str))]
    assert all(name.removeprefix("./") in files for name in [*named, *package["exports"]["."].values()])
    assert package["version"] == __version__.split(".dev")[0]
    assert "dependencies" not in package
