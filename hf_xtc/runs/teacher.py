"""Loads the teacher of a run: a model's folder or Hub id, or the folder of a PEFT adapter, which names its base.

An adapter is merged into its base in memory; the rest of the run works with a plain model.
"""

import os
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from hf_xtc.compression.origin import hub_license, origin
from hf_xtc.errors import XTCError
from hf_xtc.modeling.adapters import adapter_base, head_labels, with_adapter
from hf_xtc.runs.model_checks import check_weights

# What a forward returns is decided here, not by switches that a config.json happens to have.
_PLAIN_OUTPUTS = {"return_dict": True, "output_hidden_states": False, "output_attentions": False}


def load_config(teacher: str, revision: str | None = None) -> Any:
    """A teacher's configuration, with as many labels as its head has.

    Raises:
        XTCError: if an absolute path, or an adapter's base, cannot be found.
        OSError: if there is no such model.
    """
    config = _loaded(AutoConfig, teacher, revision)
    labels = head_labels(teacher)
    if labels is not None and labels != config.num_labels:
        config.num_labels = labels
    return config


def load_tokenizer(teacher: str, revision: str | None = None) -> Any:
    """A teacher's tokenizer: for an adapter the one in its folder, or else that of its base.

    Raises:
        XTCError: if an absolute path, or an adapter's base, cannot be found.
        OSError: if there is no such model.
    """
    if os.path.isfile(os.path.join(teacher, "tokenizer_config.json")):
        return AutoTokenizer.from_pretrained(teacher)
    return _loaded(AutoTokenizer, teacher, revision)


def load_model(
    teacher: str, auto_class: Any, revision: str | None = None, *, fresh_head: bool = False, **head: Any
) -> PreTrainedModel:
    """A teacher in float32, its adapter merged if it is one.

    Args:
        teacher (`str`), revision (`str`, *optional*): As given on the command line.
        auto_class (`type`): The Auto class of the task.
        fresh_head (`bool`): Whether a head that is missing or has another size is new, to be trained.
        head: Fields of the configuration that describe the head: `num_labels`, `id2label` and so on.

    Raises:
        XTCError: if weights are missing, an adapter's base cannot be found, or the adapter does not fit it.
        StateError: if an adapter's base is packed.
        OSError: if there is no such model.
    """
    return load_reported(teacher, auto_class, revision, fresh_head=fresh_head, **head)[0]


def load_reported(
    teacher: str, auto_class: Any, revision: str | None = None, *, fresh_head: bool = False, **head: Any
) -> tuple[PreTrainedModel, set[str]]:
    """As `load_model`; also returns the names of the tensors that no file holds, which were drawn at random."""
    options = {"dtype": torch.float32, "ignore_mismatched_sizes": fresh_head, **_PLAIN_OUTPUTS, **head}
    model, info = _loaded(auto_class, teacher, revision, output_loading_info=True, **options)
    whole: PreTrainedModel = model if adapter_base(teacher) is None else with_adapter(model, teacher)
    own_head = head_labels(teacher) is not None
    check_weights(model, info, teacher, fresh_head=fresh_head, own_head=own_head)
    new = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    return whole, set() if own_head else new


def _loaded(auto: Any, teacher: str, revision: str | None, **options: Any) -> Any:
    """What an Auto class loads from a teacher, or from the base that an adapter names."""
    adapter = adapter_base(teacher)
    if adapter is None and not os.path.exists(teacher) and os.path.isabs(teacher):
        raise XTCError(f"There is no folder {teacher}. Give the folder or the Hub id of the teacher.")
    if adapter is None:
        try:
            return auto.from_pretrained(teacher, revision=revision, **options)
        except XTCError:
            raise
        except (ValueError, RuntimeError, KeyError, ImportError) as error:
            raise XTCError(f"{_PARTS.get(auto, 'The model')} {teacher} cannot be loaded: {_reason(error)}") from error
    base, base_revision = adapter
    try:
        return auto.from_pretrained(base, revision=base_revision, **options)
    except (OSError, ValueError, RuntimeError) as error:
        why = _reason(error)
        raise XTCError(
            f"{teacher} holds an adapter of {base}, which cannot be loaded: {why} Set base_model_name_or_path in its "
            "adapter_config.json to the folder or the Hub id of the model that it was trained on."
        ) from error


_PARTS = {AutoConfig: "The configuration of", AutoTokenizer: "The tokenizer of"}


def _reason(error: Exception) -> str:
    """The first line of an error's message, or its type if it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def teacher_origin(teacher: str, revision: str | None = None) -> dict[str, Any]:
    """A teacher's origin for the card: `base_model` and `teacher_license`, where known.

    An adapter that states no licence has that of its base.
    """
    base, base_revision = adapter_base(teacher) or (teacher, revision)
    facts = origin(base)
    facts |= hub_license(facts, revision=base_revision)
    return facts if base == teacher else {**facts, **origin(teacher)}


def teacher_title(teacher: str) -> str:
    """A teacher's name for the card: its Hub id, or its folder's name without the path."""
    name = os.path.basename(os.path.abspath(teacher)) if os.path.isdir(teacher) else teacher
    adapter = adapter_base(teacher)
    return name if adapter is None else f"{teacher_title(adapter[0])} with the adapter {name}"
