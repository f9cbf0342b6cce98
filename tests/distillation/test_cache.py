"""The teacher cache: its files, training from it, making it, and every refusal."""

import json
import logging
import os
import pickle
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from task_cases import trainer_options
from trainers import (
    DATA,
    DEFAULT,
    assert_equal_states,
    collate,
    logged,
    make_data,
    make_teacher,
    make_trainer,
    named,
    refuses,
    snapshot,
)
from transformers import BertForQuestionAnswering, BertForTokenClassification, BertTokenizerFast, TrainerCallback

from hf_xtc.compression.convert import compress
from hf_xtc.distillation.cache import CachedTargets, NumberedRows, TeacherCache
from hf_xtc.distillation.cache import format as cache_format
from hf_xtc.distillation.cache.format import Manifest, check_key, plan_shards, read_manifest, shard_file
from hf_xtc.distillation.cache.making import kept_layers, tokenizer_fingerprint
from hf_xtc.distillation.cache.shards import ShardWriter
from hf_xtc.distillation.terms import TERMS, DistillationTerm
from hf_xtc.errors import DataError, StateError, XTCError
from hf_xtc.files.lock import FolderLock
from hf_xtc.recipe.layer_map import LayerMap
from hf_xtc.recipe.xtc_recipe import XTCRecipe
from hf_xtc.tasks import TASKS

pytestmark = pytest.mark.usefixtures("one_thread")

FLOAT = XTCRecipe(weights=None, embedding_weights=None, position_weights=None, activation_bits=None, keep_layers=2)


@pytest.fixture
def small_shards(monkeypatch):
    """Makes shards so small that a few rows fill several."""
    monkeypatch.setattr(cache_format, "SHARD_BYTES", 40_000)


def train(folder, cache=None, **changes):
    """Runs a training, with a cache if one is given."""
    trainer = make_trainer(folder, **({} if cache is None else {"teacher_cache": str(cache)}), **changes)
    trainer.train()
    return trainer


class Forwards(TrainerCallback):
    """Counts a teacher's forward passes, in total and since training began."""

    def __init__(self, teacher):
        self.all = self.training = 0
        self.began = False
        teacher.register_forward_pre_hook(self.count)

    def count(self, *args):
        self.all += 1
        self.training += self.began

    def on_train_begin(self, args, state, control, **kwargs):
        self.began = True


def files(folder):
    return sorted(path.name for path in Path(folder).iterdir())


# The format


SHAPES = {
    "logits": (3,),
    "start_logits": ("tokens",),
    "token_logits": ("tokens", 5),
    "hidden_states": (2, "tokens", 4),
    "attentions": (2, 3, "tokens", "tokens"),
}


def write_cache(folder, dtype, lengths, seed=0):
    """A cache of random blocks, and these blocks by output and row."""
    generator = torch.Generator().manual_seed(seed)
    layers = {"hidden_states": (0, 2), "attentions": (1, 2)}
    shards = plan_shards(SHAPES, dtype, lengths)
    manifest = Manifest({}, dtype, SHAPES, layers, {"hidden_states": 4, "attentions": 3}, shards, {})
    manifest.write(folder)
    blocks = {
        name: [torch.randn(block.sized(length), generator=generator) for length in lengths]
        for name, block in manifest.blocks.items()
    }
    first = 0
    for index, shard in enumerate(shards):
        own = range(first, first + shard.rows)
        writer = ShardWriter(manifest, index, [lengths[row] for row in own])
        for row in reversed(own):
            mask = torch.ones(1, lengths[row])
            writer.put([row - first], {name: blocks[name][row].unsqueeze(0) for name in SHAPES}, mask)
        writer.save(folder)
        first += shard.rows
    return manifest, blocks


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    dtype=st.sampled_from(["float16", "int8"]),
    limit=st.integers(1, 3000),
    data=st.data(),
)
def test_written_blocks_are_read_back_with_any_padding(tmp_path_factory, lengths, dtype, limit, data):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_format, "SHARD_BYTES", limit)
        manifest, blocks = write_cache(folder, dtype, lengths)
    assert manifest == read_manifest(folder)
    cache = pickle.loads(pickle.dumps(TeacherCache(folder)))
    assert len(cache) == len(lengths)
    rows = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=5))
    width = max(lengths[row] for row in rows) + data.draw(st.integers(0, 3))
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        places = data.draw(st.permutations(range(width)))[: lengths[row]]
        mask[i, places] = 1
    found = cache.read(rows, mask)
    assert [layer is None for layer in found["hidden_states"]] == [False, True, False, True]
    assert [layer is None for layer in found["attentions"]] == [True, False, False]
    for i, row in enumerate(rows):
        real = mask[i].bool()
        expected = {name: blocks[name][row] for name in SHAPES}
        assert torch.equal(found["logits"][i], expected["logits"])
        for name in ("start_logits", "token_logits"):
            assert torch.equal(found[name][i][real], expected[name])
            assert not found[name][i][~real].any()
        for layer, states in zip((0, 2), expected["hidden_states"], strict=True):
            assert_stored(found["hidden_states"][layer][i][real], states, dtype)
            assert not found["hidden_states"][layer][i][~real].any()
        for layer, scores in zip((1, 2), expected["attentions"], strict=True):
            padded = found["attentions"][layer][i]
            assert_stored(padded[:, real][:, :, real], scores, dtype)
            assert not padded[:, ~real].any()
            assert not padded[:, :, ~real].any()


def assert_stored(found, expected, dtype):
    if dtype == "float16":
        assert torch.equal(found, expected.half())
    else:
        assert found.dtype == torch.float32
        step = expected.abs().amax(-1, keepdim=True) / 127
        assert ((found - expected).abs() <= step * 0.501).all()


def test_a_zero_row_in_int8_is_zero(tmp_path):
    block = cache_format.Block((2, "tokens", 4), torch.int8)
    values, scale = block.encode(torch.zeros(2, 3, 4))
    assert not values.any()
    assert not scale.any()


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_the_logged_size_is_the_size_on_disk(tmp_path, caplog, small_shards, dtype):
    with caplog.at_level(logging.INFO, logger="hf_xtc.distillation.cache.making"):
        train(tmp_path / "out", tmp_path / "cache", teacher_cache_dtype=dtype)
    manifest = read_manifest(tmp_path / "cache")
    shards = sorted((tmp_path / "cache").glob("shard-*"))
    assert len(shards) > 3
    assert files(tmp_path / "cache") == ["cache.json", *(path.name for path in shards)]
    data = sum(f.stat().st_size - 8 - int.from_bytes(f.read_bytes()[:8], "little") for f in shards)
    assert data == manifest.nbytes()
    assert caplog.messages == [
        f"The teacher cache in {tmp_path / 'cache'} takes {data} bytes, {data} of them to be written."
    ]


def test_the_progress_bar_shows_the_size(tmp_path, capfd):
    train(tmp_path / "out", tmp_path / "cache", disable_tqdm=False)
    size = read_manifest(tmp_path / "cache").nbytes()
    assert re.search(rf"Teacher cache \({size / 1e6:.1f} MB\): 100%\|.*\| 64/64 ", capfd.readouterr().err)


def test_int8_is_about_half_the_size():
    shapes = {"hidden_states": (4, "tokens", 384), "attentions": (3, 12, "tokens", "tokens")}
    dtypes = ("float16", "int8")
    sizes = [Manifest({}, d, shapes, {}, {}, plan_shards(shapes, d, [25] * 100), {}).nbytes() for d in dtypes]
    assert 0.5 < sizes[1] / sizes[0] < 0.54


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of mappings")
def test_shards_are_memory_mapped(tmp_path):
    write_cache(tmp_path, "float16", [5, 3, 7])
    cache = TeacherCache(tmp_path)
    cache.read([1], torch.ones(1, 3))
    tensors, _ = cache._opened[0]
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in lines]
    for name, tensor in tensors.items():
        assert any(low <= tensor.data_ptr() < high for low, high in ranges), name


def test_only_shards_that_are_read_are_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_format, "SHARD_BYTES", 1)
    write_cache(tmp_path, "int8", [5, 3, 7])
    cache = TeacherCache(tmp_path)
    cache.read([2], torch.ones(1, 7))
    assert list(cache._opened) == [2]


# Training from it


SGD = {"recipe": FLOAT, "optim": "sgd", "learning_rate": 1e-2, "max_grad_norm": 0.0, "max_steps": 6}


def assert_same_but_for_rounding(tmp_path, **changes):
    """Trains with and without a cache, by plain gradient descent in float, and compares the weights.

    Targets are off by up to 2**-11 of their size (float16), each way alike, so a gradient is off by less of its own.
    """
    share = 2**-11
    options = {**SGD, **changes}
    plain = train(tmp_path / "plain", **options)
    cached = train(tmp_path / "cached", tmp_path / "cache", **options)
    start = snapshot(make_trainer(tmp_path / "start", **options).model)
    ours, theirs = snapshot(cached.model), snapshot(plain.model)
    moved = sum((theirs[name] - start[name]).double().square().sum() for name in start).sqrt()
    apart = sum((theirs[name] - ours[name]).double().square().sum() for name in start).sqrt()
    assert moved > 1e-3
    assert apart < share * moved
    for a, b in zip(logged(cached, "loss"), logged(plain, "loss"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=share)
    return cached, plain


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_accumulation_steps": 3},
        {"train_sampling_strategy": "group_by_length"},
        {"dataloader_num_workers": 2},
        {"distillation_stages": 3},
        {"terms": {"logits": 1.0, "labels": 0.5}},
        {"terms": {"hidden_states": 1.0}},
        {"num_train_epochs": 1, "max_steps": -1, "per_device_train_batch_size": 24},
        {"data": Dataset.from_list(DATA).add_column("text", ["x"] * len(DATA)).shuffle(seed=5).select(range(40))},
        {"data": [{**row, "token_type_ids": [0] + [1] * (len(row["input_ids"]) - 1)} for row in DATA]},
    ],
    ids=["plain", "accumulated", "grouped", "workers", "stages", "labels", "hidden", "epoch", "datasets", "pairs"],
)
def test_weights_equal_those_of_training_without_a_cache(tmp_path, small_shards, monkeypatch, changes):
    if isinstance(changes.get("data"), list):
        monkeypatch.setattr("trainers.collate", collate_pairs)
    assert_same_but_for_rounding(tmp_path, **changes)


def collate_pairs(rows):
    types = [torch.tensor(row["token_type_ids"]) for row in rows]
    rows = [{key: value for key, value in row.items() if key != "token_type_ids"} for row in rows]
    return {**collate(rows), "token_type_ids": torch.nn.utils.rnn.pad_sequence(types, batch_first=True)}


@pytest.mark.parametrize("dtype, rel", [("float16", 2e-3), ("int8", 0.05)])
@pytest.mark.parametrize("precision", [{}, {"bf16": True}], ids=["float32", "bf16"])
def test_quantized_students_have_the_same_losses(tmp_path, dtype, rel, precision):
    """Losses are compared, not weights, because signs of latent weights near zero may flip. bf16 rounds by 2**-8."""
    plain = train(tmp_path / "plain", **precision)
    cached = train(tmp_path / "cached", tmp_path / "cache", teacher_cache_dtype=dtype, **precision)
    keys = ("loss", *DEFAULT)
    for a, b in zip(logged(cached, *keys), logged(plain, *keys), strict=True):
        assert a == pytest.approx(b, rel=rel if not precision else max(rel, 0.02))


@pytest.mark.parametrize("head", ["question_answering", "token_classification", "regression"])
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_other_heads(tmp_path, monkeypatch, head, left):
    data = [dict(row) for row in make_data(24, labels=False)]
    for row in data:
        if head == "question_answering":
            row |= {"start_positions": 0, "end_positions": 2}
        elif head == "token_classification":
            row["labels"] = [-100, 1] + [0] * (len(row["input_ids"]) - 2)
        else:
            row["labels"] = 0.5
    teacher = {
        "question_answering": lambda: make_teacher(cls=BertForQuestionAnswering),
        "token_classification": lambda: make_teacher(cls=BertForTokenClassification, num_labels=4),
        "regression": lambda: make_teacher(num_labels=1, problem_type="regression"),
    }[head]()
    monkeypatch.setattr("trainers.collate", lambda rows: pad(rows, width=20, left=left))
    assert_same_but_for_rounding(tmp_path, teacher=teacher, data=data, eval_dataset=data, terms={"logits": 1.0})
    assert_same_but_for_rounding(tmp_path / "all", teacher=teacher, data=data, eval_dataset=data)


@pytest.mark.parametrize("name", TASKS)
def test_every_task(tmp_path, name):
    assert_same_but_for_rounding(tmp_path, **trainer_options(name))


def pad(rows, width=None, left=False):
    """A batch padded to a width, or to its longest row, on either side."""
    width = max(len(row["input_ids"]) for row in rows) if width is None else width
    batch = {}
    for key in rows[0]:
        if isinstance(rows[0][key], list):
            fill = [-100 if key == "labels" else 0]
            padded = [(width - len(row[key])) * fill for row in rows]
            both = [p + row[key] if left else row[key] + p for p, row in zip(padded, rows, strict=True)]
            batch[key] = torch.tensor(both)
        else:
            batch[key] = torch.tensor([row[key] for row in rows])
    return batch


def shortened(rows, tokens):
    return [{key: value[:tokens] if isinstance(value, list) else value for key, value in row.items()} for row in rows]


def test_left_padding_to_the_longest_row_works_with_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("trainers.collate", lambda rows: pad(rows, left=True))
    teacher = make_teacher()
    trainer = train(tmp_path / "out", tmp_path / "cache", teacher=teacher, per_device_train_batch_size=1)
    assert [message for message in caplog.messages if "left" in message] == [
        "Rows are padded on the left to the longest of their batch: with absolute positions the teacher's outputs "
        "depend on that padding, which differs between the cache and training. Pad on the right, or to one length."
    ]
    assert len(logged(trainer, "loss")) == 4
    found = TeacherCache(tmp_path / "cache").read([0, 1], pad(DATA[:2], left=True)["attention_mask"])
    for i, row in enumerate(DATA[:2]):  # made one by one here, so without padding
        with torch.no_grad():
            alone = teacher(**{k: v for k, v in pad([row]).items() if k != "labels"}, output_hidden_states=True)
        length = len(row["input_ids"])
        torch.testing.assert_close(found["logits"][i], alone.logits[0], rtol=1e-4, atol=1e-5)
        expected = alone.hidden_states[4][0].half()
        torch.testing.assert_close(found["hidden_states"][4][i, -length:], expected, rtol=2e-3, atol=1e-3)


def test_labels_in_another_order_are_aligned_by_name(tmp_path):
    teacher = named(make_teacher(), ["bad", "fair", "good"])

    def run(folder, **changes):
        student = named(compress(teacher, FLOAT), ["Good", "bad", "fair"])
        return train(tmp_path / folder, student=student, terms={"logits": 1.0}, teacher=teacher, **SGD, **changes)

    plain, cached = run("plain"), run("cached", cache=tmp_path / "cache")
    again = run("again", cache=tmp_path / "cache", teacher_model=None)
    for a, b, c in zip(logged(plain, "loss"), logged(cached, "loss"), logged(again, "loss"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert b == c


def test_the_teacher_does_not_run_while_training(tmp_path, small_shards):
    teacher = make_teacher()
    forwards = Forwards(teacher)
    train(
        tmp_path / "out",
        tmp_path / "cache",
        teacher=teacher,
        callbacks=[forwards],
        eval_strategy="steps",
        eval_steps=2,
    )
    assert forwards.training == 0
    assert forwards.all > len(DATA) // 4
    assert teacher.config._attn_implementation == "sdpa"
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    forwards.all = 0
    train(tmp_path / "out", tmp_path / "cache", teacher=teacher)
    assert forwards.all == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == times


def test_a_complete_cache_needs_no_teacher(tmp_path):
    teacher = make_teacher(hidden_size=48)
    narrow = make_teacher()
    terms = {"logits": 1.0, "hidden_states": 1.0}
    results = []
    for given_teacher in (teacher, None):
        student = compress(narrow, XTCRecipe(keep_layers=2))
        torch.manual_seed(0)  # the projection is drawn when the trainer is made
        trainer = train(
            tmp_path / "out", tmp_path / "cache", student=student, teacher_model=given_teacher, terms=terms
        )
        results.append(snapshot(trainer.model))
    assert trainer.teacher is None
    assert_equal_states(results[1], results[0])


def test_an_incomplete_cache_needs_the_teacher(tmp_path, small_shards):
    cache = tmp_path / "cache"
    text = f"{cache} holds no complete teacher cache (%s). Give teacher_model to make it."
    with refuses(text % "no cache.json", StateError):
        make_trainer(tmp_path, student=compress(make_teacher()), teacher_model=None, teacher_cache=str(cache))
    train(tmp_path / "out", cache)
    for index in (0, 2):
        shard_file(cache, index).unlink()
    with refuses(text % "shard-00000.safetensors is missing, and 1 more", StateError):
        make_trainer(tmp_path, student=compress(make_teacher()), teacher_model=None, teacher_cache=str(cache))


def test_dropout_masks_equal_those_without_a_cache(tmp_path):
    options = {**SGD, "student": None, "teacher": make_teacher(dropout=0.3)}
    plain = train(tmp_path / "plain", **options)
    cached = train(tmp_path / "cached", tmp_path / "cache", **options)
    for a, b in zip(logged(cached, "loss"), logged(plain, "loss"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-3)


def test_evaluation_and_terms_without_a_teacher_need_no_cache(tmp_path):
    trainer = make_trainer(tmp_path, teacher_cache=str(tmp_path / "cache"))
    trainer.evaluate()
    next(iter(trainer.get_train_dataloader()))
    assert not (tmp_path / "cache").exists(), "made when training starts"
    train(tmp_path / "labels", tmp_path / "cache", terms={"labels": 1.0})
    assert not (tmp_path / "cache").exists(), "no term needs a teacher"
    trainer.train()
    assert trainer.train_dataset is DATA
    assert trainer.data_collator is collate
    assert trainer.evaluate()["eval_loss"] > 0


@pytest.fixture
def last_state(monkeypatch):
    """A custom term on a teacher layer that is not in the layer map."""

    class LastState(DistillationTerm):
        """The hidden state before the last, for the student's last."""

        needs = frozenset({"hidden_states"})

        def __call__(self, student, teacher, batch, layer_map):
            return (student["hidden_states"][-1] - teacher["hidden_states"][-2]).square().mean()

    monkeypatch.setitem(TERMS, "last_state", LastState)


def test_terms_of_users_can_read_every_layer(tmp_path, last_state, monkeypatch):
    monkeypatch.setattr("trainers.collate", lambda rows: pad(shortened(rows, 3)))
    assert_same_but_for_rounding(tmp_path, terms={"logits": 1.0, "last_state": 1.0})
    assert read_manifest(tmp_path / "cache").layers == {"hidden_states": (0, 1, 2, 3, 4)}


def test_only_layers_that_terms_read_are_stored():
    terms = {name: TERMS[name]() for name in TERMS}
    layer_map = LayerMap((1, 3), 4)
    assert kept_layers([terms["logits"], terms["labels"]], layer_map, 4) == {}
    kept = kept_layers([terms["hidden_states"], terms["attention_scores"]], layer_map, 4)
    assert kept == {"hidden_states": (0, 2, 4), "attentions": (1, 3)}
    assert kept_layers([terms["embeddings"]], layer_map, 4) == {"hidden_states": (4,)}
    both = [terms["hidden_states"], terms["similarities"]]
    assert kept_layers(both, LayerMap((0, 2), 4), 4) == {"hidden_states": (0, 1, 3, 4)}


# Making it


def test_an_interrupted_cache_continues_after_the_last_complete_shard(tmp_path, small_shards):
    teacher = make_teacher()
    train(tmp_path / "out", tmp_path / "whole", teacher=teacher)
    left = iter(range(9))

    def fail(*args):
        if next(left, None) is None:
            raise KeyboardInterrupt

    hook = teacher.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "out", tmp_path / "cache", teacher=teacher)
    hook.remove()
    made = files(tmp_path / "cache")
    assert 1 < len(made) < len(files(tmp_path / "whole"))
    assert not [name for name in made if "incomplete" in name]
    times = {name: (tmp_path / "cache" / name).stat().st_mtime_ns for name in made if name.startswith("shard")}
    forwards = Forwards(teacher)
    train(tmp_path / "out", tmp_path / "cache", teacher=teacher)
    assert {name: (tmp_path / "cache" / name).stat().st_mtime_ns for name in times} == times
    rows = sum(shard.rows for shard in read_manifest(tmp_path / "cache").shards[len(times) :])
    assert rows // 4 <= forwards.all < len(DATA) // 4 + 4
    for name in files(tmp_path / "whole"):
        assert (tmp_path / "cache" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    """Of one that was killed before the cache was complete, and of one that was killed just after."""
    for _ in range(2):
        (tmp_path / "cache" / ".incomplete-abc").mkdir(parents=True)
        (tmp_path / "cache" / ".lock").touch()
        train(tmp_path / "out", tmp_path / "cache")
        assert files(tmp_path / "cache") == ["cache.json", "shard-00000.safetensors"]


def test_a_second_process_waits_and_reuses_the_cache(tmp_path):
    """The first process, here this test, holds the lock until the cache is complete."""
    teacher, cache = make_teacher(), tmp_path / "cache"
    train(tmp_path / "out", tmp_path / "whole", teacher=teacher)
    cache.mkdir()
    forwards = Forwards(teacher)
    with ThreadPoolExecutor(1) as pool:
        with FolderLock(cache):
            waiting = pool.submit(train, tmp_path / "other", cache, teacher=teacher)
            while not waiting.running():
                sleep(0.01)
            shutil.copytree(tmp_path / "whole", cache, dirs_exist_ok=True)
        waiting.result()
    assert forwards.all == 0
    assert files(cache) == files(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["truncated", "swapped"])
def test_a_damaged_shard_is_made_again(tmp_path, small_shards, caplog, damage):
    cache = tmp_path / "cache"
    train(tmp_path / "out", cache)
    before = {name: (cache / name).read_bytes() for name in files(cache)}
    file = shard_file(cache, 1)
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
        what = "is truncated or not a safetensors file"
    else:
        shutil.copy(shard_file(cache, 0), file)
        what = "does not match cache.json"
    with refuses(
        f"{cache} holds no complete teacher cache (shard-00001.safetensors {what}). Give teacher_model to make it.",
        StateError,
    ):
        TeacherCache(cache)
    train(tmp_path / "out", cache)
    assert f"{cache}: shard-00001.safetensors {what}; it is made again." in caplog.messages
    assert {name: (cache / name).read_bytes() for name in files(cache)} == before


def test_a_disk_too_small_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    cache = tmp_path / "new" / "cache"
    asked = []

    def disk_usage(path):
        asked.append(path)
        return SimpleNamespace(free=1000)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    with pytest.raises(StateError) as refused:
        train(tmp_path / "out", cache)
    match = re.fullmatch(
        rf"The teacher cache needs (\d+) more bytes in {re.escape(str(cache))}, and 1000 are free\. Free some, give "
        r"teacher_cache a folder on another disk, or use teacher_cache_dtype='int8'\.",
        str(refused.value),
    )
    assert asked == [tmp_path]
    assert not cache.parent.exists()
    monkeypatch.undo()
    train(tmp_path / "out", cache)
    assert int(match[1]) == read_manifest(cache).nbytes()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match=r"^Could not make the folder .*file/cache: "):
        train(tmp_path / "out", tmp_path / "file" / "cache")


def test_values_that_float16_cannot_hold(tmp_path):
    """The bias of the last LayerNorm makes hidden states of 1e5."""
    teacher = make_teacher()
    student = compress(teacher, XTCRecipe(keep_layers=2))
    with torch.no_grad():
        teacher.bert.encoder.layer[3].output.LayerNorm.bias.fill_(1e5)
    text = (
        r"^The teacher's hidden_states for row \d+ reach 1000\d\d, which overflows float16\. "
        r"Use teacher_cache_dtype='int8'\.$"
    )
    with pytest.raises(StateError, match=text):
        train(tmp_path / "out", tmp_path / "cache", teacher=teacher, student=student)
    assert files(tmp_path / "cache") == ["cache.json"]
    train(tmp_path / "out", tmp_path / "int8", teacher=teacher, student=student, teacher_cache_dtype="int8")


def test_a_broken_teacher(tmp_path):
    teacher = make_teacher()
    student = compress(teacher, XTCRecipe(keep_layers=2))
    with torch.no_grad():
        teacher.classifier.bias.fill_(float("nan"))
    text = r"^The teacher's logits for row \d+ are NaN or infinite\. Check the teacher's weights, or run it in "
    with pytest.raises(StateError, match=text):
        train(tmp_path / "out", tmp_path / "cache", teacher=teacher, student=student)


# What is stale


def tokenizer_of(*words):
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    return BertTokenizerFast(vocab=vocabulary)


def other_teacher():
    teacher = make_teacher()
    with torch.no_grad():
        teacher.classifier.bias[0] += 1e-6
    return teacher


STALE = {
    "teacher": (lambda: {"teacher": other_teacher()}, r"another teacher \(X there, X here\)"),
    "tokenizer": (lambda: {"processing_class": tokenizer_of("a")}, r"another tokenizer \(none there, X here\)"),
    "data": (lambda: {"data": [*DATA[:-1], DATA[0]]}, r"other data \(X there, X here\)"),
    "fewer": (lambda: {"data": DATA[:-1]}, r"other data \(X there, X here\)"),
    "dtype": (lambda: {"teacher_cache_dtype": "int8"}, r"another recipe \(dtype: float16 there, int8 here\)"),
    "precision": (lambda: {"bf16": True}, r"another recipe \(precision: no there, bf16 here\)"),
    "layers": (
        lambda: {"recipe": XTCRecipe(layers=(0, 3))},
        r"another recipe \(hidden_states: \[0, 2, 4\] there, \[0, 1, 4\] here; "
        r"attentions: \[1, 3\] there, \[0, 3\] here\)",
    ),
    "terms": (
        lambda: {"terms": {"hidden_states": 1.0}},
        r"another recipe \(attentions: \[1, 3\] there, \[\] here\)",
    ),
    "several": (
        lambda: {"teacher": other_teacher(), "data": DATA[:9], "processing_class": tokenizer_of("a")},
        r"another teacher \(X there, X here\), another tokenizer \(none there, X here\) and "
        r"other data \(X there, X here\)",
    ),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A cache of the usual data and teacher."""
    folder = tmp_path_factory.mktemp("made")
    train(folder / "out", folder / "cache")
    return folder / "cache"


@pytest.mark.parametrize("name", STALE)
def test_a_stale_cache_is_refused(tmp_path, made, name):
    make, differs = STALE[name]
    before = {path: path.read_bytes() for path in made.iterdir()}
    text = (
        rf"^The cache in {re.escape(str(made))} was made with {differs.replace('X', '[0-9a-f]{8}')}: its targets do "
        r"not fit this run\. Give teacher_cache another folder, or delete this one\.$"
    )
    with pytest.raises(StateError, match=text):
        train(tmp_path, made, **make())
    assert {path: path.read_bytes() for path in made.iterdir()} == before


def test_labels_and_label_names_do_not_make_it_stale(tmp_path, made):
    """Neither do changes from using a model and a tokenizer, nor another batch size, student or seed."""
    teacher = named(make_teacher(dropout=0.4), ["a", "b", "c"])
    teacher(**{**collate(DATA[:2])})  # sets problem_type
    student = compress(teacher, XTCRecipe(keep_layers=2, weights="ternary"))
    data = [{**row, "labels": 1} for row in DATA]
    forwards = Forwards(teacher)
    train(tmp_path, made, teacher=teacher, student=student, data=data, per_device_train_batch_size=3, seed=9)
    assert forwards.all == 0


def test_the_last_use_of_the_tokenizer_is_not_part_of_the_key():
    tokenizer = tokenizer_of("a", "b")
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["a b", "a"], truncation=True, max_length=3, padding=True)
    assert tokenizer_fingerprint(tokenizer) == before
    assert tokenizer_fingerprint(tokenizer_of("b", "a")) != before
    slow = SimpleNamespace(get_vocab=lambda: {"a": 0})
    assert len({tokenizer_fingerprint(x) for x in (None, slow, SimpleNamespace(), tokenizer)}) == 4


@pytest.mark.parametrize(
    "change, why",
    [
        (lambda found: found | {"format_version": 2}, "another format version"),
        (lambda found: {"a": 1}, "'format_version'"),
        (lambda found: [found], None),
        (lambda found: found | {"dtype": "float8"}, "dtype='float8'"),
        (lambda found: found | {"more": 1}, None),
        (
            lambda found: found | {"outputs": found["outputs"] | {"attentions": [*found["outputs"]["attentions"], 1]}},
            None,
        ),
    ],
    ids=["version", "foreign", "list", "dtype", "more", "an axis more"],
)
def test_a_changed_cache_json_is_refused(tmp_path, made, change, why):
    shutil.copytree(made, tmp_path / "cache")
    file = tmp_path / "cache" / "cache.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    why = r".+" if why is None else re.escape(why)
    text = rf"^{re.escape(str(file))} does not describe a teacher cache of format 1 \({why}\)\. "
    text += r"Give teacher_cache another folder, or delete this one\.$"
    with pytest.raises(StateError, match=text):
        TeacherCache(tmp_path / "cache")


def test_a_key_with_missing_entries_is_stale(tmp_path):
    ours = {"teacher": None, "tokenizer": "none", "data": "0123456789", "recipe": {"dtype": "int8"}}
    check_key(tmp_path, ours, ours)
    with pytest.raises(StateError, match=r"other data \(None there, 01234567 here\) and another recipe \(dtype: None"):
        check_key(tmp_path, {"tokenizer": "none"}, ours)


# What cannot be cached


def test_rows_that_change_are_refused(tmp_path, monkeypatch):
    def masking(rows):
        batch = collate(rows)
        batch["input_ids"] = torch.where(torch.rand(batch["input_ids"].shape) < 0.5, 1, batch["input_ids"])
        return batch

    monkeypatch.setattr("trainers.collate", masking)
    with refuses(
        "Rows of the train_dataset change each time they are read (random masking or augmentation): the "
        "teacher's outputs for them cannot be cached. Train without teacher_cache."
    ):
        train(tmp_path / "out", tmp_path / "cache")


def test_rows_that_change_later_are_found_while_training(made):
    rows = NumberedRows(DATA)
    collator = CachedTargets(lambda features: collate(shortened(features, 2)), TeacherCache(made))
    tokens = len(DATA[5]["input_ids"])
    with refuses(
        f"Row 5 has 2 tokens in its batch, but {tokens} in the teacher cache. Rows must be the same every "
        "time they are read: data sets and collators that change them cannot be cached.",
        StateError,
    ):
        collator(rows.__getitems__([5, 6]))


class Stream(torch.utils.data.IterableDataset):
    """Rows without indices."""

    def __iter__(self):
        return iter(DATA)


class Tuples(torch.utils.data.Dataset):
    """Rows that are not dictionaries."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return (1, 2)


@pytest.mark.parametrize(
    "data, text",
    [
        (
            Stream(),
            "teacher_cache needs a train_dataset with a length and rows by index; a Stream has no length or cannot be "
            "indexed. Train without a cache, or use a map-style data set.",
        ),
        (Tuples(), "teacher_cache needs rows that are dictionaries; row 0 is a tuple."),
    ],
    ids=["stream", "tuples"],
)
def test_data_sets_that_cannot_be_cached(tmp_path, data, text):
    with refuses(text):
        train(tmp_path / "out", tmp_path / "cache", data=data)


class Rows(torch.utils.data.Dataset):
    """A user's own data set."""

    def __len__(self):
        return len(DATA)

    def __getitem__(self, index):
        return {**DATA[index], "note": "dropped"}


def test_own_data_sets_of_dictionaries(tmp_path):
    assert_same_but_for_rounding(tmp_path, data=Rows())


def test_empty_data_are_refused():
    with refuses("The train_dataset is empty: there is nothing to cache.", DataError):
        NumberedRows([])


def test_a_row_without_tokens_is_refused(tmp_path, monkeypatch):
    data = [dict(row) for row in DATA]
    data[7] = {**data[7], "attention_mask": [0] * len(data[7]["input_ids"])}
    with refuses("Row 7 of the train_dataset has no token.", DataError):
        train(tmp_path / "out", tmp_path / "cache", data=data)


@pytest.mark.parametrize(
    "mask, shape",
    [(lambda mask: mask[:, None], r"its shape is \[32, 1, \d+\]"), (lambda mask: None, "there is none")],
    ids=["3d", "none"],
)
def test_batches_that_are_not_sequences(tmp_path, monkeypatch, mask, shape):
    def choices(rows):
        batch = collate(rows)
        return {**batch, "attention_mask": mask(batch["attention_mask"])}

    monkeypatch.setattr("trainers.collate", choices)
    text = (
        rf"^teacher_cache needs an attention_mask of shape \[rows, tokens\]; {shape}\. Train without teacher_cache\.$"
    )
    with pytest.raises(XTCError, match=text):
        train(tmp_path / "out", tmp_path / "cache")


def test_rows_of_one_length_need_no_mask(tmp_path, monkeypatch):
    def whole(rows):
        return {key: torch.tensor([row[key] for row in rows]) for key in ("input_ids", "labels")}

    monkeypatch.setattr("trainers.collate", whole)
    data = [{"input_ids": [i + 1, 2, 3, i % 5 + 1], "labels": i % 3} for i in range(24)]
    assert_same_but_for_rounding(tmp_path, data=data, eval_dataset=data)


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"logits": torch.zeros(1, 2, 3, 4)}, "The teacher's logits have shape [1, 2, 3, 4] for 1 row of X tokens: "),
        ({"hidden_states": None}, "The teacher returns no hidden_states; drop the terms that need them, "),
    ],
    ids=["logits", "hidden_states"],
)
def test_outputs_that_cannot_be_cached(tmp_path, changes, text):
    teacher = make_teacher()
    student = compress(teacher, XTCRecipe(keep_layers=2))
    teacher.register_forward_hook(lambda module, args, output: {**output, **changes})
    with pytest.raises(XTCError) as refused:
        train(tmp_path / "out", tmp_path / "cache", teacher=teacher, student=student)
    assert re.sub(r"\d+ tokens", "X tokens", str(refused.value)).startswith(text)
    assert not (tmp_path / "cache").exists()


# Several processes


SCRIPT = """
import json, os, sys
sys.path[:0] = {tests!r}
from test_cache import DDP, Forwards, logged, make_teacher, make_trainer
import torch
teacher = make_teacher()
forwards = Forwards(teacher)
trainer = make_trainer({folder!r} + "/out", teacher, callbacks=[forwards], teacher_cache={folder!r} + "/cache", **DDP)
trainer.train()
counts = trainer.accelerator.gather(torch.tensor([forwards.all, forwards.training])).tolist()
total = sum(p.double().abs().sum().item() for p in trainer.model.parameters())
sums = trainer.accelerator.gather(torch.tensor([total], dtype=torch.float64)).tolist()
if trainer.is_world_process_zero():
    with open({folder!r} + "/result.json", "w") as file:
        json.dump({{"counts": counts, "sums": sums, "log": logged(trainer, "loss", *trainer.args.term_weights)}}, file)
trainer.accelerator.wait_for_everyone()
os._exit(0)  # gloo's own teardown aborts about once in fifty times on a busy machine
"""
DDP = {"max_steps": 3}


def test_one_process_makes_the_cache_for_all(tmp_path):
    here = Path(__file__).parent
    paths_of_tests = [str(here), str(here.parent)]
    (tmp_path / "run.py").write_text(SCRIPT.format(tests=paths_of_tests, folder=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "run.py"]
    paths = os.pathsep.join([str(Path(__file__).parent.parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-8000:]
    found = json.loads((tmp_path / "result.json").read_text())
    alone = train(tmp_path / "alone", tmp_path / "cache", gradient_accumulation_steps=2, **DDP)
    assert found["counts"][0] > 0
    assert found["counts"][1:] == [0, 0, 0], "the second process makes no cache, and no teacher runs in training"
    assert found["sums"][0] == found["sums"][1]
    for entry, expected in zip(found["log"], logged(alone, "loss", *DEFAULT), strict=True):
        assert entry == pytest.approx(expected, rel=1e-5, abs=1e-6)


# Files from elsewhere


def change_manifest(folder, change):
    values = json.loads((folder / "cache.json").read_text())
    change(values)
    (folder / "cache.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.update(key=[]),
        lambda values: values["key"].update(recipe=5),
        lambda values: values.update(teacher_config=None),
        lambda values: values.update(dtype=["int8"]),
        lambda values: values["outputs"].update(logits=[]),
        lambda values: values["outputs"].update(logits=[-3]),
        lambda values: values["outputs"].update(logits=[2**60]),
        lambda values: values["outputs"].update(attentions=["tokens", "tokens", "tokens"]),
        lambda values: values["layers"].pop("attentions"),
        lambda values: values["layers"].update(attentions=[1, 1]),
        lambda values: values["layers"].update(attentions=[1, 9]),
        lambda values: values["depths"].update(attentions=10**12),
        lambda values: values["depths"].pop("attentions"),
        lambda values: values["shards"][0].update(rows=-1),
        lambda values: values["shards"][0].update(rows=True),
        lambda values: values.update(shards=5),
    ],
)
def test_an_invalid_manifest_is_refused(change, tmp_path):
    write_cache(tmp_path, "int8", [3, 1, 2])
    assert len(TeacherCache(tmp_path)) == 3
    change_manifest(tmp_path, change)
    with pytest.raises(StateError):
        TeacherCache(tmp_path)


def test_a_deeply_nested_manifest_is_refused(tmp_path):
    (tmp_path / "cache.json").write_text('{"a":' * 100_000)
    with pytest.raises(StateError, match="nested too deeply"):
        TeacherCache(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_nan_infinite_or_huge_scales_are_refused_when_a_shard_is_opened(value, tmp_path):
    write_cache(tmp_path, "int8", [3, 1, 2])
    tensors = load_file(shard_file(tmp_path, 0))
    tensors["hidden_states.scale"][0] = value
    save_file(tensors, shard_file(tmp_path, 0))
    with pytest.raises(StateError, match=r"is damaged: .* Delete it, and give teacher_model to make it again"):
        TeacherCache(tmp_path).read([0], torch.ones(1, 3))


@pytest.mark.parametrize("tokens", [[3, 2, 1], [6, 0, 0], [7, 2, -3]])
def test_a_shard_whose_rows_differ_from_the_manifest_is_refused(tokens, tmp_path):
    write_cache(tmp_path, "float16", [3, 1, 2])
    tensors = load_file(shard_file(tmp_path, 0))
    tensors["tokens"] = torch.tensor(tokens)
    save_file(tensors, shard_file(tmp_path, 0))
    cache = TeacherCache(tmp_path)
    with pytest.raises(StateError):
        cache.read([1], torch.ones(1, 1))


@pytest.mark.parametrize("row", [3, -1])
def test_rows_that_a_cache_does_not_have_are_refused(row, tmp_path):
    write_cache(tmp_path, "float16", [3, 1, 2])
    with pytest.raises(StateError, match=r"are requested, but the cache in .* has 3 rows"):
        TeacherCache(tmp_path).read([row], torch.ones(1, 2))
