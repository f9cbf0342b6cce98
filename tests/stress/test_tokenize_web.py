"""The comparison of tokenizers on data, on a few rows."""

import pyarrow as pa
import pyarrow.parquet as parquet
from node import needs_packages

import tokenize_web


@needs_packages
def test_texts_words_and_pairs(tmp_path, monkeypatch, capsys):
    (tmp_path / "one").mkdir()
    table = {
        "sentence1": ["A film", "naïve 👍"],
        "sentence2": ["joy", "北京"],
        "tokens": [["a", "b"], ["c"]],
        "label": [0, 1],
    }
    parquet.write_table(pa.table(table), tmp_path / "one" / "validation.parquet")
    tokenize_web.main([f"--data_dir={tmp_path}", f"--output_file={tmp_path / 'found.json'}"])
    assert capsys.readouterr().out == "one: 0 of 8 texts differ\n"
    monkeypatch.setattr(tokenize_web, "utf16_places", lambda *_: None)  # a difference is found
    assert tokenize_web.compare(tmp_path) == {"one": {"texts": 8, "different": 8}}
