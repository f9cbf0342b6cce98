"""Cases for driver.cpp: what it reads, what it writes, and the results that the formulas of the operator give."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from hf_xtc.native import encoder as native
from hf_xtc.quantization.activations import ActivationQuantizer
from hf_xtc.quantization.packing import pack_weight, unpack
from hf_xtc.quantization.quantizers import get_quantizer
from hf_xtc.quantization.specs import ActivationSpec, QuantSpec

LAYOUTS = {
    "binary": (native.BYTES, native.PAIRS, native.NIBBLES, native.SEXTETS),
    "ternary": (native.BYTES, native.PAIRS),
    "int4": (native.BYTES,),
}
LINEAR, FAKE, ENCODER = 0, 1, 2


class Case(NamedTuple):
    """What the driver reads: numbers become int64; and how many bytes it writes."""

    name: str
    parts: list[int | np.ndarray | torch.Tensor]
    nbytes: int

    def encode(self) -> bytes:
        """The case as it lies in the file."""
        return b"".join(
            np.int64(part).tobytes() if isinstance(part, int) else np.ascontiguousarray(part).tobytes()
            for part in self.parts
        )


def run(command: Sequence[str], variant: str, cases: Sequence[Case], folder: Path) -> list[bytes]:
    """Results of a driver, in the order of the cases."""
    written, read = folder / "cases.bin", folder / "outputs.bin"
    written.write_bytes(np.int64(len(cases)).tobytes() + b"".join(case.encode() for case in cases))
    subprocess.run([*command, variant, str(written), str(read)], check=True)
    found, start, results = read.read_bytes(), 0, []
    for case in cases:
        results.append(found[start : start + case.nbytes])
        start += case.nbytes
    assert start == len(found)
    return results


class Linear(NamedTuple):
    """A weight, a bias, and activations."""

    quantizer: str
    layout: int
    weight: torch.Tensor
    bias: torch.Tensor
    x: torch.Tensor

    @classmethod
    def random(
        cls, quantizer: str, layout: int, rows: int, columns: int, tokens: int, generator: torch.Generator
    ) -> "Linear":
        weight, bias = torch.randn(rows, columns, generator=generator), torch.randn(rows, generator=generator)
        x = torch.randn(tokens, columns, generator=generator)
        x[0] = -1  # the largest sums, where all codes are equal too
        weight[0] = 1
        if tokens > 2:
            x[1] = 0
        return cls(quantizer, layout, weight, bias, x)

    def weight_parts(self) -> list[int | np.ndarray | torch.Tensor]:
        packed = pack_weight(self.weight, QuantSpec(self.quantizer))
        levels, (rows, columns) = get_quantizer(self.quantizer).levels, self.weight.shape
        scale = packed.scale.float().flatten().expand(rows)
        return [self.layout, levels, rows, columns, packed.packed.numel(), packed.packed, scale, self.bias]

    def case(self) -> Case:
        (rows, columns), tokens = self.weight.shape, len(self.x)
        name = f"{self.quantizer} {rows} x {columns}, layout {self.layout}, {tokens} tokens"
        return Case(name, [LINEAR, *self.weight_parts(), tokens, self.x], tokens * rows * 4)

    def expected(self, fused: bool) -> bytes:
        """Exact integer sums, scaled in float32; with `fused` the last product and the bias are rounded once."""
        x, packed = self.x.numpy(), pack_weight(self.weight, QuantSpec(self.quantizer))
        levels = get_quantizer(self.quantizer).levels
        codes = unpack(packed.packed, packed.columns, levels).numpy().astype(np.int64)
        values = 2 * codes - 1 if levels == 2 else codes - levels // 2
        scale = np.abs(x).max(axis=1, keepdims=True) / np.float32(128)
        steps = np.minimum(np.rint(x / np.where(scale == 0, np.float32(1), scale)), 127).astype(np.int64)
        exact = (steps @ values.T).astype(np.float32)
        factor, bias = packed.scale.float().numpy().reshape(1, -1) * scale, self.bias.numpy()
        if fused:  # a product of two float32 numbers is exact in float64
            return (exact.astype(np.float64) * factor + bias).astype(np.float32).tobytes()
        return (exact * factor + bias).tobytes()


def linears(shapes: Sequence[tuple[int, int, int]]) -> list[Linear]:
    """Random weights of all quantizers in all layouts; shapes are rows, columns and tokens."""
    generator = torch.Generator().manual_seed(0)
    return [
        Linear.random(quantizer, layout, *shape, generator)
        for quantizer, layouts in LAYOUTS.items()
        for layout in layouts
        for shape in shapes
    ]


def fakes() -> list[tuple[Case, bytes]]:
    """Cases of fake-quantization, and what PyTorch's operations give (with `XTC_NATIVE=off`)."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(9, 77, generator=generator)
    values[0] = 0
    values[1, 3] = torch.inf
    values[2, 5] = torch.nan
    values[3, :20] = -0.0
    nothing, found = torch.zeros(9), []
    scale = values.abs().mean(1)
    for kind, name in ((0, "binary"), (1, "ternary")):
        if name == "binary":
            expected = torch.where(values >= 0, scale[:, None], -scale[:, None])
        else:
            zero = 0 * scale[:, None]
            expected = torch.where(values < -scale[:, None], -scale[:, None], zero)
            expected = torch.where(values > scale[:, None], scale[:, None], expected)
        case = Case(name, [FAKE, kind, 0, *values.shape, values, scale, scale], values.nbytes)
        found.append((case, expected.numpy().tobytes()))
    kept = values > scale[:, None]
    expected = (values * kept).numpy().tobytes() + kept.float().sum(1).numpy().tobytes()
    found.append((Case("kept", [FAKE, 2, 0, *values.shape, values, scale, nothing], len(expected)), expected))
    for kind, dtype in ((3, torch.float32), (4, torch.bfloat16)):
        tokens = values.to(dtype)
        expected = ActivationQuantizer(ActivationSpec())(tokens).view(torch.uint8).numpy().tobytes()
        parts = [FAKE, kind, 128, *values.shape, tokens.view(torch.uint8), nothing, nothing]
        found.append((Case(f"tokens in {dtype}", parts, len(expected)), expected))
    return found


def random_encoder(
    quantizer: str, layout: int, hidden: int, heads: int, inner: int, lengths: Sequence[int], projected: bool = False
) -> Case:
    """Two layers on packed word embeddings (binary, ternary or int8 rows by turns of the tables).

    With `projected` the embeddings are projected, and distances of tokens are added to the scores.
    """
    generator = torch.Generator().manual_seed(1)
    norms = [torch.randn(hidden, generator=generator) for _ in range(10)]
    tokens = sum(lengths)
    parts: list[int | np.ndarray | torch.Tensor] = [ENCODER, hidden, heads, inner, 2]
    for kind in ("binary", "ternary", "int8"):
        table = pack_weight(torch.randn(40, hidden, generator=generator), QuantSpec(kind))
        scale = table.scale.float().flatten()
        parts += [get_quantizer(kind).levels, 40, table.packed.numel(), table.packed, scale]
    parts += norms[:2]
    for layer in range(2):
        for rows, columns in ((3 * hidden, hidden), (hidden, hidden), (inner, hidden), (hidden, inner)):
            parts += Linear.random(quantizer, layout, rows, columns, 1, generator).weight_parts()
        parts += norms[2 + 4 * layer : 6 + 4 * layer]
    reach = max(lengths) if projected else 0
    parts += [reach, torch.randn(heads * (2 * reach - 1) if projected else 0, generator=generator)]
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    ids = [torch.randint(40, (tokens,), generator=generator) for _ in range(3)]
    parts += [len(lengths), tokens, offsets, *ids]
    nbytes = ((tokens + len(lengths)) * hidden + len(lengths)) * 4  # hidden states, pooled ones, logits
    name = f"{quantizer} encoder of width {hidden}, layout {layout}{', projected' * projected}"
    return Case(name, parts, nbytes)
