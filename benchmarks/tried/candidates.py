"""What was tried: each candidate differs from the base in one thing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from hf_xtc.distillation.terms import TERMS
from hf_xtc.quantization.specs import QUANTIZERS
from tried.quantization import CentredBinaryQuantizer, Freezing
from tried.sub_norms import add_sub_norms
from tried.terms import AttentionProbabilitiesTerm, RelationsAttention, RelationsTerm

BASE = "base"
LOGITS = {"logits": 1.0}
HIDDEN = {"hidden_states": 1.0}
SCORES = {"attention_scores": 1.0}
BOLD = {"weight_annealing": 0.3, "learning_rate": 1e-3}


@dataclass(frozen=True)
class Candidate:
    """One change.

    Args:
        what (`str`): In words, for the table.
        recipe, training (`dict`): Fields of `XTCRecipe` and `XTCTrainingArguments` that it changes.
        schedule (`str`): Its stages; they share the steps of the base.
        dropout (`float`): Of the student.
        copies (`int`): Augmented copies that are tried of each train row, labelled by the teacher.
        change (`Callable`): What is done to the student's modules; such a student is not packed, but scored as it is.
        context (`Callable`): Makes what must be entered while training; a `TrainerCallback` among them takes part.
    """

    what: str
    recipe: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    schedule: str = "direct"
    dropout: float = 0.0
    copies: int = 0
    change: Callable[[Any], Any] | None = None
    context: Callable[[], Any] = nullcontext


CANDIDATES = {
    BASE: Candidate("per-channel scales, three terms, one stage, no dropout, learning rate 5e-4"),
    "per-tensor": Candidate("one scale per weight matrix, as in the reference", {"granularity": "per_tensor"}),
    "centred": Candidate("sign(w - mean) instead of sign(w)", {"weights": "centred_binary"}),
    "lr-2e-4": Candidate("learning rate 2e-4", training={"learning_rate": 2e-4}),
    "lr-1e-3": Candidate("learning rate 1e-3", training={"learning_rate": 1e-3}),
    "cosine": Candidate("cosine decay instead of linear", training={"lr_scheduler_type": "cosine"}),
    "decay": Candidate("weight decay 0.01, as in the reference", training={"weight_decay": 0.01}),
    "dropout": Candidate("dropout 0.1, as in the reference", dropout=0.1),
    "no-scores": Candidate("without the term attention_scores", training={"terms": LOGITS | HIDDEN}),
    "no-hidden": Candidate("without the term hidden_states", training={"terms": LOGITS | SCORES}),
    "logits-only": Candidate("the term logits alone", training={"terms": LOGITS}),
    "logits-x4": Candidate("logits weighted 4", training={"terms": {"logits": 4.0} | HIDDEN | SCORES}),
    "maps": Candidate(
        "attention probabilities (divergence) instead of scores",
        training={"terms": LOGITS | HIDDEN | {"attention_probabilities": 1.0}},
    ),
    "relations": Candidate(
        "query, key and value relations of the last layer instead of scores",
        training={"terms": LOGITS | HIDDEN | {"relations": 1.0}},
        context=RelationsAttention,
    ),
    "2-stages": Candidate("intermediate terms first, then logits", training={"distillation_stages": 2}),
    "annealed": Candidate(
        "weights blended from float to binary in 30 % of the steps", training={"weight_annealing": 0.3}
    ),
    "sub-norms": Candidate("a norm more before each output projection (SubLN; not packed)", change=add_sub_norms),
    "frozen": Candidate("signs that keep changing frozen for the last 20 %", context=lambda: Freezing(0.8, 0.05)),
    "together": Candidate(
        "maps, annealed and lr-1e-3 together",
        training={"terms": LOGITS | HIDDEN | {"attention_probabilities": 1.0}, **BOLD},
    ),
    "bold": Candidate("annealed and lr-1e-3 together", training=BOLD),
    "augmented": Candidate("bold, on 10 times the rows (augmented by the word table)", training=BOLD, copies=10),
    "bold-reduced": Candidate("bold, a float stage first, same steps in all", training=BOLD, schedule="reduced-first"),
    "reduced-first": Candidate("a float stage first, same steps in all", schedule="reduced-first"),
    "ternary-first": Candidate("float, then ternary stages first, same steps in all", schedule="ternary-first"),
}


@contextmanager
def registered() -> Iterator[None]:
    """While entered, the terms and quantizers that are only tried have their names."""
    tried = [
        (TERMS, "attention_probabilities", AttentionProbabilitiesTerm),
        (TERMS, "relations", RelationsTerm),
        (QUANTIZERS, "centred_binary", CentredBinaryQuantizer),
    ]
    for registry, name, what in tried:
        registry.register(name)(what)
    try:
        yield
    finally:
        for registry, name, _ in tried:
            del registry[name]
