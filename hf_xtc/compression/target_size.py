"""The student that fits a file of a given size, chosen before any training.

What is tried, best first, and why (docs/training.md): students by the bits of their encoder, layers times bits of a
weight, since in all measurements the one with more of them was ahead or within noise; each with the whole vocabulary,
then with the tokens that the texts have, so that these are encoded as before. Rarer tokens go before the encoder
has less than half of what all layers have at 1 bit.
"""

import copy
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from transformers import PreTrainedModel

from hf_xtc.compression.size_ledger import ledger
from hf_xtc.errors import RecipeError
from hf_xtc.modeling.architecture import architecture_of
from hf_xtc.recipe.xtc_recipe import XTCRecipe

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}

BITS = {"ternary": 1.6, "binary": 1.0}  # of a weight in the file; what is chosen among, best first
RARER = (2, 4, 8, 16, 32, 64)  # times that the texts have a token, where trimming those without any is not enough

FREE = ("keep_layers", "weights", "embedding_weights", "trim_vocabulary")  # what can be chosen


def parse_bytes(text: str) -> int:
    """The bytes that "2000000", "2MB", "1.5 MiB" or "800kB" say: MB are 10**6 bytes, MiB 2**20.

    Raises:
        RecipeError: if it says something else, or less than a byte.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", text.lower(), re.ASCII)
    if found is None or found[2] not in UNITS or float(found[1]) * UNITS[found[2]] < 1:
        raise RecipeError(f"target_bytes={text!r:.80} is not a size. Write it like 2MB, 1.5MiB, 800kB or 2000000.")
    whole = found[1].isdigit()
    return int(found[1]) * UNITS[found[2]] if whole else int(float(found[1]) * UNITS[found[2]])


@dataclass(frozen=True)
class Choice:
    """A student: its recipe and layers, `trim_vocabulary` (0: the whole vocabulary), tokens, and bytes of its file."""

    recipe: XTCRecipe
    layers: int
    trim_vocabulary: int
    vocabulary: int
    file_bytes: int

    def __str__(self) -> str:
        weights, embeddings = (kind or "float" for kind in (self.recipe.weights, self.recipe.embedding_weights))
        trimmed = f" (trim_vocabulary {self.trim_vocabulary})" if self.trim_vocabulary else ""
        return (
            f"{self.file_bytes:,} bytes: {self.layers} layer{'s' * (self.layers > 1)}, {weights} weights, and "
            f"{embeddings} word embeddings of {self.vocabulary:,} tokens{trimmed}"
        )


def choose(
    config: Any,
    target: int,
    recipe: XTCRecipe,
    *,
    model_class: type[PreTrainedModel],
    free: Collection[str] = FREE,
    trim_vocabulary: int = 0,
    vocabulary: Callable[[int], int] | None = None,
) -> Choice:
    """The best student whose `model.safetensors` has at most `target` bytes; see the head of this module.

    Args:
        config (`PreTrainedConfig`): The teacher's.
        target (`int`): Bytes of the file, its header included.
        recipe (`XTCRecipe`): What is kept of it: all fields that are not free.
        model_class (`type`): The student's XTC class.
        free (`Collection[str]`): Which of `FREE` are chosen; `keep_layers` of a family that shares weights between
            layers never is.
        trim_vocabulary (`int`): Kept unless free.
        vocabulary (`Callable[[int], int]`, *optional*): How many tokens are left of those that the texts have at
            least so many times; needed for trimming.

    Raises:
        RecipeError: if the smallest student does not fit; says by how many bytes.
    """
    whole = config.vocab_size

    @cache
    def tokens(least: int) -> int:
        return whole if not least or vocabulary is None else vocabulary(least)

    @cache
    def size(tried: XTCRecipe, rows: int) -> int:
        cut = copy.deepcopy(config)
        cut.vocab_size = rows
        return ledger(cut, tried, model_class=model_class).file_bytes

    def candidate(tried: XTCRecipe, least: int) -> Choice:
        layers = len(tried.layer_map(depth).layers)
        return Choice(tried, layers, least, tokens(least), size(tried, tokens(least)))

    depth = config.num_hidden_layers
    can_cut = architecture_of(config).layers is not None
    shapes = _shapes(recipe, free, depth if can_cut else None)
    embeddings = list(BITS) if "embedding_weights" in free else [recipe.embedding_weights]
    trims = _trims(free, trim_vocabulary, vocabulary)
    smallest = candidate(replace(shapes[-1], embedding_weights=embeddings[-1]), trims[-1][-1])
    if smallest.file_bytes > target:
        more = smallest.file_bytes - target
        raise RecipeError(
            f"target_bytes={target:,} is {more:,} too few: the smallest student that the options allow has "
            f"{smallest}. Allow more bytes, or leave out options that fix its layers, weights or vocabulary."
        )
    for tried, leasts in _in_order(shapes, trims, depth):
        if size(replace(tried, embedding_weights=embeddings[-1]), tokens(leasts[-1])) > target:
            continue
        for least in leasts:
            for embedding in embeddings:
                found = candidate(replace(tried, embedding_weights=embedding), least)
                if found.file_bytes <= target:
                    return found
    return smallest


def _shapes(recipe: XTCRecipe, free: Collection[str], depth: int | None) -> list[XTCRecipe]:
    """The recipe with all layers and weights that may be chosen, those with most bits first."""
    kinds = list(BITS) if "weights" in free else [recipe.weights]
    if "keep_layers" in free and depth is not None:
        cut = [replace(recipe, layers=None, keep_layers=layers) for layers in range(depth, 0, -1)]
    else:
        cut = [recipe]
    shapes = [replace(shape, weights=kind) for shape in cut for kind in kinds]
    return sorted(shapes, key=lambda shape: -_bits(shape, depth or 1))


def _bits(recipe: XTCRecipe, depth: int) -> float:
    """Bits of the encoder, in those of a binary layer; weights of another kind are never compared with these."""
    return (recipe.keep_layers or depth) * BITS.get(recipe.weights or "", 1.0)


def _trims(
    free: Collection[str], trim_vocabulary: int, vocabulary: Callable[[int], int] | None
) -> list[tuple[int, ...]]:
    """Values of `trim_vocabulary` in groups that are tried together."""
    if "trim_vocabulary" not in free or vocabulary is None:
        return [(trim_vocabulary,)]
    return [(0, 1), *((least,) for least in RARER)]


def _in_order(
    shapes: list[XTCRecipe], trims: list[tuple[int, ...]], depth: int
) -> Iterator[tuple[XTCRecipe, tuple[int, ...]]]:
    """Shapes with values of `trim_vocabulary`, best first."""
    small = [shape for shape in shapes if _bits(shape, depth) < depth / 2]
    for group in ([shape for shape in shapes if shape not in small], small):
        for leasts in trims:
            for shape in group:
                yield shape, leasts
