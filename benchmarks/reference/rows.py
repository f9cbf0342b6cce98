"""The input of both sides: rows tokenized once, and their teacher's scores on them."""

import hashlib
import json
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_xtc.data.task_data import DataArguments, align_labels, load_task, tokenize
from hf_xtc.recipe.layer_map import LayerMap
from reference.curve import Rows, predict
from reference.scores import scores


def prepare(data_args: DataArguments, teacher: Path, keep_layers: int | None, file: Path) -> dict[str, Any]:
    """Writes the rows of a task to `file` and returns facts about them and about the teacher.

    Args:
        data_args (`DataArguments`): The task; "selection_share" of its train rows are held out.
        teacher (`Path`): Folder of a classifier fine-tuned on the task, with its tokenizer.
        keep_layers (`int`, *optional*): Layers of the student, spread evenly over the teacher's.

    Returns:
        `dict[str, Any]`: "layers": teacher layers of the student, from 0, `None` for all; "rows": number of rows of
        each split; "teacher" and "data": fingerprints; "teacher_scores": scores on selection and dev.
    """
    model = AutoModelForSequenceClassification.from_pretrained(teacher).float().eval()
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    task = align_labels(load_task(data_args), model.config.label2id, str(teacher))
    splits = {"fit": task.train, "selection": task.selection, "dev": task.validation}
    rows = {name: _rows(tokenize(split, tokenizer, data_args.max_length)) for name, split in splits.items()}
    text = json.dumps({**rows, "pad_token_id": tokenizer.pad_token_id})
    file.write_text(text)
    return {
        "layers": _layers(model.config.num_hidden_layers, keep_layers),
        "rows": {name: len(split["labels"]) for name, split in rows.items()},
        "teacher": _sha256((teacher / "model.safetensors").read_bytes()),
        "data": _sha256(text.encode()),
        "teacher_scores": {
            name: scores(
                str(task.task), predict(model, rows[name], tokenizer.pad_token_id).numpy(), rows[name]["labels"]
            )
            for name in ("selection", "dev")
        },
    }


def _rows(tokenized: Dataset) -> Rows:
    rows = {name: list(tokenized[name]) for name in ("input_ids", "labels")}
    blank = [[0] * len(ids) for ids in rows["input_ids"]]
    types = list(tokenized["token_type_ids"]) if "token_type_ids" in tokenized.column_names else blank
    return {**rows, "token_type_ids": types}


def _layers(depth: int, keep: int | None) -> list[int] | None:
    return None if keep is None or keep == depth else list(LayerMap.skip(depth, keep).layers)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
