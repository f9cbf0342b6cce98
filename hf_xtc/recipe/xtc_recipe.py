"""The recipe: all that defines the structure of a compressed model, as one frozen, JSON-able value.

How a student is *trained* (epochs, learning rate, distillation terms) is not here but in `XTCTrainingArguments`.
"""

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from hf_xtc.checks import check_choice, check_count
from hf_xtc.errors import RecipeError
from hf_xtc.files.safe_json import parse_json
from hf_xtc.quantization.specs import FLOAT_DTYPES, ActivationSpec, QuantSpec
from hf_xtc.recipe.layer_map import LayerMap

# The parts of a model that a recipe quantizes alike. Architectures assign their modules to these scopes.
SCOPES = ("attention", "feed_forward", "pooler", "word_embeddings", "position_embeddings")


@dataclass(frozen=True)
class XTCRecipe:
    """How a compressed model is quantized, and which layers it keeps.

    Args:
        weights (`str`, *optional*): Quantizer of the encoder's (and pooler's) linears: "binary", "ternary", "int4",
            "int8"; `None` keeps them in float (layer reduction only).
        granularity (`str`): "per_channel" (default), "per_tensor" or "per_group" scales of these linears.
        group_size (`int`, *optional*): Input columns per scale for "per_group".
        embedding_weights (`str`, *optional*): Quantizer of the word embedding rows, one scale per row.
        position_weights (`str`, *optional*): Quantizer of position and token-type embedding rows.
        quantize_pooler (`bool`): Quantize the pooler like the encoder's linears.
        activation_bits (`int`, *optional*): 8, 4, or `None` for float inputs of the quantized linears.
        activation_symmetric (`bool`), activation_calibration (`str`): See `ActivationSpec`.
        keep_layers (`int`, *optional*): Depth of the student; its layers are spread evenly over the teacher's.
        layers (`tuple[int, ...]`, *optional*): The teacher layers to keep, from 0; excludes `keep_layers`.
        shifted_hidden_map (`bool`): Use the reference code's hidden-state map (see `LayerMap`).
        scale_dtype (`str`): Dtype of the scales, in training as in the file.
        rest_dtype (`str`): Dtype in which the packed file stores what is not quantized.

    Raises:
        XTCError: if a quantizer is unknown (lists those registered).
        RecipeError: if a field has an invalid value or contradicts another.

    Example:
        >>> XTCRecipe(weights="ternary", keep_layers=5).layer_map(12).layers
        (2, 4, 6, 8, 10)
    """

    weights: str | None = "binary"
    granularity: str = "per_channel"
    group_size: int | None = None
    embedding_weights: str | None = "binary"
    position_weights: str | None = "int8"
    quantize_pooler: bool = True
    activation_bits: int | None = 8
    activation_symmetric: bool = True
    activation_calibration: str = "dynamic"
    keep_layers: int | None = None
    layers: tuple[int, ...] | None = None
    shifted_hidden_map: bool = False
    scale_dtype: str = "float16"
    rest_dtype: str = "float16"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is bool and not isinstance(value, bool):
                raise RecipeError(f"{field.name}={str(value)[:80]} must be true or false.")
        if self.layers is not None:
            self._check_layers(self.layers)
        if self.keep_layers is not None and self.layers is not None:
            raise RecipeError(
                f"keep_layers={self.keep_layers} and layers={self.layers} both choose the student's depth. Give one."
            )
        if self.keep_layers is not None:
            check_count("keep_layers", self.keep_layers)
        check_choice("rest_dtype", self.rest_dtype, FLOAT_DTYPES)
        # Unused fields (such as the granularity of float weights) are checked too.
        QuantSpec("binary", self.granularity, self.group_size, self.scale_dtype)
        ActivationSpec(8, self.activation_symmetric, self.activation_calibration)
        for scope in SCOPES:
            self.spec(scope)
        self.activation()

    def _check_layers(self, layers: Any) -> None:
        if isinstance(layers, str | bytes) or not hasattr(layers, "__iter__"):
            raise RecipeError(f"layers={layers!r} must list teacher layers from 0, like (2, 4, 6).")
        object.__setattr__(self, "layers", tuple(layers))
        whole = [layer for layer in self.layers or () if isinstance(layer, int)]
        LayerMap(self.layers or (), max([*whole, 0]) + 1)

    def spec(self, scope: str) -> QuantSpec | None:
        """The `QuantSpec` of a scope's weights, or `None` where they stay in float."""
        check_choice("scope", scope, SCOPES)
        if scope in ("word_embeddings", "position_embeddings"):
            quantizer = self.embedding_weights if scope == "word_embeddings" else self.position_weights
            return None if quantizer is None else QuantSpec(quantizer, "per_channel", None, self.scale_dtype)
        if self.weights is None or (scope == "pooler" and not self.quantize_pooler):
            return None
        return QuantSpec(self.weights, self.granularity, self.group_size, self.scale_dtype)

    def activation(self) -> ActivationSpec | None:
        """The `ActivationSpec` of the inputs of quantized linears, or `None` where they stay in float."""
        if self.activation_bits is None:
            return None
        return ActivationSpec(self.activation_bits, self.activation_symmetric, self.activation_calibration)

    def layer_map(self, num_teacher_layers: int) -> LayerMap:
        """The `LayerMap` for a teacher of that depth.

        Raises:
            RecipeError: if the layers do not fit the teacher.
        """
        if self.layers is not None:
            return LayerMap(self.layers, num_teacher_layers, self.shifted_hidden_map)
        keep = num_teacher_layers if self.keep_layers is None else self.keep_layers
        return LayerMap.skip(num_teacher_layers, keep, shifted=self.shifted_hidden_map)

    @classmethod
    def paper(
        cls, bits: int = 1, *, keep_layers: int | None = None, layers: tuple[int, ...] | None = None
    ) -> "XTCRecipe":
        """The recipe of the reference code: per-tensor float32 scales, pooler and position embeddings in float32.

        Args:
            bits (`int`): 1 (binary) or 2 (ternary).

        Raises:
            RecipeError: if `bits` is neither.
        """
        check_choice("bits", bits, (1, 2))
        quantizer = "binary" if bits == 1 else "ternary"
        return cls(
            weights=quantizer,
            granularity="per_tensor",
            embedding_weights=quantizer,
            position_weights=None,
            quantize_pooler=False,
            keep_layers=keep_layers,
            layers=layers,
            shifted_hidden_map=True,
            scale_dtype="float32",
            rest_dtype="float32",
        )

    @classmethod
    def from_deepspeed(cls, config: dict[str, Any]) -> "XTCRecipe":
        """The recipe that a DeepSpeed JSON with a `compression_training` section describes.

        Args:
            config (`dict`): The whole DeepSpeed configuration, or its `compression_training` section alone.

        Raises:
            RecipeError: for anything enabled there that has no equivalent here.
        """
        from hf_xtc.recipe.deepspeed import read_recipe  # deepspeed.py imports this module

        return read_recipe(config)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as a JSON object; `XTCRecipe.from_dict` reads it back."""
        values = asdict(self)
        values["layers"] = None if self.layers is None else list(self.layers)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "XTCRecipe":
        """Reads what `to_dict` wrote.

        Raises:
            RecipeError: if a field is unknown or has an invalid value.
        """
        if not isinstance(values, dict):
            raise RecipeError(f"A recipe is a JSON object, not {str(values)[:80]}.")
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise RecipeError(f"A recipe has no field {', '.join(unknown)}; its fields are: {', '.join(known)}.")
        return cls(**values)

    def to_json(self) -> str:
        """The recipe as JSON text, one field per line; `XTCRecipe.from_json` reads it back."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "XTCRecipe":
        """Reads what `to_json` wrote.

        Raises:
            RecipeError: if it is not JSON, or a field is unknown or has an invalid value.
        """
        try:
            values = parse_json(text)
        except ValueError as error:
            raise RecipeError(f"The recipe is not valid JSON: {error}.") from error
        return cls.from_dict(values)
