"""Packed matrix products: what multiplies a float input by a packed weight.

A backend may hold no state of its own and never changes the file layout. `reference` defines the result; every other
backend promises a stated tolerance against it. Choose with `BACKENDS[name]` or `PackedLinear.backend`.
"""

from hf_xtc.backends.base import BACKENDS, Backend
from hf_xtc.backends.reference import ReferenceBackend

__all__ = ["BACKENDS", "Backend", "ReferenceBackend"]
