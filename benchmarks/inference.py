"""Compares speed, memory and bytes of packed models with other runtimes on a CPU, in one run.

Every runtime has its own process; their timed calls alternate, so the ratios are of one run (`latency.rounds`).
Weights are random: accuracy is not measured here. `latency.files` writes the files of each runtime.

    python benchmarks/inference.py --output_dir benchmarks/results --work_dir /tmp/inference

Some peers need packages that the project does not use (`latency/peers.txt` says how to install them); without
`--peer_packages` they are left out, which the results say. Beside the binary models run the ternary ones, and both
with AVX2 only (`ours_ternary_auto`, `ours_auto_avx2`, `ours_ternary_auto_avx2`). For one thread run it again with
`--threads 1` and another output folder: the work folder's files serve both. `--docs_table` prints the tables of
docs/sizes-and-speed.md from a result.
"""

import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from latency.bars import bars
from latency.files import Writer, file_bytes
from latency.models import MODELS, TEACHERS, vocab_size
from latency.plot import draw
from latency.report import docs_table, markdown
from latency.rounds import Worker, plan, run_rounds
from latency.runtimes import RUNTIMES, TEACHER
from latency.shapes import SHAPES, Shape, count_lengths, make_shape, read_lengths
from machine import cpu_flags, cpu_model, versions

PACKAGES = ("hf_xtc", "torch", "transformers", "onnx", "onnxruntime", "openvino", "nncf", "torchao")


@dataclass
class InferenceArguments:
    """What to measure."""

    models: list[str] = field(
        default_factory=lambda: ["bert-base-12", "bert-base-5", "minilm-6"],
        metadata={"help": f"Models: {', '.join(MODELS)}."},
    )
    shapes: list[str] = field(default_factory=lambda: list(SHAPES), metadata={"help": "Batches: rows x tokens."})
    runtimes: list[str] = field(
        default_factory=lambda: [name for name in RUNTIMES if name != TEACHER], metadata={"help": "Runtimes."}
    )
    threads: int = field(default=2, metadata={"help": "Threads of every runtime."})
    repeats: int = field(default=11, metadata={"help": "Rounds: timed calls of each runtime and shape."})
    cell_seconds: float = field(
        default=4.0, metadata={"help": "A runtime that needs more for all repeats of a shape is timed less often."}
    )
    sst2_batches: int = field(default=2, metadata={"help": "Batches of 32 real lengths."})
    peer_packages: str | None = field(
        default=None, metadata={"help": "Folder with the packages of benchmarks/latency/peers.txt, which says how."}
    )
    sst2_parquet: str | None = field(default=None, metadata={"help": "SST-2's validation split, to count lengths."})
    sst2_tokenizer: str | None = field(default=None, metadata={"help": "Its tokenizer, a local folder or a Hub name."})
    seed: int = field(default=0, metadata={"help": "Of weights and tokens."})
    work_dir: str | None = field(default=None, metadata={"help": "Keeps the runtimes' files for the next run."})
    output_dir: str | None = field(default=None, metadata={"help": "Gets inference.json, .md and .png."})
    table_only: str | None = field(default=None, metadata={"help": "A JSON of an earlier run: print its tables only."})

    docs_table: str | None = field(default=None, metadata={"help": "The same: print its tables for the docs only."})

    def __post_init__(self) -> None:
        for chosen, known in ((self.models, MODELS), (self.shapes, SHAPES), (self.runtimes, RUNTIMES)):
            unknown = sorted(set(chosen) - set(known))
            if unknown:
                raise ValueError(f"Unknown: {', '.join(unknown)}. There are: {', '.join(known)}.")
        if (self.sst2_parquet is None) != (self.sst2_tokenizer is None):
            raise ValueError("Give sst2_parquet and sst2_tokenizer together, or neither.")


def make_shapes(args: InferenceArguments) -> dict[str, Shape]:
    """Name -> row lengths of its batches."""
    counted = args.sst2_parquet is not None and args.sst2_tokenizer is not None
    lengths = count_lengths(args.sst2_parquet, args.sst2_tokenizer) if counted else read_lengths()
    return {name: make_shape(name, lengths, args.sst2_batches, args.seed) for name in args.shapes}


class Run:
    """One run: starts the runtimes, times them, and collects the rows of the results."""

    def __init__(self, args: InferenceArguments, work_dir: Path):
        self.args, self.work_dir = args, work_dir
        self.shapes = make_shapes(args)
        self.latency: list[dict[str, Any]] = []
        self.processes: list[dict[str, Any]] = []
        self.left_out: list[str] = []

    def leave_out(self, model: str, runtime: str, why: str) -> None:
        """Records and prints that a runtime is not measured."""
        self.left_out.append(f"{model}, {RUNTIMES[runtime].label}: {why}")
        print(f"Left out: {self.left_out[-1]}", flush=True)

    def start(self, model: str, runtime: str) -> Worker | None:
        """Starts a process of the runtime and checks its logits; `None` if it is not available or fails."""
        missing = RUNTIMES[runtime].missing()
        if missing:
            self.leave_out(model, runtime, f"{', '.join(missing)} not installed")
            return None
        source = TEACHERS[model] if runtime == TEACHER else model
        writer, chosen = Writer(self.work_dir, source, self.args.seed), RUNTIMES[runtime]
        try:
            folder = writer.write(chosen.files)
            worker = Worker(
                {
                    "environment": chosen.environment,
                    "packages": self.args.peer_packages if chosen.outside else None,
                    "runtime": runtime,
                    "folder": str(folder),
                    "threads": self.args.threads,
                    "seed": self.args.seed,
                    "vocab_size": vocab_size(source),
                    "shapes": self.shapes,
                }
            )
            files = chosen.files if chosen.files in ("ours", "ours_ternary") else "ours"
            error = relative_error(worker.ask({"logits": None}), writer.expected(chosen.ours, files))
        except Exception as failure:  # of any package's making; the others are measured all the same
            self.leave_out(model, runtime, str(failure))
            return None
        if not error <= chosen.tolerance:
            worker.close()
            self.leave_out(model, runtime, f"its logits differ by {error:.2f} of the largest")
            return None
        row = {"model": model, "runtime": runtime, **worker.cost, "file_bytes": file_bytes(folder), "error": error}
        self.processes.append(row)
        return worker

    def model(self, model: str) -> None:
        """Times all runtimes of one model, in turn, and its teacher if it is a student."""
        names = [*self.args.runtimes, *([TEACHER] if model in TEACHERS and TEACHER not in self.args.runtimes else [])]
        workers = [worker for name in names if (worker := self.start(model, name)) is not None]
        print(f"{model}: {len(workers)} runtimes loaded", flush=True)
        try:
            planned, first = plan(workers, self.shapes, self.args.repeats, self.args.cell_seconds)
            times = run_rounds(workers, planned)
        finally:
            for worker in workers:
                worker.close()
        self.latency += [latency_row(model, *cell, values, first[cell]) for cell, values in times.items()]


def latency_row(
    model: str, runtime: str, shape: str, times: list[dict[str, float]], first_seconds: float
) -> dict[str, Any]:
    """Median and deciles of one cell, with all its times, those after a pause, and that of its first call."""
    seconds = [time["seconds"] for time in times]
    deciles = statistics.quantiles(seconds, n=10, method="inclusive") if len(seconds) > 1 else [seconds[0]] * 9
    return {
        "model": model,
        "runtime": runtime,
        "shape": shape,
        "median_seconds": statistics.median(seconds),
        "p10_seconds": deciles[0],
        "p90_seconds": deciles[-1],
        "first_seconds": first_seconds,
        "after_pause_seconds": statistics.median(time["after_pause_seconds"] for time in times),
        "repeats": len(seconds),
        "seconds": seconds,
    }


def relative_error(logits: list[list[float]], expected: list[list[float]]) -> float:
    """Largest difference, relative to the largest expected value; NaN if any logit is."""
    pairs = [(a, b) for row, other in zip(logits, expected, strict=True) for a, b in zip(row, other, strict=True)]
    differences = [abs(a - b) for a, b in pairs]
    # `max` may ignore a NaN; the sum does not.
    return sum(differences) * 0 + max(differences) / max(abs(b) for _, b in pairs)


def measure(args: InferenceArguments) -> dict[str, Any]:
    """The whole run's results."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        run = Run(args, Path(args.work_dir or temporary))
        for model in args.models:
            run.model(model)
    results: dict[str, Any] = {
        "arguments": {
            key: value
            for key, value in asdict(args).items()
            if not key.endswith(("_dir", "_only", "_table", "_packages"))
        },
        "command": " ".join(["python", "benchmarks/inference.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu_model(),
        "flags": cpu_flags(),
        "threads": args.threads,
        "versions": versions(*PACKAGES),
        "row_lengths": run.shapes,
        "latency": run.latency,
        "processes": run.processes,
        "left_out": run.left_out,
        "seconds": time.perf_counter() - began,
    }
    results["bars"] = [bar.to_dict() for bar in bars(results)]
    return results


def write(results: dict[str, Any], folder: Path) -> None:
    """Writes inference.json, inference.md and, if matplotlib is installed, inference.png."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "inference.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "inference.md").write_text(markdown(results))
    try:
        draw(results, folder / "inference.png")
    except ImportError:
        print("No picture: matplotlib is not installed.")


def main() -> None:
    """Prints the report, and writes it if asked."""
    from transformers import HfArgumentParser

    args: InferenceArguments = HfArgumentParser(InferenceArguments).parse_args_into_dataclasses()[0]
    if args.peer_packages:
        sys.path.append(args.peer_packages)
    if args.table_only:
        print(markdown(json.loads(Path(args.table_only).read_text())))
        return
    if args.docs_table:
        results = json.loads(Path(args.docs_table).read_text())
        print("\n\n".join(docs_table(results, model) for model in results["arguments"]["models"]))
        return
    results = measure(args)
    if args.output_dir:
        write(results, Path(args.output_dir))
    print(markdown(results))
    print(f"The run took {results['seconds'] / 60:.1f} minutes.")


if __name__ == "__main__":
    main()
