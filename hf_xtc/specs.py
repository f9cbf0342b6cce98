"""Specs: how one tensor is quantized, and which teacher layer answers for which student layer.

Frozen, validated, JSON-able; no tensors. `QUANTIZERS` stands here because a spec names one; `quantizers.py` fills it.
"""

import re
from dataclasses import dataclass

from hf_xtc.errors import RecipeError
from hf_xtc.registry import Registry

QUANTIZERS = Registry("quantizer")
"""Name -> `Quantizer`; `@QUANTIZERS.register("name")` adds one. A recipe names them."""

GRANULARITIES = ("per_tensor", "per_channel", "per_group")
FLOAT_DTYPES = ("float16", "bfloat16", "float32")


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raises `RecipeError` naming the choices if `value` is none of them."""
    if value not in choices or type(value) not in map(type, choices):
        raise RecipeError(f"{name}={value!r} does not exist. Use one of: {', '.join(map(str, choices))}.")


def check_count(name: str, value: object) -> None:
    """Raises `RecipeError` unless `value` is a positive whole number."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise RecipeError(f"{name}={value!r} must be a positive whole number.")


def check_pattern(name: str, pattern: str) -> None:
    """Raises `RecipeError` for a regular expression whose search may never end: it goes back and forth the longer the
    more it repeats, and for ever where one repeat stands within another."""
    plain = re.sub(r"\\.|\(\?", "", pattern)
    if len(pattern) > 200 or len(re.findall("[*+?{]", plain)) > 3 or re.search(r"\)[*+?{]", plain):
        raise RecipeError(
            f"{name}: the pattern {pattern!r:.80} is longer than 200 characters, has more than three repeats "
            "(*, +, ?, {}) or repeats a group, and searching it may never end. Write it plainer, or as several."
        )


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
        scale_dtype (`str`): Type of the scale, in training as in the file: "float16", "bfloat16" or "float32".

    Raises:
        XTCError: if the quantizer is not registered.
        RecipeError: if another field has a value that does not exist.
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
                f"granularity={self.granularity!r} with group_size={self.group_size!r}: a group size is needed by "
                "'per_group' and has no meaning elsewhere. Set both or neither."
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
        symmetric (`bool`): Levels around zero, or between the minimum and the maximum.
        calibration (`str`): "dynamic" (one range per token) or "static" (one running range per layer).

    Raises:
        RecipeError: if a field has a value that does not exist.
    """

    bits: int = 8
    symmetric: bool = True
    calibration: str = "dynamic"

    def __post_init__(self) -> None:
        check_choice("activation bits", self.bits, (8, 4))
        check_choice("activation symmetric", self.symmetric, (True, False))
        check_choice("activation calibration", self.calibration, ("dynamic", "static"))


@dataclass(frozen=True)
class LayerMap:
    """Which teacher layer initialises and teaches each student layer.

    Args:
        layers (`tuple[int, ...]`): `layers[i]` is the teacher layer (from 0) that student layer `i` is copied from.
        num_teacher_layers (`int`): Depth of the teacher.
        shifted (`bool`): Keep the hidden-state map of the reference code (facts: DeepSpeedExamples `util.py`), which
            pairs the embedding output with the output of teacher layer `layers[0] - 1`.

    Raises:
        RecipeError: if the layers are empty, repeated, not increasing or out of range.

    Example:
        >>> LayerMap.skip(12, 5).layers
        (2, 4, 6, 8, 10)
        >>> LayerMap((1, 3, 5), 6).hidden_states
        (0, 2, 4, 6)
    """

    layers: tuple[int, ...]
    num_teacher_layers: int
    shifted: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        last, depth = self.num_teacher_layers - 1, self.num_teacher_layers
        if not self.layers:
            raise RecipeError("A layer map needs at least one teacher layer; got none.")
        for layer in self.layers:
            if not isinstance(layer, int) or isinstance(layer, bool):
                raise RecipeError(f"layers={self.layers} must be whole numbers; {layer!r} is not.")
            if not 0 <= layer <= last:
                hint = f" LayerMap.skip({depth}, {len(self.layers)})" if len(self.layers) <= depth else " fewer layers"
                raise RecipeError(
                    f"layers={self.layers} names teacher layer {layer}, but the teacher has {depth} layers "
                    f"(0-{last}). Use{hint}."
                )
        for before, after in zip(self.layers, self.layers[1:], strict=False):
            if after <= before:
                what = "repeats" if after == before else "is not increasing at"
                raise RecipeError(
                    f"layers={self.layers} {what} layer {after}. Name each teacher layer once, in order."
                )

    @classmethod
    def skip(cls, num_teacher_layers: int, keep: int, *, shifted: bool = False) -> "LayerMap":
        """Spreads `keep` layers evenly: every n-th where `keep` divides the depth (12 -> 6: 1, 3, 5, 7, 9, 11),
        else at the inner points of `keep + 1` equal parts (12 -> 5: 2, 4, 6, 8, 10, as in XTC).

        Raises:
            RecipeError: if `keep` is below 1 or above the teacher's depth.
        """
        whole = isinstance(keep, int) and not isinstance(keep, bool)
        if not whole or not 1 <= keep <= num_teacher_layers:
            raise RecipeError(
                f"keep_layers={keep!r} does not fit a teacher of {num_teacher_layers} layers. "
                f"Keep between 1 and {num_teacher_layers}."
            )
        if num_teacher_layers % keep == 0:
            step = num_teacher_layers // keep
            layers = [(i + 1) * step - 1 for i in range(keep)]
        else:
            layers = [(i + 1) * num_teacher_layers // (keep + 1) for i in range(keep)]
        return cls(tuple(layers), num_teacher_layers, shifted)

    @property
    def hidden_states(self) -> tuple[int, ...]:
        """Teacher hidden-state index (0 = embedding output) for each of the student's `len(layers) + 1` hidden states.

        The output of teacher layer `t` (index `t + 1`) teaches the output of the student layer copied from it, and the
        embedding output teaches the embedding output. The shifted map keeps the reference code's index
        `layers[0] - 1` for the first; a map from layer 0 makes that -1, the *last* hidden state, there, and 0 here.
        """
        first = max(self.layers[0] - 1, 0) if self.shifted else 0
        return (first, *(layer + 1 for layer in self.layers))

    @property
    def attentions(self) -> tuple[int, ...]:
        """Teacher layer whose attention scores teach each student layer."""
        return self.layers
