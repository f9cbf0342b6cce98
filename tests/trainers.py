"""Tiny teachers, rows and trainers that the tests of several rooms share."""

import re
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, set_seed

from hf_xtc.compression.convert import compress
from hf_xtc.errors import XTCError
from hf_xtc.recipe.xtc_recipe import XTCRecipe
from hf_xtc.training.arguments import XTCTrainingArguments
from hf_xtc.training.trainer import XTCTrainer

DEFAULT = ["logits", "hidden_states", "attention_scores"]


def refuses(text, error=XTCError):
    return pytest.raises(error, match=f"^{re.escape(text)}$")


def make_teacher(dropout=0.0, cls=BertForSequenceClassification, **changes):
    """Four layers that disagree with each other and are sure of themselves; the same at every call."""
    set_seed(0)
    config = {
        "vocab_size": 101,
        "hidden_size": 36,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 50,
        "max_position_embeddings": 40,
        "initializer_range": 0.3,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        **({"num_labels": 3} if cls is BertForSequenceClassification else {}),
        **changes,
    }
    return cls(BertConfig(**config)).eval()


def make_data(rows=64, labels=True):
    """Rows of 3 to 19 tokens."""
    generator = torch.Generator().manual_seed(1)
    data = []
    for _ in range(rows):
        length = int(torch.randint(3, 20, (1,), generator=generator))
        ids = torch.randint(1, 101, (length,), generator=generator).tolist()
        data.append({"input_ids": ids, "attention_mask": [1] * length} | ({"labels": ids[0] % 3} if labels else {}))
    return data


def collate(rows):
    """A batch padded to its longest row."""
    longest = max(len(row["input_ids"]) for row in rows)
    padded = ("input_ids", "attention_mask")
    batch = {key: torch.tensor([row[key] + [0] * (longest - len(row[key])) for row in rows]) for key in padded}
    batch |= {key: torch.tensor([row[key] for row in rows]) for key in rows[0] if key not in padded}
    return batch


DATA = make_data()


def make_args(folder, **changes):
    defaults = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "per_device_eval_batch_size": 8,
        "train_sampling_strategy": "random",
        "save_total_limit": None,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
    }
    return XTCTrainingArguments(output_dir=str(folder), **{**defaults, **changes})


def make_trainer(folder, teacher=None, student=None, recipe=None, data=DATA, **changes):
    """A trainer of two of the teacher's layers; `changes` are arguments, those of the trainer itself among them."""
    own = ("callbacks", "compute_metrics", "eval_dataset", "processing_class", "model_init", "teacher_model")
    own += ("data_collator", "preprocess_logits_for_metrics")
    rest = {key: changes.pop(key) for key in own if key in changes}
    teacher = make_teacher() if teacher is None else teacher
    if student is None and "model_init" not in rest:
        student = compress(teacher, XTCRecipe(keep_layers=2) if recipe is None else recipe)
    rest = {"teacher_model": teacher, "eval_dataset": DATA[:8], "data_collator": collate, **rest}
    trainer_class = changes.pop("trainer_class", XTCTrainer)
    return trainer_class(student, make_args(folder, **changes), train_dataset=data, **rest)


def logged(trainer, *keys):
    """The entries of training, with these keys."""
    return [
        {key: entry[key] for key in keys if key in entry} for entry in trainer.state.log_history if "loss" in entry
    ]


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal_states(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def named(model, names):
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: i for i, name in enumerate(names)}
    return model


class Stop(BaseException):
    """Ends a training as an interruption does."""


def stop_the_first_student(monkeypatch):
    """Ends the first training of a run's student by `Stop`, after a checkpoint; returns the folders trained."""
    trained, train = [], XTCTrainer.train

    def stop_after_one_epoch(trainer, *args, **kwargs):
        trained.append(Path(trainer.args.output_dir).name)
        if trained[-1] == "student" and trained.count("student") == 1:
            save = trainer._save_checkpoint

            def save_and_stop(*a, **k):
                save(*a, **k)
                raise Stop

            trainer._save_checkpoint = save_and_stop
        return train(trainer, *args, **kwargs)

    monkeypatch.setattr(XTCTrainer, "train", stop_after_one_epoch)
    return trained
