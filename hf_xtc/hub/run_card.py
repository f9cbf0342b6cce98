"""What a run measured, as a table and as the model card of the packed file.

Every figure comes from the `Run`; what was not measured is said to be so. Text that comes from outside (names of
models, labels, data) is escaped.
"""

import html
import math
import os
import re
import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from hf_xtc.compression.size_ledger import Ledger
from hf_xtc.files.writing import write_text
from hf_xtc.hub.plain_card import card_metadata, fact_text, facts_list, metric_text, usage
from hf_xtc.recipe.xtc_recipe import XTCRecipe


@dataclass(frozen=True)
class Row:
    """One model of a run: its metrics on the validation split, bytes on disk, depth and storage."""

    model: str
    metrics: dict[str, float]
    bytes: int
    layers: int
    storage: str


@dataclass(frozen=True)
class Run:
    """All that a compression run measured, and its settings.

    The rows are the teacher, the student after each stage, and the packed file. `seeds` holds the packed file's main
    metric of runs that differ in the seed alone, this one among them, if there were several; `command` makes the file
    anew; `sha256` is that of its weights.
    """

    name: str
    task: str
    metric: str
    rows: list[Row]
    ledger: Ledger
    provenance: dict[str, Any]
    recipe: XTCRecipe
    selection: str
    citations: list[str] = field(default_factory=list)
    seeds: dict[int, float] = field(default_factory=dict)
    command: str | None = None
    sha256: str | None = None
    log: list[dict[str, float]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The run as a JSON object."""
        return {
            "name": self.name,
            "task": self.task,
            "metric": self.metric,
            "rows": [asdict(row) for row in self.rows],
            "ledger": self.ledger.to_dict(),
            "recipe": self.recipe.to_dict(),
            "provenance": self.provenance,
            "selection": self.selection,
            "seeds": self.seeds,
            "command": self.command,
            "sha256": self.sha256,
            "log": self.log,
        }


def results_table(run: Run) -> str:
    """The rows of a run as a Markdown table that also reads well in a terminal."""
    teacher = run.rows[0]
    header = ["model", f"{html.escape(run.metric)}, validation", "bytes on disk", "ratio", "layers", "stored as"]
    body = [
        [
            html.escape(row.model),
            metric_text(row.metrics.get(run.metric)),
            f"{row.bytes:,}",
            f"{teacher.bytes / row.bytes:.1f}x",
            str(row.layers),
            html.escape(row.storage),
        ]
        for row in run.rows
    ]
    widths = [max(len(line[i]) for line in (header, *body)) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *body]
    return "\n".join(
        "| " + " | ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)) + " |" for line in lines
    )


_TEMPLATE = """---
{card_data}
---

# {name}

{summary}

```python
{use}
```

## Results

{table}

{measured} {selection}

## Bytes

```
{ledger}
```

## How it was made

{made}

Recipe:

```json
{recipe}
```

## Limits

- {seeds}
- Speed, fairness, robustness and other domains than the one above were not measured.
- {reference}

## Credits

{citations}
"""


def card_text(run: Run) -> str:
    """The model card of a run, with `model-index` metadata.

    Args:
        run (`Run`): Names in it may come from anywhere; they are escaped.
    """
    data = card_metadata(
        run.recipe,
        run.provenance,
        tags=["knowledge-distillation"],
        pipeline_tag="text-classification",
        model_name=html.escape(run.name),
        eval_results=_results(run) or None,
        model_sha256=run.sha256,
    )
    measured = "The last row was measured on the file itself, loaded in a new process."
    return _TEMPLATE.format(
        card_data=data.to_yaml(),
        name=html.escape(run.name),
        summary=_summary(run),
        use=usage("ForSequenceClassification"),
        measured=measured if run.metric in run.rows[-1].metrics else "The packed file was not measured.",
        table=results_table(run),
        selection=f"Checkpoint: {html.escape(run.selection, quote=False)}.",
        ledger=run.ledger,
        made=_made(run),
        recipe=run.recipe.to_json(),
        seeds=_seeds(run),
        reference="The teacher's own limits and biases are inherited; see its card.",
        citations="\n".join(f"- {citation}" for citation in run.citations) or "- none",
    )


def _results(run: Run) -> list[EvalResult]:
    """What was measured of the packed file, as the Hub reads it: names of data without spaces, numbers alone."""
    return [
        EvalResult(
            task_type="text-classification",
            dataset_type=re.sub(r"[^\w.-]+", "-", run.task, flags=re.ASCII),
            dataset_name=html.escape(run.task),
            dataset_split="validation",
            metric_type=metric,
            metric_value=round(value, 6),
        )
        for metric, value in run.rows[-1].metrics.items()
        if metric != "loss" and math.isfinite(value)
    ]


def _summary(run: Run) -> str:
    packed, teacher = run.rows[-1], run.rows[0]
    ours, theirs = packed.metrics.get(run.metric, math.nan), teacher.metrics.get(run.metric, math.nan)
    share, metric = math.isfinite(ours) and theirs > 0, html.escape(run.metric)
    kept = f"{ours / theirs:.1%} of the teacher's {metric}" if share else f"{metric} {metric_text(ours)}"
    return (
        f"A {packed.layers}-layer BERT with {run.recipe.weights or 'float'} weights for {html.escape(run.task)}: "
        f"{packed.bytes:,} bytes, {teacher.bytes / packed.bytes:.1f} times smaller than its {teacher.layers}-layer "
        f"teacher in float32, with {kept}. "
        "Compressed with XTC (Wu et al., NeurIPS 2022) by hf_xtc."
    )


def _seeds(run: Run) -> str:
    if len(run.seeds) < 2:
        return "One run with one seed; the spread over seeds was not measured."
    scores = list(run.seeds.values())
    names = ", ".join(str(seed) for seed in run.seeds)
    return (
        f"Over the seeds {names} the packed file's {html.escape(run.metric)} is {statistics.mean(scores):.4f} on "
        f"average, with a standard deviation of {statistics.stdev(scores):.4f}; this file is the one of seed "
        f"{run.provenance['training']['seed']}, the best of them on the train rows held out."
    )


def _made(run: Run) -> str:
    command = run.command or ""
    # Between backticks all is text, but for a backtick.
    code = f"<code>{html.escape(command, quote=False)}</code>" if "`" in command else f"`{command}`"
    lines = [f"- command: {code}"] if command else []
    return "\n".join([*lines, facts_list(run.provenance), *_stages(run)])


def _stages(run: Run) -> list[str]:
    """The stages as a table, and the learning rates that were tried."""
    stages = run.provenance.get("stages", [])
    if not stages:
        return []
    metric = html.escape(run.metric)
    header = f"| stage | starts from | learning rate | steps | epochs | seconds | {metric}, held out | validation |"
    lines = ["", header, "|---|---|---|---|---|---|---|---|"]
    for stage in stages:
        held_out = "-" if stage["selection"] is None else f"{stage['selection'][run.metric]:.4f}"
        numbers = f"{stage['learning_rate']:g} | {stage['steps']:,} | {stage['epochs']:g} | {stage['seconds']:,.0f}"
        what = f"{html.escape(stage['stage'])} | {html.escape(stage['start'])}"
        lines.append(f"| {what} | {numbers} | {held_out} | {stage['metrics'][run.metric]:.4f} |")
    tried = [f"tried in {stage['stage']}: {fact_text(stage['tried'])}" for stage in stages if stage["tried"]]
    return [*lines, "", *(f"- {html.escape(line, quote=False)}" for line in tried)]


def write_card(run: Run, path: str | os.PathLike[str]) -> None:
    """Writes the card as `README.md` of a model folder, checked to be a readable card.

    Raises:
        StateError: if the file cannot be written.
    """
    text = card_text(run)
    ModelCard(text)
    write_text(path, text)
