"""Backends: implementations of the product of a float input and a packed weight.

A backend holds no state and never changes the file layout. `reference` defines the result; the others compute the same
sums in integers and equal it within a stated tolerance. Choose one with `model.set_backend(name)`, the environment
variable `XTC_BACKEND`, or `PackedLinear.backend`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_xtc.backends.base import BACKENDS, Backend, Prepared, Product
    from hf_xtc.backends.choice import check_backend, choose, default_backend
    from hf_xtc.backends.integer import AutoBackend, Int8Backend, PackedBackend
    from hf_xtc.backends.reference import ReferenceBackend

__all__ = [
    "BACKENDS",
    "AutoBackend",
    "Backend",
    "Int8Backend",
    "PackedBackend",
    "Prepared",
    "Product",
    "ReferenceBackend",
    "check_backend",
    "choose",
    "default_backend",
]

_MODULES = ("choice", "base", "integer", "reference")  # the first one imports, and so registers, all backends


def __getattr__(name: str) -> Any:
    """Imports the backends on first use of a name, since `layouts` has to be imported without PyTorch."""
    if name in __all__:
        for module in (import_module(f"hf_xtc.backends.{module}") for module in _MODULES):
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module 'hf_xtc.backends' has no attribute {name!r}")
