"""Memory layouts of codes for the native operator: packed, and the one measured to be the fastest."""

from hf_xtc.native.arrays import BYTES, NIBBLES, PAIRS, SEXTETS
from hf_xtc.native.library import variant


def packed_layout(quantizer: str) -> int | None:
    """The layout that keeps the codes of a quantizer packed, or `None` if there is none."""
    return {"binary": NIBBLES, "ternary": PAIRS}.get(quantizer)


def fastest_layout(quantizer: str) -> int:
    """The default layout on the instruction set in use.

    Binary codes are looked up in tables of the sums of four activations, with VBMI of six; others are multiplied as
    bytes. Lookups of four were faster than bytes on AMD processors with AVX2. On a Zen 5, lookups of six do 1.2 to 1.6
    times as much in a second as lookups of four, and 1.06 to 1.5 times as much as bytes of VNNI, in a sixth of their
    memory (`benchmarks/products.py`). No Intel processor with VBMI was measured.
    """
    chosen = variant()
    if quantizer != "binary" or chosen == "portable":
        return BYTES
    return SEXTETS if chosen == "avx512_vbmi" else NIBBLES
