"""What a smaller vocabulary costs a trained sentiment classifier, on its own data and on texts of another domain.

Each model, a packed file of SST-2 (sentences of film reviews), is measured on SST-2's dev split and on the validation
rows of `emotion` (tweets): joy and love count as positive, sadness, anger and fear as negative, surprise is left out.

    python benchmarks/trimming.py --models runs/sst2-3l-seed1 runs/sst2-3l-trimmed5-seed1 --data_dir data
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import AutoTokenizer, HfArgumentParser

from hf_xtc.files.writing import write_json
from hf_xtc.hub.results import STANDARD_ERROR
from hf_xtc.runs.arguments import EvaluateArguments, EvaluationDataArguments
from hf_xtc.runs.evaluation import run_evaluate
from machine import facts

# Class of `emotion` -> class of SST-2.
POLARITY = {0: "negative", 1: "positive", 2: "positive", 3: "negative", 4: "negative"}


@dataclass
class TrimmingArguments:
    """Which models, and where the data are."""

    models: list[str] = field(metadata={"help": "Folders of packed models of SST-2."})
    data_dir: str = field(metadata={"help": "Folder with glue/sst2 and emotion, each with validation.parquet."})
    output_file: str | None = field(default=None, metadata={"help": "JSON file for the results."})
    threads: int = field(default=2, metadata={"help": "Threads of PyTorch."})


def texts_of(data_dir: Path) -> dict[str, pd.DataFrame]:
    """Domain -> its texts and labels, `negative` and `positive`."""
    films = pd.read_parquet(data_dir / "glue" / "sst2" / "validation.parquet")
    tweets = pd.read_parquet(data_dir / "emotion" / "validation.parquet")
    tweets = tweets[tweets["label"].isin(POLARITY)]
    return {
        "SST-2": pd.DataFrame(
            {"text": films["sentence"], "label": films["label"].map({0: "negative", 1: "positive"})}
        ),
        "emotion": pd.DataFrame({"text": tweets["text"], "label": tweets["label"].map(POLARITY)}),
    }


def measured(model: Path, domains: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """A model's bytes and vocabulary and, for each domain, its accuracy, standard error and tokens of a text."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    found: dict[str, Any] = {
        "model": model.name,
        "bytes": (model / "model.safetensors").stat().st_size,
        "tokens": len(tokenizer),
    }
    for name, rows in domains.items():
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "rows.jsonl")
            rows.to_json(file, orient="records", lines=True)
            scores = run_evaluate(EvaluateArguments(str(model)), EvaluationDataArguments(validation_file=str(file)))
        lengths = [len(ids) for ids in tokenizer(list(rows["text"]), add_special_tokens=False)["input_ids"]]
        found[name] = {
            "rows": len(rows),
            "accuracy": scores["accuracy"],
            "standard_error": scores["accuracy" + STANDARD_ERROR],
            "tokens_of_a_text": sum(lengths) / len(lengths),
        }
    return found


def table(models: list[dict[str, Any]]) -> str:
    """The models as a table: bytes, tokens and, of each domain, accuracy ± standard error and tokens of a text."""
    domains = [name for name, value in models[0].items() if isinstance(value, dict)]
    columns = [f"{name}, {models[0][name]['rows']:,} rows | tokens of a text" for name in domains]
    lines = [f"| model | bytes | vocabulary | {' | '.join(columns)} |", "|---|---|---|" + "---|---|" * len(domains)]
    for found in models:
        cells = [found["model"], f"{found['bytes']:,}", f"{found['tokens']:,}"]
        for name in domains:
            of = found[name]
            cells += [f"{of['accuracy']:.4f} ± {of['standard_error']:.4f}", f"{of['tokens_of_a_text']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Prints the table, and writes the results if asked."""
    (args,) = HfArgumentParser(TrimmingArguments).parse_args_into_dataclasses(argv)
    torch.set_num_threads(args.threads)
    domains = texts_of(Path(args.data_dir))
    models = [measured(Path(model), domains) for model in args.models]
    print(table(models))
    if args.output_file is not None:
        write_json(args.output_file, {**facts(args.threads, "hf_xtc", "torch", "transformers"), "models": models})


if __name__ == "__main__":
    main()
