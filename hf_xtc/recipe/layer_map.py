"""The layer map: the teacher layer that each student layer is copied from and distilled from."""

from dataclasses import dataclass

from hf_xtc.errors import RecipeError


@dataclass(frozen=True)
class LayerMap:
    """The teacher layer that each student layer is copied from and distilled from.

    Args:
        layers (`tuple[int, ...]`): `layers[i]` is the teacher layer (from 0) that student layer `i` is copied from.
        num_teacher_layers (`int`): Depth of the teacher.
        shifted (`bool`): Use the hidden-state map of the reference code (DeepSpeedExamples `util.py`), which pairs
            the embedding output with the output of teacher layer `layers[0] - 1`.

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

        The output of a student layer is compared with that of the teacher layer `t` it is copied from (index `t + 1`),
        and the embedding output with the embedding output. The shifted map uses the reference code's `layers[0] - 1`
        for the first index. With `layers[0] == 0` that is -1, the *last* hidden state, there, but 0 here.
        """
        first = max(self.layers[0] - 1, 0) if self.shifted else 0
        return (first, *(layer + 1 for layer in self.layers))

    @property
    def attentions(self) -> tuple[int, ...]:
        """Teacher layer whose attention scores each student layer is compared with."""
        return self.layers
