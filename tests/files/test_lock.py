"""A folder is locked by one process: a second one gets the first one's id, and a lock ends with its process."""

import errno
import multiprocessing
import os
import platform
import re
import signal
import time

import pytest
from lock_holder import hold

from hf_xtc.errors import StateError
from hf_xtc.files.lock import HOLDER_FILE, FolderLock
from hf_xtc.files.writing import LOCK_FILE


def test_a_second_process_is_refused_with_the_pid_of_the_first(tmp_path):
    with hold(tmp_path) as holder:
        text = (
            f"The folder {tmp_path} is in use by another run (process {holder.pid} on {platform.node()}); wait for "
            "its end, or give another --output_dir."
        )
        with pytest.raises(StateError, match=f"^{re.escape(text)}$"), FolderLock(tmp_path):
            pytest.fail("two processes hold the folder")
        holder.kill()


def test_a_killed_process_releases_its_lock(tmp_path):
    with hold(tmp_path) as holder:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert (tmp_path / LOCK_FILE).exists()
    with FolderLock(tmp_path) as lock:
        assert lock.held
        assert (tmp_path / HOLDER_FILE).read_text() == f"process {os.getpid()} on {platform.node()}"
    assert list(tmp_path.iterdir()) == []


def test_a_waiting_process_gets_the_lock_when_it_is_released(tmp_path, caplog):
    with hold(tmp_path, 0.3) as holder, caplog.at_level("INFO", logger="hf_xtc.files.lock"):
        with FolderLock(tmp_path, wait=True) as lock:
            assert lock.held
        assert f"process {holder.pid} on" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_locking_creates_a_missing_folder_and_removes_it_if_it_stays_empty(tmp_path):
    folder = tmp_path / "a" / "b"
    with FolderLock(folder) as lock:
        assert not folder.exists()
        assert not lock.held
        lock.take()
        lock.take()
        assert lock.held
        assert {path.name for path in folder.iterdir()} == {LOCK_FILE, HOLDER_FILE}
    assert not folder.exists()
    with FolderLock(folder) as lock:
        lock.take()
        (folder / "notes").touch()
    assert [path.name for path in folder.iterdir()] == ["notes"]


def test_an_unwanted_lock_is_not_taken(tmp_path):
    with FolderLock(tmp_path, wanted=False) as lock:
        lock.take()
        assert not lock.held
        assert list(tmp_path.iterdir()) == []


def test_a_folder_is_held_within_a_process_too(tmp_path):
    with FolderLock(tmp_path), pytest.raises(StateError, match=rf"\(process {os.getpid()} on"), FolderLock(tmp_path):
        pytest.fail("held twice")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_worker_that_outlives_its_parent_does_not_hold_the_folder(tmp_path):
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    with FolderLock(tmp_path):
        worker.start()
    try:
        (tmp_path / LOCK_FILE).touch()
        with FolderLock(tmp_path) as lock:
            assert lock.held
    finally:
        worker.kill()
        worker.join()


@pytest.mark.skipif(os.name == "nt", reason="flock is of Unix")
def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, caplog, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with FolderLock(tmp_path) as lock:
        assert lock.held
    assert "cannot be locked" in caplog.text
    assert "make sure that only one process writes it" in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_that_leaves_the_context_does_not_unlock(tmp_path):
    with FolderLock(tmp_path) as lock:
        child = os.fork()
        if child == 0:
            lock.__exit__()
            os._exit(int(lock.held))
        assert os.waitpid(child, 0)[1] == 0
        assert {path.name for path in tmp_path.iterdir()} == {LOCK_FILE, HOLDER_FILE}
        with pytest.raises(StateError, match="in use by another run"), FolderLock(tmp_path):
            pytest.fail("the child unlocked the folder")


def test_a_folder_that_cannot_be_made_or_locked_gives_the_cause(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / LOCK_FILE).mkdir()
    with pytest.raises(StateError, match=r"^Could not lock the folder .*: .*Is a directory"), FolderLock(tmp_path):
        pytest.fail("a folder is no lock")
    with (
        pytest.raises(StateError, match=r"^Could not make the folder .*file/x: .*Not a directory"),
        FolderLock(tmp_path / "file" / "x") as lock,
    ):
        lock.take()
