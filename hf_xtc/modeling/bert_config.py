"""The configuration of BERT in its two states."""

import os
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import BertConfig

from hf_xtc.modeling.architecture import architecture_of
from hf_xtc.modeling.states import XTCConfig

# What runs a packed model where this package is not installed, generated from its sources by tools/remote_code.py.
CODE = Path(__file__).parent.parent / "remote_code" / "modeling_xtc_bert.py"


def auto_map(config: Any) -> dict[str, str]:
    """Name of an Auto class -> the class of `CODE` that it loads a model of this config with."""
    heads = architecture_of(config).model_classes
    names = {f"AutoModel{name.removeprefix('Bert').removeprefix('Model')}": cls for name, cls in heads.items()}
    return {auto: f"{CODE.stem}.{cls.__name__}" for auto, cls in {"AutoConfig": type(config), **names}.items()}


@strict
class XTCBertConfig(XTCConfig, BertConfig):
    """A `BertConfig` with the state of the model and all that XTC knows of it; see `XTCConfig`."""

    model_type = "xtc_bert"

    state: str = "latent"
    xtc: dict[str, Any] | None = None

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
