"""The files of every runtime, written once per model into a work folder and taken from there afterwards.

Peers get what their own tools make of the float model:
- ONNX Runtime fp32 and OpenVINO fp32: `torch.onnx.export` (the exporter that needs no further package).
- ONNX Runtime int8: the same with eager attention, whose pattern ORT's own transformers optimizer fuses, then
  `quantize_dynamic` with its defaults; faster than quantizing the plain graph.
- ONNX Runtime 4-bit and 2-bit: the same graph with `MultiHeadAttention`, which leaves query, key and value as products
  of their own, then `MatMulNBitsQuantizer`: symmetric, blocks of 64, `accuracy_level=4` (8-bit activations). It leaves
  every `Gemm`, so pooler and head stay float.
- OpenVINO int8: `quantize_static`, QDQ, on the plain graph, calibrated on random batches, then converted.
- OpenVINO 4-bit: NNCF's `compress_weights` of the plain graph, asymmetric, groups of 128, all layers; activations are
  quantized by OpenVINO as its default says.
- torch dynamic int8: `quantize_dynamic` on every `nn.Linear`.
- torchao dynamic int8: made of the float file when it is loaded; its layers are compiled by `torch.compile`.
"""

import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from latency.models import build, vocab_size
from latency.shapes import CHECK, Batch, make_batches

CHECK_SEED = 17


class Writer:
    """Writes the files of one model; `write(kind)` is a folder's path."""

    def __init__(self, folder: Path, model_name: str, seed: int):
        self.folder = folder / f"{model_name}-seed{seed}"
        self.model_name, self.seed = model_name, seed
        self.folder.mkdir(parents=True, exist_ok=True)

    def write(self, kind: str) -> Path:
        """The folder of that kind of file, written unless it is there."""
        target = self.folder / kind
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=self.folder) as made:
                KINDS[kind](self, Path(made) / kind)
                os.replace(Path(made) / kind, target)
        return target

    def model(self) -> Any:
        """The float model."""
        return build(self.model_name, self.seed)

    def packed(self, files: str = "ours") -> Any:
        """Our packed model of the same depth, loaded as a user loads it."""
        from hf_xtc import XTCBertForSequenceClassification

        return XTCBertForSequenceClassification.from_pretrained(self.write(files)).eval()

    def batches(self, shape: list[list[int]], seed: int) -> list[Batch]:
        """Random batches in the model's vocabulary."""
        return make_batches(shape, vocab_size(self.model_name), seed)

    def expected(self, ours: bool, files: str = "ours") -> list[list[float]]:
        """Logits of the float model, or of a packed one by the reference backend, on the batch of `CHECK`."""
        path = self.folder / f"expected_{files if ours else 'peers'}.json"
        if not path.exists():
            model = use_backend(self.packed(files), "reference") if ours else self.model()
            path.write_text(json.dumps(torch_logits(model, self.batches(CHECK, CHECK_SEED)[0]).tolist()))
        return json.loads(path.read_text())


def use_backend(model: Any, name: str) -> Any:
    """The packed model, its linears multiplying by that backend."""
    model.set_backend(name)
    return model


def torch_logits(model: Any, batch: Batch) -> Any:
    """A torch model's logits as a float32 array."""
    import torch

    with torch.inference_mode():
        return model(**{name: torch.from_numpy(values) for name, values in batch.items()}).logits.float().numpy()


def _torch(writer: Writer, folder: Path) -> None:
    writer.model().save_pretrained(folder)


def _torch_bf16(writer: Writer, folder: Path) -> None:
    import torch

    writer.model().to(torch.bfloat16).save_pretrained(folder)


@contextmanager
def deprecations_ignored() -> Iterator[None]:
    """Without torch's notices that its own int8 (and how it stores that) will give way to torchao's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.ao.quantization is deprecated", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=r"torch\.quantize_per_tensor.*are deprecated", category=UserWarning)
        warnings.filterwarnings("ignore", message="TypedStorage is deprecated", category=UserWarning)
        yield


def quantize_torch(model: Any) -> Any:
    """torch's dynamic int8 of every `nn.Linear`."""
    import torch

    with deprecations_ignored():
        return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)


def _torch_int8(writer: Writer, folder: Path) -> None:
    import torch

    folder.mkdir()
    model = writer.model()
    model.config.save_pretrained(folder)
    with deprecations_ignored():
        torch.save(quantize_torch(model).state_dict(), folder / "model.pt")


def export_onnx(model: Any, batch: Batch, file: Path, attention: str) -> None:
    """Writes the graph of a model's first output, traced on a batch of its inputs."""
    import torch

    with as_function(model, batch, attention) as first, warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # of the older exporter, of tracing: the outputs are checked afterwards
        inputs = tuple(torch.from_numpy(values) for values in batch.values())
        axes = {0: "rows", 1: "tokens"}
        torch.onnx.export(
            first,
            inputs,
            str(file),
            input_names=list(batch),
            output_names=["logits"],
            dynamic_axes={**dict.fromkeys(batch, axes), "logits": axes if first(*inputs).dim() == 3 else {0: "rows"}},
            opset_version=17,
            dynamo=False,
        )


@contextmanager
def as_function(model: Any, names: Iterable[str], attention: str) -> Iterator[Any]:
    """A module of positional inputs with these names that gives a model's first output, with that attention."""
    import torch

    class First(torch.nn.Module):
        """What is exported."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self.model(**dict(zip(names, inputs, strict=True)))[0]
            return output

    before = model.config._attn_implementation
    model.set_attn_implementation(attention)
    try:
        # A new module is in training mode, and the exporter gives the model inside the mode that it found outside.
        yield First().eval()
    finally:
        model.set_attn_implementation(before)


def _onnx(writer: Writer, folder: Path, attention: str = "sdpa") -> None:
    folder.mkdir()
    export_onnx(writer.model(), writer.batches([[16, 11]], writer.seed)[0], folder / "model.onnx", attention)


@contextmanager
def _scratch(writer: Writer) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=writer.folder) as folder:
        yield Path(folder)


def fused(file: Path, config: Any, *, separate_products: bool = False) -> Any:
    """A graph, exported with eager attention, as ORT's transformers optimizer fuses it.

    Query, key and value are products of their own if asked.
    """
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    options = FusionOptions("bert")
    options.use_multi_head_attention = separate_products
    heads, width = config.num_attention_heads, config.hidden_size
    return optimize_model(str(file), "bert", num_heads=heads, hidden_size=width, optimization_options=options)


def quantize_onnx(model: Any, file: Path, *, per_channel: bool = False) -> None:
    """Writes ORT's dynamic int8 of a fused graph."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
        model.save_model_to_file(str(Path(scratch) / "fused.onnx"))
        # Shape inference stops at the fused nodes, so the type of what follows them has to be said.
        types = {"DefaultTensorType": onnx.TensorProto.FLOAT}
        quantize_dynamic(Path(scratch) / "fused.onnx", file, per_channel=per_channel, extra_options=types)


def _fused(writer: Writer, scratch: Path, *, separate_products: bool = False) -> Any:
    _onnx(writer, scratch / "eager", attention="eager")
    return fused(scratch / "eager/model.onnx", writer.model().config, separate_products=separate_products)


def _onnx_int8(writer: Writer, folder: Path) -> None:
    folder.mkdir()
    with _scratch(writer) as scratch:
        quantize_onnx(_fused(writer, scratch), folder / "model.onnx")


def _onnx_nbits(bits: int) -> Callable[[Writer, Path], None]:
    def write(writer: Writer, folder: Path) -> None:
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        folder.mkdir()
        with _scratch(writer) as scratch:
            model = _fused(writer, scratch, separate_products=True).model
            quantizer = MatMulNBitsQuantizer(model, bits=bits, block_size=64, is_symmetric=True, accuracy_level=4)
            quantizer.process()
            quantizer.model.save_model_to_file(str(folder / "model.onnx"))

    return write


def _openvino_4bit(writer: Writer, folder: Path) -> None:
    os.environ.setdefault("NNCF_CI", "1")  # it sends no usage data then
    import nncf
    import openvino

    folder.mkdir()
    model = openvino.convert_model(writer.write("onnx") / "model.onnx")
    mode = nncf.CompressWeightsMode.INT4_ASYM
    compressed = nncf.compress_weights(model, mode=mode, group_size=128, ratio=1.0, all_layers=True)
    openvino.save_model(compressed, folder / "model.xml", compress_to_fp16=False)


def _openvino(writer: Writer, folder: Path) -> None:
    _convert(writer.write("onnx") / "model.onnx", folder)


def _convert(onnx_file: Path, folder: Path) -> None:
    import openvino

    folder.mkdir()
    openvino.save_model(openvino.convert_model(onnx_file), folder / "model.xml", compress_to_fp16=False)


def quantize_openvino(onnx_file: Path, folder: Path, batches: Iterable[Batch]) -> None:
    """Writes OpenVINO's model of a plain graph in int8 (QDQ), calibrated on batches of its inputs."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    left = iter(batches)

    class Batches:
        """What `quantize_static` asks for its calibration."""

        def get_next(self) -> Batch | None:
            return next(left, None)

    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        quantize_static(
            onnx_file,
            Path(scratch) / "model.onnx",
            Batches(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        _convert(Path(scratch) / "model.onnx", folder)


def _openvino_int8(writer: Writer, folder: Path) -> None:
    batches = writer.batches([[64] * 4] * 4, writer.seed)
    quantize_openvino(writer.write("onnx") / "model.onnx", folder, batches)


def _ours(weights: str) -> Callable[[Writer, Path], None]:
    def write(writer: Writer, folder: Path) -> None:
        from hf_xtc import XTCRecipe, compress, pack_model

        pack_model(compress(writer.model(), XTCRecipe(weights=weights))).save_pretrained(folder)

    return write


def _export(runtime: str, weights: str) -> Callable[[Writer, Path], None]:
    def write(writer: Writer, folder: Path) -> None:
        from hf_xtc.export.exporting import export_model

        export_model(writer.packed(), folder, format=runtime, weights=weights)

    return write


KINDS: dict[str, Callable[[Writer, Path], None]] = {
    "torch": _torch,
    "torch_bf16": _torch_bf16,
    "torch_int8": _torch_int8,
    "onnx": _onnx,
    "onnx_int8": _onnx_int8,
    "onnx_4bit": _onnx_nbits(4),
    "onnx_2bit": _onnx_nbits(2),
    "openvino": _openvino,
    "openvino_int8": _openvino_int8,
    "openvino_4bit": _openvino_4bit,
    "ours": _ours("binary"),
    "ours_ternary": _ours("ternary"),
    **{f"ours_{to}_{bits}": _export(to, bits) for to in ("onnx", "openvino") for bits in ("int8", "2bit")},
}


def file_bytes(folder: Path) -> int:
    """Bytes of all files of a folder but the code that a packed one carries."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.suffix != ".py")
