"""The native operator's linear and encoder: what they refuse, what they keep, and how they appear to PyTorch.

Their results are tested in tests/backends and tests/modeling/test_fused.py.
"""

import gc
import subprocess
import sys
import weakref

import pytest
import torch
from torch.nn import functional as F

from hf_xtc.native import encoder as native
from hf_xtc.native import library as native_library
from hf_xtc.quantization.activations import ActivationQuantizer
from hf_xtc.quantization.packing import pack_weight
from hf_xtc.quantization.quantizers import get_quantizer
from hf_xtc.quantization.specs import ActivationSpec, QuantSpec

pytestmark = pytest.mark.skipif(not native_library.variants(), reason="the native operator is not built")
LAYOUTS = [("binary", native.NIBBLES), ("binary", native.SEXTETS), ("ternary", native.PAIRS), ("int4", native.BYTES)]


@pytest.fixture(autouse=True)
def _native(monkeypatch):
    """The operator is in use, also where its portable variant is the only one."""
    monkeypatch.setenv("XTC_NATIVE", next(iter(native_library.variants())))


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weight_of(quantizer="binary", rows=5, columns=21):
    """A packed weight and what `linear` takes after the input, without the layout."""
    weight = pack_weight(random(rows, columns), QuantSpec(quantizer))
    return weight, (weight.packed, weight.scale, random(rows, seed=2), columns, get_quantizer(quantizer).levels)


@pytest.mark.parametrize("quantizer, layout", LAYOUTS)
def test_linear(quantizer, layout):
    weight, operands = weight_of(quantizer)
    x = random(2, 3, 21, seed=1)
    expected = F.linear(ActivationQuantizer(ActivationSpec())(x), weight.decode(), operands[2])
    torch.testing.assert_close(native.linear(x, *operands, layout), expected, rtol=1e-5, atol=1e-5)
    assert native.linear(torch.empty(0, 21), *operands, layout).shape == (0, 5)


@pytest.mark.parametrize("quantizer, layout", LAYOUTS)
def test_linear_is_registered_as_pytorch_expects(quantizer, layout):
    """Schema, fake implementation, and results in compiled code with shapes that vary."""
    _, operands = weight_of(quantizer)
    for shape in ((4, 21), (2, 3, 21), (21,)):
        torch.library.opcheck(native.linear, (random(*shape), *operands, layout))
    torch.library.opcheck(native.linear, (random(4, 21), *operands[:2], None, *operands[3:], layout))


@pytest.mark.parametrize(
    "x",
    [
        torch.ones(2, 20),
        torch.ones(2, 22),
        torch.ones(()),
        torch.ones(2, 21).double(),
        torch.empty(2, 21, device="meta"),
    ],
    ids=["narrow", "wide", "scalar", "dtype", "device"],
)
def test_linear_refuses_inputs_of_another_dtype_shape_or_device(x):
    """In its fake implementation too, which is what an input on the meta device reaches."""
    _, operands = weight_of()
    message = (
        r"^(The native operator multiplies float32 rows of 21 numbers; |Expected all tensors to be on the same device)"
    )
    with pytest.raises(RuntimeError, match=message):
        native.linear(x, *operands, native.NIBBLES)


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"packed": torch.zeros(5, 4, dtype=torch.uint8)}, id="bytes"),
        pytest.param({"packed": torch.zeros(5, 3)}, id="dtype"),
        pytest.param({"packed": torch.zeros(5, 3, dtype=torch.uint8, device="meta")}, id="device"),
        pytest.param({"scale": torch.ones(4)}, id="scales"),
        pytest.param({"scale": torch.ones(5, device="meta")}, id="scales-device"),
        pytest.param({"bias": torch.ones(6)}, id="bias"),
        pytest.param({"bias": torch.ones(5, device="meta")}, id="bias-device"),
        pytest.param({"levels": 5}, id="levels"),
        pytest.param({"columns": 0}, id="columns"),
    ],
)
def test_codes_that_do_not_fit_together_are_refused(changed):
    packed, scale, bias, columns, levels = weight_of()[1]
    given = {"packed": packed, "scale": scale, "bias": bias, "columns": columns, "levels": levels, **changed}
    x = torch.ones(2, given["columns"])
    message = (
        r"^(The native operator cannot read (torch\.)?\w+ codes of shape |Expected all tensors to be on the same )"
    )
    with pytest.raises(RuntimeError, match=message):
        native.linear(x, *given.values(), native.NIBBLES)


@pytest.mark.parametrize(
    "quantizer, layout",
    [("int4", native.PAIRS), ("ternary", native.NIBBLES), ("ternary", native.SEXTETS), ("binary", 4)],
)
def test_layouts_that_cannot_hold_the_levels_are_refused(quantizer, layout):
    with pytest.raises(RuntimeError, match=r"^Weights of \d+ levels cannot be laid out together in layout \d\.$"):
        native.linear(torch.ones(2, 21), *weight_of(quantizer)[1], layout)


@pytest.mark.parametrize("quantizer, layout", [("binary", native.NIBBLES), ("ternary", native.PAIRS)])
def test_packed_layouts_keep_codes_packed(quantizer, layout):
    """1 bit per binary code and 2 bits per ternary code, instead of 8."""
    codes = native.Codes(*weight_of(quantizer, 128, 192)[1])
    packed, expanded = (native.NativeWeight([codes], kind) for kind in (layout, native.BYTES))
    assert packed.nbytes == 128 * 192 * (1 if quantizer == "binary" else 2) // 8
    assert expanded.nbytes == 128 * 192


def test_codes_are_laid_out_once_and_again_when_a_tensor_changes(monkeypatch):
    made, make = [], native.NativeWeight.__init__
    monkeypatch.setattr(native.NativeWeight, "__init__", lambda *args: made.append(args[-1]) or make(*args))
    _, (packed, scale, bias, columns, levels) = weight_of()
    x = random(2, 21, seed=1)

    def run(layout=native.NIBBLES, bias=bias):
        return native.linear(x, packed, scale, bias, columns, levels, layout)

    before = run()
    assert torch.equal(run(), before)
    assert made == [native.NIBBLES]
    scale.mul_(2)
    torch.testing.assert_close(run() - bias, 2 * (before - bias), rtol=1e-5, atol=1e-5)
    packed.bitwise_not_()
    torch.testing.assert_close(run() - bias, 2 * (bias - before), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(run(bias=None), 2 * (bias - before), rtol=1e-5, atol=1e-5)
    run(native.BYTES)
    assert made == [native.NIBBLES] * 4 + [native.BYTES]


def test_laid_out_codes_are_freed_with_the_packed_codes():
    operands = weight_of()[1]
    native.linear(random(2, 21), *operands, native.BYTES)
    laid_out = weakref.ref(native._LAID_OUT[id(operands[0])].weight)
    del operands
    gc.collect()
    assert laid_out() is None


def test_meta_tensors_give_shapes():
    packed, scale, bias, columns, levels = weight_of()[1]
    x, *meta = (tensor.to("meta") for tensor in (random(3, 4, 21), packed, scale, bias))
    found = native.linear(x, *meta, columns, levels, native.NIBBLES)
    assert (found.device.type, found.dtype, found.shape) == ("meta", torch.float32, (3, 4, 5))
    with pytest.raises(RuntimeError, match=r"^The native operator runs on the CPU, but "):
        native.NativeWeight([native.Codes(*meta, columns, levels)], native.NIBBLES)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_computes_row_by_row():
    _, operands = weight_of()
    x = random(3, 4, 21)
    found = torch.vmap(lambda rows: native.linear(rows, *operands, native.NIBBLES))(x)
    assert torch.equal(found, native.linear(x, *operands, native.NIBBLES))


def encoder(hidden=8, inner=12, positions=50):
    """A native encoder of one layer, of float tables."""

    def weight(rows, columns):
        packed = pack_weight(random(rows, columns), QuantSpec("binary"))
        return native.NativeWeight([native.Codes(packed.packed, packed.scale, None, columns, 2)], native.NIBBLES)

    weights = [weight(3 * hidden, hidden), weight(hidden, hidden), weight(inner, hidden), weight(hidden, inner)]
    tables = [native.NativeTable(random(rows, hidden), None, 0, hidden) for rows in (11, positions, 2)]
    norm = [torch.ones(hidden), torch.zeros(hidden)]
    return native.NativeEncoder([native.NativeLayer(weights, norm * 2)], tables, norm, 2, (1e-12, 1e-12))


def ids(*values):
    return torch.tensor(values)


def test_encoder():
    run = encoder()
    hidden = run(ids(2, 1), ids(5, 6, 5), ids(0, 1, 0), ids(0, 0, 0)).hidden
    assert hidden.shape == (3, 8)
    assert torch.equal(run(ids(1), ids(5), ids(0), ids(0)).hidden[0], hidden[2])
    assert run(*[torch.empty(0, dtype=torch.int64)] * 4).hidden.shape == (0, 8)
    batch, pooler = (ids(2, 1), ids(5, 6, 5), ids(0, 1, 0), ids(0, 0, 0)), native.NativePooler(random(8, 8))
    torch.library.opcheck(native._encode, (*batch, None, None, -1, run._number))
    torch.library.opcheck(native._encode, (*batch, random(3, 8), random(3), pooler.number, run._number))


def test_encoder_refuses_rows_that_a_table_does_not_have():
    run = encoder()
    for name, place, wrong, rows in (("token", 0, 11, 11), ("position", 1, -1, 50), ("token type", 2, 2, 2)):
        given = [ids(1, 1), ids(1, 1), ids(1, 1)]
        given[place] = ids(0, wrong)
        message = rf"^index out of range: {name} id {wrong}, but the embedding has {rows} rows\.$"
        with pytest.raises(IndexError, match=message):
            run(ids(2), *given)


@pytest.mark.parametrize("lengths", [ids(1), ids(3), ids(2, 0), ids(3, -1)], ids=str)
def test_encoder_refuses_lengths_that_are_not_those_of_the_tokens(lengths):
    with pytest.raises(
        RuntimeError, match=r"^The lengths of the sequences must be positive and sum up to 2 tokens\.$"
    ):
        encoder()(lengths, ids(1, 1), ids(1, 1), ids(1, 1))


@pytest.mark.parametrize(
    "words", [ids(1), ids(1, 1).int(), ids(1, 1)[None], torch.ones(2, dtype=torch.int64, device="meta")], ids=str
)
def test_encoder_refuses_other_tensors(words):
    run = encoder()
    with pytest.raises(RuntimeError, match=r"^The native encoder takes int64 vectors, |^Expected all tensors"):
        run(ids(2), words, ids(1, 1), ids(1, 1))


def test_an_encoder_of_shapes_that_do_not_fit_is_refused():
    good = encoder()
    (layer,) = good._layers
    with pytest.raises(RuntimeError, match=r"^An encoder of width 8 with 3 heads cannot have layers "):
        native.NativeEncoder([layer], good._tables, good._norm, 3, (1e-12, 1e-12))
    other = native.NativeLayer(layer.weights[::-1], layer.norms)
    with pytest.raises(RuntimeError, match=r"^An encoder of width "):
        native.NativeEncoder([other], good._tables, good._norm, 2, (1e-12, 1e-12))
    with pytest.raises(RuntimeError, match=r"^Rows of shape \(11, 8\) do not hold 9 numbers of 0 levels\.$"):
        native.NativeTable(random(11, 8), None, 0, 9)


def test_distances_are_added_to_scores():
    """Of all queries and keys: an encoder whose linears are zero but for those of values and attention's output."""
    hidden, tokens, heads = 8, 5, 2

    def weight(rows, columns, scale):
        packed = pack_weight(random(rows, columns), QuantSpec("binary"))
        return native.NativeWeight(
            [native.Codes(packed.packed, packed.scale * scale, None, columns, 2)], native.NIBBLES
        )

    values = torch.cat([torch.zeros(2 * hidden), torch.ones(hidden)])[:, None]
    weights = [weight(3 * hidden, hidden, values), weight(hidden, hidden, 1)]
    weights += [weight(12, hidden, 0), weight(hidden, 12, 0)]
    norm = [torch.ones(hidden), torch.zeros(hidden)]
    tables = [
        native.NativeTable(random(11, hidden), None, 0, hidden),
        native.NativeTable(torch.zeros(50, hidden), None, 0, hidden),
    ]
    distances = random(heads, 2 * 6 - 1, seed=7)
    run = native.NativeEncoder(
        [native.NativeLayer(weights, norm * 2)], tables, norm, heads, (0.0, 0.0), None, distances
    )
    words = torch.arange(tokens)
    found = run(ids(tokens), words, words, None).hidden
    x = F.layer_norm(random(11, hidden)[:tokens], (hidden,), eps=0.0)
    quantized, packed = (
        ActivationQuantizer(ActivationSpec()),
        pack_weight(random(3 * hidden, hidden), QuantSpec("binary")),
    )
    value = F.linear(quantized(x), packed.decode()[2 * hidden :]).view(tokens, heads, -1).transpose(0, 1)
    scores = torch.stack([distances[:, 6 - 1 - q : 6 - 1 - q + tokens] for q in range(tokens)], 1)
    context = (scores.softmax(-1) @ value).transpose(0, 1).flatten(1)
    output = F.linear(quantized(context), pack_weight(random(hidden, hidden), QuantSpec("binary")).decode())
    once = F.layer_norm(output + x, (hidden,), eps=0.0)
    torch.testing.assert_close(found, F.layer_norm(once, (hidden,), eps=0.0), rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError, match=r"^A sequence has more than the 6 tokens that the distances are for\.$"):
        run(ids(7), torch.zeros(7).long(), torch.zeros(7).long(), None)
    with pytest.raises(RuntimeError, match=r"^An encoder of 2 tables cannot read 3 rows for each token\.$"):
        run(ids(tokens), words, words, words)
    with pytest.raises(RuntimeError, match=r"^An encoder with 2 heads cannot add \(3, 11\) numbers to its scores\.$"):
        native.NativeEncoder(run._layers, tables, norm, heads, (0.0, 0.0), None, random(3, 11))


@pytest.mark.parametrize("packed", [True, False])
def test_a_projection_of_the_embeddings(packed):
    """Layers get the projected rows, and nothing else differs."""
    good, width = encoder(), 5
    weight, bias = random(8, width, seed=3), random(8, seed=4)
    if packed:
        codes = pack_weight(weight, QuantSpec("binary"))
        linear = native.NativeWeight([native.Codes(codes.packed, codes.scale, bias, width, 2)], native.NIBBLES)
        weight = codes.decode()
    tables = [native.NativeTable(random(rows, width, seed=rows), None, 0, width) for rows in (11, 50)]
    norm = [torch.ones(width), torch.zeros(width)]
    projection = linear if packed else native.native_linear(weight, bias)
    run = native.NativeEncoder(good._layers, tables, norm, 2, (1e-12, 1e-12), projection)
    words = torch.arange(9)
    found = run(ids(4, 5), words, words, None).hidden
    x = F.layer_norm(random(11, width, seed=11)[:9] + random(50, width, seed=50)[:9], (width,), eps=1e-12)
    rows = F.linear(ActivationQuantizer(ActivationSpec())(x) if packed else x, weight, bias)
    # The same layers on given rows: an identity in float projects embeddings whose norm is undone by its weights.
    center, spread = rows.mean(1, keepdim=True), rows.std(1, keepdim=True, unbiased=False)
    for row in range(9):
        scale, shift = spread[row].expand(8).contiguous(), center[row].expand(8).contiguous()
        table = [
            native.NativeTable(rows[row : row + 1], None, 0, 8),
            native.NativeTable(torch.zeros(1, 8), None, 0, 8),
        ]
        alone = native.NativeEncoder(good._layers, table, (scale, shift), 2, (1e-12, 0.0))
        one = run(ids(1), ids(row), ids(row), None).hidden
        torch.testing.assert_close(one, alone(ids(1), ids(0), ids(0), None).hidden, rtol=1e-3, atol=1e-3)
    assert torch.equal(found[:4], run(ids(4), words[:4], words[:4], None).hidden)
    with pytest.raises(RuntimeError, match=r"^An encoder of width 8 "):
        native.NativeEncoder(good._layers, tables, norm, 2, (1e-12, 1e-12))


def test_an_encoder_of_tensors_elsewhere_is_refused():
    good = encoder()
    meta = torch.ones(8, device="meta")
    makes = (
        lambda: native.NativeTable(torch.ones(11, 8, device="meta"), None, 0, 8),
        lambda: native.NativeLayer(good._layers[0].weights, [meta] * 4),
        lambda: native.NativeEncoder(good._layers, good._tables, [meta] * 2, 2, (1e-12, 1e-12)),
    )
    for make in makes:
        with pytest.raises(
            RuntimeError, match=r"^The native operator runs on the CPU, but weights that it should read"
        ):
            make()


@pytest.mark.parametrize("variant", list(native_library.variants()))
@pytest.mark.parametrize("quantizer, layout", [*LAYOUTS, (None, None)])
@pytest.mark.parametrize(
    "sequences, activation, function",
    [
        (1, "tanh", torch.tanh),
        (3, "tanh", torch.tanh),
        (100, "tanh", torch.tanh),
        (3, "gelu", F.gelu),
        (3, "relu", F.relu),
    ],
)
def test_the_head(quantizer, layout, sequences, activation, function, variant, monkeypatch):
    """Pooler, activation and classifier against PyTorch's operations on the same hidden states."""
    monkeypatch.setenv("XTC_NATIVE", variant)
    weight, bias = random(8, 8, seed=3), random(8, seed=4)
    if quantizer is None:
        pooler = native.NativePooler(weight, bias, activation=activation)
    else:
        packed = pack_weight(weight, QuantSpec(quantizer))
        codes = native.Codes(packed.packed, packed.scale, bias, 8, get_quantizer(quantizer).levels)
        laid_out = native.NativeWeight([codes], layout)
        pooler, weight = native.NativePooler(laid_out, activation=activation), packed.decode()
    lengths = torch.full((sequences,), 2)
    words = torch.arange(2 * sequences) % 11
    batch = (lengths, words, words % 2, words % 2)
    classifier, shift = random(5, 8, seed=5), random(5, seed=6)
    hidden, pooled, logits = encoder()(*batch, pooler, classifier, shift)
    first = hidden[::2] if quantizer is None else ActivationQuantizer(ActivationSpec())(hidden[::2])
    torch.testing.assert_close(pooled, function(F.linear(first, weight, bias)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits, F.linear(pooled, classifier, shift), rtol=1e-5, atol=1e-5)
    assert torch.equal(encoder()(*batch).hidden, hidden)
    assert torch.equal(
        encoder()(*batch, pooler, classifier).logits, encoder()(*batch, pooler, classifier, shift * 0).logits
    )
    last = [values[-2:] for values in batch[1:]]
    alone = encoder()(ids(2), *last, pooler, classifier, shift)
    assert torch.equal(alone.logits[0], logits[-1])


@pytest.mark.parametrize("variant", list(native_library.variants()))
def test_tanh(variant, monkeypatch):
    """Of a pooler whose weight is zero and whose bias is the argument: within two units in the last place."""
    monkeypatch.setenv("XTC_NATIVE", variant)
    sizes = torch.logspace(-30, 2, 4000, dtype=torch.float64).float()
    special = torch.tensor([0.0, 0.625, float("inf"), float("nan")])
    x = torch.cat([sizes, -sizes, special, -special])
    run = encoder()
    found = [
        run(ids(1), ids(5), ids(0), ids(0), native.NativePooler(torch.zeros(8, 8), part)).pooled[0]
        for part in x.view(-1, 8)
    ]
    expected = x.double().tanh()
    units = (torch.cat(found).double() - expected).abs() / (expected.abs() * 2.0**-23).clamp_min(2.0**-149)
    assert units.nan_to_num(0).max() < 2
    assert torch.equal(torch.cat(found).isnan(), x.isnan())


def test_a_head_of_another_width_is_refused():
    batch = (ids(1), ids(5), ids(0), ids(0))
    good, other = native.NativePooler(random(8, 8)), native.NativePooler(random(9, 9))
    for pooler, classifier in ((other, None), (good, random(3, 9)), (None, random(3, 8))):
        with pytest.raises(RuntimeError, match=r"^A pooler and a classifier do not fit an encoder of width 8\.$"):
            encoder()(*batch, pooler, classifier)
    with pytest.raises(RuntimeError, match=r"^A linear cannot have a weight of shape \(8, 8\) and a bias of "):
        native.NativePooler(random(8, 8), random(7))


def test_a_large_batch_is_computed_in_parts():
    """Of 4096 tokens; rows do not depend on their part."""
    run, length = encoder(positions=700), 700
    lengths = torch.tensor([length, 1, 30] * 8)
    words = torch.arange(int(lengths.sum())) % 11
    positions = torch.cat([torch.arange(int(count)) for count in lengths])
    together = run(lengths, words, positions, words % 2).hidden
    pieces = zip(*(index.split(lengths.tolist()) for index in (words, positions, words % 2)), strict=True)
    alone = [run(ids(len(piece[0])), *piece).hidden for piece in pieces]
    assert torch.equal(together, torch.cat(alone))


MEMORY = """
import resource, torch
from tests.native.test_encoder import encoder
run, length = encoder(hidden=1024, inner=64, positions=4000), 4000
words = torch.zeros(length, dtype=torch.int64)
def call():
    return run(torch.tensor([length]), words, words, words).hidden
out = torch.empty(length, 1024)
torch.set_num_threads(1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (40 << 20), resource.RLIM_INFINITY))
try:
    call()
except MemoryError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(call().isfinite().all().item())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_without_memory_for_intermediate_results():
    """An error that can be caught, after which the operator works."""
    found = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    message, works = found.stdout.splitlines() or found.stderr
    assert message.startswith("The native operator needs ")
    assert message.endswith("such memory. Run fewer or shorter texts at once, or fewer threads.")
    assert works == "True"
