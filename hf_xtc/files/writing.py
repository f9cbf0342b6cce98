"""Writes files, folders and checkpoints whole or not at all, and cleans up after interrupted writes."""

import filecmp
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hf_xtc.errors import StateError, XTCError

LOCK_FILE = ".lock"
# Prefix of files and folders that are being written, or that a killed process left behind.
SCRATCH = ".incomplete-"
WEIGHT_FILES = ("model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json")
# Code file that earlier versions put into packed folders. These still load; saving a model into one removes it.
OLD_CODE = "modeling_xtc_bert.py"


@contextmanager
def writing(target: str | os.PathLike[str], *, kept: str = "Nothing half-written was left there.") -> Iterator[None]:
    """Turns a failed write, in any library, into a `StateError` with the target, the cause and the free space.

    Raises:
        StateError: if a file cannot be written (disk full, read-only folder); names the cause.
    """
    try:
        yield
    except XTCError:
        raise
    except Exception as error:
        if isinstance(error, OSError | SafetensorError) or "(os error " in str(error):  # tokenizers: a bare Exception
            cause = str(error)
        elif any(words in str(error) for words in ("inline_container", "basic_ios", "PytorchStreamWriter")):
            cause = "PyTorch could not write a file to its end"
        else:
            raise
        raise StateError(f"Could not write {target}: {cause}{_free_space(target, cause)}. {kept}".rstrip()) from error


def _free_space(target: str | os.PathLike[str], cause: str) -> str:
    """The free space, in words, if a full disk may be the cause; else empty."""
    place = next((path for path in Path(target).absolute().parents if path.is_dir()), None)
    if place is None or not any(words in cause for words in ("No space", "quota", "too large", "to its end")):
        return ""
    return f" ({shutil.disk_usage(place).free:,} bytes are free)"


@contextmanager
def whole_folder(folder: str | os.PathLike[str], *, replaces: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yields an empty folder inside `folder`; on success its files move into `folder`, on failure nothing is left.

    Every file is renamed into place, so a reader sees the old file or the new one, never a part. If a file cannot be
    moved, or the user interrupts, the files that were there come back. `config.json` moves last; an old one is removed
    first if it differs or if several files of weights change, so that a process that is killed in between leaves a
    folder that `from_pretrained` refuses. Inside a folder that another `whole_folder` yielded, files are written there
    directly.

    Args:
        folder (`str` or `os.PathLike`): Destination; created if missing.
        replaces (`tuple[str, ...]`): Globs of files that belong together (weights and their shards): if one is
            written, those of an earlier save are removed.

    Raises:
        StateError: if the files cannot be written (disk full, read-only folder, a file in use); names the cause, and
            what is in the folder if the earlier files could not be put back.
    """
    target = Path(folder)
    if target.name.startswith(SCRATCH):
        yield target
        return
    created = not target.exists()
    scratch: Path | None = None
    try:
        with writing(target):
            target.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=target))
            yield scratch
            _move(scratch, target, replaces)
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        if created and target.is_dir() and not any(target.iterdir()):
            target.rmdir()


def _move(scratch: Path, target: Path, replaces: tuple[str, ...]) -> None:
    """Moves the files of `scratch` into `target`, all or none; see `whole_folder`."""
    mode = _default_mode(scratch)
    files = sorted((f for f in scratch.rglob("*") if f.is_file()), key=lambda f: (f.name == "config.json", f))
    earlier = _Earlier(target, scratch / f"{SCRATCH}earlier")
    try:
        for stale in _stale(scratch, target, replaces):
            earlier.keep(stale)
            stale.unlink()
        for file in files:
            place = target / file.relative_to(scratch)
            file.chmod(mode)  # safetensors writes files that other users cannot read
            earlier.keep(place)
            os.replace(file, place)
    except BaseException as error:
        if lost := earlier.restore():
            saved = target / scratch.name.replace(SCRATCH, "earlier-", 1)
            with suppress(OSError):
                (target / "config.json").unlink()
            with suppress(OSError):
                earlier.folder.rename(saved)
            raise StateError(
                f"Could not write {target}: {str(error) or type(error).__name__}. Nor could {', '.join(lost)} be put "
                f"back: the folder holds files of two saves, and no model that loads. The earlier ones are in {saved}."
            ) from error
        raise


def _stale(scratch: Path, target: Path, replaces: tuple[str, ...]) -> list[Path]:
    """The files to remove before those of `scratch` move into `target`; see `whole_folder`."""
    written = {file.name for pattern in replaces for file in scratch.glob(pattern)}
    if not written:  # earlier weights stay valid
        return []
    earlier = {file for pattern in replaces for file in target.glob(pattern)}
    stale = sorted(file for file in earlier if file.name not in written)
    old, new = target / "config.json", scratch / "config.json"
    together = len(written) + len(stale) > 1
    if new.exists() and old.exists() and (together or old.read_bytes() != new.read_bytes()):
        stale.insert(0, old)
    return stale


class _Earlier:
    """The files that others are about to replace in `target`: kept in `folder`, to be put back after a failure."""

    def __init__(self, target: Path, folder: Path):
        self.target = target
        self.folder = folder
        self.kept: dict[Path, Path | None] = {}  # place -> its earlier file, or None if there was none
        self.made: list[Path] = []
        folder.mkdir()

    def keep(self, place: Path) -> None:
        """Keeps the file at `place`, if there is one, and makes the folder it is in."""
        if place in self.kept:
            return
        self.made += reversed([folder for folder in place.parents if not folder.exists()])
        place.parent.mkdir(parents=True, exist_ok=True)
        copy = self.folder / place.relative_to(self.target) if place.is_file() else None
        if copy is not None:
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(place.resolve(), copy)  # the file stays in its place too
            except OSError:  # a file system without links
                shutil.copy2(place, copy)
        self.kept[place] = copy

    def restore(self) -> list[str]:
        """Puts everything back; returns the paths, relative to the target, for which that failed."""
        lost = []
        for place, copy in self.kept.items():
            try:
                if copy is None:
                    if place.is_file():
                        place.unlink()
                elif not place.is_file() or not filecmp.cmp(place, copy, shallow=False):
                    os.replace(copy, place)
            except OSError:
                lost.append(str(place.relative_to(self.target)))
        for folder in reversed(self.made):
            with suppress(OSError):
                folder.rmdir()
        return sorted(lost)


def _default_mode(folder: Path) -> int:
    """The permissions that the user's umask gives a new file."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    return mode


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes JSON under a temporary name and renames it.

    Raises:
        StateError: if the file cannot be written; names the cause.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes UTF-8 text, as `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file under a temporary name and renames it.

    Raises:
        StateError: if the file cannot be written; names the cause.
    """
    target = Path(path)
    scratch = target.with_name(f"{SCRATCH}{target.name}")
    try:
        with writing(target, kept=""):
            scratch.write_bytes(content)
            os.replace(scratch, target)
    except StateError:
        with suppress(OSError):  # on a read-only disk even removing a file that is not there fails
            scratch.unlink()
        raise


@contextmanager
def whole_checkpoint(folder: Path) -> Iterator[None]:
    """Removes a `checkpoint-*` folder whose writing fails; earlier ones stay.

    Raises:
        StateError: if it cannot be written (disk full, read-only folder); names the cause.
    """
    try:
        with writing(folder, kept="Earlier checkpoints are kept; make room and start again."):
            yield
    except BaseException:
        if not _is_complete(folder):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written completely: Trainer writes its state last."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def last_checkpoint(folder: str | os.PathLike[str]) -> str | None:
    """The newest complete `checkpoint-*` folder in the folder of a training run, or `None`."""
    found = [path for path in Path(folder).glob("checkpoint-*") if _is_complete(path)]
    return str(max(found, key=lambda path: int(path.name.rpartition("-")[2]))) if found else None


def clear_unfinished(*folders: Path) -> None:
    """Removes what killed processes left in these folders: scratch files and incomplete checkpoints.

    No other process may be writing there.
    """
    for folder in folders:
        for path in [*folder.glob(f"{SCRATCH}*"), *folder.glob("checkpoint-*")]:
            if path.name.startswith(SCRATCH) or (path.is_dir() and not _is_complete(path)):
                shutil.rmtree(path, ignore_errors=True)
                with suppress(OSError):  # a file
                    path.unlink()


def require_empty(folder: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Checks that results may go into `folder`.

    Raises:
        XTCError: if it is a file, or holds files (other than a lock and scratch) and `overwrite` is false.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise XTCError(f"{path} is a file; results need a folder. Give another --output_dir.")
    ignored = (LOCK_FILE, SCRATCH)
    if path.is_dir() and not overwrite and not all(file.name.startswith(ignored) for file in path.iterdir()):
        raise XTCError(f"The folder {path} is not empty. Give another --output_dir, or --overwrite to replace it.")
