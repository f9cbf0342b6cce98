"""Functions that hand pointers to the native operator, registered as PyTorch operators: `torch.ops.hf_xtc.*`.

Each checks its tensors first; so PyTorch's compiler, dispatch modes and profiler see an operator, and tensors on other
devices raise PyTorch's errors.
"""

from collections.abc import Callable
from typing import Any

import torch

from hf_xtc.native import library

# The operators of `torch.ops.hf_xtc`; kept, since PyTorch forgets them when this is freed.
_OPERATORS = torch.library.Library("hf_xtc", "DEF")


def operator(schema: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], torch._ops.OpOverload]:
    """Registers a function as the CPU implementation of a PyTorch operator, and returns the operator.

    Args:
        schema (`str`): Name, arguments and results, as `torch.library.Library.define` takes them.
        fake (`Callable`): Makes results of the right shapes and dtypes without computing them.
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
        _OPERATORS.impl(name, function, "CPU")
        torch.library.register_fake(f"hf_xtc::{name}", fake_on_one_device, lib=_OPERATORS)
        registered: torch._ops.OpOverload = getattr(torch.ops.hf_xtc, name).default
        return registered

    return register


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


def call(function: str, *arguments: Any) -> int:
    """As `library.call`, on as many threads as PyTorch uses."""
    return library.call(function, *arguments, threads=torch.get_num_threads())
