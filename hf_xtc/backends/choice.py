"""Which backend a packed linear runs on: the one asked for, where it serves the operands, else the reference."""

import logging
import os
from functools import cache

import torch

from hf_xtc.backends.base import BACKENDS, Backend, Product
from hf_xtc.errors import StateError
from hf_xtc.native.library import variant

logger = logging.getLogger(__name__)

DEFAULT = "auto"


def default_backend() -> str:
    """The name that new packed layers start with: `XTC_BACKEND` of the environment, else `DEFAULT`."""
    return check_backend(os.environ.get("XTC_BACKEND") or DEFAULT)


def check_backend(name: str) -> str:
    """`name`, if there is a backend of that name.

    Raises:
        XTCError: if there is none (names those there are).
    """
    BACKENDS[name]
    return name


def choose(name: str, product: Product, *, gradient: bool) -> str:
    """The name of the backend that computes `product` when `name` is asked for.

    Args:
        name (`str`): A name in `BACKENDS`.
        product (`Product`): The operands.
        gradient (`bool`): Gradients shall pass. "auto" leaves that, and `torch.compile`, to the reference.

    Raises:
        StateError: if gradients shall pass through a backend that was named and has none.
        XTCError: if the backend does not exist.
    """
    backend: Backend = BACKENDS[name]()
    if backend.differentiable:
        return name
    if gradient or (name == "auto" and torch.compiler.is_compiling()):
        if name != "auto":
            raise StateError(
                f"The {name!r} backend computes with integers, which have no gradient. "
                "Call set_backend('reference') on the model before training, or run it under torch.no_grad()."
            )
        return "reference"
    if not backend.supports(product):
        _say_fallback(name, _reason(product))
        return "reference"
    if not torch.compiler.is_compiling():
        say_choice(name, variant())
    return name


def _reason(product: Product) -> str:
    if product.activation is None:
        return "activations in float"
    if not product.dtype.is_floating_point:
        return f"inputs of {product.dtype}"
    if not product.activation.has_range():
        return "static activations whose range was never calibrated"
    weight = product.weight
    return f"{weight.spec.quantizer} weights of {weight.columns} columns on {weight.packed.device}"


@cache
def say_choice(name: str, native: str | None) -> None:
    """Logs, once, what packed linears run on."""
    how = "PyTorch operations (no native operator)" if native is None else f"the native operator ({native})"
    logger.info("Packed linears run on the %r backend, %s.", name, how)


@cache
def _say_fallback(name: str, reason: str) -> None:
    logger.warning("The %r backend does not serve %s; such linears run on 'reference'.", name, reason)
