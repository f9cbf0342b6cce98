"""Backends: implementations of the product of a float input and a packed weight.

A backend holds no state and never changes the file layout. `reference` defines the result; the others compute the same
sums in integers and equal it within a stated tolerance. Choose one with `model.set_backend(name)`, the environment
variable `XTC_BACKEND`, or `PackedLinear.backend`.
"""

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
