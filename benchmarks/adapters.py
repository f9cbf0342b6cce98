"""Compares LoRA on a packed 1-bit classifier with full fine-tuning of the float model that it was made from.

    python benchmarks/adapters.py --base checkpoints/minilm-6l-1bit-sst2 --data_dir data --tasks emotion trec \\
        --teacher runs/sst2-teacher/training/teacher --seeds 1 2

The packed base is not changed; each task adds an adapter and a head. Both sides train for the same epochs on the
labels alone. Each uses the learning rate of its grid that is best on held-out train rows with the first seed. The
model after the last step is scored on the validation split, on which nothing is chosen.
"""

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    PrinterCallback,
    set_seed,
)

from hf_xtc import XTCTrainer, XTCTrainingArguments
from hf_xtc.data.metrics import build_compute_metrics
from hf_xtc.data.task_data import DataArguments, TaskData, load_task, tokenize
from hf_xtc.files.writing import write_json, write_text
from machine import facts

SIDES = ("lora on the packed base", "full fine-tuning, float32")


@dataclass
class AdapterArguments:
    """Models, tasks and the settings of training."""

    base: str = field(metadata={"help": "Folder of a packed classifier."})
    teacher: str = field(metadata={"help": "Folder of the float classifier that it was made from."})
    data_dir: str = field(metadata={"help": "Folder with <task>/train.parquet and <task>/validation.parquet."})
    tasks: list[str] = field(default_factory=lambda: ["emotion", "trec"], metadata={"help": "Tasks."})
    seeds: list[int] = field(default_factory=lambda: [1, 2], metadata={"help": "The first chooses the rate."})
    epochs: float = field(default=4, metadata={"help": "Epochs of both sides."})
    batch_size: int = field(default=32, metadata={"help": "Rows of a step."})
    rank: int = field(default=8, metadata={"help": "r of LoRA; alpha is twice as much."})
    lora_rates: list[float] = field(default_factory=lambda: [3e-3, 1e-2], metadata={"help": "Grid of LoRA."})
    full_rates: list[float] = field(default_factory=lambda: [1e-4, 3e-4], metadata={"help": "Grid of the other."})
    bf16: bool = field(default=False, metadata={"help": "Autocast to bfloat16 in training."})
    output_file: str = field(default="benchmarks/results/adapters.json", metadata={"help": "JSON; a table beside it."})


def load(folder: str, data: TaskData) -> Any:
    """A classifier with a new head for the task's labels, and its own encoder."""
    names = dict(enumerate(data.label_names or ()))
    return AutoModelForSequenceClassification.from_pretrained(
        folder,
        num_labels=len(names),
        id2label=names,
        label2id={name: i for i, name in names.items()},
        ignore_mismatched_sizes=True,
    )


def adapted(args: AdapterArguments, data: TaskData) -> Any:
    """The packed base with a LoRA adapter on every linear of its layers."""
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=args.rank,
        lora_alpha=2 * args.rank,
        target_modules=r".*encoder\.layer\.\d+\..*(query|key|value|dense)",
    )
    return get_peft_model(load(args.base, data), config)


def train(args: AdapterArguments, data: TaskData, model: Any, tokenizer: Any, rate: float, seed: int) -> XTCTrainer:
    """Trains the model and returns its trainer."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = XTCTrainer(
            model,
            XTCTrainingArguments(
                folder,
                terms={"labels": 1.0},
                num_train_epochs=args.epochs,
                per_device_train_batch_size=args.batch_size,
                per_device_eval_batch_size=64,
                learning_rate=rate,
                warmup_steps=0.1,
                train_sampling_strategy="group_by_length",
                bf16=args.bf16,
                use_cpu=not torch.accelerator.is_available(),
                dataloader_pin_memory=torch.accelerator.is_available(),
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                report_to="none",
                seed=seed,
            ),
            train_dataset=tokenize(data.train, tokenizer, 128),
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=build_compute_metrics(data.task, regression=False),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer


def bytes_of(model: Any) -> int:
    """Bytes on disk of what a task adds: the adapter and head, or the whole float model."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))


def compare(args: AdapterArguments, task: str) -> dict[str, Any]:
    """Scores of both sides on a task, over seeds."""
    folder = Path(args.data_dir) / task
    files = {"train_file": str(folder / "train.parquet"), "validation_file": str(folder / "validation.parquet")}
    data = load_task(DataArguments(**files, selection_share=0.1))
    tokenizer = AutoTokenizer.from_pretrained(args.base)
    makers: dict[str, tuple[Callable[[], Any], list[float]]] = {
        SIDES[0]: (lambda: adapted(args, data), args.lora_rates),
        SIDES[1]: (lambda: load(args.teacher, data), args.full_rates),
    }
    found: dict[str, Any] = {"task": task, "train_rows": len(data.train), "sides": {}}
    for side, (make, rates) in makers.items():
        held_out: dict[float, float] = {}
        scores: dict[int, float] = {}
        for rate, seed in [(rate, args.seeds[0]) for rate in rates] + [(None, seed) for seed in args.seeds[1:]]:
            set_seed(seed)
            chosen = max(held_out, key=held_out.__getitem__) if rate is None else rate
            trainer = train(args, data, make(), tokenizer, chosen, seed)
            score = trainer.evaluate(tokenize(data.validation, tokenizer, 128))["eval_accuracy"]
            if rate is not None:
                better = trainer.evaluate(tokenize(data.selection, tokenizer, 128))["eval_accuracy"]
                held_out[rate] = better
                scores = {seed: score} if better == max(held_out.values()) else scores
            else:
                scores[seed] = score
            print(f"{task}, {side}, rate {chosen:g}, seed {seed}: {score:.4f}", flush=True)
        best = max(held_out, key=held_out.__getitem__)
        found["sides"][side] = {"rate": best, "held_out": held_out, "scores": scores, "bytes": bytes_of(trainer.model)}
    return found


def markdown(results: list[dict[str, Any]], base_bytes: int) -> str:
    """The results as a Markdown table."""
    lines = ["| task | side | accuracy | of full fine-tuning | bytes per task | rate |", "|---|---|---|---|---|---|"]
    for result in results:
        full = statistics.mean(result["sides"][SIDES[1]]["scores"].values())
        for side, found in result["sides"].items():
            scores = list(found["scores"].values())
            spread = f" ± {statistics.stdev(scores):.4f}" if len(scores) > 1 else ""
            mean = statistics.mean(scores)
            cells = [result["task"], side, f"{mean:.4f}{spread}", f"{mean / full:.1%}", f"{found['bytes']:,}"]
            lines.append("| " + " | ".join([*cells, f"{found['rate']:g}"]) + " |")
    seeds = len(next(iter(results[0]["sides"].values()))["scores"])
    return "\n".join([*lines, "", f"The packed base, shared by all tasks, takes {base_bytes:,} bytes; {seeds} seeds."])


def main() -> None:
    """Prints the table, and writes it and the results."""
    args = HfArgumentParser(AdapterArguments).parse_args_into_dataclasses()[0]
    results = [compare(args, task) for task in args.tasks]
    base_bytes = (Path(args.base) / "model.safetensors").stat().st_size
    text = markdown(results, base_bytes)
    print(text)
    about = facts(torch.get_num_threads(), "hf_xtc", "torch", "transformers", "peft")
    write_json(args.output_file, {"results": results, "base_bytes": base_bytes, **about})
    write_text(Path(args.output_file).with_suffix(".md"), text + "\n")


if __name__ == "__main__":
    main()
