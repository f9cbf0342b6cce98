"""Writes the graph of an encoder with any `Emitter`: embeddings, layers, and the supported heads.

The modules are those that a family's `NativeForm` finds: every family that the native encoder runs has a graph.
"""

from typing import Any, NamedTuple

import numpy as np
import torch

from hf_xtc.errors import XTCError
from hf_xtc.export.emitter import Emitter, Value
from hf_xtc.files.sentence_files import SentenceSettings
from hf_xtc.modeling.architecture import ARCHITECTURES, Architecture, architecture_of
from hf_xtc.modeling.native_form import ClassifierForm, LayerParts, NativeForm, Parts, positions_from_padding

IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"
# The output of a sentence embedder beside transformers' own, by the name that Optimum gives it.
SENTENCE_EMBEDDING = "sentence_embedding"


class LanguageHead(NamedTuple):
    """Paths of a language model's head; without an activation it is that of the layers."""

    dense: str
    activation: str | None
    norm: str
    output: str


_ROBERTA_LANGUAGE = LanguageHead("lm_head.dense", "gelu", "lm_head.layer_norm", "lm_head.decoder")
# By the names of transformers' classes.
LANGUAGE_MODELS = {
    "BertForMaskedLM": LanguageHead(
        "cls.predictions.transform.dense", None, "cls.predictions.transform.LayerNorm", "cls.predictions.decoder"
    ),
    "RobertaForMaskedLM": _ROBERTA_LANGUAGE,
    "XLMRobertaForMaskedLM": _ROBERTA_LANGUAGE,
    "CamembertForMaskedLM": _ROBERTA_LANGUAGE,
    "MPNetForMaskedLM": _ROBERTA_LANGUAGE,
    "ElectraForMaskedLM": LanguageHead(
        "generator_predictions.dense", "gelu", "generator_predictions.LayerNorm", "generator_lm_head"
    ),
    "DistilBertForMaskedLM": LanguageHead("vocab_transform", None, "vocab_layer_norm", "vocab_projector"),
}


class Interface(NamedTuple):
    """What a graph reads.

    Args:
        inputs (`tuple[str, ...]`): Names of its inputs, all `(batch, sequence)`.
        longest (`int`): Most tokens of a sequence.
    """

    inputs: tuple[str, ...]
    longest: int


class Output(NamedTuple):
    """An output of the graph: its value and its shape, with "batch" and "sequence" for dynamic sizes."""

    value: Value
    shape: tuple[str | int, ...]


def check_served(model: Any) -> None:
    """Checks that the graph of a model can be written.

    Raises:
        XTCError: if its family or its head is not supported (the message lists those that are), or it is a decoder.
    """
    name, architecture = type(model).__name__, architecture_of(model.config)
    if _form(architecture) is None:
        families = ", ".join(sorted(family for family, other in ARCHITECTURES.items() if _form(other) is not None))
        raise XTCError(
            f"{name} cannot be exported, since {architecture.name} runs layer by layer. Families that can: {families}."
        )
    heads = [cls.__name__ for cls in architecture.model_classes.values() if _has_graph(architecture, cls)]
    if name not in heads:
        raise XTCError(f"{name} cannot be exported. Those that can: {', '.join(heads)}.")
    form, base = model.base_model.native_form, model.base_model
    if not all(layer.is_plain for layer in form.parts(base).layers):
        raise XTCError(f"{name} with is_decoder or add_cross_attention cannot be exported; only encoders can.")
    if form.positions not in (None, positions_from_padding):
        raise XTCError(f"{name} cannot be exported: its family counts positions in a way of its own.")


def _form(architecture: Architecture) -> NativeForm | None:
    form: NativeForm | None = getattr(architecture.auto_classes["AutoModel"], "native_form", None)
    return form


def _has_graph(architecture: Architecture, cls: Any) -> bool:
    name = cls.__name__.removeprefix("XTC")
    return (
        cls is architecture.auto_classes["AutoModel"]
        or _classifier_form(_form(architecture), name) is not None
        or name in LANGUAGE_MODELS
        or name.endswith(("ForTokenClassification", "ForQuestionAnswering"))
    )


def _classifier_form(form: NativeForm | None, name: str) -> ClassifierForm | None:
    """The head of a class, by its name, that reads each row's first token."""
    if name == "BertForNextSentencePrediction":
        return ClassifierForm(("cls",), "cls.seq_relationship")
    return form.classifier if form is not None and name.endswith("ForSequenceClassification") else None


def hidden_activation(config: Any) -> str:
    """The name of the activation function of a model's layers, as transformers knows it."""
    name = getattr(config, "hidden_act", None)
    return str(config.activation if name is None else name)  # DistilBERT's


def interface_of(model: Any, token_types: bool = True) -> Interface:
    """What the graph of a model reads.

    Args:
        model (`PreTrainedModel`): One that `check_served` lets pass; of others ids and mask are known to be read.
        token_types (`bool`): Whether it reads token types, if the model tells more than one; without them all tokens
            are of the first.
    """
    base = model.base_model
    if _form(architecture_of(model.config)) is None:
        return Interface((IDS, MASK), model.config.max_position_embeddings)
    tables = base.native_form.parts(base).tables
    reads = token_types and len(tables) > 2 and tables[2].num_embeddings > 1
    longest = tables[1].num_embeddings
    if base.native_form.positions is not None:
        longest -= base.embeddings.padding_idx + 1
    return Interface((IDS, MASK, TYPES) if reads else (IDS, MASK), longest)


def write_graph(
    emitter: Emitter, model: Any, interface: Interface, inputs: dict[str, Value], places: Value
) -> dict[str, Output]:
    """Writes the nodes of a model.

    Args:
        emitter (`Emitter`): For the runtime that the file is for.
        model (`PreTrainedModel`): Packed, one that `check_served` lets pass.
        interface (`Interface`): What `interface_of` says of it.
        inputs (`dict`): Values of its inputs, `(batch, sequence)`, integers.
        places (`Value`): 0, 1, ... sequence - 1, `int64`.

    Returns:
        `dict[str, Output]`: The outputs under the names that transformers gives them; of a sentence embedder also
        `sentence_embedding`, `(batch, hidden)`, pooled and normalized as its settings say.
    """
    base = model.base_model
    parts, activation = base.native_form.parts(base), hidden_activation(model.config)
    hidden = _embeddings(emitter, base, parts, inputs, places)
    if parts.projection is not None:
        hidden = emitter.linear(hidden, parts.projection)
    mask = _additive_mask(emitter, inputs[MASK])
    if parts.distances is not None:
        mask = emitter.node("Add", mask, _bias(emitter, parts, interface.longest, places))
    for layer in parts.layers:
        hidden = _layer(emitter, layer, hidden, mask, activation)
    return _head(emitter, model, hidden, inputs[MASK])


def _embeddings(emitter: Emitter, base: Any, parts: Parts, inputs: dict[str, Value], places: Value) -> Value:
    """Rows of all tables summed and normalized, `(batch * sequence, width)`."""
    ids, width = inputs[IDS], parts.tables[0].embedding_dim
    summed = emitter.embedding(emitter.reshape(ids, [-1]), parts.tables[0])
    if len(parts.tables) > 2:
        types = emitter.reshape(inputs[TYPES], [-1]) if TYPES in inputs else emitter.constant(np.zeros(1, np.int64))
        summed = emitter.node("Add", summed, emitter.embedding(types, parts.tables[2]))
    if base.native_form.positions is None:
        summed = emitter.unflatten(summed, width)
        summed = emitter.node("Add", summed, emitter.embedding(places, parts.tables[1]))
        return emitter.layer_norm(emitter.reshape(summed, [-1, width]), parts.norm)
    positions = _counted_positions(emitter, ids, base.embeddings.padding_idx)
    positions = emitter.reshape(positions, [-1])
    return emitter.layer_norm(emitter.node("Add", summed, emitter.embedding(positions, parts.tables[1])), parts.norm)


def _counted_positions(emitter: Emitter, ids: Value, padding: int) -> Value:
    """As `positions_from_padding`: counts of tokens that are not padding, from the padding's id on."""
    one, padding_id = (emitter.constant(np.array(number, np.int64)) for number in (1, padding))
    is_token = emitter.node("Subtract", one, emitter.cast(emitter.node("Equal", ids, padding_id), "int64"))
    counts = emitter.node("Multiply", emitter.cumulative_sum(is_token, axis=1), is_token)
    return emitter.node("Add", counts, padding_id)


def _bias(emitter: Emitter, parts: Parts, longest: int, places: Value) -> Value:
    """What is added to the scores of each head for the distance of key and query, `(heads, sequence, sequence)`."""
    assert parts.distances is not None
    table = emitter.tensor(parts.distances(longest))
    distance = emitter.node("Subtract", emitter.reshape(places, [1, -1]), emitter.reshape(places, [-1, 1]))
    index = emitter.node("Add", distance, emitter.constant(np.array(longest - 1, np.int64)))
    return emitter.gather(table, index, axis=1)


def _additive_mask(emitter: Emitter, attention_mask: Value) -> Value:
    """0 for tokens and the lowest float for padding, `(batch, 1, 1, sequence)`."""
    padding = emitter.node("Subtract", emitter.number(1), _kept(emitter, attention_mask, [0, 1, 1, -1]))
    return emitter.node("Multiply", padding, emitter.number(torch.finfo(torch.float32).min))


def _kept(emitter: Emitter, attention_mask: Value, shape: list[int]) -> Value:
    """The mask as floats: 1 for tokens, 0 for padding."""
    return emitter.reshape(emitter.cast(attention_mask, "float32"), shape)


def _layer(emitter: Emitter, layer: LayerParts, hidden: Value, mask: Value, activation: str) -> Value:
    query, key, value, mix, inner, outer = layer.linears
    context = _self_attention(emitter, (query, key, value), layer.heads, hidden, mask)
    hidden = emitter.layer_norm(emitter.node("Add", emitter.linear(context, mix), hidden), layer.norms[0])
    wide = emitter.activation(emitter.linear(hidden, inner), activation)
    return emitter.layer_norm(emitter.node("Add", emitter.linear(wide, outer), hidden), layer.norms[1])


def _self_attention(emitter: Emitter, linears: tuple[Any, Any, Any], heads: int, hidden: Value, mask: Value) -> Value:
    width = linears[0].out_features
    size = width // heads

    def split(linear: Any, order: list[int]) -> Value:
        return emitter.transpose(emitter.unflatten(emitter.linear(hidden, linear), heads, size), order)

    query, value = split(linears[0], [0, 2, 1, 3]), split(linears[2], [0, 2, 1, 3])
    scores = emitter.matmul(query, split(linears[1], [0, 2, 3, 1]))
    scores = emitter.node("Multiply", scores, emitter.number(size**-0.5))
    weights = emitter.node("Softmax", emitter.node("Add", scores, mask), axis=-1)
    context = emitter.transpose(emitter.matmul(weights, value), [0, 2, 1, 3])
    return emitter.reshape(context, [-1, width])


def _head(emitter: Emitter, model: Any, states: Value, attention_mask: Value) -> dict[str, Output]:
    """`states` are hidden states of all tokens, `(batch * sequence, hidden)`; those of padding become zeros."""
    base, name, width = model.base_model, type(model).__name__.removeprefix("XTC"), model.config.hidden_size
    pooler = getattr(base, "pooler", None)
    classifier = _classifier_form(base.native_form, name)
    if classifier is not None and classifier.dense is None:  # the pooler reads what is not zeroed yet
        return {"logits": _classifier(emitter, model, classifier, states)}
    hidden = emitter.node("Multiply", states, _kept(emitter, attention_mask, [-1, 1]))
    if classifier is not None:
        return {"logits": _classifier(emitter, model, classifier, hidden)}
    if name in LANGUAGE_MODELS:
        scores = _language_model(emitter, model, LANGUAGE_MODELS[name], hidden)
        return {"logits": _per_token(emitter, scores, model.config.vocab_size)}
    if name.endswith("ForTokenClassification"):
        return {"logits": _per_token(emitter, emitter.linear(hidden, model.classifier), model.config.num_labels)}
    if name.endswith("ForQuestionAnswering"):
        both = emitter.unflatten(emitter.linear(hidden, model.qa_outputs), model.config.num_labels)
        indices = {"start_logits": 0, "end_logits": 1}
        spans = {
            key: emitter.gather(both, emitter.constant(np.array(i, np.int64)), axis=2) for key, i in indices.items()
        }
        return {key: Output(value, ("batch", "sequence")) for key, value in spans.items()}
    outputs = {"last_hidden_state": _per_token(emitter, hidden, width)}
    if pooler is not None:
        pooled = emitter.node("Tanh", emitter.linear(_first(emitter, states, width), pooler.dense))
        outputs["pooler_output"] = Output(pooled, ("batch", width))
    if (settings := sentence_settings(model)) is not None:
        vectors = _sentence_embedding(emitter, settings, outputs["last_hidden_state"].value, attention_mask)
        outputs[SENTENCE_EMBEDDING] = Output(vectors, ("batch", width))
    return outputs


def _first(emitter: Emitter, states: Value, width: int) -> Value:
    """Hidden states of each row's first token, `(batch, hidden)`."""
    return emitter.gather(emitter.unflatten(states, width), emitter.constant(np.array(0, np.int64)), axis=1)


def _classifier(emitter: Emitter, model: Any, form: ClassifierForm, states: Value) -> Output:
    first = _first(emitter, states, model.config.hidden_size)
    dense = model.base_model.pooler.dense if form.dense is None else model.get_submodule(form.dense)
    inner = emitter.activation(emitter.linear(first, dense), form.activation)
    last = model.get_submodule(form.output)
    return Output(emitter.linear(inner, last), ("batch", last.out_features))


def _per_token(emitter: Emitter, value: Value, width: int) -> Output:
    return Output(emitter.unflatten(value, width), ("batch", "sequence", width))


def _language_model(emitter: Emitter, model: Any, head: LanguageHead, hidden: Value) -> Value:
    activation = head.activation or hidden_activation(model.config)
    inner = emitter.activation(emitter.linear(hidden, model.get_submodule(head.dense)), activation)
    return emitter.linear(emitter.layer_norm(inner, model.get_submodule(head.norm)), model.get_submodule(head.output))


def sentence_settings(model: Any) -> SentenceSettings | None:
    """How the hidden states of a sentence embedder become a vector; `None` of other models."""
    sentences = model.config.xtc.get("sentences") if model is model.base_model else None
    return SentenceSettings.from_dict(sentences) if sentences else None


def _sentence_embedding(emitter: Emitter, settings: SentenceSettings, states: Value, attention_mask: Value) -> Value:
    """Vectors as `hf_xtc.tasks.pooling.pool` makes them of `states`, `(batch, sequence, hidden)`, zeros at padding."""
    mask = emitter.cast(attention_mask, "float32")
    if settings.pooling == "cls":  # a weight of 1 for the first token that is not padding
        is_first = emitter.node("Equal", emitter.cumulative_sum(mask, axis=1), emitter.number(1))
        weights = emitter.node("Multiply", emitter.cast(is_first, "float32"), mask)
    else:
        count = emitter.node("Maximum", emitter.total(mask), emitter.number(1))
        weights = emitter.node("Divide", mask, count)
    vectors = emitter.matmul(emitter.reshape(weights, [0, 1, -1]), states)
    vectors = emitter.reshape(vectors, [0, -1])
    if not settings.normalize:
        return vectors
    length = emitter.node("Sqrt", emitter.total(emitter.node("Multiply", vectors, vectors)))
    return emitter.node("Divide", vectors, emitter.node("Maximum", length, emitter.number(1e-12)))
