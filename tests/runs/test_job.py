"""What makes a run another run: each thing that determines its result, and none that does not."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from compress_options import VOCAB, sentences
from compress_options import folder as folder
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertForSequenceClassification, BertTokenizerFast

from hf_xtc import XTCRecipe, XTCTrainingArguments, compress, pack_model
from hf_xtc.data.task_data import DataArguments
from hf_xtc.errors import DataError, XTCError
from hf_xtc.files.lock import FolderLock
from hf_xtc.quantization.quantizers import BinaryQuantizer
from hf_xtc.runs import fingerprint
from hf_xtc.runs.arguments import AugmentationArguments, JobArguments, RecipeArguments
from hf_xtc.runs.job import prepare

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def inputs(folder, tmp_path, monkeypatch):
    """A copy of the teachers and the data, as the working directory."""
    shutil.copytree(folder, tmp_path / "inputs", ignore=shutil.ignore_patterns("packed"))
    monkeypatch.chdir(tmp_path / "inputs")
    sentences(16, 5).to_csv("more.csv", index=False)
    Path("glove.txt").write_text("good 1 2\nbad 2 1\nfilm 0 1\n")
    Path("recipe.json").write_text(json.dumps({**XTCRecipe(keep_layers=2).to_dict()}))
    Path("schedule.json").write_text(json.dumps({"stages": [{"name": "student"}]}))
    return tmp_path / "inputs"


def claim(**options):
    """Prepares a run in the folder `out`; `options` are those of the command line."""
    options = {"teacher": "teacher", "train_file": "train.csv", "validation_file": "validation.csv", **options}
    options = {"keep_layers": 2, "max_length": 32, "use_cpu": True, **options}
    kinds = (JobArguments, DataArguments, RecipeArguments, AugmentationArguments)
    parsed = [kind(**{k: options.pop(k) for k in list(options) if k in kind.__dataclass_fields__}) for kind in kinds]
    job, data, recipe, augmentation = parsed
    students = options.pop("students", True)
    with FolderLock("out") as lock:
        return prepare(
            job, data, recipe, XTCTrainingArguments("out", **options), augmentation, lock=lock, students=students
        )


def refused(names, **options):
    """Asserts that the folder holds another run, which differs in exactly these."""
    with pytest.raises(XTCError) as caught:
        claim(**options)
    found = re.fullmatch(r"The folder out holds another run; it differs in (.*)\. Give another .*", str(caught.value))
    assert found, str(caught.value)
    assert [re.sub(r" \(.*\)", "", name) for name in re.split(r", (?![^(]*\))", found[1])] == names


def edit(file, **changes):
    values = json.loads(Path(file).read_text())
    Path(file).write_text(json.dumps({**values, **changes}))


def other_teacher(**options):
    torch.manual_seed(3)
    BertForSequenceClassification(BertConfig.from_pretrained("teacher")).save_pretrained("teacher", **options)


def pickled():
    """The weights as `pytorch_model.bin`."""
    model = BertForSequenceClassification.from_pretrained("teacher")
    Path("teacher/model.safetensors").unlink()
    torch.save(model.state_dict(), "teacher/pytorch_model.bin")


def other_pickle():
    state = torch.load("teacher/pytorch_model.bin", weights_only=True)
    state["classifier.bias"] += 1
    torch.save(state, "teacher/pytorch_model.bin")


def sharded():
    model = BertForSequenceClassification.from_pretrained("teacher")
    Path("teacher/model.safetensors").unlink()
    model.save_pretrained("teacher", max_shard_size="20KB")


def other_shard():
    other_teacher(max_shard_size="20KB")


def keep_case():
    """A tokenizer whose vocabulary is the same, and whose rules are not."""
    edit("teacher/tokenizer_config.json", do_lower_case=False)


def swap_words():
    vocab = {**VOCAB, "good": VOCAB["bad"], "bad": VOCAB["good"]}
    BertTokenizerFast(vocab=vocab, model_max_length=40).save_pretrained("teacher")


def pad_left():
    edit("teacher/tokenizer_config.json", padding_side="left")


def start_from(seed=5):
    torch.manual_seed(seed)
    config = BertConfig.from_pretrained("teacher", num_labels=1)
    student = compress(BertForSequenceClassification(config), XTCRecipe(keep_layers=2))
    pack_model(student).save_pretrained("start")
    AutoTokenizer.from_pretrained("teacher").save_pretrained("start")


def masked_lm(seed=5):
    torch.manual_seed(seed)
    BertForMaskedLM(BertConfig.from_pretrained("base")).save_pretrained("mlm")
    AutoTokenizer.from_pretrained("teacher").save_pretrained("mlm")


def glove(folder="glove", scale=1.0):
    """Word vectors as a folder of two files."""
    Path(folder).mkdir(exist_ok=True)
    np.save(f"{folder}/vectors.npy", np.array([[1.0, 2.0], [2.0, scale]], dtype=np.float32))
    pd.DataFrame({"word": ["good", "bad"]}).to_parquet(f"{folder}/words.parquet")


def change_row(file):
    rows = pd.read_csv(file)
    rows.loc[0, "text"] = "sad sad sad film"
    rows.to_csv(file, index=False)


STARTED = {"start_from": "start"}
FROM_GLOVE = {"augment": True, "augmentation_glove": "glove.txt"}
FROM_FOLDER = {"augment": True, "augmentation_glove": "glove"}
FROM_LM = {"augment": True, "augmentation_masked_lm": "mlm"}
CHANGES = {
    "weights": ({}, None, other_teacher, ["teacher weights"]),
    "pickled weights": ({}, pickled, other_pickle, ["teacher weights"]),
    "shards": ({}, sharded, other_shard, ["teacher weights"]),
    "weights to fine-tune": (
        {"teacher": "base", "fine_tune": True},
        None,
        lambda: shutil.copy("teacher/model.safetensors", "base/model.safetensors"),
        ["teacher weights"],
    ),
    "config": ({}, None, lambda: edit("teacher/config.json", hidden_dropout_prob=0.3), ["teacher config"]),
    "tokenizer rules": ({}, None, keep_case, ["teacher tokenizer"]),
    "vocabulary": ({}, None, swap_words, ["teacher tokenizer"]),
    "padding side": ({}, None, pad_left, ["teacher tokenizer"]),
    "train": ({}, None, lambda: change_row("train.csv"), ["data fingerprint"]),
    "validation": ({}, None, lambda: change_row("validation.csv"), ["data fingerprint"]),
    "unlabelled": ({"unlabelled": ["more.csv"]}, None, lambda: change_row("more.csv"), ["unlabelled"]),
    "start": (STARTED, start_from, lambda: start_from(6), ["start_from weights"]),
    "glove": (
        FROM_GLOVE,
        None,
        lambda: Path("glove.txt").write_text("good 1 2\nbad 2 2\n"),
        ["augmentation_source words"],
    ),
    "glove folder": (FROM_FOLDER, glove, lambda: glove(scale=3.0), ["augmentation_source words"]),
    "masked LM": (FROM_LM, masked_lm, lambda: masked_lm(6), ["augmentation_source weights"]),
    "recipe file": (
        {"recipe_file": "recipe.json"},
        None,
        lambda: edit("recipe.json", weights="ternary"),
        ["quantizers ternary", "recipe weights"],
    ),
    "schedule": (
        {"schedule": "schedule.json"},
        None,
        lambda: edit("schedule.json", stages=[{"name": "student", "dropout": 0.1}]),
        ["schedule stages"],
    ),
}


@pytest.mark.parametrize("options, first, change, names", CHANGES.values(), ids=CHANGES)
def test_a_changed_input_makes_another_run(inputs, options, first, change, names):
    if first is not None:
        first()
    claim(**options)
    claim(**options)  # the same run
    change()
    refused(names, **options)


@pytest.mark.parametrize(
    "names, options",
    [
        (["training seed"], {"seed": 7}),
        (["training data_seed"], {"data_seed": 7}),
        (["training learning_rate"], {"learning_rate": 0.5}),
        (["rows_per_step", "training per_device_train_batch_size"], {"per_device_train_batch_size": 7}),
        (["training dataloader_drop_last"], {"dataloader_drop_last": True}),
        (["data max_length"], {"max_length": 31}),
        (["rows"], {"selection_share": 0.1}),
        (["training teacher_cache"], {"teacher_cache": "cache"}),
        (["recipe keep_layers"], {"keep_layers": 3}),
        (["augmentation augment"], {"augment": True}),
    ],
    ids=str,
)
def test_a_changed_option_makes_another_run(inputs, names, options):
    claim()
    refused(names, **options)


@pytest.mark.parametrize("package", ["torch", "transformers", "tokenizers", "accelerate", "numpy", "hf_xtc"])
def test_another_version_makes_another_run(inputs, monkeypatch, package):
    claim()
    real = fingerprint.version
    monkeypatch.setattr(fingerprint, "version", lambda name: "9.9" if name == package else real(name))
    refused([f"versions {package}"])


def test_another_quantizer_of_the_same_name_makes_another_run(inputs, monkeypatch):
    claim()
    monkeypatch.setattr(BinaryQuantizer, "fake", lambda self, groups, scale_dtype: groups.sign())
    refused(["quantizers binary"])


def test_more_devices_make_another_run(inputs, monkeypatch):
    """Each step then has more rows."""
    claim()
    monkeypatch.setattr(XTCTrainingArguments, "train_batch_size", 64)
    refused(["rows_per_step"])


def test_which_steps_are_saved_counts_where_the_best_is_kept(inputs):
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps"}
    claim(**best, save_steps=2)
    refused(["training save_steps"], **best, save_steps=4)


@pytest.mark.parametrize(
    "options",
    [
        {"logging_steps": 7},
        {"report_to": "tensorboard"},
        {"run_name": "x", "disable_tqdm": True},
        {"save_total_limit": 3, "save_steps": 9, "save_strategy": "steps"},
        {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 4, "dataloader_persistent_workers": True},
        {"dataloader_pin_memory": True},
        {"do_train": True, "do_eval": True},
        {"teacher_license": "mit"},
        {"ddp_timeout": 7},
        {"skip_memory_metrics": False},
    ],
    ids=str,
)
def test_an_option_without_effect_keeps_the_run(inputs, options):
    claim()
    claim(**options)


def touch():
    for file in Path().rglob("*"):
        if "out" not in file.parts:
            os.utime(file, (0, 0))


def move_all():
    """The whole working directory elsewhere, and the inputs to other names in it."""
    for name in ("teacher", "start", "mlm"):
        Path(name).rename(f"moved-{name}")
    for name in ("train.csv", "validation.csv", "more.csv", "glove.txt"):
        Path(name).rename(f"moved-{name}")
    here = Path.cwd()
    here.rename(here.with_name("elsewhere"))
    os.chdir(here.with_name("elsewhere"))


def test_files_that_were_touched_or_moved_keep_the_run(inputs):
    start_from()
    masked_lm()
    options = {"augment": True, "augmentation_masked_lm": "mlm", "augmentation_glove": "glove.txt"}
    options |= {"start_from": "start", "unlabelled": ["more.csv"]}
    claim(**options)
    touch()
    claim(**options)
    move_all()
    moved = {name: f"moved-{value}" for name, value in options.items() if isinstance(value, str)}
    data = {"train_file": "moved-train.csv", "validation_file": "moved-validation.csv"}
    claim(**{**options, **moved, **data, "teacher": "moved-teacher", "unlabelled": ["moved-more.csv"]})


@pytest.mark.parametrize("rewrite", [pickled, sharded])
def test_a_teacher_saved_in_another_form_keeps_the_run(inputs, rewrite):
    claim()
    rewrite()
    claim()


@pytest.mark.parametrize(
    "change",
    [start_from, masked_lm, pad_left, lambda: glove("glove")],
    ids=["start_from", "masked_lm", "pad_left", "glove"],
)
def test_files_that_the_run_does_not_read_keep_it(inputs, change):
    claim(teacher="base", fine_tune=True)
    change()
    claim(teacher="base", fine_tune=True)


def test_a_fine_tuning_is_described_without_students(inputs):
    claim(teacher="base", fine_tune=True, students=False)
    claim(teacher="base", fine_tune=True, students=False, keep_layers=3, weights="ternary", temperature=3.0)
    of_students = {"trim_vocabulary": 2, "reduction_epochs": 0, "learning_rates": [1e-3, 2e-3], "student_dropout": 0.1}
    claim(teacher="base", fine_tune=True, students=False, schedule="direct", target_bytes="1MB", **of_students)
    refused(["training learning_rate"], teacher="base", fine_tune=True, students=False, learning_rate=0.5)


def test_word_vectors_are_read_before_anything_is_written(inputs):
    Path("glove.txt").write_text("good 1 x\n")
    with pytest.raises(DataError, match=r"^Cannot read word vectors from glove\.txt: "):
        claim(**FROM_GLOVE)
    assert not Path("out").exists()
