"""Headers of safetensors files, read and checked before any tensor is loaded."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hf_xtc.errors import PackedFileError

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


def tensor_bytes(file: str | os.PathLike[str]) -> int:
    """Bytes of the tensors of a safetensors file: its size without the header."""
    with open(file, "rb") as content:
        header = int.from_bytes(content.read(8), "little")
    return os.path.getsize(file) - 8 - header


def weights_sha256(folder: str | os.PathLike[str]) -> str | None:
    """sha256 (hex) of a folder's `model.safetensors`; `None` if there is none (sharded weights)."""
    file = Path(folder) / "model.safetensors"
    if not file.is_file():
        return None
    return str(file_sha256(file).hexdigest())


def file_sha256(file: str | os.PathLike[str]) -> Any:
    """The `hashlib.sha256` object of a file, which is read in blocks of 1 MiB."""
    digest = hashlib.sha256()  # Python 3.10 has no hashlib.file_digest
    with open(file, "rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest


def read_header(file: str | os.PathLike[str]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Name -> (dtype, shape) of every tensor of a safetensors file; reads the header only.

    Raises:
        PackedFileError: if the file is truncated or not a safetensors file.
    """
    try:
        if os.path.exists(file) and not os.path.isfile(file):  # reading a pipe or a device may never end
            raise OSError("not a regular file")
        with safe_open(file, framework="pt") as reader:
            slices = {name: reader.get_slice(name) for name in reader.keys()}  # noqa: SIM118 (not a dict)
            return {name: (dtype_named(piece.get_dtype()), tuple(piece.get_shape())) for name, piece in slices.items()}
    except (SafetensorError, OSError, MemoryError) as error:  # MemoryError: no address space to map terabytes
        raise PackedFileError(
            f"{file} is truncated or not a safetensors file ({error}). Download or write it again."
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
    """Checks that a file's header matches the tensors that its config.json describes.

    Args:
        header (`dict`): Name -> (dtype, shape), as `read_header` returns it.
        expected (`dict[str, torch.Tensor]`): Tensors the file must hold; codes and scales must be of exactly this
            dtype, the others of any float dtype.
        where (`str`): Name of the file in error messages.
        exact (`bool`): Whether the file must hold no other tensors.

    Raises:
        PackedFileError: if a tensor is missing or unexpected, or has a wrong shape or dtype.
    """
    missing = [name for name in expected if name not in header]
    if missing:
        raise PackedFileError(
            f"{where} does not hold {len(missing)} of the {len(expected)} tensors that its config.json promises "
            f"(first: {missing[0]}). Config and weights do not belong together; download or write both again."
        )
    unknown = [name for name in header if name not in expected] if exact else []
    if unknown:
        raise PackedFileError(
            f"{where} holds {len(unknown)} tensors that its config.json does not promise (first: {min(unknown)}). "
            "Config and weights do not belong together; download or write both again."
        )
    for name, tensor in expected.items():
        dtype, shape = header[name]
        if shape != tuple(tensor.shape):
            raise PackedFileError(
                f"{where}: {name} has shape {list(shape)}, but config.json promises {list(tensor.shape)}. "
                "Config and weights do not belong together; download or write both again."
            )
        quantized = name.endswith(("weight_packed", "weight_scale"))
        if dtype != tensor.dtype if quantized else dtype not in _FLOATS:
            raise PackedFileError(
                f"{where}: {name} has dtype {dtype}, but config.json promises {tensor.dtype}. "
                "The file was not written by this package; write it again with pack_model."
            )
