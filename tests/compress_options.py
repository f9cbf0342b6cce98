"""A tiny base encoder, its data files, and the options of `hf-xtc compress` that train it in seconds."""

import random
from pathlib import Path

import pandas as pd
import pytest
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast, set_seed

WORDS = [
    "good",
    "great",
    "fine",
    "nice",
    "bad",
    "awful",
    "poor",
    "sad",
    "movie",
    "film",
    "plot",
    "actor",
    "very",
    "is",
]

VOCAB = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}

SHAPE = {"hidden_size": 36, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 50}

QUICK = ["--use_cpu", "--learning_rate=1e-3", "--max_length=32", "--num_train_epochs=2", "--disable_tqdm=True"]


def sentences(count: int, seed: int) -> pd.DataFrame:
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        label = chance.choice(["negative", "positive"])
        words = chance.choices(WORDS[8:], k=5) + chance.choices(WORDS[:4] if label == "positive" else WORDS[4:8], k=3)
        chance.shuffle(words)
        rows.append({"text": " ".join(words), "label": label, "score": float(words.count("good"))})
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A base encoder, a teacher with its labels in reverse order, and data files."""
    path = tmp_path_factory.mktemp("job")
    set_seed(0)
    config = BertConfig(vocab_size=len(VOCAB), max_position_embeddings=40, **SHAPE)
    tokenizer = BertTokenizerFast(vocab=VOCAB, model_max_length=40)
    BertModel(config).save_pretrained(path / "base")
    names = {"id2label": {0: "positive", 1: "negative"}, "label2id": {"positive": 0, "negative": 1}}
    BertForSequenceClassification(BertConfig(**{**config.to_dict(), **names})).save_pretrained(path / "teacher")
    for name in ("base", "teacher"):
        tokenizer.save_pretrained(path / name)
    for split, count in (("train", 256), ("validation", 64)):
        sentences(count, count).to_csv(path / f"{split}.csv", index=False)
    return path


def data_options(folder: Path) -> list[str]:
    return [f"--train_file={folder / 'train.csv'}", f"--validation_file={folder / 'validation.csv'}"]


def compress_options(folder: Path, out: Path) -> list[str]:
    fine_tune = ["--fine_tune", "--fine_tune_epochs=10", "--fine_tune_learning_rates=1e-3"]
    fine_tune += ["--fine_tune_adversarial=0.1"]
    options = [f"--teacher={folder / 'base'}", f"--output_dir={out}", "--keep_layers=2", *fine_tune]
    return [*options, *data_options(folder), *QUICK]
