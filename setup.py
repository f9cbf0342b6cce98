"""The native operator, which setup.cfg cannot describe. Without a compiler the package installs without it."""

from contextlib import suppress

from setuptools import Extension, setup

NATIVE = "hf_xtc/native/csrc/"

# Installations of one checkout take turns: setuptools builds all of them in one folder, and two at once spoil it (the
# one fails, or its wheel holds nothing). The lock ends with the process; Windows has none.
turn = open(__file__)  # noqa: SIM115 (open as long as the process lives)
with suppress(ImportError, OSError):
    import fcntl

    fcntl.flock(turn, fcntl.LOCK_EX)

setup(
    ext_modules=[
        Extension(
            "hf_xtc.native._native",
            [NATIVE + name for name in ("library.cpp", "portable.cpp", "avx2.cpp", "avx512.cpp")],
            depends=[NATIVE + name for name in ("kernels.hpp", "kernels.inl", "lookup.inl", "fake.inl")],
            language="c++",
            extra_compile_args=[
                *("-std=c++17", "-O3", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"),
                *("-Wno-psabi", "-Wno-unused-function"),
            ],
            optional=True,
        )
    ],
)
