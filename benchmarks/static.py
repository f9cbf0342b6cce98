"""Packed embedders beside static ones: model2vec's distillations of the same teachers, at given bytes.

A static model has a vector for each token and adds them up; it knows no context. For each budget of bytes there are
distillations with as many dimensions (PCA) as fit in int8, and, for the small ones, with clustered rows
(`vocabulary_quantization`). Scores are Spearman's correlation of cosines and human scores, on STS-B's dev split and on
the pairs of SemEval 2012 to 2014. Nothing is trained or chosen on these, but of several distillations that fit a
budget the table shows the one with the best mean, which flatters the static side. Bytes are those of the weights,
`model.safetensors`.

    python benchmarks/static.py --teachers all-MiniLM-L6-v2 all-mpnet-base-v2 --students runs/embedding \
        --stsb data/embedding/validation.parquet --sts data/sts/validation.parquet --packages peers

model2vec needs packages that the project does not use, in a folder of their own (`--packages`):
`pip install --no-deps --target peers model2vec==0.10.0 'skeletoken<0.7'`. A finished row is not measured again, and a
teacher's token vectors are kept in `--work_dir`, part by part.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from transformers import AutoModel, AutoTokenizer, HfArgumentParser

from machine import facts

PART = 1024  # tokens that are encoded and kept together
SETS = ("STS-B dev", "STS12", "STS13", "STS14")


@dataclass(frozen=True)
class Distillation:
    """A static model: PCA dimensions, dtype of the rows, and clusters of rows (none: a row for each token)."""

    dims: int | None
    dtype: str = "int8"
    clusters: int | None = None

    def __str__(self) -> str:
        rows = f", {self.clusters:,} clusters" if self.clusters else ""
        return f"{self.dims or 'all'} dimensions, {self.dtype}{rows}"


# Budget in MB -> the distillations that are tried for it; `fitting` adds the one with most dimensions in int8.
CLUSTERED: dict[float, list[Distillation]] = {
    1: [Distillation(256, clusters=2000), Distillation(128, clusters=4000)],
    3: [Distillation(256, clusters=8000)],
    8: [],
    30: [Distillation(256, "float16"), Distillation(None, "int8"), Distillation(384, "float16")],
}


@dataclass
class StaticArguments:
    """Which models, and where their data and results are."""

    teachers: list[str] = field(metadata={"help": "Folders of float embedders that static models are made of."})
    stsb: str = field(metadata={"help": "STS-B's dev split: sentence1, sentence2, label."})
    sts: str = field(metadata={"help": "SemEval's pairs: set, sentence1, sentence2, score."})
    students: list[str] = field(default_factory=list, metadata={"help": "Folders of packed embedders."})
    budgets: list[float] = field(default_factory=lambda: list(CLUSTERED), metadata={"help": "MB (10**6 bytes)."})
    clusters: bool = field(default=True, metadata={"help": "Clustered rows too; takes minutes on 2 cores."})
    packages: str | None = field(default=None, metadata={"help": "Folder with model2vec."})
    work_dir: str = field(default="static", metadata={"help": "Keeps token vectors and the models."})
    results_file: str = field(default="benchmarks/results/static.jsonl", metadata={"help": "JSON lines, one a model."})
    threads: int = field(default=2, metadata={"help": "Threads of PyTorch."})


def read_pairs(args: StaticArguments) -> dict[str, pd.DataFrame]:
    """Name of a set -> its pairs: sentence1, sentence2, score."""
    stsb = pd.read_parquet(args.stsb).rename(columns={"label": "score"})
    sts = pd.read_parquet(args.sts)
    return {SETS[0]: stsb, **{str(name): rows for name, rows in sts.groupby("set")}}


def scores(encode: Any, pairs: dict[str, pd.DataFrame]) -> dict[str, float]:
    """Spearman's correlation on each set; `encode` gives an array of a vector for each text."""
    found = {}
    for name, rows in pairs.items():
        first, second = (unit(encode(list(rows[column]))) for column in ("sentence1", "sentence2"))
        found[name] = float(spearmanr((first * second).sum(1), rows["score"]).statistic)
    return found


def unit(vectors: np.ndarray) -> np.ndarray:
    """The vectors with length one; zeros stay zeros."""
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def encoder(folder: str) -> Any:
    """A function from texts to vectors of a folder of sentence-transformers, packed or float."""
    import torch

    import hf_xtc  # noqa: F401  (registers the packed models)
    from hf_xtc.tasks.pooling import pool
    from hf_xtc.tasks.sentence_embedding import read_settings

    settings = read_settings(folder)
    model, tokenizer = AutoModel.from_pretrained(folder, dtype="auto").eval(), AutoTokenizer.from_pretrained(folder)

    def encode(texts: list[str]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        vectors: list[Any] = [None] * len(texts)
        for start in range(0, len(texts), 64):
            chosen = order[start : start + 64]
            batch = tokenizer(
                [texts[i] for i in chosen], padding=True, truncation=True, max_length=128, return_tensors="pt"
            )
            with torch.inference_mode():
                found = pool(model(**batch)[0], batch["attention_mask"], settings.pooling)
            for number, vector in zip(chosen, found.float().numpy(), strict=True):
                vectors[number] = vector
        return np.stack(vectors)

    return encode


class Distiller:
    """Makes model2vec's static models of one teacher; what the teacher says of each token is computed once."""

    def __init__(self, teacher: str, folder: Path):
        from model2vec.distill import distillation

        self.library, self.teacher, self.folder = distillation, teacher, folder / Path(teacher).name
        self.folder.mkdir(parents=True, exist_ok=True)
        self._create = distillation.create_embeddings
        distillation.create_embeddings = self._kept  # the rest of `distill` is model2vec's own

    def _kept(self, *, tokenized: list[list[int]], **options: Any) -> np.ndarray:
        """The vectors of all tokens; each part is kept in a file, so that a run that stops goes on there."""
        parts = []
        for start in range(0, len(tokenized), PART):
            file = self.folder / f"tokens-{start}.npy"
            if not file.exists():
                found = self._create(tokenized=tokenized[start : start + PART], **options)
                scratch = file.with_suffix(".part.npy")
                np.save(scratch, found)
                scratch.replace(file)
            parts.append(np.load(file))
        return np.concatenate(parts)

    def make(self, kind: Distillation) -> tuple[Any, int]:
        """A static model, loaded from disk, and the bytes of its weights."""
        model = self.library.distill(
            self.teacher,
            device="cpu",
            pca_dims=kind.dims,
            quantize_to=kind.dtype,
            vocabulary_quantization=kind.clusters,
        )
        folder = self.folder / str(kind).replace(" ", "_").replace(",", "")
        model.save_pretrained(folder)
        return type(model).from_pretrained(folder), (folder / "model.safetensors").stat().st_size


def fitting(budget: float, rows: int, width: int) -> Distillation:
    """The distillation in int8 with as many dimensions as fit into so many MB."""
    return Distillation(min(int(budget * 1e6 * 0.998) // rows, width))


def measure(args: StaticArguments, records: list[dict[str, Any]]) -> Any:
    """Yields the records that are not there yet."""
    pairs = read_pairs(args)
    known = {(record["teacher"], record["model"]) for record in records}

    def record(teacher: str, model: str, kind: str, size: int, encode: Any) -> dict[str, Any]:
        known.add((teacher, model))
        found = {"teacher": teacher, "model": model, "kind": kind, "bytes": size, "scores": scores(encode, pairs)}
        return {**found, **facts(args.threads, "hf_xtc", "torch", "transformers", "model2vec", "skeletoken")}

    for kind, folders in (("float", args.teachers), ("packed", args.students)):
        for folder in folders:
            config = json.loads(Path(folder, "config.json").read_text())
            teacher = config["xtc"]["provenance"]["teacher"] if kind == "packed" else Path(folder).name
            name = f"{config['num_hidden_layers']} layers, {kind}"
            if (teacher, name) not in known:
                size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
                yield record(teacher, name, kind, size, encoder(folder))
    for folder in args.teachers:
        distiller = Distiller(folder, Path(args.work_dir))
        rows, width = len(AutoTokenizer.from_pretrained(folder)), AutoModel.from_pretrained(folder).config.hidden_size
        kinds = [fitting(budget, rows, width) for budget in args.budgets]
        kinds += [
            kind for budget in args.budgets for kind in CLUSTERED.get(budget, []) if _possible(kind, args, width)
        ]
        for static in dict.fromkeys(kinds):
            name = f"static, {static}"
            if (Path(folder).name, name) not in known:
                model, size = distiller.make(static)
                yield record(Path(folder).name, name, "static", size, model.encode)


def _possible(kind: Distillation, args: StaticArguments, width: int) -> bool:
    return (kind.dims or width) <= width and (args.clusters or not kind.clusters)


def mean(record: dict[str, Any]) -> float:
    """The mean of a record's scores."""
    return float(np.mean(list(record["scores"].values())))


def best_static(records: list[dict[str, Any]], limit: float) -> dict[str, Any] | None:
    """The static model of at most `limit` bytes with the best mean."""
    fits = [record for record in records if record["kind"] == "static" and record["bytes"] <= limit]
    return max(fits, key=mean, default=None)


def table(records: list[dict[str, Any]]) -> str:
    """Models by bytes: packed and float ones, and for each teacher the best static one up to each budget."""
    chosen = [record for record in records if record["kind"] != "static"]
    for teacher in {record["teacher"]: None for record in records}:
        own = [record for record in records if record["teacher"] == teacher]
        chosen += [found for budget in CLUSTERED if (found := best_static(own, budget * 1e6))]
    unique = {(record["teacher"], record["model"]): record for record in chosen}
    lines = [f"| model | of | bytes | {' | '.join(SETS)} | mean |", "|---|---|---|" + "---|" * (len(SETS) + 1)]
    for record in sorted(unique.values(), key=lambda record: record["bytes"]):
        cells = [record["model"], record["teacher"], f"{record['bytes']:,}"]
        cells += [f"{record['scores'][name]:.4f}" for name in SETS] + [f"{mean(record):.4f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdict(records: list[dict[str, Any]]) -> str:
    """For each packed embedder, the best static model of at most its bytes, and of ten times its bytes."""
    lines = []
    for record in sorted((r for r in records if r["kind"] == "packed"), key=lambda r: r["bytes"]):
        parts = []
        for times, words in ((1, "at most its bytes"), (10, "at most ten times its bytes")):
            rival = best_static(records, times * record["bytes"])
            if rival is not None:
                better = mean(record) - mean(rival)
                state = (
                    f"{abs(better):.4f} {'ahead of' if better > 0 else '**behind**'} the best static model of {words}"
                )
                parts.append(f"{state} ({mean(rival):.4f}: {rival['teacher']}, {rival['bytes']:,})")
        lines.append(f"- {record['model']} of {record['teacher']}, mean {mean(record):.4f}: {'; '.join(parts)}.")
    return "\n".join(lines)


def main() -> None:
    """Measures what is not in the results yet, and prints the table."""
    (args,) = HfArgumentParser(StaticArguments).parse_args_into_dataclasses()
    if args.packages:
        sys.path.append(args.packages)
    import torch

    torch.set_num_threads(args.threads)
    file = Path(args.results_file)
    records = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for record in measure(args, records):
        records.append(record)
        with file.open("a") as lines:
            lines.write(json.dumps(record) + "\n")
        print(record["teacher"], record["model"], f"{record['bytes']:,}", f"{mean(record):.4f}", flush=True)
    print(table(records), verdict(records), sep="\n\n")


if __name__ == "__main__":
    main()
