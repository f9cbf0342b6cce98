"""A folder for one process at a time: the lock ends with its process, however that ends, and never outlives it.

It is `flock` on the file `.lock`, which is removed on release; a process that was killed leaves the file, unlocked,
and the next one takes it. Children do not hold it. Where there is no `flock` (Windows, some network disks) nothing is
locked.
"""

import logging
import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from hf_xtc.errors import StateError

try:
    import fcntl
except ImportError:  # pragma: no cover (Windows)
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"


class FolderLock:
    """A context that takes a folder where there is one, or later with `take`, and gives it back at its end.

    Args:
        folder (`str` or `os.PathLike`): To be taken.
        wait (`bool`, *optional*): Wait for another process instead of refusing.
        wanted (`bool`, *optional*): Without it nothing is ever taken: of several processes of one run the first locks.

    Raises:
        StateError: if another process holds the folder (says which), or the lock cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str], *, wait: bool = False, wanted: bool = True):
        self.folder, self._wait, self._wanted = Path(folder), wait, wanted
        self._file: IO[str] | None = None
        self._made = False

    @property
    def held(self) -> bool:
        """Whether this process holds the folder."""
        return self._file is not None

    def __enter__(self) -> "FolderLock":
        if self.folder.is_dir():
            self.take()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._file is not None:
            _HELD.discard(self)
            with suppress(OSError):
                (self.folder / LOCK_FILE).unlink()
            self._file.close()
            self._file = None
        if self._made:
            with suppress(OSError):  # it holds something now
                self.folder.rmdir()

    def take(self) -> None:
        """Takes the folder, which is made if missing; nothing if it is taken already."""
        if fcntl is None or self._file is not None or not self._wanted:
            return
        doing = "make"
        try:
            if not self.folder.exists():
                self.folder.mkdir(parents=True)
                self._made = True
            doing = "lock"
            while self._file is None:
                self._file = self._try()
        except OSError as error:
            raise StateError(f"Could not {doing} the folder {self.folder}: {error}.") from error
        _HELD.add(self)
        with suppress(OSError):  # on a full disk the name is not written, and the lock still holds
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {platform.node()}")
            self._file.flush()

    def _try(self) -> IO[str] | None:
        """The file, locked; `None` if it was removed before it was locked."""
        path = self.folder / LOCK_FILE
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (open as long as it is held)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._meet(file)
        except OSError as error:
            logger.warning("%s cannot be locked (%s): see to it that one process alone writes it.", self.folder, error)
            return file
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()
        return None

    def _meet(self, file: IO[str]) -> None:
        """Another process holds the folder: waits for it, or refuses."""
        file.seek(0)
        who = file.read() or "another process"
        if not self._wait:
            file.close()
            raise StateError(
                f"The folder {self.folder} is in use by another run ({who}); wait for its end, or give another "
                "--output_dir."
            )
        logger.info("Waiting for the folder %s, which %s writes.", self.folder, who)
        fcntl.flock(file, fcntl.LOCK_EX)


_HELD: set[FolderLock] = set()


def _forget() -> None:
    """In a forked child, such as a worker of a data loader, which may outlive its parent: closes what it inherited."""
    for lock in _HELD:
        if lock._file is not None:
            lock._file.close()
            lock._file, lock._made = None, False
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
