"""The GLUE tasks: their columns and label names, and their rows from parquet files or from the Hub."""

from pathlib import Path

from hf_xtc.data.tables import Columns, read_file
from hf_xtc.errors import DataError, needs_extra

with needs_extra("cli"):
    from datasets import Dataset, load_dataset

GLUE = {
    "cola": Columns("sentence", None, ("unacceptable", "acceptable")),
    "mnli": Columns("premise", "hypothesis", ("entailment", "neutral", "contradiction")),
    "mrpc": Columns("sentence1", "sentence2", ("not_equivalent", "equivalent")),
    "qnli": Columns("question", "sentence", ("entailment", "not_entailment")),
    "qqp": Columns("question1", "question2", ("not_duplicate", "duplicate")),
    "rte": Columns("sentence1", "sentence2", ("entailment", "not_entailment")),
    "sst2": Columns("sentence", None, ("negative", "positive")),
    "stsb": Columns("sentence1", "sentence2"),
    "wnli": Columns("sentence1", "sentence2", ("not_entailment", "entailment")),
}
HUB_GLUE = "nyu-mll/glue"
GLUE_DIR_HELP = (
    "Folder of GLUE parquet files: [task/]train.parquet and [task/]validation.parquet (mnli: validation_matched and "
    "validation_mismatched). Without it GLUE comes from the Hub."
)


def glue_tables(task: str, data_dir: str | None) -> dict[str, tuple[str, Dataset, Columns]]:
    """Split -> (name for messages, raw table, columns): train and validation, and for mnli also mismatched.

    Raises:
        DataError: if a file is missing or unreadable, or the Hub cannot be reached.
    """
    columns, files = GLUE[task], {"train": "train", "validation": "validation"}
    if task == "mnli":
        files |= {"validation": "validation_matched", "mismatched": "validation_mismatched"}
    if data_dir is None:
        hub = _load_hub(task)
        return {split: (f"{HUB_GLUE} {task} {file}", hub[file], columns) for split, file in files.items()}
    folders = [Path(data_dir) / task, Path(data_dir)]
    found = [folder for folder in folders if (folder / "train.parquet").is_file()]
    if not found:
        tried = " nor ".join(str(folder / "train.parquet") for folder in folders)
        raise DataError(f"--data_dir holds no GLUE {task}: there is neither {tried}.")
    paths = {split: str(found[0] / f"{file}.parquet") for split, file in files.items()}
    return {split: (path, read_file(path), columns) for split, path in paths.items()}


def _load_hub(task: str) -> dict[str, Dataset]:
    try:
        return dict(load_dataset(HUB_GLUE, task))
    except Exception as error:  # many types, with the same advice for all
        raise DataError(
            f"GLUE task {task} cannot be loaded from {HUB_GLUE} on the Hub: {error}. Pass --data_dir with its parquet "
            f"files, or your own data with --train_file and --validation_file."
        ) from error
