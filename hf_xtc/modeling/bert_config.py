"""The configuration of BERT in its two states."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import BertConfig

from hf_xtc.modeling.architecture import check_xtc_block, layer_map_of, recipe_of, xtc_block
from hf_xtc.recipe import XTCRecipe
from hf_xtc.specs import LayerMap


@strict
class XTCBertConfig(BertConfig):
    """A `BertConfig` with the state of the model and all that XTC knows of it.

    Args:
        state (`str`): "latent" (float weights, for training) or "packed" (codes and scales, for everything else).
        xtc (`dict`): Format version, recipe, layer map and provenance; by default the default recipe.

    Raises:
        PackedFileError: if the format version is unknown or the layer map disagrees with the depth.
        XTCError: if the recipe names something that does not exist.
    """

    model_type = "xtc_bert"

    state: str = "latent"
    xtc: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.xtc is None:
            self.xtc = xtc_block(XTCRecipe())
        check_xtc_block(self)

    @property
    def recipe(self) -> XTCRecipe:
        """The recipe the model is made by."""
        return recipe_of(self)

    @property
    def layer_map(self) -> LayerMap | None:
        """The layer map onto the teacher, or `None` for a model that was not cut from one."""
        return layer_map_of(self)
