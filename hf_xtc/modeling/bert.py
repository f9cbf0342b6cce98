"""BERT: the declaration of the family."""

from typing import Any

from transformers import BertConfig
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.models.bert import modeling_bert

from hf_xtc.modeling.family import register_family
from hf_xtc.modeling.native_form import ClassifierForm, bert_form

# Module paths that RoBERTa and its relatives share.
BERT_SCOPES = {
    "attention": (
        "encoder.layer.*.attention.self.query",
        "encoder.layer.*.attention.self.key",
        "encoder.layer.*.attention.self.value",
        "encoder.layer.*.attention.output.dense",
    ),
    "feed_forward": ("encoder.layer.*.intermediate.dense", "encoder.layer.*.output.dense"),
    "pooler": ("pooler.dense",),
    "word_embeddings": ("embeddings.word_embeddings",),
    "position_embeddings": ("embeddings.position_embeddings", "embeddings.token_type_embeddings"),
}

_BERT = register_family(
    BertConfig,
    layers="encoder.layer",
    scopes=BERT_SCOPES,
    native=bert_form(
        modeling_bert,
        "Bert",
        BaseModelOutputWithPoolingAndCrossAttentions,
        classifier=ClassifierForm(("dropout", "classifier"), "classifier"),
    ),
    module=__name__,
)
XTCBertConfig: Any = _BERT.config_class
XTCBertModel: Any = _BERT.model_classes["BertModel"]
XTCBertForMaskedLM: Any = _BERT.model_classes["BertForMaskedLM"]
XTCBertForMultipleChoice: Any = _BERT.model_classes["BertForMultipleChoice"]
XTCBertForNextSentencePrediction: Any = _BERT.model_classes["BertForNextSentencePrediction"]
XTCBertForPreTraining: Any = _BERT.model_classes["BertForPreTraining"]
XTCBertForQuestionAnswering: Any = _BERT.model_classes["BertForQuestionAnswering"]
XTCBertForSequenceClassification: Any = _BERT.model_classes["BertForSequenceClassification"]
XTCBertForTokenClassification: Any = _BERT.model_classes["BertForTokenClassification"]
