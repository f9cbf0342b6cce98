"""ELECTRA: BERT's modules; where embeddings are narrower than layers, a linear lies between the two."""

from transformers import ElectraConfig
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.electra import modeling_electra

from hf_xtc.modeling.bert import BERT_SCOPES
from hf_xtc.modeling.family import register_family
from hf_xtc.modeling.native_form import bert_form, classification_head

register_family(
    ElectraConfig,
    layers="encoder.layer",
    scopes={**BERT_SCOPES, "feed_forward": (*BERT_SCOPES["feed_forward"], "embeddings_project")},
    head_scopes={"pooler": ("classifier.dense", "sequence_summary.summary")},
    native=bert_form(
        modeling_electra,
        "Electra",
        BaseModelOutputWithPastAndCrossAttentions,
        classifier=classification_head(modeling_electra, "Electra", "gelu"),
    ),
    module=__name__,
)
