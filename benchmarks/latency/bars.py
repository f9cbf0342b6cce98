"""The bars: ratios of medians of one run, each with what was wanted of it. A peer that wins is named."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from latency.runtimes import PEERS, RUNTIMES, TEACHER
from latency.shapes import SHAPES, SST2

FLOAT = "torch_fp32"
# Ours -> shape -> how much faster than the best quantized peer of the same depth.
AGAINST_PEERS = {
    "ours_auto": {**dict.fromkeys(SHAPES, 1.5), SST2: 2.5},
    "ours_auto_avx2": {**dict.fromkeys(SHAPES, 1.1), SST2: 1.8},
    "ours_ternary_auto": {**dict.fromkeys(SHAPES, 1.0), "1x128": 1.25},
    "ours_ternary_auto_avx2": {**dict.fromkeys(SHAPES, 1.0), "1x128": 1.25},
}
# How much faster `ours_auto` is than the float model that the student was reduced from.
AGAINST_TEACHER = {**dict.fromkeys(SHAPES, 15.0), "8x128": 10.0}
# Backend -> its share of the float model's memory, above what the imports take.
MEMORY_MODEL = "bert-base-12"
MEMORY = {"ours_int8": 0.5, "ours_packed": 0.25}


@dataclass(frozen=True)
class Bar:
    """One ratio and its bar: at least (`speed`) or at most (`memory`) `wanted`."""

    kind: str
    model: str
    shape: str
    ours: str
    peer: str
    ours_value: float
    peer_value: float
    wanted: float

    @property
    def ratio(self) -> float:
        """How many times faster than the peer, or our share of the peer's memory."""
        if self.kind == "memory":
            return self.ours_value / self.peer_value
        return self.peer_value / self.ours_value

    @property
    def met(self) -> bool:
        """Whether the ratio reaches its bar."""
        return self.ratio <= self.wanted if self.kind == "memory" else self.ratio >= self.wanted

    def to_dict(self) -> dict[str, Any]:
        """As stored in the JSON."""
        return {**asdict(self), "ratio": self.ratio, "met": self.met}

    def __str__(self) -> str:
        ours, peer = RUNTIMES[self.ours].label, RUNTIMES[self.peer].label
        verdict = "met" if self.met else "NOT met"
        if self.kind == "memory":
            sizes = f"{self.ours_value / 1e6:.0f} MB, {peer} {self.peer_value / 1e6:.0f} MB"
            return f"{self.model}, memory: {ours} {sizes}: {self.ratio:.2f}x (at most {self.wanted:g}): {verdict}"
        winner = "" if self.ratio >= 1 else f"; {peer} WINS"
        times = f"{self.ours_value * 1e3:.1f} ms, {peer} {self.peer_value * 1e3:.1f} ms"
        figure = f"{self.ratio:.2f}x (at least {self.wanted:g})"
        return f"{self.model}, {self.shape}: {ours} {times}: {figure}: {verdict}{winner}"


def bars(results: dict[str, Any]) -> list[Bar]:
    """Every bar of which both sides were measured."""
    medians: dict[tuple[str, str], dict[str, float]] = {}
    for row in results["latency"]:
        medians.setdefault((row["model"], row["shape"]), {})[row["runtime"]] = row["median_seconds"]
    made = [bar for (model, shape), values in medians.items() for bar in _speed(model, shape, values)]
    return [*made, *_memory(results["processes"])]


def best_peer(values: dict[str, float]) -> str | None:
    """The fastest of the quantized peers that were measured, of runtime -> seconds."""
    return min((name for name in PEERS if name in values), key=values.__getitem__, default=None)


def _speed(model: str, shape: str, values: dict[str, float]) -> Iterator[Bar]:
    peer = best_peer(values)
    for ours, wanted in AGAINST_PEERS.items():
        if peer is not None and ours in values:
            yield Bar("speed", model, shape, ours, peer, values[ours], values[peer], wanted[shape])
    if TEACHER in values and "ours_auto" in values:
        least = AGAINST_TEACHER[shape]
        yield Bar("speed", model, shape, "ours_auto", TEACHER, values["ours_auto"], values[TEACHER], least)


def _memory(processes: list[dict[str, Any]]) -> Iterator[Bar]:
    above = {row["runtime"]: memory_bytes(row) for row in processes if row["model"] == MEMORY_MODEL}
    for ours, most in MEMORY.items():
        if ours in above and FLOAT in above:
            yield Bar("memory", MEMORY_MODEL, "", ours, FLOAT, above[ours], above[FLOAT], most)


def memory_bytes(row: dict[str, Any]) -> float:
    """Peak resident bytes of a fresh process above what its imports alone take."""
    return float(row["peak_bytes"] - row["imports_bytes"])
