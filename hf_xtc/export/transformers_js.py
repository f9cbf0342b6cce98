"""Writes the folder that transformers.js loads: the ONNX graph under the name it looks for, and a stock `config.json`.

`config.json` says which of its dtypes the file is (`transformers.js_config`), so that pipelines need no option.
"""

from pathlib import Path
from typing import Any

from hf_xtc.errors import XTCError
from hf_xtc.export import onnx
from hf_xtc.export.graph import Interface
from hf_xtc.export.stock import plain_config, save_plain_config
from hf_xtc.files.safe_json import read_json
from hf_xtc.files.writing import write_json

SUBFOLDER = "onnx"
# Weights -> the dtype of transformers.js, and the file that it loads for it.
DTYPES = {
    "packed": ("q8", "model_quantized.onnx"),
    "int8": ("int8", "model_int8.onnx"),
    "2bit": ("q2", "model_q2.onnx"),
}
# The model types of the families with graphs, and the heads, that transformers.js 4 has classes for.
MODEL_TYPES = ("bert", "camembert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta")
HEADS = ("Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMaskedLM")

Runner = onnx.Runner


def check(model: Any, weights: str) -> None:
    """Checks that transformers.js has a class for a model, and that it can be written with these weights.

    Raises:
        XTCError: if it has none; also as for ONNX.
    """
    name, model_type = type(model).__name__, plain_config(model.config).model_type
    if model_type not in MODEL_TYPES or not name.endswith(HEADS):
        raise XTCError(
            f"transformers.js has no class for {name} (model type {model_type!r}). It has those of the model types "
            f"{', '.join(MODEL_TYPES)} that end in {', '.join(HEADS)}. Export with format='onnx'."
        )
    onnx.check(model, weights)


def write(model: Any, interface: Interface, folder: Path, weights: str) -> list[Path]:
    """Writes `onnx/model_*.onnx` and `config.json` into a folder; returns the graph's file."""
    dtype, name = DTYPES[weights]
    (folder / SUBFOLDER).mkdir()
    onnx.save_graph(model, interface, folder / SUBFOLDER / name, weights)
    save_plain_config(model, folder)
    config = folder / "config.json"
    write_json(config, {**read_json(config), "transformers.js_config": {"dtype": dtype}})
    return [folder / SUBFOLDER / name]
