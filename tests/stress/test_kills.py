"""A short part of `tests/stress/kills.py`: after some kills, the run ends as if there had been none."""

from harness import run


def test_a_run_that_is_killed_repeatedly_ends_in_the_same_bytes():
    found = run("kills.py", "--kills=7", "--seed=1")
    assert found["kills"] >= 7
    assert len(found["kills_by_phase"]) >= 4
    assert found["runs_finished_and_compared"] >= 1
    assert found["faults"] == []
