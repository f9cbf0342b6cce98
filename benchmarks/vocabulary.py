"""Counts the tokens that `--trim_vocabulary N` leaves of a tokenizer for the texts of a task, for several N.

python benchmarks/vocabulary.py --texts_file data/glue/sst2/train.parquet --output_file vocabulary.json
"""

import argparse
import json
import sys
from pathlib import Path

import pyarrow.parquet as parquet
from transformers import AutoTokenizer

from hf_xtc.compression.vocabulary import count_tokens, kept_tokens
from hf_xtc.files.writing import write_json
from machine import facts

EXAMPLE = Path(__file__).parent.parent / "examples" / "minilm-3l-1bit-sst2"


def main(argv: list[str] | None = None) -> None:
    """Prints the counts, and writes them if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", default=str(EXAMPLE), help="folder of a fast tokenizer")
    parser.add_argument("--texts_file", required=True, help="Parquet file")
    parser.add_argument("--column", default="sentence", help="of the texts")
    parser.add_argument("--min_counts", type=int, nargs="+", default=[1, 2, 5], help="the N")
    parser.add_argument("--output_file", help="JSON file for the results")
    args = parser.parse_args(argv)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    texts = parquet.read_table(args.texts_file, columns=[args.column])[args.column].to_pylist()
    counts = count_tokens(tokenizer, texts)
    kept = {str(n): len(kept_tokens(tokenizer, counts, min_count=n)) for n in args.min_counts}
    found = {**facts(1, "hf_xtc"), "tokens": len(tokenizer), "texts": len(texts), "kept": kept}
    print(json.dumps(found, indent=2))
    if args.output_file is not None:
        write_json(args.output_file, found)


if __name__ == "__main__":
    main(sys.argv[1:])
