"""A folder for one process at a time: a `filelock` on the file `.lock` in it, which ends with its process.

Adds to the library what runs need: a message that names the process that holds the folder (its name stands in
`.lock_holder`), making the folder when it is taken, and leaving no file behind. A process that was killed leaves both
files, and the next one takes them over. Forked children, such as the workers of a data loader, do not hold the lock.
"""

import errno
import logging
import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hf_xtc.errors import StateError
from hf_xtc.files.writing import LOCK_FILE

logger = logging.getLogger(__name__)

HOLDER_FILE = ".lock_holder"
_CANNOT_LOCK = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


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
        self._lock = FileLock(self.folder / LOCK_FILE, thread_local=False)
        self._holder: int | None = None  # process id; a forked child has another
        self._made = False

    @property
    def held(self) -> bool:
        """Whether this process holds the folder."""
        return self._holder == os.getpid()

    def __enter__(self) -> "FolderLock":
        if self.folder.is_dir():
            self.take()
        return self

    def __exit__(self, *_: Any) -> None:
        if not self.held:
            return
        self._holder = None
        with suppress(OSError):
            (self.folder / HOLDER_FILE).unlink()
        # Removed before it is unlocked, so that no other process loses its lock; Windows removes it on release.
        with suppress(OSError):
            (self.folder / LOCK_FILE).unlink()
        self._lock.release()
        if self._made:
            with suppress(OSError):  # the folder is not empty
                self.folder.rmdir()

    def take(self) -> None:
        """Takes the folder, which is made if missing; nothing if it is taken already."""
        if self.held or not self._wanted:
            return
        doing = "make"
        try:
            if not self.folder.exists():
                self.folder.mkdir(parents=True)
                self._made = True
            doing = "lock"
            self._acquire()
        except OSError as error:
            raise StateError(f"Could not {doing} the folder {self.folder}: {error}.") from error
        self._holder = os.getpid()
        with suppress(OSError):  # on a full disk the name is not written, and the lock still holds
            (self.folder / HOLDER_FILE).write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")

    def _acquire(self) -> None:
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            holder = self._read_holder()
            if not self._wait:
                raise StateError(
                    f"The folder {self.folder} is in use by another run ({holder}); wait for its end, or give another "
                    "--output_dir."
                ) from None
            logger.info("Waiting for the folder %s, which %s writes.", self.folder, holder)
            self._lock.acquire()
        except OSError as error:
            if error.errno not in _CANNOT_LOCK:
                raise
            logger.warning("%s cannot be locked (%s): make sure that only one process writes it.", self.folder, error)

    def _read_holder(self) -> str:
        with suppress(OSError, ValueError):
            return (self.folder / HOLDER_FILE).read_text(encoding="utf-8") or "another process"
        return "another process"
