"""The configuration of BERT in its two states."""

import os
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import BertConfig
from transformers.activations import ACT2FN

from hf_xtc.errors import PackedFileError
from hf_xtc.modeling.architecture import architecture_of
from hf_xtc.modeling.checks import check_sizes
from hf_xtc.modeling.states import XTCConfig

# The file that runs a packed model where this package is not installed; every packed folder carries it.
CODE = Path(__file__).parent.parent / "remote_code" / "modeling_xtc.py"

SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("max_position_embeddings", "type_vocab_size"),
)


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

    def __post_init__(self, **kwargs: Any) -> None:
        """Checks what a model is built with, for transformers builds whatever it is told.

        Raises:
            PackedFileError: if a size, the number of heads, the activation, an epsilon or the pad token is no BERT's.
            XTCError: as `XTCConfig`.
        """
        check_sizes(self, SIZES)
        if self.hidden_size % self.num_attention_heads or self.hidden_act not in ACT2FN:
            raise PackedFileError(
                f"config.json says hidden_act={self.hidden_act!r:.80} and hidden_size={self.hidden_size} for "
                f"{self.num_attention_heads} heads: the activation must be one of transformers', and the heads must "
                "divide the size. Restore the config written with the file."
            )
        dropouts = (self.hidden_dropout_prob, self.attention_probs_dropout_prob, self.classifier_dropout or 0)
        if not 0 < self.layer_norm_eps < 1 or not all(0 <= dropout <= 1 for dropout in dropouts):
            raise PackedFileError(
                f"config.json says layer_norm_eps={self.layer_norm_eps!r} and dropouts {dropouts}; they must lie "
                "between 0 and 1. Restore the config written with the file."
            )
        if self.pad_token_id is not None and not -self.vocab_size <= self.pad_token_id < self.vocab_size:
            raise PackedFileError(
                f"config.json says pad_token_id={self.pad_token_id}, which is none of its {self.vocab_size} tokens. "
                "Restore the config written with the file."
            )
        super().__post_init__(**kwargs)

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
