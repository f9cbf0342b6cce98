"""Why not simply int8: what 8-bit quantization keeps of each teacher, in what bytes and how fast, beside our student.

The teachers are those of `benchmarks/tasks.py`. Their float models are quantized as one would without training:

- torch dynamic int8: `quantize_dynamic` of every `nn.Linear`.
- ONNX Runtime dynamic int8: `quantize_dynamic` of the graph that its transformers optimizer fuses, with one scale for
  each weight ("per tensor", its default) or for each output channel.
- OpenVINO int8: ONNX Runtime's `quantize_static` (QDQ, per channel) of the plain graph, calibrated on train rows, then
  converted.

Metrics are those of `hf-xtc evaluate` on the validation rows, bytes those of the files that hold the weights, times
the medians of calls in turn. Each result is a line of JSON and is not measured again; the files stay in `--work_dir`.
Times are taken by a second run with `--times`, while nothing else runs.

    python benchmarks/int8.py --runs_dir runs --data_dir data --encoders_dir . --names wnut17 sst2
    python benchmarks/int8.py --runs_dir runs --data_dir data --encoders_dir . --names wnut17 sst2 --times
"""

import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import AutoTokenizer, HfArgumentParser
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput

from hf_xtc.runs.arguments import EvaluateArguments, EvaluationDataArguments
from hf_xtc.runs.evaluation import run_evaluate
from latency.files import quantize_torch
from machine import facts
from tasks import RUNS

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
SHAPES = {"1x16": (1, 16), "8x32": (8, 32)}
ROWS = 64  # train rows that calibrate
LENGTH = 64  # tokens of these at most
FLOAT, OURS = "teacher, float32", "hf_xtc, 1 bit, packed"


@dataclass
class Int8Arguments:
    """Which teachers, and where they, their data and the results are."""

    runs_dir: str = field(metadata={"help": "Folder of the trainings of benchmarks/tasks.py."})
    data_dir: str = field(metadata={"help": "Its data folder."})
    encoders_dir: str = field(metadata={"help": "Folder of the teachers that were not fine-tuned."})
    names: list[str] = field(default_factory=lambda: list(RUNS), metadata={"help": "Runs; those without files wait."})
    times: bool = field(default=False, metadata={"help": "Measure times, not metrics."})
    repeats: int = field(default=15, metadata={"help": "Calls of each shape that are timed."})
    work_dir: str = field(default="int8", metadata={"help": "Keeps the quantized files."})
    results_file: str = field(default="benchmarks/results/int8.jsonl", metadata={"help": "JSON lines."})
    threads: int = field(default=2, metadata={"help": "Threads of each runtime."})


class Foreign(torch.nn.Module):
    """A model of another runtime, with the inputs and outputs of the one that it was made of."""

    def __init__(self, run: Callable[[dict[str, np.ndarray]], np.ndarray], names: list[str], hidden: bool):
        super().__init__()
        self.run, self.names, self.hidden = run, names, hidden

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> Any:
        """Returns what the model returns, with a loss of zero, which is not reported."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        output = torch.from_numpy(self.run({name: given[name].numpy() for name in self.names}))
        if self.hidden:
            return BaseModelOutput(last_hidden_state=output)
        return SequenceClassifierOutput(loss=torch.zeros(()), logits=output)


class _First(torch.nn.Module):
    """The first output of a model, as a function of positional inputs: what is exported."""

    def __init__(self, model: Any, names: list[str]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.model(**dict(zip(self.names, inputs, strict=True)))[0]
        return output


class Quantizer:
    """Quantizes one teacher; the files of each way are written once."""

    def __init__(self, teacher: str, calibration: list[dict[str, np.ndarray]], folder: Path, threads: int):
        self.tokenizer = AutoTokenizer.from_pretrained(teacher)
        self.names = [name for name in INPUTS if name in self.tokenizer.model_input_names]
        self.calibration, self.folder, self.threads = calibration, folder, threads
        folder.mkdir(parents=True, exist_ok=True)

    def variants(self) -> dict[str, Callable[[Any], Any]]:
        """Name -> function from the float model to the one to measure."""
        return {
            FLOAT: lambda model: model,
            "torch dynamic int8": quantize_torch,
            "ONNX Runtime dynamic int8, per tensor": lambda model: self.onnxruntime(model, per_channel=False),
            "ONNX Runtime dynamic int8, per channel": lambda model: self.onnxruntime(model, per_channel=True),
            "OpenVINO int8": self.openvino,
        }

    def bytes(self, variant: str, model: Any) -> int:
        """Bytes of what holds the weights of a quantized variant."""
        if isinstance(model, Foreign):
            return sum(file.stat().st_size for file in self.place(variant).iterdir())
        file = self.folder / "state.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's notices that its int8 will give way to torchao's
            torch.save(model.state_dict(), file)
        size = file.stat().st_size
        file.unlink()
        return size

    def place(self, variant: str) -> Path:
        """The folder of a variant's files."""
        return self.folder / variant.replace(" ", "_").replace(",", "")

    def _written(self, variant: str, write: Callable[[Path], None]) -> Path:
        target = self.place(variant)
        if not target.exists():
            scratch = target.with_name(f"{target.name}.part")
            scratch.mkdir(exist_ok=True)
            write(scratch)
            os.replace(scratch, target)
        return target

    def graph(self, model: Any, attention: str) -> Path:
        """The float model as ONNX, checked against it on rows of another shape than the traced ones."""
        target = self._written(
            f"onnx {attention}", lambda folder: self._export(model, attention, folder / "model.onnx")
        )
        return target / "model.onnx"

    def _export(self, model: Any, attention: str, file: Path) -> None:
        before = model.config._attn_implementation
        model.set_attn_implementation(attention)
        traced = {name: torch.from_numpy(self.calibration[0][name].copy()) for name in self.names}
        traced["attention_mask"][0, -1] = 0  # without any padding the traced graph would ignore the mask
        axes = {name: {0: "rows", 1: "tokens"} for name in self.names}
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # of the older exporter, of tracing: the outputs are checked below
            first = _First(model, self.names)
            output = first(*traced.values())
            dims = {0: "rows", 1: "tokens"} if output.dim() == 3 else {0: "rows"}
            torch.onnx.export(
                first,
                tuple(traced.values()),
                str(file),
                input_names=self.names,
                output_names=["output"],
                dynamic_axes={**axes, "output": dims},
                opset_version=17,
                dynamo=False,
            )
            other = self.calibration[1]
            expected = first(*(torch.from_numpy(other[name]) for name in self.names)).numpy()
        model.set_attn_implementation(before)
        found = _onnx_run(file, self.threads)({name: other[name] for name in self.names})
        mask = other["attention_mask"].astype(bool) if expected.ndim == 3 else slice(None)
        np.testing.assert_allclose(found[mask], expected[mask], atol=2e-3, rtol=2e-3)

    def onnxruntime(self, model: Any, *, per_channel: bool) -> Foreign:
        """ONNX Runtime's dynamic int8 of the fused graph."""
        variant = f"ONNX Runtime dynamic int8, per {'channel' if per_channel else 'tensor'}"
        folder = self._written(variant, lambda folder: self._quantize(model, folder / "model.onnx", per_channel))
        return Foreign(_onnx_run(folder / "model.onnx", self.threads), self.names, _hidden(model))

    def _quantize(self, model: Any, file: Path, per_channel: bool) -> None:
        import onnx
        from onnxruntime.quantization import quantize_dynamic
        from onnxruntime.transformers.optimizer import optimize_model

        graph = self.graph(model, "eager")
        heads, width = model.config.num_attention_heads, model.config.hidden_size
        fused = file.with_name("fused.onnx")
        optimize_model(str(graph), "bert", num_heads=heads, hidden_size=width).save_model_to_file(str(fused))
        # Shape inference stops at the fused nodes, so the type of what follows them has to be said.
        types = {"DefaultTensorType": onnx.TensorProto.FLOAT}
        quantize_dynamic(fused, file, per_channel=per_channel, extra_options=types)
        fused.unlink()

    def openvino(self, model: Any) -> Foreign:
        """OpenVINO's int8 of the plain graph."""
        import openvino

        folder = self._written("OpenVINO int8", lambda folder: self._calibrate(model, folder))
        options = {"INFERENCE_NUM_THREADS": self.threads, "PERFORMANCE_HINT": "LATENCY"}
        compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", options)
        return Foreign(lambda batch: np.array(compiled(batch)["output"]), self.names, _hidden(model))

    def _calibrate(self, model: Any, folder: Path) -> None:
        import openvino
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        batches = iter({name: batch[name] for name in self.names} for batch in self.calibration)

        class Batches:
            """What `quantize_static` asks for its calibration."""

            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(batches, None)

        quantized = folder / "quantized.onnx"
        quantize_static(
            self.graph(model, "sdpa"),
            quantized,
            Batches(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        openvino.save_model(openvino.convert_model(quantized), folder / "model.xml", compress_to_fp16=False)
        quantized.unlink()


def _hidden(model: Any) -> bool:
    return model.base_model is model  # a sentence embedder has no head


def _onnx_run(file: Path, threads: int) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda batch: session.run(["output"], batch)[0]


def data_of(args: Int8Arguments, name: str) -> dict[str, Any]:
    """The options that say which data a run reads."""
    known = {entry.name for entry in fields(EvaluationDataArguments)}
    folder = Path(args.data_dir) / RUNS[name].get("data", name)
    chosen = {key: value for key, value in RUNS[name].items() if key in known}
    return {**chosen, "validation_file": str(folder / "validation.parquet")}


def calibration(args: Int8Arguments, name: str, tokenizer: Any) -> list[dict[str, np.ndarray]]:
    """Batches of the first train rows, in the order of the file."""
    folder, options = Path(args.data_dir) / RUNS[name].get("data", name), RUNS[name]
    if (folder / "train.txt").exists():
        texts = [(folder / "train.txt").read_text(encoding="utf-8").splitlines()[:ROWS]]
    else:
        rows = pd.read_parquet(folder / "train.parquet").head(ROWS)
        if "tokens" in rows:
            texts = [[" ".join(words) for words in rows["tokens"]]]
        else:
            columns = [options.get("text_column", "text"), options.get("text_pair_column")]
            texts = [list(rows[column]) for column in columns if column]
    options = {"padding": True, "truncation": True, "max_length": LENGTH, "return_tensors": "np"}
    batches = [tokenizer(*(part[start : start + 8] for part in texts), **options) for start in range(0, ROWS, 8)]
    return [dict(batch) for batch in batches if len(batch["input_ids"])]


def teacher_of(args: Int8Arguments, name: str) -> Path:
    """The folder of the float teacher: fine-tuned in the run, or the encoder that it names."""
    folder = Path(args.runs_dir) / name
    tuned = folder / "training" / "teacher"
    if tuned.is_dir():
        return tuned
    config = json.loads((folder / "config.json").read_text())
    return Path(args.encoders_dir) / config["xtc"]["provenance"]["teacher"]


def weights_bytes(folder: Path) -> int:
    """Bytes of a folder's weights."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def metrics(args: Int8Arguments, name: str, known: set[str]) -> Any:
    """Yields a record with metric and bytes for each variant that is not known."""
    teacher, student = teacher_of(args, name), Path(args.runs_dir) / name
    metric = json.loads((student / "metrics.json").read_text())["metric"]
    made = Quantizer(str(teacher), [], Path(args.work_dir) / name, args.threads)
    made.calibration = calibration(args, name, made.tokenizer)
    data = EvaluationDataArguments(**data_of(args, name))
    for variant, quantize in {**made.variants(), OURS: lambda model: model}.items():
        if variant in known:
            continue
        folder = student if variant == OURS else teacher
        sizes = [weights_bytes(folder)]

        def replaced(
            model: Any, quantize: Any = quantize, variant: str = variant, sizes: list[int] = sizes
        ) -> torch.nn.Module:
            measured = quantize(model)
            if variant not in (FLOAT, OURS):
                sizes[0] = made.bytes(variant, measured)
            return measured  # type: ignore[no-any-return]

        found = run_evaluate(EvaluateArguments(model=str(folder)), data, instead=replaced)
        yield {"name": name, "variant": variant, "metric": metric, "score": found[metric], "bytes": sizes[0]}


def times(args: Int8Arguments, name: str, known: set[str]) -> Any:
    """Yields a record of milliseconds for each variant, unless all are known; all are timed in turn."""
    teacher, student = teacher_of(args, name), Path(args.runs_dir) / name
    made = Quantizer(str(teacher), [], Path(args.work_dir) / name, args.threads)
    made.calibration = calibration(args, name, made.tokenizer)
    variants = made.variants()
    if set(variants) | {OURS} <= known:
        return
    data = EvaluationDataArguments(**data_of(args, name))
    models: dict[str, Any] = {variant: quantize(_load(teacher, data)) for variant, quantize in variants.items()}
    models[OURS] = _load(student, data)
    seconds: dict[tuple[str, str], list[float]] = {}
    draw = np.random.default_rng(0)
    with torch.inference_mode():
        for shape, (rows, tokens) in SHAPES.items():
            ids = torch.from_numpy(draw.integers(5, models[OURS].config.vocab_size, (rows, tokens)))
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
            batch = {key: batch[key] for key in made.names}
            for turn in range(args.repeats + 2):  # two to warm up
                for variant, model in models.items():
                    start = time.perf_counter()
                    model(**batch)
                    if turn >= 2:
                        seconds.setdefault((variant, shape), []).append(time.perf_counter() - start)
    for variant in models:
        medians = {shape: round(1000 * statistics.median(seconds[variant, shape]), 3) for shape in SHAPES}
        yield {"name": name, "variant": variant, "milliseconds": medians}


def _load(folder: Path, data: EvaluationDataArguments) -> Any:
    """The model of a folder, with the head of the run's task."""
    from hf_xtc.data.task_data import read_splits
    from hf_xtc.runs.teacher import load_config, load_model
    from hf_xtc.tasks import find_task

    task = find_task(data, read_splits(data), load_config(str(folder)), str(folder))
    return load_model(str(folder), task.auto_class, fresh_head=not task.needs_head, dtype="auto").eval()


def table(records: list[dict[str, Any]]) -> str:
    """The variants of each teacher: metric, its ratio to the float model's, bytes and milliseconds."""
    lines = [f"| data | model | metric | score | kept | bytes | {' | '.join(f'ms, {s}' for s in SHAPES)} |"]
    lines.append("|---|---|---|---|---|---|" + "---|" * len(SHAPES))
    scored = [record for record in records if "score" in record]
    timed = {
        (record["name"], record["variant"]): record["milliseconds"] for record in records if "milliseconds" in record
    }
    for record in sorted(scored, key=lambda record: list(RUNS).index(record["name"])):
        full = next(r["score"] for r in scored if (r["name"], r["variant"]) == (record["name"], FLOAT))
        found = timed.get((record["name"], record["variant"]), {})
        cells = [record["name"], record["variant"], record["metric"], f"{record['score']:.4f}"]
        cells += [f"{record['score'] / full:.1%}", f"{record['bytes']:,}"]
        cells += [f"{found[shape]:.1f}" if shape in found else "-" for shape in SHAPES]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measures what is not in the results yet, and prints the table."""
    (args,) = HfArgumentParser(Int8Arguments).parse_args_into_dataclasses()
    torch.set_num_threads(args.threads)
    file = Path(args.results_file)
    records = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    kind, field_of = (times, "milliseconds") if args.times else (metrics, "score")
    for name in args.names:
        if not (Path(args.runs_dir) / name / "metrics.json").exists():
            print(f"{name}: not trained yet, left out.")
            continue
        known = {record["variant"] for record in records if record["name"] == name and field_of in record}
        for record in kind(args, name, known):
            packages = ("hf_xtc", "torch", "transformers", "onnx", "onnxruntime", "openvino")
            records.append({**record, **facts(args.threads, *packages)})
            with file.open("a") as lines:
                lines.write(json.dumps(records[-1]) + "\n")
            print(*record.values(), flush=True)
    print(table(records))


if __name__ == "__main__":
    main()
