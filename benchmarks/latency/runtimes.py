"""The runtimes: each loads its files and returns a function from a batch to logits.

Heavy imports happen inside `imports` and `load`, so that a process pays, in time and memory, for its own runtime only.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from latency.files import deprecations_ignored, quantize_torch, torch_logits, use_backend
from latency.shapes import Batch

Run = Callable[[Batch], np.ndarray]


@dataclass(frozen=True)
class Runtime:
    """One way to serve the model.

    Args:
        files: Which of `files.KINDS` it loads.
        imports: Brings in what it needs; what these take alone is subtracted from the process's peak memory.
        load: Folder and number of threads to the function that is timed.
        needs: Packages without which it is left out.
        ours: Whether it computes with our packed weights.
        label: Name in tables and plots.
        environment: Variables of its process.
        outside: Whether its process needs the folder `--peer_packages` too, not only the writer of its files.
        tolerance: Largest allowed difference of logits from those of the float model (other runtimes) or of the
            reference backend (ours), relative to the largest; wide, since it only has to catch a broken runtime.
    """

    files: str
    imports: Callable[[], None]
    load: Callable[[Path, int], Run]
    label: str
    needs: tuple[str, ...] = ()
    ours: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    outside: bool = False
    tolerance: float = 0.35

    def missing(self) -> list[str]:
        """Those of its packages that are not installed."""
        return [name for name in self.needs if find_spec(name) is None]


def import_torch() -> None:
    """The same for every runtime in torch, ours or not."""
    import torch  # noqa: F401
    from transformers import BertForSequenceClassification  # noqa: F401

    import hf_xtc  # noqa: F401


def import_onnxruntime() -> None:
    """ONNX Runtime needs nothing of torch."""
    import onnxruntime  # noqa: F401


def import_openvino() -> None:
    """Nor does OpenVINO."""
    import openvino  # noqa: F401


def _torch_run(model: Any, threads: int) -> Run:
    import torch

    torch.set_num_threads(threads)
    model.eval()
    return lambda batch: torch_logits(model, batch)


def load_torch(folder: Path, threads: int) -> Run:
    """The stock model in the dtype of its file."""
    from transformers import BertForSequenceClassification

    return _torch_run(BertForSequenceClassification.from_pretrained(folder), threads)


def load_torch_int8(folder: Path, threads: int) -> Run:
    """The stock model with dynamically quantized linears, from a saved state."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification
    from transformers.initialization import no_init_weights

    with no_init_weights():
        model = BertForSequenceClassification(BertConfig.from_pretrained(folder)).eval()
    model = quantize_torch(model)
    with deprecations_ignored():
        model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    return _torch_run(model, threads)


def import_torchao() -> None:
    """torchao beside torch."""
    import_torch()
    import torchao  # noqa: F401


def load_torchao(folder: Path, threads: int) -> Run:
    """The stock model with torchao's dynamic int8, its layers compiled: one graph for all, of any rows and tokens."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification.from_pretrained(folder).eval()
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    for layer in model.bert.encoder.layer:
        layer.compile(dynamic=True)
    return _torch_run(model, threads)


def load_ours(backend: str) -> Callable[[Path, int], Run]:
    """Our packed checkpoint by that backend."""

    def load(folder: Path, threads: int) -> Run:
        from hf_xtc import XTCBertForSequenceClassification

        return _torch_run(use_backend(XTCBertForSequenceClassification.from_pretrained(folder), backend), threads)

    return load


def load_onnxruntime(folder: Path, threads: int) -> Run:
    """An ONNX file in ONNX Runtime's CPU provider."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        str(next(folder.glob("*.onnx"))), options, providers=["CPUExecutionProvider"]
    )
    names = [given.name for given in session.get_inputs()]
    return lambda batch: session.run(["logits"], {name: batch[name] for name in names})[0]


def load_openvino(folder: Path, threads: int) -> Run:
    """An OpenVINO IR on its CPU device."""
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(next(folder.glob("*.xml")), "CPU", options)
    names = [given.any_name for given in compiled.inputs]
    return lambda batch: compiled({name: batch[name] for name in names})["logits"]


def _torch(files: str, label: str, load: Callable[[Path, int], Run] = load_torch) -> Runtime:
    return Runtime(files, import_torch, load, label)


def _onnxruntime(files: str, label: str, ours: bool = False, needs: tuple[str, ...] = ()) -> Runtime:
    # Writing the files takes `onnx` too.
    return Runtime(files, import_onnxruntime, load_onnxruntime, label, ("onnxruntime", "onnx", *needs), ours)


def _openvino(files: str, label: str, needs: tuple[str, ...] = (), ours: bool = False) -> Runtime:
    return Runtime(files, import_openvino, load_openvino, label, ("openvino", *needs), ours)


def _ours(backend: str, files: str = "ours", label: str = "", **environment: str) -> Runtime:
    label = f"hf_xtc {backend}{label}"
    return Runtime(files, import_torch, load_ours(backend), label, (), True, environment)


RUNTIMES: dict[str, Runtime] = {
    "torch_fp32": _torch("torch", "torch fp32"),
    "torch_bf16": _torch("torch_bf16", "torch bf16"),
    "torch_int8": _torch("torch_int8", "torch dynamic int8", load_torch_int8),
    "ort_fp32": _onnxruntime("onnx", "ONNX Runtime fp32"),
    "ort_int8": _onnxruntime("onnx_int8", "ONNX Runtime dynamic int8"),
    "openvino_fp32": _openvino("openvino", "OpenVINO fp32", ("onnx",)),
    "openvino_int8": _openvino("openvino_int8", "OpenVINO int8", ("onnx", "onnxruntime")),
    "torchao_int8": Runtime(
        "torch", import_torchao, load_torchao, "torchao dynamic int8, compiled", ("torchao",), outside=True
    ),
    "ort_4bit": _onnxruntime("onnx_4bit", "ONNX Runtime 4-bit", needs=("onnx_ir",)),
    "ort_2bit": replace(_onnxruntime("onnx_2bit", "ONNX Runtime 2-bit", needs=("onnx_ir",)), tolerance=1.0),
    "openvino_4bit": _openvino("openvino_4bit", "OpenVINO 4-bit", ("onnx", "nncf")),
    **{f"ours_{backend}": _ours(backend) for backend in ("reference", "int8", "packed", "auto")},
    # Binary unless they say ternary; on the instruction set in use unless they say AVX2.
    "ours_auto_avx2": _ours("auto", label=", AVX2", XTC_NATIVE="avx2"),
    "ours_ternary_auto": _ours("auto", "ours_ternary", ", ternary"),
    "ours_ternary_auto_avx2": _ours("auto", "ours_ternary", ", ternary, AVX2", XTC_NATIVE="avx2"),
    "ours_onnx_int8": _onnxruntime("ours_onnx_int8", "hf_xtc's ONNX int8", ours=True),
    "ours_onnx_2bit": _onnxruntime("ours_onnx_2bit", "hf_xtc's ONNX 2-bit", ours=True),
    "ours_openvino_int8": _openvino("ours_openvino_int8", "hf_xtc's OpenVINO int8", ours=True),
    "ours_openvino_2bit": _openvino("ours_openvino_2bit", "hf_xtc's OpenVINO 2-bit", ours=True),
}
# The model that a student was reduced from; it runs beside the student (`models.TEACHERS`).
TEACHER = "teacher"
RUNTIMES[TEACHER] = _torch("torch", "its teacher, torch fp32")
# Other runtimes that quantize the same float model.
PEERS = ("torch_int8", "torchao_int8", "ort_int8", "ort_4bit", "ort_2bit", "openvino_int8", "openvino_4bit")
