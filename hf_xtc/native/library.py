"""The native operator: an optional C++ library without PyTorch headers, called through `ctypes` with data pointers.

Built by `pip install` if there is a compiler, and left out without an error if there is none. Nothing is built at run
time. It has one variant per instruction set, and one in portable code, and uses the best one that the processor
supports. This is a fixed rule: variants may differ in the last bit, and results must not depend on measured times.
The environment variable `XTC_NATIVE` selects another, or "off". It runs on the threads of PyTorch's own OpenMP where
PyTorch is loaded, else on threads of its own; this module, `arrays` and `timing` run without PyTorch.
"""

import ctypes
import logging
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

from hf_xtc.errors import XTCError

logger = logging.getLogger(__name__)

# One file for all Python versions: the library does not use Python's C API (setup.py).
LIBRARY = "_native.abi3.so"
# Version of the C interface, as in library.cpp: a library of another version comes from other sources and is not used.
INTERFACE = 8

Pointer, Long, Int, Float = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float


class _Threads(ctypes.Structure):
    _fields_ = [("parallel", Pointer), ("number", Long)]


@cache
def library() -> ctypes.CDLL | None:
    """The library, or `None` where it was not built, was built from other sources, or cannot be loaded."""
    path = Path(__file__).parent / LIBRARY
    return _load(path) if path.exists() else None


def _load(path: Path) -> ctypes.CDLL | None:
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        logger.warning("The native operator %s cannot be loaded: %s.", path.name, error)
        return None
    if not hasattr(loaded, "xtc_interface") or loaded.xtc_interface() != INTERFACE:
        logger.warning("The native operator %s was built from other sources; install the package again.", path.name)
        return None
    loaded.xtc_variant.restype = ctypes.c_char_p
    loaded.xtc_layout_bytes.restype = Long
    loaded.xtc_layout_bytes.argtypes = [Int, Long, Long]
    loaded.xtc_lay_out.argtypes = [Int, Int, Long, Long, Long, Pointer, Pointer]
    loaded.xtc_evict.restype, loaded.xtc_evict.argtypes = None, [Pointer, Long]
    for function in (loaded.xtc_linear, loaded.xtc_encoder, loaded.xtc_fake):
        function.restype = Long
    loaded.xtc_linear.argtypes = [Int, Pointer, Pointer, Long, Pointer, Pointer]
    loaded.xtc_encoder.argtypes = [Int, Pointer, Pointer, Pointer, Pointer, Pointer]
    loaded.xtc_fake.argtypes = [Int, Pointer, Pointer]
    return loaded


@cache
def variants() -> dict[str, int]:
    """Name -> index in the library of the variants that this processor supports, fastest first."""
    loaded, found = library(), {}
    index = 0
    while loaded is not None and (name := loaded.xtc_variant(index)) is not None:
        if name:
            found[name.decode()] = index
        index += 1
    return found


def variant() -> str | None:
    """The variant in use, or `None` without the native operator.

    Raises:
        XTCError: if `XTC_NATIVE` names a variant that is not available.
    """
    chosen = os.environ.get("XTC_NATIVE")
    if chosen == "off":
        return None
    if chosen and chosen not in variants():
        known = ", ".join([*variants(), "off"])
        raise XTCError(f"XTC_NATIVE={chosen!r} is not a variant of the native operator here; use one of: {known}.")
    return chosen or next(iter(variants()), None)


# While compiling, a constant, as `torch.compiler.assume_constant_result` makes it; that would import the compiler.
variant._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _openmp(library: str) -> int | None:
    """Address of `GOMP_parallel` in a library and its dependencies, if it is there."""
    try:
        return ctypes.cast(ctypes.CDLL(library)["GOMP_parallel"], Pointer).value
    except (AttributeError, OSError):
        return None


def call(function: str, *arguments: Any, threads: int) -> int:
    """Calls a function of the variant in use on a number of threads; returns 0, or the function's code of an error.

    Raises:
        RuntimeError: where the native operator is not in use.
        MemoryError: if there is no memory for its intermediate results.
    """
    loaded, name = library(), variant()
    if loaded is None or name is None:
        raise RuntimeError("The native operator was not built, or is switched off by XTC_NATIVE=off.")
    torch = sys.modules.get("torch._C")
    team = _Threads(None if torch is None else _openmp(torch.__file__), threads)
    status: int = getattr(loaded, function)(variants()[name], *arguments, ctypes.byref(team))
    if status > 0:
        raise MemoryError(
            f"The native operator needs {status / 2**20:.0f} MiB for its intermediate results, and there is no such "
            "memory. Run fewer or shorter texts at once, or fewer threads."
        )
    return status
