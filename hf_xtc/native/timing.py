"""Times products of the native operator, to choose among the layouts of a weight. Runs without PyTorch."""

import ctypes
import time
from collections.abc import Callable, Sequence

import numpy as np

from hf_xtc.native.arrays import WeightStruct
from hf_xtc.native.library import call, library

TOKENS = (16, 128)
# Rounds of each number of tokens: as many as fit the seconds, within these limits.
_ROUNDS = range(3, 9)
_SECONDS = 1e-3
_ALIGNMENT = 64


def product_seconds(
    levels: int,
    layouts: Sequence[int],
    rows: int,
    columns: int,
    *,
    cached: bool,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[int, list[float]]:
    """Times products by random codes, on one thread of the variant in use; takes a few milliseconds.

    Codes come from memory, as they do in a model that is larger than the caches: they are dropped from these where the
    processor lets a program do that (x86, and ARM on Linux).

    Args:
        levels (`int`): Of the codes: 2 or 3.
        layouts (`Sequence[int]`): Of the codes. They take turns, so that a disturbance meets all of them.
        rows, columns (`int`): Of the weight.
        cached (`bool`): Whether to time products by codes that come from the caches, too.
        clock: Returns seconds.

    Returns:
        `dict[int, list[float]]`: Layout -> least seconds of a product for each of `TOKENS`, from memory and, with
        `cached`, from the caches.

    Raises:
        RuntimeError: where the native operator is not in use.
    """
    loaded = library()
    if loaded is None:
        raise RuntimeError("The native operator was not built.")
    sizes = {layout: loaded.xtc_layout_bytes(layout, rows, columns) for layout in layouts}
    codes = {layout: _random_codes(levels, size) for layout, size in sizes.items()}
    scale, bias = np.ones(rows + _ALIGNMENT, np.float32), np.zeros(rows + _ALIGNMENT, np.float32)
    pointers = scale.ctypes.data, bias.ctypes.data
    weights = {
        layout: WeightStruct(layout, levels, rows, columns, values.ctypes.data, *pointers)
        for layout, values in codes.items()
    }
    seconds: dict[int, list[float]] = {layout: [] for layout in layouts}
    for tokens in TOKENS:
        x = np.sin(np.arange(tokens * columns, dtype=np.float32))
        out = np.empty((tokens, rows), np.float32)
        times: dict[int, list[list[float]]] = {layout: [] for layout in layouts}
        begin = clock()
        for done in range(_ROUNDS.stop):
            if done >= _ROUNDS.start and clock() - begin > _SECONDS:
                break
            for layout, weight in weights.items():
                operands = ctypes.byref(weight), x.ctypes.data, tokens, out.ctypes.data
                loaded.xtc_evict(weight.codes, codes[layout].size)
                times[layout].append([])
                for _ in range(1 + cached):
                    start = clock()
                    call("xtc_linear", *operands, threads=1)
                    times[layout][-1].append(clock() - start)
        for layout in layouts:
            seconds[layout] += map(min, zip(*times[layout], strict=True))
    return seconds


def _random_codes(levels: int, size: int) -> np.ndarray:
    """Bytes that are codes in any layout; `numpy.random` would take longer to import than all of this."""
    page = ((np.arange(4096) * 40503 >> 7) % levels).astype(np.uint8)
    codes = np.resize(page, size + _ALIGNMENT)
    start = -codes.ctypes.data % _ALIGNMENT
    return codes[start : start + size]
