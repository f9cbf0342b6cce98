"""Writes the data of the embedding runs of `tasks.py`: texts one a line, and the scored pairs of STS-B's dev split.

Texts are those of the train splits below `--data_dir`, each once; texts of any validation split are left out.
Paragraphs are cut into sentences.

    python benchmarks/texts.py --data_dir data --output_dir data/embedding
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from transformers import HfArgumentParser

from hf_xtc.files.writing import write_text

PAIR = ("sentence1", "sentence2")
# Folder -> columns of texts; "tokens" are words, "context" is a paragraph.
COLUMNS = {
    "glue/sst2": ("sentence",),
    **dict.fromkeys(("glue/stsb", "glue/mrpc", "glue/rte"), PAIR),
    "glue/cola": ("sentence",),
    **dict.fromkeys(("banking77", "emotion", "go_emotions", "trec"), ("text",)),
    "trec_qa": ("query", "passage"),
    "squad_dev": ("context", "question"),
    "wnut17": ("tokens",),
    "sts": PAIR,
}
SHORTEST = 3  # characters


@dataclass
class TextArguments:
    """Where the data are, and where the texts go."""

    data_dir: str = field(metadata={"help": "Folder with <name>/train.parquet and <name>/validation.parquet."})
    output_dir: str = field(metadata={"help": "Gets train.txt and validation.parquet."})


def texts(data_dir: Path, name: str, split: str) -> Iterator[str]:
    """The texts of a split, without runs of spaces; nothing if there is no such split."""
    file = data_dir / name / f"{split}.parquet"
    if not file.exists():
        return
    rows = pd.read_parquet(file)
    for column in COLUMNS[name]:
        found = rows[column].tolist()
        if column == "context":
            found = [part for text in dict.fromkeys(found) for part in re.split(r"(?<=[.!?])\s+", text)]
        for text in found:
            yield " ".join(text.split() if isinstance(text, str) else text)


def main() -> None:
    """Writes both files."""
    (args,) = HfArgumentParser(TextArguments).parse_args_into_dataclasses()
    data, out = Path(args.data_dir), Path(args.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    held_out = {text.lower() for name in COLUMNS for text in texts(data, name, "validation")}
    kept: dict[str, str] = {}
    for name in COLUMNS:
        for text in texts(data, name, "train"):
            if len(text) >= SHORTEST and text.lower() not in held_out:
                kept.setdefault(text.lower(), text)
    write_text(out / "train.txt", "\n".join(kept.values()) + "\n")
    pairs = pd.read_parquet(data / "glue" / "stsb" / "validation.parquet")
    pairs[[*PAIR, "label"]].to_parquet(out / "validation.parquet")
    print(f"{len(kept)} texts, {len(pairs)} pairs")


if __name__ == "__main__":
    main()
