"""Writes a packed model for another runtime, and checks what was written.

Graphs are written node by node from the modules of the model; a tracer would fold the codes back into float weights.
The packages of a runtime are imported only when its format is used.
"""

import copy
import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from hf_xtc.checks import check_choice
from hf_xtc.compression.convert import is_packed
from hf_xtc.errors import RecipeError, StateError, XTCError, needs_extra
from hf_xtc.export.graph import TYPES, Interface, check_served, interface_of, sentence_settings
from hf_xtc.export.verify import (
    CLOSE,
    EXACT,
    ROUNDED,
    Agreement,
    Batch,
    Tolerance,
    compare,
    random_batches,
    with_float_inputs,
)
from hf_xtc.files.writing import whole_folder


class Format(NamedTuple):
    """A format: the module of this folder that writes and runs it, and what it needs.

    Args:
        module (`str`): Has `check`, `write` and `Runner`, as `onnx.py` has them.
        weights (`dict[str, Tolerance]`): The ways to store weights, the default first, and how far each may differ.
        extra (`str`, *optional*): The extra of this package that installs `packages`.
        packages (`tuple[str, ...]`): What the module imports; the last runs the file.
        is_graph (`bool`): Whether the file holds a graph, with quantized activations; else it holds weights alone.
    """

    module: str
    weights: dict[str, Tolerance]
    extra: str | None
    packages: tuple[str, ...]
    is_graph: bool = True


_ONNX = ("onnx", ("onnx", "onnxruntime"))
FORMATS = {
    "onnx": Format("onnx", {"int8": EXACT, "2bit": CLOSE, "packed": EXACT}, *_ONNX),
    "openvino": Format("openvino", {"2bit": EXACT, "int8": EXACT}, "openvino", ("openvino",)),
    "transformers.js": Format("transformers_js", {"packed": EXACT, "int8": EXACT, "2bit": CLOSE}, *_ONNX),
    "transformers": Format("stock", {"float16": ROUNDED}, None, ("transformers",), is_graph=False),
}


@dataclass(frozen=True)
class Exported:
    """A written export: the file to load, the bytes of its weights, and how it agrees with the model.

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
    tokenizer: Any = None,
    batches: Iterable[Batch] | None = None,
) -> Path:
    """Writes a packed model for another runtime, and checks that the files compute what the model computes.

    The graphs' inputs are `input_ids`, `attention_mask` and, where the model and the tokenizer tell token types apart,
    `token_type_ids`, all `int64` of any batch size and length. The outputs have the names and shapes of transformers,
    in float32. A sentence embedder has one more, `sentence_embedding`, `(batch, hidden)`: pooled and normalized as
    `config.xtc` says.

    | format          | weights | stored weights of linears                   | agreement          |
    |-----------------|---------|---------------------------------------------|--------------------|
    | onnx            | int8    | int8, `MatMulInteger`                       | up to rounding     |
    | onnx            | packed  | as in the packed file, unpacked when loaded | up to rounding     |
    | onnx            | 2bit    | 2 bits, `MatMulNBits`                       | to about 1 percent |
    | openvino        | int8    | i8                                          | up to rounding     |
    | openvino        | 2bit    | u1, u2, u4, as they fit                     | up to rounding     |
    | transformers.js | as onnx | as onnx; packed by default                  | as onnx            |
    | transformers    | float16 | decoded, float16; inputs not quantized      | see below          |

    Embedding rows stay packed in all of them but the last, which is a stock model of transformers in the classes and
    names of the family's own: any tool that knows the family reads it. Its weights are the packed model's, rounded to
    float16; its activations are not quantized. So it is checked against the packed model without quantized
    activations, and the agreement that `hf-xtc export` prints is with the packed model itself.

    Args:
        model (`PreTrainedModel`): A packed model, not changed. For the graphs, of a family that the native encoder
            runs: the bare encoder, or one with a head for sequence classification, token classification, question
            answering, masked language modelling or next sentences.
        folder (`str` or `os.PathLike`): Where to write `model.onnx`; `openvino_model.xml` and `.bin`;
            `onnx/model_quantized.onnx` (packed), `onnx/model_int8.onnx` or `onnx/model_q2.onnx` for transformers.js;
            `model.safetensors`; beside it `config.json`, of a stock model type.
        format (`str`): "onnx", "openvino", "transformers.js" or "transformers".
        weights (`str`, *optional*): One of the format's; by default "int8" for ONNX, "2bit" for OpenVINO, "packed" for
            transformers.js, "float16" for transformers.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Written beside the model, set to give what the graph reads
            and no more tokens than it takes; not changed. The graph reads no token types where it gives none.
        batches (*optional*): Rows to verify on, as padded batches of the inputs; by default 64 of random tokens.

    Returns:
        `Path`: the file to load.

    Raises:
        StateError: if the model is latent, or the file cannot be written.
        RecipeError: if the format, or the weights for it, do not exist.
        XTCError: if a package is missing (the message says how to install it), the model cannot be exported in this
            form, or the file disagrees with the model; nothing is left in the folder then.
    """
    check_export(model, format, weights)
    with whole_folder(folder) as scratch:
        fitted = fitting_tokenizer(model, tokenizer, format)
        exported = write_verified(model, scratch, format=format, weights=weights, tokenizer=fitted, batches=batches)
    return Path(folder) / exported.path.relative_to(scratch)


def check_export(model: Any, format: str, weights: str | None) -> None:
    """Checks, before anything is written, that a model can be exported; raises what `export_model` raises."""
    check_choice("format", format, tuple(FORMATS))
    if weights is not None and weights not in FORMATS[format].weights:
        known = ", ".join(FORMATS[format].weights)
        raise RecipeError(f"The format {format} has no weights {weights!r}. Use one of: {known}.")
    if not is_packed(model):
        raise StateError(
            f"{type(model).__name__} is not packed; only packed models are exported. Call pack_model first."
        )
    if FORMATS[format].is_graph:
        check_served(model)
    _writer(format).check(model, weights or default_weights(format))


def default_weights(format: str) -> str:
    """How a format stores weights where nothing else is asked for."""
    return next(iter(FORMATS[format].weights))


def _writer(format: str) -> Any:
    """The module that writes and runs a format."""
    found = FORMATS[format]
    if found.extra is not None:
        with needs_extra(found.extra):
            for package in found.packages:
                import_module(package)
    return import_module(f"hf_xtc.export.{found.module}")


def fitting_tokenizer(model: Any, tokenizer: Any, format: str) -> Any:
    """A copy of a tokenizer that gives what the graph of a model reads, and no more tokens than it takes.

    Returns:
        The tokenizer itself for a format without a graph; `None` without a tokenizer.
    """
    if tokenizer is None or not FORMATS[format].is_graph:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    interface = _interface(model, tokenizer)
    settings = sentence_settings(model)
    limits = [tokenizer.model_max_length, interface.longest, settings.max_length if settings is not None else None]
    fields = {
        "model_input_names": list(interface.inputs),
        "model_max_length": min(limit for limit in limits if limit is not None),
    }
    for name, value in fields.items():
        setattr(tokenizer, name, value)
        tokenizer.init_kwargs[name] = value  # what is saved
    return tokenizer


def _interface(model: Any, tokenizer: Any) -> Interface:
    return interface_of(model, tokenizer is None or TYPES in tokenizer.model_input_names)


def write_verified(
    model: Any,
    folder: Path,
    *,
    format: str,
    weights: str | None,
    tokenizer: Any,
    batches: Iterable[Batch] | None,
) -> Exported:
    """Writes the files of an export into a folder, and compares them with the model.

    Raises:
        XTCError: if the runtime cannot run the file, or it disagrees with the model.
    """
    found, writer, weights = FORMATS[format], _writer(format), weights or default_weights(format)
    interface, tolerance, runtime = _interface(model, tokenizer), found.weights[weights], found.packages[-1]
    files = writer.write(model, interface, folder, weights)
    reference = model if found.is_graph else with_float_inputs(model)
    try:
        runner = writer.Runner(files[0])
        rows = list(random_batches(model.config, interface) if batches is None else batches)
        agreement, noise = compare(reference, runner, rows)
    except (XTCError, OSError):
        raise
    except Exception as error:  # the runtimes raise many types, with the same meaning here
        raise XTCError(f"{files[0].name} was written, but {runtime} cannot run it: {error}") from error
    if not agreement.within(tolerance, noise):
        raise XTCError(
            f"{files[0].name} ({weights}) disagrees with its model: {agreement}. The model's own noise: {noise}. "
            f"The tolerance is {tolerance}. The file was removed. Export with other weights or to another format, and "
            f"report this with your version of {runtime}."
        )
    if not found.is_graph:
        agreement, noise = compare(model, runner, rows)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return Exported(files[0], sum(file.stat().st_size for file in files), agreement, noise)
