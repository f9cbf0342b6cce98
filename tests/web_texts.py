"""Texts that tokenizers find hard, and places of tokens as JavaScript counts them."""

import random

HARD = "éñüİßΣςǅﬁ½①™ŉ각ẞ\u0301\u0308\u093f\ufe0f\u200d\x00\x85\ufeff\u3000\u2028\t\n\r"
PARTS = ["[MASK]", "[SEP] ", "##ing", " ", " the ", " running", "don't", "北京", "👩‍👩‍👧", "ไทย", "…", "“a”"]


def random_texts(count, seed=0):
    """Texts, and pairs as lists, of up to 60 pieces; the same ones for the same seed."""
    rng = random.Random(seed)
    ascii_letters = [lambda: chr(rng.randrange(32, 127))] * 3
    pieces = [
        *ascii_letters,
        lambda: rng.choice(HARD),
        lambda: rng.choice(PARTS),
        lambda: chr(rng.randrange(0x4E00, 0x9FFF)),
        lambda: chr(rng.randrange(0x1F300, 0x1FAFF)),
        lambda: chr(rng.randrange(0xD800)),
        lambda: chr(rng.randrange(0xE000, 0x110000)),
    ]

    def text():
        return "".join(rng.choice(pieces)() for _ in range(rng.randrange(60)))

    return [text() if rng.random() < 0.8 else [text(), text()] for _ in range(count)]


def utf16_places(text, encoding):
    """The places of an encoding's tokens in UTF-16 units; special tokens are at [0, 0]."""
    units = []
    for part in [text] if isinstance(text, str) else text:
        at = [0]
        for character in part:
            at.append(at[-1] + 1 + (ord(character) > 0xFFFF))
        units.append(at)
    return [
        [0, 0] if part is None else [units[part][start], units[part][end]]
        for part, (start, end) in zip(encoding.sequence_ids, encoding.offsets, strict=True)
    ]
