"""Reads untrusted JSON, from regular files only; every failure is an `OSError` or a `ValueError`.

Our own, because `json.load` has no limit: a hostile file can be a device, be larger than memory, or nest until the
interpreter gives up.
"""

import json
import os
from pathlib import Path
from typing import Any

MOST_BYTES = 2**26


def parse_json(text: str) -> Any:
    """Parses JSON, as `json.loads`.

    Raises:
        ValueError: if it is not JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(file: str | os.PathLike[str]) -> Any:
    """The JSON of a file.

    Raises:
        OSError: if it cannot be read, is larger than `MOST_BYTES`, or is not a regular file.
        ValueError: if it is not UTF-8 or not JSON, or nested too deeply to be read.
    """
    path = Path(file)
    if path.exists() and not path.is_file():  # reading a pipe or a device may never end
        raise OSError(f"{path} is not a regular file")
    if path.stat().st_size > MOST_BYTES:
        raise OSError(f"{path} has {path.stat().st_size} bytes, more than any configuration or record of a run")
    return parse_json(path.read_text(encoding="utf-8"))
