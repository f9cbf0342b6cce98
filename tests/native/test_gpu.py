"""The Triton kernels by Triton's interpreter, on the CPU: `TRITON_INTERPRET=1` in a process of their own.

Results are bitwise those of the `int8` backend on PyTorch's operations, whose sums are exact.
"""

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_xtc.backends import BACKENDS
from hf_xtc.modeling.layers import PackedLinear
from hf_xtc.native import gpu
from hf_xtc.native.encoder import Codes
from hf_xtc.quantization.activations import ActivationQuantizer
from hf_xtc.quantization.packing import pack, pack_weight, unpack
from hf_xtc.quantization.quantizers import get_quantizer
from hf_xtc.quantization.specs import ActivationSpec, QuantSpec

interpreted = pytest.mark.skipif(not gpu.runs_on(torch.device("cpu")), reason="needs TRITON_INTERPRET=1 and triton")
levels = pytest.mark.parametrize("name", ["binary", "ternary"])
BLOCKS = [gpu.default_blocks(tokens) for tokens in (1, 17, 65, 1025)]
DTYPES = st.sampled_from(gpu.DTYPES)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def codes_of(weight, bias=None):
    return Codes(weight.packed, weight.scale, bias, weight.columns, get_quantizer(weight.spec.quantizer).levels)


def by_int8(x, weight, bias):
    """The product by PyTorch's operations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XTC_NATIVE", "off")
        return BACKENDS["int8"]().linear(x, weight, bias, ActivationQuantizer(ActivationSpec()))


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(gpu.interpreted(), reason="this is the process that it starts")
def test_the_kernels_under_the_interpreter():
    """Runs this file in a process in which Triton interprets; nothing that needs that is skipped there."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", __file__]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "needs TRITON_INTERPRET" not in done.stdout


COMPILE = """
import sys
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hf_xtc.native import gpu, gpu_kernels


def compiled(kernel, capability, types, constants, **options):
    names = list(types) + list(constants)
    signature = {**types, **dict.fromkeys(constants, "constexpr")}
    constants = {(names.index(name),): value for name, value in constants.items()}
    aligned = [i for i, (name, kind) in enumerate(types.items()) if kind[0] == "*" or name in ("width", "row_bytes")]
    source = ASTSource(kernel, signature, constants, {(i,): [["tt.divisibility", 16]] for i in aligned})
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm


folder = Path(sys.argv[1])
pointers = dict(values="*i8", scale="*fp32", codes="*u8", step="*fp16", bias="*fp32", out="*fp16")
numbers = dict.fromkeys(["tokens", "rows", "width", "row_bytes", "step_stride"], "i32")
for capability in (80, 90):
    for tokens in (1, 17, 65, 1025):
        blocks = gpu.default_blocks(tokens)
        for bits in gpu.BITS.values():
            constants = dict(BITS=bits, BIAS=True, TOKENS=blocks.tokens, ROWS=blocks.rows, INNER=blocks.inner)
            options = dict(num_warps=blocks.warps, num_stages=blocks.stages, enable_fp_fusion=False)
            code = compiled(gpu_kernels.multiply_codes, capability, {**pointers, **numbers}, constants, **options)
            (folder / f"multiply_{capability}_{bits}_{tokens}.ptx").write_text(code["ptx"])
    types = dict(x="*fp32", values="*i8", scale="*fp32", columns="i32", width="i32")
    code = compiled(gpu_kernels.quantize_rows, capability, types, dict(BLOCK=1024))
    (folder / f"quantize_{capability}.ptx").write_text(code["ptx"])
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(gpu.interpreted(), reason="compiled in the other process")
def test_the_kernels_compile_for_gpus(tmp_path):
    """For Ampere and Hopper, with Triton's own assembler: int8 tensor cores, IEEE division, nothing fused."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(tmp_path)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-5000:]
    products = [path.read_text() for path in tmp_path.glob("multiply_*.ptx")]
    assert len(products) == 2 * 2 * 4
    for code in products:
        assert re.search(r"(wgmma\.mma_async|mma)\.sync\.\S*\.s32\.s8\.s8", code)
        assert "fma." not in code
    for code in (path.read_text() for path in tmp_path.glob("quantize_*.ptx")):
        assert "div.rn.f32" in code
        assert "div.full" not in code


@interpreted
@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(["binary", "ternary"]),
    granularity=st.sampled_from(["per_tensor", "per_channel"]),
    dtype=DTYPES,
    scale_dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
    tokens=st.integers(0, 70),
    rows=st.integers(1, 70),
    columns=st.integers(1, 300),
    has_bias=st.booleans(),
    magnitude=st.sampled_from([0.0, 1e-42, 1e-6, 1.0, 1e2]),
    seed=st.integers(0, 2**16),
)
def test_products_are_bitwise_those_of_int8(
    name, granularity, dtype, scale_dtype, tokens, rows, columns, has_bias, magnitude, seed
):
    """In all dtypes and for all shapes, from rows of zeros and of numbers below the least normal one on."""
    weight = pack_weight(random(rows, columns, seed=seed), QuantSpec(name, granularity, scale_dtype=scale_dtype))
    x = random(tokens, columns, seed=seed + 1)
    x[: tokens // 2] *= magnitude
    x, bias = x.to(dtype), random(rows, seed=seed + 2).to(dtype) if has_bias else None
    found = gpu.gpu_linear(x, weight.packed, weight.scale, bias, *codes_of(weight)[3:])
    assert (found.dtype, found.shape) == (dtype, (tokens, rows))
    expected = by_int8(x, weight, bias)
    if dtype == torch.bfloat16:  # Triton's interpreter cuts a float32 off, a GPU rounds it to the nearest
        torch.testing.assert_close(found, expected, rtol=2**-7, atol=0)
    else:
        assert torch.equal(found, expected)


@interpreted
@levels
@pytest.mark.parametrize("blocks", BLOCKS, ids=["16", "64", "1024", "many"])
def test_every_tile_gives_the_same(name, blocks):
    weight = pack_weight(random(70, 300), QuantSpec(name))
    x, bias = random(130, 300, seed=1), random(70, seed=2)
    assert torch.equal(gpu.multiply(x, codes_of(weight, bias), blocks), by_int8(x, weight, bias))


@interpreted
@levels
@pytest.mark.parametrize("columns", [64, 1100, 9000])
def test_sums_are_exact_at_the_extremes(name, columns):
    """All activations are -128 or 127 and all codes extreme; more columns than a row is quantized at a time."""
    weight = pack_weight(torch.tensor([[1.0], [-1.0]]).expand(2, columns), QuantSpec(name, scale_dtype="float32"))
    x = torch.full((2, columns), -128.0)
    x[1] = 127.0
    x[1, 0] = 128.0  # the largest of its row, so that the step is 1; it saturates to 127
    found = gpu.gpu_linear(x, weight.packed, weight.scale, None, *codes_of(weight)[3:])
    assert found.tolist() == [[-128.0 * columns, 128.0 * columns], [127.0 * columns, -127.0 * columns]]


@interpreted
@levels
def test_levels_are_rounded_half_to_even(name):
    """With a step of 1: 0.5 becomes 0, 1.5 and 2.5 become 2, and the same below zero."""
    halves = torch.arange(-8, 8) + 0.5
    x = torch.cat([torch.tensor([-128.0]), halves])[None].repeat(17, 1) * torch.eye(17).bool()
    x[:, 0] = -128.0
    weight = pack_weight(torch.ones(1, 17), QuantSpec(name, scale_dtype="float32"))
    found = gpu.gpu_linear(x, weight.packed, weight.scale, None, *codes_of(weight)[3:])[1:, 0] + 128
    assert torch.equal(found, halves.round())


@interpreted
@levels
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_reaches_its_row_and_no_other(name, wrong):
    weight = pack_weight(random(5, 21), QuantSpec(name))
    x = random(3, 21, seed=1)
    expected = by_int8(x, weight, None)
    x[1, 7] = wrong
    found = gpu.gpu_linear(x, weight.packed, weight.scale, None, *codes_of(weight)[3:])
    assert found[1].isnan().all()
    assert torch.equal(found[[0, 2]], expected[[0, 2]])


@interpreted
@levels
def test_packed_layers_use_the_kernel(name, monkeypatch):
    """On the CPU only with the interpreter and without the native operator; changed codes are seen."""
    monkeypatch.setenv("XTC_NATIVE", "off")
    layer = PackedLinear(21, 5, spec=QuantSpec(name), activation=ActivationSpec()).requires_grad_(False)
    layer.backend, x, seen, multiply = "packed", random(2, 3, 21, seed=1), [], gpu.multiply
    monkeypatch.setattr(gpu, "multiply", lambda *operands: seen.append(1) or multiply(*operands))
    for seed in (0, 1):
        weight = pack_weight(random(5, 21, seed=seed), layer.spec)
        layer.weight_packed.copy_(weight.packed)
        layer.weight_scale.copy_(weight.scale)
        assert torch.equal(layer(x), by_int8(x, weight, layer.bias))
    assert len(seen) == 2
    layer.weight_packed.data.copy_(pack_weight(random(5, 21, seed=2), layer.spec).packed)
    layer.forget_prepared()
    assert torch.equal(layer(x), by_int8(x, layer.packed_weight, layer.bias))


@interpreted
@levels
def test_the_operator_is_registered_as_pytorch_asks(name):
    """`torch.library.opcheck`: schema, fake implementation, tracing with static and dynamic shapes."""
    weight = pack_weight(random(5, 21), QuantSpec(name))
    operands = (random(3, 21, seed=1), weight.packed, weight.scale, random(5, seed=2), *codes_of(weight)[3:])
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.hf_xtc.gpu_linear.default, operands, test_utils=tests)


@interpreted
def test_compiled_code_and_exports_hold_the_operator(monkeypatch):
    monkeypatch.setenv("XTC_NATIVE", "off")
    layer = PackedLinear(21, 5, spec=QuantSpec("ternary"), activation=ActivationSpec()).requires_grad_(False)
    layer.set_packed_weight(pack_weight(random(5, 21), layer.spec))
    layer.backend, x, seen = "packed", random(3, 21, seed=1), []

    def record(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    compiled = torch.compile(layer, fullgraph=True, backend=record)
    assert torch.equal(compiled(x), layer(x))
    torch.compiler.reset()
    assert seen == ["hf_xtc.gpu_linear.default"]
    exported = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("rows")},))
    assert torch.equal(exported.module()(random(9, 21)), layer(random(9, 21)))


@pytest.mark.parametrize("columns", [1, 4, 5, 21, 768])
def test_ternary_codes_are_laid_out_as_2_bits(columns):
    trits = torch.randint(0, 3, (7, columns), dtype=torch.uint8)
    fields = gpu.two_bit_fields(pack(trits, 3), columns)
    assert fields.shape == (7, -(-columns // 4))
    digits = torch.stack([fields >> shift & 3 for shift in (0, 2, 4, 6)], -1).flatten(1)
    assert torch.equal(digits[:, :columns], trits)
    assert not digits[:, columns:].any()
    assert torch.equal(unpack(pack(trits, 3), columns, 3), trits)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"x": random(3, 20)},
            r"rows of 21 numbers in float32, float16 or bfloat16; it got torch.float32 of shape \(3",
        ),
        ({"x": random(3, 21).double()}, "it got torch.float64"),
        ({"x": torch.tensor(1.0)}, r"of shape \(\)"),
        ({"packed": torch.zeros(5, 4, dtype=torch.uint8)}, "cannot read torch.uint8 codes of shape"),
        ({"scale": torch.ones(4)}, r"scales of shape \(4,\)"),
        ({"scale": torch.ones(5, dtype=torch.int32)}, "reads scales and biases in float32, .*it got torch.int32"),
        ({"bias": torch.ones(6)}, r"biases of shape \(6,\)"),
        ({"levels": 16}, "cannot read|codes of \\[2, 3\\] levels; it got 16"),
        ({"x": torch.empty(3, 21, device="meta")}, "same device"),
    ],
)
def test_operands_that_the_kernel_cannot_read_are_refused(change, message):
    """Before a pointer is taken; by the operator and by its fake implementation."""
    operands = {"x": random(3, 21), "packed": torch.zeros(5, 3, dtype=torch.uint8), "scale": torch.ones(5)}
    operands |= {"bias": None, "columns": 21, "levels": 2, **change}
    with pytest.raises(RuntimeError, match=message):
        gpu.gpu_linear(**operands)


@pytest.mark.skipif(gpu.interpreted(), reason="the interpreter runs it")
def test_on_the_cpu_the_kernel_is_refused_with_advice():
    message = r"^The Triton kernel needs a GPU and the package triton; the tensors are on cpu\. Use another "
    with pytest.raises(RuntimeError, match=message):
        gpu.gpu_linear(random(3, 21), torch.zeros(5, 3, dtype=torch.uint8), torch.ones(5), None, 21, 2)
