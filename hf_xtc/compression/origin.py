"""Where a teacher comes from: its name on the Hub, and the licence that its card states."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, hf_hub_download
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,
)
from huggingface_hub.utils import validate_repo_id
from yaml import YAMLError

from hf_xtc.errors import XTCError


def read_card(source: str | os.PathLike[str], *, revision: str | None = None) -> dict[str, Any]:
    """Metadata of the model card of a folder or a repository; empty if there is none or it cannot be read."""
    file = Path(source) / "README.md"
    try:
        found = file if os.path.isdir(source) else hf_hub_download(str(source), file.name, revision=revision)
        card: dict[str, Any] = ModelCard.load(found).data.to_dict()
    except (HTTPError, OSError, ValueError, TypeError, KeyError, AttributeError, YAMLError):
        return {}
    return card


def origin(teacher: str) -> dict[str, Any]:
    """Where a teacher is from, found without the network: `teacher_license`, from the card in its folder, or
    `base_model`, its name on the Hub."""
    if os.path.isdir(teacher):
        return _licensed(read_card(teacher))
    try:
        validate_repo_id(teacher)
    except HFValidationError:
        return {}
    return {"base_model": teacher}


def hub_license(facts: Mapping[str, Any], *, revision: str | None = None) -> dict[str, Any]:
    """`teacher_license`, from the Hub's card of the `base_model` in `facts` (see `origin`); empty if `facts` have no
    such model or have a licence already, or if the card states none or cannot be read."""
    if "base_model" not in facts or "teacher_license" in facts:
        return {}
    return _licensed(read_card(facts["base_model"], revision=revision))


def _licensed(card: dict[str, Any]) -> dict[str, Any]:
    stated = card.get("license")
    usable = isinstance(stated, str) or (isinstance(stated, list) and all(isinstance(one, str) for one in stated))
    return {"teacher_license": stated} if stated and usable else {}


def is_license_id(text: str) -> bool:
    """Whether a text is written as the Hub writes licences: `apache-2.0`, `cc-by-4.0`, `other`."""
    return re.fullmatch(r"[a-z0-9][a-z0-9.-]*", text) is not None


def check_license(text: str) -> None:
    """Checks the name of a licence.

    Raises:
        XTCError: if it is not written as on the Hub.
    """
    if not is_license_id(text):
        raise XTCError(f"The licence {text!r} is not named as on the Hub. Write it like apache-2.0, or other.")
