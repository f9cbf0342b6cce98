"""Times packed encoders on a GPU beside fp16 and torchao's int8: one run of at most five minutes.

    python benchmarks/gpu.py --output_file benchmarks/results/gpu.json

First it checks that the Triton kernel's products are bitwise those of `torch._int_mm`; otherwise nothing is timed.
Then every way runs every shape in turn, its forward recorded as a CUDA graph where that works (which leaves Python
out), and timed with CUDA events; a cell is the median of its rounds. All ways have the same random weights. Ways that
do not fit into `--seconds`, are not installed or fail are named in the results, with the reason.

`--device cpu --smoke` runs every line on a tiny model without a GPU, which proves this script and measures nothing;
with `TRITON_INTERPRET=1 XTC_NATIVE=off` it runs the Triton kernel too. The script was not run on a GPU yet.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import HfArgumentParser

from hf_xtc import XTCRecipe, compress, pack_model
from hf_xtc.backends import BACKENDS
from hf_xtc.files.writing import write_json
from hf_xtc.native import gpu
from hf_xtc.native.encoder import Codes
from hf_xtc.quantization.activations import ActivationQuantizer
from hf_xtc.quantization.packing import pack_weight
from hf_xtc.quantization.specs import ActivationSpec, QuantSpec
from latency.models import MODELS, build, vocab_size
from machine import facts

LEVELS = {"binary": 2, "ternary": 3}
Forward = Callable[[], torch.Tensor]


@dataclass
class GpuArguments:
    """What to measure."""

    device: str = field(default="cuda", metadata={"help": "cuda, or cpu with --smoke."})
    smoke: bool = field(default=False, metadata={"help": "A tiny model, two shapes, two rounds."})
    models: list[str] = field(default_factory=lambda: ["bert-base-5", "bert-base-12"], metadata={"help": "Models."})
    shapes: list[str] = field(
        default_factory=lambda: ["1x16", "1x128", "8x128", "64x128", "256x128"], metadata={"help": "Rows x tokens."}
    )
    repeats: int = field(default=21, metadata={"help": "Rounds: timed calls of each way and shape."})
    seconds: float = field(default=280.0, metadata={"help": "No way is prepared after that time."})
    seed: int = field(default=0, metadata={"help": "Of weights and tokens."})
    output_file: str | None = field(default=None, metadata={"help": "JSON file for the results."})

    def __post_init__(self) -> None:
        if self.smoke:
            self.models, self.shapes, self.repeats = ["tiny"], ["1x16", "3x20"], 2
        if (self.device == "cpu") != self.smoke:
            raise ValueError("Give --device cpu and --smoke together: figures of a CPU say nothing about a GPU.")


def check_products(device: str, smoke: bool) -> int:
    """How many products of the Triton kernel were compared with those of `torch._int_mm`.

    Raises:
        AssertionError: if one has other bits.
    """
    shapes = [(16, 32, 64)] if smoke else [(1, 768, 768), (17, 3072, 768), (128, 768, 3072), (2048, 768, 768)]
    quantizer, compared = ActivationQuantizer(ActivationSpec()), 0
    for name, levels in LEVELS.items():
        for tokens, columns, rows in shapes:
            weight = pack_weight(torch.randn(rows, columns), QuantSpec(name))
            weight = weight._replace(packed=weight.packed.to(device), scale=weight.scale.to(device))
            codes = Codes(weight.packed, weight.scale, None, columns, levels)
            x = torch.randn(tokens, columns).to(device, torch.float16)
            expected = BACKENDS["int8"]().linear(x, weight, None, quantizer)
            for blocks in {gpu.default_blocks(count) for count in (1, 17, 65, 1025)}:
                if not torch.equal(gpu.multiply(x, codes, blocks), expected):
                    raise AssertionError(f"{name}, {tokens} tokens, {columns} to {rows}, {blocks}: other bits")
                compared += 1
    return compared


def torchao_int8(model: Any, device: str) -> Any:
    """torchao's dynamic int8 of the float model in half precision, its layers compiled."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = model.to(device, half(device))
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    if device == "cuda":
        for layer in model.bert.encoder.layer:
            layer.compile(dynamic=True)
    return model


def half(device: str) -> torch.dtype:
    """float16; bfloat16 on a CPU."""
    return torch.float16 if device == "cuda" else torch.bfloat16


def ways(device: str) -> dict[str, Callable[[Any], Any]]:
    """Name -> function from the float model to what is timed."""

    def ours(weights: str, backend: str) -> Callable[[Any], Any]:
        def make(model: Any) -> Any:
            if backend == "packed" and not gpu.runs_on(torch.device(device)):
                raise RuntimeError("the Triton kernel does not run here")
            packed = pack_model(compress(model, XTCRecipe(weights=weights))).to(device, half(device)).eval()
            packed.set_backend(backend)
            return packed

        return make

    return {
        "fp16": lambda model: model.to(device, half(device)),
        "hf_xtc int8 (torch._int_mm)": ours("binary", "int8"),
        "hf_xtc packed (Triton), binary": ours("binary", "packed"),
        "hf_xtc packed (Triton), ternary": ours("ternary", "packed"),
        "hf_xtc reference": ours("binary", "reference"),
        "torchao dynamic int8, compiled": lambda model: torchao_int8(model, device),
    }


def record(forward: Forward, device: str) -> tuple[Forward, str]:
    """The forward as a CUDA graph, and "graph"; where it cannot be recorded the forward itself, and why not."""
    if device != "cuda":
        return forward, "eager: no GPU"
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            forward()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            output = forward()
    except Exception as error:  # whatever an operation that cannot be recorded raises
        torch.cuda.synchronize()
        return forward, f"eager: {str(error).splitlines()[0]}"

    def replay() -> torch.Tensor:
        graph.replay()
        return output

    return replay, "graph"


def seconds_of(forward: Forward, device: str) -> float:
    """Seconds of one call."""
    if device != "cuda":
        began = time.perf_counter()
        forward()
        return time.perf_counter() - began
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    forward()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def prepare(
    args: GpuArguments, model_name: str, deadline: float
) -> tuple[dict[tuple[str, str], tuple[Forward, dict[str, Any]]], list[str]]:
    """(way, shape) -> what to time and facts about it; and what was left out."""
    prepared: dict[tuple[str, str], tuple[Forward, dict[str, Any]]] = {}
    left_out = []
    for name, make in ways(args.device).items():
        try:
            if time.perf_counter() > deadline:
                raise TimeoutError(f"not prepared: the {args.seconds:.0f} seconds of the run were over")
            model = make(build(model_name, args.seed)).eval()
            weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
            for shape in args.shapes:
                rows, tokens = map(int, shape.split("x"))
                ids = torch.randint(1, vocab_size(model_name), (rows, tokens)).to(args.device)
                mask = torch.ones_like(ids)

                def forward(model: Any = model, ids: torch.Tensor = ids, mask: torch.Tensor = mask) -> torch.Tensor:
                    logits: torch.Tensor = model(input_ids=ids, attention_mask=mask).logits
                    return logits

                began = time.perf_counter()
                forward()
                first = time.perf_counter() - began
                recorded, how = record(forward, args.device)
                found = recorded().float()
                if not bool(found.isfinite().all()):
                    raise RuntimeError("its logits are not finite")
                prepared[name, shape] = recorded, {"how": how, "first_seconds": first, "weight_bytes": weights}
        except Exception as error:  # of any package's making; the others are measured all the same
            left_out.append(f"{model_name}, {name}: {type(error).__name__}: {str(error).splitlines()[0]}")
            print(f"Left out: {left_out[-1]}", flush=True)
    return prepared, left_out


def measure(args: GpuArguments) -> dict[str, Any]:
    """The whole run's results."""
    began = time.perf_counter()
    torch.manual_seed(args.seed)
    results: dict[str, Any] = {
        **facts(torch.get_num_threads(), "hf_xtc", "torch", "transformers", "torchao", "triton")
    }
    results["device"] = torch.cuda.get_device_name() if args.device == "cuda" else "cpu (smoke: no figures of a GPU)"
    kernel = gpu.runs_on(torch.device(args.device))
    results["equal_products"] = check_products(args.device, args.smoke) if kernel else 0
    results |= {"cells": [], "left_out": []}
    for index, model in enumerate(args.models):
        deadline = began + args.seconds * (index + 1) / len(args.models)
        with torch.inference_mode():
            prepared, left_out = prepare(args, model, deadline)
            results["left_out"] += left_out
            times: dict[tuple[str, str], list[float]] = {cell: [] for cell in prepared}
            for _ in range(args.repeats):
                for cell, (forward, _) in prepared.items():
                    if len(times[cell]) < 3 or time.perf_counter() < deadline:
                        times[cell].append(seconds_of(forward, args.device))
        for (way, shape), values in times.items():
            row = {"model": model, "way": way, "shape": shape, "median_seconds": statistics.median(values)}
            results["cells"].append({**row, **prepared[way, shape][1], "seconds": values})
        prepared.clear()
    results["seconds"] = time.perf_counter() - began
    return results


def table(results: dict[str, Any]) -> str:
    """Median milliseconds as Markdown, a table per model; the fastest of a shape in bold."""
    parts = [f"{results['device']}, {results['date']}; {results['equal_products']} products of the kernel are exact."]
    for model in dict.fromkeys(cell["model"] for cell in results["cells"]):
        cells = [cell for cell in results["cells"] if cell["model"] == model]
        shapes = list(dict.fromkeys(cell["shape"] for cell in cells))
        values = {(cell["way"], cell["shape"]): cell["median_seconds"] for cell in cells}
        lines = [f"| {model} | {' | '.join(shapes)} | recorded | weights |", f"|---|{'---:|' * (len(shapes) + 2)}"]
        for way in dict.fromkeys(cell["way"] for cell in cells):
            row = [cell for cell in cells if cell["way"] == way]
            texts = []
            for shape in shapes:
                fastest = min(value for (_, other), value in values.items() if other == shape)
                text = f"{values[way, shape] * 1e3:.3f}" if (way, shape) in values else ""
                texts.append(f"**{text}**" if values.get((way, shape)) == fastest else text)
            how = "; ".join(dict.fromkeys(cell["how"] for cell in row))
            lines.append(f"| {way} | {' | '.join(texts)} | {how} | {row[0]['weight_bytes'] / 1e6:.1f} MB |")
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, *(f"- Left out: {line}" for line in results["left_out"])])


def main() -> int:
    """Prints the table, and writes the results if asked. 2: no GPU was found."""
    args: GpuArguments = HfArgumentParser(GpuArguments).parse_args_into_dataclasses()[0]
    unknown = sorted(set(args.models) - set(MODELS))
    if unknown:
        raise ValueError(f"Unknown models: {', '.join(unknown)}. There are: {', '.join(MODELS)}.")
    if args.device == "cuda" and not torch.cuda.is_available():
        print("No GPU that PyTorch can use was found; nothing was measured.")
        return 2
    results = measure(args)
    if args.output_file:
        write_json(args.output_file, results)
    print(table(json.loads(json.dumps(results))))
    print(f"The run took {results['seconds']:.0f} seconds.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
