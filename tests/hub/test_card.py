"""The card of a run: its figures, its metadata, and escaping of text from outside."""

import dataclasses
import math
import re

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard, metadata_load

from hf_xtc import XTCBertForSequenceClassification, XTCRecipe, compress, ledger
from hf_xtc.hub.card import model_card, run_card, write_card
from hf_xtc.hub.results import Row, Run, results_table


@pytest.fixture
def run(tiny_config) -> Run:
    rows = [
        Row("teacher", {"accuracy": 0.9, "f1": 0.91, "loss": 0.3}, 1_000_000, 4, "float32"),
        Row("layer-reduced student", {"accuracy": 0.89, "loss": 0.3}, 600_000, 2, "float32"),
        Row("binary student", {"accuracy": 0.88, "loss": 0.4}, 600_000, 2, "float32, latent"),
        Row("packed file, reloaded", {"accuracy": 0.875, "f1": 0.88, "loss": 0.4}, 20_000, 2, "binary, packed"),
    ]
    return Run(
        name="reviews",
        task="sst2",
        metric="accuracy",
        rows=rows,
        ledger=ledger(tiny_config, XTCRecipe(keep_layers=2)),
        provenance={"teacher": "base", "versions": {"torch": "2.13.0"}},
        recipe=XTCRecipe(keep_layers=2),
        selection="the last step; no split chose it",
        citations=["Somebody, Something, 2022"],
    )


def test_table_has_the_rows_and_the_ratio_of_files(run):
    lines = results_table(run).splitlines()
    assert len(lines) == 6
    assert len({len(line) for line in lines}) == 1, "columns do not line up"
    cells = [cell.strip() for cell in lines[-1].strip("|").split("|")]
    assert cells == ["packed file, reloaded", "0.8750", "20,000", "50.0x", "2", "binary, packed"]


def test_a_standard_error_is_in_table_and_text_and_not_in_metadata(run):
    assert "±" not in run_card(run)
    packed = dataclasses.replace(run.rows[-1], metrics={**run.rows[-1].metrics, "accuracy_standard_error": 0.01234})
    card = run_card(dataclasses.replace(run, rows=[*run.rows[:-1], packed]))
    assert "| 0.8750 ± 0.0123 " in card
    assert "± is the standard error of a score over the validation rows, by jackknife, for this one training." in card
    (result,) = ModelCard(card).data.to_dict()["model-index"][0]["results"]
    assert "accuracy_standard_error" not in [metric["type"] for metric in result["metrics"]]


def test_an_f1_names_its_class_in_table_card_metadata_and_record(run):
    run = dataclasses.replace(run, positive_class="<spam>")
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in results_table(run).splitlines()]
    title = "F1 of class '&lt;spam&gt;'"
    assert table[0][1:3] == ["accuracy, validation", f"{title}, validation"]
    assert [line[2] for line in table[2:]] == ["0.9100", "not measured", "not measured", "0.8800"]
    assert run.to_dict()["positive_class"] == "<spam>"
    f1 = dataclasses.replace(run, metric="f1")
    assert f"with 96.7% of the teacher's {title}." in run_card(f1)
    assert len(results_table(f1).splitlines()[0]) < len(results_table(run).splitlines()[0])
    (result,) = ModelCard(run_card(run)).data.to_dict()["model-index"][0]["results"]
    assert [(m["type"], m.get("name")) for m in result["metrics"]] == [("accuracy", None), ("f1", title)]


def test_metadata_is_valid_and_holds_the_packed_files_metrics(run):
    data = ModelCard(run_card(run)).data.to_dict()
    assert data["pipeline_tag"] == "text-classification"
    assert {"xtc", "binary"} <= set(data["tags"])
    (result,) = data["model-index"][0]["results"]
    assert {m["type"]: m["value"] for m in result["metrics"]} == {"accuracy": 0.875, "f1": 0.88}


def test_results_in_the_metadata_survive_a_round_trip(run, tmp_path):
    write_card(run, tmp_path / "README.md")
    data = ModelCard(yaml_card(metadata_load(tmp_path / "README.md"))).data
    task = {"task_type": "text-classification", "dataset_type": "sst2", "dataset_name": "sst2"}
    expected = [
        EvalResult(**task, dataset_split="validation", metric_type=metric, metric_value=value)
        for metric, value in (("accuracy", 0.875), ("f1", 0.88))
    ]
    assert data.model_name == "reviews"
    assert data.eval_results == expected


def yaml_card(metadata):
    return f"---\n{yaml.safe_dump(metadata)}---\n"


@pytest.mark.parametrize(
    "facts, license, base_model, told",
    [
        ({"teacher_license": "mit"}, "mit", None, "mit"),
        (
            {"teacher_license": ["mit", "cc-by-4.0"], "base_model": "a/b"},
            ["mit", "cc-by-4.0"],
            "a/b",
            "mit; cc-by-4.0",
        ),
        (
            {"teacher_license": "Ours <1.0>", "base_model": "bert-base-uncased"},
            None,
            "bert-base-uncased",
            "Ours &lt;1",
        ),
        ({}, None, None, "not stated"),
    ],
    ids=["one", "two", "unknown to the Hub", "not stated"],
)
def test_teacher_and_licence_are_in_text_and_metadata(hub, run, facts, license, base_model, told):
    card = ModelCard(run_card(dataclasses.replace(run, provenance={"teacher": "base", **facts})))
    card.validate()
    assert (card.data.license, card.data.base_model) == (license, base_model)
    assert f"- teacher: base\n- teacher license: {told}" in card.text


@pytest.mark.parametrize("metrics", [{}, {"accuracy": math.nan, "f1": math.nan}], ids=["none", "not a number"])
def test_a_card_without_metrics_says_not_measured(hub, run, metrics):
    rows = [*run.rows[:-1], dataclasses.replace(run.rows[-1], metrics=metrics)]
    card = ModelCard(run_card(dataclasses.replace(run, rows=rows)))
    card.validate()
    assert card.data.eval_results is None
    assert "with accuracy not measured." in card.text
    assert "| packed file, reloaded | not measured " in card.text
    assert ("The packed file was not measured." in card.text) == (not metrics)
    assert "nan" not in card.text


@pytest.mark.parametrize("name", ["own data", "x: y", "<b>", "a/b/c", "- [x]\n# y", "データ"])
def test_any_data_set_name_makes_valid_metadata(hub, run, name):
    card = ModelCard(run_card(dataclasses.replace(run, task=name, name=name)))
    card.validate()
    (result,) = {r.dataset_name for r in card.data.eval_results}
    assert "<" not in result


def test_a_plain_cards_metadata_are_valid_with_and_without_metrics(hub, tiny_teacher):
    config, model_class = compress(tiny_teacher).config, XTCBertForSequenceClassification
    for metrics in (None, {}, {"accuracy": 0.5, "f1": math.nan}):
        card = ModelCard(model_card(config, model_class, "<i>user/tiny", metrics=metrics))
        card.validate()
        assert ("Not measured." in card.text) == (not metrics)
        assert "<i>" not in card.text
    assert "| accuracy | 0.5000 |\n| f1 | not measured |" in card.text


def test_summary_states_ratio_and_share_of_the_teacher(run):
    text = run_card(run)
    assert "20,000 bytes, 50.0 times smaller than its 4-layer teacher" in text
    assert "with 97.2% of the teacher's accuracy" in text
    assert "Checkpoint: the last step; no split chose it." in text
    assert "not measured" in text


def test_seeds_are_listed_with_their_spread(run):
    assert "One run with one seed; the spread over seeds was not measured." in run_card(run)
    provenance = {**run.provenance, "training": {"seed": 2}}
    several = dataclasses.replace(run, seeds={1: 0.87, 2: 0.875, 3: 0.88}, provenance=provenance)
    assert (
        "Over the seeds 1, 2, 3 the packed file's accuracy is 0.8750 on average, with a standard deviation of 0.0050; "
        "this file is the one of seed 2, the best of them on the train rows held out."
    ) in run_card(several)
    assert "One run with one seed" not in run_card(several)


def test_text_from_outside_is_escaped(run):
    evil = "<script>alert(1)</script>"
    hostile = Run(**{**run.__dict__, "name": evil, "task": evil, "provenance": {"teacher": evil}})
    body = run_card(hostile).split("---\n", 2)[2]
    assert "<script>" not in body
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in body


def test_names_and_options_of_a_run_are_escaped(run):
    evil = "`<script>alert(1)</script>"
    rows = [dataclasses.replace(row, model=evil, storage=evil, metrics={evil: 0.5}) for row in run.rows]
    stage = {"stage": evil, "start": evil, "learning_rate": 1e-3, "steps": 1, "epochs": 1, "seconds": 1.0}
    stage |= {"selection": None, "metrics": {evil: 0.5}, "tried": {evil: 0.5}}
    provenance = {"teacher": evil, evil: evil, "labels": [evil], "stages": [stage]}
    names = {"name": evil, "task": evil, "metric": evil, "command": evil, "selection": evil}
    hostile = dataclasses.replace(run, rows=rows, provenance=provenance, **names)
    body = run_card(hostile).split("---\n", 2)[2]
    assert "<script>" not in body
    assert body.count("&lt;script&gt;") > 10


def test_configuration_values_are_escaped_in_a_model_card(tiny_teacher):
    evil = "<script>alert(1)</script>"
    config = compress(tiny_teacher).config
    config.xtc["provenance"] = {evil: {evil: [evil]}}
    card = model_card(config, XTCBertForSequenceClassification, evil, metrics={evil: 0.5}, made={evil: evil})
    assert "<script>" not in card


def test_names_cannot_break_out_of_the_metadata(run):
    hostile = Run(**{**run.__dict__, "task": "x\nlicense: evil\n---\n"})
    header = re.split(r"^---$", run_card(hostile), flags=re.M)[1]
    assert "license" not in yaml.safe_load(header)


def test_a_teacher_that_scores_zero_gives_no_share(run):
    rows = [Row("teacher", {"accuracy": 0.0}, 10, 4, "float32"), *run.rows[1:]]
    assert "nan% of the teacher" not in run_card(Run(**{**run.__dict__, "rows": rows}))


def test_written_card_is_the_text(run, tmp_path):
    write_card(run, tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == run_card(run)


def test_run_as_json_keeps_every_row(run):
    values = run.to_dict()
    assert [row["bytes"] for row in values["rows"]] == [1_000_000, 600_000, 600_000, 20_000]
    assert values["ledger"]["total_bytes"] == run.ledger.total_bytes
    assert XTCRecipe.from_dict(values["recipe"]) == run.recipe


def test_stages_are_a_table_and_tried_rates_are_listed(run):
    stage = {"stage": "student", "start": "layers 1, 3 of the teacher", "learning_rate": 5e-4, "steps": 1200}
    stage |= {"epochs": 3.0, "seconds": 61.2, "selection": {"accuracy": 0.91}, "metrics": {"accuracy": 0.875}}
    stage |= {"tried": [{"learning_rate": 1e-4, "accuracy": 0.9}, {"learning_rate": 5e-4, "accuracy": 0.91}]}
    text = run_card(dataclasses.replace(run, provenance={"stages": [stage]}, command="make it"))
    assert "- command: `make it`" in text
    assert "| student | layers 1, 3 of the teacher | 0.0005 | 1,200 | 3 | 61 | 0.9100 | 0.8750 |" in text
    assert "- tried in student: learning rate 0.0001, accuracy 0.9; learning rate 0.0005, accuracy 0.91" in text
