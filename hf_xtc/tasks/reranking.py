"""One number for a query and a passage, by which the passages of a query are ranked."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_xtc.errors import DataError
from hf_xtc.tasks.base import TASKS
from hf_xtc.tasks.regression import Regression

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_xtc.data.task_data import DataArguments, Splits, TaskData

SNIPPET = """import {package}  # registers the architecture
from sentence_transformers import CrossEncoder

model = CrossEncoder({folder}
scores = model.predict([("What flies?", "A plane is taking off."), ("What flies?", "A man is eating.")])"""

# What sentence-transformers applies to the output of a head that was trained to give the score itself.
IDENTITY = {"activation_fn": "torch.nn.modules.linear.Identity"}


@TASKS.register("reranking")
class Reranking(Regression):
    """The relevance of passages to queries: `--text_column` is the query, `--text_pair_column` the passage.

    Labels are numbers, 0 for a passage that is not relevant. Rows with the same query belong together.
    """

    problem_types = (None, "regression", "reranking")
    pipeline_tag = "text-ranking"
    library_name = "sentence-transformers"
    snippet = SNIPPET

    def __init__(self) -> None:
        self.activation: dict[str, Any] | None = None

    def reads(self, args: "DataArguments", rows: "Dataset") -> bool:
        return False  # not to be told from any other pair with a number: `--task`, or the model, says so

    def open(self, config: Any, model: str, revision: str | None, args: "DataArguments", *, fresh_head: bool) -> None:
        self.activation = IDENTITY if fresh_head else getattr(config, "sentence_transformers", None)

    def load(self, args: "DataArguments", sources: "Splits") -> "TaskData":
        data = super().load(replace(args, task="reranking"), sources)
        if not data.has_pairs:
            raise DataError(
                f"{data.name} has one text per row, but reranking needs a query and a passage. Name the passages "
                "with --text_pair_column."
            )
        return data

    def tokenize(self, rows: "Dataset", tokenizer: Any, args: "DataArguments") -> "Dataset":
        numbers: dict[str, int] = {}
        queries = [numbers.setdefault(query, len(numbers)) for query in rows["text"][:]]
        return super().tokenize(rows, tokenizer, args).add_column("query", queries)

    def main_metric(self, data: "TaskData") -> str:
        return "mrr@10"

    def metric_names(self, data: "TaskData") -> tuple[str, ...]:
        return ("mrr@10", "ndcg@10")

    def compute_metrics(self, data: "TaskData", rows: "Dataset") -> Callable[[Any], dict[str, float]]:
        from hf_xtc.data.ranking import ranking_scores

        queries = np.array(rows["query"][:])

        def compute(prediction: Any) -> dict[str, float]:
            outputs = prediction.predictions
            outputs = np.asarray(outputs[0] if isinstance(outputs, tuple) else outputs)
            return ranking_scores(queries, np.asarray(prediction.label_ids).reshape(-1), outputs.reshape(-1))

        return compute

    def units(self, rows: "Dataset") -> Any:
        return rows["query"][:]

    def recorded(self) -> dict[str, Any]:
        activation = {} if self.activation is None else {"sentence_transformers": self.activation}
        return {"xtc": {"task": "reranking"}, **activation}
