"""When two runs are the same: what decides the result of a run, by name, and the folder that belongs to one run.

A folder keeps the description of its run; the same command continues it, another one is refused.
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

# Training arguments that change what a run prints or keeps, not its result.
_BESIDES: tuple[str, ...] = (
    *("logging_", "log_", "hub_", "save_", "dataloader_", "trackio_", "output_dir", "report_to", "run_name"),
    *("project", "disable_tqdm", "push_to_hub", "resume_from_checkpoint", "skip_memory_metrics"),
)


def deciding(arguments: XTCTrainingArguments, *, distils: bool = True) -> dict[str, Any]:
    """The training arguments that decide the result of a run, as JSON.

    Args:
        distils (`bool`, *optional*): Without it those of distillation and quantization are left out: fine-tuning on
            labels uses none of them.
    """
    values = {name: value for name, value in arguments.to_dict().items() if not name.startswith(_BESIDES)}
    if distils:
        values["teacher_cache"] = bool(values["teacher_cache"])  # wherever it lies
    else:
        stock = {field.name for field in dataclasses.fields(TrainingArguments)}
        values = {name: value for name, value in values.items() if name in stock}
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain


def digest(value: Any) -> str:
    """sha256 (hex) of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def model_digest(name: str) -> str:
    """sha256 (hex) of a local model folder's weights and configuration, of an adapter's with its base; of a Hub id the
    id itself."""
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
    """Removes what another run left: first what a reader would take for this one's, then all it trained.

    A folder that is no run's is left alone: its model is another's, and whole, until this run's takes its place.
    """
    if read_run(training) is None:
        return
    names = ("config.json", *WEIGHT_FILES, "metrics.json", "README.md")
    with writing(out, kept=""):
        for file in [file for name in names for file in out.glob(name)]:
            file.unlink()
        training.rename(out / f"{SCRATCH}{training.name}")  # at once: half of it would be neither run's
    clear_unfinished(out)


def open_run(out: Path, training: Path, description: dict[str, Any], *, overwrite: bool) -> None:
    """Makes `training` the folder of the run that `description` names, or finds it to be so already.

    Args:
        out (`Path`): The folder of the results.
        training (`Path`): The folder inside it that holds the run's description.
        description (`dict`): JSON; all that decides the result.
        overwrite (`bool`): Another run may be replaced; the caller removes it first (`remove_run`).

    Raises:
        XTCError: if the folder holds something else; names the options in which another run differs.
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
    if training.is_dir():  # of something else that may be replaced
        write_json(training / RUN_FILE, plain)
        return
    scratch = out / f"{SCRATCH}{training.name}"
    with writing(training, kept=""):
        scratch.mkdir(parents=True, exist_ok=True)
        write_json(scratch / RUN_FILE, plain)
        scratch.rename(training)  # at once: a folder without its description would belong to no run


def read_run(training: Path) -> dict[str, Any] | None:
    """The description of the run that a folder belongs to, or `None`."""
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
