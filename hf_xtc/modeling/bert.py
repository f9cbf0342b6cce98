"""BERT in its two states: `XTCBertModel` and its heads.

The forward passes are transformers' own; only the linears and embeddings of the recipe's scopes are swapped. A packed
model saves its float parameters in `recipe.rest_dtype` and computes in the dtype it is loaded with.
"""

import os
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
from transformers import initialization as init
from transformers.integrations.accelerate import load_offloaded_parameter
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.models.bert.modeling_bert import (
    BertEmbeddings,
    BertEncoder,
    BertOnlyMLMHead,
    BertOnlyNSPHead,
    BertPooler,
    BertPreTrainingHeads,
)

from hf_xtc.activations import ActivationQuantizer
from hf_xtc.backends import check_backend, default_backend
from hf_xtc.checkpoint import whole_folder
from hf_xtc.errors import StateError
from hf_xtc.layers import PackedEmbedding, PackedLinear
from hf_xtc.modeling.architecture import (
    ARCHITECTURES,
    PUBLISHERS,
    Architecture,
    check_files,
    check_values,
    swap_module,
    swap_modules,
)
from hf_xtc.modeling.bert_config import XTCBertConfig
from hf_xtc.modeling.fused import fused_encoder

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
_HUB_OPTIONS = ("repo_id", "private", "token", "revision", "commit_message", "commit_description", "create_pr")


class XTCBertPreTrainedModel(BertPreTrainedModel):
    """What all XTC BERT models share: the swap of modules, and saving and loading of both states."""

    config: XTCBertConfig
    config_class = XTCBertConfig
    # BERT's losses ignore `num_items_in_batch`: Trainer must scale them for gradient accumulation and DDP itself.
    accepts_loss_kwargs = False

    @property
    def packed(self) -> bool:
        """Whether the model holds codes (packed) or latent weights."""
        return self.config.state == "packed"

    @property
    def backend(self) -> str:
        """The backend that packed linears are asked to run on; see `set_backend`."""
        return getattr(self, "_backend", None) or default_backend()

    def set_backend(self, name: str) -> None:
        """Chooses what packed linears compute with.

        Args:
            name (`str`): "auto" (integers, the fastest way measured), "int8" (codes expanded to bytes at the first
                forward), "packed" (codes stay packed in memory) or "reference" (decoded, in float: differentiable).
                A linear that it does not serve runs on the reference, which is logged once.

        Raises:
            XTCError: if there is no such backend (names those there are).
            StateError: if the model is latent: it computes in float.
        """
        check_backend(name)
        if not self.packed:
            raise StateError(
                f"set_backend({name!r}) chooses how packed weights are multiplied, but this model is latent. "
                "Call pack_model first."
            )
        for module in self.modules():
            if isinstance(module, XTCBertPreTrainedModel):
                module._backend = name
            elif isinstance(module, PackedLinear):
                module.backend = name

    def post_init(self) -> None:
        """Swaps modules, ties what is tied in this state, then initialises as any transformers model.

        What a packed model has besides its head is frozen: codes cannot be trained, and biases beside them should not.
        """
        if not hasattr(self, self.base_model_prefix):
            swap_modules(self, BERT_SCOPES, self.config)
            if self.packed:
                self.requires_grad_(False)
        elif hasattr(self, "cls") and hasattr(self.cls, "predictions") and self.config.tie_word_embeddings:
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

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As in transformers; a packed layer or a range that the file lacks gets zeros, not leftovers of memory."""
        super()._init_weights(module)
        if isinstance(module, PackedLinear | PackedEmbedding | ActivationQuantizer):
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                init.zeros_(tensor)

    def mark_tied_weights_as_initialized(self, loading_info: Any) -> None:
        """As in transformers, which looks for tied parameters only: tied codes and scales are buffers."""
        for name in self.all_tied_weights_keys:
            self.get_parameter_or_buffer(name)._is_hf_initialized = True

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """As in transformers for a latent model.

        Raises:
            StateError: for a packed model.
        """
        if self.packed:
            raise StateError(
                "A packed model cannot grow or shrink its vocabulary: rows of codes cannot be trained. "
                "Call unpack_model first, resize and train the latent model, then pack_model."
            )
        resized: nn.Module = super().resize_token_embeddings(*args, **kwargs)
        return resized

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], state_dict: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """As in transformers, but whole or not at all; a packed model stores its parameters in `recipe.rest_dtype`.

        With `push_to_hub=True` the model is then published as `push_to_hub` does it: packed, whatever its state.

        Raises:
            StateError: if the folder cannot be written.
        """
        if kwargs.pop("push_to_hub", False):
            published = {name: kwargs.pop(name) for name in _HUB_OPTIONS if name in kwargs}
            repo_id = published.pop("repo_id", os.path.basename(os.path.normpath(save_directory)))
            self.save_pretrained(save_directory, state_dict, **kwargs)
            self.push_to_hub(repo_id, **published)
            return
        if self.packed:
            state_dict = self._file_state_dict(self.state_dict() if state_dict is None else state_dict)
        variant = f".{kwargs['variant']}" if kwargs.get("variant") else ""
        shards = (f"model{variant}-?????-of-?????.safetensors", f"model.safetensors.index{variant}.json")
        with whole_folder(save_directory, replaces=(f"model{variant}.safetensors", *shards)) as folder:
            super().save_pretrained(folder, state_dict=state_dict, **kwargs)

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """Publishes the model, packed whatever its state, and a card of what is known of it, in one commit.

        Args:
            repo_id (`str`): `user/name`; the repository is made if there is none.
            options: As in transformers (`private`, `token`, `revision`, `commit_message`, `create_pr`, `tags`), and
                `tokenizer`, which goes into the same commit.

        Returns:
            `CommitInfo`: of the new commit, or of the newest if nothing has changed.

        Raises:
            StateError: if a latent weight is NaN or infinite.
            HubError: if the Hub cannot be reached or refuses; nothing was published.
        """
        return PUBLISHERS["hub"](self, repo_id, **options)

    def _file_state_dict(self, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of the file: parameters in `recipe.rest_dtype`, buffers as they are, ties kept."""
        rest_dtype = getattr(torch, self.config.recipe.rest_dtype)
        parameters = dict(self.named_parameters(remove_duplicate=False))
        stored: dict[int, torch.Tensor] = {}
        result = {}
        for name, tensor in state_dict.items():
            if name in parameters:
                tensor = load_offloaded_parameter(self, name) if tensor.is_meta else tensor
                tensor = stored.setdefault(id(parameters[name]), tensor.to(rest_dtype))
            result[name] = tensor
        return result

    @staticmethod
    def _load_pretrained_model(
        model: Any, state_dict: dict[str, Any] | None, files: list[str] | None, load_config: Any, *args: Any
    ) -> Any:
        """As in transformers, after a check that the files hold what the config promises.

        Raises:
            PackedFileError: if they do not, or hold values that no packed file has.
        """
        if files is not None:
            check_files(model, files, new_head=load_config.ignore_mismatched_sizes)
        loaded = BertPreTrainedModel._load_pretrained_model(model, state_dict, files, load_config, *args)
        if model.packed:
            check_values(model)
        return loaded


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
        scopes=BERT_SCOPES,
    )
)

AutoConfig.register(XTCBertConfig.model_type, XTCBertConfig)
for _auto, _model in _AUTO_CLASSES.items():
    _auto.register(XTCBertConfig, _model)
