"""Times a packed model in WebAssembly beside onnxruntime-web's int8 of the same depth, in Node on one thread.

`ours_relaxed` is the file with relaxed SIMD, which current browsers run. Ratios are times of the peer by ours.
Weights are random. The peer is what ONNX Runtime's own tools make of the float model (`latency.files`: its attention
fused, then `quantize_dynamic`). Timed calls alternate, so ratios are of one run; times are medians.

    npm ci --prefix web --ignore-scripts && python benchmarks/web.py --work_dir /tmp/web --output_file web.json
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latency.files import CHECK_SEED, Writer
from latency.models import MODELS, vocab_size
from machine import facts

WEB = Path(__file__).parent.parent / "web"
SHAPES = ((1, 16), (1, 128), (8, 32))
# Node before 21 runs relaxed SIMD with this option, which later ones do not know.
RELAXED = "--experimental-wasm-relaxed-simd"
PEER = "onnxruntime_web"
FILES = {"ours": "xtc.wasm", "ours_relaxed": "xtc-relaxed.wasm"}
# Logits of one text, beside those of PyTorch; the int8 of the peer is further away from its float model.
WITHIN = {"ours": 0.01, "ours_relaxed": 0.01, PEER: 0.2}


@dataclass
class WebArguments:
    """What to measure."""

    model: str = field(default="minilm-3", metadata={"help": f"One of {', '.join(MODELS)}."})
    repeats: int = field(default=31, metadata={"help": "Timed calls of each runtime and shape."})
    seed: int = field(default=0, metadata={"help": "Of the weights."})
    work_dir: str | None = field(default=None, metadata={"help": "Keeps the files for the next run."})
    output_file: str | None = field(default=None, metadata={"help": "JSON file for the results."})


def measure(args: WebArguments, work: Path) -> dict[str, Any]:
    """What web/benchmark.mjs measures, as medians and ratios; raises SystemExit if a logit is wrong."""
    from latency.shapes import CHECK

    node = shutil.which("node")
    if node is None or not (WEB / "node_modules" / "onnxruntime-web").exists():
        raise SystemExit("This needs Node and the packages of web/: npm ci --prefix web --ignore-scripts")
    writer = Writer(work, args.model, args.seed)
    length = min(row for batch in CHECK for row in batch)
    ids = writer.batches([[length]], CHECK_SEED)[0]["input_ids"][0].tolist()
    asked = {
        "folder": str(writer.write("ours")),
        "wasm": {name: str(WEB / "dist" / file) for name, file in FILES.items()},
        "onnx": str(writer.write("onnx_int8") / "model.onnx"),
        "shapes": SHAPES,
        "repeats": args.repeats,
        "vocabulary": vocab_size(args.model),
        "check": ids,
    }
    known = subprocess.run([node, "--v8-options"], capture_output=True, text=True, check=True).stdout
    command = [node, *([RELAXED] if RELAXED in known else []), "benchmark.mjs"]
    done = subprocess.run(command, cwd=WEB, input=json.dumps(asked), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found = json.loads(done.stdout)
    check(writer, ids, found["logits"])
    rows = {}
    for shape, times in found["milliseconds"].items():
        medians = {name: round(statistics.median(values), 3) for name, values in times.items()}
        rows[shape] = {"medians": medians, "ratios": {name: round(medians[PEER] / medians[name], 2) for name in times}}
    files = {**asked["wasm"], "onnx": asked["onnx"], "packed": str(Path(asked["folder"]) / "model.safetensors")}
    sizes = {name: Path(file).stat().st_size for name, file in files.items()}
    versions = {name: found[name] for name in ("node", "onnxruntime_web")}
    return {"model": args.model, **versions, "bytes": sizes, "milliseconds": rows}


def check(writer: Writer, ids: list[int], logits: dict[str, list[float]]) -> None:
    """Raises SystemExit unless both give the logits of the models that they were made of."""
    import torch

    models = {name: writer.model() if name == PEER else writer.packed() for name in logits}
    for name, model in models.items():
        with torch.inference_mode():
            expected = model(torch.tensor([ids])).logits[0].tolist()
        worst = max(abs(a - b) for a, b in zip(logits[name], expected, strict=True))
        if not worst <= WITHIN[name]:
            raise SystemExit(f"{name} gives {logits[name]}, PyTorch {expected}.")


def main(argv: Sequence[str] | None = None) -> None:
    from transformers import HfArgumentParser

    (args,) = HfArgumentParser(WebArguments, description=__doc__).parse_args_into_dataclasses(argv)
    with tempfile.TemporaryDirectory() as scratch:
        found = {**facts(1, "hf_xtc", "onnxruntime"), **measure(args, Path(args.work_dir or scratch))}
    text = json.dumps(found, indent=2) + "\n"
    print(text, end="")
    if args.output_file is not None:
        Path(args.output_file).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
