"""ALBERT: all layers of a group share one set of weights, so that layers cannot be cut."""

from transformers import AlbertConfig

from hf_xtc.modeling.bert import BERT_SCOPES
from hf_xtc.modeling.family import register_family

_LAYER = "encoder.albert_layer_groups.*.albert_layers.*"

register_family(
    AlbertConfig,
    layers=None,
    scopes={
        **BERT_SCOPES,
        "attention": (
            f"{_LAYER}.attention.query",
            f"{_LAYER}.attention.key",
            f"{_LAYER}.attention.value",
            f"{_LAYER}.attention.dense",
        ),
        "feed_forward": (f"{_LAYER}.ffn", f"{_LAYER}.ffn_output", "encoder.embedding_hidden_mapping_in"),
        "pooler": ("pooler",),
    },
    module=__name__,
)
