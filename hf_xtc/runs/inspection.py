"""What a published model is, read back: `hf-xtc inspect` and `hf-xtc verify`, of a folder or of a repository.

Inspecting reads `config.json` and the header of the weights, by range requests from the Hub; verifying reads it all.
"""

import json
from dataclasses import dataclass
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
from hf_xtc.hub.upload import SHIPPED, hub_errors, read_config, require_packed
from hf_xtc.modeling.architecture import ARCHITECTURES
from hf_xtc.modeling.checks import check_tensors
from hf_xtc.runs.arguments import EvaluateArguments, ExportDataArguments, InspectArguments, VerifyArguments
from hf_xtc.runs.evaluation import run_evaluate


@dataclass(frozen=True)
class Inspection:
    """What `config.json` and the header of the weights say of a packed model.

    `name` is the folder or the repository; `commit` that of the repository's revision. The ledger was compared with
    the header: the same tensors, of the same shapes and types.
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
            f"{len(self.ledger.entries)} tensors in {', '.join(self.files)}, as config.json promises",
            f"\n{self.ledger}\n",
            f"recipe: {self.config.recipe.to_json()}\n",
            f"provenance: {json.dumps(block.get('provenance', {}), indent=2)}",
        ]
        return "\n".join(lines)


def run_inspect(args: InspectArguments) -> Inspection:
    """Looks into a packed model without loading it.

    Raises:
        PackedFileError: if the configuration or the header is damaged, or the two do not fit together.
        XTCError: if it is no packed model.
        HubError: if the repository cannot be read.
    """
    local = Path(args.model).is_dir()
    folder = Path(args.model) if local else _fetched_config(args)
    values = read_config(folder)
    require_packed(values, args.model)
    config, model_class = _class_of(values, folder)
    header, files = _header(args, folder)
    with torch.device("meta"):
        model = model_class(config)
    check_tensors(model, header, f"{args.model}/{files[0]}")
    made_of = ledger(config, model_class=model_class)
    return Inspection(args.model, None if local else folder.name, config, model_class, made_of, files)


def _fetched_config(args: InspectArguments) -> Path:
    """The cache's folder of the commit, with `config.json` in it; from the cache alone where there is no network."""
    with hub_errors(args.model, args.revision):
        return Path(hf_hub_download(args.model, "config.json", revision=args.revision)).parent


def _class_of(values: dict[str, Any], folder: Path) -> tuple[Any, Any]:
    for architecture in ARCHITECTURES.values():
        if values.get("model_type") == architecture.config_class.model_type:
            name = str((values.get("architectures") or ["none"])[0]).removeprefix("XTC")
            if name not in architecture.model_classes:
                break
            return architecture.config_class.from_pretrained(folder), architecture.model_classes[name]
    raise PackedFileError(
        f"config.json names model_type {values.get('model_type')!r}, architectures {values.get('architectures')!r}, "
        "which this version of hf_xtc does not know. Upgrade hf_xtc, or restore the config written with the file."
    )


def _header(args: InspectArguments, folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Name -> (dtype, shape) of every tensor, and their files; what lies on this machine is not asked for."""
    here = Path(args.model).is_dir() or any(folder.glob("model.safetensors*"))
    try:
        if here:
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
    """One thing that was compared: whether it agrees (`None`: nothing to compare with), and what was found."""

    name: str
    agrees: bool | None
    found: str

    def __str__(self) -> str:
        return f"{ {True: 'ok', False: 'DIFFERS', None: '-'}[self.agrees]:<8}{self.name}: {self.found}"


def run_verify(args: VerifyArguments, data_args: ExportDataArguments) -> list[Check]:
    """Compares a packed model with all that is recorded of it: hashes, ledger, values, and, given data, metrics.

    Raises:
        PackedFileError: if the file is damaged or not of one model with its configuration.
        HubError: if the repository cannot be read.
        XTCError: if it is no packed model, or the data do not fit it.
    """
    inspected, folder = run_inspect(args), Path(args.model)
    if inspected.commit is not None:
        with hub_errors(args.model, args.revision):
            folder = Path(snapshot_download(args.model, revision=inspected.commit, allow_patterns=list(SHIPPED)))
    checks = [
        _hashes(args, inspected.commit),
        Check("recorded hash", *_recorded(folder)),
        Check("ledger", *_counted(inspected, folder)),
        Check("values", *_loaded(inspected, folder)),
    ]
    return [*checks, *_metrics(args, data_args, folder)] if checks[-1].agrees else checks


def _hashes(args: VerifyArguments, commit: str | None) -> Check:
    if commit is None:
        return Check("commit", None, "a folder, of no commit")
    try:
        with hub_errors(args.model, args.revision):
            result = HfApi().verify_repo_checksums(args.model, revision=commit)
    except HubError as error:
        if not isinstance(error.__cause__, OfflineModeIsEnabled):
            raise
        return Check("commit", None, f"{commit}; its hashes are on the Hub, and HF_HUB_OFFLINE is set")
    wrong = [mismatch["path"] for mismatch in result.mismatches]
    card = f"hashes of {result.checked_count} files of {commit}"
    return Check("commit", not wrong, f"{card}; other content: {', '.join(wrong)}" if wrong else card)


def _recorded(folder: Path) -> tuple[bool | None, str]:
    wanted, found = read_card(folder).get("model_sha256"), weights_sha256(folder)
    if wanted is None or found is None:
        return None, "no card that records one"
    return wanted == found, f"sha256 {found}" + ("" if wanted == found else f", the card says {wanted}")


def _counted(inspected: Inspection, folder: Path) -> tuple[bool, str]:
    promised, found = inspected.ledger.total_bytes, sum(tensor_bytes(folder / name) for name in inspected.files)
    return found == promised, f"{promised:,} bytes of tensors, {found:,} in {', '.join(inspected.files)}"


def _loaded(inspected: Inspection, folder: Path) -> tuple[bool, str]:
    loader: Any = inspected.model_class
    try:
        loader.from_pretrained(folder)
    except PackedFileError as error:
        return False, str(error)
    return True, "every code exists in the format, scales and floats are finite"


def _metrics(args: VerifyArguments, data_args: ExportDataArguments, folder: Path) -> list[Check]:
    """Each metric of the card that can be measured on the data, beside what was measured."""
    if not data_args.given:
        return [Check("metrics", None, "no data were given (--task_name, --data_dir or --validation_file)")]
    measured = run_evaluate(EvaluateArguments(str(folder), batch_size=args.batch_size), data_args)
    stated = _card_metrics(read_card(folder))
    checks = []
    for name, value in measured.items():
        if name != "loss":
            agrees = abs(value - stated[name]) <= args.tolerance if name in stated else None
            card = f"the card says {stated[name]:.6f}" if name in stated else "the card does not say"
            checks.append(Check(name, agrees, f"{value:.6f}, {card}"))
    return checks


def _card_metrics(card: dict[str, Any]) -> dict[str, float]:
    """Name -> value of the metrics in a card's `model-index`; values that are not numbers are left out."""
    metrics = [
        metric
        for model in card.get("model-index") or ()
        for result in model["results"]
        for metric in result["metrics"]
        if isinstance(metric["value"], int | float)
    ]
    return {str(metric["type"]): float(metric["value"]) for metric in metrics}


def require_agreement(checks: list[Check], name: str) -> None:
    """Ends a verification.

    Raises:
        XTCError: if anything differs.
    """
    if wrong := [check.name for check in checks if check.agrees is False]:
        raise XTCError(
            f"{name} is not what is recorded of it: {', '.join(wrong)}. Download it again, or do not use it."
        )
