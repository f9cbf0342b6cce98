"""`hf-xtc report`: a compression run as one HTML file, without scripts or external resources.

Reads the `metrics.json` that a run leaves beside its packed file. Plots are SVG, drawn by matplotlib (the extra
`report`). Text from the run (names of models, labels, data) is escaped.
"""

import html
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_xtc.errors import XTCError, needs_extra
from hf_xtc.files.safe_json import read_json
from hf_xtc.files.writing import write_text
from hf_xtc.hub.results import metric_title, score_text

Entries = Sequence[Mapping[str, Any]]
# Logged keys of a training step that are not terms of the loss.
NOT_TERMS = {"loss", "grad_norm", "learning_rate", "epoch", "step"}

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{name}: hf_xtc report</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; margin: 1rem 0; }}
td, th {{ padding: .25rem .75rem; border-bottom: 1px solid #ddd; text-align: left; }}
td.number {{ text-align: right; font-variant-numeric: tabular-nums; }}
figure {{ margin: 1rem 0 2rem; }} svg {{ max-width: 100%; height: auto; }} figcaption {{ color: #555; }}
pre {{ background: #f6f6f6; padding: 1rem; overflow-x: auto; }}
</style></head><body>
<h1>{name}</h1>
<p>{summary}</p>
{sections}
</body></html>
"""


def read_metrics(folder: str | Path) -> dict[str, Any]:
    """Returns the `metrics.json` of a run's folder.

    Raises:
        XTCError: if there is none, or it is not the record of a finished run.
    """
    file = Path(folder) / "metrics.json"
    try:
        found = read_json(file)
        found["rows"][-1]["metrics"][found["metric"]]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise XTCError(
            f"{file} is not the record of a finished run ({type(error).__name__}: {error}). "
            "Give the output folder of hf-xtc compress."
        ) from error
    return found  # type: ignore[no-any-return]


def report_html(run: Mapping[str, Any]) -> str:
    """Returns the HTML page of a run.

    Args:
        run (`dict`): As `Run.to_dict` makes it.

    Raises:
        XTCError: if matplotlib is missing.
    """
    log: Entries = run["log"]
    sections = [
        ("Results", _results(run)),
        ("Bytes against accuracy", _figure(lambda axes: _draw_pareto(axes, run), PARETO_CAPTION)),
        ("Contents of the packed file", _figure(lambda axes: _draw_ledger(axes, run), LEDGER_CAPTION)),
        ("Loss terms", _curves(log, "Each term as logged, before it is weighted.", _terms(log))),
        ("Held-out metric", _curves(log, "Evaluations during training.", _evaluations(log))),
        ("Flip rate", _curves(log, FLIP_CAPTION, _per_part(log, "flip_rate/"))),
        ("Quantization error", _curves(log, ERROR_CAPTION, _per_part(log, "quantization_error/"))),
        ("Provenance", f"<pre>{html.escape(json.dumps(run['provenance'], indent=2))}</pre>"),
        ("Recipe", f"<pre>{html.escape(json.dumps(run['recipe'], indent=2))}</pre>"),
    ]
    packed, teacher = run["rows"][-1], run["rows"][0]
    metric = metric_title(run["metric"], run.get("positive_class"))
    summary = (
        f"{packed['bytes']:,} bytes, {teacher['bytes'] / packed['bytes']:.1f} times smaller than the teacher; "
        f"{metric} on {run['task']} {packed['metrics'][run['metric']]:.4f}, the teacher's "
        f"{teacher['metrics'][run['metric']]:.4f}. Checkpoint: {run['selection']}."
    )
    body = "\n".join(f"<h2>{title}</h2>\n{content}" for title, content in sections)
    return PAGE.format(name=html.escape(run["name"]), summary=html.escape(summary), sections=body)


PARETO_CAPTION = "The models of this run: up and to the left is better. Bytes of the weights on disk."
LEDGER_CAPTION = "Bytes of each part of the packed file."
FLIP_CAPTION = "Share of the codes of each part that changed since the previous log."
ERROR_CAPTION = "Squared error of the fake-quantized weights, relative to the squared norm of the latent weights."


def _results(run: Mapping[str, Any]) -> str:
    teacher, metric = run["rows"][0], run["metric"]
    title = html.escape(metric_title(metric, run.get("positive_class")), quote=False)
    lines = [f"<tr><th>model</th><th>{title}</th><th>bytes</th><th>ratio</th><th>stored as</th></tr>"]
    for row in run["rows"]:
        numbers = [score_text(row["metrics"], metric), f"{row['bytes']:,}", f"{teacher['bytes'] / row['bytes']:.1f}"]
        cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
        lines.append(f"<tr><td>{html.escape(row['model'])}</td>{cells}<td>{html.escape(row['storage'])}</td></tr>")
    return f"<table>{''.join(lines)}</table>"


def _terms(log: Entries) -> dict[str, str]:
    logged = {key for entry in log if "loss" in entry for key in entry}
    return {key: key for key in sorted(logged - NOT_TERMS or logged & {"loss"})}


def _evaluations(log: Entries) -> dict[str, str]:
    others = ("_runtime", "_per_second", "_time", "_loss")
    names = {key for entry in log for key in entry if key.startswith("eval_") and not key.endswith(others)}
    return {key: key.removeprefix("eval_") for key in sorted(names)}


def _per_part(log: Entries, prefix: str) -> dict[str, str]:
    names = dict.fromkeys(key for entry in log for key in entry if key.startswith(prefix))
    return {key: key.removeprefix(prefix) for key in names}


def _curves(log: Entries, caption: str, names: Mapping[str, str]) -> str:
    """Returns a plot of log entries over steps, a line for each name; a note if nothing was logged."""

    def draw(axes: Any) -> None:
        for key, label in names.items():
            points = [(entry["step"], entry[key]) for entry in log if key in entry]
            axes.plot(*zip(*points, strict=True), label=_escaped(label), marker="." if len(points) < 20 else None)
        axes.set_xlabel("step")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8)

    return _figure(draw, caption) if names else "<p>Nothing was logged.</p>"


def _escaped(text: str) -> str:
    """Escapes text for matplotlib, where "$" starts a formula and a leading "_" hides a label."""
    return text.replace("$", r"\$").removeprefix("_")


def _draw_pareto(axes: Any, run: Mapping[str, Any]) -> None:
    for row in run["rows"]:
        axes.plot(row["bytes"], row["metrics"][run["metric"]], "o")
        place = row["bytes"], row["metrics"][run["metric"]]
        axes.annotate(_escaped(row["model"]), place, (6, 6), textcoords="offset points")
    axes.set_xscale("log")
    axes.margins(0.25)
    axes.set_xlabel("bytes on disk")
    axes.set_ylabel(_escaped(run["metric"]))


def _draw_ledger(axes: Any, run: Mapping[str, Any]) -> None:
    parts = dict(reversed(run["ledger"]["parts"].items()))
    bars = axes.barh(list(map(_escaped, parts)), list(parts.values()))
    axes.bar_label(bars, [f"{size:,}" for size in parts.values()], padding=3, fontsize=8)
    axes.margins(x=0.15)
    axes.set_xlabel("bytes")


def _figure(draw: Callable[[Any], None], caption: str) -> str:
    """Returns an SVG figure, with a caption, of what `draw` plots on the axes."""
    with needs_extra("report"):
        import matplotlib
        from matplotlib.figure import Figure
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": caption, "font.size": 10}):
        figure = Figure(figsize=(8, 3.6), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        draw(axes)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    svg = drawn.getvalue()
    return f"<figure>{svg[svg.index('<svg') :]}<figcaption>{html.escape(caption)}</figcaption></figure>"


def write_report(folder: str | Path, file: str | Path | None = None) -> Path:
    """Writes the report of a run's folder, by default as `report.html` in it, and returns its path.

    Raises:
        XTCError: if the folder holds no finished run, or matplotlib is missing.
        StateError: if the file cannot be written.
    """
    target = Path(folder) / "report.html" if file is None else Path(file)
    write_text(target, report_html(read_metrics(folder)))
    return target
