"""`hf-xtc predict`: classifies, tags, answers, ranks or embeds texts.

By `hf_xtc.runtime`, without PyTorch, where it can. Models that it does not run are computed by PyTorch, if that is
installed.
"""

import csv
import gzip
import io
import json
import logging
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hf_xtc.checks import check_choice, check_count, check_given, check_range
from hf_xtc.data.separators import check_separator, parse_separator
from hf_xtc.errors import DataError, PackedFileError, RecipeError, StateError
from hf_xtc.files.safe_json import parse_json
from hf_xtc.files.writing import write_bytes
from hf_xtc.runs.plain_parser import Formatter, PlainParser

logger = logging.getLogger(__name__)

# Columns that hold the text where none is named.
TEXT_COLUMNS = ("text", "sentence")
QUESTION_COLUMNS = ("question", "context")
# Formats that are read and written; the suffixes of files are their names.
INPUTS = ("txt", "csv", "tsv", "json", "jsonl")
OUTPUTS = ("csv", "jsonl")
ARRAYS = ("npy", "safetensors")  # of embeddings
STRATEGIES = ("none", "simple", "first", "average", "max")
# Task -> the fields of its records after `row`.
FIELDS = {
    "sequence-classification": ("label", "score"),
    "multi-label-classification": ("label", "score"),
    "regression": ("score",),
    "reranking": ("score",),
    "token-classification": ("entity_group", "score", "word", "start", "end"),
    "question-answering": ("answer", "score", "start", "end"),
    "masked-lm": ("mask", "token", "score"),
    "sentence-embedding": ("embedding",),
}
TOKEN_FIELDS = ("entity", "score", "index", "word", "start", "end")  # of tags that are not aggregated
# Options of one task -> that task.
OF_TASK = {
    "threshold": "multi-label-classification",
    "aggregation_strategy": "token-classification",
    "doc_stride": "question-answering",
    "unanswerable": "question-answering",
}


@dataclass
class PredictArguments:
    """What to predict, and with which model.

    Args:
        model (`str`): Folder or Hub id of a model.
        file (`str`, *optional*): Texts; standard input, if it is left out.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        output_file (`str`, *optional*): `.csv` or `.jsonl`, embeddings also `.npy` or `.safetensors`; without one,
            standard output.
        input_format, output_format (`str`, *optional*): Of standard input (default txt) and output (default csv), and
            of files without the suffix of theirs.
        separator (`str`, *optional*): The character between the cells of csv and tsv.
        text_column, text_pair_column (`str`, *optional*): Columns of a table.
        top_k (`int`, *optional*): Labels of each text, or tokens of each mask; 1 by default, but of multi-label models
            all labels above `threshold`.
        threshold (`float`, *optional*): Of a multi-label model's probabilities, 0.5 by default.
        aggregation_strategy (`str`, *optional*): Of tags, "simple" by default, as in transformers' pipeline.
        doc_stride (`int`, *optional*): Tokens that windows of a long context share; a third of the length by default.
        unanswerable (`bool`): Whether a context may hold no answer, also for a model that has not seen such rows.
        batch_size, threads, max_length (`int`): As in `hf_xtc.runtime.Pipeline`.

    Raises:
        RecipeError: if a value is invalid.
    """

    model: str
    file: str | None = None
    revision: str | None = None
    output_file: str | None = None
    input_format: str | None = None
    output_format: str | None = None
    separator: str | None = None
    text_column: str | None = None
    text_pair_column: str | None = None
    top_k: int | None = None
    threshold: float | None = None
    aggregation_strategy: str | None = None
    doc_stride: int | None = None
    unanswerable: bool = False
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
        if self.threshold is not None:
            check_range("threshold", self.threshold, 0, 1)
            if self.top_k is not None:
                raise RecipeError(f"--threshold={self.threshold} and --top_k={self.top_k} exclude each other.")
        if self.aggregation_strategy is not None:
            check_choice("aggregation_strategy", self.aggregation_strategy, STRATEGIES)
        if self.doc_stride is not None:
            check_range("doc_stride", self.doc_stride, 0, self.max_length or 2**31)
        if self.revision is not None and Path(self.model).is_dir():
            raise RecipeError(
                f"--revision={self.revision} is for a model on the Hub, but {self.model} is a folder. Leave it out."
            )
        if self.separator is not None:
            self.separator = parse_separator(self.separator)
        self.input_format = _format("file", self.file, self.input_format, INPUTS) or "txt"
        outputs = (*OUTPUTS, *ARRAYS) if self.output_file is not None else OUTPUTS
        self.output_format = _format("output_file", self.output_file, self.output_format, outputs)
        if self.output_file is not None and not Path(self.output_file).parent.is_dir():
            raise RecipeError(f"--output_file={self.output_file}: there is no such folder. Make it first.")
        if self.input_format == "txt" and (self.text_column or self.text_pair_column):
            raise RecipeError(
                f"--text_column={self.text_column} and --text_pair_column={self.text_pair_column} name columns of a "
                "table, but the texts are lines. Leave them out, or pass --input_format."
            )


def _format(option: str, file: str | None, given: str | None, known: Sequence[str]) -> str | None:
    """The format of a file: the given one, or that of its suffix."""
    name = "input_format" if option == "file" else "output_format"
    if given is not None:
        check_choice(name, given, tuple(known))
        return given
    if file is None:
        return None
    suffix = Path(file.removesuffix(".gz") if option == "file" else file).suffix.removeprefix(".")
    if suffix not in known:
        raise RecipeError(f"--{option}={file} must end in one of: {', '.join(f'.{kind}' for kind in known)}.")
    return suffix


class PredictParser(PlainParser):
    """The parser of `hf-xtc predict`; model and file may be options, too."""

    def __init__(self, prog: str, usage: str):
        super().__init__(prog=prog, usage=usage, formatter_class=Formatter)
        self.add_argument("positional model", nargs="?", metavar="MODEL", help="folder or Hub id of a model")
        self.add_argument(
            "positional file", nargs="?", metavar="FILE", help="texts (.txt, .csv, .tsv, .json, .jsonl); else stdin"
        )
        for name, kind, help_text in (
            ("model", str, "MODEL"),
            ("file", str, "FILE"),
            ("revision", str, "branch, tag or commit on the Hub"),
            ("output_file", str, "write to this .csv or .jsonl (embeddings: .npy, .safetensors), not to stdout"),
            ("input_format", str, f"{', '.join(INPUTS)}; default: by FILE's suffix, of stdin txt, a text a line"),
            ("output_format", str, "csv or jsonl; default: by the suffix, of stdout csv (embeddings: jsonl)"),
            ("separator", str, "character between the cells of csv and tsv; default: comma and tab"),
            ("text_column", str, f"column of texts (default: {' or '.join(TEXT_COLUMNS)}), queries or questions"),
            ("text_pair_column", str, "column of the second texts of pairs: passages, contexts"),
            ("top_k", int, "labels of each text, or tokens of each mask, the best first (default 1)"),
            ("threshold", float, "multi-label models: the least probability of a label (default 0.5)"),
            ("aggregation_strategy", str, f"tags: {', '.join(STRATEGIES)} (default simple), as in transformers"),
            ("doc_stride", int, "question answering: tokens that windows share (default: a third of a window)"),
            ("batch_size", int, "texts that are computed at once (default 32)"),
            ("threads", int, "threads (default: all cores)"),
            ("max_length", int, "tokens to which texts are truncated (default: the model's limit)"),
        ):
            self.add_argument(f"--{name}", type=kind, help=help_text)
        self.add_argument(
            "--unanswerable",
            action="store_true",
            default=None,
            help="question answering: there may be no answer",
        )

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


def run_predict(args: PredictArguments, before_torch: Callable[[], None] = lambda: None) -> None:
    """Writes records of the `FIELDS` of the model's task, each after the number of its row, from 0.

    Args:
        args (`PredictArguments`): The options.
        before_torch (`Callable`): Called before a model is loaded with PyTorch; declares families of models.

    Raises:
        XTCError: if the texts or the model cannot be read, or an option is for another task.
    """
    pipe = open_pipeline(args, before_torch)
    if pipe.task not in FIELDS:
        raise RecipeError(f"{args.model} is a model for {pipe.task}, which has no predictions here.")
    for option, task in OF_TASK.items():
        if getattr(args, option) not in (None, False) and pipe.task != task:
            raise RecipeError(f"--{option} is for {task}, but {args.model} is a model for {pipe.task}. Leave it out.")
    embeds = pipe.task == "sentence-embedding"
    kind = args.output_format or ("jsonl" if embeds else "csv")
    if embeds and kind == "csv":
        raise RecipeError("A csv table cannot hold embeddings. Write jsonl, or name a .npy or .safetensors file.")
    if kind in ARRAYS and not embeds:
        raise RecipeError(f"A .{kind} file holds embeddings, but {args.model} is for {pipe.task}. Write csv or jsonl.")
    texts = read_texts(args, pipe.task)
    if kind in ARRAYS:
        content = _array(pipe.embed(texts, batch_size=args.batch_size), kind)
    else:
        records = PREDICT[pipe.task](pipe, texts, args)
        fields = TOKEN_FIELDS if args.aggregation_strategy == "none" else FIELDS[pipe.task]
        content = (_jsonl(records) if kind == "jsonl" else _csv(records, ("row", *fields))).encode()
    if args.output_file is None:
        sys.stdout.write(content.decode())
    else:
        write_bytes(args.output_file, content)


def open_pipeline(args: PredictArguments, before_torch: Callable[[], None]) -> Any:
    """The model without PyTorch or, if that does not run it, with PyTorch where it is installed."""
    from hf_xtc.runtime import Pipeline, find_folder  # imports numpy and tokenizers, which --help does not need

    folder = find_folder(args.model, args.revision)
    try:
        pipe = Pipeline(folder, max_length=args.max_length, threads=args.threads)
        if pipe.has_head:
            return pipe
        raise PackedFileError(f"Without PyTorch, models for {pipe.task} cannot be run.")
    except (PackedFileError, StateError) as error:
        if find_spec("torch") is None or find_spec("transformers") is None:
            raise
        logger.info("PyTorch runs this model. %s", error)
    before_torch()
    from hf_xtc.runs.torch_pipeline import TorchPipeline

    return TorchPipeline(folder, max_length=args.max_length, threads=args.threads)


def _labels(pipe: Any, texts: list[Any], args: PredictArguments) -> list[dict[str, Any]]:
    if pipe.task == "multi-label-classification" and args.top_k is None:
        least = 0.5 if args.threshold is None else args.threshold
        every = pipe(texts, top_k=None, batch_size=args.batch_size)
        found = [[entry for entry in entries if entry["score"] > least] for entries in every]
    else:
        best = pipe(texts, top_k=args.top_k or 1, batch_size=args.batch_size)
        found = best if (args.top_k or 1) > 1 else [[entry] for entry in best]
    return [{"row": row, **entry} for row, entries in enumerate(found) for entry in entries]


def _scores(pipe: Any, texts: list[Any], args: PredictArguments) -> list[dict[str, Any]]:
    found = pipe(texts, batch_size=args.batch_size)
    return [{"row": row, "score": best["score"]} for row, best in enumerate(found)]


def _entities(pipe: Any, texts: list[Any], args: PredictArguments) -> list[dict[str, Any]]:
    from hf_xtc.data.token_predictions import entities

    strategy, labels = args.aggregation_strategy or "simple", pipe.labels
    windows = pipe.token_logits(texts, batch_size=args.batch_size)
    return [
        {"row": row, **entity}
        for row, (text, ((encoding, logits),)) in enumerate(zip(texts, windows, strict=True))
        for entity in entities(text, encoding, logits, labels, pipe.tokenizer, strategy)
    ]


def _answers(pipe: Any, texts: list[Any], args: PredictArguments) -> list[dict[str, Any]]:
    from hf_xtc.data.token_predictions import answer

    pairs = [(question.strip(), context) for question, context in texts]
    length = pipe.tokenizer.truncation["max_length"]
    stride = length // 3 if args.doc_stride is None else args.doc_stride
    found = pipe.token_logits(pairs, stride=stride, batch_size=args.batch_size)
    learned = pipe.config["xtc"].get("provenance", {}).get("unanswerable_rows", 0)  # of the train rows
    unanswerable = args.unanswerable or bool(learned)
    return [
        {"row": row, **answer(context, windows, unanswerable=unanswerable)}
        for row, ((_, context), windows) in enumerate(zip(pairs, found, strict=True))
    ]


def _masks(pipe: Any, texts: list[Any], args: PredictArguments) -> list[dict[str, Any]]:
    from hf_xtc.data.token_predictions import softmax

    mask = pipe.mask_id
    found = pipe.token_logits(texts, only=mask, batch_size=args.batch_size)
    records = []
    for row, ((_, logits),) in enumerate(found):
        if not len(logits):
            raise DataError(f"Row {row} has no {pipe.tokenizer.id_to_token(mask)}, the token that is to be filled in.")
        for number, scores in enumerate(softmax(logits)):
            for i in (-scores).argsort(kind="stable")[: args.top_k or 1]:
                token = pipe.tokenizer.decode([int(i)], skip_special_tokens=False)
                records.append({"row": row, "mask": number, "token": token, "score": float(scores[i])})
    return records


def _vectors(pipe: Any, texts: list[Any], args: PredictArguments) -> list[dict[str, Any]]:
    vectors = pipe.embed(texts, batch_size=args.batch_size).tolist()
    return [{"row": row, "embedding": vector} for row, vector in enumerate(vectors)]


# Task -> its records, of a pipeline, texts and options.
PREDICT = {
    "sequence-classification": _labels,
    "multi-label-classification": _labels,
    "regression": _scores,
    "reranking": _scores,
    "token-classification": _entities,
    "question-answering": _answers,
    "masked-lm": _masks,
    "sentence-embedding": _vectors,
}


def _array(vectors: Any, kind: str) -> bytes:
    """Vectors as the bytes of a file: an array of numpy, or the tensor `embeddings`."""
    if kind == "safetensors":
        from safetensors.numpy import save

        return bytes(save({"embeddings": vectors}))
    import numpy as np

    content = io.BytesIO()
    np.save(content, vectors, allow_pickle=False)
    return content.getvalue()


def _jsonl(records: list[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)


def _csv(records: list[dict[str, Any]], fields: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**record, "score": f"{record['score']:.6f}"} for record in records)
    return text.getvalue()


def read_texts(args: PredictArguments, task: str) -> list[Any]:
    """The texts of a file or of standard input; tuples of two where there are two columns.

    Args:
        args (`PredictArguments`): The options.
        task (`str`): The model's task; question answering and reranking need two columns.

    Raises:
        DataError: if the file cannot be read, or lacks a column.
    """
    name, suffix = args.file or "standard input", args.input_format
    columns = [args.text_column, args.text_pair_column]
    if task == "question-answering":
        columns = [column or usual for column, usual in zip(columns, QUESTION_COLUMNS, strict=True)]
    elif task == "reranking" and args.text_pair_column is None:
        raise DataError(
            f"{args.model} ranks passages for queries, and there are texts alone. Give a table with --text_column "
            "QUERY --text_pair_column PASSAGE."
        )
    if task == "question-answering" and suffix == "txt":
        raise DataError(
            f"{args.model} answers questions about contexts, and there are texts alone. Give a table with the columns "
            "question and context; of standard input say --input_format jsonl."
        )
    try:
        content = _content(args)
        if suffix in ("csv", "tsv"):
            check_separator(name, args.separator, content.partition("\n")[0])
        rows = content.splitlines() if suffix == "txt" else _rows(content, str(suffix), args.separator)
    except (OSError, EOFError, zlib.error, ValueError, csv.Error) as error:
        raise DataError(f"{name} cannot be read ({error}).") from error
    if all(isinstance(row, str) for row in rows) and not any(columns):
        return rows
    if columns[0] is None:
        columns[0] = next((c for c in TEXT_COLUMNS if rows and c in rows[0]), TEXT_COLUMNS[0])
    wanted = [column for column in columns if column is not None]
    texts = []
    for number, row in enumerate(rows):
        values = [row.get(column) if isinstance(row, dict) else None for column in wanted]
        if not all(isinstance(value, str) for value in values):
            there = f"; its columns are {', '.join(map(str, row))}" if isinstance(row, dict) else ""
            raise DataError(
                f"Row {number} of {name} has no text in {' and '.join(wanted)}{there}. Give --text_column"
                f"{' and --text_pair_column' if len(wanted) > 1 else ''}."
            )
        texts.append(values[0] if len(values) == 1 else tuple(values))
    return texts


def _content(args: PredictArguments) -> str:
    if args.file is None:
        return sys.stdin.read()
    opened = gzip.open if args.file.endswith(".gz") else open
    with opened(args.file, "rt", encoding="utf-8-sig", newline="") as file:
        return str(file.read())


def _rows(content: str, suffix: str, separator: str | None) -> list[Any]:
    if suffix in ("csv", "tsv"):
        mark = separator or ("\t" if suffix == "tsv" else ",")
        return list(csv.DictReader(io.StringIO(content), delimiter=mark, strict=True))
    if suffix == "jsonl":
        return [parse_json(line) for line in content.split("\n") if line.strip()]
    rows = parse_json(content)
    if not isinstance(rows, list):
        raise ValueError("it is not a list of texts or objects")
    return rows
