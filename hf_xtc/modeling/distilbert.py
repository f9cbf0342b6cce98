"""DistilBERT: no token types; its config says `n_layers`, `dim` and `hidden_dim`."""

from transformers import DistilBertConfig

from hf_xtc.modeling.family import register_family

register_family(
    DistilBertConfig,
    layers="transformer.layer",
    scopes={
        "attention": (
            "transformer.layer.*.attention.q_lin",
            "transformer.layer.*.attention.k_lin",
            "transformer.layer.*.attention.v_lin",
            "transformer.layer.*.attention.out_lin",
        ),
        "feed_forward": ("transformer.layer.*.ffn.lin1", "transformer.layer.*.ffn.lin2"),
        "word_embeddings": ("embeddings.word_embeddings",),
        "position_embeddings": ("embeddings.position_embeddings",),
    },
    head_scopes={"pooler": ("pre_classifier",)},
    module=__name__,
)
