"""The exception tree: as drawn in the docstring, complete, and caught as documented."""

import inspect
import re

import pytest

import hf_xtc  # noqa: F401  (so that every module's exceptions are defined)
from hf_xtc import errors
from hf_xtc.errors import XTCError

LEAVES = ["RecipeError", "DataError", "PackedFileError", "StateError", "HubError", "ExtraError"]
ALSO = {"ExtraError": (ImportError,), "PackedFileError": (RuntimeError,)}


def defined():
    """All exception classes of the package except the root, in whatever module."""
    found, pending = [], [XTCError]
    while pending:
        children = [child for child in pending.pop().__subclasses__() if child.__module__.startswith("hf_xtc")]
        found += children
        pending += children
    return found


def test_the_tree_in_the_docstring_is_the_real_one():
    root = re.search(r"^(\w+) \((\w+)\)$", errors.__doc__, re.MULTILINE)
    assert root.groups() == (XTCError.__name__, XTCError.__bases__[0].__name__)
    assert re.findall(r"^[├└]── (\w+)  +\S", errors.__doc__, re.MULTILINE) == LEAVES
    assert [child.__name__ for child in defined()] == LEAVES


def test_all_are_defined_in_one_module():
    classes = {
        value for _, value in inspect.getmembers(errors, inspect.isclass) if value.__module__ == errors.__name__
    }
    assert classes == {XTCError, *defined()}


@pytest.mark.parametrize("name", LEAVES)
def test_each_leaf_is_an_xtc_error(name):
    leaf = getattr(errors, name)
    assert leaf.__bases__ == (XTCError, *ALSO.get(name, ()))
    assert leaf.__doc__.endswith(".")
    with pytest.raises(ValueError, match=r"^what is wrong$"):
        raise leaf("what is wrong")


def test_no_leaf_catches_another():
    caught = {a.__name__: [b.__name__ for b in defined() if issubclass(b, a)] for a in defined()}
    assert caught == {name: [name] for name in LEAVES}
