"""A fresh process for one runtime: `python -m latency.worker`, JSON lines in and out.

First line in: what to load. First line out: what that took, up to the first logits. Then one answer per line:
`{"logits": null}` gives the logits of the check, `{"time": shape}` the seconds of a batch of that shape in steady work
and at the first call after a pause.
A process for each runtime keeps their thread pools and their memory apart.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from latency.files import CHECK_SEED
from latency.runtimes import RUNTIMES, Run
from latency.shapes import CHECK, FIXED, Batch, make_batches
from machine import peak_bytes, resident_bytes

# Shape of the first logits of a fresh process: rows, tokens.
FIRST = FIXED["1x128"]
# Thread pools spin for a while after their work; a spinning pool of one process must not slow down the next.
PAUSE_SECONDS = 0.05
# Then untimed calls: a processor that was idle takes milliseconds to wake, on virtual machines most of all.
WARM_SECONDS = 0.03


def private_stdout() -> TextIO:
    """What only this module writes to; whatever else prints goes to stderr."""
    stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return stream


def start(config: dict[str, Any]) -> tuple[Run, dict[str, float]]:
    """The loaded runtime, and seconds and bytes of imports, loading and first logits."""
    runtime = RUNTIMES[config["runtime"]]
    rows, tokens = FIRST
    batch = make_batches([[tokens] * rows], config["vocab_size"], config["seed"])[0]
    began = time.perf_counter()
    runtime.imports()
    imported, imports_bytes = time.perf_counter(), resident_bytes()
    run = runtime.load(Path(config["folder"]), config["threads"])
    loaded = time.perf_counter()
    run(batch)
    return run, {
        "import_seconds": imported - began,
        "load_seconds": loaded - imported,
        "first_logits_seconds": time.perf_counter() - began,
        "imports_bytes": imports_bytes,
        "peak_bytes": peak_bytes(),
    }


def answers(run: Run, config: dict[str, Any]) -> Callable[[dict[str, Any]], Any]:
    """The function from a question to its answer."""
    made = {
        name: make_batches(shape, config["vocab_size"], config["seed"]) for name, shape in config["shapes"].items()
    }

    def seconds(batches: list[Batch]) -> float:
        began = time.perf_counter()
        for batch in batches:
            run(batch)
        return (time.perf_counter() - began) / len(batches)

    def answer(question: dict[str, Any]) -> Any:
        if "logits" in question:
            return run(make_batches(CHECK, config["vocab_size"], CHECK_SEED)[0]).tolist()
        batches = made[question["time"]]
        time.sleep(PAUSE_SECONDS)
        warm = [seconds(batches)]
        while sum(warm) * len(batches) < WARM_SECONDS:
            warm.append(seconds(batches))
        return {"seconds": seconds(batches), "after_pause_seconds": warm[0]}

    return answer


def main() -> None:
    """Answers until its input ends."""
    stream = private_stdout()
    config = json.loads(sys.stdin.readline())
    run, cost = start(config)
    print(json.dumps(cost), file=stream, flush=True)
    answer = answers(run, config)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=stream, flush=True)


if __name__ == "__main__":
    main()
