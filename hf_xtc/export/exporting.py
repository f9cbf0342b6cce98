"""Writes a packed model for ONNX Runtime or OpenVINO, and checks the written file.

The graphs are written node by node from the modules of the model; a tracer would fold the codes back into float
weights. The packages of a runtime are imported only when its format is used.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from hf_xtc.checks import check_choice
from hf_xtc.compression.convert import is_packed
from hf_xtc.errors import StateError, XTCError, needs_extra
from hf_xtc.export.graph import check_served, interface_of
from hf_xtc.export.verify import CLOSE, EXACT, Agreement, Batch, compare, random_batches
from hf_xtc.files.writing import whole_folder

# Format -> the packages it needs; the extra of the same name installs them.
FORMATS = {"onnx": ("onnx", "onnxruntime"), "openvino": ("openvino",)}
WEIGHTS = ("int8", "2bit")
# The defaults are exact; OpenVINO computes 2-bit codes as fast as bytes.
DEFAULT_WEIGHTS = {"onnx": "int8", "openvino": "2bit"}


@dataclass(frozen=True)
class Exported:
    """A written export: the file to load, the bytes of all files, and how it agrees with the model.

    `noise` is how the model agrees with a copy whose LayerNorm weights are changed by one part in 100,000. Both are
    `None` of a page that was not checked, for want of Node.js.
    """

    path: Path
    bytes: int
    agreement: Agreement | None
    noise: Agreement | None


def export_model(
    model: Any,
    folder: str | os.PathLike[str],
    *,
    format: str = "onnx",
    weights: str | None = None,
    token_types: bool = True,
    batches: Iterable[Batch] | None = None,
) -> Path:
    """Writes a packed model for another runtime, and checks that the file computes what the model computes.

    The inputs are `input_ids`, `attention_mask` and, where the model tells token types apart, `token_type_ids`, all
    `int64` of any batch size and length. The outputs have the names and shapes of transformers, in float32. A sentence
    embedder has one more, `sentence_embedding`, `(batch, hidden)`: pooled and normalized as `config.xtc` says.

    | format   | weights | codes of linears        | agreement          |
    |----------|---------|-------------------------|--------------------|
    | onnx     | int8    | int8, `MatMulInteger`   | up to rounding     |
    | onnx     | 2bit    | 2 bits, `MatMulNBits`   | to about 1 percent |
    | openvino | int8    | i8                      | up to rounding     |
    | openvino | 2bit    | u1, u2, u4, as they fit | up to rounding     |

    Embedding rows stay packed in all of them.

    Args:
        model (`PreTrainedModel`): A packed model of a family that the native encoder runs: the bare encoder, or one
            with a head for sequence classification, token classification, question answering, masked language
            modelling or next sentences. Not changed.
        folder (`str` or `os.PathLike`): Where to write `model.onnx`, or `openvino_model.xml` and `.bin`.
        format (`str`): "onnx" or "openvino".
        weights (`str`, *optional*): "int8" or "2bit"; by default the exact one: "int8" for ONNX, "2bit" for OpenVINO.
        token_types (`bool`): Whether the graph reads `token_type_ids`, if the model tells more than one type: `False`
            for a tokenizer that gives none. All tokens are then of the first type.
        batches (*optional*): Rows to verify on, as padded batches of the inputs; by default 64 of random tokens.

    Returns:
        `Path`: the file to load.

    Raises:
        StateError: if the model is latent, or the file cannot be written.
        RecipeError: if the format or the weights do not exist.
        XTCError: if a package is missing (the message says how to install it), the model cannot be exported in this
            form, or the file disagrees with the model; nothing is left in the folder then.
    """
    check_export(model, format, weights)
    with whole_folder(folder) as scratch:
        options: dict[str, Any] = {"weights": weights, "token_types": token_types, "batches": batches}
        exported = write_verified(model, scratch, format=format, **options)
    return Path(folder) / exported.path.name


def check_export(model: Any, format: str, weights: str | None) -> None:
    """Checks, before anything is written, that a model can be exported; raises what `export_model` raises."""
    check_choice("format", format, tuple(FORMATS))
    if weights is not None:
        check_choice("weights", weights, WEIGHTS)
    if not is_packed(model):
        raise StateError(
            f"{type(model).__name__} is not packed; only packed models are exported. Call pack_model first."
        )
    check_served(model)
    _runtime(format).check(model, weights or DEFAULT_WEIGHTS[format])


def _runtime(format: str) -> Any:
    """The module that writes and runs a format."""
    with needs_extra(format):
        for package in FORMATS[format]:
            import_module(package)
    return import_module(f"hf_xtc.export.{format}")


def write_verified(
    model: Any,
    folder: Path,
    *,
    format: str,
    weights: str | None,
    token_types: bool,
    batches: Iterable[Batch] | None,
) -> Exported:
    """Writes the files of an export into a folder, and compares them with the model.

    Raises:
        XTCError: if the runtime cannot run the file, or it disagrees with the model.
    """
    runtime, weights = _runtime(format), weights or DEFAULT_WEIGHTS[format]
    interface = interface_of(model, token_types)
    files = runtime.write(model, interface, folder, weights)
    tolerance = CLOSE if (format, weights) == ("onnx", "2bit") else EXACT
    try:
        runner = runtime.Runner(files[0])
        rows = random_batches(model.config, interface) if batches is None else batches
        agreement, noise = compare(model, runner, rows)
    except (XTCError, OSError):
        raise
    except Exception as error:  # the runtimes raise many types, with the same meaning here
        raise XTCError(f"{files[0].name} was written, but {FORMATS[format][-1]} cannot run it: {error}") from error
    if not agreement.within(tolerance, noise):
        raise XTCError(
            f"{files[0].name} ({weights}) disagrees with its model: {agreement}. The model's own noise: {noise}. "
            f"The tolerance is {tolerance}. The file was removed. Export with other weights or to another format, and "
            f"report this with your version of {FORMATS[format][-1]}."
        )
    return Exported(files[0], sum(file.stat().st_size for file in files), agreement, noise)
