"""`hf-xtc inspect` and `hf-xtc verify`: read a packed model in a folder or a repository on the Hub.

Inspecting reads `config.json` and the header of the weights (from the Hub by range requests), verifying all files.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import (
    HfApi,
    get_local_safetensors_metadata,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import NotASafetensorsRepoError, OfflineModeIsEnabled, SafetensorsParsingError

from hf_xtc.compression.origin import read_card
from hf_xtc.compression.size_ledger import Ledger, ledger
from hf_xtc.errors import HubError, PackedFileError, XTCError
from hf_xtc.files.headers import dtype_named, tensor_bytes, weights_sha256
from hf_xtc.hub.results import STANDARD_ERROR
from hf_xtc.hub.upload import SHIPPED, hub_errors, read_config, require_packed
from hf_xtc.modeling.architecture import ARCHITECTURES
from hf_xtc.modeling.checks import check_tensors
from hf_xtc.runs.arguments import EvaluateArguments, EvaluationDataArguments, InspectArguments, VerifyArguments
from hf_xtc.runs.evaluation import run_evaluate


@dataclass(frozen=True)
class Inspection:
    """A packed model as its `config.json` and the header of its weights describe it.

    `name` is the folder or the repository; `commit` is that of the repository's revision. The header contains exactly
    the tensors of the ledger, with the same shapes and dtypes.
    """

    name: str
    commit: str | None
    config: Any
    model_class: type
    ledger: Ledger
    files: tuple[str, ...]

    def __str__(self) -> str:
        block, layer_map = self.config.xtc, self.config.layer_map
        depth = f"{self.config.num_hidden_layers} layers"
        if layer_map is not None:
            kept = ", ".join(map(str, layer_map.layers))
            depth = f"layers {kept} of the {layer_map.num_teacher_layers} of its teacher"
        where = self.name if self.commit is None else f"{self.name}, commit {self.commit}"
        lines = [
            where,
            f"{self.model_class.__name__}, packed, format version {block['format_version']}, {depth}",
            f"{len(self.ledger.entries)} tensors in {', '.join(self.files)}, as in config.json",
            f"\n{self.ledger}\n",
            f"recipe: {self.config.recipe.to_json()}\n",
            f"provenance: {json.dumps(block.get('provenance', {}), indent=2)}",
        ]
        return "\n".join(lines)


def run_inspect(args: InspectArguments) -> Inspection:
    """Reads the configuration and the header of a packed model, without loading it.

    Raises:
        PackedFileError: if the configuration or the header is damaged, or the two do not fit together.
        XTCError: if it is not a packed model.
        HubError: if the repository cannot be read.
    """
    if Path(args.model).is_file():
        raise XTCError(f"{args.model} is a file. Give the folder of the model, or its Hub id.")
    local = Path(args.model).is_dir()
    folder = Path(args.model) if local else _download_config(args)
    values = read_config(folder)
    require_packed(values, args.model)
    config, model_class = _config_and_class(values, folder)
    header, files = _header(args, folder)
    with torch.device("meta"):
        model = model_class(config)
    check_tensors(model, header, f"{args.model}/{files[0]}")
    made_of = ledger(config, model_class=model_class)
    return Inspection(args.model, None if local else folder.name, config, model_class, made_of, files)


def _download_config(args: InspectArguments) -> Path:
    """Returns the commit's folder in the cache, with `config.json` in it; without network, from the cache only."""
    with hub_errors(args.model, args.revision):
        return Path(hf_hub_download(args.model, "config.json", revision=args.revision)).parent


def _config_and_class(values: dict[str, Any], folder: Path) -> tuple[Any, Any]:
    for architecture in ARCHITECTURES.values():
        if values.get("model_type") == architecture.config_class.model_type:
            name = str((values.get("architectures") or ["none"])[0]).removeprefix("XTC")
            if name not in architecture.model_classes:
                break
            return architecture.config_class.from_pretrained(folder), architecture.model_classes[name]
    raise PackedFileError(
        f"config.json names model_type {values.get('model_type')!r}, architectures {values.get('architectures')!r}, "
        "which this version of hf_xtc does not support. Upgrade hf_xtc, or restore the config written with the file."
    )


def _header(args: InspectArguments, folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns name -> (dtype, shape) of every tensor, and their files; reads local files where there are any."""
    local = Path(args.model).is_dir() or any(folder.glob("model.safetensors*"))
    try:
        if local:
            found = get_local_safetensors_metadata(folder)
        else:
            with hub_errors(args.model, args.revision):
                found = HfApi().get_safetensors_metadata(args.model, revision=folder.name)
    except (NotASafetensorsRepoError, SafetensorsParsingError, OSError) as error:
        raise PackedFileError(f"{args.model}: the weights cannot be read ({error}).") from error
    files = dict(sorted(found.files_metadata.items()))
    tensors = {name: info for file in files.values() for name, info in file.tensors.items()}
    return {name: (dtype_named(info.dtype), tuple(info.shape)) for name, info in tensors.items()}, tuple(files)


@dataclass(frozen=True)
class Check:
    """One comparison: whether it agrees (`None`: there is nothing to compare with), and what was found."""

    name: str
    agrees: bool | None
    found: str

    def __str__(self) -> str:
        return f"{ {True: 'ok', False: 'DIFFERS', None: '-'}[self.agrees]:<8}{self.name}: {self.found}"


def run_verify(args: VerifyArguments, data_args: EvaluationDataArguments) -> list[Check]:
    """Compares a packed model with all that is recorded about it: hashes, ledger, values and, given data, metrics.

    Raises:
        PackedFileError: if the file is damaged or does not match its configuration.
        HubError: if the repository cannot be read.
        XTCError: if it is not a packed model, or the data do not fit it.
    """
    inspected, folder = run_inspect(args), Path(args.model)
    if inspected.commit is not None:
        with hub_errors(args.model, args.revision):
            folder = Path(snapshot_download(args.model, revision=inspected.commit, allow_patterns=list(SHIPPED)))
    checks = [
        _check_commit(args, inspected.commit),
        _check_recorded_hash(folder),
        _check_ledger(inspected, folder),
        _check_values(inspected, folder),
    ]
    return [*checks, *_check_metrics(args, data_args, folder)] if checks[-1].agrees else checks


def _check_commit(args: VerifyArguments, commit: str | None) -> Check:
    if commit is None:
        return Check("commit", None, "a folder, without a commit")
    try:
        with hub_errors(args.model, args.revision):
            result = HfApi().verify_repo_checksums(args.model, revision=commit)
    except HubError as error:
        if not isinstance(error.__cause__, OfflineModeIsEnabled):
            raise
        return Check("commit", None, f"{commit}; its hashes are on the Hub, and HF_HUB_OFFLINE is set")
    wrong = [mismatch["path"] for mismatch in result.mismatches]
    checked = f"hashes of {result.checked_count} files of {commit}"
    return Check("commit", not wrong, f"{checked}; content differs: {', '.join(wrong)}" if wrong else checked)


def _check_recorded_hash(folder: Path) -> Check:
    recorded, found = read_card(folder).get("model_sha256"), weights_sha256(folder)
    if recorded is None or found is None:
        return Check("recorded hash", None, "no card records one")
    differs = "" if recorded == found else f", on the card {recorded}"
    return Check("recorded hash", recorded == found, f"sha256 {found}{differs}")


def _check_ledger(inspected: Inspection, folder: Path) -> Check:
    expected, found = inspected.ledger.total_bytes, sum(tensor_bytes(folder / name) for name in inspected.files)
    files = ", ".join(inspected.files)
    return Check("ledger", found == expected, f"{expected:,} bytes of tensors expected, {found:,} in {files}")


def _check_values(inspected: Inspection, folder: Path) -> Check:
    model_class: Any = inspected.model_class
    try:
        model_class.from_pretrained(folder)
    except PackedFileError as error:
        return Check("values", False, str(error))
    return Check("values", True, "all codes are valid, scales and floats are finite")


def _check_metrics(args: VerifyArguments, data_args: EvaluationDataArguments, folder: Path) -> list[Check]:
    """Compares each measured metric with the card's."""
    if not data_args.given:
        return [Check("metrics", None, "no data were given (--task_name, --dataset_name or --validation_file)")]
    recorded_label = read_config(folder)["xtc"].get("provenance", {}).get("positive_label")
    if data_args.positive_label is None and data_args.task_name is None:
        data_args = replace(data_args, positive_label=recorded_label)
    measured = run_evaluate(EvaluateArguments(str(folder), batch_size=args.batch_size), data_args)
    on_card = _card_metrics(read_card(folder))
    checks = []
    for name, value in measured.items():
        if name != "loss" and not name.endswith(STANDARD_ERROR):
            agrees = abs(value - on_card[name]) <= args.tolerance if name in on_card else None
            recorded = f"on the card {on_card[name]:.6f}" if name in on_card else "not on the card"
            checks.append(Check(name, agrees, f"{value:.6f}, {recorded}"))
    return checks


def _card_metrics(card: dict[str, Any]) -> dict[str, float]:
    """Returns name -> value of the metrics in a card's `model-index`; values that are not numbers are left out."""
    metrics = [
        metric
        for model in card.get("model-index") or ()
        for result in model["results"]
        for metric in result["metrics"]
        if isinstance(metric["value"], int | float)
    ]
    return {str(metric["type"]): float(metric["value"]) for metric in metrics}


def require_agreement(checks: list[Check], name: str) -> None:
    """Raises unless all checks of a verification agree.

    Raises:
        XTCError: if a check differs.
    """
    if wrong := [check.name for check in checks if check.agrees is False]:
        raise XTCError(
            f"{name} differs from what is recorded about it: {', '.join(wrong)}. Download it again, or do not use it."
        )
