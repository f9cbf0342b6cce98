"""The attention implementation "xtc_scores": eager attention that returns the scores before mask and softmax."""

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, BertModel, set_seed
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_xtc.compression.convert import compress
from hf_xtc.modeling.attention import SCORES, scores_attention


@pytest.fixture(params=["teacher", "student"])
def model(request, tiny_teacher):
    """A float model and a latent one."""
    return tiny_teacher if request.param == "teacher" else compress(tiny_teacher)


def run(model, implementation, batch):
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        return model(**batch, output_attentions=True, output_hidden_states=True)


def test_logits_are_those_of_eager(model, tiny_batch):
    eager, ours = run(model, "eager", tiny_batch), run(model, SCORES, tiny_batch)
    assert torch.equal(ours.logits, eager.logits)
    for found, expected in zip(ours.hidden_states, eager.hidden_states, strict=True):
        assert torch.equal(found, expected)


def test_masked_softmax_of_scores_is_eagers_probabilities(model, tiny_batch):
    eager, ours = run(model, "eager", tiny_batch), run(model, SCORES, tiny_batch)
    assert len(ours.attentions) == len(eager.attentions) == 4
    padding = tiny_batch["attention_mask"][:, None, None, :] == 0
    for scores, probabilities in zip(ours.attentions, eager.attentions, strict=True):
        assert scores.shape == (3, 4, 11, 11)
        assert scores.abs().max() < 1e3, "the mask must not be in the scores"
        assert (scores < 0).any(), "probabilities are no scores"
        masked = scores.masked_fill(padding, torch.finfo(torch.float32).min)
        assert torch.equal(masked.softmax(-1), probabilities)


def test_scores_are_scaled_products(tiny_teacher, tiny_batch):
    found = {}

    def keep(name):
        return lambda module, inputs, output: found.__setitem__(name, output.view(3, 11, 4, 9).transpose(1, 2))

    attention = tiny_teacher.bert.encoder.layer[1].attention.self
    hooks = [getattr(attention, name).register_forward_hook(keep(name)) for name in ("query", "key")]
    scores = run(tiny_teacher, SCORES, tiny_batch).attentions[1]
    for hook in hooks:
        hook.remove()
    assert torch.equal(scores, found["query"] @ found["key"].transpose(2, 3) * 9**-0.5)


def test_padding_does_not_matter(model, tiny_batch):
    expected = run(model, SCORES, tiny_batch).logits
    noise = torch.where(tiny_batch["attention_mask"] == 1, tiny_batch["input_ids"], 77)
    assert torch.equal(run(model, SCORES, {**tiny_batch, "input_ids": noise}).logits, expected)


def test_mask_function_is_registered_and_needed(tiny_teacher, tiny_batch, monkeypatch):
    assert ALL_ATTENTION_FUNCTIONS[SCORES] is scores_attention
    assert ALL_MASK_ATTENTION_FUNCTIONS[SCORES] is eager_mask
    AttentionInterface.register("unmasked", scores_attention)
    expected = run(tiny_teacher, SCORES, tiny_batch).logits
    try:
        # Without a mask function transformers passes no mask at all: padding would take part, without a word.
        unmasked = run(tiny_teacher, "unmasked", tiny_batch).logits
        assert torch.equal(unmasked[0], expected[0]), "row 0 has no padding"
        assert not torch.allclose(unmasked[1:], expected[1:])
        AttentionMaskInterface.register("unmasked", eager_mask)
        assert torch.equal(run(tiny_teacher, "unmasked", tiny_batch).logits, expected)
    finally:
        for table in (AttentionInterface, AttentionMaskInterface):
            table._global_mapping.pop("unmasked", None)


def test_dropout_acts_in_training_only():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 5, 4, generator=generator) for _ in range(3))
    module = torch.nn.Module()
    plain = scores_attention(module.eval(), query, key, value, None, dropout=0.5)
    without = scores_attention(module.train(), query, key, value, None, dropout=0.0)
    set_seed(0)
    dropped = scores_attention(module.train(), query, key, value, None, dropout=0.5)
    assert torch.equal(plain[0], without[0])
    assert not torch.allclose(plain[0], dropped[0])
    assert torch.equal(plain[1], dropped[1]), "scores are taken before dropout"


def test_scaling_and_shapes():
    query, key, value = torch.ones(2, 3, 5, 4), torch.ones(2, 3, 5, 4), torch.ones(2, 3, 5, 6)
    output, scores = scores_attention(torch.nn.Module(), query, key, value, None)
    assert output.shape == (2, 5, 3, 6)
    assert output.is_contiguous()
    assert torch.equal(scores, torch.full((2, 3, 5, 5), 2.0))
    _, scores = scores_attention(torch.nn.Module(), query, key, value, None, scaling=0.25)
    assert torch.equal(scores, torch.ones(2, 3, 5, 5))


def test_scores_carry_a_gradient(tiny_teacher, tiny_batch):
    tiny_teacher.set_attn_implementation(SCORES)
    tiny_teacher(**tiny_batch, output_attentions=True).attentions[0].sum().backward()
    assert tiny_teacher.bert.encoder.layer[0].attention.self.key.weight.grad.abs().max() > 0


def test_attention_implementation_is_not_saved(tiny_teacher, tmp_path):
    tiny_teacher.set_attn_implementation(SCORES)
    tiny_teacher.save_pretrained(tmp_path)
    assert SCORES not in (tmp_path / "config.json").read_text()
    assert BertModel.from_pretrained(tmp_path).config._attn_implementation != SCORES
