"""A data set with row numbers, and a data collator that adds the cached outputs for these rows."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_xtc.distillation.cache.shards import TeacherCache
from hf_xtc.distillation.terms import token_mask
from hf_xtc.errors import DataError, XTCError

ROW = "xtc_row"
TARGETS = "xtc_targets"


class NumberedRows(torch.utils.data.Dataset[dict[str, Any]]):
    """A data set that adds to each row its index, as `xtc_row`."""

    def __init__(self, source: Any):
        if not hasattr(source, "__len__") or not hasattr(source, "__getitem__"):
            raise XTCError(
                f"teacher_cache needs a train_dataset with a length and rows by index; a {type(source).__name__} "
                "has no length or cannot be indexed. Train without a cache, or use a map-style data set."
            )
        if len(source) == 0:
            raise DataError("The train_dataset is empty: there is nothing to cache.")
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Several rows, read in one call if the data set has `__getitems__`."""
        indices = [int(index) for index in indices]
        getitems = getattr(self.source, "__getitems__", None)
        rows = [self.source[index] for index in indices] if getitems is None else getitems(indices)
        if not isinstance(rows[0], Mapping):
            raise XTCError(
                f"teacher_cache needs rows that are dictionaries; row {indices[0]} is a {type(rows[0]).__name__}."
            )
        return [{**row, ROW: index} for row, index in zip(rows, indices, strict=True)]


class CachedTargets:
    """A data collator that adds the cached outputs, as `xtc_targets`, to the batches of another collator."""

    def __init__(self, collator: Callable[[list[Any]], Any], cache: TeacherCache):
        self.collator, self.cache = collator, cache

    def __call__(self, features: list[dict[str, Any]]) -> Any:
        rows = [feature.pop(ROW) for feature in features]
        batch = self.collator(features)
        batch[TARGETS] = self.cache.read(rows, sequence_mask(batch))
        return batch


def sequence_mask(batch: Mapping[str, Any]) -> Tensor:
    """The `token_mask` of a batch that holds one sequence per row, `(rows, tokens)`, float32.

    Raises:
        XTCError: if the batch is not one sequence of tokens per row.
    """
    tokens = batch.get("attention_mask", batch.get("input_ids"))
    if not isinstance(tokens, Tensor) or tokens.dim() != 2:
        shape = f"its shape is {list(tokens.shape)}" if isinstance(tokens, Tensor) else "there is none"
        raise XTCError(
            f"teacher_cache needs an attention_mask of shape [rows, tokens]; {shape}. Train without teacher_cache."
        )
    return token_mask(batch, tokens.unsqueeze(-1))
