"""The configuration of BERT in its two states."""

import os
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import BertConfig

from hf_xtc.modeling.architecture import architecture_of, check_xtc_block, layer_map_of, recipe_of, xtc_block
from hf_xtc.recipe import XTCRecipe
from hf_xtc.specs import LayerMap

# What runs a packed model where this package is not installed, generated from its sources by tools/remote_code.py.
CODE = Path(__file__).parent.parent / "remote_code" / "modeling_xtc_bert.py"


def auto_map(config: Any) -> dict[str, str]:
    """Name of an Auto class -> the class of `CODE` that it loads a model of this config with."""
    heads = architecture_of(config).model_classes
    names = {f"AutoModel{name.removeprefix('Bert').removeprefix('Model')}": cls for name, cls in heads.items()}
    return {auto: f"{CODE.stem}.{cls.__name__}" for auto, cls in {"AutoConfig": type(config), **names}.items()}


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

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """As in transformers; a packed model's config names, in `auto_map`, the code that is written beside it."""
        self.__dict__.pop("auto_map", None)  # of the folder it was loaded from
        if self.state == "packed":
            self.auto_map = auto_map(self)
            os.makedirs(save_directory, exist_ok=True)
            shutil.copyfile(CODE, Path(save_directory) / CODE.name)
        super().save_pretrained(save_directory, push_to_hub, **kwargs)
