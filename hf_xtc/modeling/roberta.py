"""RoBERTa, XLM-R and CamemBERT: BERT's modules; positions are counted from the padding token's id on."""

from transformers import CamembertConfig, RobertaConfig, XLMRobertaConfig
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.models.camembert import modeling_camembert
from transformers.models.roberta import modeling_roberta
from transformers.models.xlm_roberta import modeling_xlm_roberta

from hf_xtc.modeling.bert import BERT_SCOPES
from hf_xtc.modeling.family import register_family
from hf_xtc.modeling.native_form import bert_form, classification_head, positions_from_padding

for _config, _module, _prefix in (
    (RobertaConfig, modeling_roberta, "Roberta"),
    (XLMRobertaConfig, modeling_xlm_roberta, "XLMRoberta"),
    (CamembertConfig, modeling_camembert, "Camembert"),
):
    register_family(
        _config,
        layers="encoder.layer",
        scopes=BERT_SCOPES,
        head_scopes={"pooler": ("classifier.dense",)},
        native=bert_form(
            _module,
            _prefix,
            BaseModelOutputWithPoolingAndCrossAttentions,
            positions=positions_from_padding,
            classifier=classification_head(_module, _prefix, "tanh"),
        ),
        module=__name__,
    )
