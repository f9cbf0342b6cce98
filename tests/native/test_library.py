"""Loading of the native operator: a library that is not this package's own is not used, with a warning."""

from pathlib import Path

import pytest
import torch

from hf_xtc.errors import XTCError
from hf_xtc.native import library as native_library


def test_an_unknown_variant(monkeypatch):
    monkeypatch.setenv("XTC_NATIVE", "sse9")
    with pytest.raises(
        XTCError, match=r"^XTC_NATIVE='sse9' is not a variant of the native operator here; use one of: "
    ):
        native_library.variant()


def test_off(monkeypatch):
    monkeypatch.setenv("XTC_NATIVE", "off")
    assert native_library.variant() is None


def test_a_library_of_another_version_is_not_used(caplog):
    """For example one of an older version of the package, without this interface version."""
    path = Path(torch._C.__file__)
    assert native_library._load(path) is None
    assert caplog.messages == [
        f"The native operator {path.name} was built from other sources; install the package again."
    ]


def test_a_library_that_cannot_be_loaded(tmp_path, caplog):
    path = tmp_path / "_native.so"
    path.write_bytes(b"nothing")
    assert native_library._load(path) is None
    assert caplog.messages[0].startswith("The native operator _native.so cannot be loaded: ")
