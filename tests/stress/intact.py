"""Checks of a run's folder after the run has stopped: all that looks complete is complete and correct."""

import difflib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from hf_xtc.files.writing import LOCK_FILE, SCRATCH, last_checkpoint
from hf_xtc.reader import PackedEncoder


def published(out: Path) -> dict[str, bytes]:
    """The files of a finished run but its `training`; of `metrics.json` all but the log, which starts at a resume."""
    files = {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}
    if "metrics.json" in files:
        kept = {name: value for name, value in json.loads(files["metrics.json"]).items() if name != "log"}
        files["metrics.json"] = json.dumps(kept, indent=1).encode()
    return files


def differences(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    """The files that differ, with the first lines in which they do."""
    told = []
    for name in sorted(found.keys() | expected.keys()):
        here, there = found.get(name), expected.get(name)
        if here is None or there is None:
            told.append(f"{name} is {'missing' if here is None else 'too many'}")
        elif here != there:
            texts = [content.decode(errors="replace").splitlines() for content in (there, here)]
            lines = [line for line in difflib.unified_diff(*texts, n=0, lineterm="") if line[:3] not in ("---", "+++")]
            told.append(f"{name} differs from the undisturbed run's: {' '.join(lines[:8])[:600]}")
    return told


def logits(out: Path) -> Any:
    """Logits of some rows, by the numpy reader."""
    return PackedEncoder(out).logits([[2, 5, 11, 12, 3], [2, 8, 13, 14, 3]], attention_mask=[[1] * 5] * 2)


def check(place: Path, expected: dict[str, bytes], expected_logits: Any) -> list[str]:
    """Files and folders that look complete and are not, after a kill or on a full disk."""
    wrong = []
    for file in [path for path in place.rglob("*") if path.is_file() and SCRATCH not in str(path.relative_to(place))]:
        try:
            if file.suffix == ".safetensors":
                with safe_open(file, framework="pt") as reader:
                    for name in reader.keys():  # noqa: SIM118 (not a dict)
                        reader.get_tensor(name)
            elif file.suffix == ".json" and "checkpoint-" not in str(file):
                json.loads(file.read_text(encoding="utf-8"))
        except Exception as error:
            wrong.append(f"{file.relative_to(place)}: {error}")
    for folder in (place / "student" / "training").glob("*"):
        if (last := last_checkpoint(folder)) is not None:
            wrong += _checkpoint_faults(Path(last), place)
    out = place / "student"
    if (out / "config.json").exists() and not (logits(out) == expected_logits).all():
        wrong.append("config.json is there, and the model beside it gives other logits")
    files = published(out) if out.is_dir() else {}
    whole = {name: content for name, content in files.items() if not name.startswith((LOCK_FILE, SCRATCH))}
    return wrong + differences(whole, {name: content for name, content in expected.items() if name in whole})


def _checkpoint_faults(checkpoint: Path, place: Path) -> list[str]:
    faults = []
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"):
        try:
            if name.endswith((".pt", ".pth")):
                torch.load(checkpoint / name, weights_only=name != "rng_state.pth")
            elif not (checkpoint / name).is_file():
                raise FileNotFoundError(name)
        except Exception as error:
            faults.append(f"{checkpoint.relative_to(place)}, {name}: {error}")
    return faults


def leftovers(place: Path) -> list[str]:
    """Scratch files and locks, of which a finished run leaves none."""
    paths = [*place.rglob(f"{SCRATCH}*"), *place.rglob(f"{LOCK_FILE}*")]
    return sorted(str(path.relative_to(place)) for path in paths)
