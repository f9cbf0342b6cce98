"""Tokenizes every text of the validation splits of a folder of data in Python and in JavaScript, and compares.

Ids, token types, parts and places must be equal, of texts and of pairs.

Usage: python tests/stress/tokenize_web.py --data_dir data [--output_file benchmarks/results/tokenize_web.json]
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
from node import EXAMPLE, Process
from tokenizers import Tokenizer
from web_texts import utf16_places

from hf_xtc.files.writing import write_json

CHUNK = 1000
PAIRS = [("sentence1", "sentence2"), ("question", "context"), ("question", "sentence"), ("query", "passage")]


def texts_of(file: Path) -> Iterator[str | list[str]]:
    """Every text of a table, and the pairs of its rows; lists of words are joined."""
    table = parquet.read_table(file).to_pydict()
    columns: dict[str, list[Any]] = {}
    for name, values in table.items():
        first = next((value for value in values if value), None)
        if isinstance(first, str):
            columns[name] = values
        elif isinstance(first, list) and isinstance(first[0], str):
            columns[name] = [" ".join(value) for value in values]
    for values in columns.values():
        yield from (value for value in values if value is not None)
    for first, second in PAIRS:
        if first in columns and second in columns:
            yield from (list(pair) for pair in zip(columns[first], columns[second], strict=True) if None not in pair)


def differences(texts: list[Any], tokenizer: Tokenizer, node: Process, longest: int) -> list[Any]:
    """The texts that are tokenized otherwise in JavaScript."""
    found = node(folder=str(EXAMPLE), texts=texts, longest=longest)["encodings"]
    encodings = tokenizer.encode_batch([text if isinstance(text, str) else tuple(text) for text in texts])
    return [
        text
        for text, own, other in zip(texts, found, encodings, strict=True)
        if (own["ids"], own["types"], own["places"]) != (other.ids, other.type_ids, utf16_places(text, other))
    ]


def compare(data: Path, longest: int = 512) -> dict[str, dict[str, int]]:
    """The number of texts of each validation split under a folder, and of those that differ."""
    tokenizer, node = Tokenizer.from_file(str(EXAMPLE / "tokenizer.json")), Process("encode.mjs")
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest)
    results = {}
    for file in sorted(data.rglob("validation*.parquet")):
        texts = list(texts_of(file))
        wrong = []
        for start in range(0, len(texts), CHUNK):
            wrong += differences(texts[start : start + CHUNK], tokenizer, node, longest)
        results[str(file.parent.relative_to(data))] = {"texts": len(texts), "different": len(wrong)}
        for text in wrong[:3]:
            print(f"different: {text!r}")
    node.close()
    return results


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--output_file", type=Path)
    args = parser.parse_args(argv)
    results = compare(args.data_dir)
    for name, counts in results.items():
        print(f"{name}: {counts['different']} of {counts['texts']} texts differ")
    if args.output_file is not None:
        write_json(args.output_file, results)


if __name__ == "__main__":
    main()
