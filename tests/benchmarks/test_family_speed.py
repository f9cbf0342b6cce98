"""The benchmark of families, on tiny models: it compares one native call with layers that run one by one."""

import pytest
import torch

import family_speed
from hf_xtc.native import encoder as native
from hf_xtc.native.library import variants

TINY = {"vocab_size": 1000, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}


pytestmark = pytest.mark.skipif(not variants(), reason="the native operator is not built")


@pytest.fixture
def made(monkeypatch):
    """An entry for each call of the native encoder, on tiny models."""
    found, call = [], native.NativeEncoder.__call__
    monkeypatch.setattr(native.NativeEncoder, "__call__", lambda *args: found.append(1) or call(*args))
    monkeypatch.setattr(family_speed, "SIZES", TINY)
    return found


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_one_way_is_native_and_the_other_is_not(family, made):
    found = family_speed.measure(family, family_speed.FamilyArguments(layers=2, rounds=2))
    assert len(made) == 2 + 5
    assert set(found) == {"native", "layer by layer", "float", "layer by layer / native"}
    _, packed = family_speed.models(family, 2)
    batch = {"input_ids": torch.randint(5, 1000, (1, 4))}
    with torch.inference_mode():
        whole = packed(**batch).last_hidden_state
        with family_speed.layer_by_layer():
            one_by_one = packed(**batch).last_hidden_state
    assert len(made) == 2 + 5 + 1
    torch.testing.assert_close(whole, one_by_one, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_texts_are_classified_in_both_ways(family, made):
    assert family_speed.agreement(family, family_speed.FamilyArguments(layers=2, texts=20)) >= 18
    assert len(made) == 20, "one way calls the native encoder, the other does not"
