"""Writes the graph of BERT with any `Emitter`: embeddings, layers, and the supported heads."""

from typing import Any, NamedTuple

import numpy as np
import torch

from hf_xtc.errors import XTCError
from hf_xtc.export.emitter import Emitter, Value

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
HEADS = (
    "XTCBertModel",
    "XTCBertForSequenceClassification",
    "XTCBertForTokenClassification",
    "XTCBertForQuestionAnswering",
    "XTCBertForMaskedLM",
    "XTCBertForNextSentencePrediction",
)


class Output(NamedTuple):
    """An output of the graph: its value and its shape, with "batch" and "sequence" for dynamic sizes."""

    value: Value
    shape: tuple[str | int, ...]


def check_served(model: Any) -> None:
    """Checks that the graph of a model can be written.

    Raises:
        XTCError: if its head is not supported (the message lists those that are), or it is a decoder.
    """
    name = type(model).__name__
    if name not in HEADS:
        raise XTCError(f"{name} cannot be exported. Those that can: {', '.join(HEADS)}.")
    if model.config.is_decoder or model.config.add_cross_attention:
        raise XTCError(f"{name} with is_decoder or add_cross_attention cannot be exported; only encoders can.")


def write_graph(emitter: Emitter, model: Any, inputs: dict[str, Value], positions: Value) -> dict[str, Output]:
    """Writes the nodes of a model.

    Args:
        emitter (`Emitter`): For the runtime that the file is for.
        model (`PreTrainedModel`): Packed, of a class in `HEADS`.
        inputs (`dict`): Values of the three `INPUTS`, `(batch, sequence)`, integers.
        positions (`Value`): 0, 1, ... sequence - 1.

    Returns:
        `dict[str, Output]`: The outputs under the names that transformers gives them.
    """
    bert = getattr(model, "bert", model)
    hidden = _embeddings(emitter, bert.embeddings, inputs, positions)
    mask = _additive_mask(emitter, inputs["attention_mask"])
    for layer in bert.encoder.layer:
        hidden = _layer(emitter, layer, hidden, mask, model.config)
    return _head(emitter, model, bert, hidden, inputs["attention_mask"])


def _embeddings(emitter: Emitter, module: Any, inputs: dict[str, Value], positions: Value) -> Value:
    words = emitter.embedding(emitter.reshape(inputs["input_ids"], [-1]), module.word_embeddings)
    types = emitter.embedding(emitter.reshape(inputs["token_type_ids"], [-1]), module.token_type_embeddings)
    width = module.word_embeddings.embedding_dim
    summed = emitter.unflatten(emitter.node("Add", words, types), width)
    summed = emitter.node("Add", summed, emitter.embedding(positions, module.position_embeddings))
    return emitter.layer_norm(emitter.reshape(summed, [-1, width]), module.LayerNorm)


def _additive_mask(emitter: Emitter, attention_mask: Value) -> Value:
    """0 for tokens and the lowest float for padding, `(batch, 1, 1, sequence)`."""
    padding = emitter.node("Subtract", emitter.number(1), _kept(emitter, attention_mask, [0, 1, 1, -1]))
    return emitter.node("Multiply", padding, emitter.number(torch.finfo(torch.float32).min))


def _kept(emitter: Emitter, attention_mask: Value, shape: list[int]) -> Value:
    """The mask as floats: 1 for tokens, 0 for padding."""
    return emitter.reshape(emitter.cast(attention_mask, "float32"), shape)


def _layer(emitter: Emitter, layer: Any, hidden: Value, mask: Value, config: Any) -> Value:
    attention = layer.attention
    context = _self_attention(emitter, attention.self, hidden, mask)
    mixed = emitter.linear(context, attention.output.dense)
    hidden = emitter.layer_norm(emitter.node("Add", mixed, hidden), attention.output.LayerNorm)
    inner = emitter.activation(emitter.linear(hidden, layer.intermediate.dense), config.hidden_act)
    outer = emitter.linear(inner, layer.output.dense)
    return emitter.layer_norm(emitter.node("Add", outer, hidden), layer.output.LayerNorm)


def _self_attention(emitter: Emitter, module: Any, hidden: Value, mask: Value) -> Value:
    heads, size = module.num_attention_heads, module.attention_head_size

    def split(linear: Any, order: list[int]) -> Value:
        return emitter.transpose(emitter.unflatten(emitter.linear(hidden, linear), heads, size), order)

    query, value = split(module.query, [0, 2, 1, 3]), split(module.value, [0, 2, 1, 3])
    scores = emitter.matmul(query, split(module.key, [0, 2, 3, 1]))
    scores = emitter.node("Multiply", scores, emitter.number(module.scaling))
    weights = emitter.node("Softmax", emitter.node("Add", scores, mask), axis=-1)
    context = emitter.transpose(emitter.matmul(weights, value), [0, 2, 1, 3])
    return emitter.reshape(context, [-1, heads * size])


def _head(emitter: Emitter, model: Any, bert: Any, states: Value, attention_mask: Value) -> dict[str, Output]:
    """`states` are hidden states of all tokens, `(batch * sequence, hidden)`; those of padding become zeros."""
    name = type(model).__name__.removeprefix("XTC")
    if name not in ("BertForSequenceClassification", "BertForNextSentencePrediction"):  # they use the first token only
        hidden = emitter.node("Multiply", states, _kept(emitter, attention_mask, [-1, 1]))
    if name == "BertForMaskedLM":
        return {"logits": _per_token(emitter, _masked_lm(emitter, model, hidden), model.config.vocab_size)}
    if name == "BertForTokenClassification":
        return {"logits": _per_token(emitter, emitter.linear(hidden, model.classifier), model.num_labels)}
    if name == "BertForQuestionAnswering":
        both = emitter.unflatten(emitter.linear(hidden, model.qa_outputs), model.num_labels)
        indices = {"start_logits": 0, "end_logits": 1}
        spans = {
            key: emitter.gather(both, emitter.constant(np.array(i, np.int64)), axis=2) for key, i in indices.items()
        }
        return {key: Output(value, ("batch", "sequence")) for key, value in spans.items()}
    width = model.config.hidden_size
    outputs = {"last_hidden_state": _per_token(emitter, hidden, width)} if bert is model else {}
    if bert.pooler is None:
        return outputs
    first = emitter.gather(emitter.unflatten(states, width), emitter.constant(np.array(0, np.int64)), axis=1)
    pooled = emitter.node("Tanh", emitter.linear(first, bert.pooler.dense))
    if bert is model:
        return {**outputs, "pooler_output": Output(pooled, ("batch", width))}
    last = model.classifier if name == "BertForSequenceClassification" else model.cls.seq_relationship
    return {"logits": Output(emitter.linear(pooled, last), ("batch", last.out_features))}


def _per_token(emitter: Emitter, value: Value, width: int) -> Output:
    return Output(emitter.unflatten(value, width), ("batch", "sequence", width))


def _masked_lm(emitter: Emitter, model: Any, hidden: Value) -> Value:
    transform = model.cls.predictions.transform
    inner = emitter.activation(emitter.linear(hidden, transform.dense), model.config.hidden_act)
    return emitter.linear(emitter.layer_norm(inner, transform.LayerNorm), model.cls.predictions.decoder)
