"""How codes lie in memory for the native operator: packed, or in the way that was measured to be the fastest."""

from hf_xtc.native.encoder import BYTES, NIBBLES, PAIRS
from hf_xtc.native.library import variant


def packed_layout(quantizer: str) -> int | None:
    """The layout that keeps the codes of a quantizer packed, or `None` if there is none."""
    return {"binary": NIBBLES, "ternary": PAIRS}.get(quantizer)


def fastest_layout(quantizer: str) -> int:
    """The layout that was measured to be the fastest on the instruction set in use.

    Binary codes are looked up in tables of the sums of four activations; all others are multiplied as bytes. With AVX2
    lookups are faster throughout. With AVX512-VNNI they are faster for few tokens, within a tenth of the byte products
    for many, and take an eighth of the memory.
    """
    return NIBBLES if quantizer == "binary" and variant() != "portable" else BYTES
