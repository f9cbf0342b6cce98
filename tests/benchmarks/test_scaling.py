"""The counters of benchmarks/scaling.py, and that docs/scaling.md shows what they gave."""

import pytest

import scaling

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 50}


@pytest.fixture(scope="module")
def counted():
    """A step with data and one without, two rows of eight tokens."""
    return [run(TINY, 1, 2, 8) for run in (scaling.step, scaling.faked)]


def test_operations_are_those_of_the_formula(counted):
    expected = 2 * (3 * scaling.forward_flops(TINY, 1, 8) + scaling.forward_flops(TINY, 2, 8))
    assert [entry["flops"] for entry in counted] == [expected] * 2


def test_bytes_without_data_are_those_with_data(counted):
    assert counted[0] == counted[1]


@pytest.mark.parametrize("card, fixed, rows", [(16, 1e9, 128), (16, 14.3e9, 0), (16, 20e9, 0), (80, 1e9, 704)])
def test_batches_fit_a_card(card, fixed, rows):
    assert scaling.fitting(card, fixed, 100_000_000) == rows
