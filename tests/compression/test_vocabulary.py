"""Trimmed vocabularies: of tokenizers of each kind, trained here on a few sentences, and of models of each family."""

import pytest
import torch
from families import CONFIGS, make_teacher
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from hf_xtc.compression.convert import compress, pack_model
from hf_xtc.compression.vocabulary import count_tokens, trim_model, trim_tokenizer, trim_vocabulary
from hf_xtc.errors import RecipeError, XTCError

SENTENCES = [
    "the film is a quietly moving story of two brothers who never speak",
    "an air plane is taking off while the pilots are speaking to the tower",
    "how many calories are there in a Big Mac, and who counts them?",
    "what a dull, overlong, overacted and underwritten mess of a movie!",
    "Zürich's naïve café owners déjà-vu'd at 10:30 (again) — twice",
] * 8
TEXTS = ["a quiet film about speaking planes", "who counts the calories of a movie?"]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def word_piece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(SENTENCES, trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIAL))
    tokenizer.decoder = decoders.WordPiece()
    ends = [("<s>", tokenizer.token_to_id("<s>")), ("</s>", tokenizer.token_to_id("</s>"))]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=ends
    )
    return tokenizer


def byte_pair():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    ends = [(name, tokenizer.token_to_id(name)) for name in ("</s>", "<s>")]
    tokenizer.post_processor = processors.RobertaProcessing(*ends)
    return tokenizer


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>")
    tokenizer.train_from_iterator(SENTENCES, trainer)
    ends = [("<s>", tokenizer.token_to_id("<s>")), ("</s>", tokenizer.token_to_id("</s>"))]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return tokenizer


def wrapped(tokenizer):
    names = {
        "bos": "<s>",
        "cls": "<s>",
        "pad": "<pad>",
        "eos": "</s>",
        "sep": "</s>",
        "unk": "<unk>",
        "mask": "<mask>",
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=40, **{f"{name}_token": token for name, token in names.items()}
    )


TOKENIZERS = {"WordPiece": wrapped(word_piece()), "BPE": wrapped(byte_pair()), "Unigram": wrapped(unigram())}
TRIMMED = {kind: trim_tokenizer(tokenizer, count_tokens(tokenizer, TEXTS)) for kind, tokenizer in TOKENIZERS.items()}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_given_texts_are_encoded_as_before(kind):
    before, (kept, after) = TOKENIZERS[kind], TRIMMED[kind]
    assert len(after) == len(kept) < len(before)
    for text in TEXTS:
        ids = after(text)["input_ids"]
        assert [kept[number] for number in ids] == before(text)["input_ids"]
        assert after.convert_ids_to_tokens(ids) == before.convert_ids_to_tokens(before(text)["input_ids"])
        assert after.decode(ids) == before.decode(before(text)["input_ids"])
    assert after.special_tokens_map == before.special_tokens_map
    assert after.pad_token_id == before.pad_token_id == 1
    assert after.model_max_length == 40
    batch = after(TEXTS, padding=True)
    assert {kept[number] for row in batch["input_ids"] for number in row} >= {before.pad_token_id}


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(deadline=None, max_examples=200)
@given(text=st.text(alphabet="abcdefghilmnopqrstuvwyZ éà'?!,1036漢", max_size=40))
def test_any_text_still_encodes_and_no_new_token_is_unknown(kind, text):
    before, (_, after) = TOKENIZERS[kind], TRIMMED[kind]
    was, found = before(text)["input_ids"], after(text)["input_ids"]
    if before.unk_token_id not in was:
        assert after.unk_token_id not in found
        assert after.decode(found, skip_special_tokens=True) == before.decode(was, skip_special_tokens=True)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_trimmed_tokenizer_is_saved_and_trimmed_again_to_itself(kind, tmp_path):
    _, after = TRIMMED[kind]
    after.save_pretrained(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert loaded.get_vocab() == after.get_vocab()
    assert loaded(SENTENCES)["input_ids"] == after(SENTENCES)["input_ids"]
    kept, again = trim_tokenizer(after, count_tokens(after, TEXTS))
    assert kept == list(range(len(after)))
    assert again.get_vocab() == after.get_vocab()


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_rare_tokens_are_left_out(kind):
    tokenizer = TOKENIZERS[kind]
    often, seldom = (
        trim_tokenizer(tokenizer, count_tokens(tokenizer, SENTENCES), min_count=1),
        trim_tokenizer(tokenizer, count_tokens(tokenizer, SENTENCES), min_count=9),
    )
    assert len(seldom[0]) < len(often[0])
    assert set(seldom[0]) < set(often[0])


def test_options_of_the_tokenizer_are_left_as_they_were():
    tokenizer = wrapped(word_piece())
    untruncated, _ = trim_tokenizer(tokenizer, count_tokens(tokenizer, TEXTS))
    tokenizer.backend_tokenizer.enable_truncation(max_length=4)
    tokenizer.backend_tokenizer.enable_padding(pad_id=1, pad_token="<pad>", length=5)
    before = tokenizer.backend_tokenizer.to_str()
    kept, after = trim_tokenizer(tokenizer, count_tokens(tokenizer, TEXTS))
    assert tokenizer.backend_tokenizer.to_str() == before
    assert kept == untruncated, "tokens beyond the truncation count too"
    assert after.backend_tokenizer.truncation["max_length"] == 4


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("head", ["Model", "ForMaskedLM", "ForSequenceClassification"])
def test_a_trimmed_model_computes_the_same(family, head):
    teacher = make_teacher(family, CONFIGS[family][0].removesuffix("Config") + head)
    size = teacher.config.vocab_size
    kept = [number for number in range(size) if number < 8 or number % 3 == 0]
    trimmed = trim_model(teacher, kept)
    assert trimmed.config.vocab_size == len(kept)
    assert teacher.config.vocab_size == size
    rows = torch.randint(8, len(kept), (2, 7))
    with torch.inference_mode():
        found, expected = trimmed(rows)[0], teacher(torch.tensor(kept)[rows])[0]
    torch.testing.assert_close(found, expected[..., kept] if head == "ForMaskedLM" else expected, rtol=0, atol=1e-6)
    assert trimmed.num_parameters() < teacher.num_parameters()
    packed = pack_model(compress(trimmed))
    assert packed(rows)[0].shape == found.shape


def test_what_cannot_be_trimmed_is_refused():
    tokenizer = TOKENIZERS["WordPiece"]
    with pytest.raises(RecipeError, match="min_count=0 must be a positive whole number"):
        trim_vocabulary(make_teacher("bert", "BertModel"), tokenizer, TEXTS, min_count=0)
    with pytest.raises(XTCError, match="has rows for 101 tokens"):
        trim_vocabulary(make_teacher("bert", "BertModel"), tokenizer, SENTENCES)
    with pytest.raises(XTCError, match=r"str has no tokenizer\.json"):
        count_tokens("slow", TEXTS)
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    )
    with pytest.raises(XTCError, match="is WordLevel"):
        trim_tokenizer(words, count_tokens(words, TEXTS))
