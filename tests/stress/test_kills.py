"""A short slice of `tests/stress/kills.py`: some kills, and the run ends as if there had been none."""

from harness import run


def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bytes():
    found = run("kills.py", "--kills=7", "--seed=1")
    assert found["kills"] >= 7
    assert len(found["kills_by_phase"]) >= 4
    assert found["runs_finished_and_compared"] >= 1
    assert found["faults"] == []
