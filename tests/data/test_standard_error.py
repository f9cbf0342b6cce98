"""The jackknife's standard error: known formulas, units that stay together, scores that have none."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_xtc.data.standard_error import GROUPS, standard_error


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=GROUPS))
def test_of_a_mean_it_is_the_usual_one(values):
    values = np.array(values)
    expected = np.std(values, ddof=1) / math.sqrt(len(values))
    found = standard_error(lambda kept: float(values[kept].mean()), range(len(values)))
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("share", [0.6, 0.9])
@pytest.mark.parametrize("rows", [277, 2000])
def test_of_many_rows_it_is_near_that_of_a_share(share, rows):
    right = np.random.default_rng(3).random(rows) < share
    found = standard_error(lambda kept: float(right[kept].mean()), range(rows))
    assert found == pytest.approx(math.sqrt(right.mean() * (1 - right.mean()) / rows), rel=0.35)


def test_of_a_correlation_it_is_near_fishers():
    chance = np.random.default_rng(0)
    one = chance.normal(size=1500)
    other = 0.9 * one + math.sqrt(1 - 0.9**2) * chance.normal(size=1500)
    found = standard_error(lambda kept: float(np.corrcoef(one[kept], other[kept])[0, 1]), range(1500))
    assert found == pytest.approx((1 - 0.9**2) / math.sqrt(1500), rel=0.35)


@given(st.lists(st.sampled_from("abcdef"), min_size=2, max_size=30))
def test_rows_of_a_unit_stay_together(units):
    def score(kept):
        for unit in set(units):
            assert len({i in kept for i, other in enumerate(units) if other == unit}) == 1
        assert 0 < len(kept) < len(units)
        assert list(kept) == sorted(kept)
        return 1.0

    assert standard_error(score, units) == (0.0 if len(set(units)) > 1 else pytest.approx(math.nan, nan_ok=True))


@pytest.mark.parametrize("units", [[], [7], [7, 7]])
def test_fewer_than_two_units_have_none(units):
    assert math.isnan(standard_error(lambda kept: 1.0, units))


def test_a_score_that_is_not_defined_has_none():
    assert math.isnan(standard_error(lambda kept: math.nan if 0 in kept else 1.0, range(9)))


def test_it_is_the_same_every_time():
    values = np.random.default_rng(1).random(400)
    first, second = (standard_error(lambda kept: float(values[kept].mean()), range(400)) for _ in range(2))
    assert first == second
