"""The native operator as other compilers and processors build it.

Clang's library must give the bits of GCC's. The AVX512 variants are tested on any x86-64 processor: its machine
code, and its bits by emulation.

SIMDe (Debian: libsimde-dev) writes each AVX512 intrinsic in plain C. The library built so, in a copy of the package,
must give the bits that the AVX2 variant gives. Where the processor has AVX512-VNNI, test_backends.py runs it as it is.
"""

import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hf_xtc
from hf_xtc.native import library as native_library

PACKAGE = Path(hf_xtc.__file__).parent
SIMDE = Path("/usr/include/simde/x86/avx512.h")


def copied(folder: Path) -> Path:
    """A copy of the package without the operator's library."""
    package = folder / "hf_xtc"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("_native*", "__pycache__"))
    return package


def digests(package: Path, *variants: str) -> dict[tuple[str, str], str]:
    """Digests of the outputs of a copy, by variant and kind."""
    script = Path(__file__).parent / "outputs.py"
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    command = [sys.executable, str(script), *variants]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    folder, *lines = found.stdout.splitlines()
    assert folder == str(package)
    return {(variant, kind): digest for variant, kind, digest in map(str.split, lines)}


@pytest.mark.skipif(not native_library.variants(), reason="the native operator is not built")
@pytest.mark.skipif(not shutil.which("clang++"), reason="needs Clang")
def test_clang_builds_the_same_operator(tmp_path, monkeypatch):
    """All variants, without a warning, with the flags of setup.py."""
    package, sources = copied(tmp_path), []
    monkeypatch.setattr("setuptools.setup", lambda **options: sources.extend(options["ext_modules"]))
    monkeypatch.chdir(PACKAGE.parent)
    runpy.run_path("setup.py")
    (native,) = sources
    library = package / "native" / native_library.LIBRARY
    options = [*native.extra_compile_args, "-Werror", "-fPIC", "-shared", "-o", str(library)]
    subprocess.run(["clang++", *options, *native.sources], check=True)
    variants = list(native_library.variants())
    assert digests(package, *variants) == digests(PACKAGE, *variants)


@pytest.mark.skipif(platform.machine() != "x86_64" or not shutil.which("g++"), reason="needs g++ for x86-64")
def test_sums_of_byte_products_stay_in_registers(tmp_path):
    """Unless the loops over rows are unrolled, g++ writes the sums of several rows to memory at every step."""
    listing = tmp_path / "avx512.s"
    options = [
        "-std=c++17",
        "-O3",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-ffp-contract=off",
        "-w",
        "-S",
        "-o",
        str(listing),
    ]
    subprocess.run(["g++", *options, str(PACKAGE / "native" / "csrc" / "avx512.cpp")], check=True)
    blocks = re.split(r"^(?:[.\w]+:|\tj\w+\t).*$", listing.read_text(), flags=re.M)  # between labels and jumps
    loops = [block for block in blocks if "vpdpbusd" in block]
    assert sorted(loop.count("vpdpbusd") for loop in loops) == [
        count for count in (4, 8, 12, 16, 20, 24) for _ in ("bytes", "pairs")
    ], "two loops each for 1 to 6 rows"
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
    return re.sub(r'__builtin_cpu_supports\("avx512\w+"\)', "1", source)


@pytest.mark.skipif("avx2" not in native_library.variants(), reason="needs the native operator and AVX2")
@pytest.mark.skipif("avx512_vbmi" in native_library.variants(), reason="this processor runs them as they are")
@pytest.mark.skipif(not (SIMDE.exists() and shutil.which("g++")), reason="needs g++ and SIMDe")
def test_avx512_by_emulation(tmp_path):
    package = copied(tmp_path)
    for path in (package / "native" / "csrc").iterdir():
        path.write_text(emulated(path.read_text(encoding="utf-8")), encoding="utf-8")
    library = package / "native" / native_library.LIBRARY
    options = [
        "-std=c++17",
        "-O1",
        "-mavx2",
        "-mfma",  # else multiply-adds round twice
        "-fPIC",
        "-shared",
        "-fno-math-errno",
        "-ffp-contract=off",
        "-w",
        "-o",
        str(library),
    ]
    sources = sorted(map(str, (package / "native" / "csrc").glob("*.cpp")))
    subprocess.run(["g++", *options, *sources], check=True)
    found = digests(package, "avx512_vbmi", "avx512_vnni", "avx2")
    assert len({found[name, "exact"] for name in ("avx512_vbmi", "avx512_vnni", "avx2")}) == 1
    assert found["avx512_vbmi", "encoder"] == found["avx512_vnni", "encoder"]
