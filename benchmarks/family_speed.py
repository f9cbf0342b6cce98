"""Milliseconds of a forward of each family that the native encoder runs, in one native call and layer by layer.

Base models of random weights, of BERT-base's width and 5 layers at 1 bit on the backend `auto`; `float` is the same
model before it was compressed. All of a family's ways take turns, round after round; a cell is the median. Beside it,
how many random texts a classifier of the same shape gives the same class in both ways.

    python benchmarks/family_speed.py --output_file benchmarks/results/family_speed.json
"""

import json
import statistics
import time
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import transformers
from transformers import HfArgumentParser

from hf_xtc import ARCHITECTURES, XTCRecipe, compress, pack_model
from hf_xtc.files.writing import write_json
from hf_xtc.modeling import fused
from machine import facts

# Vocabularies are small: the time of a forward does not depend on them.
SIZES = {"vocab_size": 1000, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
OTHER_SIZES = {
    "distilbert": {"vocab_size": 1000, "dim": 768, "n_heads": 12, "hidden_dim": 3072},
    "electra": {**SIZES, "embedding_size": 128},
}


@dataclass
class FamilyArguments:
    """What to measure."""

    rows: int = field(default=1, metadata={"help": "Rows of a batch."})
    tokens: int = field(default=16, metadata={"help": "Tokens of a row."})
    layers: int = field(default=5, metadata={"help": "Layers of a model."})
    threads: int = field(default=1, metadata={"help": "Threads of PyTorch and of the operator."})
    rounds: int = field(default=101, metadata={"help": "Timed calls of each way, in turn."})
    texts: int = field(default=1400, metadata={"help": "Random texts of 4 to 32 tokens, classified in both ways."})
    output_file: str | None = field(default=None, metadata={"help": "JSON file for the results."})


@contextmanager
def layer_by_layer():
    """Forwards in which the native encoder computes nothing."""
    whole = fused.fused_encoder
    fused.fused_encoder = lambda model: None
    try:
        yield
    finally:
        fused.fused_encoder = whole


def models(family: str, layers: int, auto_class: str = "AutoModel") -> tuple[torch.nn.Module, torch.nn.Module]:
    """A random model of a family, and its packed form."""
    architecture = ARCHITECTURES[family]
    name = architecture.auto_classes[auto_class].__name__.removeprefix("XTC")
    sizes = dict(OTHER_SIZES.get(family, SIZES))
    sizes[architecture.config_class.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = layers
    config = architecture.config_class.__mro__[2](**sizes)
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    return model, pack_model(compress(model, XTCRecipe())).eval()


@torch.inference_mode()
def measure(family: str, args: FamilyArguments) -> dict[str, float]:
    """Way -> milliseconds."""
    model, packed = models(family, args.layers)
    ids = torch.randint(5, 1000, (args.rows, args.tokens))
    times: dict[str, list[float]] = {"native": [], "layer by layer": [], "float": []}

    def timed(way: str, call: torch.nn.Module) -> None:
        start = time.perf_counter()
        call(input_ids=ids)
        times[way].append(time.perf_counter() - start)

    for _ in range(args.rounds + 5):
        timed("native", packed)
        with layer_by_layer():
            timed("layer by layer", packed)
        timed("float", model)
    found = {way: statistics.median(taken[5:]) * 1e3 for way, taken in times.items()}
    return {**found, "layer by layer / native": found["layer by layer"] / found["native"]}


@torch.inference_mode()
def agreement(family: str, args: FamilyArguments) -> int:
    """The number of texts that get the same of two classes in one native call and layer by layer.

    The border between the classes is the median of the native logits, since a random head may know one class only.
    """
    _, packed = models(family, args.layers, "AutoModelForSequenceClassification")
    native, one_by_one = [], []
    for _ in range(args.texts):
        ids = torch.randint(5, 1000, (1, int(torch.randint(4, 33, ()))))
        native.append(packed(input_ids=ids).logits[0].diff())
        with layer_by_layer():
            one_by_one.append(packed(input_ids=ids).logits[0].diff())
    border = torch.cat(native).median()
    return int(((torch.cat(native) > border) == (torch.cat(one_by_one) > border)).sum())


def main() -> None:
    (args,) = HfArgumentParser(FamilyArguments).parse_args_into_dataclasses()
    torch.set_num_threads(args.threads)
    families = [
        name for name, known in ARCHITECTURES.items() if hasattr(known.auto_classes["AutoModel"], "native_form")
    ]
    cells, same = {}, {}
    for family in families:
        cells[family] = {name: round(value, 3) for name, value in measure(family, args).items()}
        same[family] = agreement(family, args)
        print(family, json.dumps(cells[family]), f"same class: {same[family]} of {args.texts}", flush=True)
    ratio = cells["mpnet"]["native"] / cells["bert"]["native"]
    print(f"MPNet takes {ratio:.3f} of BERT's time.")
    if args.output_file:
        shape = {"rows": args.rows, "tokens": args.tokens, "layers": args.layers, "rounds": args.rounds}
        agreed = {"texts": args.texts, "same class": same}
        versions = facts(args.threads, "hf_xtc", "torch", "transformers")
        write_json(args.output_file, {**versions, **shape, "mpnet / bert": round(ratio, 3), "ms": cells, **agreed})


if __name__ == "__main__":
    main()
