"""The native operator, which setup.cfg cannot describe. Without a compiler the package installs without it."""

from setuptools import Extension, setup

NATIVE = "hf_xtc/native/"

setup(
    ext_modules=[
        Extension(
            "hf_xtc._native",
            [NATIVE + name for name in ("library.cpp", "portable.cpp", "avx2.cpp", "avx512.cpp")],
            depends=[NATIVE + name for name in ("kernels.hpp", "kernels.inl", "lookup.inl", "fake.inl")],
            language="c++",
            extra_compile_args=[
                *("-std=c++17", "-O3", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"),
                *("-Wno-psabi", "-Wno-unused-function"),
            ],
            optional=True,
        )
    ]
)
