"""Compares the runtime in JavaScript and WebAssembly with Python's on many texts, in Node and in headless Chromium.

Logits of classifiers, vectors of embedders and logits of all tokens of taggers must equal those of the native
operator's portable variant within 1e-5, and the classes those of the variant that Python chooses itself, unless the
portable variant's differ from them too; with both files of WebAssembly.

Usage:
    npm ci --prefix web --ignore-scripts
    python tests/stress/web_logits.py --models examples/minilm-3l-1bit-sst2 examples/minilm-6l-1bit-embedder \\
        --texts_files sst2/validation.parquet wnut17/validation.parquet --output_file web_logits.json
"""

import argparse
import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]
WITHIN = 1e-5
WASM = ("xtc.wasm", "xtc-relaxed.wasm")
Rows = list[Any]


def outputs_in_python(folder: Path, texts: list[str], variant: str | None) -> Rows:
    """The logits or the vector of each text, or the logits of its tokens, by a variant of the native operator."""
    from hf_xtc.runtime import Pipeline

    before = os.environ.pop("XTC_NATIVE", None)
    try:
        os.environ |= {"XTC_NATIVE": variant} if variant else {}
        pipe = Pipeline(folder)
        if pipe.task == "sentence-embedding":
            return list(pipe.embed(texts))
        if pipe.task == "token-classification":
            return [logits.ravel() for ((_, logits),) in pipe.token_logits(texts)]
        return list(pipe.logits(texts))
    finally:
        os.environ.pop("XTC_NATIVE", None)
        os.environ |= {"XTC_NATIVE": before} if before else {}


def outputs_in_javascript(module: str, folder: str, texts: list[str], chromium: str | None = None) -> Rows:
    """The same, of Node or of a page of Chromium; `module` and `folder` are addresses."""
    from node import NODE, relaxed_options

    page = [chromium, f"{module.rpartition('/')[0]}/index.html"] if chromium else []
    command = [NODE, *relaxed_options(), str(Path(__file__).with_suffix(".mjs")), module, folder, *page]
    done = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return [np.array(row, np.float32) for row in json.loads(done.stdout)]


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def served(models: list[Path]) -> Iterator[tuple[Path, str]]:
    """A folder with the module once for each file of WebAssembly, and with the models by number; and its address."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for wasm in WASM:
            shutil.copytree(ROOT / "web" / "dist", root / wasm)
            (root / wasm / "index.html").write_text("<!doctype html><title>outputs</title>")
            for name in WASM:  # whichever the module asks for
                shutil.copyfile(ROOT / "web" / "dist" / wasm, root / wasm / name)
        for i, folder in enumerate(models):
            (root / str(i)).symlink_to(folder.absolute())
        handler = functools.partial(_Quiet, directory=scratch)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield root, f"http://127.0.0.1:{server.server_port}"
            server.shutdown()


def compare(found: Rows, portable: Rows, auto: Rows, labels: int) -> dict[str, Any]:
    """Differences from the portable variant, and of an embedder (no labels) or of classes from the other one."""
    pairs = list(zip(found, portable, auto, strict=True))
    row: dict[str, Any] = {"texts": len(pairs), "numbers": sum(own.size for own in found)}
    if wrong := sum(own.shape != other.shape for own, other, _ in pairs):  # of a tagger: other tokens
        return row | {"different_shapes": wrong, "broken": True}
    broken = False
    row["largest_difference"] = worst = max(float(np.abs(own - other).max()) for own, other, _ in pairs)
    if labels:
        triples = [[rows.reshape(-1, labels).argmax(1) for rows in triple] for triple in pairs]
        own, other, chosen = (np.concatenate(classes) for classes in zip(*triples, strict=True))
        row["classes"] = own.size
        row["different_classes"] = int((own != chosen).sum())
        row["different_classes_of_portable"] = int((other != chosen).sum())
        broken = bool(((own != chosen) & (other == chosen)).any())
    else:
        cosines = [own @ other / np.linalg.norm(own) / np.linalg.norm(other) for own, _, other in pairs]
        row["smallest_cosine"] = float(min(cosines))
    return row | {"broken": broken or not worst <= WITHIN}


def run(models: list[Path], texts: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each model, place and file of WebAssembly."""
    from node import CHROMIUM

    from hf_xtc.runtime import Pipeline

    with served(models) as (root, address):
        for i, folder in enumerate(models):
            portable, auto = (outputs_in_python(folder, texts, variant) for variant in ("portable", None))
            labels = len(Pipeline(folder).labels)
            for wasm in WASM:
                module = f"{wasm}/hf-xtc.js"
                places = {
                    "node": ((root / module).as_uri(), (root / str(i)).as_uri(), None),
                    "chromium": (f"{address}/{module}", f"{address}/{i}/", CHROMIUM),
                }
                for place, (module_at, folder_at, chromium) in places.items():
                    found = outputs_in_javascript(module_at, folder_at, texts, chromium)
                    yield {"model": folder.name, "place": place, "wasm": wasm} | compare(found, portable, auto, labels)


def main(argv: list[str] | None = None) -> None:
    from node import CHROMIUM, NODE

    from hf_xtc.files.writing import write_json
    from machine import facts
    from tokenize_web import texts_of

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="packed folders")
    parser.add_argument("--texts_files", type=Path, nargs="+", required=True, help="Parquet files with texts or words")
    parser.add_argument("--count", type=int, default=1400, help="texts, the first ones of the files")
    parser.add_argument("--output_file", help="JSON file for the results")
    args = parser.parse_args(argv)
    if NODE is None or CHROMIUM is None:
        raise SystemExit("This needs Node and Chromium.")
    every = dict.fromkeys(text for file in args.texts_files for text in texts_of(file) if isinstance(text, str))
    texts = list(every)[: args.count]
    rows = []
    for row in run(args.models, texts):
        print(json.dumps(row), flush=True)
        rows.append(row)
    versions = {
        name: subprocess.run([program, "--version"], capture_output=True, text=True).stdout.strip()
        for name, program in (("node", NODE), ("chromium", CHROMIUM))
    }
    if args.output_file is not None:
        write_json(args.output_file, {**facts(1, "hf_xtc"), **versions, "rows": rows})
    sys.exit(any(row["broken"] for row in rows))


if __name__ == "__main__":
    main()
