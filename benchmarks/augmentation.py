"""Augmented rows per second of `data.augmentation` and of a plain version of TinyBERT's procedure, at equal settings.

The plain version handles one word of one sentence at a time: it sorts the word's cosines with the whole table, or the
scores of one forward pass of the masked language model, and then makes the copies in Python loops. Both have the same
words, candidates, M, p and N, and drop the same duplicates. Weights are random, of MiniLM-L6's shape, unless an
encoder is given; the time does not depend on their values. The plain version runs on the first rows only.

    python benchmarks/augmentation.py --data_file train.parquet --text_column sentence \
        --output_file benchmarks/results/augmentation.json
"""

import copy
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForMaskedLM, BertTokenizerFast, HfArgumentParser
from transformers import set_seed as seed_everything

from hf_xtc.data.augmentation import Augmentation, augment
from hf_xtc.data.masked_lm import MaskedLM
from hf_xtc.data.tables import read_file
from hf_xtc.data.word_table import WordTable, word_spans
from hf_xtc.files.writing import write_json
from machine import facts

BAR = 20  # required ratio of rows per second, batched to plain
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass
class BenchmarkArguments:
    """Data, settings, and the number of rows for each procedure."""

    data_file: str = field(metadata={"help": "Sentences: a .txt file of lines, or a table with a text column."})
    text_column: str = field(default="text", metadata={"help": "Column of the sentences."})
    encoder: str | None = field(default=None, metadata={"help": "Folder of an encoder whose word table to take."})
    rows: int = field(default=5000, metadata={"help": "Sentences augmented with the word table."})
    masked_rows: int = field(default=100, metadata={"help": "Sentences augmented with the masked language model."})
    plain_rows: int = field(default=50, metadata={"help": "Sentences of the plain procedure, word table."})
    plain_masked_rows: int = field(default=10, metadata={"help": "Those with the masked language model."})
    together: list[int] = field(
        default_factory=lambda: [1, 4], metadata={"help": "Words masked together, each timed."}
    )
    bf16: bool = field(default=False, metadata={"help": "Time the last of these in bfloat16 too, against float32."})
    copies: int = field(default=20, metadata={"help": "N."})
    vocabulary: int = field(default=30522, metadata={"help": "Pieces of the random models."})
    threads: int = field(default=0, metadata={"help": "Threads of torch; 0 leaves them."})
    seed: int = field(default=0, metadata={"help": "Of weights and draws."})
    output_file: str | None = field(default=None, metadata={"help": "JSON file for the results."})


# ---- the plain procedure


class Plain:
    """Finds candidates for one word at a time."""

    def __init__(self, source: WordTable | MaskedLM):
        self.masked = source if isinstance(source, MaskedLM) else None
        self.table = source if isinstance(source, WordTable) else source.table
        self.numbers = {word: i for i, word in enumerate(self.table.words)} if self.table else {}

    def candidates(self, text: str, span: tuple[int, int], count: int) -> list[str]:
        """Candidates for the word at `span`, best first."""
        word = text[slice(*span)]
        if self.masked is not None:
            pieces = self.masked.tokenizer.tokenize(word)
            if len(pieces) == 1 and pieces != [self.masked.tokenizer.unk_token]:
                return self.likeliest(self.masked, text, span, count)
        return self.nearest(word, count)

    def nearest(self, word: str, count: int) -> list[str]:
        """The words of the table with the highest cosine with `word`, best first."""
        own = self.numbers.get(word, self.numbers.get(word.lower()))
        if own is None:
            return []
        cosines = self.table.vectors @ self.table.vectors[own]
        cosines[own] = -np.inf
        return [self.table.words[i] for i in np.argsort(-cosines)[:count]]

    def likeliest(self, source: MaskedLM, text: str, span: tuple[int, int], count: int) -> list[str]:
        """The pieces with the highest scores at the masked word, best first, from one forward pass."""
        tokenizer, masked = source.tokenizer, text[: span[0]] + source.tokenizer.mask_token + text[span[1] :]
        inputs = tokenizer(masked, text, truncation=True, return_tensors="pt")
        at = inputs["input_ids"][0].tolist().index(tokenizer.mask_token_id)
        with torch.no_grad():
            scores = source.model(**inputs).logits[0]
        return tokenizer.convert_ids_to_tokens(scores[at].sort(descending=True).indices[:count].tolist())


def like(word: str, candidate: str) -> str:
    """The candidate, capitalized like the word."""
    if word.isupper():
        return candidate.upper()
    return candidate[:1].upper() + candidate[1:] if word[0].isupper() else candidate


def one_at_a_time(texts: Sequence[str], settings: Augmentation, source: WordTable | MaskedLM) -> list[str]:
    """The augmented texts, a sentence at a time and a word at a time."""
    plain, chance, made = Plain(source), random.Random(settings.seed), []
    seen = {" ".join(text.lower().split()) for text in texts}
    for text in texts:
        spans, candidates = word_spans(text), []
        for start, end in spans:
            word = text[start:end]
            words = plain.candidates(text, (start, end), settings.candidates)
            candidates.append([like(word, c) for c in words if c.isalpha() and c.lower() != word.lower()])
        for _ in range(settings.copies):
            made_text, end = "", 0
            for (start, stop), words in zip(spans, candidates, strict=True):
                replace = bool(words) and chance.random() < settings.probability
                made_text += text[end:start] + (chance.choice(words) if replace else text[start:stop])
                end = stop
            made_text += text[end:]
            if (key := " ".join(made_text.lower().split())) not in seen:
                seen.add(key)
                made.append(made_text)
    return made


# ---- the measurement


def batched(texts: Sequence[str], settings: Augmentation, source: WordTable | MaskedLM) -> list[str]:
    """The augmented texts, made by the package."""
    data = datasets.Dataset.from_dict({"text": list(texts), "label": [0] * len(texts)})
    return augment(data, settings, source)["text"][len(texts) :]


def read_texts(args: BenchmarkArguments) -> list[str]:
    """The sentences of the data file."""
    if args.data_file.endswith(".txt"):
        return Path(args.data_file).read_text(encoding="utf-8").splitlines()
    return read_file(args.data_file)[args.text_column][:]


def models(args: BenchmarkArguments, texts: Sequence[str]) -> tuple[WordTable, MaskedLM]:
    """The word table and a random masked language model; without an encoder, the data's words are the vocabulary."""
    seed_everything(args.seed)
    if args.encoder is not None:
        tokenizer = AutoTokenizer.from_pretrained(args.encoder)
        table = WordTable.from_model(AutoModel.from_pretrained(args.encoder), tokenizer)
    else:
        words = sorted({text[a:b].lower() for text in texts for a, b in word_spans(text)})
        fill = ["".join(random.Random(i).choices("bcdfghjklmnpqrstvwxyz", k=9)) for i in range(args.vocabulary)]
        pieces = dict.fromkeys([*SPECIAL, *words[: args.vocabulary // 2], *fill])
        vocabulary = {piece: i for i, piece in enumerate(list(pieces)[: args.vocabulary])}
        tokenizer = BertTokenizerFast(vocab=vocabulary, model_max_length=512)
        table = None
    shape = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **shape)).eval()
    table = table or WordTable.from_model(model, tokenizer)
    return table, MaskedLM(model, tokenizer, table)


def rate(make: Callable[..., list[str]], texts: Sequence[str], settings: Augmentation, source: Any) -> dict[str, Any]:
    """Times one run: its rows and augmented rows, seconds, and augmented rows per second."""
    start = time.perf_counter()
    made = len(make(texts, settings, source))
    seconds = time.perf_counter() - start
    return {"rows": len(texts), "augmented": made, "seconds": seconds, "augmented_per_second": made / seconds}


def compare(
    args: BenchmarkArguments, texts: Sequence[str], source: WordTable | MaskedLM, plain_source: WordTable | MaskedLM
) -> dict[str, Any]:
    """Times both procedures, after a small warm-up run of each, and returns the results and their ratio."""
    settings = Augmentation(copies=args.copies, seed=args.seed)
    masked = isinstance(source, MaskedLM)
    plain_rows, rows = (args.plain_masked_rows, args.masked_rows) if masked else (args.plain_rows, args.rows)
    batched(texts[:2], settings, source)
    one_at_a_time(texts[:2], settings, plain_source)
    ours = rate(batched, texts[:rows], settings, source)
    plain = rate(one_at_a_time, texts[:plain_rows], settings, plain_source)
    ratio = ours["augmented_per_second"] / plain["augmented_per_second"]
    return {"batched": ours, "plain": plain, "ratio": ratio, "met": ratio >= BAR}


def measure(args: BenchmarkArguments) -> dict[str, Any]:
    """Source of candidates -> the results of `compare`."""
    datasets.disable_progress_bars()
    if args.threads:
        torch.set_num_threads(args.threads)
    texts = read_texts(args)
    table, masked = models(args, texts)
    results = {"word table": compare(args, texts, table, table)}
    for together in args.together:
        source = MaskedLM(masked.model, masked.tokenizer, table, together)
        results[f"masked language model, {together} at once"] = compare(args, texts, source, source)
    if args.bf16:
        plain, model = source, copy.deepcopy(masked.model).to(torch.bfloat16)
        source = MaskedLM(model, masked.tokenizer, table, args.together[-1])
        results[f"masked language model, {source.together} at once, bfloat16"] = compare(args, texts, source, plain)
    return results


def main() -> None:
    """Prints the results, and writes them if asked."""
    args = HfArgumentParser(BenchmarkArguments).parse_args_into_dataclasses()[0]
    results = {
        "bar": BAR,
        "sources": measure(args),
        "arguments": {key: value for key, value in asdict(args).items() if key != "output_file"},
        **facts(torch.get_num_threads(), "hf_xtc", "torch", "transformers", "datasets", "numpy", "pyarrow"),
    }
    print(json.dumps(results, indent=2))
    if args.output_file:
        write_json(args.output_file, results)


if __name__ == "__main__":
    main()
