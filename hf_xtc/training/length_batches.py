"""Batches of rows of similar length, in random order.

Trainer's `group_by_length` sorts the rows of every fifty batches, longest first: training runs from long rows to short
ones again and again, and ends on the shortest. Students then do worse on long rows (docs/accuracy.md).
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


class LengthGroupedBatches(Sampler[int]):
    """Sampler whose slices of `batch_size` rows have similar lengths, and come in random order.

    The batch with the longest row comes first, so that a run that is short of memory fails in its first step; an
    incomplete batch comes last. The order depends on `seed` and the epoch only, so that a resumed training draws the
    same batches.

    Args:
        lengths (`Sequence[int]`): Number of tokens of each row.
        batch_size (`int`): Rows of an optimizer step, over all processes.
        seed (`int`): Seed of the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int):
        self.lengths = list(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch whose order is drawn; called by the Trainer."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        rows = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        starts = torch.arange(0, len(rows), self.batch_size)
        full = len(rows) // self.batch_size
        starts[1:full] = starts[1:full][torch.randperm(max(full - 1, 0), generator=generator)]
        for start in starts.tolist():
            yield from rows[start : start + self.batch_size]


def row_lengths(rows: Any, name: str) -> list[int] | None:
    """Returns the length of the entry `name`, such as "input_ids", of each row; `None` if rows have no such entry."""
    try:
        return [len(row[name]) for row in islice(rows, len(rows))]  # iteration may not end by itself at the last row
    except (KeyError, IndexError, TypeError):
        return None
