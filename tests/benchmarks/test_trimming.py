"""A model of the repository on films and tweets."""

import json
from pathlib import Path

import pandas as pd
import pytest

import trimming

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "minilm-3l-1bit-sst2"


def test_a_model_is_measured_on_both_domains(tmp_path, capsys, one_thread):
    films = {"sentence": ["a superb film", "an utter waste", "dull", "moving"], "label": [1, 0, 0, 0]}
    tweets = {"text": ["i am so sad", "i feel wonderful", "what a surprise", "awful"], "label": [0, 1, 5, 3]}
    for name, rows in (("glue/sst2", films), ("emotion", tweets)):
        (tmp_path / name).mkdir(parents=True)
        pd.DataFrame(rows).to_parquet(tmp_path / name / "validation.parquet")
    argv = ["--models", str(EXAMPLE), "--data_dir", str(tmp_path), "--threads", "1"]
    trimming.main([*argv, "--output_file", str(tmp_path / "found.json")])
    (found,) = json.loads((tmp_path / "found.json").read_text())["models"]
    assert (found["bytes"], found["tokens"]) == (2_470_676, 30_522)
    assert found["SST-2"]["accuracy"] == 0.75  # "moving" is labelled wrongly
    assert found["SST-2"]["standard_error"] == pytest.approx((0.75 * 0.25 / 3) ** 0.5)  # of four rows
    assert (found["emotion"]["rows"], found["emotion"]["accuracy"]) == (3, 1.0)
    assert found["emotion"]["tokens_of_a_text"] == pytest.approx((4 + 3 + 1) / 3)
    assert "| 0.7500 ± 0.2500 | 2.0 | 1.0000 ± 0.0000 | 2.7 |" in capsys.readouterr().out


def test_the_docs_state_the_results():
    models = json.loads((ROOT / "benchmarks" / "results" / "trimming.json").read_text(encoding="utf-8"))["models"]
    assert trimming.table(models) in (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
