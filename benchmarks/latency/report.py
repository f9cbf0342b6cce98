"""The results as Markdown: what was measured on, a table per model, the bars."""

from typing import Any

from latency.bars import AGAINST_PEERS, bars, best_peer, memory_bytes
from latency.runtimes import RUNTIMES


def markdown(results: dict[str, Any]) -> str:
    """The whole report."""
    models = results["arguments"]["models"]
    parts = [_head(results)]
    parts += [part for model in models for part in (_table(results, model), _first_calls(results, model))]
    parts += [_left_out(results), bars_table(results)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _head(results: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    flags = " ".join(results["flags"]) or "none of those looked for"
    batches = results["arguments"]["sst2_batches"]
    return (
        f"{results['date']}, {results['cpu']} ({flags}), {results['threads']} threads, {versions}.\n"
        f"`{results['command']}`\n\n"
        "Milliseconds of a batch, rows x tokens, in steady work (each time after a pause and untimed calls): median, "
        "10 %-90 % in brackets; random weights, two labels. "
        f"32xsst2: mean over {batches} batches of 32 rows with the lengths of SST-2 sentences, padded to the longest. "
        "Load: seconds to load the files; first: seconds from imports to first logits (1x128); "
        "memory: peak MB of the fresh process up to then, in brackets above its imports; files: MB."
    )


def _table(results: dict[str, Any], model: str) -> str:
    shapes = results["arguments"]["shapes"]
    latency = {(row["runtime"], row["shape"]): row for row in results["latency"] if row["model"] == model}
    lines = [
        f"| {model} | {' | '.join(shapes)} | load s | first s | memory MB | files MB |",
        f"|---|{'---:|' * (len(shapes) + 4)}",
    ]
    for process in results["processes"]:
        if process["model"] == model:
            cells = [_cell(latency.get((process["runtime"], shape))) for shape in shapes]
            lines.append(f"| {' | '.join([RUNTIMES[process['runtime']].label, *cells, *_cost(process)])} |")
    return "\n".join([*lines, *(f"{line} | | | |" for line in _winners(results, model))])


def _seconds(results: dict[str, Any], model: str, key: str = "median_seconds") -> dict[str, dict[str, float]]:
    """Shape -> runtime -> seconds, of one model."""
    found: dict[str, dict[str, float]] = {shape: {} for shape in results["arguments"]["shapes"]}
    for row in results["latency"]:
        if row["model"] == model and key in row:
            found[row["shape"]][row["runtime"]] = row[key]
    return found


def _winners(results: dict[str, Any], model: str) -> list[str]:
    """The fastest quantized peer of each shape, and how many times faster ours are; below 1 the peer wins, in bold."""
    seconds = _seconds(results, model).values()
    best = [best_peer(values) for values in seconds]
    if not any(best):
        return []
    names = ["" if peer is None else RUNTIMES[peer].label for peer in best]
    lines = [f"| *fastest quantized peer* | {' | '.join(names)} |"]
    for ours in AGAINST_PEERS:
        if any(ours in values for values in seconds):
            cells = [
                "" if peer is None or ours not in values else _ratio(values[peer] / values[ours])
                for peer, values in zip(best, seconds, strict=True)
            ]
            lines.append(f"| *{RUNTIMES[ours].label}: times faster* | {' | '.join(cells)} |")
    return lines


def _ratio(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio >= 1 else f"**{ratio:.2f}, peer wins**"


def _first_calls(results: dict[str, Any], model: str) -> str:
    """Milliseconds of the first call of each shape in a process that has answered other shapes before, and of the
    first call after a pause."""
    tables = []
    for key, what in (("first_seconds", "first call of a shape"), ("after_pause_seconds", "first call after a pause")):
        seconds = _seconds(results, model, key)
        if not any(seconds.values()):
            continue
        lines = [f"| {model}, {what} | {' | '.join(seconds)} |", f"|---|{'---:|' * len(seconds)}"]
        for name in dict.fromkeys(name for values in seconds.values() for name in values):
            cells = [f"{values[name] * 1e3:.1f}" if name in values else "" for values in seconds.values()]
            lines.append(f"| {RUNTIMES[name].label} | {' | '.join(cells)} |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def docs_table(results: dict[str, Any], model: str) -> str:
    """The table of docs/sizes-and-speed.md: medians in milliseconds, memory and file in MB, and who won where."""
    seconds = _seconds(results, model)
    lines = [f"| {model} | {' | '.join(seconds)} | memory | file |", f"|---|{'---|' * (len(seconds) + 2)}"]
    for process in results["processes"]:
        if process["model"] == model:
            name = process["runtime"]
            cells = [f"{values[name] * 1e3:.1f}" if name in values else "" for values in seconds.values()]
            sizes = f"{memory_bytes(process) / 1e6:.0f} MB | {process['file_bytes'] / 1e6:.1f} MB"
            lines.append(f"| {RUNTIMES[name].label} | {' | '.join(cells)} | {sizes} |")
    return "\n".join([*lines, *(f"{line} | |" for line in _winners(results, model))])


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    median, low, high = (f"{row[key] * 1e3:.{1 if row['median_seconds'] < 1 else 0}f}" for key in SPREAD)
    return f"{median} ({low}-{high})"


SPREAD = ("median_seconds", "p10_seconds", "p90_seconds")


def _cost(process: dict[str, Any]) -> list[str]:
    return [
        f"{process['load_seconds']:.2f}",
        f"{process['first_logits_seconds']:.1f}",
        f"{process['peak_bytes'] / 1e6:.0f} ({memory_bytes(process) / 1e6:.0f})",
        f"{process['file_bytes'] / 1e6:.1f}",
    ]


def _left_out(results: dict[str, Any]) -> str:
    return "\n".join(f"- Left out: {line}" for line in results["left_out"])


def bars_table(results: dict[str, Any]) -> str:
    """The summary: each bar, the figure, met or not."""
    lines = [f"- {bar}" for bar in bars(results)]
    return "\n".join(["Bars:", *lines]) if lines else "Bars: none, for want of `hf_xtc auto` or of its peers."
