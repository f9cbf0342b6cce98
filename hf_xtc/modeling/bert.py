"""BERT: the declaration of the family, and `XTCBertModel`, which runs its encoder in one call where it can."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel, Cache
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from hf_xtc.modeling.base import XTCModel
from hf_xtc.modeling.family import register_family, without_padding
from hf_xtc.modeling.fused import forget_fused_encoder, fused_encoder


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
        plain = self.packed and all(value is None for value in unusual) and self._only_last(kwargs)
        hidden = None
        if plain and input_ids is not None and (attention_mask is None or attention_mask.shape == input_ids.shape):
            fused = fused_encoder(self)
            if fused is not None:
                hidden = fused(input_ids, attention_mask, token_type_ids, position_ids)
        if hidden is None:
            ids = (input_ids, attention_mask, token_type_ids, position_ids)
            return without_padding(super().forward(*ids, *unusual, use_cache=use_cache, **kwargs), attention_mask)
        pooled = self.pooler(hidden) if self.pooler is not None else None
        output = BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=hidden, pooler_output=pooled)
        as_dict = kwargs.get("return_dict", self.config.return_dict) is not False
        return output if as_dict else output.to_tuple()

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


class XTCBertForSequenceClassification(XTCModel, BertForSequenceClassification):
    """`BertForSequenceClassification` with latent or packed weights: classification and regression."""


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
