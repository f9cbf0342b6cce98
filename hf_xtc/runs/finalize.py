"""The end of a run: writes the packed file, measures it from disk, and writes its card."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hf_xtc.compression.size_ledger import ledger
from hf_xtc.distillation.terms import TERMS
from hf_xtc.errors import StateError
from hf_xtc.files.headers import weights_sha256
from hf_xtc.files.writing import write_json
from hf_xtc.hub.card import quantizer_citations, write_card
from hf_xtc.hub.publish import write_packed
from hf_xtc.hub.results import Row, Run
from hf_xtc.runs.job import Job, weight_bytes
from hf_xtc.runs.stage import RECEIPT, Receipt
from hf_xtc.runs.teacher import teacher_origin, teacher_title
from hf_xtc.tasks import kind_of
from hf_xtc.training.adversarial import MIYATO

# Options that a run with another schedule, or with a teacher that is fine-tuned already, does not use.
_DEFAULT_SCHEDULE_OPTIONS = ("reduction_epochs", "reduction_learning_rate")
_FINE_TUNING_OPTIONS = ("fine_tune_epochs", "fine_tune_learning_rates", "fine_tune_adversarial")

PACKAGES = ("hf_xtc", "torch", "transformers", "datasets", "accelerate", "huggingface_hub")


def ship(job: Job, student: PreTrainedModel, rows: list[Row], receipts: list[Receipt]) -> Run:
    """Packs a student into the output folder, measures the file in a new process, and writes its card.

    Args:
        student (`PreTrainedModel`): The latent student of the last stage.
        rows (`list[Row]`), receipts (`list[Receipt]`): Of the stages; the first row is the teacher's.

    Raises:
        StateError: if the folder cannot be written, or the file cannot be measured.
    """
    config: Any = student.config
    config.xtc = {**config.xtc, "provenance": {**config.xtc["provenance"], **_provenance(job, receipts)}}
    write_packed(student, job.out, tokenizer=job.tokenizer)
    run = Run(
        name=job.name,
        task=job.data.name,
        metric=job.metric,
        rows=[*rows, packed_row(job, rows[-1])],
        ledger=ledger(config, model_class=type(student)),
        provenance=config.xtc["provenance"],
        recipe=job.recipe,
        selection=receipts[-1].chosen_by,
        citations=_citations(job),
        sha256=weights_sha256(job.out),
        log=receipts[-1].log,
        model_class=type(student).__name__,
        positive_class=job.task.positive_class(job.data),
        problem_type=kind_of(config),
    )
    write_json(job.out / "metrics.json", run.to_dict())
    write_card(run, job.out / "README.md")
    return run


def packed_row(job: Job, student: Row) -> Row:
    """Returns the row of the packed file, measured in a new process."""
    request = {**dataclasses.asdict(job.data_args), "model": str(job.out), "batch_size": 64}
    if job.task.scored_by_teacher:
        request |= {"teacher": job.args.teacher, "teacher_revision": job.args.teacher_revision}
    with tempfile.TemporaryDirectory() as folder:
        request["output_file"] = os.path.join(folder, "metrics.json")
        write_json(os.path.join(folder, "request.json"), request)
        command = [sys.executable, "-m", "hf_xtc", "evaluate", os.path.join(folder, "request.json")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise StateError(f"Measuring the packed file in a new process failed:\n{done.stderr[-2000:]}")
        metrics = json.loads(Path(request["output_file"]).read_text(encoding="utf-8"))
    size = weight_bytes(job.out)
    return Row("packed file, reloaded", metrics, size, student.layers, f"{job.recipe.weights or 'float'}, packed")


def _citations(job: Job) -> list[str]:
    """Returns the citations of the run's terms, quantizers and fine-tuning, sorted, each once."""
    used = {line for name in job.training_args.term_weights for line in TERMS[name].citations}
    used |= quantizer_citations(job.recipe)
    tuned = _fine_tuning(job).get("fine_tuned", {})
    if job.training_args.adversarial_epsilon or tuned.get("adversarial_epsilon"):
        used.add(MIYATO)
    return sorted(used - {""})


def _provenance(job: Job, receipts: list[Receipt]) -> dict[str, Any]:
    shown = ["num_train_epochs", "max_steps", "learning_rate", "per_device_train_batch_size", "seed", "terms", "bf16"]
    shown += ["weight_annealing"]
    shown += ["adversarial_epsilon"] if job.training_args.adversarial_epsilon else []
    recorded = ("stage", "learning_rate", "steps", "epochs", "seconds", "tried", "selection", "metrics", "start")
    unused = {"teacher", "teacher_license", "overwrite", "start_from"}
    unused |= set() if job.args.fine_tune else set(_FINE_TUNING_OPTIONS)
    unused |= set(_DEFAULT_SCHEDULE_OPTIONS if job.args.schedule else ())
    options = {name: value for name, value in dataclasses.asdict(job.args).items() if name not in unused}
    return {
        "teacher": teacher_name(job),
        **_origin(job),
        **_fine_tuning(job),
        "data": job.data.name,
        "data_fingerprint": job.data.fingerprint,
        **_positive_label(job),
        **job.sizes(),
        "job": {name: value for name, value in options.items() if value not in (None, [], False)},
        "training": {name: getattr(job.training_args, name) for name in shown},
        "stages": [{name: getattr(receipt, name) for name in recorded} for receipt in receipts],
        "versions": {package: version(package) for package in PACKAGES},
    }


def _positive_label(job: Job) -> dict[str, str]:
    label = job.data_args.positive_label
    return {} if label is None else {"positive_label": label}


def teacher_name(job: Job) -> str:
    """Returns a name without local paths: Hub id, name of the folder, or the model that was fine-tuned."""
    receipt = _teacher_receipt(Path(job.args.teacher))
    if receipt.get("start"):
        return f"{receipt['start']}, fine-tuned on {job.data.name}"
    return teacher_title(job.args.teacher)


def _origin(job: Job) -> dict[str, Any]:
    """Returns the teacher's name on the Hub and its licence, if they are known."""
    given = job.args.teacher_license
    stated = {} if given is None else {"teacher_license": given}
    return {**teacher_origin(job.args.teacher, job.args.teacher_revision), **stated}


def _fine_tuning(job: Job) -> dict[str, Any]:
    """Returns how the teacher was fine-tuned, if this package did it."""
    folder = job.training / "teacher" if job.args.fine_tune else Path(job.args.teacher)
    receipt = _teacher_receipt(folder)
    recorded = ["learning_rate", "tried", "epochs", "steps", "seconds", "chosen_by", "selection"]
    recorded += ["adversarial_epsilon"] if receipt.get("adversarial_epsilon") else []
    return {"fine_tuned": {name: receipt[name] for name in recorded}} if receipt else {}


def _teacher_receipt(folder: Path) -> dict[str, Any]:
    try:
        receipt = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return receipt if isinstance(receipt, dict) and receipt.get("stage") == "teacher" else {}
