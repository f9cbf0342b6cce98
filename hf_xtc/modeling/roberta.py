"""RoBERTa, XLM-R and CamemBERT: BERT's modules; positions are counted from the padding token's id on."""

from transformers import CamembertConfig, RobertaConfig, XLMRobertaConfig

from hf_xtc.modeling.bert import BERT_SCOPES
from hf_xtc.modeling.family import register_family

for _config in (RobertaConfig, XLMRobertaConfig, CamembertConfig):
    register_family(
        _config,
        layers="encoder.layer",
        scopes=BERT_SCOPES,
        head_scopes={"pooler": ("classifier.dense",)},
        module=__name__,
    )
