"""The native operator's AVX512-VNNI variant on any x86-64 processor: its bits by emulation, and its machine code.

SIMDe (Debian: libsimde-dev) writes each AVX512 intrinsic in plain C. The library built so, in a copy of the package,
must give the bits that the AVX2 variant gives. Where the processor has AVX512-VNNI, test_backends.py runs it as it is.
"""

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hf_xtc
from hf_xtc.native import library as native_library

PACKAGE = Path(hf_xtc.__file__).parent
SIMDE = Path("/usr/include/simde/x86/avx512.h")
COMPARE = """
import os, torch
from hf_xtc.native import encoder as native
from hf_xtc.quantization.activations import ActivationQuantizer
from hf_xtc.quantization.packing import pack_weight
from hf_xtc.quantization.quantizers import fake_quantize, get_quantizer
from hf_xtc.quantization.specs import ActivationSpec, QuantSpec

def outputs(variant):
    os.environ["XTC_NATIVE"] = variant
    generator = torch.Generator().manual_seed(0)
    for quantizer, layouts in (("binary", (0, 1, 2)), ("ternary", (0, 1)), ("int4", (0,))):
        for rows, columns, tokens in ((5, 21, 4), (64, 64, 1), (200, 768, 25), (70, 3072, 13)):
            weight = pack_weight(torch.randn(rows, columns, generator=generator), QuantSpec(quantizer))
            x = torch.randn(tokens, columns, generator=generator)
            x[0] = -128
            for layout in layouts:
                levels = get_quantizer(quantizer).levels
                yield native.linear(x, weight.packed, weight.scale, None, columns, levels, layout)
    values = torch.randn(9, 77, generator=generator)
    for name in ("binary", "ternary"):
        yield fake_quantize(values, QuantSpec(name))
    for dtype in (torch.float32, torch.bfloat16):
        yield ActivationQuantizer(ActivationSpec())(values.to(dtype))

assert "emulated" in native.__file__
print([torch.equal(a, b) for a, b in zip(outputs("avx512_vnni"), outputs("avx2"), strict=True)])
"""


@pytest.mark.skipif(platform.machine() != "x86_64" or not shutil.which("g++"), reason="needs g++ for x86-64")
def test_sums_of_byte_products_stay_in_registers(tmp_path):
    """Unless the loops over rows are unrolled, g++ writes the sums of several rows to memory at every step."""
    listing = tmp_path / "avx512.s"
    options = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-w", "-S", "-o", str(listing)]
    subprocess.run(["g++", *options, str(PACKAGE / "native" / "csrc" / "avx512.cpp")], check=True)
    blocks = re.split(r"^(?:[.\w]+:|\tj\w+\t).*$", listing.read_text(), flags=re.M)  # between labels and jumps
    loops = [block for block in blocks if "vpdpbusd" in block]
    assert sorted(loop.count("vpdpbusd") for loop in loops) == [4, 8, 12, 16, 20, 24], "one loop each for 1 to 6 rows"
    on_stack = [
        line for loop in loops for line in loop.splitlines() if "zmm" in line and re.search(r"%r[sb]p\)", line)
    ]
    assert on_stack == []


def emulated(source: str) -> str:
    """A source of the native operator with AVX512 intrinsics replaced by SIMDe's."""
    source = re.sub(r"^TARGET\(.*", 'TARGET("avx2,fma,f16c,bmi2")', source, flags=re.M)
    source = source.replace("<immintrin.h>", "<immintrin.h>\n#include <simde/x86/avx512.h>")
    source = re.sub(r"\b_mm512_\w+", r"simde\g<0>", source).replace("__m512i", "simde__m512i")
    source = re.sub(r"asm volatile\(.*\)$", "", source, flags=re.M)  # it names registers that are not there
    return re.sub(r'return __builtin_cpu_supports\("avx512f"\).*?;', "return true;", source, flags=re.S)


@pytest.mark.skipif("avx2" not in native_library.variants(), reason="needs the native operator and AVX2")
@pytest.mark.skipif("avx512_vnni" in native_library.variants(), reason="this processor runs it as it is")
@pytest.mark.skipif(not (SIMDE.exists() and shutil.which("g++")), reason="needs g++ and SIMDe")
def test_avx512_vnni_by_emulation(tmp_path):
    package = tmp_path / "emulated" / "hf_xtc"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("_native*", "__pycache__"))
    for path in (package / "native" / "csrc").iterdir():
        path.write_text(emulated(path.read_text(encoding="utf-8")), encoding="utf-8")
    library = package / "native" / native_library.LIBRARY
    options = ["-std=c++17", "-O1", "-fPIC", "-shared", "-fno-math-errno", "-w", "-o", str(library)]
    sources = sorted(map(str, (package / "native" / "csrc").glob("*.cpp")))
    subprocess.run(["g++", *options, *sources], check=True)
    found = subprocess.run(
        [sys.executable, "-c", COMPARE], cwd=package.parent, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == str([True] * 28)
