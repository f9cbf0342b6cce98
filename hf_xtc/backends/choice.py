"""Chooses the backend of a packed linear: the requested one if it supports the operands, else the reference."""

import logging
import os
from functools import cache

import torch

from hf_xtc.backends import integer, reference  # noqa: F401 (both register backends)
from hf_xtc.backends.base import BACKENDS, Backend, Product
from hf_xtc.backends.layouts import describe_choice, packed_layout
from hf_xtc.errors import StateError
from hf_xtc.native.library import variant

logger = logging.getLogger(__name__)

DEFAULT = "auto"


def default_backend() -> str:
    """The backend of new packed layers: the environment variable `XTC_BACKEND`, else `DEFAULT`."""
    return check_backend(os.environ.get("XTC_BACKEND") or DEFAULT)


def check_backend(name: str) -> str:
    """Returns `name` if a backend of that name is registered.

    Raises:
        XTCError: if there is none (lists those registered).
    """
    BACKENDS[name]
    return name


def choose(name: str, product: Product, *, gradient: bool) -> str:
    """The name of the backend that computes `product` when `name` is requested.

    Args:
        name (`str`): A name in `BACKENDS`.
        product (`Product`): The operands.
        gradient (`bool`): Whether gradients must flow. "auto" then uses the reference.

    Raises:
        StateError: if gradients must flow and the backend, other than "auto", is not differentiable.
        XTCError: if the backend does not exist.
    """
    backend: Backend = BACKENDS[name]()
    if backend.differentiable:
        return name
    if gradient:
        if name != "auto":
            raise StateError(
                f"The {name!r} backend computes with integers, which have no gradient. "
                "Call set_backend('reference') on the model before training, or run it under torch.no_grad()."
            )
        return "reference"
    supported = backend.supports(product)
    if not torch.compiler.is_compiling():  # a log would end the graph
        if supported:
            say_choice(name, _way(name, product))
        else:
            _warn_fallback(name, _unsupported(product))
    return name if supported else "reference"


def _unsupported(product: Product) -> str:
    """The operand that no integer backend supports, in words."""
    if product.activation is None:
        return "activations in float"
    if not product.dtype.is_floating_point:
        return f"inputs of {product.dtype}"
    if not product.activation.has_range():
        return "static activations whose range was never calibrated"
    weight = product.weight
    return f"{weight.spec.quantizer} weights of {weight.columns} columns on {weight.packed.device}"


def _way(name: str, product: Product) -> str:
    """What computes a product on the backend `name`, which supports it, in words."""
    weight = product.weight
    if integer.native_serves(product) and not (name == "packed" and packed_layout(weight.spec.quantizer) is None):
        return native_way(name, weight.spec.quantizer, weight.packed.shape[0], weight.columns)
    if weight.packed.device.type == "cpu":
        return "PyTorch operations" if variant() else "PyTorch operations (no native operator)"
    return "Triton kernels" if name == "packed" and integer.gpu_serves(product) else "PyTorch operations on the GPU"


def native_way(name: str, quantizer: str, rows: int, columns: int) -> str:
    """How the native operator computes products by `rows x columns` weights on the backend `name`, in words."""
    return describe_choice(quantizer, rows, columns) if name == "auto" else f"the native operator ({variant()})"


@cache
def say_choice(name: str, way: str) -> None:
    """Logs, once, the backend and the way that packed linears are computed."""
    logger.info("Packed linears run on the %r backend, %s.", name, way)


@cache
def _warn_fallback(name: str, reason: str) -> None:
    logger.warning("The %r backend does not support %s; such linears run on 'reference'.", name, reason)
