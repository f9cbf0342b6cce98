"""Files: written whole or not at all, and read only when their header says what the model expects.

Knows folders, safetensors headers and JSON; no models. Nothing is ever unpickled.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hf_xtc.errors import PackedFileError, StateError, XTCError
from hf_xtc.lock import LOCK_FILE

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I64": torch.int64,
}
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

# What a process is writing; where none writes, the rest of one that was killed.
SCRATCH = ".incomplete-"
WEIGHT_FILES = ("model.safetensors", "model-?????-of-?????.safetensors", "model.safetensors.index.json")


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
    last, and an old one that differs goes first where weights are replaced: a folder without it is none that
    `from_pretrained` takes. Inside a folder that another `whole_folder` yielded, that one does it all.

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
        file.chmod(mode)  # safetensors writes files that nobody else may read
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


def tensor_bytes(file: str | os.PathLike[str]) -> int:
    """Bytes of a safetensors file less its header: those of its tensors."""
    with open(file, "rb") as content:
        header = int.from_bytes(content.read(8), "little")
    return os.path.getsize(file) - 8 - header


def weights_sha256(folder: str | os.PathLike[str]) -> str | None:
    """sha256 (hex) of a folder's `model.safetensors`; `None` if its weights are in shards."""
    file = Path(folder) / "model.safetensors"
    if not file.is_file():
        return None
    return str(file_sha256(file).hexdigest())


def file_sha256(file: str | os.PathLike[str]) -> Any:
    """The sha256 of a file, as `hashlib` gives it; the file need not fit into memory."""
    digest = hashlib.sha256()  # Python 3.10 has no hashlib.file_digest
    with open(file, "rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest


def require_empty(folder: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Checks that results may go into `folder`.

    Raises:
        XTCError: if it is a file, or holds files (a lock and scratch are none) and `overwrite` is false.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise XTCError(f"{path} is a file; results need a folder. Give another --output_dir.")
    rests = (LOCK_FILE, SCRATCH)
    if path.is_dir() and not overwrite and not all(file.name.startswith(rests) for file in path.iterdir()):
        raise XTCError(f"The folder {path} is not empty. Give another --output_dir, or --overwrite to replace it.")


def read_header(file: str | os.PathLike[str]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Name -> (dtype, shape) of every tensor of a safetensors file; reads the header only.

    Raises:
        PackedFileError: if the file is truncated or no safetensors file.
    """
    try:
        if os.path.exists(file) and not os.path.isfile(file):  # of a pipe or a device there may be no end
            raise OSError("no plain file")
        with safe_open(file, framework="pt") as reader:
            slices = {name: reader.get_slice(name) for name in reader.keys()}  # noqa: SIM118 (not a dict)
            return {name: (dtype_named(piece.get_dtype()), tuple(piece.get_shape())) for name, piece in slices.items()}
    except (SafetensorError, OSError, MemoryError) as error:  # no address space for a file of terabytes
        raise PackedFileError(
            f"{file} is truncated or no safetensors file ({error}). Download or write it again."
        ) from error


def dtype_named(name: str) -> Any:
    """The torch dtype of a safetensors name ("U8"); the name itself if no packed file has such a dtype."""
    return _DTYPES.get(name, name)


def check_header(
    header: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    expected: Mapping[str, Tensor],
    where: str,
    *,
    exact: bool = False,
) -> None:
    """Compares a file's header with the tensors that the configuration promises.

    Args:
        header: As `read_header` gives.
        expected (`dict[str, torch.Tensor]`): Tensors the file must hold; codes and scales must be of exactly this
            dtype, the others of any float dtype.
        where (`str`): Name of the file in messages.
        exact (`bool`): The file must hold no other tensors.

    Raises:
        PackedFileError: if a tensor is missing or too many, has another shape or a wrong dtype.
    """
    missing = [name for name in expected if name not in header]
    if missing:
        raise PackedFileError(
            f"{where} does not hold {len(missing)} of the {len(expected)} tensors that its config.json promises "
            f"(first: {missing[0]}). Config and weights are not of one model; download or write both again."
        )
    unknown = [name for name in header if name not in expected] if exact else []
    if unknown:
        raise PackedFileError(
            f"{where} holds {len(unknown)} tensors that its config.json does not promise (first: {min(unknown)}). "
            "Config and weights are not of one model; download or write both again."
        )
    for name, tensor in expected.items():
        dtype, shape = header[name]
        if shape != tuple(tensor.shape):
            raise PackedFileError(
                f"{where}: {name} has shape {list(shape)}, but config.json promises {list(tensor.shape)}. "
                "Config and weights are not of one model; download or write both again."
            )
        quantized = name.endswith(("weight_packed", "weight_scale"))
        if dtype != tensor.dtype if quantized else dtype not in _FLOATS:
            raise PackedFileError(
                f"{where}: {name} has dtype {dtype}, but config.json promises {tensor.dtype}. "
                "The file was not written by this package; write it again with pack_model."
            )
