"""BERT in its two states: `XTCBertModel` and its heads.

The forward passes are transformers' own; only the linears and embeddings of the recipe's scopes are swapped.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
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
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    BertPreTrainedModel,
    Cache,
)
from transformers.activations import ACT2FN
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions, SequenceClassifierOutput
from transformers.models.bert.modeling_bert import (
    BertEmbeddings,
    BertEncoder,
    BertOnlyMLMHead,
    BertOnlyNSPHead,
    BertPooler,
    BertPreTrainingHeads,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from hf_xtc.errors import PackedFileError
from hf_xtc.modeling.architecture import ARCHITECTURES, Architecture, architecture_of, swap_module
from hf_xtc.modeling.base import XTCConfig, XTCModel
from hf_xtc.modeling.checks import check_sizes
from hf_xtc.modeling.fused import forget_fused_encoder, fused_encoder, has_user_hooks, serves_classifier
from hf_xtc.native.encoder import Outputs

# Runs a packed model where this package is not installed; a copy goes into every packed folder.
CODE = Path(__file__).parent.parent / "remote_code" / "modeling_xtc.py"


SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("max_position_embeddings", "type_vocab_size"),
)


def auto_map(config: Any) -> dict[str, str]:
    """Name of an Auto class -> the class in `CODE` that it loads for this config."""
    heads = architecture_of(config).model_classes
    names = {f"AutoModel{name.removeprefix('Bert').removeprefix('Model')}": cls for name, cls in heads.items()}
    return {auto: f"{CODE.stem}.{cls.__name__}" for auto, cls in {"AutoConfig": type(config), **names}.items()}


@strict
class XTCBertConfig(XTCConfig, BertConfig):
    """A `BertConfig` with the state of the model and its XTC metadata; see `XTCConfig`."""

    model_type = "xtc_bert"

    state: str = "latent"
    xtc: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Checks the values that a model is built with, since transformers does not.

        Raises:
            PackedFileError: if a size, the number of heads, the activation, the epsilon, a dropout or the pad token is
                invalid.
            XTCError: as `XTCConfig`.
        """
        check_sizes(self, SIZES)
        if self.hidden_size % self.num_attention_heads:
            raise PackedFileError(
                f"num_attention_heads={self.num_attention_heads} does not divide hidden_size={self.hidden_size}."
            )
        if self.hidden_act not in ACT2FN:
            raise PackedFileError(
                f"hidden_act={self.hidden_act!r:.80} is no activation of transformers, such as 'gelu' or 'relu'."
            )
        dropouts = (self.hidden_dropout_prob, self.attention_probs_dropout_prob, self.classifier_dropout or 0)
        if not 0 < self.layer_norm_eps <= 1 or not all(0 <= dropout <= 1 for dropout in dropouts):
            raise PackedFileError(
                f"layer_norm_eps={self.layer_norm_eps!r} must be above 0 and at most 1, and the dropouts {dropouts} "
                "must lie between 0 and 1."
            )
        if self.pad_token_id is not None and not -self.vocab_size <= self.pad_token_id < self.vocab_size:
            raise PackedFileError(
                f"pad_token_id={self.pad_token_id} is not one of the {self.vocab_size} tokens of vocab_size."
            )
        super().__post_init__(**kwargs)

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """As in transformers; a packed model's config names, in `auto_map`, the code that is written beside it."""
        self.__dict__.pop("auto_map", None)  # that of the folder it was loaded from
        if self.state == "packed":
            self.auto_map = auto_map(self)
            os.makedirs(save_directory, exist_ok=True)
            shutil.copyfile(CODE, Path(save_directory) / CODE.name)
        super().save_pretrained(save_directory, push_to_hub, **kwargs)


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
    """Base of all XTC BERT models: BERT's scopes and its tied output layer."""

    config: XTCBertConfig
    config_class = XTCBertConfig
    scopes = BERT_SCOPES

    def post_init(self) -> None:
        """As `XTCModel.post_init`; a tied output layer is quantized as the word embedding."""
        if hasattr(self, "cls") and hasattr(self.cls, "predictions") and self.config.tie_word_embeddings:
            self._swap_decoder()
        super().post_init()

    def _swap_decoder(self) -> None:
        """Replaces the tied output layer by a latent or packed one that shares the word embedding's tensors."""
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
            return _without_padding(super().forward(*ids, *unusual, use_cache=use_cache, **kwargs), attention_mask)
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


def _without_padding(output: Any, attention_mask: torch.Tensor | None) -> Any:
    """An output of `BertModel` whose last hidden states are zeros where the mask, if it has two axes, is 0."""
    if attention_mask is None or attention_mask.dim() != 2:
        return output
    hidden = output[0]
    padding = attention_mask[:, -hidden.shape[1] :, None] == 0  # a prefix of PEFT has a mask, but no hidden states
    hidden = hidden.masked_fill(padding, 0)
    if isinstance(output, tuple):
        return (hidden, *output[1:])
    output.last_hidden_state = hidden
    return output


class XTCBertForSequenceClassification(XTCBertPreTrainedModel, BertForSequenceClassification):
    """`BertForSequenceClassification` with latent or packed weights: classification and regression."""

    def __init__(self, config: XTCBertConfig):
        BertPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.bert = XTCBertModel(config)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

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
