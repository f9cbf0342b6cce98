"""The factory of a family: from one declaration to its config class, a class for every head, and their registration.

A family is a group of models of transformers with one config class, such as RoBERTa's. `register_family` asks
transformers' own Auto mappings which heads there are for that config, makes the compressed form of each, and registers
them with the Auto classes. The forward passes are transformers' own.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import transformers
from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import AutoConfig
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_xtc.modeling.architecture import ARCHITECTURES, Architecture
from hf_xtc.modeling.base import XTCConfig, XTCModel
from hf_xtc.modeling.fused import forget_fused_encoder, forget_fused_head, fused_logits, fused_outputs
from hf_xtc.modeling.native_form import NativeForm

# The Auto classes of encoders. The Auto mapping of AutoModelForX is MODEL_FOR_X_MAPPING, in capitals.
AUTO_CLASSES = (
    "AutoModel",
    "AutoModelForPreTraining",
    "AutoModelForMaskedLM",
    "AutoModelForNextSentencePrediction",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
    "AutoModelForMultipleChoice",
)


def register_family(
    teacher_config: Any,
    *,
    layers: str | None,
    scopes: dict[str, tuple[str, ...]],
    head_scopes: dict[str, tuple[str, ...]] | None = None,
    cut_config: Callable[[dict[str, Any], tuple[int, ...]], None] | None = None,
    cut_weights: Callable[[dict[str, Tensor], tuple[int, ...]], None] | None = None,
    scores: dict[type, type] | None = None,
    has_scores: bool = True,
    native: NativeForm | None = None,
    classes: Iterable[type] = (),
    module: str,
) -> Architecture:
    """Declares a family: makes its compressed classes, puts them into `module`, and registers them.

    Paths are those of transformers' base model (`RobertaModel`); in a pattern `*` stands for an index.

    Args:
        teacher_config (`type`): Config class of the teachers; its `model_type` is the family's name.
        layers (`str`, *optional*): Path of the list of layers under the base model; `None` if layers share weights,
            and cannot be cut.
        scopes (`dict[str, tuple[str, ...]]`): Recipe scope ("attention", "feed_forward", "pooler", "word_embeddings",
            "position_embeddings") -> patterns of module paths under the base model. What is in none stays in float.
        head_scopes (`dict[str, tuple[str, ...]]`, *optional*): The same for modules of heads, outside of the base
            model. Heads of language models are left in float, except for an output layer tied to the word embedding.
        cut_config (`Callable`, *optional*): Changes the values of a teacher's config, in place, beyond its depth, to
            those of a student that keeps the given teacher layers.
        cut_weights (`Callable`, *optional*): Changes the student's state dict, in place, where a layer's place among
            the layers matters.
        scores (`dict[type, type]`, *optional*): How attention scores before softmax are had, if not by a registered
            attention implementation: attention class -> subclass whose second output is the scores.
        has_scores (`bool`): `False` if there is no way to the scores; the term attention_scores is then refused.
        native (`NativeForm`, *optional*): How the base model's modules map to the native encoder; by default packed
            models run layer by layer.
        classes (`Iterable[type]`): Classes written by hand, used instead of made ones; named "XTC" and the teacher's.
        module (`str`): `__name__` of the declaring module, in which made classes can be found by name.

    Returns:
        `Architecture`: the registered family.

    Raises:
        XTCError: if the family is registered already.
    """
    name = teacher_config.model_type
    register = ARCHITECTURES.register(name)
    config_class = _config_class(teacher_config, module)
    made: dict[str, Any] = {cls.__name__: cls for cls in classes}
    for cls in made.values():
        cls.config_class = config_class
    auto_classes: dict[str, Any] = {}
    for auto in AUTO_CLASSES:
        teacher_class = _teacher_class(auto, teacher_config)
        if teacher_class is not None:
            made_name = f"XTC{teacher_class.__name__}"
            if made_name not in made:
                made[made_name] = _model_class(teacher_class, config_class, module)
                if auto == "AutoModel":
                    _make_base(made[made_name], native)
                elif auto == "AutoModelForSequenceClassification" and native is not None and native.classifier:
                    _make_classifier(made[made_name], native)
            auto_classes[auto] = made[made_name]
    architecture: Architecture = register(
        Architecture(
            config_class=config_class,
            model_classes={cls.__name__.removeprefix("XTC"): cls for cls in auto_classes.values()},
            auto_classes=auto_classes,
            layers=layers,
            scopes=scopes,
            head_scopes=head_scopes or {},
            cut_config=cut_config,
            cut_weights=cut_weights,
            scores=(scores or {}) if has_scores else None,
        )
    )
    if module in sys.modules:  # not the namespace of an `exec`
        vars(sys.modules[module]).update({cls.__name__: cls for cls in (config_class, *made.values())})
    AutoConfig.register(config_class.model_type, config_class)
    for auto, cls in auto_classes.items():
        getattr(transformers, auto).register(config_class, cls)
    return architecture


def _teacher_class(auto: str, teacher_config: Any) -> Any:
    """The class that an Auto class loads for a config class; `None` if there is none."""
    try:
        return getattr(transformers, auto)._model_mapping[teacher_config]
    except KeyError:
        return None


def _config_class(teacher_config: Any, module: str) -> Any:
    """The config of a family's compressed models: the teacher's, `state` and `xtc`; see `XTCConfig`."""

    @strict
    class Config(XTCConfig, teacher_config):  # type: ignore[misc]
        model_type = f"xtc_{teacher_config.model_type.replace('-', '_')}"

        state: str = "latent"
        xtc: dict[str, Any] | None = None

    Config.__name__ = Config.__qualname__ = f"XTC{teacher_config.__name__}"
    Config.__module__ = module
    Config.__doc__ = (
        f"A `{teacher_config.__name__}` with the state of the model and its XTC metadata; see `XTCConfig`."
    )
    return Config


def _model_class(teacher_class: Any, config_class: Any, module: str) -> Any:
    """The compressed form of a class of transformers."""
    name = teacher_class.__name__
    fields = {
        "config_class": config_class,
        "__module__": module,
        "__qualname__": f"XTC{name}",
        "__doc__": f"`{name}` with latent or packed weights.",
    }
    return type(f"XTC{name}", (XTCModel, teacher_class), fields)


def _make_base(cls: Any, native: NativeForm | None) -> None:
    """Makes a class that of base models: padding becomes zeros, and what the native encoder computes is one call."""
    cls.forward = _zeroing_padding(cls.forward)
    if native is not None:
        cls.native_form = native
        cls.forward = _fused_first(cls.forward, native)
        cls.forget_prepared = forget_fused_encoder
    cls.fused_forward = cls.forward  # a class or model with another forward does not compute what one call does


def _make_classifier(cls: Any, native: NativeForm) -> None:
    """Makes a class that of sequence classifiers: their logits come out of the call that computes the encoder."""
    cls.classifier_form = native.classifier
    cls.forward = _logits_first(cls.forward)
    cls.forget_prepared = forget_fused_head


def _logits_first(forward: Any) -> Any:
    """A sequence classifier's forward that is one call of the native operator wherever that computes the same."""
    names = list(inspect.signature(forward).parameters)[1:]

    @functools.wraps(forward)
    def logits_first(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        labels = given.pop("labels", None)
        outputs = fused_logits(self, given)
        if outputs is None:
            return forward(self, *args, **kwargs)
        loss = None if labels is None else ForSequenceClassificationLoss(labels, outputs.logits, self.config)
        output = SequenceClassifierOutput(loss=loss, logits=outputs.logits)
        return output if as_dict(self.config, kwargs) else output.to_tuple()

    return logits_first


def _fused_first(forward: Any, native: NativeForm) -> Any:
    """A base model's forward that is one call of the native operator wherever that computes the same."""
    names = list(inspect.signature(forward).parameters)[1:]

    @functools.wraps(forward)
    def fused_first(self: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = fused_outputs(self, {**dict(zip(names, args, strict=False)), **kwargs})
        if outputs is None:
            return forward(self, *args, **kwargs)
        hidden, pooled, _ = outputs
        if native.pooler is None:
            output = native.output(last_hidden_state=hidden)
        else:
            if pooled is None and self.pooler is not None:
                pooled = self.pooler(hidden)
            output = native.output(last_hidden_state=hidden, pooler_output=pooled)
        return output if as_dict(self.config, kwargs) else output.to_tuple()

    return fused_first


def as_dict(config: Any, options: Mapping[str, Any]) -> bool:
    """Whether a call asks for a `ModelOutput`, not a tuple."""
    asked = options.get("return_dict")
    return bool(config.return_dict if asked is None else asked)


def _zeroing_padding(forward: Any) -> Any:
    """A base model's forward whose last hidden states are zeros where the attention mask is 0."""
    place = list(inspect.signature(forward).parameters).index("attention_mask") - 1  # less `self`

    @functools.wraps(forward)
    def zeroing(self: Any, *args: Any, **kwargs: Any) -> Any:
        mask = kwargs.get("attention_mask", args[place] if len(args) > place else None)
        return without_padding(forward(self, *args, **kwargs), mask)

    return zeroing


def without_padding(output: Any, attention_mask: Any) -> Any:
    """An output of a base model whose last hidden states are zeros where the mask, if it has two axes, is 0.

    So they are in both states and on all backends, whether padding was computed or skipped.
    """
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.dim() != 2:
        return output
    hidden = output[0]
    padding = attention_mask[:, -hidden.shape[1] :, None] == 0  # a prefix of PEFT has a mask, but no hidden states
    hidden = hidden.masked_fill(padding, 0)
    if isinstance(output, tuple):
        return (hidden, *output[1:])
    output.last_hidden_state = hidden
    return output
