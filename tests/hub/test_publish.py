"""What is written of a packed model: all its files, or none."""

import pytest
from trainers import make_teacher
from transformers import BertTokenizerFast

from hf_xtc.compression.convert import compress, pack_model
from hf_xtc.errors import StateError
from hf_xtc.hub.publish import write_packed
from hf_xtc.recipe.xtc_recipe import XTCRecipe


class FailingTokenizer(BertTokenizerFast):
    """Its second file cannot be written."""

    def save_pretrained(self, folder, **options):
        super().save_pretrained(folder, **options)
        raise OSError(28, "No space left on device")


def test_model_and_tokenizer_are_replaced_together(tmp_path):
    teacher, vocab = make_teacher(), {"[PAD]": 0, "[UNK]": 1, "good": 2}
    packed = pack_model(compress(teacher, XTCRecipe(keep_layers=1)))
    write_packed(packed, tmp_path, tokenizer=BertTokenizerFast(vocab=vocab), max_shard_size="5KB")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert "tokenizer.json" in before
    other = compress(teacher, XTCRecipe(keep_layers=2))
    with pytest.raises(StateError, match=r"No space left on device.*Nothing half-written was left there\.$"):
        write_packed(other, tmp_path, tokenizer=FailingTokenizer(vocab={**vocab, "bad": 3}))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    write_packed(other, tmp_path)
    assert {file.name for file in tmp_path.glob("model*")} == {"model.safetensors", "modeling_xtc.py"}
