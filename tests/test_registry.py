"""Registry: entries by name, duplicates are refused, a typo gives the known names."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_xtc.errors import XTCError
from hf_xtc.registry import Registry

names = st.sets(st.text(min_size=1, max_size=8), min_size=1, max_size=6)


def refuses(text):
    return pytest.raises(XTCError, match=f"^{re.escape(text)}$")


@pytest.fixture
def colours():
    table = Registry("colour")

    @table.register("red")
    class Red:
        pass

    @table.register("blue")
    class Blue:
        pass

    return table


def test_register_returns_the_object_itself():
    table = Registry("colour")

    def green():
        return 3

    assert table.register("green")(green) is green
    assert table["green"] is green
    assert dict(table) == {"green": green}


def test_unknown_name(colours):
    with refuses("Unknown colour 'rde'; registered: blue, red."):
        colours["rde"]


def test_lookup_of_an_unknown_name_adds_no_entry(colours):
    with pytest.raises(XTCError):
        colours["rde"]
    assert "rde" not in colours
    assert colours.get("rde") is None


def test_duplicate(colours):
    red = colours["red"]
    with refuses(f"colour 'red' is already registered (by {__name__})."):
        colours.register("red")
    assert colours["red"] is red


def test_tables_are_separate(colours):
    other = Registry("colour")
    other.register("red")(3)
    assert other["red"] == 3
    assert isinstance(colours["red"], type)


@given(names)
def test_every_name_comes_back(taken):
    table = Registry("thing")
    for name in taken:
        table.register(name)(name.upper())
    assert {name: table[name] for name in taken} == {name: name.upper() for name in taken}
    with refuses(f"Unknown thing 'missing name'; registered: {', '.join(sorted(taken))}."):
        table["missing name"]
