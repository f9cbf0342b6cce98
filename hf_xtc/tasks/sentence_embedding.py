"""One vector for each text, whose cosine to that of another says how similar the two are."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoModel
from transformers.utils import cached_file

from hf_xtc.errors import DataError
from hf_xtc.files.sentence_files import MODULES, POOLING, SENTENCES, TRANSFORMER, SentenceSettings
from hf_xtc.files.sentence_files import read_sentence_settings as read_folder
from hf_xtc.tasks.base import TASKS, Task
from hf_xtc.tasks.pooling import pool

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_xtc.data.task_data import DataArguments, Splits, TaskData

logger = logging.getLogger(__name__)

SNIPPET = """import {package}  # registers the architecture
from sentence_transformers import SentenceTransformer

model = SentenceTransformer({folder}
vectors = model.encode(["A plane is taking off.", "An air plane is taking off."])"""


@TASKS.register("sentence-embedding")
class SentenceEmbedding(Task):
    """A vector for each text, made of an encoder's hidden states as `settings` say: texts alone teach it.

    Validation is the rank correlation of cosines with the scores of pairs or, where there are no scores, with the
    cosines of the teacher.
    """

    auto_class = AutoModel
    head = "Model"
    problem_types = ("sentence-embedding",)
    has_loss = False
    scored_by_teacher = True
    pipeline_tag = "sentence-similarity"
    library_name = "sentence-transformers"
    snippet = SNIPPET
    labelled = False
    fixed_words = None
    fixed_rows = None
    advice = (
        "Name a model that embeds texts: a folder of sentence-transformers, or an encoder without a head, which "
        "AutoModel.from_pretrained(MODEL).save_pretrained(FOLDER) writes; save its tokenizer there, too."
    )
    needs_head = False
    terms = {"hidden_states": 1.0, "attention_scores": 1.0, "embeddings": 10.0, "similarities": 10.0}

    def __init__(self) -> None:
        self.sentences = SentenceSettings()

    def reads(self, args: "DataArguments", rows: "Dataset") -> bool:
        return False

    def open(self, config: Any, model: str, revision: str | None, args: "DataArguments", *, fresh_head: bool) -> None:
        if fresh_head:
            raise DataError(
                "--fine_tune trains a head on labels, and sentence-embedding has none: texts are distilled from a "
                "teacher that embeds them already. Leave it out."
            )
        found = read_settings(model, revision) or SentenceSettings()
        self.sentences = found if args.pooling is None else replace(found, pooling=args.pooling)

    def load(self, args: "DataArguments", sources: "Splits") -> "TaskData":
        from hf_xtc.data.texts import load_texts

        return load_texts(args, sources)

    def teach(self, data: "TaskData", teacher: Any, tokenizer: Any, args: "DataArguments") -> "TaskData":
        from hf_xtc.data.texts import neighbours, with_scores

        held_out = None if data.selection is None else neighbours(data.selection["text"][:])
        splits = {"validation": data.validation, "selection": held_out, **data.extra_validation}
        scored = {}
        for name, rows in splits.items():
            if rows is not None and "label" not in rows.column_names:
                if teacher is None:
                    raise DataError(
                        f"{data.name} has texts without scores, which those of the teacher replace. Pass --teacher "
                        "MODEL, or pairs with scores: --text_pair_column and --label_column."
                    )
                rows = with_scores(rows, cosines(self._vectors(rows, teacher, tokenizer, args)))
            scored[name] = rows
        validation, selection = scored.pop("validation"), scored.pop("selection")
        return replace(data, validation=validation, selection=selection, extra_validation=scored)

    @torch.no_grad()
    def _vectors(self, rows: "Dataset", model: Any, tokenizer: Any, args: "DataArguments") -> np.ndarray:
        """Vectors of the texts of pairs, in the order of `tokenize`."""
        inputs, collate, found = self.tokenize(rows, tokenizer, args), self.collator(tokenizer), []
        model.eval()
        for start in range(0, len(inputs), 64):
            batch = collate(inputs.select(range(start, min(start + 64, len(inputs)))).to_list()).to(model.device)
            found.append(pool(model(**batch)[0], batch["attention_mask"], self.sentences.pooling).cpu().numpy())
        return np.concatenate(found)

    def tokenize(self, rows: "Dataset", tokenizer: Any, args: "DataArguments") -> "Dataset":
        from hf_xtc.data.texts import encode_texts

        return encode_texts(rows, tokenizer, args.max_length, self.sentences.default_prompt)

    def settings(self, args: "DataArguments") -> dict[str, Any]:
        return {"sentences": self.sentences.to_dict()}

    def head_config(self, data: "TaskData") -> dict[str, Any]:
        return {}

    def recorded(self) -> dict[str, Any]:
        return {"xtc": {"task": "sentence-embedding", "sentences": self.sentences.to_dict()}}

    def main_metric(self, data: "TaskData") -> str:
        return "spearmanr"

    def metric_names(self, data: "TaskData") -> tuple[str, ...]:
        return ("pearson", "spearmanr")

    def compute_metrics(self, data: "TaskData", rows: "Dataset") -> Callable[[Any], dict[str, float]]:
        from hf_xtc.data.metrics import correlations

        def compute(prediction: Any) -> dict[str, float]:
            return correlations(cosines(prediction.predictions), np.array(rows["score"][::2], np.float32))

        return compute

    def units(self, rows: "Dataset") -> Any:
        return [row // 2 for row in range(len(rows))]  # both texts of a pair

    def trainer_class(self, base: Any) -> Any:
        pooling = self.sentences.pooling

        class EmbeddingTrainer(base):  # type: ignore[misc]
            """Predicts the vectors of texts."""

            def prediction_step(self, model: Any, inputs: Any, *_: Any, **__: Any) -> tuple[None, Any, Any]:
                inputs = self._prepare_inputs(inputs)
                with torch.no_grad(), self.compute_loss_context_manager():
                    vectors = pool(model(**inputs)[0], inputs.get("attention_mask"), pooling)
                return None, vectors, torch.zeros(len(vectors), device=vectors.device)  # without labels: no metrics

        return EmbeddingTrainer


def cosines(vectors: np.ndarray) -> np.ndarray:
    """The cosine of each vector in an even place and the one after it.

    Args:
        vectors (`numpy.ndarray` of shape `(2 * pairs, features)`): The vectors of pairs of texts.

    Returns:
        `numpy.ndarray` of shape `(pairs,)`, float32.
    """
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    found: np.ndarray = (unit[::2] * unit[1::2]).sum(1)
    return found.astype(np.float32)


def read_settings(model: str, revision: str | None = None) -> SentenceSettings | None:
    """The settings of a sentence-transformers folder, or repository of the Hub; `None` of any other model.

    Raises:
        PackedFileError: if its files are invalid, or say what is not computed here.
    """
    options: dict[str, Any] = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    options["_raise_exceptions_for_connection_errors"] = False
    modules = cached_file(model, MODULES, **options)
    if modules is None:  # so that a model of another kind costs one request
        return None
    for name in (TRANSFORMER, SENTENCES, POOLING):
        cached_file(model, name, **options)
    return read_folder(Path(modules).parent)
