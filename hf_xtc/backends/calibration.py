"""Measurements of the layouts on this processor: made at the first use, kept for the process and, if the environment
variable `XTC_CALIBRATION` names a file, there. Runs without PyTorch."""

import ctypes
import json
import logging
import os
import platform
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from itertools import takewhile
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from hf_xtc.files.safe_json import read_json
from hf_xtc.native.library import INTERFACE, variant
from hf_xtc.native.timing import TOKENS, product_seconds

logger = logging.getLogger(__name__)

Times = dict[int, list[float]]
"""Layout -> seconds of a product, as `product_seconds` returns them."""

# The weight that is measured, without the caches and with them: not as wide as most that are like it, to be quick.
_SHAPE = ((768, 768), (768, 384))

_HEAD = {"file": "measurements of hf_xtc's native operator", "version": 1}


class Measurement(NamedTuple):
    """Times and where they come from, in words."""

    times: Times
    source: str


# By variant, levels, and whether the caches were measured too.
_KEPT: dict[tuple[str | None, int, bool], Measurement] = {}
# Calibrations in several threads would disturb each other.
_ONE_AT_A_TIME = Lock()


@cache
def processor() -> str:
    """Vendor, family and model of this processor, as far as the system tells."""
    info = _cpuinfo()
    if {"vendor_id", "cpu family", "model"} <= info.keys():
        return f"{info['vendor_id']} family {info['cpu family']} model {info['model']}"
    if {"CPU implementer", "CPU part"} <= info.keys():
        return f"ARM implementer {info['CPU implementer']} part {info['CPU part']}"
    if sys.platform == "darwin" and (brand := _sysctl("machdep.cpu.brand_string")):
        return brand
    return platform.processor() or platform.machine() or "unknown"


def _cpuinfo(path: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """What Linux says of the first processor; the file is slow to read where there are many."""
    try:
        with open(path, encoding="utf-8", errors="replace") as lines:
            pairs = [line.partition(":") for line in takewhile(str.strip, lines)]
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in pairs}


def _sysctl(name: str) -> str:
    value, size = ctypes.create_string_buffer(256), ctypes.c_size_t(256)
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).sysctlbyname(name.encode(), value, ctypes.byref(size), None, ctypes.c_size_t(0))
    return value.value.decode(errors="replace")


def measured(levels: int, layouts: Sequence[int], cached: bool) -> Measurement:
    """Times of products by a weight in these layouts, by the variant in use: those that this process has, else those
    of the file, else a calibration of a few milliseconds.

    Args:
        levels (`int`): Of the codes: 2 or 3.
        layouts (`Sequence[int]`): Of the codes.
        cached (`bool`): For a narrow weight, whose codes may come from the caches; else a wide one, from memory.
    """
    key = (variant(), levels, cached)
    with _ONE_AT_A_TIME:
        if key not in _KEPT:
            _KEPT[key] = _from_file(levels, layouts, cached) or _calibrated(levels, layouts, cached)
        return _KEPT[key]


def _calibrated(levels: int, layouts: Sequence[int], cached: bool) -> Measurement:
    times = product_seconds(levels, layouts, *_SHAPE[cached], cached=cached)
    if path := _path():
        _write(path, _name(levels, cached), times)
    return Measurement(times, "by calibration")


def _path() -> Path | None:
    name = os.environ.get("XTC_CALIBRATION")
    return Path(name) if name else None


def _name(levels: int, cached: bool) -> str:
    """Under which the times are in the file; the variant's own times change with the interface's version."""
    (rows, columns), place = _SHAPE[cached], "caches and memory" if cached else "memory"
    return f"{processor()}, {variant()}, interface {INTERFACE}, {levels} levels, {rows} x {columns} from {place}"


def _from_file(levels: int, layouts: Sequence[int], cached: bool) -> Measurement | None:
    path = _path()
    found = None if path is None else _read(path).get(_name(levels, cached))
    if found is None or found.keys() != set(layouts) or {*map(len, found.values())} != {len(TOKENS) * (1 + cached)}:
        return None
    return Measurement(found, f"by the calibration in {path}")


def _read(path: Path) -> dict[str, Times]:
    """The measurements of a file; none if there is no such file, or if it is damaged or another program's."""
    try:
        return _parse(read_json(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        _warn(path, f"holds no measurements ({error}) and is not used")
        return {}


def _parse(content: Any) -> dict[str, Times]:
    if not isinstance(content, dict) or {key: content.get(key) for key in _HEAD} != _HEAD:
        raise ValueError("it is another file, or one of another version")
    found = content.get("seconds")
    if not isinstance(found, dict):
        raise ValueError("it has no times")
    return {name: _times(layouts) for name, layouts in found.items()}


def _times(layouts: Any) -> Times:
    if not isinstance(layouts, dict):
        raise ValueError("it has no times")
    for seconds in layouts.values():
        if not isinstance(seconds, list) or not all(isinstance(s, float) and 0 < s < 3600 for s in seconds):
            raise ValueError(f"{seconds!r:.80} are no times")
    return {int(layout): seconds for layout, seconds in layouts.items()}


def _write(path: Path, name: str, times: Times) -> None:
    """Adds measurements to the file. Another process may do so too: each writes a scratch file and renames it."""
    if path.exists() and not path.is_file():
        return  # a device or a folder, which reading has reported
    content = {**_HEAD, "seconds": {**_read(path), name: times}}
    scratch = path.with_name(f".incomplete-{os.urandom(8).hex()}-{path.name}")
    try:
        scratch.write_text(json.dumps(content, indent=2), encoding="utf-8")
        os.replace(scratch, path)
    except OSError as error:
        _warn(path, f"cannot be written ({error.strerror}); other processes will calibrate again")
        with suppress(OSError):
            scratch.unlink()


@cache
def _warn(path: Path, what: str) -> None:
    logger.warning("XTC_CALIBRATION: %s %s.", path, what)
