"""The native operator: an optional C++ library without PyTorch headers, called through `ctypes` with data pointers.

Everything that hands it a pointer is a PyTorch operator, `torch.ops.hf_xtc.*`, which checks its tensors first: so
PyTorch's compiler, dispatch modes and profiler see an operator, and tensors on other devices raise PyTorch's errors.

Built by `pip install` if there is a compiler, and left out without an error if there is none. Nothing is built at run
time. It has one variant per instruction set and uses the best one that the processor supports; the environment
variable `XTC_NATIVE` selects another, or "off". It runs on the threads of PyTorch's own OpenMP.
"""

import ctypes
import logging
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from hf_xtc.errors import XTCError

logger = logging.getLogger(__name__)

# One file for all Python versions: the library does not use Python's C API (setup.py).
LIBRARY = "_native.abi3.so"
# Version of the C interface, as in library.cpp: a library of another version comes from other sources and is not used.
INTERFACE = 3

Pointer, Long, Int, Float = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float

# The operators of `torch.ops.hf_xtc`; kept, since PyTorch forgets them when this is freed.
_OPERATORS = torch.library.Library("hf_xtc", "DEF")


def operator(
    schema: str, fake: Callable[..., Any], devices: tuple[str, ...] = ("CPU",)
) -> Callable[[Callable[..., Any]], torch._ops.OpOverload]:
    """Registers a function as the implementation of a PyTorch operator, and returns the operator.

    Args:
        schema (`str`): Name, arguments and results, as `torch.library.Library.define` takes them.
        fake (`Callable`): Makes results of the right shapes and dtypes without computing them.
        devices (`tuple[str, ...]`): PyTorch's dispatch keys of the devices that it runs on.
    """

    def fake_on_one_device(*arguments: Any) -> Any:
        """A tensor on the meta device among others reaches the fake implementation too."""
        devices = {str(tensor.device) for tensor in arguments if isinstance(tensor, torch.Tensor)}
        if len(devices) > 1:
            raise RuntimeError(f"Expected all tensors to be on the same device, but they are on {sorted(devices)}.")
        return fake(*arguments)

    def register(function: Callable[..., Any]) -> torch._ops.OpOverload:
        name = schema.partition("(")[0]
        _OPERATORS.define(schema)
        for device in devices:
            _OPERATORS.impl(name, function, device)
        torch.library.register_fake(f"hf_xtc::{name}", fake_on_one_device, lib=_OPERATORS)
        registered: torch._ops.OpOverload = getattr(torch.ops.hf_xtc, name).default
        return registered

    return register


class _Threads(ctypes.Structure):
    _fields_ = [("parallel", Pointer), ("count", Pointer), ("number", Long)]


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
    loaded.xtc_lay_out.argtypes = [Int, Int, Long, Long, Pointer, Pointer]
    for function in (loaded.xtc_linear, loaded.xtc_encoder, loaded.xtc_fake):
        function.restype = Long
    loaded.xtc_linear.argtypes = [Int, Pointer, Pointer, Long, Pointer, Pointer]
    loaded.xtc_encoder.argtypes = [Int, Pointer, Pointer, Pointer, Pointer]
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
    # The portable variant defines the result and is slower than PyTorch's own integer product: used on request only.
    return chosen or next((name for name in variants() if name != "portable"), None)


# While compiling, a constant, as `torch.compiler.assume_constant_result` makes it; that would import the compiler.
variant._dynamo_marked_constant = True  # type: ignore[attr-defined]


def is_readable(values: torch.Tensor) -> bool:
    """Whether a decision may depend on the numbers in a tensor, and the operator may read them: an ordinary tensor in
    CPU memory, outside of tracers, the compiler and functorch transforms, which have to record every operation."""
    return (
        not torch.compiler.is_compiling()
        and type(values) in (torch.Tensor, torch.nn.Parameter)
        and values.device.type == "cpu"
        and values.layout == torch.strided
        and not values.is_neg()
        and not values.is_conj()
        and not torch._C._is_tracing()
        and not torch._C._functorch.is_functorch_wrapped_tensor(values)
    )


@cache
def _openmp() -> tuple[int | None, int | None]:
    """Addresses of `GOMP_parallel` and `omp_get_num_threads` among PyTorch's own dependencies, if it has them."""
    try:
        torch_library = ctypes.CDLL(torch._C.__file__)
        found = [torch_library[name] for name in ("GOMP_parallel", "omp_get_num_threads")]
    except (AttributeError, OSError):
        return None, None
    parallel, count = (ctypes.cast(function, Pointer).value for function in found)
    return parallel, count


def call(function: str, *arguments: Any) -> int:
    """Calls a function of the variant in use, on PyTorch's threads; returns 0, or the function's code of an error.

    Raises:
        RuntimeError: where the native operator is not in use.
        MemoryError: if there is no memory for its intermediate results.
    """
    loaded, name = library(), variant()
    if loaded is None or name is None:
        raise RuntimeError("The native operator was not built, or is switched off by XTC_NATIVE=off.")
    threads = _Threads(*_openmp(), torch.get_num_threads())
    status: int = getattr(loaded, function)(variants()[name], *arguments, ctypes.byref(threads))
    if status > 0:
        raise MemoryError(
            f"The native operator needs {status / 2**20:.0f} MiB for its intermediate results, and there is no such "
            "memory. Run fewer or shorter texts at once, or fewer threads."
        )
    return status
