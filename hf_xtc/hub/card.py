"""The model card of a packed model: the template `card.md.jinja`, filled with facts.

`run_card` is for a finished run of `hf-xtc compress`, `model_card` for a model of which only the configuration is
known. `ModelCard.from_template` renders without autoescape, so names of models, labels and data, which come from
outside, are HTML-escaped here.
"""

import html
import math
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel

from hf_xtc.compression.origin import is_license_id
from hf_xtc.compression.size_ledger import ledger
from hf_xtc.distillation.terms import XTC
from hf_xtc.files.writing import write_text
from hf_xtc.hub.results import STANDARD_ERROR, Run, metric_text, metric_title, results_table
from hf_xtc.hub.upload import FOLDER_ARGUMENT
from hf_xtc.quantization.specs import QUANTIZERS
from hf_xtc.recipe.xtc_recipe import SCOPES, XTCRecipe
from hf_xtc.tasks import Task, kind_of, task_of_model

TEMPLATE = Path(__file__).with_name("card.md.jinja")
# Beginning of class names -> the family's name, where the two differ.
FAMILY_NAMES = {
    **{"Bert": "BERT", "Roberta": "RoBERTa", "XLMRoberta": "XLM-RoBERTa", "Camembert": "CamemBERT"},
    **{"DistilBert": "DistilBERT", "Electra": "ELECTRA", "Albert": "ALBERT", "DebertaV2": "DeBERTa-v2"},
    "ModernBert": "ModernBERT",
}
_MODEL = """import {package}  # registers the architecture
from transformers import {auto_class}

model = {auto_class}.from_pretrained({folder}"""


def run_card(run: Run) -> str:
    """The model card of a finished run, with its results as `model-index` metadata."""
    packed, teacher = run.rows[-1], run.rows[0]
    stages = run.provenance.get("stages", [])
    return _render(
        _metadata(
            run.recipe,
            run.provenance,
            tags=["knowledge-distillation"],
            pipeline_tag=_pipeline_tag(run.model_class, run.problem_type),
            library_name=_library(run.model_class, run.problem_type),
            model_name=html.escape(run.name),
            eval_results=_eval_results(run) or None,
            model_sha256=run.sha256,
        ),
        name=html.escape(run.name),
        depth=packed.layers,
        family=html.escape(_family(run.model_class)),
        weights=run.recipe.weights or "float",
        bytes=f"{packed.bytes:,}",
        ratio=f"{teacher.bytes / packed.bytes:.1f}",
        use=usage(run.model_class, problem_type=run.problem_type),
        ledger=run.ledger,
        made=[*_command_lines(run.command), *_fact_lines(run.provenance)] or ["not recorded"],
        recipe=run.recipe.to_json(),
        citations=run.citations or ["none"],
        run={
            "task": html.escape(run.task),
            "metric": _title(run.metric, run),
            "teacher_depth": teacher.layers,
            "score": _score(run),
            "table": results_table(run),
            "with_errors": run.metric + STANDARD_ERROR in packed.metrics,
            "measured": run.metric in packed.metrics,
            "selection": html.escape(run.selection, quote=False),
            "stages": [_stage_cells(stage, run.metric) for stage in stages],
            "tried": [_tried_line(stage) for stage in stages if stage["tried"]],
            "seeds": _seeds(run),
        },
    )


def model_card(
    config: Any,
    model_class: type[PreTrainedModel],
    name: str,
    *,
    metrics: Mapping[str, float] | None = None,
    made: Mapping[str, Any] | None = None,
    citations: Sequence[str] = (),
    sha256: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> str:
    """The model card of a packed model, from its configuration.

    Args:
        config (`PreTrainedConfig`), model_class (`type`): Configuration and class of an XTC model in either state.
        name (`str`): The model's name: `user/name`, or the name of a folder.
        metrics (`dict[str, float]`, *optional*): Of the last evaluation; without them the card says "Not measured".
        made (`dict`, *optional*): Facts of how it was made, as JSON values, added to the provenance in `config`.
        citations (`Sequence[str]`): Sources of its training; those of its quantizers are added.
        sha256 (`str`, *optional*): SHA-256 of `model.safetensors`; `hf-xtc verify` compares it with the file's.
        metadata (`dict`, *optional*): More fields of `ModelCardData`: license, language, tags, datasets.
    """
    size, facts = ledger(config, model_class=model_class), {**config.xtc.get("provenance", {}), **(made or {})}
    recipe: XTCRecipe = config.recipe
    given = {key: value for key, value in (metadata or {}).items() if value is not None}
    problem_type = kind_of(config)
    fields = {
        "pipeline_tag": _pipeline_tag(model_class.__name__, problem_type),
        "library_name": _library(model_class.__name__, problem_type),
        "model_sha256": sha256,
        **given,
    }
    return _render(
        _metadata(recipe, facts, **fields),
        name=html.escape(name),
        depth=config.num_hidden_layers,
        family=html.escape(_family(model_class.__name__)),
        weights=recipe.weights or "float",
        bytes=f"{size.total_bytes:,}",
        ratio=f"{size.float32_bytes / size.total_bytes:.1f}",
        use=usage(model_class.__name__, model_class.__module__.partition(".")[0], problem_type),
        metrics=[(html.escape(key), metric_text(value)) for key, value in (metrics or {}).items()],
        ledger=size,
        made=_fact_lines(facts) or ["not recorded"],
        recipe=recipe.to_json(),
        citations=sorted({XTC, *citations, *quantizer_citations(recipe)}),
        run={},
    )


def write_card(run: Run, path: str | os.PathLike[str]) -> None:
    """Writes the card of a run to a file, the `README.md` of its model folder.

    Raises:
        StateError: if the file cannot be written.
    """
    write_text(path, run_card(run))


def usage(class_name: str, package: str = "hf_xtc", problem_type: str | None = None) -> str:
    """Python code that loads a model from the card's own folder; see `FOLDER_ARGUMENT`.

    Args:
        class_name (`str`), problem_type (`str`, *optional*): The model's class and `kind_of` its config, which tell
            the task.
        package (`str`): The package that registers the architecture.
    """
    task = task_of_model(class_name, problem_type)
    if task is not None:
        return task.snippet.format(package=package, tag=task.pipeline_tag, folder=FOLDER_ARGUMENT)
    head = re.search(r"For[A-Z]\w+$", class_name)
    auto_class = f"AutoModel{'' if head is None else head[0]}"
    return _MODEL.format(package=package, auto_class=auto_class, folder=FOLDER_ARGUMENT)


def _family(class_name: str) -> str:
    """How people write a family, from the name of a class: "BERT" of `XTCBertForMaskedLM`."""
    name = re.sub(r"(For[A-Z]\w+|Model)$", "", class_name.removeprefix("XTC"))
    return FAMILY_NAMES.get(name, name)


def quantizer_citations(recipe: XTCRecipe) -> set[str]:
    """Sources of the quantizers that a recipe uses."""
    return {QUANTIZERS[spec.quantizer].citation for spec in map(recipe.spec, SCOPES) if spec is not None} - {""}


def _render(data: ModelCardData, **facts: Any) -> str:
    return str(ModelCard.from_template(data, template_path=str(TEMPLATE), **facts))


def _metadata(
    recipe: XTCRecipe, facts: Mapping[str, Any], *, tags: Sequence[str] | str = (), **fields: Any
) -> ModelCardData:
    """The card's metadata: tags of the recipe, the teacher's name and licence from `facts`, and `fields`.

    `fields` override the facts; a field that is `None` is left out.
    """
    own = ["xtc", "hf_xtc", recipe.weights or "float", "quantization"]
    more = [tag for tag in ([tags] if isinstance(tags, str) else tags) if tag not in own]
    known = {"base_model": facts.get("base_model"), "license": _license(facts)}
    given = {key: value for key, value in {**known, **fields}.items() if value is not None}
    return ModelCardData(tags=[*own, *more], **given)


def _license(facts: Mapping[str, Any]) -> str | list[str] | None:
    """The teacher's licence as metadata, without names that are not licence identifiers, which the Hub rejects."""
    stated = facts.get("teacher_license") or []
    names = [name for name in ([stated] if isinstance(stated, str) else stated) if is_license_id(name)]
    return names[0] if len(names) == 1 else names or None


def _pipeline_tag(class_name: str, problem_type: str | None) -> str | None:
    """The Hub's tag for a model's task; `None` if it has none here."""
    task = task_of_model(class_name, problem_type)
    return None if task is None else task.pipeline_tag


def _library(class_name: str, problem_type: str | None) -> str:
    """The library that opens a model of this task, by its name on the Hub."""
    task = task_of_model(class_name, problem_type)
    return Task.library_name if task is None else task.library_name


def _eval_results(run: Run) -> list[EvalResult]:
    """The packed file's metrics. The Hub accepts only finite values, and data set types only without spaces."""
    return [
        EvalResult(
            task_type=_pipeline_tag(run.model_class, run.problem_type) or "other",
            dataset_type=re.sub(r"[^\w.-]+", "-", run.task, flags=re.ASCII),
            dataset_name=html.escape(run.task),
            dataset_split="validation",
            metric_type=metric,
            metric_name=title if (title := _title(metric, run)) != metric else None,
            metric_value=round(value, 6),
        )
        for metric, value in run.rows[-1].metrics.items()
        if metric != "loss" and not metric.endswith(STANDARD_ERROR) and math.isfinite(value)
    ]


def _score(run: Run) -> str:
    """The packed file's main metric: as a share of the teacher's or, where that is undefined, by itself."""
    packed, teacher = (row.metrics.get(run.metric, math.nan) for row in (run.rows[-1], run.rows[0]))
    metric = _title(run.metric, run)
    if math.isfinite(packed) and teacher > 0:
        return f"{packed / teacher:.1%} of the teacher's {metric}"
    return f"{metric} {metric_text(packed)}"


def _title(metric: str, run: Run) -> str:
    return html.escape(metric_title(metric, run.positive_class), quote=False)


def _seeds(run: Run) -> str:
    if len(run.seeds) < 2:
        return "One run with one seed; the spread over seeds was not measured."
    scores = list(run.seeds.values())
    names = ", ".join(str(seed) for seed in run.seeds)
    return (
        f"Over the seeds {names} the packed file's {_title(run.metric, run)} is {statistics.mean(scores):.4f} on "
        f"average, with a standard deviation of {statistics.stdev(scores):.4f}; this file is the one of seed "
        f"{run.provenance['training']['seed']}, the best of them on the train rows held out."
    )


def _command_lines(command: str | None) -> list[str]:
    if not command:
        return []
    # Markdown shows text between backticks literally, but that text cannot contain a backtick.
    return [
        f"command: <code>{html.escape(command, quote=False)}</code>" if "`" in command else f"command: `{command}`"
    ]


def _fact_lines(facts: Mapping[str, Any]) -> list[str]:
    """`key: value` lines of JSON facts, escaped, without the stages, which the card shows in a table.

    The licence of a teacher without one is "not stated".
    """
    if "teacher" in facts:
        facts = {"teacher": facts["teacher"], "teacher_license": "not stated", **facts}
    return [
        f"{html.escape(key.replace('_', ' '))}: {html.escape(_fact_text(value), quote=False)}"
        for key, value in facts.items()
        if key != "stages"
    ]


def _fact_text(value: Any) -> str:
    """A JSON value without brackets and quotes: `learning rate 0.0001, steps 3`; `;` separates list entries."""
    if isinstance(value, dict):
        return ", ".join(
            f"{name.replace('_', ' ')} {_fact_text(entry)}" for name, entry in value.items() if entry != []
        )
    if isinstance(value, list):
        return "; ".join(map(_fact_text, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _stage_cells(stage: Mapping[str, Any], metric: str) -> list[str]:
    return [
        html.escape(stage["stage"]),
        html.escape(stage["start"]),
        f"{stage['learning_rate']:g}",
        f"{stage['steps']:,}",
        f"{stage['epochs']:g}",
        f"{stage['seconds']:,.0f}",
        "-" if stage["selection"] is None else f"{stage['selection'][metric]:.4f}",
        f"{stage['metrics'][metric]:.4f}",
    ]


def _tried_line(stage: Mapping[str, Any]) -> str:
    return html.escape(f"tried in {stage['stage']}: {_fact_text(stage['tried'])}", quote=False)
