"""From a cold cache to the first label in Chromium: bytes over the wire with gzip, and seconds from loopback.

The exported page of the example (MiniLM of 3 layers, 1 bit), and a page with transformers.js and int8 MiniLM of 6
layers, as its users load it: random weights, made by ONNX Runtime's own tools. Every page starts with a fresh browser;
bytes are those of the answers' bodies, compressed beforehand. The exported page's service worker, which keeps the page
for later, is not counted.

    npm ci --prefix web --ignore-scripts && python benchmarks/web_load.py --work_dir /tmp/web_load --output_file x.json
"""

import argparse
import gzip
import http.server
import json
import shutil
import statistics
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hf_xtc.export.web import copy_model, describe_model, write_site
from hf_xtc.files.writing import write_json
from latency.files import Writer
from machine import facts

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "minilm-3l-1bit-sst2"
PACKAGES = ROOT / "web" / "node_modules"
PEER = """<!doctype html><meta charset="utf-8"><title>transformers.js</title><link rel="icon" href="data:,">
<script type="module">
import { env, pipeline } from "/transformers/transformers.min.js";
env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = "/models/";
env.backends.onnx.wasm.wasmPaths = "/ort/";
const classify = await pipeline("text-classification", "model", { dtype: "q8", device: "wasm" });
const [found] = await classify("I enjoyed every minute of it, and I would go again tomorrow.");
document.body.dataset.label = found.label;
</script><body></body>"""
# Page -> its address, and the element that shows the label.
PAGES = {"hf_xtc": ("/site/", ".scores .best .label"), "transformers.js": ("/peer/", "body[data-label]")}


def write_peer(folder: Path, work_dir: Path, model: str) -> None:
    """The page with transformers.js, and beside it the model in the layout that it expects."""
    files = Writer(work_dir, model, seed=0).write("onnx_int8")
    target = folder / "models" / "model"
    (target / "onnx").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(files / "model.onnx", target / "onnx" / "model_quantized.onnx")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(EXAMPLE / name, target / name)
    labels = {"0": "negative", "1": "positive"}
    config = {"model_type": "bert", "architectures": ["BertForSequenceClassification"], "id2label": labels}
    write_json(target / "config.json", config)
    (folder / "peer").mkdir(exist_ok=True)
    (folder / "peer" / "index.html").write_text(PEER)


class Server(http.server.ThreadingHTTPServer):
    """Serves folders under names, compressed with gzip, and counts the bytes of each file that was sent."""

    def __init__(self, folders: dict[str, Path]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folders = folders
        self.compressed: dict[Path, bytes] = {}
        self.sent: list[tuple[str, int]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def content(self, address: str) -> tuple[Path, bytes] | None:
        """The file at an address, and its content with gzip."""
        first, _, rest = urlsplit(address).path.removeprefix("/").partition("/")
        root = self.folders.get(first)
        file = root / (rest or "index.html") if root else None
        if file is None or not file.is_file():
            return None
        if file not in self.compressed:
            self.compressed[file] = gzip.compress(file.read_bytes(), 9)
        return file, self.compressed[file]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    types = {".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css"}
    types |= {".json": "application/json", ".wasm": "application/wasm", ".svg": "image/svg+xml"}

    def do_GET(self) -> None:
        found = self.server.content(self.path)
        body = b"" if found is None else found[1]
        self.send_response(404 if found is None else 200)
        self.send_header("Content-Length", str(len(body)))
        if found is not None:
            self.send_header("Content-Type", self.types.get(found[0].suffix, "application/octet-stream"))
            self.send_header("Content-Encoding", "gzip")
        with suppress(ConnectionError):  # of a browser that was closed
            self.end_headers()
            self.wfile.write(body)
        self.server.sent.append((urlsplit(self.path).path, len(body)))

    def log_message(self, *_: Any) -> None:
        pass


def measure(server: Server, page: str, repeats: int) -> dict[str, Any]:
    """Bytes of one load by file, and the seconds of `repeats`, of which the first load is not one."""
    address, selector = PAGES[page]
    chromium, script = shutil.which("chromium"), Path(__file__).with_suffix(".mjs")
    command = ["node", str(script), str(chromium), f"http://127.0.0.1:{server.server_port}{address}", selector]
    seconds = []
    for _ in range(repeats + 1):
        server.sent.clear()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds.append(float(done.stdout))
    files = dict(server.sent)
    return {
        "page": page,
        "bytes": sum(size for _, size in server.sent),
        "seconds": statistics.median(seconds[1:]),
        "slowest_seconds": max(seconds[1:]),
        "files": dict(sorted(files.items(), key=lambda file: -file[1])),
    }


def main(arguments: list[str] | None = None) -> None:
    """Prints the results, and writes them if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work_dir", type=Path, required=True, help="folder for the pages")
    parser.add_argument("--model", default="minilm-6", help="of the peer")
    parser.add_argument("--repeats", type=int, default=7, help="loads of each page, after one that is not timed")
    parser.add_argument("--output_file", help="JSON file for the results")
    args = parser.parse_args(arguments)
    site = args.work_dir / "site"
    copy_model(EXAMPLE, site / "model")
    write_site(site, "Sentiment", [describe_model(site / "model", "model/", "Sentiment")])
    write_peer(args.work_dir, args.work_dir / "files", args.model)
    packages = {"transformers": PACKAGES / "@huggingface/transformers/dist", "ort": PACKAGES / "onnxruntime-web/dist"}
    folders = {name: args.work_dir / name for name in ("site", "peer", "models")}
    server = Server({**folders, **packages})
    rows = [measure(server, page, args.repeats) for page in PAGES]
    server.shutdown()
    server.server_close()
    versions = {
        name: json.loads((PACKAGES / name / "package.json").read_text())["version"]
        for name in ("@huggingface/transformers", "onnxruntime-web")
    }
    chromium = subprocess.run(["chromium", "--version"], capture_output=True, text=True).stdout.strip()
    results = {"rows": rows, "peer_model": args.model, "repeats": args.repeats, "browser": chromium, "npm": versions}
    results |= facts(1, "hf_xtc")
    print(json.dumps(results, indent=2))
    if args.output_file is not None:
        write_json(args.output_file, results)


if __name__ == "__main__":
    main()
