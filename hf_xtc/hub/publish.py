"""Publishes models, latent or packed, as packed files with a card."""

import os
import tempfile
from typing import Any

from transformers import PreTrainedModel

from hf_xtc.compression.convert import is_packed, pack_model
from hf_xtc.compression.origin import hub_license
from hf_xtc.files.headers import weights_sha256
from hf_xtc.files.sentence_files import SentenceSettings, write_sentence_files
from hf_xtc.files.writing import OLD_CODE, WEIGHT_FILES, whole_folder, write_text
from hf_xtc.hub.card import model_card
from hf_xtc.hub.upload import open_repository, push_folder


def write_packed(model: Any, folder: str | os.PathLike[str], *, tokenizer: Any = None, **options: Any) -> None:
    """Writes the packed form of an XTC model, latent or packed, and a tokenizer if there is one: both or neither.

    A sentence embedder gets the files by which sentence-transformers opens its folder.

    `options` are those of `save_pretrained`.

    Raises:
        StateError: if a latent weight is NaN or infinite, or the folder cannot be written.
    """
    packed = model if is_packed(model) else pack_model(model)
    with whole_folder(folder, replaces=(*WEIGHT_FILES, OLD_CODE)) as scratch:
        packed.save_pretrained(scratch, **options)
        if tokenizer is not None:
            tokenizer.save_pretrained(scratch)
        if sentences := packed.config.xtc.get("sentences"):
            settings = SentenceSettings.from_dict(sentences)
            write_sentence_files(scratch, settings, packed.config.hidden_size)


def write_model_card(
    config: Any, model_class: type[PreTrainedModel], folder: str | os.PathLike[str], name: str, **facts: Any
) -> None:
    """Writes the card of a folder that `write_packed` wrote; the arguments are those of `model_card`.

    The licence of a teacher on the Hub is looked up there, and is not stated where that fails.

    Raises:
        StateError: if the file cannot be written.
    """
    facts["made"] = {**hub_license(config.xtc.get("provenance", {})), **(facts.get("made") or {})}
    text = model_card(config, model_class, name, sha256=weights_sha256(folder), **facts)
    write_text(os.path.join(folder, "README.md"), text)


def push_model(
    model: Any,
    repo_id: str,
    *,
    tokenizer: Any = None,
    tags: list[str] | str | None = None,
    max_shard_size: int | str = "50GB",
    **options: Any,
) -> Any:
    """Publishes the packed form of an XTC model with a card, in one commit; see `push_folder` for `options`.

    Args:
        model (`PreTrainedModel`): An XTC model; a latent one is packed first and left as it is.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Published in the same commit.
        tags (`list[str]`, *optional*): Additional tags of the card.

    Raises:
        StateError: if a latent weight is NaN or infinite.
        HubError: if the Hub cannot be reached or refuses; nothing was published.
    """
    given = [tags] if isinstance(tags, str) else list(tags or ())
    metadata = {"tags": [*(getattr(model, "model_tags", None) or ()), *given]}
    with tempfile.TemporaryDirectory() as folder:
        write_packed(model, folder, tokenizer=tokenizer, max_shard_size=max_shard_size)
        if "/" not in repo_id:  # the example of the card needs the full name
            repo_id = open_repository(repo_id, private=options.get("private"), token=options.get("token"))
        write_model_card(model.config, type(model), folder, repo_id, metadata=metadata)
        return push_folder(folder, repo_id, **options)
