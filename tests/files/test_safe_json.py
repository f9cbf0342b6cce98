"""JSON from outside: read only from regular files; anything else gives an error of a known type."""

import os

import pytest

from hf_xtc.files.safe_json import MOST_BYTES, parse_json, read_json


def test_files_that_are_written_can_be_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1, "é"]}', encoding="utf-8")
    assert read_json(tmp_path / "a.json") == parse_json('{"a": [1, "é"]}') == {"a": [1, "é"]}


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"a":' * 100_000, "9" * 5000])
def test_every_invalid_text_is_a_value_error(text):
    with pytest.raises(ValueError):
        parse_json(text)


def test_pipes_devices_folders_and_holes_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    with open(tmp_path / "large", "wb") as content:
        content.truncate(MOST_BYTES + 1)
    for name in ("pipe", "device", "folder", "loop", "large", "missing"):
        with pytest.raises(OSError):
            read_json(tmp_path / name)
