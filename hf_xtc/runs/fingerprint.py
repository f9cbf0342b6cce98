"""The description of a run: all that determines its result. It is kept in the run's folder.

A command with the same description continues the run; one with another description raises an error.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from hf_xtc.errors import XTCError
from hf_xtc.files.headers import file_sha256
from hf_xtc.files.writing import SCRATCH, WEIGHT_FILES, clear_unfinished, require_empty, write_json, writing
from hf_xtc.modeling.adapters import ADAPTER, adapter_base
from hf_xtc.training.arguments import XTCTrainingArguments

RUN_FILE = "run.json"

# Prefixes of training arguments that change what a run logs or keeps, not its result.
_WITHOUT_EFFECT: tuple[str, ...] = (
    *("logging_", "log_", "hub_", "save_", "dataloader_", "trackio_", "output_dir", "report_to", "run_name"),
    *("project", "disable_tqdm", "push_to_hub", "resume_from_checkpoint", "skip_memory_metrics"),
)


def deciding(arguments: XTCTrainingArguments, *, distils: bool = True) -> dict[str, Any]:
    """Returns the training arguments that determine the result of a run, as a JSON object.

    Args:
        distils (`bool`, *optional*): If false, arguments of distillation and quantization are left out; fine-tuning
            on labels does not use them.
    """
    values = {name: value for name, value in arguments.to_dict().items() if not name.startswith(_WITHOUT_EFFECT)}
    if distils:
        values["teacher_cache"] = bool(values["teacher_cache"])  # its path has no effect
    else:
        stock = {field.name for field in dataclasses.fields(TrainingArguments)}
        values = {name: value for name, value in values.items() if name in stock}
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain


def digest(value: Any) -> str:
    """Returns the sha256 (hex) of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def model_digest(name: str) -> str:
    """Returns the sha256 (hex) of the weights and configuration of a model folder (of an adapter also of its base).

    A Hub id is returned as it is.
    """
    folder = Path(name)
    if not folder.is_dir():
        return name
    total = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), folder / "config.json", folder / ADAPTER]):
        if file.is_file():
            total.update(file.name.encode())
            total.update(file_sha256(file).digest())
    adapter = adapter_base(name)
    if adapter is not None:
        total.update(model_digest(adapter[0]).encode())
    return total.hexdigest()


def remove_run(out: Path, training: Path) -> None:
    """Removes another run: first its results, so that they are not mistaken for the new run's, then its training.

    A folder without a run is left as it is; a model in it stays loadable until the new run's replaces it.
    """
    if read_run(training) is None:
        return
    names = ("config.json", *WEIGHT_FILES, "metrics.json", "README.md")
    with writing(out, kept=""):
        for file in [file for name in names for file in out.glob(name)]:
            file.unlink()
        training.rename(out / f"{SCRATCH}{training.name}")  # atomic: never half of a folder
    clear_unfinished(out)


def open_run(out: Path, training: Path, description: dict[str, Any], *, overwrite: bool) -> None:
    """Makes `training` the folder of the described run; does nothing if it is already.

    Args:
        out (`Path`): The folder of the results.
        training (`Path`): The folder inside it that holds the run's description.
        description (`dict`): JSON; all that determines the result.
        overwrite (`bool`): Whether another run may be replaced; the caller removes it (`remove_run`).

    Raises:
        XTCError: if the folder holds other files, or another run; names the options that differ.
        StateError: if the folder cannot be written.
    """
    plain = json.loads(json.dumps(description, default=str))
    found = read_run(training)
    if found == plain:
        return
    if found is None or overwrite:
        require_empty(out, overwrite=overwrite)
    else:
        raise XTCError(
            f"The folder {out} holds another run; it differs in {', '.join(_differences(found, plain))}. "
            "Give another --output_dir, or --overwrite to replace it."
        )
    if training.is_dir():  # other files, which may be replaced
        write_json(training / RUN_FILE, plain)
        return
    scratch = out / f"{SCRATCH}{training.name}"
    with writing(training, kept=""):
        scratch.mkdir(parents=True, exist_ok=True)
        write_json(scratch / RUN_FILE, plain)
        scratch.rename(training)  # atomic: the folder never lacks its description


def read_run(training: Path) -> dict[str, Any] | None:
    """Returns the description of the run in a folder, or `None`."""
    try:
        found = json.loads((training / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    names: list[str] = []
    for name in sorted(set(found) | set(wanted)):
        old, new = found.get(name), wanted.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            names += [f"{name} {inner}" for inner in _differences(old, new)]
        elif old != new:
            shown = [value if len(str(value)) <= 24 else "other" for value in (old, new)]
            names.append(name if shown == ["other", "other"] else f"{name} ({shown[0]} there, {shown[1]} here)")
    return names
