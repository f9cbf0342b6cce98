"""Code shared by both workers: reads the rows, scores a model, times its training, and keeps the best weights.

Needs only torch and numpy, to run in both environments. For scoring, rows are padded to the longest of their batch on
both sides: padding is masked, so it only affects the time of scoring, which is not counted.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reference.scores import main_score, rank, scores

EVAL_BATCH = 64
Rows = dict[str, list[Any]]


def pad(rows: Rows, indices: list[int], pad_token_id: int, length: int | None = None) -> dict[str, Tensor]:
    """A batch of some rows, padded to `length` or to its longest.

    Args:
        rows: "input_ids" and "token_type_ids", a list of integers per row.

    Returns:
        `dict[str, torch.Tensor]`: ids, mask and token types of shape `(len(indices), length)`, `int64`.
    """
    length = length or max(len(rows["input_ids"][i]) for i in indices)

    def padded(values: list[list[int]], fill: int) -> Tensor:
        return torch.tensor([row + [fill] * (length - len(row)) for row in values])

    return {
        "input_ids": padded([rows["input_ids"][i] for i in indices], pad_token_id),
        "attention_mask": padded([[1] * len(rows["input_ids"][i]) for i in indices], 0),
        "token_type_ids": padded([rows["token_type_ids"][i] for i in indices], 0),
    }


def predict(model: nn.Module, rows: Rows, pad_token_id: int) -> Tensor:
    """Logits of all rows, `(rows, labels)`, float32, computed in eval mode; restores the model's mode."""
    training, device = model.training, next(model.parameters()).device
    order = sorted(range(len(rows["labels"])), key=lambda i: len(rows["input_ids"][i]))
    model.eval()
    with torch.no_grad():
        made = [
            model(**{k: v.to(device) for k, v in pad(rows, order[at : at + EVAL_BATCH], pad_token_id).items()}).logits
            for at in range(0, len(order), EVAL_BATCH)
        ]
    model.train(training)
    logits = torch.cat(made).float().cpu()
    return logits[torch.tensor(order).argsort()]


class Curve:
    """Scores of a model over its training time, and its best weights.

    The best weights are the first with the highest score on the selection rows; nothing is chosen on dev.

    Args:
        config (`dict`): "task", "steps" and "eval_steps" of the run.
        data (`dict`): "selection" and "dev" rows, "pad_token_id".
    """

    def __init__(self, config: dict[str, Any], data: dict[str, Any]):
        self.config, self.data = config, data
        self.points: list[dict[str, Any]] = []
        self.step_seconds: list[float] = []
        self.best: dict[str, Tensor] = {}
        self.selected: dict[str, Any] = {}
        self._mark = 0.0

    def start(self) -> None:
        """Starts the clock of the first step."""
        self._mark = time.perf_counter()

    def step(self, step: int, model: nn.Module) -> None:
        """Stops the clock of a step, counted from 1; scores the model every `eval_steps`, and after the last step."""
        self.step_seconds.append(time.perf_counter() - self._mark)
        if step % self.config["eval_steps"] == 0 or step == self.config["steps"]:
            self._score(step, model)
        self._mark = time.perf_counter()

    def _score(self, step: int, model: nn.Module) -> None:
        point = {"step": step, "seconds": sum(self.step_seconds)}
        self.points.append({**point, **{split: self.scores(model, split) for split in ("selection", "dev")}})
        main = main_score(self.config["task"])
        if not self.best or rank(self.points[-1]["selection"][main]) > rank(self.selected["selection"][main]):
            self.selected = self.points[-1]
            self.best = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        print(json.dumps(self.points[-1]), file=sys.stderr, flush=True)

    def scores(self, model: nn.Module, split: str) -> dict[str, float]:
        """Scores of the model on "selection" or "dev"."""
        rows = self.data[split]
        logits = predict(model, rows, self.data["pad_token_id"]).numpy()
        return scores(self.config["task"], logits, rows["labels"])

    def record(self) -> dict[str, Any]:
        """The run's part of the record: the curve, its chosen point, and seconds without scoring."""
        return {
            "curve": self.points,
            "selected": self.selected,
            "training_seconds": sum(self.step_seconds),
            "step_seconds": statistics.median(self.step_seconds),
        }


def file_bytes(folder: str) -> dict[str, int]:
    """File name -> bytes of the weights in a folder."""
    weights = (".safetensors", ".bin")
    return {file.name: file.stat().st_size for file in sorted(Path(folder).iterdir()) if file.suffix in weights}


def serve(run: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]) -> None:
    """`python -m reference.<side>_worker config.json`: makes one run and writes its record to "record_file"."""
    config = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(config["threads"])
    record = run(config, json.loads(Path(config["rows_file"]).read_text()))
    Path(config["record_file"]).write_text(json.dumps(record))
