"""Times importing hf_xtc and importing the parts of transformers that its users need anyway, in fresh processes.

python benchmarks/imports.py --output_file benchmarks/results/imports.json
"""

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field

from transformers import HfArgumentParser

from hf_xtc.files.writing import write_json
from machine import facts

STATEMENTS = {"hf_xtc": "import hf_xtc", "transformers": "from transformers import BertModel, Trainer"}
# Packages that `import hf_xtc` should not load.
LATER = ("datasets", "evaluate", "matplotlib", "onnx", "onnxruntime", "openvino", "pandas", "peft", "sklearn")


@dataclass
class ImportArguments:
    """Repeats."""

    repeats: int = field(default=9, metadata={"help": "Processes of each kind, in turn, after one that is not timed."})
    output_file: str | None = field(default=None, metadata={"help": "JSON file for the results."})


def seconds(statement: str) -> float:
    """Wall time of a fresh process that runs one statement."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def loaded(statement: str) -> list[str]:
    """Those of `LATER` that a statement loads."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    return [name for name in LATER if name in found]


def main() -> None:
    """Prints the results, and writes them if asked."""
    args = HfArgumentParser(ImportArguments).parse_args_into_dataclasses()[0]
    times: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for _ in range(args.repeats + 1):
        for name, statement in STATEMENTS.items():
            times[name].append(seconds(statement))
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    results = {
        **{f"{name}_seconds": value for name, value in medians.items()},
        "ratio": medians["hf_xtc"] / medians["transformers"],
        "loaded": {name: loaded(statement) for name, statement in STATEMENTS.items()},
        "repeats": args.repeats,
        **facts(1, "hf_xtc", "torch", "transformers"),
    }
    print(json.dumps(results, indent=2))
    if args.output_file:
        write_json(args.output_file, results)


if __name__ == "__main__":
    main()
