"""Compares an exported file with its model: both run on the same rows, and every output is compared.

Float sums in another order move activations across rounding boundaries, by one of their 256 levels, and this grows
with each layer: two ways to compute one quantized model do not agree to float precision. So an export is compared with
the model's own noise: how far its outputs move when its LayerNorm weights change by one part in 100,000. Measured mean
differences (binary MiniLM of 3 layers, 600 reviews; random BERT of 12 layers): noise 0.41 % and 5.2 %, exact exports
0.11 % and 4.1 %, ONNX with 2 bits 0.80 % and 5.1 %. A wrong scale, code or mask gives far larger differences.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hf_xtc.export.graph import IDS, MASK, SENTENCE_EMBEDDING, TYPES, Interface, sentence_settings
from hf_xtc.files.sentence_files import SentenceSettings
from hf_xtc.modeling.layers import PackedLinear
from hf_xtc.tasks.pooling import pool

Batch = dict[str, Tensor]
Outputs = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Tolerance:
    """How far an export may differ from its model, in addition to a multiple of the model's own noise.

    Args:
        noises (`float`): The multiple of the noise.
        classes (`float`): Share of predicted classes, in [0, 1]. The rows are a sample, so two standard errors of
            their number are added; one class may always differ, as it may be a tie.
        largest (`float`): Largest difference, in units of the largest magnitude of an output value.
        mean (`float`): Mean difference, in units of the mean magnitude.
    """

    noises: float
    classes: float
    largest: float
    mean: float

    def __str__(self) -> str:
        shares = f"{self.largest:.1%} of the largest and {self.mean:.1%} of the mean output"
        return f"{self.noises:g} times that, plus {self.classes:.1%} of the classes, {shares}"


EXACT = Tolerance(noises=3, classes=0.002, largest=0.005, mean=0.001)
ROUNDED = Tolerance(noises=3, classes=0.005, largest=0.01, mean=0.005)  # weights rounded to float16
CLOSE = Tolerance(noises=5, classes=0.02, largest=0.05, mean=0.03)


@dataclass
class Agreement:
    """How an exported file compares with its model; values at padding do not count.

    Args:
        rows (`int`): Rows that both computed.
        predictions (`int`): Classes that the model predicts for them: one per row, one per token for heads that label
            tokens, two per row (start and end) for question answering, none for a regression or a bare encoder.
        equal (`int`): Those that the exported file predicts too.
        largest (`float`): Largest difference of an output value.
        magnitude (`float`): Largest magnitude of an output value of the model.
    """

    rows: int = 0
    predictions: int = 0
    equal: int = 0
    largest: float = 0.0
    magnitude: float = 0.0
    _differences: float = 0.0
    _magnitudes: float = 0.0

    @property
    def relative_mean(self) -> float:
        """Mean difference in units of the mean magnitude."""
        return self._differences / self._magnitudes if self._magnitudes else self._differences

    def add(self, expected: Outputs, found: Outputs, attention_mask: NDArray[Any]) -> None:
        """Compares one batch."""
        self.rows += len(attention_mask)
        mask = attention_mask.astype(bool)
        for name, values in expected.items():
            self._add(name, values, found[name], mask)

    def _add(self, name: str, expected: NDArray[Any], found: NDArray[Any], mask: NDArray[Any]) -> None:
        spans = name in ("start_logits", "end_logits")
        if spans:  # the class is a position that is not padding
            expected, found = (np.where(mask, values, -np.inf) for values in (expected, found))
        elif expected.ndim == 3:
            expected, found = expected[mask], found[mask]
        if spans or (name == "logits" and expected.shape[-1] > 1):
            same = expected.argmax(-1) == found.argmax(-1)
            self.predictions += same.size
            self.equal += int(same.sum())
        kept = mask if spans else np.ones_like(expected, dtype=bool)
        differences, magnitudes = np.abs(found[kept] - expected[kept]), np.abs(expected[kept])
        self._differences += float(differences.sum(dtype=np.float64))
        self._magnitudes += float(magnitudes.sum(dtype=np.float64))
        self.largest = float(np.fmax(self.largest, differences.max()))
        self.magnitude = max(self.magnitude, float(magnitudes.max()))

    def within(self, tolerance: Tolerance, noise: "Agreement") -> bool:
        """Whether the differences are within a tolerance, given the model's own noise; NaN never is."""
        largest = tolerance.largest * self.magnitude + tolerance.noises * noise.largest
        mean = tolerance.mean + tolerance.noises * noise.relative_mean
        tied = tolerance.noises * (noise.predictions - noise.equal)
        wrong, expected = self.predictions - self.equal, tolerance.classes * self.predictions
        allowed = max(1, expected + 2 * math.sqrt(expected) + tied)
        close = self.largest <= largest and self.relative_mean <= mean
        return close and wrong <= allowed

    def __str__(self) -> str:
        classes = f"{self.equal} of {self.predictions} predicted classes equal, " if self.predictions else ""
        return (
            f"{classes}largest difference {self.largest:.2g} of outputs up to {self.magnitude:.3g}, "
            f"mean difference {self.relative_mean:.2%} of the mean output"
        )


def compare(model: Any, runner: Callable[[Batch], Outputs], batches: Iterable[Batch]) -> tuple[Agreement, Agreement]:
    """Runs a model, its exported file, and a copy of the model with noise, on the same rows.

    Args:
        model (`PreTrainedModel`): The packed model, on any device and of any dtype; computed in float32 on the CPU by
            the reference backend.
        runner: The exported file, from a batch to its outputs by name.
        batches: Padded batches of the graph's inputs, integers `(batch, sequence)`.

    Returns:
        How the file agrees with the model, and how the copy does (the noise).
    """
    reference = copy.deepcopy(model).cpu().float().eval()
    reference.set_backend("reference")
    moved = with_noise(reference)
    agreement, noise = Agreement(), Agreement()
    for batch in batches:
        mask, expected = batch["attention_mask"].numpy(), model_outputs(reference, batch)
        agreement.add(expected, runner(batch), mask)
        noise.add(expected, model_outputs(moved, batch), mask)
    return agreement, noise


@torch.inference_mode()
def model_outputs(model: Any, batch: Batch) -> Outputs:
    """What a model computes of a batch, under the names of an export's outputs."""
    return with_vectors(model(**batch, return_dict=True), batch, sentence_settings(model))


def with_vectors(outputs: Mapping[str, Tensor], batch: Batch, settings: SentenceSettings | None) -> Outputs:
    """The outputs of a model as arrays, with the vectors of a sentence embedder."""
    arrays = {name: value.numpy() for name, value in outputs.items() if isinstance(value, Tensor)}
    if settings is not None:
        vectors = pool(outputs["last_hidden_state"], batch[MASK], settings.pooling)
        vectors = nn.functional.normalize(vectors) if settings.normalize else vectors
        arrays[SENTENCE_EMBEDDING] = vectors.numpy()
    return arrays


def with_float_inputs(model: Any) -> Any:
    """A copy of a packed model whose linears do not quantize their inputs."""
    changed = copy.deepcopy(model)
    for module in changed.modules():
        if isinstance(module, PackedLinear):
            module.activation = None
    return changed


@torch.no_grad()
def with_noise(model: Any) -> Any:
    """A copy whose LayerNorm weights are changed by one part in 100,000, to measure the model's own noise."""
    moved, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    for module in moved.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.mul_(1 + 1e-5 * torch.randn(module.weight.shape, generator=generator))
    return moved


def random_batches(config: Any, interface: Interface, rows: int = 64, batch_size: int = 16) -> Iterator[Batch]:
    """Rows of random tokens in two segments, of all lengths up to 32, padded: the same at every call."""
    generator = torch.Generator().manual_seed(0)
    longest, padding = min(32, interface.longest), config.pad_token_id or 0
    for _ in range(0, rows, batch_size):
        ids = torch.randint(config.vocab_size, (batch_size, longest), generator=generator)
        lengths = torch.randint(1, longest + 1, (batch_size, 1), generator=generator)
        lengths[0] = longest
        mask = (torch.arange(longest) < lengths).long()
        batch = {IDS: ids.where(mask == 1, padding), MASK: mask}
        if TYPES in interface.inputs:
            batch[TYPES] = (torch.arange(longest) >= lengths // 2).long() * mask
        yield batch
