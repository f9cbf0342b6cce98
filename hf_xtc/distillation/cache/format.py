"""The format of the teacher cache, and when a cache is stale.

A cache is a folder with `cache.json` (format version, key, which outputs are kept, how rows are split into shards) and
`shard-00000.safetensors`, ... Rows are in the order of the data set. In a shard each kept output is one flat tensor,
row after row; a row's *block* is contiguous and has no padding. `cache.json` gives its shape, with "tokens" for the
number of the row's real tokens: `[3]` for logits, `[4, "tokens", 384]` for four hidden states, `[3, 12, "tokens",
"tokens"]` for the attention scores of three layers of twelve heads. Logits are float32; the others float16, or int8
with one float32 scale per vector along the last axis (`NAME.scale`: per token of a hidden state, per query of scores).
A shard is written whole or not at all, so a shard that exists is complete. Reading maps files into memory.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_xtc.errors import PackedFileError, StateError, XTCError
from hf_xtc.files.headers import read_header
from hf_xtc.files.safe_json import read_json
from hf_xtc.files.writing import write_json

FORMAT_VERSION = 1
TOKENS = "tokens"
PLACES = {"hidden_states": slice(-2, -1), "attentions": slice(-2, None)}  # the axes that must be "tokens"
DEEPEST = 10_000  # most layers of a teacher; reading a batch makes a list of this length
SHARD_BYTES = 2**27
CACHE_FILE = "cache.json"
_ADVICE = "Give teacher_cache another folder, or delete this one."

Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class Block:
    """The layout of one output for one row.

    Args:
        shape (`tuple[int | str, ...]`): As in `cache.json`, with "tokens" for axes of the row's length.
        dtype (`torch.dtype`): float32, float16, or int8 (then with scales).
    """

    shape: Shape
    dtype: torch.dtype

    def sized(self, tokens: int) -> tuple[int, ...]:
        """The shape for a row of `tokens` tokens."""
        return tuple(tokens if size == TOKENS else int(size) for size in self.shape)

    @cached_property
    def _factors(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(factor, power) of the values and of the scales: a row of `n` tokens has `factor * n**power`."""
        values, scales = (
            (math.prod(int(size) for size in shape if size != TOKENS), shape.count(TOKENS))
            for shape in (self.shape, self.shape[:-1])
        )
        return values, scales

    @property
    def read_dtype(self) -> torch.dtype:
        """The dtype of the tensors that are read: float32 for int8, else `dtype`."""
        return torch.float32 if self.dtype == torch.int8 else self.dtype

    def numel(self, sums: Sequence[int], *, scales: bool = False) -> int:
        """Number of values (or scales) of several rows; `sums`: their count, tokens, and sum of squared tokens."""
        factor, power = self._factors[scales]
        return factor * sums[power]

    def nbytes(self, sums: Sequence[int]) -> int:
        """Bytes of several rows, scales included; `sums` as in `numel`."""
        scales = self.numel(sums, scales=True) if self.dtype == torch.int8 else 0
        return self.numel(sums) * self.dtype.itemsize + scales * torch.float32.itemsize

    def encode(self, block: Tensor) -> tuple[Tensor, Tensor | None]:
        """The block in `dtype`, and its float32 scales if that is int8. The error continues "The teacher's NAME ...".

        Raises:
            XTCError: if a value is NaN or infinite, or overflows float16.
        """
        largest = block.abs().max().item()
        if not math.isfinite(largest):
            raise XTCError("are NaN or infinite. Check the teacher's weights, or run it in a higher precision.")
        if self.dtype == torch.int8:
            scale = block.abs().amax(-1, keepdim=True) / 127
            return (block / scale.clamp(min=1e-30)).round().to(torch.int8), scale.squeeze(-1)
        if largest > torch.finfo(self.dtype).max:
            raise XTCError(f"reach {largest:.6g}, which overflows float16. Use teacher_cache_dtype='int8'.")
        return block.to(self.dtype), None


@dataclass(frozen=True)
class Shard:
    """Number of rows of a shard, their tokens, and the sum of their squared tokens, which give its size."""

    rows: int
    tokens: int
    pairs: int

    @property
    def sums(self) -> tuple[int, int, int]:
        """The argument `sums` of `Block.numel`."""
        return self.rows, self.tokens, self.pairs


def _is_count(value: object) -> bool:
    """Whether a value is a plausible number of rows, tokens, layers or features: positive, below 2**48."""
    return type(value) is int and 0 < value < 2**48


@dataclass(frozen=True)
class Manifest:
    """The contents of `cache.json`.

    Args:
        key (`dict`): Hashes of "teacher", "tokenizer" and "data", and the "recipe" itself.
        dtype (`str`): "float16" or "int8", of all outputs but logits.
        outputs (`dict[str, tuple]`): Name of a model output -> shape of a row's block; the first axis of
            "hidden_states" and "attentions" counts the layers kept.
        layers (`dict[str, tuple[int, ...]]`): The hidden states and attention layers that are kept.
        depths (`dict[str, int]`): Number of hidden states and attention layers of the teacher.
        shards (`tuple[Shard, ...]`): In the order of the rows.
        teacher_config (`dict`): The teacher's configuration.
    """

    key: dict[str, Any]
    dtype: str
    outputs: dict[str, Shape]
    layers: dict[str, tuple[int, ...]]
    depths: dict[str, int]
    shards: tuple[Shard, ...]
    teacher_config: dict[str, Any]

    @property
    def blocks(self) -> dict[str, Block]:
        """Name of an output -> layout of a row's block."""
        dtype = {"float16": torch.float16, "int8": torch.int8}[self.dtype]
        return {n: Block(s, torch.float32 if n.endswith("logits") else dtype) for n, s in self.outputs.items()}

    def tensors(self, index: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Name -> (dtype, shape) of the tensors in shard `index`; the tensor `tokens` has the tokens of each row."""
        sums = self.shards[index].sums
        tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {TOKENS: (torch.int64, (sums[0],))}
        for name, block in self.blocks.items():
            tensors[name] = (block.dtype, (block.numel(sums),))
            if block.dtype == torch.int8:
                tensors[f"{name}.scale"] = (torch.float32, (block.numel(sums, scales=True),))
        return tensors

    def check(self) -> None:
        """Checks the values of a manifest that was read from a file.

        Raises:
            ValueError: if a field has a value that `write` never writes; names it.
        """
        if not all(isinstance(field, dict) for field in (self.key, self.key.get("recipe", {}), self.teacher_config)):
            raise ValueError("key, recipe and teacher_config must be objects")
        if self.dtype not in ("float16", "int8") or type(self.dtype) is not str:
            raise ValueError(f"dtype={self.dtype!r}")
        for name, shape in self.outputs.items():
            sizes = [size for size in shape if size != TOKENS]
            if not shape or len(shape) - len(sizes) > 2 or not all(_is_count(size) for size in sizes):
                raise ValueError(f"{name} of shape {shape!r:.80}")
            if name in PLACES and any(size != TOKENS for size in shape[PLACES[name]]):
                raise ValueError(f"{name} of shape {shape!r:.80}")
        if set(self.layers) != {"hidden_states", "attentions"} & set(self.outputs):
            raise ValueError(f"outputs {list(self.outputs)!r:.80} with layers of {list(self.layers)!r:.80}")
        for name, kept in self.layers.items():
            depth, count = self.depths[name], self.outputs[name][0]
            inside = all(isinstance(layer, int) and 0 <= layer < depth for layer in kept)
            if not _is_count(depth) or depth > DEEPEST or not inside or len(set(kept)) != count:
                raise ValueError(f"{name} of layers {kept!r:.80} of {depth!r}")
        if not all(_is_count(number) for shard in self.shards for number in shard.sums):
            raise ValueError("a shard without rows or tokens")

    def nbytes(self, indices: Sequence[int] | None = None) -> int:
        """Bytes of these shards (default: all), headers not counted."""
        chosen = range(len(self.shards)) if indices is None else indices
        tensors = [tensor for index in chosen for tensor in self.tensors(index).values()]
        return sum(dtype.itemsize * math.prod(shape) for dtype, shape in tensors)

    def write(self, folder: Path) -> None:
        """Writes `cache.json`; creates the folder if missing.

        Raises:
            StateError: if it cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StateError(f"Could not make the folder {folder}: {error}.") from error
        write_json(folder / CACHE_FILE, {"format_version": FORMAT_VERSION, **asdict(self)})


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a cache; `None` if the folder holds none.

    Raises:
        StateError: if `cache.json` is of another format version or does not describe a cache.
    """
    if not (folder / CACHE_FILE).exists():
        return None
    try:
        found = read_json(folder / CACHE_FILE)
        if found.pop("format_version") != FORMAT_VERSION:
            raise ValueError("another format version")
        found["outputs"] = {name: tuple(shape) for name, shape in found["outputs"].items()}
        found["layers"] = {name: tuple(layers) for name, layers in found["layers"].items()}
        found["shards"] = tuple(Shard(**shard) for shard in found["shards"])
        manifest = Manifest(**found)
        manifest.check()
        return manifest
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        where = folder / CACHE_FILE
        raise StateError(
            f"{where} does not describe a teacher cache of format {FORMAT_VERSION} ({error}). {_ADVICE}"
        ) from None


def plan_shards(outputs: Mapping[str, Shape], dtype: str, lengths: Sequence[int]) -> tuple[Shard, ...]:
    """Splits rows with these numbers of tokens into shards of at most `SHARD_BYTES`, but at least one row."""
    blocks = Manifest({}, dtype, dict(outputs), {}, {}, (), {}).blocks.values()
    shards: list[Shard] = []
    rows = tokens = pairs = size = 0
    for length in lengths:
        row = sum(block.nbytes((1, length, length**2)) for block in blocks)
        if rows and size + row > SHARD_BYTES:
            shards.append(Shard(rows, tokens, pairs))
            rows = tokens = pairs = size = 0
        rows, tokens, pairs, size = rows + 1, tokens + length, pairs + length**2, size + row
    return (*shards, Shard(rows, tokens, pairs))


def check_cache_folder(folder: str) -> None:
    """Raises `StateError` if a folder for a cache is a file, or holds other files than a cache."""
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise StateError(f"teacher_cache={folder} is a file, but a cache is a folder. Give it another name.")
    others = [] if not path.is_dir() else [file.name for file in path.iterdir() if not file.name.startswith(".")]
    if others and CACHE_FILE not in others:
        raise StateError(f"teacher_cache={folder} holds other files, such as {min(others)}. Give it another folder.")


def shard_file(folder: Path, index: int) -> Path:
    """Path of a shard."""
    return folder / f"shard-{index:05d}.safetensors"


def broken_shards(folder: Path, manifest: Manifest) -> dict[int, str]:
    """Index -> what is wrong, for each shard that is missing, truncated or has unexpected contents."""
    broken = {}
    for index in range(len(manifest.shards)):
        file = shard_file(folder, index)
        try:
            if not file.exists():
                broken[index] = f"{file.name} is missing"
            elif read_header(file) != manifest.tensors(index):
                broken[index] = f"{file.name} does not match {CACHE_FILE}"
        except PackedFileError:
            broken[index] = f"{file.name} is truncated or not a safetensors file"
    return broken


def check_key(folder: Path, stored: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Compares the key of a cache with this run's; a component that is `None` here is not compared.

    Raises:
        StateError: if they differ; lists the differences.
    """
    described = {"teacher": "another teacher", "tokenizer": "another tokenizer", "data": "other data"}
    differ = [
        f"{text} ({str(stored.get(name))[:8]} there, {ours[name][:8]} here)"
        for name, text in described.items()
        if ours[name] is not None and stored.get(name) != ours[name]
    ]
    there = stored.get("recipe", {})
    recipe = [f"{k}: {there.get(k)} there, {v} here" for k, v in ours["recipe"].items() if there.get(k) != v]
    if recipe:
        differ.append(f"another recipe ({'; '.join(recipe)})")
    if differ:
        made = " and ".join([", ".join(differ[:-1]), differ[-1]] if differ[1:] else differ)
        raise StateError(f"The cache in {folder} was made with {made}: its targets do not fit this run. {_ADVICE}")
