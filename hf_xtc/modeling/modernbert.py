"""ModernBERT: rotary positions, gated feed-forward, and layers of global and of local attention in a pattern.

A kept layer keeps its kind of attention. The first layer has no norm before its attention, since the embeddings end
in one: a later layer that becomes the first loses it, and its scale moves into the weights behind it.
"""

from typing import Any

from torch import Tensor
from transformers import ModernBertConfig

from hf_xtc.modeling.family import register_family


def _keep_kinds(values: dict[str, Any], layers: tuple[int, ...]) -> None:
    values["layer_types"] = [values["layer_types"][layer] for layer in layers]


def _drop_first_norm(state_dict: dict[str, Tensor], layers: tuple[int, ...]) -> None:
    for name in [name for name in state_dict if name.removeprefix("model.").startswith("layers.0.attn_norm.")]:
        norm = state_dict.pop(name)
        if name.endswith(".weight"):
            linear = name.replace("attn_norm", "attn.Wqkv")
            state_dict[linear] = state_dict[linear] * norm


register_family(
    ModernBertConfig,
    layers="layers",
    scopes={
        "attention": ("layers.*.attn.Wqkv", "layers.*.attn.Wo"),
        "feed_forward": ("layers.*.mlp.Wi", "layers.*.mlp.Wo"),
        "word_embeddings": ("embeddings.tok_embeddings",),
    },
    head_scopes={"pooler": ("head.dense",)},
    cut_config=_keep_kinds,
    cut_weights=_drop_first_norm,
    module=__name__,
)
