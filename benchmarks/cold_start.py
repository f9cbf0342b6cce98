"""Times a fresh process from its imports to its first answer, and what memory it takes: one text of a classifier.

The runtime without PyTorch, the same packed model in PyTorch (`auto`), and the same architecture in ONNX Runtime,
dynamic int8. All read their files from the page cache and tokenize with the same tokenizer.json.

python benchmarks/cold_start.py --work_dir /tmp/cold --output_file benchmarks/results/cold_start.json
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from hf_xtc.files.writing import write_json
from latency.files import Writer
from machine import facts

MODELS = ("bert-base-12", "minilm-6")
TOKENIZER = Path(__file__).parent.parent / "examples" / "minilm-3l-1bit-sst2"
TEXT = "A quiet film, well acted and beautifully shot, that finds its feet only in the second half."

# Runtime -> kind of its files, imports, and what gives the first answer; `folder` and `threads` are known.
RUNTIMES = {
    "runtime": ("ours", "from hf_xtc.runtime import Pipeline", "Pipeline(folder, threads=threads)(text)"),
    "onnxruntime": (
        "onnx_int8",
        "import numpy, onnxruntime, tokenizers",
        """
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = threads
session = onnxruntime.InferenceSession(f"{folder}/model.onnx", options, providers=["CPUExecutionProvider"])
encoding = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json").encode(text)
values = (encoding.ids, encoding.attention_mask, encoding.type_ids)
names = ("input_ids", "attention_mask", "token_type_ids")
session.run(None, {name: numpy.array([value]) for name, value in zip(names, values)})""",
    ),
    "auto": (
        "ours",
        "import torch, hf_xtc\nfrom transformers import AutoModelForSequenceClassification, AutoTokenizer",
        """
torch.set_num_threads(threads)
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder)
with torch.inference_mode():
    model(**tokenizer(text, return_tensors="pt"))""",
    ),
}
PROCESS = """
import sys, time
sys.path.insert(0, {here!r})
from machine import peak_bytes, resident_bytes
folder, threads, text = {folder!r}, {threads}, {text!r}
start = time.perf_counter()
{imports}
imported, memory = time.perf_counter(), resident_bytes()
{answer}
answered = time.perf_counter()
print("\\n", imported - start, answered - start, memory, peak_bytes())
"""


def process(imports: str, answer: str, folder: Path, threads: int) -> list[float]:
    """Seconds to import and to answer, bytes after the imports and at the peak, of a fresh process."""
    here = str(Path(__file__).parent)
    code = PROCESS.format(
        here=here, folder=str(folder), threads=threads, text=TEXT, imports=imports, answer=answer.strip()
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return [float(word) for word in done.stdout.splitlines()[-1].split()]


def row(model: str, runtime: str, runs: list[list[float]]) -> dict[str, Any]:
    """Medians of the runs of one runtime."""
    imports, answer, memory, peak = (statistics.median(values) for values in zip(*runs, strict=True))
    above = statistics.median(run[3] - run[2] for run in runs)
    return {
        "model": model,
        "runtime": runtime,
        "import_seconds": imports,
        "first_answer_seconds": answer,
        "slowest_first_answer_seconds": max(run[1] for run in runs),
        "imports_megabytes": memory / 1e6,
        "peak_megabytes": peak / 1e6,
        "megabytes_above_imports": above / 1e6,
    }


def main(arguments: list[str] | None = None) -> None:
    """Prints the results, and writes them if asked."""
    parser = argparse.ArgumentParser(description="Times processes from imports to the first answer.")
    parser.add_argument("--work_dir", type=Path, required=True, help="folder for the models' files")
    parser.add_argument("--repeats", type=int, default=9, help="processes of each kind, after one that is not timed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output_file", help="JSON file for the results")
    args = parser.parse_args(arguments)
    rows = []
    for model in MODELS:
        writer = Writer(args.work_dir, model, seed=0)
        folders = {kind: writer.write(kind) for kind, _, _ in RUNTIMES.values()}
        for folder in folders.values():
            for name in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copyfile(TOKENIZER / name, folder / name)
        runs: dict[str, list[list[float]]] = {name: [] for name in RUNTIMES}
        for _ in range(args.repeats + 1):  # in turn, so that a slow minute is everybody's
            for name, (kind, imports, answer) in RUNTIMES.items():
                runs[name].append(process(imports, answer, folders[kind], args.threads))
        rows += [row(model, name, found[1:]) for name, found in runs.items()]
    packages = ("hf_xtc", "numpy", "tokenizers", "safetensors", "torch", "transformers", "onnxruntime")
    results = {"rows": rows, "repeats": args.repeats, **facts(args.threads, *packages)}
    print(json.dumps(results, indent=2))
    if args.output_file is not None:
        write_json(args.output_file, results)


if __name__ == "__main__":
    main()
