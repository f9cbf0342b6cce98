"""BERT: the declaration of the family, and a classifier that is computed in the native operator's call too."""

from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions, SequenceClassifierOutput
from transformers.models.bert import modeling_bert
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from hf_xtc.modeling.base import XTCModel
from hf_xtc.modeling.family import as_dict, register_family
from hf_xtc.modeling.fused import fused_outputs, has_user_hooks, serves_classifier
from hf_xtc.modeling.native_form import bert_form


class XTCBertForSequenceClassification(XTCModel, BertForSequenceClassification):
    """`BertForSequenceClassification` with latent or packed weights: classification and regression."""

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor] | SequenceClassifierOutput:
        """As `BertForSequenceClassification.forward`; on an integer backend, if the native operator supports the whole
        model, the logits, `(batch, labels)`, come out of the call that computes the encoder."""
        outputs = None
        if self.packed and inputs_embeds is None and not torch.compiler.is_compiling() and self._has_plain_head():
            given = {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "token_type_ids": token_type_ids,
                "position_ids": position_ids,
                **kwargs,
            }
            outputs = fused_outputs(self.bert, given, self.classifier)
        if outputs is None:
            ids = (input_ids, attention_mask, token_type_ids, position_ids)
            return super().forward(*ids, inputs_embeds, labels, **kwargs)
        logits = outputs.logits
        loss = None if labels is None else ForSequenceClassificationLoss(labels, logits, self.config)
        output = SequenceClassifierOutput(loss=loss, logits=logits)
        return output if as_dict(self.config, kwargs) else output.to_tuple()

    def _has_plain_head(self) -> bool:
        """Whether the base model's forward may be passed over, and the head is what the native operator computes."""
        base = self.bert
        return (
            type(base) is XTCBertModel
            and "forward" not in vars(base)
            and XTCBertModel.forward is _BASE_FORWARD
            and not any(map(has_user_hooks, (base._forward_hooks, base._forward_pre_hooks)))
            and serves_classifier(self.classifier, self.dropout)
        )


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
    native=bert_form(modeling_bert, "Bert", BaseModelOutputWithPoolingAndCrossAttentions),
    classes=(XTCBertForSequenceClassification,),
    module=__name__,
)
XTCBertConfig: Any = _BERT.config_class
XTCBertModel: Any = _BERT.model_classes["BertModel"]
XTCBertForMaskedLM: Any = _BERT.model_classes["BertForMaskedLM"]
XTCBertForMultipleChoice: Any = _BERT.model_classes["BertForMultipleChoice"]
XTCBertForNextSentencePrediction: Any = _BERT.model_classes["BertForNextSentencePrediction"]
XTCBertForPreTraining: Any = _BERT.model_classes["BertForPreTraining"]
XTCBertForQuestionAnswering: Any = _BERT.model_classes["BertForQuestionAnswering"]
XTCBertForTokenClassification: Any = _BERT.model_classes["BertForTokenClassification"]

_BASE_FORWARD = XTCBertModel.forward
