"""Batches of rows of similar length, in random order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from trainers import DATA, collate, make_trainer

from hf_xtc.training.length_batches import LengthGroupedBatches


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


def test_lengths_do_not_tell_when_a_batch_comes():
    """In Trainer's own order they fall within each fifty batches."""
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
def test_trainer_draws_the_same_batches_when_it_goes_on(tmp_path, changes):
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
