"""The results of a compression run: the rows of its table, and the other facts of its model card."""

import html
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from hf_xtc.compression.size_ledger import Ledger
from hf_xtc.recipe.xtc_recipe import XTCRecipe

# Ending of the key of a metric's standard error.
STANDARD_ERROR = "_standard_error"


@dataclass(frozen=True)
class Row:
    """One model of a run.

    `metrics` are of the validation split, `bytes` is the size of its weight files, `layers` its depth, and `storage`
    says how its weights are stored.
    """

    model: str
    metrics: dict[str, float]
    bytes: int
    layers: int
    storage: str


@dataclass(frozen=True)
class Run:
    """A finished compression run: its measurements and its settings.

    The rows are the teacher, the student after each stage, and the packed file. `seeds` maps each seed to the main
    metric of its packed file, where several runs differ in the seed alone; this run is one of them. `command` is the
    command that reproduces the file, `sha256` the hash of its weights, and `model_class` the name of its class.
    `positive_class` is the class of the metric `f1`, where there is one; `problem_type` is `tasks.kind_of`
    its configuration.
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
    model_class: str = "XTCBertForSequenceClassification"
    positive_class: str | None = None
    problem_type: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The run as a JSON object."""
        return {
            "name": self.name,
            "task": self.task,
            "metric": self.metric,
            "positive_class": self.positive_class,
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
    """The rows of a run as a Markdown table with aligned columns; names are HTML-escaped."""
    teacher = run.rows[0]
    metrics = [run.metric, *(["f1"] if run.positive_class is not None and run.metric != "f1" else [])]
    titles = [
        f"{html.escape(metric_title(metric, run.positive_class), quote=False)}, validation" for metric in metrics
    ]
    header = ["model", *titles, "bytes on disk", "ratio", "layers", "stored as"]
    body = [
        [
            html.escape(row.model),
            *(score_text(row.metrics, metric) for metric in metrics),
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


def metric_title(metric: str, positive_class: str | None) -> str:
    """A metric's name for readers: an F1 names the class it is of.

    Example:
        >>> metric_title("f1", "spam")
        "F1 of class 'spam'"
    """
    return f"F1 of class {positive_class!r}" if metric == "f1" and positive_class is not None else metric


def score_text(metrics: Mapping[str, float], metric: str) -> str:
    """A metric to four decimal places, with its standard error where that is known."""
    error = metrics.get(metric + STANDARD_ERROR)
    return metric_text(metrics.get(metric)) + ("" if error is None else f" ± {error:.4f}")


def metric_text(metric: float | None) -> str:
    """A metric to four decimal places; "not measured" if it is missing, NaN or infinite."""
    return "not measured" if metric is None or not math.isfinite(metric) else f"{metric:.4f}"
