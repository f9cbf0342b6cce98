"""Shards of a teacher cache: written from padded batches, read back into padded batches.

A shard holds no padding, so the two batches may be padded differently. The reader maps files into memory and copies
each block once, into the batch; it works in the worker processes of a data loader.
"""

import bisect
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_xtc.distillation.cache.format import (
    CACHE_FILE,
    TOKENS,
    Block,
    Manifest,
    Shape,
    broken_shards,
    read_manifest,
    shard_file,
)
from hf_xtc.errors import StateError, XTCError
from hf_xtc.files.writing import whole_folder

Sums = tuple[list[int], list[int], list[int]]


def places(mask: Tensor) -> list[slice | Tensor]:
    """The positions of the real tokens of each row: a slice, or indices if there is padding between them.

    Args:
        mask (`torch.Tensor` of shape `(rows, width)`): Not 0 for real tokens.
    """
    real = (mask != 0).to(torch.uint8)
    counts = real.sum(1).tolist()
    first, end = real.argmax(1).tolist(), (real.shape[1] - real.flip(1).argmax(1)).tolist()
    return [
        slice(a, a + n) if b - a == n or n == 0 else real[i].nonzero().flatten()
        for i, (a, b, n) in enumerate(zip(first, end, counts, strict=True))
    ]


def _index(shape: Shape, place: slice | Tensor) -> tuple[Any, ...]:
    """The index of a row's block in a padded output of that row."""
    axes = [place if size == TOKENS else slice(None) for size in shape]
    if isinstance(place, Tensor) and shape.count(TOKENS) == 2:
        axes[shape.index(TOKENS)] = place.unsqueeze(1)
    return tuple(axes)


class ShardWriter:
    """Collects the blocks of a shard's rows, in any order, and writes the shard.

    Args:
        manifest (`Manifest`): Manifest of the cache.
        index (`int`): Number of the shard.
        lengths (`list[int]`): Tokens of each of its rows.
    """

    def __init__(self, manifest: Manifest, index: int, lengths: Sequence[int]):
        self._index, self._blocks, self._sums = index, manifest.blocks, running_sums(lengths)
        self._first = sum(shard.rows for shard in manifest.shards[:index])
        self._tensors = {name: torch.empty(s, dtype=d) for name, (d, s) in manifest.tensors(index).items()}
        self._tensors[TOKENS] = torch.tensor(lengths, dtype=torch.int64)

    def put(self, rows: Sequence[int], outputs: Mapping[str, Tensor], mask: Tensor) -> None:
        """Stores the blocks of rows, given their padded outputs; rows are counted within the shard.

        Args:
            rows (`list[int]`): The row of the shard for each row of the batch.
            outputs (`dict[str, torch.Tensor]`): float32 on the CPU; axis 0 is the batch, the others those of a block.
            mask (`torch.Tensor` of shape `(batch, width)`): 1 for real tokens.

        Raises:
            StateError: if a value is NaN, infinite or too large for the dtype; names the output and the row.
        """
        for i, (row, place) in enumerate(zip(rows, places(mask), strict=True)):
            for name, block in self._blocks.items():
                try:
                    values, scale = block.encode(outputs[name][i][_index(block.shape, place)])
                except XTCError as error:
                    raise StateError(f"The teacher's {name} for row {self._first + row} {error}") from None
                cut(self._tensors[name], block, self._sums, row).copy_(values.flatten())
                if scale is not None:
                    cut(self._tensors[f"{name}.scale"], block, self._sums, row, scales=True).copy_(scale.flatten())

    def save(self, folder: Path) -> None:
        """Writes the shard under a temporary name and renames it.

        Raises:
            StateError: if it cannot be written (disk full, read-only folder); names the cause.
        """
        with whole_folder(folder) as scratch:
            save_file(self._tensors, shard_file(scratch, self._index))


class TeacherCache:
    """A complete cache, opened for reading; its length is the number of rows.

    Args:
        folder (`str` or `os.PathLike`): The `teacher_cache` of the training arguments.

    Raises:
        StateError: if the folder holds no cache, or a shard is missing, truncated or has unexpected contents.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        manifest = read_manifest(self.folder)
        broken = {0: "no cache.json"} if manifest is None else broken_shards(self.folder, manifest)
        if manifest is None or broken:
            what = f"{next(iter(broken.values()))}" + (f", and {len(broken) - 1} more" if len(broken) > 1 else "")
            raise StateError(f"{folder} holds no complete teacher cache ({what}). Give teacher_model to make it.")
        self.manifest = manifest
        self._blocks = manifest.blocks
        self._starts = [0, *accumulate(shard.rows for shard in manifest.shards)]
        self._opened: dict[int, tuple[dict[str, Tensor], Sums]] = {}

    def __len__(self) -> int:
        """Number of rows."""
        return self._starts[-1]

    def __reduce__(self) -> Any:
        """Pickles the folder only; another process opens the files itself."""
        return TeacherCache, (self.folder,)

    def _open(self, index: int) -> tuple[dict[str, Tensor], Sums]:
        if index not in self._opened:
            with safe_open(shard_file(self.folder, index), framework="pt") as reader:
                tensors = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118 (not a dict)
            self._check(index, tensors)
            self._opened[index] = tensors, running_sums(tensors[TOKENS].tolist())
        return self._opened[index]

    def _check(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        """Checks the values of a shard, whose names, dtypes and shapes are checked already.

        Raises:
            StateError: if its numbers of tokens differ from `cache.json`, or a value is NaN or infinite.
        """
        lengths = tensors[TOKENS].tolist()
        sums = min(lengths) > 0 and tuple(total[-1] for total in running_sums(lengths))
        floats = (tensor for tensor in tensors.values() if tensor.is_floating_point() and tensor.numel())
        if sums != self.manifest.shards[index].sums or not all(_is_finite(tensor) for tensor in floats):
            raise StateError(
                f"{shard_file(self.folder, index)} is damaged: its numbers of tokens differ from {CACHE_FILE}, "
                "or values are NaN or infinite. Delete it, and give teacher_model to make it again."
            )

    def read(self, rows: Sequence[int], mask: Tensor) -> dict[str, Any]:
        """The teacher's outputs for a batch, zero on padding.

        Args:
            rows (`list[int]`): Numbers of the rows in the data set.
            mask (`torch.Tensor` of shape `(rows, width)`): 1 for real tokens.

        Returns:
            `dict[str, Any]`: Outputs as a model returns them: logits, and tuples of "hidden_states" and "attentions"
            with `None` for layers that are not kept; float16 (float32 from int8), logits float32.

        Raises:
            StateError: if a row has another number of tokens than when the cache was made.
        """
        if rows and not 0 <= min(rows) <= max(rows) < len(self):
            raise StateError(
                f"Rows {min(rows)} to {max(rows)} are requested, but the cache in {self.folder} has {len(self)} rows. "
                "Use the data set that it was made with."
            )
        width = mask.shape[1]
        padded = {
            name: torch.zeros(len(rows), *block.sized(width), dtype=block.read_dtype)
            for name, block in self._blocks.items()
        }
        for i, (row, place) in enumerate(zip(rows, places(mask), strict=True)):
            shard = bisect.bisect_right(self._starts, row) - 1
            tensors, sums = self._open(shard)
            local = row - self._starts[shard]
            tokens = sums[1][local + 1] - sums[1][local]
            in_batch = place.stop - place.start if isinstance(place, slice) else len(place)
            if tokens != in_batch:
                raise StateError(
                    f"Row {row} has {in_batch} tokens in its batch, but {tokens} in the teacher cache. Rows must be "
                    "the same every time they are read: data sets and collators that change them cannot be cached."
                )
            for name, block in self._blocks.items():
                values = cut(tensors[name], block, sums, local).view(block.sized(tokens))
                if block.dtype == torch.int8:
                    scale = cut(tensors[f"{name}.scale"], block, sums, local, scales=True)
                    values = values * scale.view(*values.shape[:-1], 1)
                padded[name][i][_index(block.shape, place)] = values
        return {name: self._layers(name, tensor) for name, tensor in padded.items()}

    def _layers(self, name: str, padded: Tensor) -> Any:
        """The output as a model returns it: a tuple over the teacher's layers, if it has layers."""
        if name not in self.manifest.layers:
            return padded
        kept = self.manifest.layers[name]
        return tuple(
            padded[:, kept.index(layer)] if layer in kept else None for layer in range(self.manifest.depths[name])
        )


def _is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite, and stay finite when multiplied by an int8 code."""
    return bool((torch.stack(torch.aminmax(tensor)).abs() < torch.finfo(torch.float32).max / 128).all())


def running_sums(lengths: Sequence[int]) -> Sums:
    """Cumulative rows, tokens and squared tokens before each row, and after the last."""
    ones, squares = [1] * len(lengths), [length**2 for length in lengths]
    return [0, *accumulate(ones)], [0, *accumulate(lengths)], [0, *accumulate(squares)]


def cut(flat: Tensor, block: Block, sums: Sums, row: int, *, scales: bool = False) -> Tensor:
    """A view of a shard's flat tensor: the block of one row."""
    start, end = (block.numel([total[i] for total in sums], scales=scales) for i in (row, row + 1))
    return flat[start:end]
