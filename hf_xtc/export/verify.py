"""Whether an exported file computes what its model computes: both run on the same rows, every output compared.

Formats that keep the arithmetic (all but ONNX with 2 bits) differ from the model by the order of float sums, and where
that carries an activation over a rounding boundary, by one of its 256 levels. ONNX with 2 bits quantizes activations
in its own way. The tolerances are several times what was measured on trained models; a wrong scale, code or mask
exceeds them by far.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Batch = dict[str, Tensor]
Outputs = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Tolerance:
    """What an export may differ by.

    Args:
        classes (`float`): Share of predicted classes, in [0, 1]; one is always tolerated, as it may be a tie.
        difference (`float`): Of any output value, in units of the largest magnitude of an output value.
    """

    classes: float
    difference: float

    def __str__(self) -> str:
        return f"{self.classes:.1%} of the classes and differences of {self.difference:.0%} of the largest output"


EXACT = Tolerance(classes=0.002, difference=0.05)
CLOSE = Tolerance(classes=0.03, difference=0.25)


@dataclass
class Agreement:
    """How an exported file compares with its model; values at padding are left out.

    Args:
        rows (`int`): Rows that both computed.
        predictions (`int`): Classes that the model predicts for them: one a row, one a token for heads that label
            tokens, two a row (start and end) for question answering, none for a regression or a bare encoder.
        equal (`int`): Those that the exported file predicts too.
        difference (`float`): Largest difference of an output value.
        magnitude (`float`): Largest magnitude of an output value of the model.
    """

    rows: int = 0
    predictions: int = 0
    equal: int = 0
    difference: float = 0.0
    magnitude: float = 0.0

    def add(self, expected: Outputs, found: Outputs, attention_mask: NDArray[Any]) -> None:
        """Compares one batch."""
        self.rows += len(attention_mask)
        mask = attention_mask.astype(bool)
        for name, values in expected.items():
            self._add(name, values, found[name], mask)

    def _add(self, name: str, expected: NDArray[Any], found: NDArray[Any], mask: NDArray[Any]) -> None:
        spans = name in ("start_logits", "end_logits")
        if spans:  # the class is a position, and padding is none
            expected, found = (np.where(mask, values, -np.inf) for values in (expected, found))
        elif expected.ndim == 3:
            expected, found = expected[mask], found[mask]
        if spans or (name == "logits" and expected.shape[-1] > 1):
            same = expected.argmax(-1) == found.argmax(-1)
            self.predictions += same.size
            self.equal += int(same.sum())
        kept = mask if spans else np.ones_like(expected, dtype=bool)
        difference = float(np.abs(found[kept] - expected[kept]).max())
        self.difference = math.inf if math.isnan(difference) else max(self.difference, difference)
        self.magnitude = max(self.magnitude, float(np.abs(expected[kept]).max()))

    def within(self, tolerance: Tolerance) -> bool:
        """Whether the differences are tolerated."""
        wrong = self.predictions - self.equal
        close = self.difference <= tolerance.difference * self.magnitude
        return close and wrong <= max(1, tolerance.classes * self.predictions)

    def __str__(self) -> str:
        classes = f"{self.equal} of {self.predictions} predicted classes equal, " if self.predictions else ""
        return f"{classes}largest difference {self.difference:.2g} of outputs up to {self.magnitude:.3g}"


def compare(model: Any, runner: Callable[[Batch], Outputs], batches: Iterable[Batch]) -> Agreement:
    """Runs a model and its exported file on the same rows.

    Args:
        model (`PreTrainedModel`): The packed model, on any device and of any dtype; computed in float32 on the CPU.
        runner: The exported file, from a batch to its outputs by name.
        batches: Padded batches of `input_ids`, `attention_mask` and `token_type_ids`, integers `(batch, sequence)`.
    """
    reference = copy.deepcopy(model).cpu().float().eval()
    agreement = Agreement()
    with torch.inference_mode():
        for batch in batches:
            outputs = reference(**batch, return_dict=True)
            agreement.add({k: v.numpy() for k, v in outputs.items()}, runner(batch), batch["attention_mask"].numpy())
    return agreement


def random_batches(config: Any, rows: int = 64, batch_size: int = 16) -> Iterator[Batch]:
    """Rows of random tokens in two segments, of all lengths up to 32, padded: the same at every call."""
    generator = torch.Generator().manual_seed(0)
    longest = min(32, config.max_position_embeddings)
    for _ in range(0, rows, batch_size):
        ids = torch.randint(config.vocab_size, (batch_size, longest), generator=generator)
        lengths = torch.randint(1, longest + 1, (batch_size, 1), generator=generator)
        lengths[0] = longest
        mask = (torch.arange(longest) < lengths).long()
        second = (torch.arange(longest) >= lengths // 2).long() * (config.type_vocab_size > 1)
        yield {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": second * mask}
