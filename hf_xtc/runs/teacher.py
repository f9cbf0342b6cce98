"""Loads the teacher of a run: a model's folder or Hub id, or the folder of a PEFT adapter, which names its base.

An adapter is merged into its base in memory; the rest of the run works with a plain model.
"""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from hf_xtc.compression.origin import hub_license, origin
from hf_xtc.errors import XTCError
from hf_xtc.hub.upload import hub_errors, read_config
from hf_xtc.modeling.adapters import adapter_base, head_labels, with_adapter
from hf_xtc.runs.model_checks import check_finite, check_weights

# What a forward returns is decided here, not by switches that a config.json happens to have.
_PLAIN_OUTPUTS = {"return_dict": True, "output_hidden_states": False, "output_attentions": False}


def load_config(teacher: str, revision: str | None = None) -> Any:
    """A teacher's configuration, with as many labels as its head has.

    Raises:
        XTCError: if a folder, or an adapter's base, cannot be found or read.
        HubError: if there is no such model on the Hub, or it cannot be reached.
    """
    if os.path.isdir(teacher) and adapter_base(teacher) is None:
        read_config(teacher)
    config = _loaded(AutoConfig, teacher, revision)
    labels = head_labels(teacher)
    if labels is not None and labels != config.num_labels:
        config.num_labels = labels
    return config


def load_tokenizer(teacher: str, revision: str | None = None) -> Any:
    """A teacher's tokenizer: for an adapter the one in its folder, or else that of its base.

    Raises:
        XTCError: if a folder, or an adapter's base, cannot be found or read.
        HubError: if there is no such model on the Hub, or it cannot be reached.
    """
    if os.path.isfile(os.path.join(teacher, "tokenizer_config.json")):
        return _from_pretrained(AutoTokenizer, teacher, None)
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
        HubError: if there is no such model on the Hub, or it cannot be reached.
    """
    return load_reported(teacher, auto_class, revision, fresh_head=fresh_head, **head)[0]


def load_reported(
    teacher: str, auto_class: Any, revision: str | None = None, *, fresh_head: bool = False, **head: Any
) -> tuple[PreTrainedModel, set[str]]:
    """As `load_model`; also returns the names of the tensors that no file holds, which were drawn at random."""
    # `check_weights` says which sizes differ
    options = {"dtype": torch.float32, "ignore_mismatched_sizes": True, **_PLAIN_OUTPUTS, **head}
    model, info = _loaded(auto_class, teacher, revision, output_loading_info=True, **options)
    whole: PreTrainedModel = model if adapter_base(teacher) is None else with_adapter(model, teacher)
    own_head = head_labels(teacher) is not None
    check_weights(model, info, teacher, fresh_head=fresh_head, own_head=own_head)
    check_finite(whole, teacher)
    new = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    return whole, set() if own_head else new


def _loaded(auto: Any, teacher: str, revision: str | None, **options: Any) -> Any:
    """What an Auto class loads from a teacher, or from the base that an adapter names."""
    adapter = adapter_base(teacher)
    if adapter is None:
        return _from_pretrained(auto, teacher, revision, **options)
    base, base_revision = adapter
    try:
        return auto.from_pretrained(base, revision=base_revision, **options)
    except (OSError, ValueError, RuntimeError) as error:
        why = _reason(error)
        raise XTCError(
            f"{teacher} holds an adapter of {base}, which cannot be loaded: {why} Set base_model_name_or_path in its "
            "adapter_config.json to the folder or the Hub id of the model that it was trained on."
        ) from error


def _from_pretrained(auto: Any, name: str, revision: str | None, **options: Any) -> Any:
    """What an Auto class loads; every error is an `XTCError` of one sentence."""
    if not os.path.exists(name) and os.path.isabs(name):
        raise XTCError(f"There is no folder {name}. Give the folder or the Hub id of the teacher.")
    if os.path.isfile(name):
        raise XTCError(f"{name} is a file. Give the folder of the model, or its Hub id.")
    try:
        return auto.from_pretrained(name, revision=revision, **options)
    except XTCError:
        raise
    except Exception as error:  # of many types: the files are read by several libraries
        if isinstance(error, OSError) and isinstance(error.__cause__, Exception) and not os.path.isdir(name):
            with hub_errors(name, revision):
                raise error.__cause__ from error
        why = _pointer(name) or _reason(error)
        raise XTCError(f"{_PARTS.get(auto, 'The model')} {name} cannot be loaded: {why}") from error


_PARTS = {AutoConfig: "The configuration of", AutoTokenizer: "The tokenizer of"}


def _reason(error: Exception) -> str:
    """The first line of an error's message, with the second if it only introduces that; or its type if it has none."""
    first, _, rest = str(error).strip().partition("\n")
    return (f"{first} {rest.strip().partition(chr(10))[0]}" if first.endswith(":") else first) or type(error).__name__


def _pointer(teacher: str) -> str:
    """What to do about a file of a folder that only points to its content; empty if there is none."""
    for file in sorted(Path(teacher).glob("*")):
        if file.is_file() and file.stat().st_size < 1024 and file.read_bytes().startswith(b"version https://git-lfs"):
            return f"{file.name} is a pointer of Git LFS, not its content. Run git lfs pull in the folder."
    return ""


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
