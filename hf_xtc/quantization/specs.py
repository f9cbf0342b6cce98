"""Specs: how weights and activations are quantized.

Frozen, validated, JSON-able; no tensors. `QUANTIZERS` is here because specs name quantizers; `quantizers.py` fills it.
"""

from dataclasses import dataclass

from hf_xtc.checks import check_choice, check_count
from hf_xtc.errors import RecipeError
from hf_xtc.registry import Registry

QUANTIZERS = Registry("quantizer")
"""Name -> `Quantizer`; `@QUANTIZERS.register("name")` adds one. Recipes refer to them by name."""

GRANULARITIES = ("per_tensor", "per_channel", "per_group")
FLOAT_DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class QuantSpec:
    """How a weight of shape `(rows, columns)` is quantized.

    | granularity | weight          | groups                        | scale                  |
    |-------------|-----------------|-------------------------------|------------------------|
    | per_tensor  | (rows, columns) | (1, rows * columns)           | (1, 1)                 |
    | per_channel | (rows, columns) | (rows, columns)               | (rows, 1)              |
    | per_group   | (rows, columns) | (rows * columns / size, size) | (rows, columns / size) |

    A group never straddles two rows, unlike DeepSpeed's `quantize_groups`, which cuts the flattened weight.

    Args:
        quantizer (`str`): A name in `QUANTIZERS`: "binary", "ternary", "int4" or "int8".
        granularity (`str`): "per_tensor", "per_channel" (one scale per row) or "per_group".
        group_size (`int`, *optional*): Columns per group; required by, and only by, "per_group".
        scale_dtype (`str`): Dtype of the scale, in training as in the file: "float16", "bfloat16" or "float32".

    Raises:
        XTCError: if the quantizer is not registered.
        RecipeError: if another field has an invalid value.
    """

    quantizer: str = "binary"
    granularity: str = "per_channel"
    group_size: int | None = None
    scale_dtype: str = "float16"

    def __post_init__(self) -> None:
        QUANTIZERS[str(self.quantizer)]
        check_choice("granularity", self.granularity, GRANULARITIES)
        check_choice("scale_dtype", self.scale_dtype, FLOAT_DTYPES)
        if (self.granularity == "per_group") != (self.group_size is not None):
            raise RecipeError(
                f"granularity={self.granularity!r} with group_size={self.group_size!r}: 'per_group' requires a "
                "group size, and the other granularities take none."
            )
        if self.group_size is not None:
            check_count("group_size", self.group_size)

    def scale_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """Shape of the scale of a `(rows, columns)` weight.

        Raises:
            RecipeError: if the group size does not divide `columns`.
        """
        if self.granularity == "per_tensor":
            return (1, 1)
        if self.group_size is None:
            return (rows, 1)
        if columns % self.group_size:
            raise RecipeError(
                f"group_size={self.group_size} does not divide the {columns} input columns of a {rows} x {columns} "
                "weight, so its last group would be short. Choose a divisor, or granularity='per_channel'."
            )
        return (rows, columns // self.group_size)


@dataclass(frozen=True)
class ActivationSpec:
    """How the input of a quantized linear is fake-quantized.

    Args:
        bits (`int`): 8 or 4.
        symmetric (`bool`): Levels around zero; else between the minimum and the maximum.
        calibration (`str`): "dynamic" (one range per token) or "static" (one running range per layer).

    Raises:
        RecipeError: if a field has an invalid value.
    """

    bits: int = 8
    symmetric: bool = True
    calibration: str = "dynamic"

    def __post_init__(self) -> None:
        check_choice("activation bits", self.bits, (8, 4))
        check_choice("activation symmetric", self.symmetric, (True, False))
        check_choice("activation calibration", self.calibration, ("dynamic", "static"))
