"""The byte ledger: the size of every part of a packed file, computed before any training.

Built from the packed model on the meta device, so that it names and counts exactly the tensors the file will hold.
"""

import json
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from hf_xtc.modeling.architecture import Architecture, architecture_of, xtc_block
from hf_xtc.recipe.xtc_recipe import XTCRecipe

# Scope of the recipe -> part of the ledger, where it is not the scope's own name.
PARTS = {"attention": "encoder", "feed_forward": "encoder"}


class _Stored(NamedTuple):
    """The name of a dtype in the header of safetensors, and its place in the file: wider ones come first."""

    name: str
    rank: int


_STORED = {
    "float32": _Stored("F32", 0),
    "bfloat16": _Stored("BF16", 1),
    "float16": _Stored("F16", 2),
    "int8": _Stored("I8", 3),
    "uint8": _Stored("U8", 4),
}


@dataclass(frozen=True)
class LedgerEntry:
    """One tensor of the file: its name, the part of the model it belongs to, dtype, shape and bytes."""

    name: str
    part: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def numel(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Ledger:
    """All tensors of a packed file, and the bytes of the same model in float32.

    `total_bytes` is the file's size less its header (a few kB of JSON: `8 + header length`), `file_bytes` all of it.
    """

    entries: tuple[LedgerEntry, ...]
    float32_bytes: int

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.bytes for entry in self.entries)

    @property
    def file_bytes(self) -> int:
        """Bytes of the file: the tensors and the header that safetensors writes for them."""
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for entry in sorted(self.entries, key=lambda entry: (_STORED[entry.dtype].rank, entry.name)):
            offsets = [offset, offset + entry.bytes]
            header[entry.name] = {
                "dtype": _STORED[entry.dtype].name,
                "shape": list(entry.shape),
                "data_offsets": offsets,
            }
            offset = offsets[1]
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        return 8 + -(-len(text) // 8) * 8 + offset  # a length, the text padded to a multiple of 8, the tensors

    @property
    def parts(self) -> dict[str, int]:
        """Bytes of each part, largest first."""
        sums: dict[str, int] = {}
        for entry in self.entries:
            sums[entry.part] = sums.get(entry.part, 0) + entry.bytes
        return dict(sorted(sums.items(), key=lambda item: -item[1]))

    def to_dict(self) -> dict[str, Any]:
        """The ledger as a JSON object: parts, total and float32 bytes."""
        return {"parts": self.parts, "total_bytes": self.total_bytes, "float32_bytes": self.float32_bytes}

    def __str__(self) -> str:
        width = max(map(len, (*self.parts, "total")))
        rows = [f"{part:<{width}} {size:>12,} B {size / self.total_bytes:>6.1%}" for part, size in self.parts.items()]
        ratio = self.float32_bytes / self.total_bytes
        rows.append(f"{'total':<{width}} {self.total_bytes:>12,} B, {ratio:.1f} times smaller than in float32")
        return "\n".join(rows)


def ledger(
    config: Any, recipe: XTCRecipe | None = None, *, model_class: type[PreTrainedModel] | None = None
) -> Ledger:
    """The ledger of the packed file of a teacher or student with this `config`.

    Args:
        config (`PreTrainedConfig`): Of a teacher (to be compressed by `recipe`) or of an XTC model.
        recipe (`XTCRecipe`, *optional*): How to compress a teacher; by default the default recipe, or the XTC model's.
        model_class (`type`, *optional*): XTC class; by default the one in `config.architectures`, else the sequence
            classifier.

    Raises:
        XTCError: if the architecture is unknown.
        RecipeError: if the recipe's layers do not fit the teacher.

    Example:
        >>> from transformers import BertConfig
        >>> ledger(BertConfig(), XTCRecipe(keep_layers=5)).total_bytes < 8.1e6
        True
    """
    architecture = architecture_of(config)
    if model_class is None:
        name = (config.architectures or ["BertForSequenceClassification"])[0].removeprefix("XTC")
        model_class = architecture.model_classes.get(name) or next(
            cls for key, cls in architecture.model_classes.items() if key.endswith("ForSequenceClassification")
        )
    values = {key: value for key, value in config.to_dict().items() if key not in ("model_type", "dtype")}
    if recipe is not None or values.get("xtc") is None:
        recipe = XTCRecipe() if recipe is None else recipe
        layer_map = recipe.layer_map(config.num_hidden_layers)
        architecture.cut(values, layer_map)
        values.update(xtc=xtc_block(recipe, layer_map))
    packed_config = architecture.config_class(**{**values, "state": "packed"})
    with torch.device("meta"):
        packed = model_class(packed_config)
        latent = model_class(architecture.config_class(**{**values, "state": "latent"}))
    float32_bytes = sum(4 * parameter.numel() for parameter in latent.parameters())
    return Ledger(
        tuple(_entries(packed, architecture, getattr(torch, packed_config.recipe.rest_dtype))), float32_bytes
    )


def _entries(model: PreTrainedModel, architecture: Architecture, rest_dtype: torch.dtype) -> list[LedgerEntry]:
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    entries = []
    for name, tensor in model.state_dict().items():
        if name not in model.all_tied_weights_keys:
            dtype = rest_dtype if name in parameters else tensor.dtype
            size = tensor.numel() * dtype.itemsize
            part = _part(architecture, name.removeprefix(prefix), tensor.dim(), is_head=not name.startswith(prefix))
            entries.append(LedgerEntry(name, part, str(dtype).removeprefix("torch."), tuple(tensor.shape), size))
    return entries


def _part(architecture: Architecture, name: str, dimensions: int, *, is_head: bool) -> str:
    path, _, tensor = name.rpartition(".")
    path = path.removesuffix(".activation")
    what = {"weight_packed": "codes", "weight_scale": "scales", "weight": "float", "range": "ranges"}.get(tensor)
    scope = architecture.head_scope_of(path) if is_head else architecture.scope_of(path)
    if scope is None and not is_head and dimensions > 1:  # a table that no recipe quantizes
        scope = "position_embeddings"
    if scope is None or what is None:
        return "head" if is_head else "biases and LayerNorm"
    if scope == "position_embeddings":  # of positions, distances or token types
        scope = path.rpartition(".")[2]
    return f"{PARTS.get(scope, scope.replace('_', ' '))} {what}"
