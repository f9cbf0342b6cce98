"""What is chosen to fit a file of a given size: against all that could be chosen, and against files on disk."""

from itertools import product

import pytest
from families import CLASSIFIERS, make_config, make_teacher
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig

from hf_xtc import ARCHITECTURES, XTCRecipe, compress, ledger, pack_model
from hf_xtc.compression.convert import student_class
from hf_xtc.compression.target_size import FREE, RARER, choose, parse_bytes
from hf_xtc.compression.vocabulary import trim_model
from hf_xtc.errors import RecipeError

CONFIG = make_config("bert")
CLASSIFIER = ARCHITECTURES["bert"].model_classes["BertForSequenceClassification"]


def left(least):
    """Tokens of 101 that texts have at least so many times."""
    return 20 + 60 // least


def fitted(target, free=FREE, recipe=None, config=CONFIG, **options):
    recipe = recipe or XTCRecipe()
    return choose(config, target, recipe, model_class=CLASSIFIER, free=free, vocabulary=left, **options)


def bytes_of(recipe, rows):
    return ledger(make_config("bert", vocab_size=rows), recipe, model_class=CLASSIFIER).file_bytes


SMALLEST = bytes_of(XTCRecipe(keep_layers=1), left(64))
LARGEST = bytes_of(XTCRecipe(weights="ternary", embedding_weights="ternary"), 101)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(SMALLEST, LARGEST + 100),
    st.sets(st.sampled_from(FREE)),
    st.sampled_from([XTCRecipe(), XTCRecipe(weights="ternary", keep_layers=3), XTCRecipe(layers=(1,))]),
    st.sampled_from([0, 1, 4]),
)
def test_what_is_chosen_fits_and_what_is_given_is_kept(target, free, recipe, trim):
    if "trim_vocabulary" in free:
        trim = 0
    try:
        found = fitted(target, free, recipe, trim_vocabulary=trim)
    except RecipeError:  # what is given is too large
        assert free != set(FREE)
        return
    assert found.file_bytes <= target
    assert found.file_bytes == bytes_of(found.recipe, found.vocabulary)
    assert found.vocabulary == (left(found.trim_vocabulary) if found.trim_vocabulary else 101)
    for name in set(FREE) - set(free) - {"trim_vocabulary", "keep_layers"}:
        assert getattr(found.recipe, name) == getattr(recipe, name)
    if "keep_layers" not in free:
        assert found.recipe.layer_map(4) == recipe.layer_map(4)
    if "trim_vocabulary" not in free:
        assert found.trim_vocabulary == trim


def test_more_bytes_never_give_a_smaller_student():
    ranks = []
    for target in range(SMALLEST, LARGEST + 1, (LARGEST - SMALLEST) // 12):
        found = fitted(target)
        ranks.append(found.layers * {"binary": 1.0, "ternary": 1.6}[found.recipe.weights])
    assert ranks == sorted(ranks)
    assert ranks[0] < ranks[-1] == 6.4


def order(layers, weights, embeddings, least):
    """Smaller is better; what `hf_xtc.compression.target_size` says in words."""
    bits = layers * {"binary": 1.0, "ternary": 1.6}[weights]
    rarity = [0, 0, *range(1, 7)][[0, 1, *RARER].index(least)]
    return bits < 2, rarity, -bits, -layers, least, embeddings == "binary"


ALL = {
    candidate: bytes_of(
        XTCRecipe(weights=candidate[1], embedding_weights=candidate[2], keep_layers=candidate[0]), rows
    )
    for candidate in product(range(1, 5), ("ternary", "binary"), ("ternary", "binary"), (0, 1, *RARER))
    for rows in [left(candidate[3]) if candidate[3] else 101]
}


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(sorted(ALL.values())))
def test_it_is_the_best_of_all_that_fit(target):
    best = min((candidate for candidate, size in ALL.items() if size <= target), key=lambda one: order(*one))
    found = fitted(target)
    assert (found.layers, found.recipe.weights, found.recipe.embedding_weights, found.trim_vocabulary) == best


def test_it_says_by_how_much_the_smallest_misses():
    with pytest.raises(RecipeError) as caught:
        fitted(SMALLEST - 7)
    assert str(caught.value) == (
        f"target_bytes={SMALLEST - 7:,} is 7 too few: the smallest student that the options allow has {SMALLEST:,} "
        "bytes: 1 layer, binary weights, and binary word embeddings of 20 tokens (trim_vocabulary 64). Allow more "
        "bytes, or leave out options that fix its layers, weights or vocabulary."
    )


@pytest.mark.parametrize("family, head", CLASSIFIERS)
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_the_file_on_disk_has_the_bytes_that_were_promised(family, head, share, tmp_path):
    teacher = make_teacher(family, head)
    sizes = [
        ledger(teacher.config, recipe, model_class=student_class(teacher)).file_bytes
        for recipe in (XTCRecipe(), XTCRecipe(weights="ternary", embedding_weights="ternary"))
    ]
    target = round(sizes[0] + share * (sizes[1] - sizes[0]))
    found = choose(teacher.config, target, XTCRecipe(), model_class=student_class(teacher), vocabulary=left)
    if found.trim_vocabulary:
        teacher = trim_model(teacher, list(range(found.vocabulary)))
    pack_model(compress(teacher, found.recipe)).save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size == found.file_bytes <= target
    assert family != "albert" or found.recipe.keep_layers is None


def test_a_header_of_float_tensors_too(tmp_path):
    recipe = XTCRecipe(weights=None, position_weights=None, activation_calibration="static", rest_dtype="bfloat16")
    teacher = make_teacher("bert", "BertForSequenceClassification")
    pack_model(compress(teacher, recipe)).save_pretrained(tmp_path)
    written = (tmp_path / "model.safetensors").stat().st_size
    assert ledger(teacher.config, recipe, model_class=CLASSIFIER).file_bytes == written


def test_bert_base_fits_eight_megabytes():
    found = choose(BertConfig(), 8_100_000, XTCRecipe(), model_class=CLASSIFIER)
    assert (found.layers, found.recipe.weights, found.trim_vocabulary) == (5, "binary", 0)


@pytest.mark.parametrize(
    "text, count",
    [
        ("2000000", 2_000_000),
        ("2MB", 2_000_000),
        ("2 mib", 2_097_152),
        ("1.5kB", 1_500),
        (".5GB", 500_000_000),
        ("7B", 7),
    ],
)
def test_sizes_are_read(text, count):
    assert parse_bytes(text) == count


@given(st.integers(1, 10**18))
def test_whole_numbers_of_bytes_are_exact(count):
    assert parse_bytes(str(count)) == count


@pytest.mark.parametrize("text", ["", "2 MBs", "-1MB", "0", "0.1", "MB", "1e6", "nan", "٢MB", "2,5MB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(RecipeError, match="is not a size"):
        parse_bytes(text)
