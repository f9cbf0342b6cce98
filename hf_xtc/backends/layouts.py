"""Memory layouts of codes for the native operator: packed, and the one measured to be the fastest.

Layouts are exact: every one gives the same bits, so the choice may depend on measured times. The variant of the
operator, whose float steps may differ in the last bit, is never chosen by times: it follows from the instruction set,
or from `XTC_NATIVE`. Runs without PyTorch.
"""

from typing import NamedTuple

from hf_xtc.backends.calibration import Times, measured, processor
from hf_xtc.native.arrays import BYTES, NIBBLES, PAIRS, SEXTETS
from hf_xtc.native.library import variant

NAMES = {BYTES: "bytes", PAIRS: "pairs", NIBBLES: "nibbles", SEXTETS: "sextets"}

_LEVELS = {"binary": 2, "ternary": 3}
# Weights of as many rows or columns, at most, are taken to be of a model that caches may hold; larger ones come from
# memory at every use, where bytes are slow to read.
_CACHED = 512
# How much slower than the best layout the default may be before it is replaced: times are noisy.
_CLEARLY = 1.05

# Processors that `benchmarks/products.py` measured: processor -> variant and quantizer -> layouts of weights that
# caches may hold, and of others.
_TABLE: dict[str, dict[tuple[str, str], tuple[int, int]]] = {
    "AuthenticAMD family 26 model 2": {  # Zen 5
        ("avx512_vbmi", "binary"): (SEXTETS, SEXTETS),
        ("avx512_vbmi", "ternary"): (PAIRS, PAIRS),
        ("avx512_vnni", "binary"): (PAIRS, PAIRS),
        ("avx512_vnni", "ternary"): (PAIRS, PAIRS),
        ("avx2", "binary"): (NIBBLES, NIBBLES),
        ("avx2", "ternary"): (BYTES, PAIRS),
    },
}


def packed_layout(quantizer: str) -> int | None:
    """The layout that keeps the codes of a quantizer packed, or `None` if there is none."""
    return {"binary": NIBBLES, "ternary": PAIRS}.get(quantizer)


def candidates(native: str | None, quantizer: str) -> tuple[int, ...]:
    """The layouts that a variant of the native operator multiplies without expanding them first, its default first.

    Defaults are what was the fastest on the processors at hand. On ARM, where nothing was timed, instructions were
    counted (`benchmarks/instructions.py`): dot products need fewer for bytes than lookups do, and without dot products
    lookups need half as many as bytes. In portable code bytes were always the fastest.
    """
    if quantizer not in _LEVELS or native in (None, "portable"):
        return (BYTES,)
    if native in ("avx512_vbmi", "avx512_vnni"):  # they multiply pairs as fast as bytes, and read a quarter of these
        if quantizer == "ternary":
            return (PAIRS, BYTES)
        return (SEXTETS, PAIRS, NIBBLES) if native == "avx512_vbmi" else (PAIRS, NIBBLES)
    if quantizer == "ternary":
        return (BYTES, PAIRS)
    return (BYTES, NIBBLES) if native in ("neon_dotprod", "neon_i8mm") else (NIBBLES, BYTES)


class Choice(NamedTuple):
    """A layout, the weights that it was chosen for, and why; the last two in words."""

    layout: int
    weights: str
    source: str


def choose_layout(quantizer: str, rows: int, columns: int) -> Choice:
    """The fastest layout for weights of `rows x columns`, on the instruction set in use.

    Where the processor is in the table, that decides. Elsewhere times decide: see `calibration.measured`.
    """
    native = variant()
    layouts = candidates(native, quantizer)
    if len(layouts) == 1:
        return Choice(layouts[0], f"{quantizer} weights", "without another way")
    cached = min(rows, columns) <= _CACHED
    size = f"at most {_CACHED} rows or columns" if cached else f"more than {_CACHED} rows and columns"
    known = _TABLE.get(processor(), {}).get((str(native), quantizer))
    if known is not None:
        return Choice(known[0 if cached else 1], f"{quantizer} weights of {size}", "by the table of known processors")
    times, source = measured(_LEVELS[quantizer], layouts, cached)
    return Choice(fastest(times, layouts[0]), f"{quantizer} weights of {size}", source)


def fastest(times: Times, default: int) -> int:
    """The layout whose worst cell (a number of tokens, codes in the caches or not) is nearest to the best there.

    A layout is made once, for batches of any size. The default stays unless its worst cell is 5 % worse than that of
    another layout.
    """
    best = [min(cell) for cell in zip(*times.values(), strict=True)]
    worst = {
        layout: max(own / least for own, least in zip(cells, best, strict=True)) for layout, cells in times.items()
    }
    chosen = min(worst, key=lambda layout: (worst[layout], layout))
    return chosen if worst[default] > _CLEARLY * worst[chosen] else default


def fastest_layout(quantizer: str, rows: int, columns: int) -> int:
    """The layout of `choose_layout`."""
    return choose_layout(quantizer, rows, columns).layout


# While compiling, a constant, as `torch.compiler.assume_constant_result` makes it; that would import the compiler.
fastest_layout._dynamo_marked_constant = True  # type: ignore[attr-defined]


def describe_choice(quantizer: str, rows: int, columns: int) -> str:
    """The variant and the processor, the layout of `choose_layout` and why, in words."""
    choice = choose_layout(quantizer, rows, columns)
    return (
        f"the native operator ({variant()}) on {processor()}: "
        f"{choice.weights} as {NAMES[choice.layout]}, {choice.source}"
    )
