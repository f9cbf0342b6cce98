"""Memory layouts of codes for the native operator: packed, and the one measured to be the fastest."""

from hf_xtc.native.encoder import BYTES, NIBBLES, PAIRS
from hf_xtc.native.library import variant


def packed_layout(quantizer: str) -> int | None:
    """The layout that keeps the codes of a quantizer packed, or `None` if there is none."""
    return {"binary": NIBBLES, "ternary": PAIRS}.get(quantizer)


def fastest_layout(quantizer: str) -> int:
    """The default layout on the instruction set in use.

    Binary codes are looked up in tables of the sums of four activations; all others are multiplied as bytes. Lookups
    were faster on AMD processors with AVX2. On one with AVX512-VNNI (Zen 5, encoders 768 and 384 wide) they took
    0.3 to 1.14 times the time of byte products, least for a single short row, and an eighth of the memory.
    """
    return NIBBLES if quantizer == "binary" and variant() != "portable" else BYTES
