"""Publishes packed folders on the Hugging Face Hub, and explains its errors.

Works on files, not on models. They are read before the upload starts, so that they cannot change meanwhile, and are
committed together once all are uploaded: a repository never holds half a model. Only files that `SHIPPED` names are
published: no latent weights, optimizer states or pickles.
"""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_xtc.errors import HubError, PackedFileError, StateError, XTCError
from hf_xtc.files.safe_json import read_json
from hf_xtc.files.sentence_files import WRITTEN
from hf_xtc.files.writing import OLD_CODE, WEIGHT_FILES

SHIPPED = (
    *WEIGHT_FILES,
    *("config.json", "generation_config.json", "README.md", "LICENSE*", "modeling_*.py"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template*"),
)
# What the example of a card in a model's folder loads; a push replaces it with the repository's name.
FOLDER_ARGUMENT = '".")  # in the model\'s folder; elsewhere, its path'
REPO_ARGUMENT = "<repository>"  # in the JavaScript of a card; a push replaces it, too
# The graph that `hf-xtc push --with-onnx` adds, where transformers.js looks for its dtype q8.
ONNX_FILE = "onnx/model_quantized.onnx"
LOGIN = "Log in with `hf auth login`, or set HF_TOKEN to a token that may"


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the `config.json` of a model folder.

    Raises:
        PackedFileError: if there is none, or it is not a JSON object.
    """
    file = Path(folder) / "config.json"
    try:
        values = read_json(file)
    except (OSError, ValueError) as error:
        raise PackedFileError(f"{folder} holds no model: {file.name} cannot be read ({error}).") from error
    if not isinstance(values, dict):
        raise PackedFileError(f"{file} is not a JSON object; restore the config written with the model.")
    return values


def require_packed(values: dict[str, Any], name: str) -> None:
    """Checks that a `config.json` belongs to a packed model.

    Raises:
        StateError: if the model is latent.
        XTCError: if it is neither packed nor latent.
    """
    state = values.get("state")
    if state == "latent":
        raise StateError(
            f"{name} holds a latent model: float weights, for training. Load it, and save pack_model(model) instead."
        )
    if state != "packed":
        raise XTCError(
            f"{name} holds a float model (model_type {values.get('model_type')!r}), not a packed one. "
            f"Compress it first: hf-xtc compress --teacher {name}"
        )


def shipped_files(folder: str | os.PathLike[str]) -> dict[str, bytes]:
    """Returns name -> content of the files of a packed folder to publish: model, tokenizer and card, no others.

    Raises:
        PackedFileError: if the folder holds no configuration or no weights.
        XTCError: if its model is not packed.
    """
    path = Path(folder)
    require_packed(read_config(path), str(folder))
    names = sorted(file.name for file in path.iterdir() if file.is_file() and _is_one_of(file.name, SHIPPED))
    names += [name for name in WRITTEN if (path / name).is_file()]
    if not any(_is_one_of(name, WEIGHT_FILES[:2]) for name in names):
        raise PackedFileError(f"{folder} holds no model.safetensors. Save the model there again.")
    return {name: (path / name).read_bytes() for name in names}


def _is_one_of(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def open_repository(repo_id: str, *, private: bool | None = None, token: str | bool | None = None) -> str:
    """Makes a repository if it does not exist, and returns its full name, `user/name`.

    Raises:
        HubError: if the Hub cannot be reached or refuses.
    """
    with hub_errors(repo_id):
        name: str = HfApi(token=token).create_repo(repo_id, private=private, exist_ok=True).repo_id
    return name


def push_folder(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    run_as_future: bool = False,
    replaced: Mapping[str, bytes] | None = None,
) -> CommitInfo | Future[CommitInfo]:
    """Publishes a packed folder in one commit; makes the repository if it does not exist.

    Files that the repository already has are not uploaded again; if it has them all, there is no commit. Shards, code
    and ONNX file of an earlier model that this one does not overwrite are removed in the same commit. The examples of
    a card made by this package are changed to load the repository by name; all other content is unchanged.

    Args:
        folder (`str` or `os.PathLike`): Read before this function returns; may be removed afterwards.
        repo_id (`str`): `user/name`.
        commit_message, commit_description, private, token, revision, create_pr: As in `HfApi.create_commit` and
            `HfApi.create_repo`; a branch `revision` is made if it does not exist.
        run_as_future (`bool`): Upload in the background.
        replaced (`dict[str, bytes]`, *optional*): Path in the repository -> content: files to publish with those of
            the folder, or instead of them.

    Returns:
        `CommitInfo`, or a `Future` of it: the new commit, or the latest if nothing has changed.

    Raises:
        XTCError: if the folder holds no packed model; nothing was uploaded.
        HubError: if the Hub cannot be reached or refuses; nothing was published. With `run_as_future`, raised by
            the future.
    """
    files = {**shipped_files(folder), **(replaced or {})}
    api = HfApi(token=token)

    def upload() -> CommitInfo:
        name = open_repository(repo_id, private=private, token=token)
        additions = [CommitOperationAdd(file, _with_repo_id(file, content, name)) for file, content in files.items()]
        with hub_errors(name, revision):
            if revision is not None and not revision.startswith("refs/"):
                api.create_branch(name, branch=revision, exist_ok=True)
            return api.create_commit(
                name,
                [*additions, *_superseded(api.list_repo_files(name, revision=revision), files)],
                commit_message=commit_message or "Upload packed model",
                commit_description=commit_description,
                revision=revision,
                create_pr=create_pr,
            )

    # The queue of huggingface_hub has one worker: commits are made in the order of the calls.
    return huggingface_hub.run_as_future(upload) if run_as_future else upload()


def _with_repo_id(file: str, content: bytes, repo_id: str) -> bytes:
    """Returns a file's content; in a card, the example loads the repository."""
    if file != "README.md":
        return content
    content = content.replace(FOLDER_ARGUMENT.encode(), f'"{repo_id}")'.encode())
    return content.replace(REPO_ARGUMENT.encode(), repo_id.encode())


def _superseded(present: list[str], new: dict[str, bytes]) -> list[CommitOperationDelete]:
    """Returns deletions of weights, graph and code of an earlier model that the new one does not overwrite."""
    old = (*WEIGHT_FILES, OLD_CODE, ONNX_FILE)
    return [CommitOperationDelete(name) for name in present if name not in new and _is_one_of(name, old)]


@contextmanager
def hub_errors(repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Context manager that turns errors of `huggingface_hub` into one message: the cause, and what to do.

    Raises:
        HubError: instead of an error of the Hub, the network or a repository's name.
    """
    try:
        yield
    except XTCError:
        raise
    except (HFValidationError, HTTPError, EntryNotFoundError, OSError) as error:
        raise HubError(_explain(error, repo_id, revision)) from error
    except ValueError as error:  # the Hub's validation of a card
        if not str(error).startswith("Invalid metadata"):
            raise
        why = "; ".join(line.strip("- ") for line in str(error).splitlines()[1:])
        raise HubError(
            f"The Hub refuses the metadata of README.md: {why}. Nothing was published; correct it and push again."
        ) from error
    except RuntimeError as error:  # a file that could not be uploaded: the cause is one of the above
        if not isinstance(error.__cause__, HTTPError | OSError):
            raise
        raise HubError(_explain(error.__cause__, repo_id, revision)) from error.__cause__


def _explain(error: Exception, repo_id: str, revision: str | None) -> str:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(error, HFValidationError):
        return f"{repo_id!r} is neither a folder nor a valid repository name. Use a name like user/name."
    if isinstance(error, LocalTokenNotFoundError):
        return f"There is no token for the Hub. {LOGIN} write to {repo_id}."
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no revision {revision or 'main'!r}. Name a branch, a tag or a commit of it."
    if isinstance(error, RepositoryNotFoundError):
        return f"There is no repository {repo_id}, or it is private and the token cannot see it. {LOGIN} read it."
    if isinstance(error, OfflineModeIsEnabled):
        return f"{repo_id} cannot be reached: HF_HUB_OFFLINE is set. Unset it; local files are unchanged."
    if isinstance(error, LocalEntryNotFoundError):
        return f"{repo_id} cannot be reached, and is not in the cache. Try again when the network is back."
    if isinstance(error, EntryNotFoundError):
        return f"{repo_id} lacks a file: {_first_line(error)}. Check that it is a model of this package."
    if status in (401, 403):
        why = "there is no valid token" if status == 401 else "the token lacks the permission"
        return f"The Hub refused access to {repo_id}: {why} ({_first_line(error)}). {LOGIN} access it."
    if isinstance(error, OSError) and error.filename is not None and response is None:
        return f"{error.filename} cannot be read or written ({error.strerror}). Set HF_HUB_CACHE to a writable folder."
    if isinstance(error, HfHubHTTPError):
        return f"The Hub refused the request for {repo_id}: {_first_line(error)}. Nothing was published."
    return (
        f"The connection to the Hub failed for {repo_id}: {_first_line(error) or type(error).__name__}. Nothing was "
        "published and local files are unchanged; try again when the network is back."
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else ""
