"""A short part of `tests/stress/full_disk.py`: failed writes give one message, and the run resumes later."""

from harness import run


def test_a_run_on_a_full_disk_gives_one_message_and_resumes_with_space():
    found = run("full_disk.py", "--limit_kb", "16", "48")
    assert found["stops"] == 2
    assert found["faults"] == []
    assert all("bytes are free)" in message for message in found["messages"])
