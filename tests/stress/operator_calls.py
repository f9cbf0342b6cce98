"""Calls every function of the native operator with hypothesis' inputs; sanitize.py runs it on a library that reports.

Each call gets tensors of any shape, stride, dtype and device, right or wrong. It has to give the reference's result or
one of PyTorch's errors; a report of the sanitizers ends the process.
"""

import argparse
import os

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from hf_xtc.native import encoder as native
from hf_xtc.native import fake_quantization as fake
from hf_xtc.native.library import variants
from hf_xtc.quantization.activations import ActivationQuantizer
from hf_xtc.quantization.packing import pack_weight
from hf_xtc.quantization.quantizers import fake_quantize, get_quantizer
from hf_xtc.quantization.specs import ActivationSpec, QuantSpec

LAYOUTS = {
    "binary": (native.BYTES, native.PAIRS, native.NIBBLES, native.SEXTETS),
    "ternary": (native.BYTES, native.PAIRS),
    "int4": (native.BYTES,),
}
DTYPES = [torch.float32] * 6 + [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
SPECIAL = [0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-45, 3.4e38, -128.0, 127.5]
ERRORS = (RuntimeError, IndexError, NotImplementedError, TypeError)
counts = {"served": 0, "refused": 0}


@st.composite
def tensors(draw, shape):
    """A tensor of about this shape: contiguous or not, of any dtype and device, with any numbers."""
    shape = [max(0, size + draw(st.sampled_from([0] * 12 + [-1, 1, 7]))) for size in shape]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    values = torch.randn(shape, generator=generator)
    if values.numel() and draw(st.integers(0, 3)) == 0:
        place = draw(st.integers(0, values.numel() - 1))
        values.view(-1)[place] = draw(st.sampled_from(SPECIAL))
    values = values.to(draw(st.sampled_from(DTYPES)))
    layout = draw(st.sampled_from(["as it is"] * 4 + ["transposed", "strided", "offset", "expanded", "meta"]))
    if layout == "transposed" and values.dim() > 1:
        return values.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "strided":
        return torch.stack([values, values], -1)[..., 0]
    if layout == "offset":
        return torch.cat([values.new_zeros(1), values.flatten()])[1:].view(values.shape)
    if layout == "expanded" and len(values):
        return values[:1].expand(values.shape)
    return values.to("meta") if layout == "meta" else values


def attempt(function, *inputs):
    """The result, or `None` if the inputs were refused."""
    try:
        result = function(*inputs)
    except ERRORS:
        counts["refused"] += 1
        return None
    counts["served"] += 1
    return result


@st.composite
def linear_calls(draw):
    quantizer = draw(st.sampled_from(sorted(LAYOUTS)))
    rows, columns = draw(st.integers(1, 200)), draw(st.one_of(st.integers(1, 70), st.integers(71, 1600)))
    lead = draw(st.sampled_from([(), (1,), (3,), (6,), (7,), (2, 5), (41,), (0,)]))
    return quantizer, rows, columns, draw(st.sampled_from(LAYOUTS[quantizer])), draw(tensors((*lead, columns)))


def call_linear(data):
    quantizer, rows, columns, layout, x = data.draw(linear_calls())
    weight = pack_weight(torch.randn(rows, columns), QuantSpec(quantizer))
    bias = data.draw(
        st.sampled_from([None, torch.randn(rows), torch.randn(rows + 1), torch.ones(rows, device="meta")])
    )
    packed = data.draw(st.sampled_from([weight.packed] * 5 + [weight.packed[:, :-1], weight.packed.to("meta")]))
    levels = get_quantizer(quantizer).levels
    found = attempt(native.linear, x, packed, weight.scale, bias, columns, levels, layout)
    if found is not None and bool((x.abs() < 1e3).all()):
        expected = F.linear(ActivationQuantizer(ActivationSpec())(x), weight.decode(), bias)
        assert (found - expected).abs().mean().nan_to_num() < 1e-2


def call_encoder(data):
    heads, size, inner = (data.draw(st.integers(1, most)) for most in (4, 24, 70))
    hidden, length = heads * size, data.draw(st.integers(1, 40))
    quantizer = data.draw(st.sampled_from(sorted(LAYOUTS)))
    layout, levels = data.draw(st.sampled_from(LAYOUTS[quantizer])), get_quantizer(quantizer).levels

    def weight(rows, columns):
        packed = pack_weight(torch.randn(rows, columns), QuantSpec(quantizer))
        return native.NativeWeight([native.Codes(packed.packed, packed.scale, None, columns, levels)], layout)

    def table(rows, hidden):
        kind = data.draw(st.sampled_from([None, "binary", "ternary", "int4", "int8"]))
        if kind is None:
            return native.NativeTable(torch.randn(rows, hidden), None, 0, hidden)
        packed = pack_weight(torch.randn(rows, hidden), QuantSpec(kind, "per_channel"))
        return native.NativeTable(packed.packed, packed.scale, get_quantizer(kind).levels, hidden)

    shapes = ((3 * hidden, hidden), (hidden, hidden), (inner, hidden), (hidden, inner))
    norm = [torch.ones(hidden), torch.zeros(hidden)]
    has_types, options, width = data.draw(st.booleans()), {}, hidden
    if data.draw(st.booleans()):
        width = data.draw(st.integers(1, 90))
        linear = weight(hidden, width) if data.draw(st.booleans()) else torch.randn(hidden, width)
        options = {
            "projection": native.native_linear(linear),
            "distances": torch.randn(heads, 2 * length - 1),
        }
    layers = [native.NativeLayer([weight(*shape) for shape in shapes], norm * 2) for _ in range(2)]
    tables = [table(rows, width) for rows in ((11, length, 2) if has_types else (11, length))]
    norms = [torch.ones(width), torch.zeros(width)]
    run = native.NativeEncoder(layers, tables, norms, heads, (1e-12, 1e-12), **options)
    lengths = torch.tensor(data.draw(st.lists(st.integers(1, length), min_size=1, max_size=5)))
    tokens = int(lengths.sum())
    words, types = torch.randint(0, 11, (tokens,)), torch.randint(0, 2, (tokens,))
    positions = torch.cat([torch.arange(int(n)) for n in lengths])
    wrong = data.draw(st.sampled_from(["nothing"] * 4 + ["id", "dtype", "length", "device", "zero", "stride"]))
    if wrong == "id":
        words[-1] = data.draw(st.sampled_from([-1, 11, 2**40]))
    if wrong == "dtype":
        words = words.int()
    if wrong == "length":
        words = words[:-1]
    if wrong == "device":
        positions = positions.to("meta")
    if wrong == "zero":
        lengths[0] = 0
    if wrong == "stride":
        words = torch.stack([words, words], 1)[:, 0]
    packed = data.draw(st.booleans())
    pooler = native.NativePooler(weight(hidden, hidden) if packed else torch.randn(hidden, hidden))
    classifier = torch.randn(data.draw(st.integers(1, 9)), hidden)
    found = attempt(run, lengths, words, positions, types if has_types else None, pooler, classifier)
    assert (found is None) == (wrong not in ("nothing", "stride"))
    if found is not None:
        assert all(bool(output.isfinite().all()) for output in found)


def call_fake(data):
    groups, size = data.draw(st.integers(1, 9)), data.draw(st.one_of(st.integers(1, 70), st.integers(71, 40000)))
    values = data.draw(tensors((groups, size)))
    rows = [data.draw(tensors((groups, 1))) for _ in range(2)]
    out = data.draw(tensors((groups, size))).clone()
    attempt(fake.fake_binary_into, out, values, rows[0])
    attempt(fake.fake_ternary_into, out, values, *rows)
    attempt(fake.keep_beyond_, values.clone(), rows[0])
    attempt(fake.fake_tokens, values, data.draw(st.sampled_from([8, 4, 0, 99])))
    attempt(fake_quantize, values, QuantSpec(data.draw(st.sampled_from(["binary", "ternary"]))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    args = parser.parse_args()

    @seed(args.seed)
    @settings(
        max_examples=args.calls,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def call(data):
        os.environ["XTC_NATIVE"] = data.draw(st.sampled_from(list(variants())))
        torch.set_num_threads(data.draw(st.integers(1, 3)))
        data.draw(st.sampled_from([call_linear, call_linear, call_encoder, call_fake]))(data)

    call()
    print(f"{counts['served']} calls served, {counts['refused']} refused, variants {', '.join(variants())}")


if __name__ == "__main__":
    main()
