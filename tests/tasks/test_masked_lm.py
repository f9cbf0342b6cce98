"""Masked language models: which tokens are hidden."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from hf_xtc.data.task_data import DataArguments, read_splits
from hf_xtc.errors import DataError
from hf_xtc.tasks.masked_lm import IGNORED, SHARE, MaskedLanguageModel, hide


@given(st.integers(1, 200), st.integers(0, 1000))
def test_hidden_tokens_are_the_labels(length, seed):
    tokens = np.arange(5, length + 7)
    fixed = np.zeros(length + 2, dtype=bool)
    fixed[[0, -1]] = True
    hidden, labels = hide(tokens, fixed, mask=4, size=300, seed=seed)
    chosen = labels != IGNORED
    assert chosen.sum() == max(round(SHARE * length), 1)
    assert not chosen[fixed].any()
    assert (labels[chosen] == tokens[chosen]).all()
    assert (hidden[~chosen] == tokens[~chosen]).all()
    assert (hidden < 300).all()


def test_most_hidden_tokens_are_the_mask():
    tokens = np.full(20000, 7)
    hidden, labels = hide(tokens, np.zeros(20000, dtype=bool), mask=4, size=1000, seed=0)
    found = hidden[labels != IGNORED]
    assert len(found) == 3000
    assert (found == 4).mean() == pytest.approx(0.8, abs=0.03)
    assert (found == 7).mean() == pytest.approx(0.1, abs=0.03)


def test_a_tokenizer_without_a_mask_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "good film"}\n')
    args = DataArguments(train_file=str(tmp_path / "a.jsonl"), validation_file=str(tmp_path / "a.jsonl"))
    data = MaskedLanguageModel().load(args, read_splits(args))
    tokenizer = BertTokenizerFast(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "good": 4})
    tokenizer.mask_token = None
    with pytest.raises(DataError, match=r"has no mask token, which a masked language model needs\."):
        MaskedLanguageModel().tokenize(data.train, tokenizer, args)
