"""BERT in its two states: `XTCBertModel` and its heads.

The forward passes are transformers' own; only the linears and embeddings of the recipe's scopes are swapped.
"""

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForNextSentencePrediction,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    BertPreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.models.bert.modeling_bert import (
    BertEmbeddings,
    BertEncoder,
    BertOnlyMLMHead,
    BertOnlyNSPHead,
    BertPooler,
    BertPreTrainingHeads,
)

from hf_xtc.modeling.architecture import ARCHITECTURES, Architecture, swap_module
from hf_xtc.modeling.bert_config import XTCBertConfig
from hf_xtc.modeling.fused import fused_encoder
from hf_xtc.modeling.states import XTCModel

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
DECODER = "cls.predictions.decoder"


class XTCBertPreTrainedModel(XTCModel, BertPreTrainedModel):
    """What all XTC BERT models share: where BERT's modules are, and its tied output layer."""

    config: XTCBertConfig
    config_class = XTCBertConfig
    scopes = BERT_SCOPES

    def post_init(self) -> None:
        """As `XTCModel.post_init`; an output layer that shares the word embedding takes its codes."""
        if hasattr(self, "cls") and hasattr(self.cls, "predictions") and self.config.tie_word_embeddings:
            self._swap_decoder()
        super().post_init()

    def _swap_decoder(self) -> None:
        """Gives the output layer that shares the word embedding the embedding's codes."""
        spec = self.config.recipe.spec("word_embeddings")
        if spec is None:
            return
        swap_module(self, DECODER, spec, None, packed=self.packed)
        if self.packed:
            embedding = f"{self.base_model_prefix}.embeddings.word_embeddings"
            self._tied_weights_keys = {
                f"{DECODER}.weight_packed": f"{embedding}.weight_packed",
                f"{DECODER}.weight_scale": f"{embedding}.weight_scale",
                f"{DECODER}.bias": "cls.predictions.bias",
            }


class XTCBertModel(XTCBertPreTrainedModel, BertModel):
    """`BertModel` with latent or packed weights."""

    def __init__(self, config: XTCBertConfig, add_pooling_layer: bool = True):
        BertPreTrainedModel.__init__(self, config)
        self.gradient_checkpointing = False
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config) if add_pooling_layer else None
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `BertModel.forward`. On an integer backend, where the native operator serves the model, the whole encoder
        is one call and padding is skipped: hidden states of padding tokens are then zeros."""
        hidden, plain = None, self.packed and inputs_embeds is None and self._only_last(kwargs)
        if plain and input_ids is not None and (attention_mask is None or attention_mask.shape == input_ids.shape):
            fused = fused_encoder(self)
            if fused is not None:
                hidden = fused(input_ids, attention_mask, token_type_ids, position_ids)
        if hidden is None:
            return super().forward(
                input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds=inputs_embeds, **kwargs
            )
        pooled = self.pooler(hidden) if self.pooler is not None else None
        output = BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=hidden, pooler_output=pooled)
        whole = kwargs.get("return_dict", self.config.return_dict) is not False
        return output if whole else output.to_tuple()

    def _only_last(self, options: dict[str, Any]) -> bool:
        """Whether a call asks for the last hidden state and nothing else that a layer yields or takes."""
        for name in ("output_hidden_states", "output_attentions"):
            if options.get(name, getattr(self.config, name, False)):
                return False
        known = ("return_dict", "output_hidden_states", "output_attentions")
        return all(value is None for name, value in options.items() if name not in known)


class XTCBertForSequenceClassification(XTCBertPreTrainedModel, BertForSequenceClassification):
    """`BertForSequenceClassification` with latent or packed weights: classification and regression."""

    def __init__(self, config: XTCBertConfig):
        BertPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.bert = XTCBertModel(config)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


class XTCBertForTokenClassification(XTCBertPreTrainedModel, BertForTokenClassification):
    """`BertForTokenClassification` with latent or packed weights."""

    def __init__(self, config: XTCBertConfig):
        BertPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.bert = XTCBertModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


class XTCBertForQuestionAnswering(XTCBertPreTrainedModel, BertForQuestionAnswering):
    """`BertForQuestionAnswering` with latent or packed weights."""

    def __init__(self, config: XTCBertConfig):
        BertPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.bert = XTCBertModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


class XTCBertForMaskedLM(XTCBertPreTrainedModel, BertForMaskedLM):
    """`BertForMaskedLM` with latent or packed weights; its decoder shares the word embedding, packed too."""

    def __init__(self, config: XTCBertConfig):
        BertPreTrainedModel.__init__(self, config)
        self.bert = XTCBertModel(config, add_pooling_layer=False)
        self.cls = BertOnlyMLMHead(config)
        self.post_init()


class XTCBertForMultipleChoice(XTCBertPreTrainedModel, BertForMultipleChoice):
    """`BertForMultipleChoice` with latent or packed weights."""

    def __init__(self, config: XTCBertConfig):
        BertPreTrainedModel.__init__(self, config)
        self.bert = XTCBertModel(config)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.post_init()


class XTCBertForNextSentencePrediction(XTCBertPreTrainedModel, BertForNextSentencePrediction):
    """`BertForNextSentencePrediction` with latent or packed weights."""

    def __init__(self, config: XTCBertConfig):
        BertPreTrainedModel.__init__(self, config)
        self.bert = XTCBertModel(config)
        self.cls = BertOnlyNSPHead(config)
        self.post_init()


class XTCBertForPreTraining(XTCBertPreTrainedModel, BertForPreTraining):
    """`BertForPreTraining` with latent or packed weights."""

    def __init__(self, config: XTCBertConfig):
        BertPreTrainedModel.__init__(self, config)
        self.bert = XTCBertModel(config)
        self.cls = BertPreTrainingHeads(config)
        self.post_init()


def _classifier_dropout(config: XTCBertConfig) -> float:
    chosen = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
    return float(chosen)


_AUTO_CLASSES = {
    AutoModel: XTCBertModel,
    AutoModelForSequenceClassification: XTCBertForSequenceClassification,
    AutoModelForTokenClassification: XTCBertForTokenClassification,
    AutoModelForQuestionAnswering: XTCBertForQuestionAnswering,
    AutoModelForMaskedLM: XTCBertForMaskedLM,
    AutoModelForMultipleChoice: XTCBertForMultipleChoice,
    AutoModelForNextSentencePrediction: XTCBertForNextSentencePrediction,
    AutoModelForPreTraining: XTCBertForPreTraining,
}

ARCHITECTURES.register("bert")(
    Architecture(
        config_class=XTCBertConfig,
        model_classes={cls.__name__.removeprefix("XTC"): cls for cls in _AUTO_CLASSES.values()},
        layers="encoder.layer",
    )
)

AutoConfig.register(XTCBertConfig.model_type, XTCBertConfig)
for _auto, _model in _AUTO_CLASSES.items():
    _auto.register(XTCBertConfig, _model)
