"""Rebuilds the published checkpoints from scratch: `make checkpoints`. Started again, an interrupted run resumes.

`checkpoints.json` lists them and their options. Each of `checkpoints` is trained with several seeds; the packed model
of the seed with the best score on held-out train rows is copied to `checkpoints/<name>`, and its card to
`model_cards/<name>.md`. They start from MiniLM, or from the entry of `encoders` that they name. Those of `runs` are
one compression each, with the options of `hf-xtc compress` in the list. Encoders other than MiniLM are folders in
`--encoders_dir`. `--publish_dir examples` replaces those that lie in the repository.
"""

import dataclasses
import json
import logging
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import glue
from transformers import HfArgumentParser

import results
from hf_xtc.cli import command_parser
from hf_xtc.errors import XTCError
from hf_xtc.hub.card import write_card
from hf_xtc.hub.results import Run
from hf_xtc.runs.compress_run import run_compress

BITS = {"binary": "1bit", "ternary": "ternary"}


@dataclass
class CheckpointArguments:
    """Which checkpoints to rebuild, and the folders."""

    data_dir: str = field(metadata={"help": "Folder with glue/<task>/*.parquet, banking77/ and embedding/."})
    encoders_dir: str = field(default="encoders", metadata={"help": "Folder of the encoders that runs start from."})
    output_dir: str = field(default="runs", metadata={"help": "Folder of teachers, trainings and results.jsonl."})
    publish_dir: str = field(default="checkpoints", metadata={"help": "Folder of the finished packed models."})
    cards_dir: str = field(default="model_cards", metadata={"help": "Folder of their cards."})
    names: list[str] = field(default_factory=list, metadata={"help": "Only these; default: all."})
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3], metadata={"help": "Seeds of each."})
    list_file: str = field(default=str(Path(__file__).with_suffix(".json")), metadata={"help": "The list."})
    use_cpu: bool = field(default=False, metadata={"help": "Train on the CPU."})


def name_of(entry: dict[str, Any]) -> str:
    """The name of a listed checkpoint."""
    parts = (entry.get("encoder", "minilm"), f"{entry['keep_layers']}l", BITS[entry["weights"]], entry["task"])
    return "-".join([*parts, *(["trimmed"] if "trim_vocabulary" in entry else [])])


def folder_of(args: CheckpointArguments, entry: dict[str, Any]) -> Path:
    """The folder of a checkpoint's teacher, trainings and results: one for each encoder."""
    return Path(args.output_dir) / entry.get("encoder", "")


def options_of(args: CheckpointArguments, listed: dict[str, Any], entry: dict[str, Any]) -> list[str]:
    """The options of a listed checkpoint for `examples/glue.py`."""
    task = entry["task"]
    if task == "banking77":
        folder = Path(args.data_dir) / task
        data = {"train_file": folder / "train.parquet", "validation_file": folder / "validation.parquet"}
    else:
        data = {"task_name": task, "data_dir": Path(args.data_dir) / "glue"}
    encoder = listed["encoders"][entry["encoder"]] if "encoder" in entry else {"tasks": listed["tasks"]}
    own = {key: value for key, value in entry.items() if key not in ("task", "encoder")}
    chosen = {**listed["options"], **encoder.get("options", {}), **encoder["tasks"][task], **own}
    if "teacher" in chosen:
        chosen |= {"teacher": Path(args.encoders_dir) / chosen["teacher"], "fine_tune": True}
    out = folder_of(args, entry)
    places = {
        "output_dir": out,
        "name": name_of(entry),
        "use_cpu": args.use_cpu,
        "disable_tqdm": True,
    }
    if chosen["num_train_epochs"] > 1:
        places["teacher_cache"] = out / f"{task}-{entry['keep_layers']}l-teacher-cache"
    if "start_from" in chosen:
        places["start_from"] = Path(args.publish_dir) / chosen["start_from"]
    options: list[str] = []
    for key, value in {**data, **chosen, **places, "seeds": args.seeds}.items():
        options += [f"--{key}", *(str(part) for part in (value if isinstance(value, list) else [value]))]
    return options


def options_of_run(args: CheckpointArguments, name: str, entry: dict[str, Any]) -> list[str]:
    """The options of a listed run for `hf-xtc compress`."""
    files = {key: Path(args.data_dir) / entry[key] for key in ("train_file", "validation_file")}
    teacher = Path(args.encoders_dir) / entry["teacher"]
    places = {"output_dir": Path(args.output_dir) / name, "use_cpu": args.use_cpu, "disable_tqdm": True}
    options = {**entry, "teacher": teacher, **files, **places}
    return [word for key, value in options.items() for word in (f"--{key}", str(value))]


def in_order(names: list[str], entries: dict[str, Any]) -> list[str]:
    """The names, each after the checkpoint that it starts from."""
    chain = (part for name in names for part in (entries[name].get("start_from"), name) if part)
    return list(dict.fromkeys(chain))


def publish(args: CheckpointArguments, name: str, entry: dict[str, Any], runs: list[Run]) -> None:
    """Copies the packed model of the seed that is best on held-out rows, with a card that lists all seeds."""
    seeds = {run.provenance["training"]["seed"]: run.rows[-1].metrics[run.metric] for run in runs}
    best = max(runs, key=lambda run: run.provenance["stages"][-1]["selection"][run.metric])
    encoders = " --encoders_dir encoders" if "encoder" in entry else ""
    shown = f"--data_dir data{encoders} --names {name} --seeds {' '.join(map(str, seeds))}"
    run = dataclasses.replace(best, name=name, seeds=seeds, command=f"python examples/checkpoints.py {shown}")
    write(args, run, folder_of(args, entry) / best.name)


def publish_run(args: CheckpointArguments, name: str, entry: dict[str, Any]) -> None:
    """Compresses as listed, and copies the packed model, with a card that says how."""
    found = run_compress(*command_parser("compress").options(options_of_run(args, name, entry)))
    command = f"python examples/checkpoints.py --data_dir data --encoders_dir encoders --names {name}"
    write(args, dataclasses.replace(found, name=name, command=command), Path(args.output_dir) / found.name)


def write(args: CheckpointArguments, run: Run, source: Path) -> None:
    """Copies the packed model in a folder of the trainings to where it is published, with the card of `run`."""
    target = Path(args.publish_dir) / run.name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("training", "metrics.json", "report.html"))
    write_card(run, target / "README.md")
    Path(args.cards_dir).mkdir(exist_ok=True)
    write_card(run, Path(args.cards_dir) / f"{run.name}.md")


def main(arguments: list[str] | None = None) -> int:
    """Trains and publishes the listed checkpoints; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    args = HfArgumentParser(CheckpointArguments).parse_args_into_dataclasses(arguments)[0]
    listed = json.loads(Path(args.list_file).read_text(encoding="utf-8"))
    entries, runs = {name_of(entry): entry for entry in listed["checkpoints"]}, listed.get("runs", {})
    if unknown := sorted(set(args.names) - set(entries) - set(runs)):
        known = ", ".join([*entries, *runs])
        print(f"There is no checkpoint {', '.join(unknown)}; there are: {known}.", file=sys.stderr)
        return 1
    chosen = args.names or [*entries, *runs]
    try:
        for name in in_order([name for name in chosen if name in entries], entries):
            trained = glue.run_glue(*glue.parse(options_of(args, listed, entries[name])))
            publish(args, name, entries[name], trained)
        for name in (name for name in chosen if name in runs):
            publish_run(args, name, runs[name])
    except XTCError as error:
        print(error, file=sys.stderr)
        return 1
    for folder in dict.fromkeys(folder_of(args, entry) for entry in entries.values()):
        if records := results.read(folder / "results.jsonl"):
            print(results.table(records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
