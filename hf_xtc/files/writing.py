"""Files: written whole or not at all, and read only when their header says what the model expects.

Knows folders, safetensors headers and JSON; no models. Nothing is ever unpickled.
"""

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
from hf_xtc.files.lock import LOCK_FILE

# What a process is writing; where none writes, the rest of one that was killed.
SCRATCH = ".incomplete-"
WEIGHT_FILES = ("model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json")
# The code that packed folders carried in earlier versions. They still load; a model saved over one replaces it.
OLD_CODE = "modeling_xtc_bert.py"


@contextmanager
def writing(target: str | os.PathLike[str], *, kept: str = "Nothing half-written was left there.") -> Iterator[None]:
    """Turns a write that fails, whichever library says so and how, into an error that names the place and its space.

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
        raise StateError(f"Could not write {target}: {cause}{_room(target, cause)}. {kept}".rstrip()) from error


def _room(target: str | os.PathLike[str], cause: str) -> str:
    """The space there is, where that may be the cause."""
    place = next((path for path in Path(target).absolute().parents if path.is_dir()), None)
    if place is None or not any(words in cause for words in ("No space", "quota", "too large", "to its end")):
        return ""
    return f" ({shutil.disk_usage(place).free:,} bytes are free)"


@contextmanager
def whole_folder(folder: str | os.PathLike[str], *, replaces: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yields an empty folder inside `folder`; on success its files move into `folder`, on failure nothing is left.

    Every file is renamed into place, so a reader sees the old file or the new one, never a part. `config.json` moves
    last, and an old one that differs goes first where weights are replaced: `from_pretrained` refuses a
    folder without it. Inside a folder that another `whole_folder` yielded, that one does it all.

    Args:
        folder (`str` or `os.PathLike`): Where the files shall be; made if missing.
        replaces (`tuple[str, ...]`): Globs of the files that belong together (weights and their shards): where one is
            written, those of an earlier save are removed.

    Raises:
        StateError: if the files cannot be written (disk full, read-only folder); names the cause.
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
    mode = _default_mode(scratch)
    files = sorted((f for f in scratch.rglob("*") if f.is_file()), key=lambda f: (f.name == "config.json", f))
    if any(any(scratch.glob(pattern)) for pattern in replaces):  # else nothing supersedes the earlier files
        old, new = target / "config.json", scratch / "config.json"
        if new.exists() and old.exists() and old.read_bytes() != new.read_bytes():
            old.unlink()
        for stale in {file for pattern in replaces for file in target.glob(pattern)}:
            if not (scratch / stale.name).exists():
                stale.unlink()
    for file in files:
        place = target / file.relative_to(scratch)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.chmod(mode)  # safetensors writes files that other users cannot read
        os.replace(file, place)


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
    """Writes UTF-8 text under a temporary name and renames it.

    Raises:
        StateError: if the file cannot be written; names the cause.
    """
    target = Path(path)
    scratch = target.with_name(f"{SCRATCH}{target.name}")
    try:
        with writing(target, kept=""):
            scratch.write_text(text, encoding="utf-8")
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
        if not _finished(folder):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _finished(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: Trainer writes its state last."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def last_checkpoint(folder: str | os.PathLike[str]) -> str | None:
    """The newest `checkpoint-*` folder of a training that was written to its end, or `None`."""
    found = [path for path in Path(folder).glob("checkpoint-*") if _finished(path)]
    return str(max(found, key=lambda path: int(path.name.rpartition("-")[2]))) if found else None


def clear_unfinished(*folders: Path) -> None:
    """Removes what processes that were killed had begun in these folders: scratch, and checkpoints without an end.

    Nobody else may be writing there.
    """
    for folder in folders:
        for path in [*folder.glob(f"{SCRATCH}*"), *folder.glob("checkpoint-*")]:
            if path.name.startswith(SCRATCH) or (path.is_dir() and not _finished(path)):
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
    rests = (LOCK_FILE, SCRATCH)
    if path.is_dir() and not overwrite and not all(file.name.startswith(rests) for file in path.iterdir()):
        raise XTCError(f"The folder {path} is not empty. Give another --output_dir, or --overwrite to replace it.")
