"""One compression a task on real data, through the options of the command line: teacher, student and packed file.

Each run is `hf-xtc compress` with the options below and those given here; its rows are appended to the results file
and are not repeated. Nothing selects a checkpoint: each stage ends with its last step. The data folder holds
`<name>/train.parquet` and `<name>/validation.parquet`; for embeddings `embedding/train.txt`, texts one a line, and
pairs with scores in `embedding/validation.parquet`, which `texts.py` writes.

    python benchmarks/tasks.py --data_dir data --teacher all-MiniLM-L6-v2 --names wnut17 trec_qa
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from hf_xtc.cli import command_parser
from hf_xtc.runs.compress_run import run_compress
from machine import facts

COMMON: dict[str, Any] = {"bf16": True, "schedule": "direct", "weights": "binary", "seed": 1, "use_cpu": True}

EMBEDDING = {
    "data": "embedding",
    "text_column": "sentence1",
    "text_pair_column": "sentence2",
    "embedding_weights": "binary",
    "max_length": 64,
    "num_train_epochs": 0.3,
}

# The options of each run beside `COMMON`; `data` names the folder, if it is not that of the run, and task and columns
# are found in the data unless said.
RUNS: dict[str, dict[str, Any]] = {
    "wnut17": {
        "fine_tune": True,
        "fine_tune_epochs": 8,
        "fine_tune_learning_rates": 2e-4,
        "num_train_epochs": 20,
    },
    "go_emotions": {
        "fine_tune": True,
        "fine_tune_epochs": 2,
        "fine_tune_learning_rates": 2e-4,
        "num_train_epochs": 2,
    },
    "squad_dev": {
        "fine_tune": True,
        "fine_tune_epochs": 2,
        "fine_tune_learning_rates": 2e-4,
        "num_train_epochs": 3,
        "max_length": 192,
    },
    "trec_qa": {
        "task": "reranking",
        "text_column": "query",
        "text_pair_column": "passage",
        "fine_tune": True,
        "fine_tune_epochs": 3,
        "fine_tune_learning_rates": 1e-4,
        "num_train_epochs": 12,
    },
    "embedding": EMBEDDING,
    "embedding_3_layers": {**EMBEDDING, "keep_layers": 3},
    "sst2": {
        "text_column": "sentence",
        "keep_layers": 5,
        "fine_tune": True,
        "fine_tune_epochs": 0.15,
        "fine_tune_learning_rates": 3e-5,
        "num_train_epochs": 0.475,  # a thousand steps
        "max_length": 64,
    },
}


@dataclass
class TaskArguments:
    """Which runs, and where their data and results are."""

    data_dir: str = field(metadata={"help": "Folder with a folder for each run's data."})
    teacher: str = field(metadata={"help": "Encoder to start from: a folder, or a name on the Hub."})
    names: list[str] = field(default_factory=lambda: list(RUNS), metadata={"help": "Runs, in order."})
    options: str = field(default="{}", metadata={"help": "JSON of options to change, for trials."})
    label: str = field(
        default="", metadata={"help": "Name of a run with other options; trial... is left out of the table."}
    )
    output_dir: str = field(default="runs", metadata={"help": "Folder of the trainings; an interrupted one resumes."})
    results_file: str = field(default="benchmarks/results/tasks.jsonl", metadata={"help": "JSON lines, one a run."})
    threads: int = field(default=2, metadata={"help": "Threads of PyTorch."})


def options_of(args: TaskArguments, name: str) -> dict[str, Any]:
    """The options of a run for `hf-xtc compress`."""
    options = {**COMMON, **RUNS[name], **json.loads(args.options)}
    folder = Path(args.data_dir) / options.pop("data", name)
    train = next(file for file in (folder / "train.txt", folder / "train.parquet") if file.exists())
    files = {"teacher": args.teacher, "train_file": train, "validation_file": folder / "validation.parquet"}
    return {**files, **options}


def run(args: TaskArguments, name: str) -> dict[str, Any]:
    """Compresses, and returns what is measured: a row for each model, with its metrics on the validation rows."""
    import torch

    torch.set_num_threads(args.threads)
    options = options_of(args, name)
    folder = Path(args.output_dir) / "-".join(filter(None, (name, args.label)))
    words = [word for key, value in options.items() for word in (f"--{key}", _word(value))]
    found = run_compress(*command_parser("compress").options([*words, "--output_dir", str(folder)]))
    shown = {key: Path(value).name if key == "teacher" else str(value) for key, value in options.items()}
    for key in ("train_file", "validation_file"):
        shown[key] = "/".join(Path(options[key]).parts[-2:])
    return {
        "name": name,
        "label": args.label,
        "metric": found.metric,
        "rows": found.to_dict()["rows"],
        "options": shown,
        **facts(args.threads, "torch", "transformers", "hf_xtc"),
    }


def _word(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)


def table(records: list[dict[str, Any]]) -> str:
    """The runs but those labelled "trial..." as a table: metric of teacher and packed file, and the file's bytes."""
    lines = [
        "| data, encoder | metric | teacher | packed, 1 bit | kept | bytes |",
        "|---|---|---|---|---|---|",
    ]
    for record in records:
        if record["label"].startswith("trial"):
            continue
        teacher, packed = record["rows"][0], record["rows"][-1]
        scores = [row["metrics"][record["metric"]] for row in (teacher, packed)]
        name = f"{record['name']} ({record['label']})" if record["label"] else record["name"]
        title = f"{name}, {record['options']['teacher']}, {packed['layers']} of {teacher['layers']} layers"
        cells = [title, record["metric"], *(f"{score:.4f}" for score in scores)]
        cells += [f"{scores[1] / scores[0]:.1%}", f"{packed['bytes']:,}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is not in the results yet, and prints the table."""
    (args,) = HfArgumentParser(TaskArguments).parse_args_into_dataclasses()
    file = Path(args.results_file)
    records = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for name in args.names:
        if not any((record["name"], record["label"]) == (name, args.label) for record in records):
            records.append(run(args, name))
            with file.open("a") as lines:
                lines.write(json.dumps(records[-1]) + "\n")
    print(table(records))


if __name__ == "__main__":
    main()
