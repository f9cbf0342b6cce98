"""The choice of a layout: given times decide, the same every time; processors in the table are not measured."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_xtc.backends import calibration, layouts
from hf_xtc.native.arrays import _LEVELS, BYTES, NIBBLES, PAIRS, SEXTETS

VARIANTS = ["avx512_vbmi", "avx512_vnni", "avx2", "neon_i8mm", "neon_dotprod", "neon", "portable"]
SHAPES = [(64, 64), (384, 1536), (768, 768), (1152, 384), (3072, 768)]


@pytest.fixture
def unknown(monkeypatch):
    """A processor that is not in the table; returns a function that sets its variant and its times."""

    def machine(variant, times):
        asked = []

        def measured(levels, candidates, cached):
            asked.append((levels, cached))
            return calibration.Measurement(times(candidates, cached), "by calibration")

        monkeypatch.setattr(layouts, "processor", lambda: "X")
        monkeypatch.setattr(layouts, "variant", lambda: variant)
        monkeypatch.setattr(layouts, "measured", measured)
        return asked

    return machine


def equal(candidates, cached):
    return {layout: [1.0, 1.0] for layout in candidates}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("quantizer", ["binary", "ternary", "int4"])
def test_defaults_stay_where_nothing_is_clearly_faster(variant, quantizer, unknown):
    unknown(variant, equal)
    usual = {
        ("avx512_vbmi", "binary"): SEXTETS,
        ("avx512_vbmi", "ternary"): PAIRS,
        ("avx512_vnni", "binary"): PAIRS,
        ("avx512_vnni", "ternary"): PAIRS,
        ("avx2", "binary"): NIBBLES,
        ("neon", "binary"): NIBBLES,
    }
    default = usual.get((variant, quantizer), BYTES)
    assert {layouts.fastest_layout(quantizer, *shape) for shape in SHAPES} == {default}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("quantizer, levels", [("binary", 2), ("ternary", 3), ("int4", 16), ("int8", 256)])
def test_candidates_hold_the_levels(variant, quantizer, levels):
    found = layouts.candidates(variant, quantizer)
    assert len(set(found)) == len(found) >= 1
    if levels <= 16:
        assert all(levels in _LEVELS[layout] for layout in found)


def test_times_decide_by_shape(unknown):
    def times(candidates, cached):
        return {NIBBLES: [1.0], BYTES: [0.5 if cached else 2.0]}

    asked = unknown("avx2", times)
    assert [layouts.fastest_layout("binary", *shape) for shape in SHAPES] == [BYTES, BYTES, NIBBLES, BYTES, NIBBLES]
    assert asked == [(2, cached) for cached in (True, True, False, True, False)]


def test_one_shape_is_measured_for_a_model(unknown):
    asked = unknown("avx2", equal)
    for rows, columns in ((2304, 768), (768, 768), (3072, 768), (768, 3072)):
        layouts.fastest_layout("binary", rows, columns)
    assert set(asked) == {(2, False)}


@pytest.mark.parametrize(
    "times, chosen",
    [
        ({NIBBLES: [1.0, 1.0], BYTES: [0.96, 0.96]}, NIBBLES),
        ({NIBBLES: [1.0, 1.0], BYTES: [0.94, 0.94]}, BYTES),
        ({NIBBLES: [1.0, 2.0], BYTES: [1.5, 1.0]}, BYTES),  # 2 times as slow in a cell, against 1.5 times
        ({NIBBLES: [1.0, 1.5], BYTES: [2.0, 1.0]}, NIBBLES),
        ({SEXTETS: [1.0, 1.0], NIBBLES: [0.5, 3.0], BYTES: [3.0, 0.5]}, SEXTETS),
    ],
)
def test_the_worst_cell_counts_and_the_default_has_a_margin(times, chosen):
    assert layouts.fastest(times, next(iter(times))) == chosen


seconds = st.floats(1e-6, 1.0)


@given(st.lists(st.tuples(seconds, seconds, seconds), min_size=1, max_size=4))
def test_the_choice_is_nearly_the_best_whatever_the_order(cells):
    times = {layout: [cell[i] for cell in cells] for i, layout in enumerate((NIBBLES, BYTES, SEXTETS))}
    worst = {layout: max(own / min(cell) for own, cell in zip(times[layout], cells, strict=True)) for layout in times}
    chosen = layouts.fastest(times, NIBBLES)
    assert worst[chosen] <= 1.05 * min(worst.values()) * (1 + 1e-12)
    assert chosen == layouts.fastest(dict(reversed(times.items())), NIBBLES)


def test_a_processor_in_the_table_is_not_measured(monkeypatch):
    monkeypatch.setattr(layouts, "_TABLE", {"X": {("avx2", "ternary"): (BYTES, PAIRS)}})
    monkeypatch.setattr(layouts, "processor", lambda: "X")
    monkeypatch.setattr(layouts, "variant", lambda: "avx2")
    monkeypatch.setattr(layouts, "measured", lambda *_: pytest.fail("measured"))
    assert [layouts.fastest_layout("ternary", *shape) for shape in SHAPES] == [BYTES, BYTES, PAIRS, BYTES, PAIRS]


def test_the_table_names_candidates():
    for by_variant in layouts._TABLE.values():
        for (variant, quantizer), chosen in by_variant.items():
            assert set(chosen) <= set(layouts.candidates(variant, quantizer))


def test_the_choice_in_words(unknown):
    unknown("avx2", equal)
    start = "the native operator (avx2) on X: "
    assert layouts.describe_choice("binary", 768, 3072) == (
        start + "binary weights of more than 512 rows and columns as nibbles, by calibration"
    )
    assert layouts.describe_choice("ternary", 1152, 384) == (
        start + "ternary weights of at most 512 rows or columns as bytes, by calibration"
    )
    assert layouts.describe_choice("int4", 5, 5) == start + "int4 weights as bytes, without another way"
