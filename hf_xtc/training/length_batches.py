"""Rows of similar length in a batch, batches in random order.

Trainer's `group_by_length` sorts the rows of fifty batches, longest first: training runs from long rows to short ones
again and again, and ends on the shortest. Students then do worse on long rows (docs/accuracy.md).
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


class LengthGroupedBatches(Sampler[int]):
    """Indices of rows, so that each slice of `batch_size` holds similar lengths, and slices come in random order.

    The batch with the longest row is the first, so that memory runs out at once or never; the incomplete batch is the
    last. The order depends on `seed` and the epoch alone: a training that is continued draws what it would have drawn.

    Args:
        lengths: Tokens of each row.
        batch_size: Rows of an optimizer step.
        seed: Seed of the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int):
        self.lengths = list(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of an epoch; Trainer calls it."""
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
    """The length of the entry `name` of each row, such as "input_ids"; `None` if the rows have none."""
    try:
        return [len(row[name]) for row in islice(rows, len(rows))]  # a row may be asked for beyond the last
    except (KeyError, IndexError, TypeError):
        return None
