"""The integer backends: codes times 8-bit activations, summed exactly in 32 bits, then scaled per token and channel.

`int8` expands the codes to bytes once; `packed` keeps them packed in memory (binary 1 bit, ternary 2 bits) and expands
a tile at a time; `auto` uses the one that was measured to be faster. Each runs on the native operator where that is
installed and supports the operands, `packed` on a GPU on a Triton kernel, and both on PyTorch operations otherwise.
All differ from the reference in float32 rounding only.
"""

import torch
from torch import Tensor

from hf_xtc.backends.base import BACKENDS, Backend, Prepared, Product
from hf_xtc.backends.layouts import fastest_layout, packed_layout
from hf_xtc.backends.reference import ReferenceBackend
from hf_xtc.native import encoder as native
from hf_xtc.native import gpu
from hf_xtc.native.library import variant
from hf_xtc.quantization.packing import unpack
from hf_xtc.quantization.quantizers import code_integers, get_quantizer
from hf_xtc.quantization.specs import ActivationSpec

_NATIVE_ACTIVATION = ActivationSpec()  # the only one that the operators compute


def native_serves(product: Product) -> bool:
    """Whether the native operator computes this product: the default recipe's activations, in float32 on the CPU."""
    weight, _, activation, dtype = product
    return (
        variant() is not None
        and weight.packed.device.type == "cpu"
        and dtype == torch.float32
        and activation is not None
        and activation.spec == _NATIVE_ACTIVATION
        and weight.spec.granularity != "per_group"
        and get_quantizer(weight.spec.quantizer).levels <= 16
    )


def gpu_serves(product: Product) -> bool:
    """Whether the Triton kernel computes this product: the default recipe's activations, 1-bit or ternary codes."""
    weight, _, activation, dtype = product
    return (
        activation is not None
        and activation.spec == _NATIVE_ACTIVATION
        and dtype in gpu.DTYPES
        and weight.spec.granularity != "per_group"
        and get_quantizer(weight.spec.quantizer).levels in gpu.BITS
        and gpu.runs_on(weight.packed.device)
    )


def integer_product(x: Tensor, weight: Tensor, largest: int) -> Tensor:
    """`x @ weight.T` of int8 integers, summed exactly, as float32.

    Args:
        x (`torch.Tensor` of shape `(rows, n)`, `int8`), weight (`torch.Tensor` of shape `(columns, n)`, `int8`).
        largest (`int`): Largest magnitude in `weight`.
    """
    if x.is_cuda:
        return padded_int_mm(x, weight).float()
    # Without VNNI, PyTorch's integer product is 20 times slower than its float one, which is exact below 2**24. With
    # it, torch 2.13 gives wrong results for one column (strides of 1 in both axes).
    if (x.shape[1] == 1 or not torch.cpu._is_vnni_supported()) and 128 * largest * x.shape[1] < 2**24:
        return x.float() @ weight.float().t()
    return torch._int_mm(x, weight.t()).float()


def padded_int_mm(x: Tensor, weight: Tensor) -> Tensor:
    """`torch._int_mm(x, weight.T)`, padded to more than 16 rows and sizes divisible by 8, as CUDA requires."""
    rows, columns = x.shape[0], weight.shape[0]
    extra_rows, extra_inner, extra_columns = max(17 - rows, 0), -x.shape[1] % 8, -columns % 8
    return torch._int_mm(_pad(x, extra_rows, extra_inner), _pad(weight, extra_columns, extra_inner).t())[
        :rows, :columns
    ]


def _pad(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """With that many more rows and columns of zeros; the matrix itself, not a copy of it, where that is none."""
    return torch.nn.functional.pad(matrix, (0, columns, 0, rows)) if rows or columns else matrix


class _Expanded:
    """The product with a weight held as int8: `weight = step * integers`, a step per tensor, row or column group."""

    def __init__(self, product: Product):
        weight, self.bias, activation, _ = product
        assert activation is not None
        self.activation = activation
        levels = get_quantizer(weight.spec.quantizer).levels
        self.largest = max(1, levels // 2)
        self.integers = code_integers(unpack(weight.packed, weight.columns, levels), weight.spec.quantizer)
        self.step = weight.scale.float()
        self.grouped = weight.spec.granularity == "per_group"

    def __call__(self, x: Tensor) -> Tensor:
        levels = self.activation.levels(x.detach().reshape(-1, x.shape[-1]))
        # Asymmetric 8-bit levels span 0 to 255: subtract 128 to fit int8, add it back exactly after the product.
        shift = 128 if levels.offset is not None and self.activation.spec.bits == 8 else 0
        values = (levels.values - shift if shift else levels.values).to(torch.int8)
        groups = self.step.shape[1] if self.grouped else 1
        y = torch.zeros(values.shape[0], self.integers.shape[0], device=x.device)
        for group, (part, weight) in enumerate(
            zip(values.chunk(groups, 1), self.integers.chunk(groups, 1), strict=True)
        ):
            sums = integer_product(part, weight.contiguous(), self.largest)
            if levels.offset is None:
                y += sums * levels.scale * self.step[:, group]
            else:
                total = weight.float().sum(1)
                y += ((sums + shift * total) * levels.scale + total * levels.offset) * self.step[:, group]
        if self.bias is not None:
            y += self.bias.detach().float()
        return y.to(x.dtype).view(*x.shape[:-1], self.integers.shape[0])


def _exporting() -> bool:
    """Whether operations are recorded for elsewhere; PyTorch 2.6 cannot tell `torch.export` from `torch.compile`."""
    asked = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    return bool(asked() or torch.jit.is_tracing())  # type: ignore[attr-defined]


class _IntegerBackend(Backend):
    @classmethod
    def is_available(cls) -> bool:
        return True

    def supports(self, product: Product) -> bool:
        activation, bound = product.activation, 128 * 128 * product.weight.columns
        return (
            activation is not None
            and activation.has_range()
            and product.dtype.is_floating_point
            and not (activation.training and activation.spec.calibration == "static")
            and product.weight.packed.device.type in ("cpu", "cuda")
            and bound < 2**31
        )


def _or_reference(product: Product, multiply: Prepared) -> Prepared:
    """The product on an operator. Inputs that it does not take (another width, dtype or device, a trace for
    TorchScript) go to the reference, which gives PyTorch's usual result or error."""
    columns, device = product.weight.columns, product.weight.packed.device
    reference = ReferenceBackend().prepare(product)

    def linear(x: Tensor) -> Tensor:
        if (
            x.dtype != product.dtype
            or x.dim() == 0
            or x.shape[-1] != columns
            or x.device != device
            or x.layout != torch.strided
            or torch.jit.is_tracing()  # type: ignore[attr-defined]
        ):
            return reference(x)
        return multiply(x)

    return linear


def _native(product: Product, layout: int) -> Prepared:
    weight, bias, _, _ = product
    columns, levels = weight.columns, get_quantizer(weight.spec.quantizer).levels
    return _or_reference(
        product, lambda x: native.linear(x, weight.packed, weight.scale, bias, columns, levels, layout)
    )


def _gpu(product: Product) -> Prepared:
    weight, bias, _, _ = product
    columns, levels = weight.columns, get_quantizer(weight.spec.quantizer).levels
    return _or_reference(product, lambda x: gpu.gpu_linear(x, weight.packed, weight.scale, bias, columns, levels))


@BACKENDS.register("int8")
class Int8Backend(_IntegerBackend):
    """Expands codes to one byte each at the first forward."""

    def prepare(self, product: Product) -> Prepared:
        return _native(product, native.BYTES) if native_serves(product) else _Expanded(product)


@BACKENDS.register("packed")
class PackedBackend(_IntegerBackend):
    """Keeps codes packed in memory and expands a tile at a time; without an operator for it, a layer at a time."""

    def prepare(self, product: Product) -> Prepared:
        layout = packed_layout(product.weight.spec.quantizer)
        if layout is not None and native_serves(product):
            return _native(product, layout)
        if gpu_serves(product):
            return _gpu(product)
        return lambda x: _Expanded(product)(x)


@BACKENDS.register("auto")
class AutoBackend(_IntegerBackend):
    """The fastest layout for the shape, as measured: see `choose_layout`. On a GPU, where none was, `int8`.

    An exported program gets the reference's operations, which run without this package. So does compiled code where
    there is no native operator: it would expand the codes again at every call.
    """

    def prepare(self, product: Product) -> Prepared:
        serves = native_serves(product)
        if _exporting() or (torch.compiler.is_compiling() and not serves):
            return ReferenceBackend().prepare(product)
        if not serves:
            return _Expanded(product)
        weight = product.weight
        return _native(product, fastest_layout(weight.spec.quantizer, weight.packed.shape[0], weight.columns))
