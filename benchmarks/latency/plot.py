"""The results as a picture: latency relative to torch fp32, a panel per model; memory and file size of the first."""

from pathlib import Path
from typing import Any

from latency.bars import FLOAT, memory_bytes
from latency.runtimes import RUNTIMES, TEACHER

# Bars end here; a longer one carries its figure.
LONGEST = 1.6
# Runtimes whose times are drawn, if any of them was measured; all are in the tables.
COMPARED = (
    "torch_fp32",
    "ort_int8",
    "openvino_int8",
    "ours_packed",
    "ours_auto",
    "ours_auto_avx2",
    "ours_ternary_auto",
)
FAMILIES = {"torch": "Greys", "ort": "Blues", "openvino": "Purples", "ours": "Oranges", "ours_to": "Greens"}


def draw(results: dict[str, Any], file: str | Path) -> None:
    """Writes the PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = results["arguments"]["models"]
    figure = pyplot.figure(figsize=(15, 3.6 * len(models) + 5), layout="constrained")
    grid = figure.add_gridspec(len(models) + 1, 2, height_ratios=[3.6] * len(models) + [5])
    colors = _colors([row["runtime"] for row in results["processes"]])
    compared = {name: color for name, color in colors.items() if name in COMPARED} or colors
    for index, model in enumerate(models):
        _latency(figure.add_subplot(grid[index, :]), results, model, compared)
    for column, (title, megabytes) in enumerate(SIZES.items()):
        _sizes(figure.add_subplot(grid[-1, column]), results, models[0], colors, title, megabytes)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper center", ncols=5)
    caption = f"{results['date']}, {results['cpu']}, {results['threads']} threads; batch of rows x tokens, medians"
    figure.supxlabel(caption, fontsize=10)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


SIZES = {
    "memory of a fresh process above its imports, MB": lambda row: memory_bytes(row) / 1e6,
    "files, MB": lambda row: row["file_bytes"] / 1e6,
}


def _family(runtime: str) -> str:
    if runtime.startswith(("ours_onnx", "ours_openvino")):
        return "ours_to"
    return "torch" if runtime in (TEACHER, "torchao_int8") else runtime.split("_")[0]


def _colors(runtimes: list[str]) -> dict[str, Any]:
    """A hue for each family, a shade for each of its runtimes."""
    import matplotlib

    shown = [name for name in dict.fromkeys(runtimes) if name != TEACHER]
    colors = {}
    for family, scale in FAMILIES.items():
        members = [name for name in shown if _family(name) == family]
        for index, name in enumerate(members):
            colors[name] = matplotlib.colormaps[scale](0.35 + 0.5 * (index + 1) / len(members))
    return colors


def _latency(axes: Any, results: dict[str, Any], model: str, colors: dict[str, Any]) -> None:
    """Bars relative to PyTorch's float32 or, where that was not measured, to the first runtime that was."""
    shapes = results["arguments"]["shapes"]
    medians = {(r["runtime"], r["shape"]): r["median_seconds"] for r in results["latency"] if r["model"] == model}
    base = next((name for name in (FLOAT, *colors) if any((name, shape) in medians for shape in shapes)), FLOAT)
    width = 0.88 / max(len(colors), 1)
    for index, (runtime, color) in enumerate(colors.items()):
        offset = (index - (len(colors) - 1) / 2) * width
        for place, shape in enumerate(shapes):
            if (runtime, shape) in medians and (base, shape) in medians:
                value = medians[runtime, shape] / medians[base, shape]
                axes.bar(place + offset, min(value, LONGEST), width * 0.92, color=color)
                _figure(axes, place + offset, value)
        axes.bar(0, 0, color=color, label=RUNTIMES[runtime].label)
    names = [f"{s}\n{medians[base, s] * 1e3:.1f} ms" if (base, s) in medians else s for s in shapes]
    axes.set_xticks(range(len(shapes)), names)
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axes.set(ylim=(0, LONGEST + 0.2), xlim=(-0.5, len(shapes) - 0.5), ylabel="relative time")
    of = RUNTIMES[base].label
    axes.set_title(f"{model}: time of a batch / that of {of} (written below); lower is better, bars end at {LONGEST}")
    axes.spines[["top", "right"]].set_visible(False)


def _figure(axes: Any, place: float, value: float) -> None:
    text = f"{value:.2f}" if value < 10 else f"{value:.0f}"
    axes.text(place, min(value, LONGEST) + 0.02, text, rotation=90, ha="center", va="bottom", fontsize=7)


def _sizes(axes: Any, results: dict[str, Any], model: str, colors: dict[str, Any], title: str, size: Any) -> None:
    rows = [row for row in results["processes"] if row["model"] == model and row["runtime"] in colors]
    labels = [RUNTIMES[row["runtime"]].label for row in rows]
    drawn = axes.barh(labels, [size(row) for row in rows], color=[colors[row["runtime"]] for row in rows])
    axes.bar_label(drawn, fmt="%.0f", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_title(f"{model}: {title}")
    axes.margins(x=0.1)
    axes.spines[["top", "right"]].set_visible(False)
