"""Times an optimizer step of XTCTrainer against its floor, on random weights of MiniLM-L6 shape.

The floor is the part that every distillation needs: the teacher's forward pass, a stock student's forward and backward
pass, and the optimizer's update. XTC's step adds fake-quantization of weights and activations and three distillation
terms. While weights are annealed, a step also blends each weight with its quantized one. All kinds run in turn in one
process, and their medians are compared. Peak memory is measured in a fresh process each.

    python benchmarks/training.py --output_file benchmarks/results/training.json
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch
from transformers import BertConfig, BertForSequenceClassification, HfArgumentParser, set_seed

from hf_xtc import XTCRecipe, XTCTrainer, XTCTrainingArguments, compress
from hf_xtc.files.writing import write_json
from hf_xtc.training.callbacks import set_quantization
from machine import facts, peak_bytes


@dataclass
class BenchmarkArguments:
    """Shape and repeats."""

    batch_size: int = field(default=32, metadata={"help": "Rows of a batch."})
    tokens: int = field(default=64, metadata={"help": "Tokens of a row, none of them padding."})
    layers: int = field(default=6, metadata={"help": "Layers of teacher and student."})
    repeats: int = field(default=11, metadata={"help": "Timed steps of each kind, in turn."})
    weights: str = field(default="binary", metadata={"help": "Quantizer of the student."})
    bf16: bool = field(default=False, metadata={"help": "Autocast to bfloat16."})
    only: str | None = field(default=None, metadata={"help": "Run one kind (floor or xtc) and print its peak memory."})
    output_file: str | None = field(default=None, metadata={"help": "JSON file for the results."})


def minilm(layers: int) -> BertConfig:
    """MiniLM-L6-H384's shape."""
    return BertConfig(hidden_size=384, num_hidden_layers=layers, num_attention_heads=12, intermediate_size=1536)


def batch(args: BenchmarkArguments) -> dict[str, torch.Tensor]:
    """Random tokens without padding."""
    ids = torch.randint(1000, 30000, (args.batch_size, args.tokens))
    labels = torch.randint(0, 2, (args.batch_size,))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def steps(args: BenchmarkArguments, folder: str) -> dict[str, Callable[[], None]]:
    """Kind of step -> function that runs one."""
    set_seed(0)
    inputs = batch(args)
    made: dict[str, Callable[[], None]] = {}
    if args.only != "xtc":
        teacher = BertForSequenceClassification(minilm(args.layers)).eval().requires_grad_(False)
        student = BertForSequenceClassification(minilm(args.layers)).train()
        optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, fused=True)

        def floor() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
                with torch.no_grad():
                    teacher(**inputs)
                loss = student(**inputs).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        made["floor"] = floor
    if args.only != "floor":
        teacher_model = BertForSequenceClassification(minilm(args.layers)).eval()
        model = compress(teacher_model, XTCRecipe(weights=args.weights))
        training_args = XTCTrainingArguments(folder, use_cpu=True, bf16=args.bf16, max_steps=1000, learning_rate=1e-4)
        trainer = XTCTrainer(model, training_args, teacher_model=teacher_model)
        trainer.create_optimizer()
        model = trainer.accelerator.prepare_model(model)  # autocast, as in `train()`
        trainer.state.max_steps = 1000
        trainer.current_gradient_accumulation_steps = 1

        def xtc() -> None:
            trainer.training_step(model, dict(inputs))
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()

        def annealed() -> None:
            set_quantization(model, weights=0.5, activations=True)
            xtc()
            set_quantization(model, weights=1.0, activations=True)

        made["xtc"] = xtc
        if args.only != "xtc":
            made["annealed"] = annealed
    return made


def measure(args: BenchmarkArguments) -> dict[str, float]:
    """Median seconds of each kind of step, and their ratio, from interleaved repeats after two warm-up steps."""
    with tempfile.TemporaryDirectory() as folder:
        kinds = steps(args, folder)
        times: dict[str, list[float]] = {name: [] for name in kinds}
        for repeat in range(args.repeats + 2):
            for name, step in kinds.items():
                start = time.perf_counter()
                step()
                if repeat >= 2:
                    times[name].append(time.perf_counter() - start)
    medians = {f"{name}_seconds": statistics.median(values) for name, values in times.items()}
    if args.only is None:
        pairs = [x / f for x, f in zip(times["xtc"], times["floor"], strict=True)]
        medians["ratio"] = medians["xtc_seconds"] / medians["floor_seconds"]
        medians["ratio_min"], medians["ratio_max"] = min(pairs), max(pairs)
        medians["annealed_ratio"] = medians["annealed_seconds"] / medians["floor_seconds"]
    return medians


def peak_memory(kind: str) -> int:
    """Peak resident bytes of a fresh process that runs only `kind`."""
    command = [sys.executable, __file__, *sys.argv[1:], "--only", kind, "--repeats", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def main() -> None:
    """Prints the results, and writes them if asked."""
    args = HfArgumentParser(BenchmarkArguments).parse_args_into_dataclasses()[0]
    if args.only is not None:
        measure(args)
        print(peak_bytes())
        return
    results = {
        **measure(args),
        **{f"{kind}_peak_bytes": peak_memory(kind) for kind in ("floor", "xtc")},
        "arguments": {key: value for key, value in asdict(args).items() if key not in ("only", "output_file")},
        **facts(torch.get_num_threads(), "hf_xtc", "torch", "transformers", "accelerate"),
    }
    print(json.dumps(results, indent=2))
    if args.output_file:
        write_json(args.output_file, results)


if __name__ == "__main__":
    main()
