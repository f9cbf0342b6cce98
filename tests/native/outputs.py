"""Prints the package's folder and digests of the native operator's outputs, for each variant named.

Run as a script, with a copy of the package on `PYTHONPATH` whose operator was built in another way.
"""

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

import hf_xtc
from hf_xtc.native import encoder as native
from hf_xtc.quantization.activations import ActivationQuantizer
from hf_xtc.quantization.packing import pack_weight
from hf_xtc.quantization.quantizers import fake_quantize, get_quantizer
from hf_xtc.quantization.specs import ActivationSpec, QuantSpec


def exact() -> Iterator[torch.Tensor]:
    """What all variants compute bitwise alike: linears in all layouts, and fake-quantization."""
    generator = torch.Generator().manual_seed(0)
    for quantizer, layouts in (("binary", (0, 1, 2, 3)), ("ternary", (0, 1)), ("int4", (0,))):
        levels = get_quantizer(quantizer).levels
        for rows, columns, tokens in ((5, 21, 4), (64, 64, 1), (200, 768, 25), (70, 3072, 13)):
            weight = pack_weight(torch.randn(rows, columns, generator=generator), QuantSpec(quantizer))
            x = torch.randn(tokens, columns, generator=generator)
            x[0] = -128
            for layout in layouts:
                yield native.linear(x, weight.packed, weight.scale, None, columns, levels, layout)
    values = torch.randn(9, 77, generator=generator)
    for name in ("binary", "ternary"):
        yield fake_quantize(values, QuantSpec(name))
    for dtype in (torch.float32, torch.bfloat16):
        yield ActivationQuantizer(ActivationSpec())(values.to(dtype)).float()


def encoder() -> Iterator[torch.Tensor]:
    """Hidden states, pooled ones and logits, whose sums of floats depend on the width of vectors."""
    generator = torch.Generator().manual_seed(0)
    hidden, inner = 36, 50
    shapes = ((3 * hidden, hidden), (hidden, hidden), (inner, hidden), (hidden, inner))
    packed = [pack_weight(torch.randn(shape, generator=generator), QuantSpec("binary")) for shape in shapes]
    codes = [native.Codes(w.packed, w.scale, None, w.columns, 2) for w in packed]
    norm = list(torch.randn(2, hidden, generator=generator))
    layer = native.NativeLayer([native.NativeWeight([weight], native.NIBBLES) for weight in codes], norm * 2)
    tables = [native.NativeTable(torch.randn(40, hidden, generator=generator), None, 0, hidden) for _ in range(3)]
    ids = torch.arange(40)
    run = native.NativeEncoder([layer, layer], tables, norm, 3, (1e-12, 1e-5))
    pooler = native.NativePooler(native.NativeWeight([codes[1]], native.NIBBLES))
    yield from run(torch.tensor([33, 1, 6]), ids, ids, ids, pooler, torch.randn(3, hidden, generator=generator))


if __name__ == "__main__":
    print(Path(hf_xtc.__file__).parent)
    for name in sys.argv[1:]:
        os.environ["XTC_NATIVE"] = name
        for outputs in (exact, encoder):
            digest = hashlib.sha256()
            for tensor in outputs():
                digest.update(tensor.numpy().tobytes())
            print(name, outputs.__name__, digest.hexdigest())
