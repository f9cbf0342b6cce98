"""BERT: the declaration of the family, and the forward passes that one call of the native operator computes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertModel, Cache
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions, SequenceClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from hf_xtc.modeling.base import XTCModel
from hf_xtc.modeling.family import register_family, without_padding
from hf_xtc.modeling.fused import forget_fused_encoder, fused_encoder, has_user_hooks, serves_classifier
from hf_xtc.native.encoder import Outputs


class XTCBertModel(XTCModel, BertModel):
    """`BertModel` with latent or packed weights."""

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor] | BaseModelOutputWithPoolingAndCrossAttentions:
        """As `BertModel.forward`, but `last_hidden_state` is zeros where `attention_mask`, `(batch, tokens)`, is 0.

        So it is in both states and on all backends: on an integer backend, if the native operator supports the model,
        the whole encoder is one call and padding is not computed. `hidden_states`, if asked for, are those of the
        layers, padding included. PEFT and Trainer read the parameters from this signature.
        """
        unusual = (inputs_embeds, encoder_hidden_states, encoder_attention_mask, past_key_values)
        ids = (input_ids, attention_mask, token_type_ids, position_ids)
        outputs = self.fused(*ids, kwargs) if all(value is None for value in unusual) else None
        if outputs is None:
            return without_padding(super().forward(*ids, *unusual, use_cache=use_cache, **kwargs), attention_mask)
        hidden, pooled, _ = outputs
        if pooled is None and self.pooler is not None:
            pooled = self.pooler(hidden)
        output = BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=hidden, pooler_output=pooled)
        return output if _as_dict(self.config, kwargs) else output.to_tuple()

    def fused(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        token_type_ids: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        options: Mapping[str, Any],
        classifier: nn.Linear | None = None,
    ) -> Outputs | None:
        """Everything that one call of the native operator computes; `None` if the model has to run layer by layer.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids (`torch.Tensor`, *optional*): As in `forward`.
            options (`Mapping[str, Any]`): The other keyword arguments of the call.
            classifier (`nn.Linear`, *optional*): One for which `serves_classifier` holds; the call is made only if the
                operator computes the pooler too.
        """
        if input_ids is None or not self.packed or not self._only_last(options):
            return None
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            return None
        encoder = fused_encoder(self)
        if encoder is None:
            return None
        pooler = encoder.pooler(self)
        if classifier is not None and pooler is None:
            return None
        return encoder(input_ids, attention_mask, token_type_ids, position_ids, pooler, classifier)

    def forget_prepared(self) -> None:
        """As `XTCModel.forget_prepared`: the fused encoder."""
        forget_fused_encoder(self)

    def _only_last(self, options: Mapping[str, Any]) -> bool:
        """Whether a call asks for the last hidden state only and passes no option to the layers."""
        for name in ("output_hidden_states", "output_attentions"):
            if options.get(name, getattr(self.config, name, False)):
                return False
        known = ("return_dict", "output_hidden_states", "output_attentions")
        return all(value is None for name, value in options.items() if name not in known)


_BASE_FORWARD = XTCBertModel.forward


def _as_dict(config: Any, options: Mapping[str, Any]) -> bool:
    """Whether a call asks for a `ModelOutput`, not a tuple."""
    asked = options.get("return_dict")
    return bool(config.return_dict if asked is None else asked)


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
        ids = (input_ids, attention_mask, token_type_ids, position_ids)
        outputs = None
        if self.packed and inputs_embeds is None and not torch.compiler.is_compiling() and self._has_plain_head():
            outputs = self.bert.fused(*ids, kwargs, self.classifier)
        if outputs is None:
            return super().forward(*ids, inputs_embeds, labels, **kwargs)
        logits = outputs.logits
        loss = None if labels is None else ForSequenceClassificationLoss(labels, logits, self.config)
        output = SequenceClassifierOutput(loss=loss, logits=logits)
        return output if _as_dict(self.config, kwargs) else output.to_tuple()

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
    classes=(XTCBertModel, XTCBertForSequenceClassification),
    module=__name__,
)
XTCBertConfig: Any = _BERT.config_class
XTCBertForMaskedLM: Any = _BERT.model_classes["BertForMaskedLM"]
XTCBertForMultipleChoice: Any = _BERT.model_classes["BertForMultipleChoice"]
XTCBertForNextSentencePrediction: Any = _BERT.model_classes["BertForNextSentencePrediction"]
XTCBertForPreTraining: Any = _BERT.model_classes["BertForPreTraining"]
XTCBertForQuestionAnswering: Any = _BERT.model_classes["BertForQuestionAnswering"]
XTCBertForTokenClassification: Any = _BERT.model_classes["BertForTokenClassification"]
