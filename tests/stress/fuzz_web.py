"""Feeds damaged models to the runtime in JavaScript and WebAssembly, in one process of Node, and reports the outcomes.

Each input depends only on the seed and its number. It must either load, giving finite numbers, or be refused by one
ModelError; within 2 seconds, and with at most twice the memory of the process that loads the undamaged models. The
good models are of most families, heads and quantizers that the runtime reads, and one that it refuses.
"""

import json
import random
import select
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]
SECONDS, HANG, TIMES = 2.0, 60.0, 2.0
EXTRA = ("XTCBertForTokenClassification", "XTCBertModel", "xtc_mpnet", "xtc_roberta", "latent", "relu", "int4", "int8")
GOOD = (
    ("bert", "BertForSequenceClassification", {}),
    ("bert", "BertForTokenClassification", {"weights": "int4", "embedding_weights": "int4", "rest_dtype": "bfloat16"}),
    ("bert", "BertForSequenceClassification", {"granularity": "per_group", "group_size": 2}),
    ("roberta", "RobertaForQuestionAnswering", {"weights": "ternary", "embedding_weights": "ternary"}),
    ("electra", "ElectraForSequenceClassification", {"embedding_weights": None, "position_weights": None}),
    ("distilbert", "DistilBertForSequenceClassification", {"scale_dtype": "float32", "rest_dtype": "float32"}),
    ("mpnet", "MPNetModel", {"embedding_weights": "int8"}),
)


@dataclass
class WebFuzzArguments:
    """What to run."""

    count: int = field(default=5000, metadata={"help": "Inputs."})
    first: int = field(default=0, metadata={"help": "Number of the first input."})
    seed: int = field(default=0, metadata={"help": "Of all damage."})
    wasm: str = field(default="xtc.wasm", metadata={"help": "File of web/dist: xtc.wasm or xtc-relaxed.wasm."})
    output_file: str | None = field(default=None, metadata={"help": "JSON file for the results."})


def good_folders(scratch: Path) -> list[Path]:
    """The undamaged models."""
    from families import make_teacher

    from hf_xtc import XTCRecipe, compress, pack_model

    folders = []
    for i, (family, head, recipe) in enumerate(GOOD):
        folders.append(scratch / f"good{i}")
        model = compress(make_teacher(family, head), XTCRecipe(keep_layers=2, **recipe))
        pack_model(model.eval()).save_pretrained(folders[-1])
    return [*folders, ROOT / "examples" / "minilm-3l-1bit-sst2"]


def damage(rng: random.Random, good: Path, folder: Path) -> str:
    """Writes a model into a folder with one of its files damaged, and returns how."""
    from mutations import damage_json, damage_safetensors

    folder.mkdir()
    files = {name: (good / name).read_bytes() for name in ("config.json", "model.safetensors")}
    if rng.random() < 0.4:
        done, files["config.json"] = damage_json(rng, files["config.json"], EXTRA)
    else:
        done, files["model.safetensors"] = damage_safetensors(rng, files["model.safetensors"])
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return done


class Node:
    """The process that loads models."""

    def __init__(self, wasm: str):
        from node import NODE, relaxed_options

        if NODE is None:
            raise SystemExit("This needs Node.")
        script, file = Path(__file__).with_suffix(".mjs"), ROOT / "web" / "dist" / wasm
        command = [NODE, *relaxed_options(), "--expose-gc", str(script), str(file)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def load(self, folder: Path) -> dict[str, Any]:
        """The outcome of a folder; raises SystemExit if the process hangs or dies."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{folder}\n")
        if not select.select([self.process.stdout], [], [], HANG)[0]:
            self.process.kill()
            raise SystemExit(f"{folder} hangs")
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{folder} ended the process")
        found: dict[str, Any] = json.loads(line)
        return found


def run_all(args: WebFuzzArguments, scratch: Path) -> Iterator[dict[str, Any]]:
    """The undamaged models' results, the second time that they are loaded, then those of each input."""
    goods, node = good_folders(scratch), Node(args.wasm)
    for turn in range(2):
        for good in goods:
            found = node.load(good)
            if turn:
                yield {"number": -1, "damage": "none", **found}
    for number in range(args.first, args.first + args.count):
        rng = random.Random(f"{args.seed} {number}")
        folder = scratch / "case"
        done = damage(rng, rng.choice(goods), folder)
        yield {"number": number, "damage": done, **node.load(folder)}
        shutil.rmtree(folder)
    node.process.terminate()
    node.process.wait()


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts, the costliest inputs, and those that broke a requirement."""
    good = [found for found in results if found["number"] < 0]
    cases = [found for found in results if found["number"] >= 0]
    limit = TIMES * max(found["peak"] for found in good)
    for found in cases:
        if not found["broken"] and found["seconds"] > SECONDS:
            found["broken"] = f"{found['seconds']:.1f} seconds"
        if not found["broken"] and found["peak"] > limit:
            found["broken"] = f"{found['peak']} bytes"
    slowest, largest = (max(cases, key=lambda found: found[key]) for key in ("seconds", "peak"))
    return {
        "inputs": len(cases),
        "outcomes": dict(Counter(found["outcome"] for found in cases).most_common()),
        "damage": dict(Counter(found["damage"] for found in cases).most_common()),
        "good_outcomes": dict(Counter(found["outcome"] for found in good)),
        "good_peak_bytes": max(found["peak"] for found in good),
        "slowest_seconds": round(slowest["seconds"], 3),
        "slowest": f"{slowest['number']} ({slowest['damage']})",
        "largest_peak_bytes": largest["peak"],
        "largest_peak_of_good": round(TIMES * largest["peak"] / limit, 3),
        "largest": f"{largest['number']} ({largest['damage']})",
        "broken": sum(bool(found["broken"]) for found in cases),
        "broken_cases": [found for found in cases if found["broken"]],
    }


def main(argv: Sequence[str] | None = None) -> None:
    from transformers import HfArgumentParser

    from machine import facts

    (args,) = HfArgumentParser(WebFuzzArguments, description=__doc__).parse_args_into_dataclasses(argv)
    with tempfile.TemporaryDirectory() as scratch:
        found = summary(list(run_all(args, Path(scratch))))
    text = json.dumps({"seed": args.seed, **facts(1, "hf_xtc"), "wasm": args.wasm, **found}, indent=2) + "\n"
    if args.output_file is not None:
        Path(args.output_file).write_text(text, encoding="utf-8")
    print(json.dumps({key: found[key] for key in ("outcomes", "broken_cases")}))
    print(f"{found['inputs']} inputs, {found['broken']} broke a promise")
    sys.exit(bool(found["broken"]))


if __name__ == "__main__":
    main()
