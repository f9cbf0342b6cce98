"""`hf-xtc predict`: classifies, ranks or embeds texts by `hf_xtc.runtime`, without PyTorch and transformers."""

import csv
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_xtc.checks import check_count, check_given
from hf_xtc.errors import DataError, RecipeError
from hf_xtc.files.safe_json import parse_json
from hf_xtc.files.writing import write_text
from hf_xtc.runs.plain_parser import Formatter, PlainParser

# Columns that hold the text where none is named, and suffixes of the files that are read and written.
TEXT_COLUMNS = ("text", "sentence")
INPUTS = (".txt", ".csv", ".tsv", ".json", ".jsonl")
OUTPUTS = (".csv", ".jsonl")


@dataclass
class PredictArguments:
    """What to classify, rank or embed, and with which model.

    Args:
        model (`str`): Folder or Hub id of a packed classifier, reranker or sentence embedder.
        file (`str`, *optional*): Texts; standard input, a text a line, if it is left out.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        output_file (`str`, *optional*): `.csv` or `.jsonl`, embeddings `.jsonl` only; without one, standard output.
        text_column, text_pair_column (`str`, *optional*): Columns of a table.
        top_k (`int`): Labels of each text.
        batch_size, threads, max_length (`int`): As in `hf_xtc.runtime.Pipeline`.

    Raises:
        RecipeError: if a value is invalid.
    """

    model: str
    file: str | None = None
    revision: str | None = None
    output_file: str | None = None
    text_column: str | None = None
    text_pair_column: str | None = None
    top_k: int = 1
    batch_size: int = 32
    threads: int | None = None
    max_length: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None:
                check_given(name, value)
        for name in ("top_k", "batch_size", "threads", "max_length"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if self.revision is not None and Path(self.model).is_dir():
            raise RecipeError(
                f"--revision={self.revision} is for a model on the Hub, but {self.model} is a folder. Leave it out."
            )
        for name, value, known in (("file", self.file, INPUTS), ("output_file", self.output_file, OUTPUTS)):
            if value is not None and Path(value).suffix not in known:
                raise RecipeError(f"--{name}={value} must end in one of: {', '.join(known)}.")
        if self.output_file is not None and not Path(self.output_file).parent.is_dir():
            raise RecipeError(f"--output_file={self.output_file}: there is no such folder. Make it first.")
        table = self.file is not None and Path(self.file).suffix != ".txt"
        if not table and (self.text_column or self.text_pair_column):
            raise RecipeError(
                f"--text_column={self.text_column} and --text_pair_column={self.text_pair_column} name columns of a "
                "table, but the texts are lines. Leave them out."
            )


class PredictParser(PlainParser):
    """The parser of `hf-xtc predict`; model and file may be options, too."""

    def __init__(self, prog: str, usage: str):
        super().__init__(prog=prog, usage=usage, formatter_class=Formatter)
        self.add_argument("positional model", nargs="?", metavar="MODEL", help="folder or Hub id of a packed model")
        self.add_argument(
            "positional file", nargs="?", metavar="FILE", help="texts (.txt, .csv, .tsv, .json, .jsonl); else stdin"
        )
        for name, kind, help_text in (
            ("model", str, "MODEL"),
            ("file", str, "FILE"),
            ("revision", str, "branch, tag or commit on the Hub"),
            ("output_file", str, "write to this .csv or .jsonl file, not to standard output"),
            ("text_column", str, f"column of the texts (default: {' or '.join(TEXT_COLUMNS)})"),
            ("text_pair_column", str, "column of the second texts of pairs"),
            ("top_k", int, "labels of each text, the best first (default 1)"),
            ("batch_size", int, "texts that are computed at once (default 32)"),
            ("threads", int, "threads (default: all cores)"),
            ("max_length", int, "tokens to which texts are truncated (default: the model's limit)"),
        ):
            self.add_argument(f"--{name}", type=kind, help=help_text)

    def options(self, arguments: Sequence[str]) -> tuple[PredictArguments]:
        """Parses the arguments; errors of argparse end the process with status 2.

        Raises:
            RecipeError: if a value is invalid.
        """
        self._require_known(list(arguments))
        found = {name: value for name, value in vars(self.parse_args(arguments)).items() if value is not None}
        for name in ("model", "file"):
            if (value := found.pop(f"positional {name}", None)) is not None:
                found[name] = value
        if "model" not in found:
            self.error("the following arguments are required: MODEL")
        return (PredictArguments(**found),)


def run_predict(args: PredictArguments) -> None:
    """Writes a record for each label of a text: number of the row from 0, label, and score.

    A reranker has one score for each pair and no labels. A sentence embedder's records, as JSON lines, are the number
    of the row and the `embedding`.

    Raises:
        XTCError: if the texts or the model cannot be read, or the model does none of these.
    """
    from hf_xtc.runtime import Pipeline  # imports numpy and tokenizers, which --help does not need

    texts = read_texts(args)
    pipe = Pipeline(args.model, revision=args.revision, threads=args.threads, max_length=args.max_length)
    lines = pipe.task == "sentence-embedding"
    if lines and (args.output_file or "").endswith(".csv"):
        raise RecipeError(f"--output_file={args.output_file} cannot hold embeddings. Name a .jsonl file.")
    records = _records(pipe, texts, args)
    if lines or (args.output_file or "").endswith(".jsonl"):
        written = "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)
    else:
        written = _csv(records)
    if args.output_file is None:
        sys.stdout.write(written)
    else:
        write_text(args.output_file, written)


def _records(pipe: Any, texts: list[Any], args: PredictArguments) -> list[dict[str, Any]]:
    if pipe.task == "sentence-embedding":
        vectors = pipe.embed(texts, batch_size=args.batch_size).tolist()
        return [{"row": row, "embedding": vector} for row, vector in enumerate(vectors)]
    if pipe.task == "reranking":
        if texts and isinstance(texts[0], str):
            raise DataError(
                f"{args.model} ranks passages for queries, and there are texts alone. Give a table with --text_column "
                "QUERY --text_pair_column PASSAGE."
            )
        found: list[Any] = pipe(texts, batch_size=args.batch_size)
        return [{"row": row, "score": best["score"]} for row, best in enumerate(found)]
    found = pipe(texts, top_k=args.top_k, batch_size=args.batch_size)
    rows = enumerate([best] if args.top_k == 1 else best for best in found)
    return [{"row": row, **entry} for row, entries in rows for entry in entries]


def _csv(records: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    names = ("row", "score") if records and "label" not in records[0] else ("row", "label", "score")
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**record, "score": f"{record['score']:.6f}"} for record in records)
    return text.getvalue()


def read_texts(args: PredictArguments) -> list[Any]:
    """The texts of a file or of standard input; tuples of two with `text_pair_column`.

    Raises:
        DataError: if the file cannot be read, or lacks a column.
    """
    name = args.file or "standard input"
    try:
        if args.file is None:
            return sys.stdin.read().splitlines()
        with open(args.file, encoding="utf-8-sig", newline="") as file:
            content = file.read()
        suffix = Path(args.file).suffix
        if suffix == ".txt":
            return content.splitlines()
        rows = _rows(content, suffix)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{name} cannot be read ({error}).") from error
    if rows and all(isinstance(row, str) for row in rows) and not (args.text_column or args.text_pair_column):
        return rows
    column = args.text_column or next((c for c in TEXT_COLUMNS if rows and c in rows[0]), TEXT_COLUMNS[0])
    columns = [column, *([args.text_pair_column] if args.text_pair_column else [])]
    texts = []
    for number, row in enumerate(rows):
        values = [row.get(column) if isinstance(row, dict) else None for column in columns]
        if not all(isinstance(value, str) for value in values):
            raise DataError(f"Row {number} of {name} has no text in {' and '.join(columns)}. Give --text_column.")
        texts.append(values[0] if len(values) == 1 else tuple(values))
    return texts


def _rows(content: str, suffix: str) -> list[Any]:
    if suffix in (".csv", ".tsv"):
        return list(csv.DictReader(io.StringIO(content), delimiter="\t" if suffix == ".tsv" else ",", strict=True))
    if suffix == ".jsonl":
        return [parse_json(line) for line in content.splitlines() if line.strip()]
    rows = parse_json(content)
    if not isinstance(rows, list):
        raise ValueError("it is not a list of texts or objects")
    return rows
