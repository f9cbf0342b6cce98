"""The tokenizer in JavaScript gives what the tokenizers library gives: ids, token types, parts and places."""

import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from node import EXAMPLE, Process, needs_packages
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from web_texts import random_texts, utf16_places

pytestmark = needs_packages
WORDS = [
    *("a", "film", "the", "joy", "from", "start", "to", "end", "naive", "cafe", "running", "北", "京", "!", "?", "'"),
    *("##ing", "##s", "##é", "1", "2", "3", "ß"),
]


@pytest.fixture(scope="module")
def node():
    process = Process("encode.mjs")
    yield process
    process.close()


def save(tokenizer, folder, **options):
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    return folder


def assert_equal(node, folder, texts, longest=512, places=True, **truncation):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest, **truncation)
    found = node(folder=str(folder), texts=texts, longest=longest)
    assert "error" not in found, found
    encodings = tokenizer.encode_batch([text if isinstance(text, str) else tuple(text) for text in texts])
    for text, encoding, own in zip(texts, encodings, found["encodings"], strict=True):
        assert own["ids"] == encoding.ids, text
        assert own["types"] == encoding.type_ids, text
        assert own["parts"] == [-1 if part is None else part for part in encoding.sequence_ids], text
        if places:
            assert own["places"] == utf16_places(text, encoding), text


def test_ten_thousand_texts(node):
    """Whole and truncated: Unicode of all planes, control characters, accents, emoji, special tokens in the text."""
    texts = random_texts(10_000)
    assert_equal(node, EXAMPLE, texts)
    assert_equal(node, EXAMPLE, texts[:2000], 20)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(st.text(), st.tuples(st.text(), st.text()).map(list)), min_size=1, max_size=20))
def test_any_texts(node, texts):
    assert_equal(node, EXAMPLE, texts)


def word_piece(**options):
    tokenizer = Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(["[UNK]", "[CLS]", "[SEP]", *dict.fromkeys(WORDS)])})
    )
    tokenizer.normalizer = normalizers.BertNormalizer(**options)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("strip_accents", [True, False, None])
@pytest.mark.parametrize("clean_text", [True, False])
def test_normalizers(lowercase, strip_accents, clean_text, node, tmp_path):
    options = {"lowercase": lowercase, "strip_accents": strip_accents, "clean_text": clean_text}
    tokenizer = word_piece(handle_chinese_chars=clean_text, **options)
    texts = ["A Film", "naïve café", "北京film", "a\x00film\tthe\u3000end", "İ ß ẞ ﬁ", "runnings " * 30, "x" * 101]
    assert_equal(node, save(tokenizer, tmp_path), texts + random_texts(300, seed=1))


def test_added_tokens(node, tmp_path):
    """In the text as it is and in the normalized text, with the spaces around them, and only as whole words."""
    tokenizer = word_piece()
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, rstrip=True), AddedToken("<mas", lstrip=True)])
    tokenizer.add_tokens([AddedToken("Joyé", normalized=True), AddedToken("end", single_word=True, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 1), ("[SEP]", 2)]
    )
    rng = random.Random(0)
    parts = ["<mask>", "<mas", "  ", " ", "joye", "JOYÉ", "end", "ending", "a", "film", "\u3000", "!", "é", "👍"]
    texts = ["".join(rng.choices(parts, k=rng.randrange(9))) for _ in range(2000)]
    assert_equal(node, save(tokenizer, tmp_path), texts)


def test_truncation_of_pairs(node, tmp_path):
    """All lengths of both texts, from the left and from the right."""
    tokenizer = word_piece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    texts = [["film " * first, "joy " * second] for first in range(12) for second in range(12)]
    for side in ("left", "right"):
        folder = save(tokenizer, tmp_path / side, truncation_side=side)
        for longest in (4, 5, 8, 11):
            assert_equal(node, folder, texts, longest, direction=side)


def test_byte_level_bpe(node, tmp_path):
    """As RoBERTa's, also places."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS), "a film from start to end is a joy for the naïve"] * 5, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    texts = [
        text
        for text in [
            "A film",
            "naïve café 北京 👍",
            " two  spaces ",
            "the end",
            ["a film", " joy"],
            *random_texts(300),
        ]
        if "[" not in str(text)[1:-1] or isinstance(text, str)
    ]
    assert_equal(node, save(tokenizer, tmp_path, tokenizer_class="RobertaTokenizer"), texts)
    assert_equal(node, tmp_path, texts, 10)


def test_unigram(node, tmp_path):
    """As XLM-R's, without places."""
    vocabulary = [
        ("<s>", 0.0),
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -3.0),
        ("▁a", -2.5),
        ("▁film", -4.0),
    ]
    vocabulary += [(piece, -5.0 - i / 7) for i, piece in enumerate(["▁the", *"filmtheajoys", "▁joy"])]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=3))
    tokenizer.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", "<s> $A </s> </s> $B </s>", [("<s>", 0), ("</s>", 2)]
    )
    texts = ["a film", "the joys of film", "xyz a", "a  the", ["a film", "joy"], "thefilm jo"]
    assert_equal(node, save(tokenizer, tmp_path), texts, places=False)


def test_what_cannot_be_read(node, tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, "a"))
    folder = save(tokenizer, tmp_path)
    found = node(folder=str(folder), texts=["a"])
    assert found["error"].startswith("ModelError: tokenizer.json cannot be read (")
    assert found["error"].endswith("). Write it with a fast tokenizer.")
