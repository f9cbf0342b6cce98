"""The native operator on 64-bit ARM, cross-compiled and run under QEMU, bitwise compared to the formulas.

Needs g++-aarch64-linux-gnu and qemu-user (Debian). The library is linked to driver.cpp, which needs neither Python nor
PyTorch; on an ARM machine the other tests of this folder run the library as it is.
"""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import cases
import numpy as np
import pytest

import hf_xtc
from hf_xtc.native import encoder as native

SOURCES = Path(hf_xtc.__file__).parent / "native" / "csrc"
DRIVER = Path(__file__).parent / "driver.cpp"
NEON = ("neon_i8mm", "neon_dotprod", "neon")
FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-w"]

cross = pytest.mark.skipif(not shutil.which("aarch64-linux-gnu-g++"), reason="needs g++-aarch64-linux-gnu")
emulated = pytest.mark.skipif(
    not (shutil.which("aarch64-linux-gnu-g++") and shutil.which("qemu-aarch64")),
    reason="needs g++-aarch64-linux-gnu and qemu-user",
)


def built(compiler: str, folder: Path) -> str:
    """The driver, linked to the native operator."""
    program = str(folder / f"driver-{compiler}")
    sources = [str(DRIVER), *sorted(map(str, SOURCES.glob("*.cpp")))]
    subprocess.run([compiler, *FLAGS, "-static", f"-I{SOURCES}", "-o", program, *sources], check=True)
    return program


@pytest.fixture(scope="module")
def arm(tmp_path_factory) -> list[str]:
    """The command that runs the driver on an emulated processor with all that NEON has."""
    program = built("aarch64-linux-gnu-g++", tmp_path_factory.mktemp("arm"))
    return ["qemu-aarch64", "-cpu", "max", program]


@emulated
@pytest.mark.parametrize(
    "processor, variants",
    [
        ("cortex-a57", ["neon", "portable"]),
        ("neoverse-n1", ["neon_dotprod", "neon", "portable"]),
        ("max", ["neon_i8mm", "neon_dotprod", "neon", "portable"]),
    ],
)
def test_variants_that_a_processor_runs(arm, processor, variants):
    command = ["qemu-aarch64", "-cpu", processor, arm[-1]]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() == variants


@emulated
@pytest.mark.parametrize("variant", [*NEON, "portable"])
def test_linears_are_exact(arm, variant, tmp_path):
    """Whole and partial tiles, one to all rows that kernels take at once, columns in one part and in several."""
    shapes = [(5, 21, 4), (64, 64, 1), (130, 768, 7), (70, 1600, 41), (16, 3072, 5), (33, 129, 12)]
    linears = cases.linears(shapes)
    found = cases.run(arm, variant, [linear.case() for linear in linears], tmp_path)
    wrong = [
        linear.case().name
        for linear, bits in zip(linears, found, strict=True)
        if bits != linear.expected(fused=variant != "portable")
    ]
    assert wrong == []


@emulated
@pytest.mark.parametrize("variant", [*NEON, "portable"])
def test_fake_quantization_is_exact(arm, variant, tmp_path, monkeypatch):
    monkeypatch.setenv("XTC_NATIVE", "off")
    given = cases.fakes()
    found = cases.run(arm, variant, [case for case, _ in given], tmp_path)
    for (case, expected), bits in zip(given, found, strict=True):
        dtype = np.uint16 if "bfloat16" in case.name else np.uint32
        left, right = np.frombuffer(bits, dtype), np.frombuffer(expected, dtype)
        nan = 0x7FC0 if dtype == np.uint16 else 0x7FC00000  # ARM's NaN has no sign, x86's has one
        both_nan = ((left & nan) == nan) & ((right & nan) == nan)
        assert np.array_equal(left[~both_nan], right[~both_nan]), case.name


@emulated
def test_encoders(arm, tmp_path):
    """All NEON variants give the same bits. Portable code differs from them by the rounding of products alone, and
    gives the bits that it gives on the machine at hand."""
    lengths = [33, 1, 6]
    encoders = [
        cases.random_encoder("binary", native.NIBBLES, 96, 6, 50, lengths),
        cases.random_encoder("binary", native.BYTES, 36, 3, 72, lengths),
        cases.random_encoder("ternary", native.PAIRS, 64, 1, 130, lengths),
        cases.random_encoder("binary", native.NIBBLES, 36, 3, 50, lengths, projected=True),
    ]
    found = {variant: cases.run(arm, variant, encoders, tmp_path) for variant in (*NEON, "portable")}
    assert found["neon_i8mm"] == found["neon_dotprod"] == found["neon"]
    for neon, portable in zip(found["neon"], found["portable"], strict=True):
        difference = np.abs(np.frombuffer(neon, np.float32) - np.frombuffer(portable, np.float32))
        assert difference.mean() < 1e-6  # no value of these lies so near a tie that it is rounded the other way
    if shutil.which("g++") and platform.machine() == "x86_64":
        assert cases.run([built("g++", tmp_path)], "portable", encoders, tmp_path) == found["portable"]


@cross
@pytest.mark.parametrize(
    "source, instruction, counts",
    [
        ("neon.cpp", "smlal", [4, 8, 12]),
        ("neon_dotprod.cpp", "sdot", [16, 32, 48, 64, 80, 96]),
        ("neon_i8mm.cpp", "smmla", [16, 32, 48]),
    ],
)
def test_sums_of_byte_products_stay_in_registers(source, instruction, counts, tmp_path):
    """As test_builds.py for AVX512; of six rows, two of 30 values that a step needs may be loaded again."""
    listing = tmp_path / "listing.s"
    subprocess.run(["aarch64-linux-gnu-g++", *FLAGS, "-S", "-o", str(listing), str(SOURCES / source)], check=True)
    blocks = re.split(r"^(?:[.\w]+:|\t(?:b\.?\w*|cbn?z|tbn?z)\t.*)$", listing.read_text(), flags=re.M)
    loops = [block for block in blocks if len(re.findall(rf"\b{instruction}\b", block)) >= 4]
    assert sorted(len(re.findall(rf"\b{instruction}\b", loop)) for loop in loops) == counts
    assert all(len(re.findall(r"\[sp", loop)) <= 2 for loop in loops)
