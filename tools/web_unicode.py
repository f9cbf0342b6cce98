"""Writes web/src/unicode.js: the classes of characters that the tokenizers library goes by.

Its tables are of an older Unicode than those of browsers, which differ among themselves; so the module in JavaScript
carries them. They are read from the library character by character.

Usage: python tools/web_unicode.py
"""

from itertools import chain
from pathlib import Path

from tokenizers.normalizers import NFD, BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

FILE = Path(__file__).parent.parent / "web" / "src" / "unicode.js"
HEAD = """// Written by tools/web_unicode.py. The classes of characters that the tokenizers library goes by, as ranges:
// pairs of a gap after the range before and a length less one, in base 36.
"""
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def classes() -> dict[str, list[int]]:
    """Code points of each class.

    REMOVED are no characters for BertNormalizer, MARKS are what it takes for accents, PUNCTUATION stands alone, and of
    those above U+FFFF DECOMPOSED are taken apart by NFD (of those below, all versions of Unicode take the same ones).
    """
    options = {"handle_chinese_chars": False, "lowercase": False}
    clean = BertNormalizer(clean_text=True, strip_accents=False, **options)
    strip = BertNormalizer(clean_text=False, strip_accents=True, **options)
    split, nfd = BertPreTokenizer(), NFD()
    found: dict[str, list[int]] = {"REMOVED": [], "MARKS": [], "PUNCTUATION": [], "DECOMPOSED": []}
    for code in chain(range(0xD800), range(0xE000, 0x110000)):
        text = chr(code)
        if not clean.normalize_str(text):
            found["REMOVED"].append(code)
        if not strip.normalize_str(text):
            found["MARKS"].append(code)
        if len(split.pre_tokenize_str(f"a{text}b")) == 3:
            found["PUNCTUATION"].append(code)
        if code > 0xFFFF and nfd.normalize_str(text) != text:
            found["DECOMPOSED"].append(code)
    return found


def packed(codes: list[int]) -> str:
    """Sorted code points as ranges in text."""
    ranges: list[list[int]] = []
    for code in codes:
        if ranges and code == ranges[-1][1] + 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    numbers, at = [], 0
    for first, last in ranges:
        numbers += [first - at, last - first]
        at = last
    return " ".join(_base_36(number) for number in numbers)


def _base_36(number: int) -> str:
    digits = ""
    while number or not digits:
        number, digit = divmod(number, 36)
        digits = DIGITS[digit] + digits
    return digits


def content() -> str:
    """The text of the file."""
    return HEAD + "".join(f'export const {name} = "{packed(codes)}";\n' for name, codes in classes().items())


if __name__ == "__main__":
    FILE.write_text(content())
