"""Reads packed encoders with numpy and safetensors alone: a second implementation of the file format, and its manual.

This file stands alone, without PyTorch, transformers or the rest of hf_xtc: copy it, or run it. `python reader.py
FOLDER` lists a folder's quantized tensors, `python reader.py FOLDER 101 2307 102` classifies token ids.
From bytes to logits:

1. `config.json` says `model_type: "xtc_bert"` (or another of `FAMILIES`), `state: "packed"`, the family's own sizes,
   and in `xtc` the `format_version` (1) and the `recipe`: how each part is quantized. `model.safetensors` (or its
   shards) holds the tensors.
2. A weight is `PATH.weight` in float or, quantized, `PATH.weight_packed` (bytes) and `PATH.weight_scale`.
3. Bytes to codes: each row of a weight is padded to whole bytes. A byte is a number in base `levels` (2, 3, 16
   or 256, by the quantizer), and its digits are codes, the lowest digit first (`unpack`).
4. Codes to weights: a code stands for a whole number, and that times a scale is the weight. A scale belongs to a whole
   tensor, a row, or a group of columns of a row: its shape says which (`decode`).
5. Inputs of quantized linears are rounded to 8 (or 4) bits, so that all products are of whole numbers (`on_levels`).
6. The rest is an ordinary encoder (`PackedEncoder`): BERT, or one that differs as `Family` says.
"""

import json
import math
import mmap
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
from numpy.typing import NDArray

Array = NDArray[Any]


class ReadError(ValueError):
    """A folder that holds no packed model of this format, or input that does not fit the model."""


class Codes(NamedTuple):
    """What a quantizer's codes are: `levels` of them, `per_byte` in a byte; code c stands for `first + step * c`."""

    levels: int
    per_byte: int
    first: int
    step: int


QUANTIZERS = {
    "binary": Codes(levels=2, per_byte=8, first=-1, step=2),  # -1, 1
    "ternary": Codes(levels=3, per_byte=5, first=-1, step=1),  # -1, 0, 1: 3**5 = 243 of 256 bytes are in use
    "int4": Codes(levels=16, per_byte=2, first=-8, step=1),
    "int8": Codes(levels=256, per_byte=1, first=-128, step=1),
}


class Family(NamedTuple):
    """What a family's files and arithmetic are.

    Args:
        prefix (`str`): Of the encoder's tensors in the file of a model with a head.
        layer (`str`): Path of the layers.
        linears (`tuple[str, ...]`): Query, key, value, attention's output, feed-forward in and out, under a layer.
        norms (`tuple[str, str]`): LayerNorms behind attention and feed-forward, under a layer.
        head (`tuple[str, str, str]`): A sequence classifier's first linear, on the first token, the activation behind
            it, and its last linear.
        tables (`tuple[str, ...]`): Embeddings; with a third, token types.
        padding (`str`, *optional*): Where positions are counted from a padding token's id on, the config's field of
            that id ("" for 1).
        biased (`bool`): Whether a bias for each distance of two tokens is added to the scores.
        names (`tuple[tuple[str, str], ...]`): Fields of a config: BERT's name and the family's.
    """

    prefix: str
    layer: str
    linears: tuple[str, ...]
    norms: tuple[str, str]
    head: tuple[str, str, str]
    tables: tuple[str, ...] = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    padding: str | None = None
    biased: bool = False
    names: tuple[tuple[str, str], ...] = ()


_SELF = tuple(f"attention.self.{name}" for name in ("query", "key", "value"))
_BERT = Family(
    "bert",
    "encoder.layer",
    (*_SELF, "attention.output.dense", "intermediate.dense", "output.dense"),
    ("attention.output.LayerNorm", "output.LayerNorm"),
    ("pooler.dense", "tanh", "classifier"),
)
_ROBERTA_HEAD = ("classifier.dense", "tanh", "classifier.out_proj")
_ROBERTA = _BERT._replace(prefix="roberta", head=_ROBERTA_HEAD, padding="pad_token_id")
FAMILIES = {
    "xtc_bert": _BERT,
    "xtc_roberta": _ROBERTA,
    "xtc_xlm_roberta": _ROBERTA,
    "xtc_camembert": _ROBERTA,
    "xtc_electra": _BERT._replace(prefix="electra", head=("classifier.dense", "gelu", "classifier.out_proj")),
    "xtc_mpnet": Family(
        "mpnet",
        "encoder.layer",
        (*(f"attention.attn.{name}" for name in "qkvo"), "intermediate.dense", "output.dense"),
        ("attention.LayerNorm", "output.LayerNorm"),
        _ROBERTA_HEAD,
        tables=_BERT.tables[:2],
        padding="",
        biased=True,
    ),
    "xtc_distilbert": Family(
        "distilbert",
        "transformer.layer",
        (*(f"attention.{name}_lin" for name in ("q", "k", "v", "out")), "ffn.lin1", "ffn.lin2"),
        ("sa_layer_norm", "output_layer_norm"),
        ("pre_classifier", "relu", "classifier"),
        tables=_BERT.tables[:2],
        names=(
            ("hidden_size", "dim"),
            ("intermediate_size", "hidden_dim"),
            ("num_attention_heads", "n_heads"),
            ("num_hidden_layers", "n_layers"),
            ("hidden_act", "activation"),
        ),
    ),
}
# Output layers of language models, which share the word embedding's rows.
TIED = ("decoder", "vocab_projector", "generator_lm_head")
BUCKETS, FARTHEST = 32, 128  # of distances of two tokens: MPNet's, whatever its config says
DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1"}
LARGEST = np.float32(2**18)  # limit of all magnitudes, so that no logit overflows
SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
RECIPE = ("activation_bits", "activation_calibration", "activation_symmetric")
# Endings of the names of classes with a linear on the hidden states of each token -> its path in the file.
TOKEN_HEADS = {"TokenClassification": "classifier", "QuestionAnswering": "qa_outputs"}
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: x * (1 + np.vectorize(math.erf, otypes=[x.dtype])(x / math.sqrt(2))) / 2,
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
}


def unpack(packed: Array, columns: int, codes: Codes) -> Array:
    """Bytes `(rows, ceil(columns / per_byte))` to codes `(rows, columns)`; the rest of the last byte is padding.

    Example:
        >>> unpack(np.array([[0b10110101]], dtype=np.uint8), 8, QUANTIZERS["binary"])
        array([[1, 0, 1, 0, 1, 1, 0, 1]], dtype=int16)
    """
    digits = packed[:, :, None] // codes.levels ** np.arange(codes.per_byte, dtype=np.int16) % codes.levels
    return digits.reshape(len(packed), -1)[:, :columns]


def decode(packed: Array, scale: Array, columns: int, codes: Codes) -> Array:
    """Bytes and scales to weights, float32 of shape `(rows, columns)`.

    `scale` is `(1, 1)` (per tensor), `(rows, 1)` (per row) or `(rows, n)` (per group of `columns / n` columns).
    """
    whole = codes.first + codes.step * unpack(packed, columns, codes)
    return whole.astype(np.float32) * scale.astype(np.float32).repeat(columns // scale.shape[1], axis=1)


def _nonzero(step: Array) -> Array:
    return np.where(step == 0, np.float32(1), step)


def on_levels(x: Array, recipe: dict[str, Any], seen: Array | None) -> Array:
    """Rounds the input `(..., features)` of a quantized linear to the nearest of `2**activation_bits` equal steps.

    `seen` is the lowest and highest value seen in training (`PATH.activation.range`; equal if there was none: `x` then
    stays in float, as without `activation_bits`); `None` takes them from each row of features.
    """
    bits = recipe["activation_bits"]
    if bits is None or (seen is not None and seen[0] == seen[1]):
        return x
    values = x.astype(np.float32)
    low, high = (values.min(-1, keepdims=True), values.max(-1, keepdims=True)) if seen is None else seen
    if recipe["activation_symmetric"]:
        half = 2 ** (bits - 1)
        step = np.maximum(abs(low), abs(high)) / np.float32(half)
        return np.asarray(np.clip(np.round(values / _nonzero(step)), -half, half - 1) * step, x.dtype)
    step = (high - low) / np.float32(2**bits)
    step = np.where(step == 0, _nonzero(abs(low)), step)
    zero = np.round(low / step) * step
    return np.asarray(np.clip(np.round((values - zero) / step), 0, 2**bits - 1) * step + zero, x.dtype)


def plain_file(folder: Path, name: str) -> bytes:
    """The bytes of a file; raises `OSError` if it is outside of the folder, not a regular file, or too large."""
    if Path(name).name != name or not (folder / name).is_file():
        raise OSError(f"{name} is not a regular file of the folder")
    if (folder / name).stat().st_size > 2**26:
        raise OSError(f"{name} is too large")
    return (folder / name).read_bytes()


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a folder; raises `ReadError` unless it is of a packed model that this reads.

    Fields that a family names otherwise are added under BERT's names.
    """
    try:
        config = dict(json.loads(plain_file(folder, "config.json")))
    except Exception as error:
        raise ReadError(f"{folder} holds no config.json that can be read ({error}). Give a model's folder.") from error
    kind, state = config.get("model_type"), config.get("state")
    if str(kind) not in FAMILIES or state != "packed":
        known = ", ".join(FAMILIES)
        raise ReadError(f"{folder} holds a {kind} model in state {state}; this reads packed models of: {known}.")
    family = FAMILIES[str(kind)]
    config.update({name: config.get(own) for name, own in family.names})
    if family.names:  # DistilBERT's are fixed
        config["layer_norm_eps"] = 1e-12
    xtc = config.get("xtc")
    version, recipe = (xtc.get("format_version"), xtc.get("recipe", {})) if isinstance(xtc, dict) else (None, {})
    if version != 1 or not isinstance(recipe, dict):
        raise ReadError(f"{folder} has format version {version}; this reads version 1. Use a newer reader.")
    sizes = (*SIZES, "embedding_size") if kind == "xtc_electra" else SIZES
    missing = [key for key in sizes if type(config.get(key)) is not int or not 0 < config[key] < 2**31]
    missing += [key for key in RECIPE if key not in recipe]
    if family.padding and type(config.get(family.padding)) is not int:
        missing.append(family.padding)
    if missing:
        raise ReadError(f"The config.json of {folder} lacks {', '.join(sorted(missing))}. Download it again.")
    heads, bits, eps = config["num_attention_heads"], recipe["activation_bits"], config.get("layer_norm_eps")
    if config["hidden_size"] % heads or bits not in (None, 4, 8) or type(eps) is not float or not 0 < eps < 1:
        raise ReadError(f"{folder} is invalid: {heads} heads, {bits} bits, layer_norm_eps={eps!r}. Download it again.")
    if config.get("hidden_act") not in ("gelu", "relu") or config.get("is_decoder"):
        raise ReadError(f"This reads encoders with gelu or relu, not with {config.get('hidden_act')}.")
    return config


def read_tensors(folder: Path) -> dict[str, Array]:
    """All tensors of `model.safetensors` or its shards by name; raises `ReadError` if one is missing or damaged."""
    index, names = folder / "model.safetensors.index.json", ["model.safetensors"]
    tensors = {}
    try:
        if index.exists():
            names = sorted(set(json.loads(plain_file(folder, index.name))["weight_map"].values()))
        for name in names:
            tensors.update(_mapped(folder, name))
    except Exception as error:
        raise ReadError(f"The weights in {folder} cannot be read ({error}). Download them again.") from error
    return tensors


def _mapped(folder: Path, name: str) -> dict[str, Array]:
    """The tensors of a file, which stay in it until they are used."""
    if Path(name).name != name or not (folder / name).is_file():
        raise OSError(f"{name} is not a regular file of the folder")
    safetensors.safe_open(folder / name, "np")  # raises if the header is invalid, or the size is not the header's
    with open(folder / name, "rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    start = 8 + int.from_bytes(content[:8], "little")
    entries = {key: entry for key, entry in json.loads(content[8:start]).items() if key != "__metadata__"}
    return {key: _array(content, start, entry) for key, entry in entries.items()}


def _array(content: mmap.mmap, start: int, entry: dict[str, Any]) -> Array:
    dtype, (first, last) = np.dtype(DTYPES[entry["dtype"]]), entry["data_offsets"]
    flat = np.frombuffer(content, dtype, (last - first) // dtype.itemsize, start + first)
    if entry["dtype"] == "BF16":  # the upper half of a float32
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    if flat.dtype != np.uint8 and not (abs(flat) <= LARGEST).all():
        raise ValueError("a tensor holds NaN, infinite or too large values")
    return flat.reshape(entry["shape"])


class PackedEncoder:
    """A packed encoder: its weights by path (decoded at every use), its hidden states, and the logits of its head.

    All arithmetic is in `dtype`, float32 or float64, except that activations are rounded to levels in float32.
    Raises `ReadError` if the folder holds no packed model of `FAMILIES` and format version 1.
    """

    def __init__(self, folder: str | Path, dtype: Any = np.float32):
        self.dtype = dtype
        self.config = read_config(Path(folder))
        self.family = FAMILIES[self.config["model_type"]]
        self.recipe: dict[str, Any] = self.config["xtc"]["recipe"]
        self.tensors = read_tensors(Path(folder))
        # The file of a bare encoder names its tensors without the prefix that a head's file gives them.
        prefix = f"{self.family.prefix}."
        self.prefix = prefix if any(name.startswith(prefix) for name in self.tensors) else ""

    @property
    def architecture(self) -> str:
        """The name of the class that wrote the folder."""
        return str(self.config.get("architectures")).strip("[']")

    @property
    def first_padding(self) -> int | None:
        """The padding token's id from which positions are counted; `None` where they are 0, 1, ..."""
        name = self.family.padding
        return None if name is None else int(self.config[name]) if name else 1

    def tensor(self, name: str, *shape: int) -> Array:
        """The tensor of that name, as stored; raises `ReadError` if there is none, or none of the given shape."""
        if name not in self.tensors or shape not in ((), self.tensors[name].shape):
            what = f"{name} {list(shape)}".removesuffix(" []")
            raise ReadError(f"The file holds no tensor {what}; config.json and weights do not belong together.")
        return self.tensors[name]

    def codes(self, path: str) -> Codes:
        """The recipe's codes for the weight at `path`."""
        place = path.removeprefix(self.prefix)
        field = "position_weights" if place.startswith("embeddings.") else "weights"
        if place == "embeddings.word_embeddings" or path.rpartition(".")[2] in TIED:
            field = "embedding_weights"
        if str(name := self.recipe.get(field)) not in QUANTIZERS:
            raise ReadError(f"{path} is packed, but the recipe says {field}={name!r}; known: {', '.join(QUANTIZERS)}.")
        return QUANTIZERS[str(name)]

    def columns(self, path: str) -> int:
        """Number of columns of the weight at `path`, which its packed rows, padded to whole bytes, leave open."""
        place = path.removeprefix(self.prefix)
        if place.startswith("embeddings") or path.rpartition(".")[2] in TIED:  # of ELECTRA they may be narrower
            return int(self.config["embedding_size" if self.family.prefix == "electra" else "hidden_size"])
        _, _, part = place.removeprefix(f"{self.family.layer}.").partition(".")
        return int(self.config["intermediate_size" if part == self.family.linears[5] else "hidden_size"])

    def packed(self, path: str) -> tuple[Array, Array]:
        """Bytes and scales of the quantized weight at `path`; raises `ReadError` if they are invalid."""
        columns = self.columns(path)
        packed, scale = self.tensor(f"{path}.weight_packed"), self.tensor(f"{path}.weight_scale")
        codes, width = self.codes(path), -(-columns // self.codes(path).per_byte)
        fits = packed.ndim == scale.ndim == 2 and packed.dtype == np.uint8 and packed.shape[1] == width and scale.size
        if not fits or len(scale) not in (1, len(packed)) or columns % scale.shape[1]:
            raise ReadError(f"{path} holds bytes {packed.shape} and scales {scale.shape} for {columns} columns.")
        if packed.max(initial=0) >= codes.levels**codes.per_byte or scale.min() < 0:
            raise ReadError(f"{path} holds invalid bytes or scales. Download the file again.")
        return packed, scale

    def weight(self, path: str, rows: Array | None = None) -> Array:
        """The weight at `path`, or the given rows of it: decoded to float32, or as stored if it is in float."""
        chosen, columns = slice(None) if rows is None else rows, self.columns(path)
        if f"{path}.weight_packed" not in self.tensors:
            return self.tensor(f"{path}.weight", *self.tensor(f"{path}.weight").shape[:1], columns)[chosen]
        packed, scale = self.packed(path)
        return decode(packed[chosen], scale[chosen] if len(scale) == len(packed) else scale, columns, self.codes(path))

    def linear(self, path: str, x: Array, rows: int | None = None) -> Array:
        """`x @ weight.T + bias`; the input of a quantized weight is rounded first (`on_levels`). Raises `ReadError` if
        it has not as many rows as given."""
        if f"{path}.weight_packed" in self.tensors:
            static = self.recipe["activation_calibration"] == "static"
            x = on_levels(x, self.recipe, self.tensor(f"{path}.activation.range", 2) if static else None)
        weight = self.weight(path)
        if rows not in (None, len(weight)):
            raise ReadError(f"{path} holds {len(weight)} rows, not {rows}.")
        bias = self.tensor(f"{path}.bias", len(weight)).astype(self.dtype)
        return np.asarray(x @ weight.T.astype(self.dtype) + bias)

    def norm(self, path: str, x: Array) -> Array:
        """LayerNorm over the last axis."""
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + self.dtype(self.config["layer_norm_eps"]))
        gamma, beta = self.tensor(f"{path}.weight", x.shape[-1]), self.tensor(f"{path}.bias", x.shape[-1])
        return np.asarray(x * gamma.astype(self.dtype) + beta.astype(self.dtype))

    def rows(self, path: str, index: Array) -> Array:
        """The rows of an embedding for ids of any shape: `(*shape, columns)`."""
        name = f"{path}.weight_packed" if f"{path}.weight_packed" in self.tensors else f"{path}.weight"
        count = len(np.atleast_1d(self.tensor(name)))
        if index.size and not 0 <= index.min() <= index.max() < count:
            raise ReadError(f"Ids {index.min()} to {index.max()} do not fit the {count} rows of {path}.")
        return self.weight(path, index.reshape(-1)).reshape(*index.shape, -1).astype(self.dtype)

    def distances(self, tokens: int) -> Array | None:
        """What is added to the scaled scores of each head at distances 1 - tokens to tokens - 1 of key and query,
        `(heads, 2 * tokens - 1)`; `None` if nothing is.

        Distances fall into buckets: half of them for each sign, and half of these for one distance each; the others
        grow with the logarithm of the distance (T5, https://arxiv.org/abs/1910.10683).
        """
        if not self.family.biased:
            return None
        table = self.tensor(f"{self.prefix}encoder.relative_attention_bias.weight")
        if table.ndim != 2 or len(table) < BUCKETS or table.shape[1] != self.config["num_attention_heads"]:
            raise ReadError(f"The biases of distances have shape {table.shape}; config and weights differ.")
        distance, half = np.arange(1 - tokens, tokens), BUCKETS // 2
        size, exact = np.abs(distance), half // 2
        ratio = np.log(np.maximum(size, 1).astype(np.float32) / np.float32(exact)) / np.float32(
            math.log(FARTHEST / exact)
        )
        far = np.minimum(exact + (ratio * np.float32(half - exact)).astype(np.int64), half - 1)
        buckets = np.where(size < exact, size, far) + half * (distance > 0)
        return np.asarray(table.astype(self.dtype)[buckets].T)

    def attention(self, layer: str, x: Array, kept: Array, bias: Array | None) -> Array:
        """Self-attention of every token to the tokens where `kept`, `(batch, tokens)`, is true; `bias`, `(heads,
        tokens, tokens)`, is added to the scores."""
        query_path, key_path, value_path, output_path, *_ = self.family.linears
        width = self.config["hidden_size"]

        def heads(path: str) -> Array:
            split = self.linear(f"{layer}.{path}", x, width).reshape(
                *x.shape[:2], self.config["num_attention_heads"], -1
            )
            return split.swapaxes(1, 2)  # (batch, heads, tokens, size)

        query, key, value = heads(query_path), heads(key_path), heads(value_path)
        scores = query @ key.swapaxes(2, 3) / self.dtype(math.sqrt(query.shape[-1]))
        scores = scores if bias is None else scores + bias
        scores = np.where(kept[:, None, None, :], scores, np.finfo(self.dtype).min)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = weights / weights.sum(-1, keepdims=True) @ value
        return self.linear(f"{layer}.{output_path}", mixed.swapaxes(1, 2).reshape(x.shape), width)

    def positions(self, ids: Array) -> Array:
        """The positions of token ids `(batch, tokens)`, of that shape or `(tokens,)`."""
        padding = self.first_padding
        if padding is None:
            return np.arange(ids.shape[1])
        is_token = (ids != padding).astype(np.int64)
        return np.asarray(is_token.cumsum(1) * is_token + padding)

    def hidden_states(self, input_ids: Any, attention_mask: Any = None, token_type_ids: Any = None) -> Array:
        """The last hidden states, `(batch, tokens, hidden_size)`, of arguments `(batch, tokens)`; zeros at padding.

        The mask is 1 for tokens (the default) and 0 for padding, types are 0 by default.
        """
        return self._without_padding(self._states(input_ids, attention_mask, token_type_ids), attention_mask)

    @staticmethod
    def _without_padding(states: Array, attention_mask: Any) -> Array:
        return states if attention_mask is None else np.where(np.asarray(attention_mask)[..., None] != 0, states, 0)

    def _states(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Array:
        ids = np.asarray(input_ids)
        kept = np.ones_like(ids) if attention_mask is None else np.asarray(attention_mask)
        types = np.zeros_like(ids) if token_type_ids is None else np.asarray(token_type_ids)
        if ids.ndim != 2 or not ids.shape == kept.shape == types.shape:
            raise ReadError(f"Ids, mask and types must be (batch, tokens): {ids.shape}, {kept.shape}, {types.shape}.")
        base, tables = f"{self.prefix}embeddings", self.family.tables
        x = self.rows(f"{base}.{tables[0]}", ids)
        if len(tables) > 2:
            x = x + self.rows(f"{base}.{tables[2]}", types)
        elif types.any():
            raise ReadError(f"{self.architecture} knows no token types, but some are not 0. Leave them out.")
        x = self.norm(f"{base}.LayerNorm", x + self.rows(f"{base}.{tables[1]}", self.positions(ids)))
        hidden, inner = self.config["hidden_size"], self.config["intermediate_size"]
        if x.shape[-1] != hidden:
            x = self.linear(f"{base}_project", x, hidden)
        bias, places = self.distances(ids.shape[1]), np.arange(ids.shape[1])
        if bias is not None:
            bias = bias[:, places - places[:, None] + len(places) - 1]
        activate, (*_, into, out) = ACTIVATIONS[self.config["hidden_act"]], self.family.linears
        for i in range(self.config["num_hidden_layers"]):
            layer = f"{self.prefix}{self.family.layer}.{i}"
            x = self.norm(f"{layer}.{self.family.norms[0]}", x + self.attention(layer, x, kept != 0, bias))
            wide = activate(self.linear(f"{layer}.{into}", x, inner))
            x = self.norm(f"{layer}.{self.family.norms[1]}", x + self.linear(f"{layer}.{out}", wide, hidden))
        return x

    def logits(self, input_ids: Any, attention_mask: Any = None, token_type_ids: Any = None) -> Array:
        """The logits of a model's head; arguments and errors as of `hidden_states`.

        `(batch, labels)` of a sequence classifier, `(batch, tokens, labels)` of a token classifier,
        `(batch, tokens, 2)` of a question answerer: scores of an answer's start and end.
        """
        head = self.architecture.rpartition("For")[2]
        if head != "SequenceClassification" and head not in TOKEN_HEADS:
            raise ReadError(
                "Logits are those of sequence classifiers, token classifiers and question answerers; this is "
                f"{self.architecture}. Use hidden_states."
            )
        states = self._states(input_ids, attention_mask, token_type_ids)
        dense, activation, output = self.family.head
        if head == "SequenceClassification" and dense.startswith("pooler"):  # it reads states of padding, too
            dense = f"{self.prefix}{dense}"
        else:
            states = self._without_padding(states, attention_mask)
        if head != "SequenceClassification":
            return self.linear(TOKEN_HEADS[head], states)
        pooled = ACTIVATIONS[activation](self.linear(dense, states[:, 0], self.config["hidden_size"]))
        return self.linear(output, pooled)


def main(folder: str, *ids: str) -> None:
    """Prints a folder's quantized weights, or the logits of token ids."""
    model = PackedEncoder(folder)
    if ids:
        names = model.config.get("id2label", {})
        for row in np.atleast_2d(model.logits([[int(word) for word in ids]])[0]):  # one, or one of each token
            for i, score in enumerate(row):
                print(f"{names.get(str(i), i)}: {score:.4f}")
        return
    for name in sorted(model.tensors):
        path, packed, _ = name.partition(".weight_packed")
        if packed:
            (rows, columns), size = model.weight(path).shape, model.tensors[name].nbytes
            print(f"{path}: {rows} x {columns} weights of {model.codes(path).levels} levels in {size} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
