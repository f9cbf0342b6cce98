"""Batches of rows of similar length, in random order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from trainers import DATA, collate, make_trainer

from hf_xtc.training.length_batches import LengthGroupedBatches, row_lengths


@given(st.lists(st.integers(1, 60), min_size=1, max_size=400), st.integers(1, 40), st.integers(0, 9))
def test_each_row_is_drawn_once_the_longest_first(lengths, batch_size, seed):
    sampler = LengthGroupedBatches(lengths, batch_size, seed)
    order = list(sampler)
    assert len(sampler) == len(lengths)
    assert sorted(order) == list(range(len(lengths)))
    assert lengths[order[0]] == max(lengths)
    assert list(sampler) == order


def grouped(rows=3200, batch_size=32):
    lengths = torch.randint(3, 60, (rows,), generator=torch.Generator().manual_seed(0)).tolist()
    sampler = LengthGroupedBatches(lengths, batch_size, seed=5)
    return sampler, torch.tensor([lengths[row] for row in sampler]).view(-1, batch_size).float()


def test_rows_of_a_batch_are_of_similar_length():
    _, batches = grouped()
    assert batches.std(1).mean() < 0.1 * batches.std()


def test_order_of_batches_does_not_depend_on_their_length():
    """In Trainer's own order lengths decrease within each fifty batches."""
    _, batches = grouped()
    means = batches.mean(1)
    for part in (means[1:50], means[50:], means[1:]):
        assert abs(spearmanr(range(len(part)), part).statistic) < 0.3


def test_epochs_and_seeds_differ():
    sampler, _ = grouped()
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert first != second
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(LengthGroupedBatches(sampler.lengths, 32, seed=7)) not in (first, second)


@pytest.mark.parametrize("changes", [{}, {"data_seed": 8}])
def test_resumed_trainer_draws_the_same_batches(tmp_path, changes):
    """Three epochs of 16 steps, resumed in the middle of the second."""
    seen = []
    options = {
        "train_sampling_strategy": "group_by_length",
        "max_steps": 40,
        "save_strategy": "steps",
        "save_steps": 24,
        **changes,
    }

    def batches(folder, resume=None):
        trainer = make_trainer(folder, **options)
        trainer.data_collator = lambda rows: seen.append([DATA.index(row) for row in rows]) or collate(rows)
        trainer.train(resume_from_checkpoint=resume)
        return [seen.pop(0) for _ in range(len(seen))]

    whole = batches(tmp_path / "whole")[:40]
    resumed = batches(tmp_path / "resumed", str(tmp_path / "whole" / "checkpoint-24"))
    assert sorted(row for batch in whole[:16] for row in batch) == list(range(len(DATA)))
    assert whole[:16] != whole[16:32]
    assert resumed[:16] == whole[24:]


class Endless(torch.utils.data.Dataset):
    """Four rows, and no IndexError beyond them."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {"input_ids": [1] * (index + 1)}


@pytest.mark.parametrize(
    "rows, lengths",
    [
        (DATA[:2], [len(row["input_ids"]) for row in DATA[:2]]),
        ([{"input_ids": torch.ones(3)}], [3]),
        (Endless(), [1, 2, 3, 4]),
        ([{"pixels": [1]}], None),
        ([{"input_ids": 5}], None),
        ([([1, 2], 0)], None),
        ([torch.ones(3)], None),
    ],
    ids=["lists", "tensor", "endless", "no_input_ids", "scalar", "tuple", "bare_tensor"],
)
def test_row_lengths(rows, lengths):
    assert row_lengths(rows, "input_ids") == lengths


class Stream(torch.utils.data.IterableDataset):
    """The rows of DATA, without a len()."""

    def __iter__(self):
        return iter(DATA)


GROUPED = {"train_sampling_strategy": "group_by_length", "max_steps": 2}


def test_an_iterable_dataset_keeps_its_order(tmp_path, caplog):
    seen = []
    trainer = make_trainer(tmp_path, data=Stream(), **GROUPED)
    trainer.data_collator = lambda rows: seen.extend(rows) or collate(rows)
    trainer.train()
    assert seen[:8] == DATA[:8]
    assert "length" not in caplog.text


def test_rows_of_unknown_length_are_drawn_at_random(tmp_path, caplog):
    """Texts, which the collator tokenizes."""
    rows, seen = [{"text": i, "label": 0} for i in range(len(DATA))], []

    def draw(batch):
        seen.extend(row["text"] for row in batch)
        return collate([DATA[row["text"]] for row in batch])

    with caplog.at_level("INFO", logger="hf_xtc.training.trainer"):
        trainer = make_trainer(tmp_path, data=rows, **{**GROUPED, "max_steps": 16, "remove_unused_columns": False})
        trainer.data_collator = lambda rows: (
            seen.extend(r["text"] for r in rows) or collate([DATA[r["text"]] for r in rows])
        )
        trainer.train()
    assert sorted(seen[: len(DATA)]) == list(range(len(DATA)))
    assert seen[: len(DATA)] != list(range(len(DATA)))
    assert "The lengths of the train rows are not known; they are drawn in random order." in caplog.messages
