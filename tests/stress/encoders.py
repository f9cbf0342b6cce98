"""Compresses the shapes of twenty much downloaded text encoders, with random weights, to packed files and back.

    python tests/stress/encoders.py --output_file benchmarks/results/encoders.json

The configs are written down below from what their `config.json` on the Hub says; weights are random, and nothing is
said of accuracy. For each: compress, pack, save, load, the file's bytes against the ledger's, and the outputs of the
loaded model against those of the packed one.
"""

import json
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from transformers import HfArgumentParser
from transformers.initialization import no_init_weights

from hf_xtc import XTCRecipe, compress, ledger, pack_model
from hf_xtc.files.writing import write_json

BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
SMALL = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
XLMR = {**ROBERTA, "vocab_size": 250002}
DEBERTA = {
    **{"vocab_size": 128100, "type_vocab_size": 0, "max_position_embeddings": 512, "relative_attention": True},
    **{"position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": ["p2c", "c2p"]},
    "position_biased_input": False,
}
# Name on the Hub -> config class (without "Config"), class of the head, values that are not the config class's own.
ENCODERS = {
    "google-bert/bert-base-uncased": ("Bert", "BertForMaskedLM", {}),
    "google-bert/bert-base-multilingual-cased": ("Bert", "BertForMaskedLM", {"vocab_size": 119547}),
    "google-bert/bert-large-uncased": ("Bert", "BertForMaskedLM", LARGE),
    "sentence-transformers/all-MiniLM-L6-v2": ("Bert", "BertModel", {**SMALL, "num_hidden_layers": 6}),
    "sentence-transformers/all-MiniLM-L12-v2": ("Bert", "BertModel", {**SMALL, "num_hidden_layers": 12}),
    "BAAI/bge-small-en-v1.5": ("Bert", "BertModel", {**SMALL, "num_hidden_layers": 12}),
    "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2": (
        "Bert",
        "BertModel",
        {**SMALL, "num_hidden_layers": 12, "vocab_size": 250037},
    ),
    "cross-encoder/ms-marco-MiniLM-L6-v2": (
        "Bert",
        "BertForSequenceClassification",
        {**SMALL, "num_hidden_layers": 6, "num_labels": 1},
    ),
    "ProsusAI/finbert": ("Bert", "BertForSequenceClassification", {"num_labels": 3}),
    "sentence-transformers/all-mpnet-base-v2": (
        "MPNet",
        "MPNetModel",
        {"vocab_size": 30527, "max_position_embeddings": 514},
    ),
    "distilbert/distilbert-base-uncased": ("DistilBert", "DistilBertForMaskedLM", {}),
    "distilbert/distilbert-base-uncased-finetuned-sst-2-english": (
        "DistilBert",
        "DistilBertForSequenceClassification",
        {},
    ),
    "FacebookAI/roberta-base": ("Roberta", "RobertaForMaskedLM", ROBERTA),
    "FacebookAI/roberta-large": ("Roberta", "RobertaForMaskedLM", {**ROBERTA, **LARGE}),
    "FacebookAI/xlm-roberta-base": ("XLMRoberta", "XLMRobertaForMaskedLM", {**XLMR, **BASE}),
    "BAAI/bge-m3": ("XLMRoberta", "XLMRobertaModel", {**XLMR, **LARGE, "max_position_embeddings": 8194}),
    "google/electra-base-discriminator": (
        "Electra",
        "ElectraForPreTraining",
        {**BASE, "embedding_size": 768, "vocab_size": 30522},
    ),
    "albert/albert-base-v2": ("Albert", "AlbertForMaskedLM", {**BASE, "vocab_size": 30000, "embedding_size": 128}),
    "microsoft/deberta-v3-base": ("DebertaV2", "DebertaV2Model", {**DEBERTA, **BASE}),
    "answerdotai/ModernBERT-base": (
        "ModernBert",
        "ModernBertForMaskedLM",
        {"vocab_size": 50368, "num_hidden_layers": 22, "intermediate_size": 1152, "hidden_size": 768},
    ),
}


@dataclass
class EncoderArguments:
    """What to compress, and where figures go."""

    only: str = field(default="", metadata={"help": "Compress the models with this in their names only."})
    output_file: str | None = field(default=None, metadata={"help": "JSON file for the figures."})


def try_encoder(name: str) -> dict[str, float]:
    """Figures of one model; raises `AssertionError` if file and ledger, or packed and loaded model, differ."""
    family, head, values = ENCODERS[name]
    start = time.monotonic()
    config = getattr(transformers, f"{family}Config")(**values)
    with no_init_weights():
        teacher = getattr(transformers, head)(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in teacher.parameters():
        parameter.data.uniform_(-0.05, 0.05, generator=generator)
    teacher.tie_weights()
    packed = pack_model(compress(teacher, XTCRecipe()))
    count = sum(parameter.numel() for parameter in teacher.parameters())
    promised = ledger(config, XTCRecipe(), model_class=type(packed)).total_bytes
    del teacher
    packed.set_backend("reference")
    with tempfile.TemporaryDirectory() as folder:
        packed.save_pretrained(folder)
        with open(Path(folder) / "model.safetensors", "rb") as file:
            header = int.from_bytes(file.read(8), "little")
        size = (Path(folder) / "model.safetensors").stat().st_size
        assert size == promised + 8 + header, (size, promised, header)
        assert json.loads((Path(folder) / "config.json").read_text())["model_type"] == packed.config.model_type
        loaded = type(packed).from_pretrained(folder)
        loaded.set_backend("reference")
        ids = torch.randint(5, 1000, (1, 16), generator=generator)
        with torch.no_grad():
            found, expected = (model(input_ids=ids)[0] for model in (loaded, packed))
        assert bool(torch.isfinite(expected).all())
        # Parameters of a mapped file may not be aligned, and sums take another order.
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        packed_state = packed.state_dict()
        assert all(torch.equal(tensor, packed_state[key]) for key, tensor in loaded.state_dict().items())
    seconds = round(time.monotonic() - start, 1)
    return {"parameters": count, "bytes": size, "times_smaller": round(4 * count / size, 1), "seconds": seconds}


def main() -> None:
    """Tries every encoder, and prints and writes the figures."""
    (args,) = HfArgumentParser(EncoderArguments).parse_args_into_dataclasses()
    figures = {}
    for name in ENCODERS:
        if args.only in name:
            figures[name] = try_encoder(name)
            print(name, figures[name], flush=True)
    if args.output_file is not None:
        write_json(args.output_file, figures)


if __name__ == "__main__":
    main()
