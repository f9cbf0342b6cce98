"""Timing of products: least times, in turns, by a clock that the test holds."""

import pytest

from hf_xtc.native import arrays, library, timing

pytestmark = pytest.mark.skipif(not library.variants(), reason="the native operator is not built")


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("levels, layouts", [(2, (arrays.NIBBLES, arrays.BYTES)), (3, (arrays.BYTES, arrays.PAIRS))])
def test_every_layout_is_timed_in_every_cell(levels, layouts, cached):
    found = timing.product_seconds(levels, layouts, 130, 70, cached=cached)
    assert tuple(found) == layouts
    assert all(len(seconds) == len(timing.TOKENS) * (1 + cached) and min(seconds) > 0 for seconds in found.values())


def test_layouts_take_turns_and_the_least_time_counts(monkeypatch):
    """A call by the layout `n` lasts n + 1 seconds; while the first of the rounds runs, the machine is disturbed."""
    calls = []
    seconds = 0.0

    def call(function, weight, x, tokens, out, *, threads):
        nonlocal seconds
        layout = weight._obj.layout
        calls.append((layout, tokens))
        seconds += layout + 1 + (50 if len(calls) <= 2 else 0)
        assert (function, threads) == ("xtc_linear", 1)

    monkeypatch.setattr(timing, "call", call)
    found = timing.product_seconds(2, (2, 0), 64, 64, cached=False, clock=lambda: seconds)
    assert found == {2: [3.0, 3.0], 0: [1.0, 1.0]}
    assert calls == [(layout, tokens) for tokens in timing.TOKENS for _ in range(3) for layout in (2, 0)]


def test_codes_are_aligned_and_within_the_levels():
    for levels, size in ((2, 5000), (3, 64)):
        codes = timing._random_codes(levels, size)
        assert (codes.size, codes.ctypes.data % 64, int(codes.max())) == (size, 0, levels - 1)


def test_without_the_native_operator(monkeypatch):
    monkeypatch.setattr(timing, "library", lambda: None)
    with pytest.raises(RuntimeError, match="was not built"):
        timing.product_seconds(2, (0,), 64, 64, cached=False)
