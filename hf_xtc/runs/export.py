"""`hf-xtc export`: writes a packed checkpoint for another runtime, with its configuration and tokenizer."""

import logging
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from hf_xtc.checks import check_choice
from hf_xtc.data.task_data import read_splits
from hf_xtc.errors import DataError, StateError, XTCError
from hf_xtc.export.exporting import FORMATS, Exported, check_export, export_model, fitting_tokenizer, write_verified
from hf_xtc.export.graph import IDS, MASK, TYPES
from hf_xtc.export.stock import plain_config
from hf_xtc.export.verify import Batch
from hf_xtc.files.writing import require_empty, whole_folder
from hf_xtc.hub.javascript import javascript_section, with_section
from hf_xtc.hub.upload import ONNX_FILE
from hf_xtc.modeling.architecture import architecture_of
from hf_xtc.runs.arguments import EvaluationDataArguments, ExportArguments
from hf_xtc.runs.model_checks import check_tokenizer
from hf_xtc.runs.teacher import load_config
from hf_xtc.runs.web_export import write_page
from hf_xtc.tasks import TASKS, find_task, kind_of

logger = logging.getLogger(__name__)


def run_export(args: ExportArguments, data_args: EvaluationDataArguments) -> Exported:
    """Exports a packed checkpoint and verifies the file on the validation split, or without data on random tokens.

    Raises:
        XTCError: as `export_model`; also if the data do not match the model's head.
    """
    require_empty(args.output_dir, overwrite=args.overwrite)
    model = load_packed(args.model)
    check_choice("format", args.format, (*FORMATS, "web"))
    if args.format == "web" and args.weights is not None:
        raise XTCError(
            f"--weights {args.weights} has no meaning for a page, which holds the packed file. Leave it out."
        )
    if args.format != "web":
        check_export(model, args.format, args.weights)
    # A page reads what a graph reads.
    fitted = "onnx" if args.format == "web" else args.format
    tokenizer, batches = fitting_tokenizer(model, _tokenizer(args.model), fitted), None
    if data_args.given:
        if tokenizer is None:
            raise DataError(
                f"{args.model} has no tokenizer, so the export cannot be verified on data. Save a tokenizer there, or "
                "leave the data options out."
            )
        check_tokenizer(tokenizer, model.config, args.model, data_args.max_length)
        batches = validation_batches(model, tokenizer, args, data_args)
    if args.format == "web":
        size, agreement, noise = write_page(model, args.model, args.output_dir, batches)
        return Exported(Path(args.output_dir) / "index.html", size, agreement, noise)
    with whole_folder(args.output_dir) as folder:
        options: dict[str, Any] = {"weights": args.weights, "tokenizer": tokenizer, "batches": batches}
        exported = write_verified(model, folder, format=args.format, **options)
    return replace(exported, path=Path(args.output_dir) / exported.path.relative_to(folder))


def onnx_form(folder: str) -> dict[str, bytes]:
    """The verified ONNX file of a packed folder, by its path in the repository.

    Raises:
        XTCError: as `export_model`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = _tokenizer(folder)
        path = export_model(load_packed(folder), scratch, format="transformers.js", tokenizer=tokenizer)
        return {ONNX_FILE: path.read_bytes()}


def card_with_graph(folder: str, graph: Mapping[str, bytes]) -> bytes:
    """The card of a packed folder, with a section on the ONNX file that `onnx_form` gave."""
    config = load_config(folder)
    name, model_type = config.architectures[0], plain_config(config).model_type
    section = javascript_section(config, name, model_type, len(graph[ONNX_FILE]))
    return with_section(Path(folder, "README.md").read_text(encoding="utf-8"), section).encode()


def load_packed(name: str) -> Any:
    """A packed checkpoint, loaded with the class that saved it.

    Raises:
        StateError: if it is not packed, or its class is not of this package.
    """
    config = load_config(name)
    if getattr(config, "state", None) != "packed":
        raise StateError(f"{name} holds no packed model. Export one that hf-xtc compress or pack_model made.")
    architecture = architecture_of(config)
    classes: dict[str, Any] = {cls.__name__: cls for cls in architecture.model_classes.values()}
    written_by = (config.architectures or [architecture.auto_classes["AutoModel"].__name__])[0]
    if written_by not in classes:
        raise StateError(f"{name} is a {written_by}, which this version of hf_xtc does not have. Upgrade hf_xtc.")
    return classes[written_by].from_pretrained(name)


def _tokenizer(name: str) -> Any:
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        logger.info("No tokenizer is exported, since none can be loaded from %s: %s", name, error)
        return None


def validation_batches(
    model: Any, tokenizer: Any, args: ExportArguments, data_args: EvaluationDataArguments
) -> Iterator[Batch]:
    """Batches of the validation split, each padded to its longest row.

    Raises:
        DataError: if the labels do not match the head of a sequence classifier.
    """
    sources = read_splits(data_args)
    recorded = model.config if kind_of(model.config) in TASKS else None
    task = find_task(data_args, sources, recorded, args.model)
    data = task.load(data_args, sources)
    if type(model).__name__.endswith(task.head):  # for any other head labels are not needed
        data = task.align_labels(data, model.config, args.model)
    rows = task.tokenize(data.validation, tokenizer, data_args)
    inputs = [name for name in tokenizer.model_input_names if name in (IDS, MASK, TYPES)]
    rows = rows.select_columns([name for name in inputs if name in rows.column_names])
    collate = task.collator(tokenizer)
    return (
        {name: batch[name] for name in inputs}
        for start in range(0, len(rows), args.batch_size)
        for batch in [collate(rows.select(range(start, min(start + args.batch_size, len(rows)))).to_list())]
    )
