"""DistilBERT: no token types; its config says `n_layers`, `dim` and `hidden_dim`."""

from typing import Any

from transformers import DistilBertConfig
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.distilbert import modeling_distilbert as distilbert

from hf_xtc.modeling.family import register_family
from hf_xtc.modeling.native_form import ClassifierForm, LayerParts, NativeForm, Parts


def _parts(model: Any) -> Parts:
    embeddings = model.embeddings
    tables = (embeddings.word_embeddings, embeddings.position_embeddings)
    return Parts(tables, embeddings.LayerNorm, [_layer(layer) for layer in model.transformer.layer])


def _layer(layer: Any) -> LayerParts:
    own, ffn = layer.attention, layer.ffn
    linears = (own.q_lin, own.k_lin, own.v_lin, own.out_lin, ffn.lin1, ffn.lin2)
    size = own.attention_head_size
    is_plain = (
        not own.is_causal
        and own.scaling == size**-0.5
        and own.n_heads * size == getattr(own.q_lin, "out_features", None)
    )
    return LayerParts(linears, ffn.activation, (layer.sa_layer_norm, layer.output_layer_norm), own.n_heads, is_plain)


_NATIVE = NativeForm(
    roots=("embeddings", "transformer"),
    classes=(
        *(distilbert.Embeddings, distilbert.Transformer, distilbert.TransformerBlock),
        *(distilbert.DistilBertSelfAttention, distilbert.FFN),
    ),
    parts=_parts,
    output=BaseModelOutput,
    classifier=ClassifierForm(("pre_classifier", "dropout", "classifier"), "classifier", "pre_classifier", "relu"),
)
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
    native=_NATIVE,
    module=__name__,
)
