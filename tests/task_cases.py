"""Rows of each registered task and the options that read them: with an entry here, a task is under the harnesses.

They are those of stages, teacher cache, resuming, two processes and the command line.
"""

import random
import tempfile
from pathlib import Path

import pandas as pd
import transformers
from compress_options import VOCAB, WORDS
from trainers import make_teacher
from transformers import BertTokenizerFast

from hf_xtc.data.task_data import DataArguments, read_splits
from hf_xtc.tasks import TASKS
from hf_xtc.training.trainer import XTCTrainer

PLACES = WORDS[8:12]  # tagged as entities, and the answers of questions


def _texts(count, seed):
    chance = random.Random(seed)
    return [chance.choices(WORDS, k=8) for _ in range(count)]


def iob2(words):
    inside = [word in PLACES for word in words]
    return [
        ("I" if before else "B") + "-thing" if now else "O"
        for now, before in zip(inside, [False, *inside], strict=False)
    ]


def _question(words, number):
    context, place = " ".join(words), next((word for word in words if word in PLACES), None)
    found = (
        {"text": [], "answer_start": []} if place is None else {"text": [place], "answer_start": [context.find(place)]}
    )
    return {"id": str(number), "question": "is very", "context": context, "answers": found}


ROWS = {
    "sequence-classification": lambda words, i: {"text": " ".join(words), "label": "yes" if "good" in words else "no"},
    "regression": lambda words, i: {"text": " ".join(words), "label": float(words.count("good")) + 0.5},
    "multi-label-classification": lambda words, i: {
        "text": " ".join(words),
        "labels": [name for name in ("good", "bad", "film") if name in words],
    },
    "token-classification": lambda words, i: {"tokens": words, "tags": iob2(words)},
    "question-answering": _question,
    "masked-lm": lambda words, i: {"text": " ".join(words)},
    "sentence-embedding": lambda words, i: {"text": " ".join(words)},
    "reranking": lambda words, i: {
        "text": ("good film", "bad plot", "movie")[i % 3],
        "text_pair": " ".join(words),
        "label": float("good" in words),
    },
}
OPTIONS = {
    "regression": {"regression": True},
    "masked-lm": {"task": "masked-lm"},
    "sentence-embedding": {"task": "sentence-embedding"},
    "reranking": {"task": "reranking", "text_pair_column": "text_pair"},
}
RECORDED = ("sentence-embedding", "reranking")  # tasks that only `--task` or a configuration's `xtc` tells


def table(name, count=12, seed=0):
    """Rows of a task, as a data frame."""
    return pd.DataFrame([ROWS[name](words, i) for i, words in enumerate(_texts(count, seed))])


def options(name):
    """The options of the command line that a task's rows need."""
    return [
        f"--{option}" if value is True else f"--{option}={value}" for option, value in OPTIONS.get(name, {}).items()
    ]


def trainer_options(name, **config):
    """Teacher, rows and the rest that `make_trainer` needs for a task; equal in every process."""
    task, tokenizer = TASKS[name](), BertTokenizerFast(vocab=VOCAB)
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "rows.jsonl"))
        table(name, 24).to_json(file, orient="records", lines=True)
        args = DataArguments(train_file=file, validation_file=file, max_length=24, **OPTIONS.get(name, {}))
        data = task.load(args, read_splits(args))
    teacher = make_teacher(cls=getattr(transformers, f"Bert{task.head}"), **task.head_config(data), **config)
    data = task.teach(data, teacher, tokenizer, args)
    rows, few = (task.tokenize(part, tokenizer, args) for part in (data.train, data.validation.select(range(9))))
    return {
        "teacher": teacher,
        "trainer_class": task.trainer_class(XTCTrainer),
        **({} if task.terms is None else {"terms": dict(task.terms)}),
        "data": rows,
        "eval_dataset": few,
        "data_collator": task.collator(tokenizer),
        "compute_metrics": task.compute_metrics(data, few),
        "preprocess_logits_for_metrics": task.reduce_outputs,
    }
