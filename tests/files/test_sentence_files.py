"""The files of sentence-transformers: what is written is read back, and what is none of them is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_xtc.errors import PackedFileError
from hf_xtc.files.sentence_files import (
    NORMALIZE,
    POOLING,
    WRITTEN,
    SentenceSettings,
    read_sentence_settings,
    write_sentence_files,
)

ANY = st.builds(
    SentenceSettings,
    pooling=st.sampled_from(["mean", "cls"]),
    normalize=st.booleans(),
    max_length=st.none() | st.integers(1, 10**6),
    prompts=st.dictionaries(st.text(), st.text(min_size=1), max_size=3),
) | st.builds(
    SentenceSettings,
    prompts=st.just({"query": "query: ", "document": "passage: "}),
    default_prompt_name=st.sampled_from(["query", "document"]),
)


@given(settings=ANY)
def test_what_is_written_is_read_back(tmp_path_factory, settings):
    folder = tmp_path_factory.mktemp("model")
    write_sentence_files(folder, settings, 36)
    assert read_sentence_settings(folder) == settings
    assert SentenceSettings(**json.loads(json.dumps(settings.to_dict()))) == settings
    expected = {name for name in WRITTEN if settings.normalize or name != NORMALIZE}
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.json")} == expected


def test_a_folder_of_another_model_has_none(tmp_path):
    assert read_sentence_settings(tmp_path) is None
    modules = [{"type": "sentence_transformers.base.modules.Transformer", "path": ""}]  # of a CrossEncoder
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert read_sentence_settings(tmp_path) is None


@pytest.mark.parametrize("mode, expected", [("cls", "cls"), ("mean", "mean"), (["mean"], "mean")])
def test_the_newer_form_of_a_pooling(tmp_path, mode, expected):
    write_sentence_files(tmp_path, SentenceSettings(), 36)
    (tmp_path / POOLING).write_text(json.dumps({"embedding_dimension": 36, "pooling_mode": mode}))
    assert read_sentence_settings(tmp_path).pooling == expected


@pytest.mark.parametrize("mode", ["max", ["mean", "cls"], 3, {}])
def test_other_poolings_are_refused(tmp_path, mode):
    write_sentence_files(tmp_path, SentenceSettings(), 36)
    (tmp_path / POOLING).write_text(json.dumps({"pooling_mode": mode}))
    with pytest.raises(PackedFileError, match=r"1_Pooling pools by \[.*\]; use one of: "):
        read_sentence_settings(tmp_path)


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("modules.json", "[", r"modules\.json cannot be read "),
        ("modules.json", "[3]", r"modules\.json cannot be read "),
        ("sentence_bert_config.json", "[]", r"sentence_bert_config\.json is not a JSON object"),
        (
            "sentence_bert_config.json",
            '{"max_seq_length": -1}',
            r"^max_length=-1 is no setting",
        ),
        ("config_sentence_transformers.json", '{"prompts": {"query": 3}}', r"^prompts=.* is no setting"),
        ("config_sentence_transformers.json", '{"prompts": 3}', r"^prompts=3 is no setting"),
        (
            "config_sentence_transformers.json",
            '{"prompts": {"query": "q: "}, "default_prompt_name": "document"}',
            r"^default_prompt_name='document' is no setting",
        ),
        ("1_Pooling/config.json", "", r"config\.json cannot be read "),
    ],
)
def test_damaged_files_are_refused(tmp_path, file, content, message):
    write_sentence_files(tmp_path, SentenceSettings(), 36)
    (tmp_path / file).write_text(content)
    with pytest.raises(PackedFileError, match=message):
        read_sentence_settings(tmp_path)


def test_an_empty_prompt_is_none(tmp_path):
    write_sentence_files(tmp_path, SentenceSettings(), 36)
    content = '{"prompts": {"query": "q: ", "document": ""}, "default_prompt_name": "document"}'
    (tmp_path / "config_sentence_transformers.json").write_text(content)
    assert read_sentence_settings(tmp_path) == SentenceSettings(prompts={"query": "q: "})


@pytest.mark.parametrize("values", [{"pooling": "max"}, {"pooling": None}, {"normalize": 1}, {"max_length": True}])
def test_settings_that_do_not_exist(values):
    with pytest.raises(PackedFileError, match=rf"^{next(iter(values))}=.* is no setting of a sentence embedder"):
        SentenceSettings(**values)
