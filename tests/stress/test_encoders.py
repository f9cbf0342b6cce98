"""tests/stress/encoders.py: its configs have the sizes that the models are known by, and it refuses another ledger."""

import pytest
import transformers

import encoders
from encoders import ENCODERS, try_encoder
from hf_xtc import ARCHITECTURES, ledger
from hf_xtc.compression.size_ledger import Ledger


def test_twenty_encoders_of_all_but_one_family():
    families = {getattr(transformers, f"{family}Config").model_type for family, _, _ in ENCODERS.values()}
    assert len(ENCODERS) == 20
    assert families == set(ARCHITECTURES) - {"camembert"}  # of RoBERTa's shapes


@pytest.mark.parametrize("name", ["sentence-transformers/all-mpnet-base-v2", "answerdotai/ModernBERT-base"])
def test_sizes_are_those_of_the_models(name):
    """As their cards say: 109 and 149 million parameters."""
    family, head, values = ENCODERS[name]
    config = getattr(transformers, f"{family}Config")(**values)
    model_class = ARCHITECTURES[config.model_type].model_classes[head]
    millions = ledger(config, model_class=model_class).float32_bytes / 4e6
    assert millions == pytest.approx({"MPNet": 109.5, "ModernBert": 149.7}[family], abs=0.1)


def test_a_file_of_another_size_than_the_ledgers_is_an_error(monkeypatch):
    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    monkeypatch.setitem(ENCODERS, "tiny", ("Bert", "BertModel", {**tiny, "vocab_size": 1000}))
    assert try_encoder("tiny")["times_smaller"] > 5
    monkeypatch.setattr(encoders, "ledger", lambda *_, **__: Ledger((), 0))
    with pytest.raises(AssertionError):
        try_encoder("tiny")
