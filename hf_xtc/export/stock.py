"""Writes a packed model as a stock model of transformers: decoded weights in float16, in the family's own classes.

For tools that know model types by name. The decoded values of binary and ternary weights with float16 scales are
float16 numbers, so they are exact; int4 and int8 values and what a file keeps in float32 or bfloat16 are rounded.
Activations are not quantized.
"""

from pathlib import Path
from typing import Any

import torch
import transformers

from hf_xtc.compression.convert import unpack_model
from hf_xtc.errors import XTCError
from hf_xtc.export.graph import Interface, sentence_settings
from hf_xtc.export.verify import Batch, Outputs, with_vectors
from hf_xtc.files.sentence_files import read_sentence_settings, write_sentence_files
from hf_xtc.modeling.base import XTCConfig

FILE = "model.safetensors"
# Heads whose outputs `verify.Agreement` does not know how to compare.
UNVERIFIED = ("ForMultipleChoice", "ElectraForPreTraining")


def plain_config(config: Any) -> Any:
    """The model's configuration as its teacher's plain one, so that the exported folder loads without this package."""
    values = config.to_dict()
    for key in ("state", "xtc", "model_type", "transformers_version", "architectures", "auto_map", "dtype"):
        values.pop(key, None)
    names = [name.removeprefix("XTC") for name in config.architectures or []]
    plain = next(base for base in type(config).__bases__ if base is not XTCConfig)
    return plain(**values, architectures=names)


def save_plain_config(model: Any, folder: Path) -> None:
    """Writes the `config.json` of a model's stock form into a folder."""
    config = plain_config(model.config)
    config.architectures = [type(model).__name__.removeprefix("XTC")]
    config.save_pretrained(folder)


def _stock_class(model: Any) -> Any:
    """The class of transformers that a model is the compressed form of; `None` for one of another package."""
    return getattr(transformers, type(model).__name__.removeprefix("XTC"), None)


def check(model: Any, weights: str) -> None:
    """Checks that there is a stock form of a model.

    Raises:
        XTCError: if its class is not one of transformers, or its head is one of `UNVERIFIED`.
    """
    name = type(model).__name__
    if _stock_class(model) is None:
        raise XTCError(
            f"{name} cannot be exported as a stock model, since transformers has no class of that name without XTC. "
            "Only families of transformers can."
        )
    if name.endswith(UNVERIFIED):
        raise XTCError(f"{name} cannot be exported: there is no way here to verify the result. Other heads can be.")


def write(model: Any, interface: Interface, folder: Path, weights: str) -> list[Path]:
    """Writes `model.safetensors`, `config.json` and the files of a sentence embedder into a folder.

    Returns:
        The files of the weights.

    Raises:
        XTCError: if a decoded value is beyond float16.
    """
    stock = _stock_class(model)(plain_config(model.config))
    state_dict = unpack_model(model).state_dict()
    stock.load_state_dict({key: value for key, value in state_dict.items() if not key.endswith("activation.range")})
    stock.tie_weights()
    stock.half()
    for name, parameter in stock.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise XTCError(f"{name} holds values beyond float16, so there is no stock form of the model in float16.")
    stock.save_pretrained(folder, max_shard_size="100GB")
    if (settings := sentence_settings(model)) is not None:
        write_sentence_files(folder, settings, model.config.hidden_size)
    return [folder / FILE]


class Runner:
    """The written folder in transformers, as a user loads it, computed in float32 on the CPU."""

    def __init__(self, path: Path):
        name = transformers.AutoConfig.from_pretrained(path.parent).architectures[0]
        self.model = getattr(transformers, name).from_pretrained(path.parent, dtype=torch.float32).eval()
        self.settings = read_sentence_settings(path.parent)

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Outputs:
        return with_vectors(self.model(**batch, return_dict=True), batch, self.settings)
