"""Damage to files, drawn from a random generator: JSON, safetensors, and the folders that hold them.

Each function takes a good content and gives a bad one, with the name of what was done to it.
"""

import json
import os
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np

DTYPES = (
    "F64",
    "F32",
    "F16",
    "BF16",
    "U8",
    "I8",
    "I16",
    "U16",
    "I32",
    "I64",
    "BOOL",
    "F8_E4M3",
    "F4",
    "C64",
    "",
    "u8",
)
SIZES = (0, -1, 1, 2, 7, 2**16, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, 1.5, "1", None)
HOSTILE = (
    "../model.safetensors",
    "../../../etc/passwd",
    "/etc/passwd",
    "/dev/zero",
    "a/../../b",
    "",
    ".",
    "\0",
    "C:\\x",
)
TEXTS = ("", "x", "\0", "\ud800", "<script>alert(1)</script>", "{0.__class__}", "%s%n", "binary", "float64", "é" * 300)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 5, 12, 100, 10**4, 10**6, 10**9, 2**31, 2**63, 2**64, 10**30, -(10**30)),
    *(0.5, -0.5, 1e-45, 1e-320, 1e308, float("nan"), float("inf"), -float("inf"), [], {}, [[]], [0], [1, 1], {"": {}}),
    *(TEXTS + HOSTILE),
)
PATTERNS = (
    "(a+)+$",
    "(.*)*x",
    "(.|.)*x",
    ".*.*.*.*.*.*.*.*x",
    "a{99999999999}",
    "[",
    "(?P<a",
    "((((((((((a",
    "\\1",
    ".",
)
KEYS = ("auto_map", "_name_or_path", "__class__", "num_labels", "format_version", "quantization_config", "x", "", "\0")
FLOATS = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}


def nodes(value: Any) -> list[tuple[Any, Any]]:
    """Every container of a JSON value, at any depth, with each of its keys."""
    found, left = [], [value]
    while left:
        value = left.pop()
        if isinstance(value, dict | list):
            places = [(value, key) for key in (value if isinstance(value, dict) else range(len(value)))]
            found += places
            left += [value[key] for _, key in places]
    return found


def change_json(rng: random.Random, value: Any, extra: tuple[Any, ...] = ()) -> str:
    """Changes one to three places of a JSON value in place; returns the name of the last change."""
    name = "nothing"
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = nodes(value)
        if not places:
            return name
        container, key = rng.choice(places)
        name = rng.choice(("value", "value", "value", "near", "delete", "add", "copy", "type", "nest", "repeat"))
        old = container[key]
        if name == "delete":
            del container[key]
        elif name == "add":
            added = rng.choice(VALUES + extra)
            container.update({rng.choice(KEYS): added}) if isinstance(container, dict) else container.append(added)
        elif name == "copy":
            other, place = rng.choice(places)
            container[key] = json.loads(json.dumps(other[place])) if _holds(other, place) else None
        elif name == "near" and isinstance(old, int | float) and not isinstance(old, bool):
            container[key] = old + rng.choice((-1, 1, 2, 0.5, 1000))
        elif name == "type":
            container[key] = rng.choice((str(old), [old], {"x": old}, not old, bool(old)))
        elif name == "nest":
            for _ in range(rng.choice((1, 40, 300))):
                old = [old]
            container[key] = old
        elif name == "repeat" and isinstance(old, list | str):
            container[key] = old * rng.choice((2, 100, 10000))
        else:
            container[key] = rng.choice(VALUES + extra)
    return name


def _holds(container: Any, key: Any) -> bool:
    return key in container if isinstance(container, dict) else key < len(container)


def damage_json(rng: random.Random, text: bytes, extra: tuple[Any, ...] = ()) -> tuple[str, bytes]:
    """A JSON file with a few values changed or, less often, damaged as text."""
    value = json.loads(text)
    if rng.random() < 0.85:
        try:
            name = change_json(rng, value, extra)
            return f"json {name}", json.dumps(value).encode()
        except RecursionError:  # nested three times
            return "json deep", text.strip()[:-1] + b', "deep": ' + b"[" * 900 + b"]" * 900 + b"}"
    first = json.dumps(next(iter(value), "x") if isinstance(value, dict) else "x").encode()
    deep = rng.choice((100, 5000, 200_000))
    return rng.choice(
        [
            ("json deep", text.strip()[:-1] + b', "deep": ' + b"[" * deep + b"]" * deep + b"}"),
            ("json deep and open", b'{"a":' * deep),
            ("json huge number", text.strip()[:-1] + b', "n": ' + b"9" * 6000 + b"}"),
            ("json huge list", text.strip()[:-1] + b', "n": [' + b"0," * 300_000 + b"0]}"),
            ("json huge text", text.strip()[:-1] + b', "n": "' + b"x" * 2_000_000 + b'"}'),
            (
                "json key twice",
                b"{" + first + b": " + json.dumps(rng.choice(VALUES)).encode() + b"," + text.strip()[1:],
            ),
            ("json key twice, last", text.strip()[:-1] + b", " + first + b": [1]}"),
            ("json other", json.dumps(rng.choice(VALUES)).encode()),
            ("json utf-16", text.decode().encode("utf-16")),
            ("json marked", b"\xef\xbb\xbf" + text),
            damage_bytes(rng, text),
        ]
    )


def damage_bytes(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """Any file cut, lengthened, with bytes changed, or replaced."""
    place = rng.randrange(len(data) + 1)
    junk = rng.randbytes(rng.choice((1, 8, 1000)))
    return rng.choice(
        [
            ("cut", data[:place]),
            ("lengthened", data + junk),
            ("bytes inserted", data[:place] + junk + data[place:]),
            ("bytes changed", data[:place] + junk + data[place + len(junk) :]),
            ("empty", b""),
            ("zeros", bytes(len(data))),
            ("pickle", b"\x80\x04cos\nmkdir\n(Vexploded\ntR."),
            ("zip", b"PK\x03\x04" + data),
        ]
    )


def split(data: bytes) -> tuple[dict[str, Any], bytearray]:
    """Header and tensors of a safetensors file."""
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])


def joined(header: Any, body: bytes, length: int | None = None) -> bytes:
    """The safetensors file of a header (a JSON value, or its text) and tensors."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(body)


def damage_safetensors(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """A safetensors file with another header, or with values that are not allowed."""
    chosen = rng.random()
    if chosen < 0.1:
        return damage_bytes(rng, data)
    header, body = split(data)
    if chosen < 0.55:
        return _values(rng, header, body)
    if chosen < 0.85:
        return _entries(rng, header, body)
    text = json.dumps(header).encode()
    if chosen < 0.95:
        name, text = damage_json(rng, text, (*DTYPES, *SIZES))
        return f"header {name}", joined(text, body)
    length = rng.choice((0, 1, len(text) - 1, len(text) + 1, len(data), 10**8, 10**8 + 1, 2**63, 2**64 - 1))
    return "header length", joined(text, body, length)


def _values(rng: random.Random, header: dict[str, Any], body: bytearray) -> tuple[str, bytes]:
    """A few values of one tensor changed, with a valid header."""
    name = rng.choice([key for key in header if key != "__metadata__"])
    start, end = header[name]["data_offsets"]
    if header[name]["dtype"] not in FLOATS:
        count = rng.choice((1, 3, end - start))
        for place in rng.sample(range(start, end), min(count, end - start)):
            body[place] = rng.choice((0, 1, 80, 121, 242, 243, 254, 255))
        return "codes", joined(header, body)
    values = np.frombuffer(bytes(body[start:end]), FLOATS[header[name]["dtype"]]).copy()
    tiny, huge = np.finfo(values.dtype).smallest_subnormal, np.finfo(values.dtype).max
    value = rng.choice((np.nan, np.inf, -np.inf, -1, -0.0, 0, tiny, -tiny, huge, -huge, 60000, 1e-7, 1e4))
    places = rng.sample(range(len(values)), rng.choice((1, len(values))))
    values[places] = value
    body[start:end] = values.tobytes()
    return f"{'scale' if name.endswith('scale') else 'value'} {value:g}", joined(header, body)


def _entries(rng: random.Random, header: dict[str, Any], body: bytearray) -> tuple[str, bytes]:
    """Dtypes, shapes, offsets and names of the header changed."""
    names = [key for key in header if key != "__metadata__"]
    name, other = rng.choice(names), rng.choice(names)
    entry = header[name]
    kind = rng.choice(
        ("dtype", "shape", "size", "order", "offset", "alias", "rename", "drop", "extra", "swap", "dims")
    )
    if kind == "dtype":
        entry["dtype"] = rng.choice(DTYPES)
    elif kind == "shape":
        entry["shape"] = [rng.choice(SIZES) for _ in range(rng.choice((0, 1, 2, 3)))]
    elif kind == "size":
        entry["shape"][rng.randrange(len(entry["shape"]))] = rng.choice(SIZES)
    elif kind == "order":
        entry["shape"] = entry["shape"][::-1]
    elif kind == "offset":
        entry["data_offsets"][rng.randrange(2)] = rng.choice((*SIZES, len(body), len(body) + 1))
    elif kind == "alias":
        entry["data_offsets"] = header[other]["data_offsets"]
    elif kind == "rename":
        header[rng.choice((name + "x", name[1:], name.upper(), "\0", "__metadata__", "weight_packed"))] = header.pop(
            name
        )
    elif kind == "drop":
        body = _without(header, body, name)
    elif kind == "extra":
        header[f"{name}.extra"] = {"dtype": "U8", "shape": [8], "data_offsets": [len(body), len(body) + 8]}
        body += bytes(8)
    elif kind == "swap":
        header[name], header[other] = header[other], header[name]
    else:
        entry["shape"] = entry["shape"] + [1] * rng.choice((1, 50, 5000))
    return f"tensor {kind}", joined(header, body)


def _without(header: dict[str, Any], body: bytearray, name: str) -> bytearray:
    """The tensors without one, whose entry is removed and whose gap is closed."""
    start, end = header.pop(name)["data_offsets"]
    for entry in (entry for key, entry in header.items() if key != "__metadata__"):
        entry["data_offsets"] = [at - (end - start) if at >= end else at for at in entry["data_offsets"]]
    return body[:start] + body[end:]


def damage_folder(rng: random.Random, folder: Path, name: str) -> str:
    """Removes a file of a folder, or replaces it by something that is not a regular file."""
    file, data = folder / name, (folder / name).read_bytes()
    kind = rng.choice(("missing", "folder", "dangling", "loop", "link out", "device", "pipe", "sparse", "itself"))
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "link out":  # as the Hub's cache has it: this one is sound
        (folder.parent / "outside").write_bytes(data)
        file.symlink_to(folder.parent / "outside")
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "sparse":
        with open(file, "wb") as content:
            content.write(data)
            content.truncate(2**38)
    elif kind != "missing":
        file.symlink_to({"dangling": "nowhere", "loop": name, "device": "/dev/zero", "itself": "."}[kind])
    return f"file {kind}"
