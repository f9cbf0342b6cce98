"""One run of our side: XTCTrainer with the recommended settings, in the package's own environment."""

from typing import Any

from datasets import Dataset
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    TrainerCallback,
    set_seed,
)

from hf_xtc import XTCRecipe, XTCTrainer, XTCTrainingArguments, compress
from machine import versions
from reference.curve import Curve, file_bytes, serve

# In addition to the defaults of XTCRecipe (scales per output channel) and of XTCTrainingArguments (its terms).
SETTINGS = {"warmup_steps": 0.1, "train_sampling_strategy": "group_by_length"}
DROPOUT = 0.0


class CurveCallback(TrainerCallback):
    """Calls the curve at the start and after each step."""

    def __init__(self, curve: Curve):
        self.curve = curve

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.curve.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.curve.step(state.global_step, kwargs["model"])


def arguments(config: dict[str, Any]) -> XTCTrainingArguments:
    """The training arguments of the run."""
    return XTCTrainingArguments(
        config["folder"],
        max_steps=config["steps"],
        per_device_train_batch_size=config["batch_size"],
        learning_rate=config["learning_rate"],
        seed=config["seed"],
        bf16=config["bf16"],
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **config["settings"],
    )


def run(config: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Trains the student, packs its best weights, and scores the packed file after loading it."""
    set_seed(config["seed"])
    teacher = AutoModelForSequenceClassification.from_pretrained(config["teacher"]).float()
    tokenizer = AutoTokenizer.from_pretrained(config["teacher"])
    student = compress(teacher, XTCRecipe(layers=config["layers"]))
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = DROPOUT
    curve = Curve(config, data)
    trainer = XTCTrainer(
        student,
        arguments(config),
        teacher_model=teacher,
        train_dataset=Dataset.from_dict(data["fit"]),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[CurveCallback(curve)],
    )
    trainer.train()
    student.load_state_dict(curve.best)
    trainer.save_model(config["folder"])
    packed = AutoModelForSequenceClassification.from_pretrained(config["folder"])
    return {
        **curve.record(),
        "dev": curve.scores(packed, "dev"),
        "files": file_bytes(config["folder"]),
        "versions": versions("hf_xtc", "torch", "transformers", "accelerate", "numpy"),
    }


if __name__ == "__main__":
    serve(run)
