"""A short slice of `tests/stress/full_disk.py`: writes fail, a sentence says so, and the run goes on later."""

from harness import run


def test_a_run_that_cannot_write_says_so_and_goes_on_when_it_can():
    found = run("full_disk.py", "--limit_kb", "16", "48")
    assert found["stops"] == 2
    assert found["faults"] == []
    assert all("bytes are free)" in message for message in found["messages"])
