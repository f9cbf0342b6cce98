"""Masked tokens of plain texts, for a compressed base that others fine-tune."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import AutoModelForMaskedLM, DataCollatorForTokenClassification

from hf_xtc.errors import DataError
from hf_xtc.tasks.base import TASKS, Task
from hf_xtc.tasks.token_classification import IGNORED, likeliest

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_xtc.data.task_data import DataArguments, Splits, TaskData

# Of the tokens of a text that are hidden: 80 % of them by the mask, 10 % by another token (Devlin et al. 2019).
SHARE = 0.15


@TASKS.register("masked-lm")
class MaskedLanguageModel(Task):
    """Texts alone. Each has the same tokens hidden in every epoch and process, so that a teacher cache fits.

    Which tokens are hidden depends on the number of the row in its split alone. Since the teacher's distribution over
    the vocabulary is learned at each of them, texts are better added than masked anew.
    """

    auto_class = AutoModelForMaskedLM
    head = "ForMaskedLM"
    pipeline_tag = "fill-mask"
    labelled = False
    fixed_words = None
    fixed_rows = None
    advice = "Name a model with the head of its pre-training, such as BertForMaskedLM, which other heads replace."

    def reads(self, args: "DataArguments", rows: "Dataset") -> bool:
        return False

    def load(self, args: "DataArguments", sources: "Splits") -> "TaskData":
        from datasets import Dataset, Features, Value

        from hf_xtc.data.tables import check_rows, select
        from hf_xtc.data.task_data import task_data

        limits, splits = {"train": args.max_train_samples}, {}
        for split, (source, rows, columns) in sources.items():
            table = select(source, rows, columns._replace(label=None, text_pair=None))
            check_rows(table, blank_allowed=False, numbers=False)
            texts = table.columns["text"][: limits.get(split, args.max_eval_samples)]
            splits[split] = Dataset.from_dict({"text": texts}, features=Features({"text": Value("string")}))
        return task_data(args, splits, None)

    def tokenize(self, rows: "Dataset", tokenizer: Any, args: "DataArguments") -> "Dataset":
        from hf_xtc.data.task_data import check_length

        check_length(tokenizer, args.max_length)
        if tokenizer.mask_token_id is None:
            raise DataError(f"{type(tokenizer).__name__} has no mask token, which a masked language model needs.")
        options = {"tokenizer": tokenizer, "max_length": args.max_length}
        return rows.map(_encode, batched=True, with_indices=True, fn_kwargs=options, remove_columns=rows.column_names)

    def collator(self, tokenizer: Any) -> Any:
        return DataCollatorForTokenClassification(tokenizer, label_pad_token_id=IGNORED)

    def head_config(self, data: "TaskData") -> dict[str, Any]:
        return {}

    def main_metric(self, data: "TaskData") -> str:
        return "accuracy"

    def metric_names(self, data: "TaskData") -> tuple[str, ...]:
        return ("accuracy",)

    def compute_metrics(self, data: "TaskData", rows: "Dataset") -> Callable[[Any], dict[str, float]]:
        def compute(prediction: Any) -> dict[str, float]:
            hidden = prediction.label_ids != IGNORED
            guesses = prediction.predictions[hidden]
            right = float((guesses == prediction.label_ids[hidden]).mean())
            return {"accuracy": float("nan") if (guesses < 0).any() else right}

        return compute

    def reduce_outputs(self, outputs: Any, labels: Any) -> Any:
        return likeliest(outputs)


def _encode(batch: dict[str, list[str]], indices: list[int], tokenizer: Any, max_length: int) -> dict[str, Any]:
    """Tokens of texts, some of them hidden, and `labels`: the hidden tokens, elsewhere `IGNORED`."""
    options = {"truncation": True, "max_length": max_length, "return_special_tokens_mask": True}
    encoded = dict(tokenizer(batch["text"], **options))
    special, inputs, labels = encoded.pop("special_tokens_mask"), [], []
    for index, ids, fixed in zip(indices, encoded["input_ids"], special, strict=True):
        tokens, target = hide(
            np.array(ids), np.array(fixed, dtype=bool), tokenizer.mask_token_id, len(tokenizer), index
        )
        inputs.append(tokens.tolist())
        labels.append(target.tolist())
    return {**encoded, "input_ids": inputs, "labels": labels}


def hide(tokens: np.ndarray, fixed: np.ndarray, mask: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A text with some tokens hidden, and the labels.

    Args:
        tokens, fixed (`np.ndarray` of shape `(tokens,)`): Ids, and which are special tokens that stay.
        mask (`int`), size (`int`): Id of the mask token, and the number of tokens, from which others are drawn.
        seed (`int`): Of the draw.

    Returns:
        Two arrays of the same shape: the ids, and the labels; `SHARE` of the free places, at least one, are hidden.
    """
    draw = np.random.default_rng(seed)
    free = np.flatnonzero(~fixed)
    chosen = draw.permutation(free)[: max(round(SHARE * len(free)), 1)]
    labels = np.full_like(tokens, IGNORED)
    labels[chosen] = tokens[chosen]
    kind = draw.random(len(chosen))
    hidden = tokens.copy()
    hidden[chosen] = np.where(
        kind < 0.8, mask, np.where(kind < 0.9, draw.integers(0, size, len(chosen)), hidden[chosen])
    )
    return hidden, labels
