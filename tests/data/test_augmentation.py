"""Augmentation: words, candidates and rows; invariants on random texts, and each refusal with its text."""

import re
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
    set_seed,
)

import hf_xtc.data.augmentation
import hf_xtc.data.unlabelled
import hf_xtc.data.word_table
from hf_xtc.data.augmentation import PUBLISHED_COPIES, Augmentation, _bits, augment
from hf_xtc.data.glue import GLUE
from hf_xtc.data.masked_lm import MaskedLM, candidate_source
from hf_xtc.data.word_table import Words, WordTable, choose, word_spans
from hf_xtc.errors import DataError, RecipeError

WORDS = [f"{first}{vowel}x" for first in "bdfklmpt" for vowel in "aeiou"]
PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *WORDS,
    "the",
    "not",
    "zu",
    "##zu",
    "##x",
    "##7",
    ".",
    ",",
    "q",
]
EVERY = Augmentation(copies=4, candidates=3, probability=1.0)
LAWS = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
SENTENCES = st.lists(
    st.lists(st.sampled_from([*WORDS[:12], "Bax", "DEX", "the", "not", "zuzu", ".", "don't", "b2b"]), max_size=6).map(
        " ".join
    ),
    min_size=1,
    max_size=8,
)


@pytest.fixture(autouse=True)
def quiet_datasets():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def table():
    return WordTable(tuple(WORDS), np.random.default_rng(0).normal(size=(len(WORDS), 8)))


@pytest.fixture(scope="module")
def tokenizer():
    return BertTokenizerFast(vocab={piece: i for i, piece in enumerate(PIECES)}, model_max_length=40)


@pytest.fixture(scope="module")
def config():
    shape = {"hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 50}
    return BertConfig(vocab_size=len(PIECES), max_position_embeddings=40, initializer_range=0.5, **shape)


@pytest.fixture(scope="module")
def language_model(config):
    set_seed(0)
    return BertForMaskedLM(config)


def rows(*texts, label=None, **columns):
    return Dataset.from_dict({"text": list(texts), **columns, "label": label or [i % 2 for i in range(len(texts))]})


def made(dataset):
    """The augmented rows without the originals, as texts or pairs of texts."""
    sides = [side for side in ("text", "text_pair") if side in dataset.column_names]
    new = dataset.filter(lambda row: row["augmented"]).to_dict()
    return new["text"] if sides == ["text"] else list(zip(new["text"], new["text_pair"], strict=True))


def refusal(error, function, *args, **kwargs):
    with pytest.raises(error) as caught:
        function(*args, **kwargs)
    return str(caught.value)


# ---- words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("A good film, the best.", ["good", "film", "best"]),
        ("Don't! It's o'clock; y'all've won't", []),
        ("does n't ca n't they 've they 'll", []),
        ("he said 'splendid' and “naïve”", ["said", "splendid", "naïve"]),
        ("well-acted 3D b2b covid19 x² film_noir", ["acted"]),
        ("film—plot/actor", ["film", "plot", "actor"]),
        ("I x y", []),
        ("GOOD Film", ["GOOD", "Film"]),
    ],
)
def test_replaceable_words(text, words):
    assert [text[start:end] for start, end in word_spans(text)] == words


# ---- word tables


def test_neighbours_are_the_nearest_by_cosine(table, monkeypatch):
    monkeypatch.setattr(hf_xtc.data.word_table, "BLOCK", 7)
    vectors = table.vectors.astype(np.float64)
    similar = vectors @ vectors.T - 3 * np.eye(len(WORDS))
    expected = np.argsort(-similar, axis=1)[:, :5]
    np.testing.assert_array_equal(table.neighbours(WORDS, 5), expected)


def test_words_the_table_lacks_have_no_candidates(table):
    assert table.neighbours(["zuzu", "bax"], 2)[0].tolist() == [-1, -1]
    found = table.candidates(["zuzu bax the"], 2)
    assert found.counts.tolist() == [0, 2]
    assert found.offsets.tolist() == [0, 2]


def test_a_small_table_has_few_neighbours():
    table = WordTable(("bax", "bex"), np.eye(2))
    assert table.neighbours(["bax", "bex"], 4).tolist() == [[1, -1, -1, -1], [0, -1, -1, -1]]
    assert WordTable(("bax",), np.eye(1)).candidates(["bax"], 4).counts.tolist() == [0]


def test_candidates_take_over_capitals_and_are_never_the_word_itself():
    words = Words.of(["film Film FILM"])
    found = choose(words, ["film", "Film", "movie", "##s", "dvd2", "iMax"], np.array([[0, 2, 3, -1, 1, 4, 5]] * 3))
    assert found.counts.tolist() == [2, 2, 2]
    chosen = [[found.strings[i] for i in row[:2]] for row in found.choices.tolist()]
    assert chosen == [["movie", "iMax"], ["Movie", "IMax"], ["MOVIE", "IMAX"]]


def test_table_of_a_model_has_its_whole_words(config, tokenizer):
    model = BertModel(config)
    table = WordTable.from_model(model, tokenizer)
    assert table.words == (*WORDS, "the", "not", "zu")
    expected = torch.nn.functional.normalize(model.get_input_embeddings().weight[5 : 5 + len(WORDS)], dim=1)
    torch.testing.assert_close(torch.from_numpy(table.vectors[: len(WORDS)]), expected)
    assert not table.vectors.flags.writeable or table.vectors.base is not model.get_input_embeddings().weight


def test_model_without_whole_words(config):
    tokenizer = BertTokenizerFast(vocab={piece: i for i, piece in enumerate(["[UNK]", "[PAD]", "a", "##b", "7"])})
    assert refusal(DataError, WordTable.from_model, BertModel(config), tokenizer) == (
        "The tokenizer has no piece that is a whole word. Pass GloVe or a masked language model."
    )


@pytest.mark.parametrize(
    ("words", "vectors", "message"),
    [
        ((), np.zeros((0, 2)), "a word table has 0 words and vectors of shape (0, 2)."),
        (("a", "b"), np.zeros((3, 2)), "a word table has 2 words and vectors of shape (3, 2)."),
        (("a",), [[np.nan]], "a word table has vectors that are not finite. Replace the file or the model."),
    ],
)
def test_bad_tables(words, vectors, message):
    assert refusal(DataError, WordTable, words, vectors) == message


def test_zero_vectors_do_not_become_nan():
    table = WordTable(("bax", "bex", "bix"), np.zeros((3, 2)))
    assert np.isfinite(table.vectors).all()


# ---- GloVe


GLOVE = {"the": [1, 0], ",": [0, 0], "film": [0.5, 1], "2nd": [3, 4], "movie": [1, 2], "a": [1, 1], "film ": [9, 9]}


def write_folder(folder, words=("the", ",", "film", "movie"), vectors=((1, 0), (0, 0), (0.5, 1), (1, 2))):
    folder.mkdir(parents=True)
    np.save(folder / "emb.npy", np.array(vectors, dtype=np.float32))
    pd.DataFrame({"index": words}).to_parquet(folder / "index.parquet")
    return folder


def test_glove_as_text(tmp_path, monkeypatch):
    file = tmp_path / "glove.txt"
    lines = [" ".join(map(str, [word, *vector])) for word, vector in GLOVE.items() if word != "film "]
    file.write_text("\n".join(lines) + "\n")
    table = WordTable.from_glove(str(file))
    assert table.words == ("the", "film", "movie")
    np.testing.assert_allclose(table.vectors, [[1, 0], [0.2**0.5, 0.8**0.5], [0.2**0.5, 0.8**0.5]], rtol=1e-6)
    assert table.name == "nearest neighbours in glove.txt"
    monkeypatch.setattr(hf_xtc.data.word_table, "MAX_VECTORS", 3)
    assert WordTable.from_glove(str(file)).words == ("the", "film")


def test_glove_as_folder_and_as_package(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "own_glove_2d" / "data")
    (tmp_path / "own_glove_2d" / "__init__.py").write_text("raise ImportError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir("/")
    for source in (str(folder), "own-glove-2d", "own_glove_2d"):
        assert WordTable.from_glove(source).words == ("the", "film", "movie")
    monkeypatch.setattr(hf_xtc.data.word_table, "MAX_VECTORS", 3)
    assert WordTable.from_glove("own-glove-2d").words == ("the", "film")


@pytest.mark.parametrize("source", ["no.txt", "no-such-package", "csv"], ids=str)
def test_missing_glove(source):
    message = f"{source} is not a file, a folder or an installed package of word vectors."
    assert refusal(DataError, WordTable.from_glove, source) == message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("film 1 2\nmovie 1 2 3\n", "line 2 has 3 numbers, line 1 has 2"),
        ("film 1 2\nmovie 1 x\n", "could not convert string to float: 'x'"),
        (b"caf\xe9 1 2\n", "'utf-8' codec can't decode byte 0xe9 in position 3: invalid continuation byte"),
    ],
    ids=["ragged", "no number", "not UTF-8"],
)
def test_invalid_glove_text_file(tmp_path, monkeypatch, content, reason):
    monkeypatch.chdir(tmp_path)
    Path("glove.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    message = refusal(DataError, WordTable.from_glove, "glove.txt")
    assert message == f"Cannot read word vectors from glove.txt: {reason}."


def test_text_without_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("glove.txt").write_text("")
    message = refusal(DataError, WordTable.from_glove, "glove.txt")
    assert message == "Cannot read word vectors from glove.txt: no word has two letters or more."


def test_invalid_glove_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    write_folder(Path("short"), words=("the", "film"))
    reasons = {
        "empty": "it has 0 .npy and 0 .parquet files, but one of each is needed",
        "short": "2 words, but vectors of shape (4, 2)",
    }
    for folder, reason in reasons.items():
        message = refusal(DataError, WordTable.from_glove, folder)
        assert message == f"Cannot read word vectors from {folder}: {reason}."


# ---- masked language model


def best_pieces(model, tokenizer, text, count):
    """The likeliest pieces for each replaceable word, by one forward pass each; `None` for words of several pieces."""
    best = []
    for start, end in word_spans(text):
        masked = text[:start] + "[MASK]" + text[end:]
        (piece, *more) = tokenizer.tokenize(text[start:end])
        if more or piece == "[UNK]":
            best.append(None)
            continue
        inputs = tokenizer(masked, text, return_tensors="pt")
        with torch.no_grad():
            scores = model.eval()(**inputs).logits[0]
        at = inputs.input_ids[0].tolist().index(tokenizer.mask_token_id)
        pieces = tokenizer.convert_ids_to_tokens(scores[at].topk(count).indices.tolist())
        same = text[start:end].lower()
        best.append([p for p in pieces if p.isalpha() and p != same])
    return best


def strings_of(found):
    return [[found.strings[i] for i in found.choices[kind][: found.counts[kind]]] for kind in found.kinds]


TEXTS = ["bax the dex . not kix", "", "the", "fux zuzu", "bax, bax, lox mex pix tux bex dax kax", "unknown bix"]


@pytest.mark.parametrize("tokens", [1, 60, 4096])
def test_batched_candidates_equal_one_forward_pass_per_word(language_model, tokenizer, tokens):
    found = MaskedLM(language_model, tokenizer, tokens=tokens).candidates(TEXTS, 12)
    best = [pieces for text in TEXTS for pieces in best_pieces(language_model, tokenizer, text, 12)]
    assert strings_of(found) == [pieces or [] for pieces in best]
    assert sum(pieces is None for pieces in best) == 2
    assert max(map(len, strings_of(found))) > 8
    assert found.offsets.tolist() == [0, 3, 3, 3, 5, 14, 16]


def test_words_of_several_pieces_fall_back_to_the_table(language_model, tokenizer):
    table = WordTable(("zuzu", "bax", "dex"), np.eye(3))
    alone = MaskedLM(language_model, tokenizer).candidates(["Zuzu bax"], 2)
    both = MaskedLM(language_model, tokenizer, table).candidates(["Zuzu bax"], 2)
    assert strings_of(alone)[0] == []
    assert strings_of(both)[0] == ["Bax", "Dex"]
    assert strings_of(both)[1] == strings_of(alone)[1]


def test_a_word_of_several_pieces_has_no_candidates_from_the_model(language_model, tokenizer):
    assert tokenizer.tokenize("zux") == ["zu", "##x"]
    assert strings_of(MaskedLM(language_model, tokenizer).candidates(["zux zu"], 5))[0] == []


def test_words_masked_together_are_masked_in_one_pass(language_model, tokenizer):
    text = "bax the dex kix"
    inputs = tokenizer("[MASK] the dex [MASK]", text, return_tensors="pt")
    with torch.no_grad():
        scores = language_model.eval()(**inputs).logits[0]
    found = strings_of(MaskedLM(language_model, tokenizer, together=2).candidates([text], 12))
    for position, place, word in [(0, 1, "bax"), (2, 4, "kix")]:
        best = tokenizer.convert_ids_to_tokens(scores[place].topk(12).indices.tolist())
        assert found[position] == [piece for piece in best if piece.isalpha() and piece != word]


def test_words_beyond_the_limit_of_the_model_have_no_candidates(language_model, tokenizer):
    found = MaskedLM(language_model, tokenizer).candidates(["bax dex " * 30], 3)
    assert len(found.kinds) == 60
    known = np.flatnonzero(found.counts)
    assert 10 < len(known) < 20
    assert known.tolist() == list(range(len(known)))


def test_the_training_mode_of_the_model_is_restored(language_model, tokenizer):
    for training in (True, False):
        MaskedLM(language_model.train(training), tokenizer).candidates(["bax dex"], 3)
        assert language_model.training is training
    assert not language_model.base_model._forward_hooks


def test_masked_lm_from_a_folder(language_model, config, tokenizer, tmp_path):
    language_model.save_pretrained(tmp_path / "mlm")
    BertModel(config).save_pretrained(tmp_path / "base")
    for name in ("mlm", "base"):
        tokenizer.save_pretrained(tmp_path / name)
    loaded = MaskedLM.from_pretrained(str(tmp_path / "mlm"))
    found, expected = (source.candidates(TEXTS, 3) for source in (loaded, MaskedLM(language_model, tokenizer)))
    assert strings_of(found) == strings_of(expected)
    assert loaded.name == f"masked language model {tmp_path / 'mlm'}"
    message = refusal(RecipeError, MaskedLM.from_pretrained, str(tmp_path / "base"))
    lacks = "it lacks cls.predictions.bias. Use a pre-trained one."
    assert message == f"{tmp_path / 'base'} is not a masked language model: {lacks}"


def test_masked_lm_refusals(language_model, tokenizer):
    plain = BertTokenizerFast(vocab={"[UNK]": 0, "[PAD]": 1, "bax": 2}, mask_token=None)
    assert refusal(RecipeError, MaskedLM, language_model, plain) == (
        "The tokenizer of a masked language model needs a mask token, and must be a fast one."
    )
    for name in ("tokens", "together"):
        message = refusal(RecipeError, MaskedLM, language_model, tokenizer, **{name: 0})
        assert message == f"{name}=0 must be a positive whole number."


def test_choice_of_the_source(language_model, config, tokenizer, tmp_path):
    teacher, folder = BertModel(config), str(write_folder(tmp_path / "glove"))
    language_model.save_pretrained(tmp_path / "mlm")
    tokenizer.save_pretrained(tmp_path / "mlm")
    own = candidate_source(teacher, tokenizer)
    assert own.name == "nearest neighbours in the teacher's word embeddings"
    assert candidate_source(teacher, tokenizer, glove=folder).name == "nearest neighbours in glove"
    masked = candidate_source(teacher, tokenizer, masked_lm=str(tmp_path / "mlm"))
    assert isinstance(masked, MaskedLM)
    assert masked.table.words == own.words
    assert masked.together == 1
    masked = candidate_source(teacher, tokenizer, masked_lm=str(tmp_path / "mlm"), glove=folder, together=3)
    assert masked.together == 3
    assert masked.table.words == ("the", "film", "movie")


# ---- settings


def test_published_settings():
    assert Augmentation() == Augmentation(copies=20, candidates=15, probability=0.4, seed=0)
    assert PUBLISHED_COPIES.keys() == GLUE.keys() - {"wnli"}
    thirty = ["cola", "mrpc", "rte", "stsb"]
    expected = {**dict.fromkeys(thirty, 30), "sst2": 20, "qnli": 20, "mnli": 10, "qqp": 10}
    assert expected == PUBLISHED_COPIES


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("copies", 0, "copies=0 must be a positive whole number."),
        ("candidates", 1.5, "candidates=1.5 must be a positive whole number."),
        ("probability", 1.01, "probability=1.01 must be a number from 0 to 1."),
        ("probability", float("nan"), "probability=nan must be a number from 0 to 1."),
        ("probability", "0.4", "probability='0.4' must be a number from 0 to 1."),
        ("seed", -1, "seed=-1 must be a whole number, 0 or more."),
    ],
)
def test_settings_out_of_range(field, value, message):
    assert refusal(RecipeError, Augmentation, **{field: value}) == message


# ---- laws of augment


@LAWS
@given(SENTENCES, st.integers(0, 2**70), st.sampled_from([0.1, 0.4, 1.0]), st.integers(1, 6), st.integers(1, 5))
def test_invariants_on_random_texts(table, texts, seed, probability, copies, count):
    data, how = rows(*texts), Augmentation(copies, count, probability, seed)
    out = augment(data, how, table)
    assert out.column_names == ["text", "label", "augmented"]
    originals, new = out.select(range(len(texts))), list(out)[len(texts) :]
    assert originals.select_columns(["text", "label"]).to_dict() == data.to_dict(), "originals are kept, first"
    assert originals["augmented"][:] == [False] * len(texts)
    assert all(row["augmented"] for row in new)
    assert out.to_dict() == augment(data, how, table, batch_size=1).to_dict(), "batches change nothing"
    seen = {text.lower() for text in texts}
    parent = 0
    made_of = np.zeros(len(texts), dtype=int)
    for row in new:
        assert row["text"].lower() not in seen, "no duplicates"
        seen.add(row["text"].lower())
        while made_of[parent] == copies or not may_come_from(row["text"], texts[parent], table, count):
            parent += 1  # in order of the rows they come from; beyond the last, more were made than may be
        made_of[parent] += 1


def may_come_from(new, old, table, count):
    """Whether `new` is `old` with some replaceable words replaced by one of their first `count` neighbours."""
    pattern, end = "", 0
    for start, stop in word_spans(old):
        near = [table.words[i] for i in table.neighbours([old[start:stop]], count)[0] if i >= 0]
        style = {True: str.upper, False: str.capitalize}.get(old[start:stop].isupper(), str)
        style = style if old[start].isupper() else str
        options = "|".join([old[start:stop], *map(style, near)])
        pattern, end = f"{pattern}{re.escape(old[end:start])}(?:{options})", stop
    return re.fullmatch(pattern + re.escape(old[end:]), new) is not None


@LAWS
@given(SENTENCES)
def test_probability_zero_returns_only_the_original_rows(table, texts):
    out = augment(rows(*texts), Augmentation(probability=0.0), table)
    assert out["text"][:] == texts
    assert out.features["augmented"].dtype == "bool"


@LAWS
@given(SENTENCES, st.integers(0, 9))
def test_probability_one_replaces_every_word_that_has_candidates(table, texts, seed):
    out = augment(rows(*texts), Augmentation(1, 3, 1.0, seed), table)
    for text in made(out):
        assert any(all_differ(text, old) for old in texts)


def all_differ(new, old):
    words, before = new.split(" "), old.split(" ")
    known = [word.lower() in WORDS for word in before]
    return len(words) == len(before) and all(
        (w != b) if k else (w == b) for w, b, k in zip(words, before, known, strict=True)
    )


def test_one_candidate_and_probability_one_leave_no_choice(table):
    texts = ["bax dex .", "the bex", "not"]
    near = {word: table.words[table.neighbours([word], 1)[0, 0]] for word in ("bax", "dex", "bex")}
    out = augment(rows(*texts), Augmentation(30, 1, 1.0, seed=3), table)
    assert made(out) == [f"{near['bax']} {near['dex']} .", f"the {near['bex']}"]


def test_draws_have_the_published_probabilities(table):
    """In 4,000 copies words are replaced with p, independently, by any candidate alike; a few copies are equal."""
    words = WORDS[:5]
    count, p = 4, 0.3
    data = rows(*[f"{' '.join(words)} {i}" for i in range(400)])
    out = [text.split()[:5] for text in made(augment(data, Augmentation(10, count, p, 1), table))]
    changed = np.array([[new != old for new, old in zip(text, words, strict=True)] for text in out])
    assert changed.sum(axis=0) == pytest.approx(4000 * p, rel=0.08)
    assert (changed[:, 0] & changed[:, 1]).sum() == pytest.approx(4000 * p**2, rel=0.15)
    for place, word in enumerate(words):
        near = [table.words[i] for i in table.neighbours([word], count)[0]]
        shares = pd.Series([text[place] for text in out])[changed[:, place]].value_counts(normalize=True)
        assert set(shares.index) == set(near)
        assert shares.to_numpy() == pytest.approx(1 / count, abs=0.04)


def test_draws_of_a_row_depend_on_seed_column_and_row_alone():
    both = _bits(3, 1, np.array([5, 9]), np.array([4, 2]))
    assert both[:4].tolist() == _bits(3, 1, np.array([5]), np.array([7]))[:4].tolist()
    assert both[4:].tolist() == _bits(3, 1, np.array([9]), np.array([2])).tolist()
    assert _bits(3, 1, np.array([5]), np.array([0])).tolist() == []
    others = [
        _bits(seed, side, np.array([row]), np.array([4])) for seed in (3, 4) for side in (0, 1) for row in (5, 6)
    ]
    assert len(np.unique(others)) == 32


def test_draws_are_the_same_in_every_version_of_numpy():
    assert _bits(0, 0, np.array([0, 1]), np.array([1, 1])).tolist() == [11749869230777074271, 8286993518594409552]


@pytest.mark.parametrize("processes", [2, 3])
def test_result_does_not_depend_on_the_number_of_processes(table, processes):
    data = rows(*[f"{WORDS[i]} the {WORDS[i + 1]} {i}" for i in range(20)])
    alone = augment(data, EVERY, table)
    assert len(alone) > 80
    assert augment(data, EVERY, table, num_proc=processes, batch_size=3).to_dict() == alone.to_dict()


def test_another_seed_makes_other_rows(table):
    data = rows("bax dex kix", "lox mex")
    assert made(augment(data, EVERY, table)) != made(augment(data, Augmentation(4, 3, 1.0, seed=1), table))


def test_a_selected_subset_of_a_data_set(table):
    data = rows("bax dex", "bex", "kix lox")
    part = data.select([2, 0])
    assert (
        augment(part, EVERY, table).to_dict()
        == augment(rows("kix lox", "bax dex", label=[0, 0]), EVERY, table).to_dict()
    )


def test_texts_that_differ_only_in_case_and_spaces_are_duplicates():
    table = WordTable(("bax", "bex", "bix"), np.array([[1, 0], [1, 0.1], [-1, 0]]))
    how = Augmentation(copies=5, candidates=1, probability=1.0)
    assert made(augment(rows("bax  the", "BAX the", "  bax the "), how, table)) == ["bex  the"]
    assert made(augment(rows("bax the", "Bex The"), how, table)) == []


def test_masked_lm_as_source(language_model, tokenizer):
    source = MaskedLM(language_model, tokenizer)
    out = made(augment(rows("bax the dex"), Augmentation(40, 3, 1.0), source))
    first, _, second = zip(*(text.split() for text in out), strict=True)
    expected = strings_of(source.candidates(["bax the dex"], 3))
    assert [set(first), set(second)] == [set(words) for words in expected]


# ---- pairs, labels, exclusion


def test_pairs_vary_one_text_and_keep_the_other(table):
    data = rows("bax dex", "kix lox", text_pair=["bex the fax", "not"])
    out = augment(data, EVERY, table)
    assert out.column_names == ["text", "text_pair", "label", "augmented"]
    pairs = made(out)
    first, second = [a == "bax dex" for a, _ in pairs], [b == "bex the fax" for _, b in pairs]
    rest = [b == "not" for _, b in pairs]
    assert pairs == sorted(pairs, key=lambda pair: (pair[1] == "not", pair[0] == "bax dex"))
    assert 1 <= sum(first) <= 4
    assert 1 <= sum(second) <= 4
    assert 1 <= sum(rest) <= 4
    assert sum(first) + sum(second) + sum(rest) == len(pairs)
    assert out["label"][2:] == [0] * (sum(first) + sum(second)) + [1] * sum(rest)


@LAWS
@given(SENTENCES, SENTENCES)
def test_invariants_on_random_pairs(table, texts, others):
    size = min(len(texts), len(others))
    data = rows(*texts[:size], text_pair=others[:size])
    out = augment(data, EVERY, table)
    assert out.to_dict() == augment(data, EVERY, table, batch_size=2).to_dict()
    assert len(out) <= (2 * EVERY.copies + 1) * size
    pairs = list(zip(data["text"], data["text_pair"], strict=True))
    for text, other in made(out):
        assert any((text == a) != (other == b) for a, b in pairs)


def test_the_two_texts_of_a_pair_draw_independently(table):
    data = rows("bax dex kix", text_pair=["bax dex kix"])
    pairs = made(augment(data, Augmentation(8, 15, 0.5), table))
    assert {a for a, _ in pairs} != {b for _, b in pairs}


def test_excluded_rows_are_not_made(table):
    data = rows("bax dex", "kix lox")
    out = made(augment(data, EVERY, table))
    excluded = rows(out[0].upper() + " ", "bax dex", out[-1], label=[0, 0, 0])
    again = augment(
        data, EVERY, table, exclude=[excluded.select([0]), excluded.select([1, 2]).remove_columns("label")]
    )
    assert made(again) == out[1:-1]
    assert again["text"][:2] == ["bax dex", "kix lox"]


def test_excluded_pairs_match_both_texts(table):
    data = rows("bax dex", text_pair=["not"])
    ((text, _), *rest) = made(augment(data, EVERY, table))
    same, other = (rows(text, text_pair=[pair]) for pair in ("not", "the"))
    assert made(augment(data, EVERY, table, exclude=[same])) == rest
    assert len(made(augment(data, EVERY, table, exclude=[other]))) == len(rest) + 1


def test_labels_are_those_of_the_row_or_of_the_teacher(table, config, tokenizer, monkeypatch):
    monkeypatch.setattr(hf_xtc.data.unlabelled, "LABEL_ROWS", 3)
    set_seed(0)
    teacher = BertForSequenceClassification(config).train()
    data = rows("bax dex", "kix lox mex the fax", "bex", label=[1, 0, 0])
    plain, labelled = augment(data, EVERY, table), augment(data, EVERY, table, teacher=teacher, tokenizer=tokenizer)
    assert labelled["text"][:] == plain["text"][:]
    assert labelled.features == plain.features
    assert labelled["label"][:3] == [1, 0, 0]
    assert plain["label"][3:] == sorted(plain["label"][3:], reverse=True)
    assert teacher.training
    teacher.eval()
    for row in labelled.select(range(3, len(labelled))):
        with torch.no_grad():
            logits = teacher(**tokenizer(row["text"], return_tensors="pt")).logits
        assert row["label"] == logits.argmax()
    assert len(set(labelled["label"][3:])) == 2


def test_regression_labels_are_the_teachers_predictions(table, config, tokenizer):
    set_seed(0)
    teacher = BertForSequenceClassification(BertConfig(**{**config.to_dict(), "num_labels": 1})).eval()
    data = rows("bax dex", "kix", text_pair=["the", "lox " * 30], label=[0.5, 2.5])
    data = data.cast_column("label", datasets.Value("float32"))
    out = augment(data, EVERY, table, teacher=teacher, tokenizer=tokenizer, max_length=20)
    assert out["label"][:2] == [0.5, 2.5]
    assert out.features["label"].dtype == "float32"
    for row in out.select(range(2, len(out))):
        inputs = tokenizer(row["text"], row["text_pair"], truncation=True, max_length=20, return_tensors="pt")
        with torch.no_grad():
            assert row["label"] == pytest.approx(teacher(**inputs).logits.item(), abs=1e-5)
    assert augment(data, EVERY, table)["label"][2] == 0.5


def test_texts_without_labels_get_none(table):
    labelled, plain = rows("bax dex", "kix"), rows("bax dex", "kix").remove_columns("label")
    out = augment(plain, EVERY, table)
    assert out.column_names == ["text", "augmented"]
    assert out["text"][:] == augment(labelled, EVERY, table)["text"][:]


def test_several_labels_are_those_that_the_teacher_gives(table, config, tokenizer):
    set_seed(0)
    changes = {"num_labels": 3, "problem_type": "multi_label_classification"}
    teacher = BertForSequenceClassification(BertConfig(**{**config.to_dict(), **changes})).eval()
    torch.nn.init.normal_(teacher.classifier.weight)
    given = [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    data = Dataset.from_dict(
        {"text": ["bax dex", "kix lox mex the fax"], "label": given},
        features=datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.List(datasets.Value("float32"))}
        ),
    )
    out = augment(data, EVERY, table, teacher=teacher, tokenizer=tokenizer)
    assert out["label"][:2] == given
    assert len(out) > 2
    for row in out.select(range(2, len(out))):
        with torch.no_grad():
            logits = teacher(**tokenizer(row["text"], return_tensors="pt")).logits[0]
        assert row["label"] == (logits > 0).float().tolist()
    message = refusal(DataError, augment, rows("bax"), EVERY, table, teacher=teacher, tokenizer=tokenizer)
    assert message == "The labels are int64, but the head of the teacher has 3 outputs. Use its own task."


def test_labelling_without_new_rows(table, config, tokenizer):
    teacher = BertForSequenceClassification(config)
    out = augment(rows("the", "zuzu"), EVERY, table, teacher=teacher, tokenizer=tokenizer)
    assert out.to_dict() == {"text": ["the", "zuzu"], "label": [0, 1], "augmented": [False, False]}


# ---- refusals


def test_a_missing_source_of_candidates_is_refused():
    assert refusal(RecipeError, augment, rows("bax"), EVERY, None) == (
        "Augmentation has no source of candidates. Pass a WordTable (WordTable.from_model(teacher, tokenizer) needs "
        "nothing else) or a MaskedLM."
    )


def test_missing_columns(table):
    data = rows("bax", text_pair=["dex"])
    cases = [
        (data.remove_columns("text"), [], "text", ["text_pair", "label"]),
        (data, [data, rows("kix")], "text_pair", ["text", "label"]),
    ]
    for dataset, exclude, column, has in cases:
        message = refusal(DataError, augment, dataset, EVERY, table, exclude=exclude)
        assert message == f"Augmentation needs the column {column} in every split; one has {has}."


def test_a_teacher_that_cannot_label(table, config, tokenizer):
    teacher = BertForSequenceClassification(config)
    assert refusal(RecipeError, augment, rows("bax"), EVERY, table, teacher=teacher) == (
        "A teacher cannot label augmented rows without its tokenizer. Pass both."
    )
    message = refusal(DataError, augment, rows("a").remove_columns("label"), EVERY, table, teacher=teacher)
    assert message == "Augmentation needs the column label in every split; one has ['text']."
    numbers = rows("bax", label=[0.5])
    message = refusal(DataError, augment, numbers, EVERY, table, teacher=teacher, tokenizer=tokenizer)
    assert message == "The labels are float64, but the head of the teacher has 2 outputs. Use its own task."
