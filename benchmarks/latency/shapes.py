"""What is fed: a shape is a list of batches, a batch a list of row lengths; rows are padded to the batch's longest.

Tokens are random, lengths of "32xsst2" are those of real sentences: `sst2_lengths.json` counts how many sentences of
SST-2's validation split have how many tokens, `[CLS]` and `[SEP]` among them (`count_lengths`, BERT's uncased
vocabulary). A shape draws its rows from these counts with a fixed seed, so the data itself is not needed.
"""

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np

Shape = list[list[int]]
Batch = dict[str, np.ndarray]

SST2 = "32xsst2"
FIXED = {f"{rows}x{tokens}": (rows, tokens) for rows, tokens in ((1, 16), (1, 128), (8, 32), (8, 128))}
# Beside the shapes that the package was tuned on: others, and some that are no multiples of its tiles.
HELD_OUT = {f"{rows}x{tokens}": (rows, tokens) for rows, tokens in ((1, 37), (3, 77), (16, 48), (32, 64))}
SHAPES = (*FIXED, SST2, *HELD_OUT)
LENGTHS_FILE = Path(__file__).parent / "sst2_lengths.json"
# A few rows of several lengths, padded: what the runtimes' logits are compared on.
CHECK: Shape = [[32, 20, 7, 13]]


def count_lengths(parquet: str, tokenizer: str) -> dict[int, int]:
    """Number of tokens -> number of sentences, of a parquet's column `sentence`; how the committed file was made."""
    import pandas as pd
    from transformers import AutoTokenizer

    encoded = AutoTokenizer.from_pretrained(tokenizer)(pd.read_parquet(parquet)["sentence"].tolist())["input_ids"]
    return dict(sorted(Counter(map(len, encoded)).items()))


def read_lengths(path: Path = LENGTHS_FILE) -> dict[int, int]:
    """The committed counts."""
    return {int(length): count for length, count in json.loads(path.read_text()).items()}


def make_shape(name: str, lengths: dict[int, int], sst2_batches: int, seed: int) -> Shape:
    """The row lengths of a named shape: "rows x tokens" in full, or `sst2_batches` draws of 32 real lengths."""
    if name != SST2:
        rows, tokens = {**FIXED, **HELD_OUT}[name]
        return [[tokens] * rows]
    population = [length for length, count in lengths.items() for _ in range(count)]
    random.Random(seed).shuffle(population)
    return [population[32 * i : 32 * (i + 1)] for i in range(sst2_batches)]


def make_batches(shape: Shape, vocab_size: int, seed: int) -> list[Batch]:
    """Random tokens of these lengths, as a tokenizer gives them: ids, mask, token types; int64, `(rows, longest)`."""
    generator = np.random.default_rng(seed)
    batches = []
    for rows in shape:
        lengths = np.array(rows)[:, None]
        mask = (np.arange(lengths.max())[None] < lengths).astype(np.int64)
        ids = generator.integers(1, vocab_size, mask.shape) * mask
        batches.append({"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)})
    return batches
