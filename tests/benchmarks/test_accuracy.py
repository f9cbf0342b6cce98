"""The comparison with DeepSpeed's XTC, without DeepSpeed: scores, curves, resume, choices, tables, and our worker."""

import ast
import json
import math
import random
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    EvalPrediction,
    set_seed,
)
from transformers.modeling_outputs import SequenceClassifierOutput

import accuracy
from hf_xtc import XTCRecipe
from hf_xtc.data.metrics import build_compute_metrics, main_metric
from hf_xtc.data.task_data import DataArguments
from reference import curve, deepspeed_worker, ours_worker, rows, runs
from reference.curve import Curve, pad, predict
from reference.runs import Results, best_rate, launch, shown_command
from reference.scores import main_score, rank, scores
from reference.table import ALL_TASKS, markdown, side_of, time_to

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = ["good", "great", "bad", "awful", "film", "plot", "actor", "scene"]
VOCAB = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
TINY = {"vocab_size": len(VOCAB), "hidden_size": 36, "num_attention_heads": 4, "intermediate_size": 50}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """GLUE's sst2 in two small parquet files, and a random teacher of four layers in "teachers/sst2"."""
    path = tmp_path_factory.mktemp("accuracy")
    (path / "glue" / "sst2").mkdir(parents=True)
    chance = random.Random(0)
    for split, count in (("train", 120), ("validation", 30)):
        labels = [chance.randrange(2) for _ in range(count)]
        texts = [
            " ".join([WORDS[2 - 2 * label], *chance.choices(WORDS[4:], k=chance.randrange(1, 8))]) for label in labels
        ]
        table = pd.DataFrame({"sentence": texts, "label": labels})
        table.to_parquet(path / "glue" / "sst2" / f"{split}.parquet")
    set_seed(0)
    config = BertConfig(num_hidden_layers=4, max_position_embeddings=40, **TINY)
    BertForSequenceClassification(config).save_pretrained(path / "teachers" / "sst2")
    BertTokenizerFast(vocab=VOCAB, model_max_length=40).save_pretrained(path / "teachers" / "sst2")
    return path


@pytest.fixture(scope="module")
def prepared(folder):
    """What `prepare` wrote and returned of them."""
    file = folder / "rows.json"
    data_args = DataArguments(task_name="sst2", data_dir=str(folder / "glue"), max_length=16, selection_share=0.25)
    facts = rows.prepare(data_args, folder / "teachers" / "sst2", 2, file)
    return {"facts": facts, "data": json.loads(file.read_text()), "file": file}


def record(task, side, seed=1, rate=1e-3, dev=0.8, selection=0.5, points=((100, 10.0, 0.8),), **key):
    """A run as it could have been stored."""
    main = main_score(task)
    made = [{"step": s, "seconds": t, "selection": {main: selection}, "dev": {main: d}} for s, t, d in points]
    theirs = side == "deepspeed"
    return {
        "key": {
            "task": task,
            "side": side,
            "learning_rate": rate,
            "seed": seed,
            "steps": 100,
            "batch_size": 32,
            "max_length": 128,
            "padding": 128 if theirs else None,
            "bf16": not theirs,
            "threads": 1,
            "settings": {"warmup": 0.1},
            **key,
        },
        "curve": made,
        "selected": made[-1],
        "step_seconds": 3.0 if theirs else 0.5,
        "files": {"weights": 90_000_000 if theirs else 3_000_000},
        "dev": {main: dev},
        "teacher_scores": {"dev": {main: 0.9}},
        "versions": {"torch": "2.13.0"},
        "date": "2026-01-02",
        "cpu": "A CPU",
        "command": "python benchmarks/accuracy.py",
    }


@pytest.mark.parametrize("task", ["cola", "mrpc", "rte", "sst2", "stsb"])
def test_scores_are_those_of_the_package(task):
    generator = np.random.default_rng(0)
    regression = task == "stsb"
    logits = generator.normal(size=(50, 1 if regression else 2)).astype(np.float32)
    labels = generator.normal(size=50).astype(np.float32) if regression else generator.integers(0, 2, 50)
    theirs = build_compute_metrics(task, regression=regression)
    for outputs in (logits, np.zeros_like(logits), np.full_like(logits, np.nan)):
        expected = theirs(EvalPrediction(outputs, labels))
        found = scores(task, outputs, labels.tolist())
        assert found[main_score(task)] == pytest.approx(expected[main_score(task)], abs=1e-6, nan_ok=True)
        assert all(
            found[name] == pytest.approx(expected[name], abs=1e-6, nan_ok=True) for name in found.keys() & expected
        )
    assert main_score(task) == main_metric(task, regression=regression)


def test_a_score_that_is_nan_ranks_last():
    assert max([math.nan, 0.1, -0.2], key=rank) == 0.1


def test_rows_are_padded_to_a_length_or_to_the_longest():
    some = {"input_ids": [[5, 6, 7], [8]], "token_type_ids": [[0, 1, 1], [1]]}
    batch = pad(some, [1, 0], pad_token_id=9)
    assert batch["input_ids"].tolist() == [[8, 9, 9], [5, 6, 7]]
    assert batch["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert batch["token_type_ids"].tolist() == [[1, 0, 0], [0, 1, 1]]
    assert pad(some, [0], pad_token_id=9, length=5)["input_ids"].tolist() == [[5, 6, 7, 9, 9]]


def test_predictions_come_in_the_order_of_the_rows(prepared, folder, monkeypatch):
    monkeypatch.setattr(curve, "EVAL_BATCH", 4)
    model = AutoModelForSequenceClassification.from_pretrained(folder / "teachers" / "sst2").train()
    found = predict(model, prepared["data"]["dev"], 0)
    assert model.training
    model.eval()
    with torch.no_grad():
        alone = [model(**pad(prepared["data"]["dev"], [i], 0)).logits for i in range(30)]
    torch.testing.assert_close(found, torch.cat(alone), atol=1e-6, rtol=0)


def test_prepared_rows(prepared):
    facts, data = prepared["facts"], prepared["data"]
    assert facts["layers"] == [1, 3]
    assert facts["rows"] == {"fit": 90, "selection": 30, "dev": 30}
    assert set(facts["teacher_scores"]) == {"selection", "dev"}
    assert data["pad_token_id"] == 0
    assert all(ids[0] == VOCAB["[CLS]"] and ids[-1] == VOCAB["[SEP]"] for ids in data["fit"]["input_ids"])


class FakeCurve(Curve):
    """A curve whose scores are given."""

    def __init__(self, selection):
        super().__init__({"task": "sst2", "steps": 2 * len(selection), "eval_steps": 2}, {})
        self.given = iter(selection)

    def scores(self, model, split):
        self.clock[0] += 1000  # scoring takes a long time
        return {"accuracy": next(self.given) if split == "selection" else 1.0 - model.weight.item()}


@pytest.mark.parametrize(
    "selection, best",
    [([0.5, 0.7, 0.7], 1), ([math.nan, 0.1, 0.0], 1), ([math.nan] * 2, 0)],
    ids=["first", "nan", "all"],
)
def test_the_curve_keeps_the_best_on_the_selection_rows_and_times_training_alone(selection, best, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(FakeCurve, "clock", clock, raising=False)
    monkeypatch.setattr("reference.curve.time.perf_counter", lambda: clock[0])
    made, model = FakeCurve(selection), torch.nn.Linear(1, 1, bias=False)
    made.start()
    for step in range(1, made.config["steps"] + 1):
        clock[0] += 3
        torch.nn.init.constant_(model.weight, step / 100)
        made.step(step, model)
    stored = made.record()
    assert [point["step"] for point in stored["curve"]] == list(range(2, made.config["steps"] + 1, 2))
    assert [point["seconds"] for point in stored["curve"]] == [6.0 * (i + 1) for i in range(len(selection))]
    assert stored["training_seconds"] == 3.0 * made.config["steps"]
    assert stored["step_seconds"] == 3.0
    assert stored["selected"] == stored["curve"][best]
    assert made.best["weight"].item() == pytest.approx((2 * best + 2) / 100)


def test_results_survive_a_line_that_was_cut_off(tmp_path):
    file = tmp_path / "results" / "accuracy.jsonl"
    results = Results(file)
    assert results.find({"task": "sst2"}) is None
    results.add({"key": {"task": "sst2"}, "dev": 1})
    with file.open("a") as stream:
        stream.write('{"key": {"task": "rte"}, "de')
    again = Results(file)
    assert again.find({"task": "sst2"})["dev"] == 1
    assert again.find({"task": "rte"}) is None
    again.add({"key": {"task": "rte"}, "dev": 2})
    assert [line["dev"] for line in Results(file).records] == [1, 2]


def test_the_rate_is_chosen_on_the_selection_rows_alone():
    records = [
        record("sst2", "ours", rate=1e-4, selection=0.6, dev=0.99),
        record("sst2", "ours", rate=3e-4, selection=0.7, dev=0.10),
        record("sst2", "ours", rate=1e-3, selection=0.7, dev=0.99),
        record("sst2", "ours", rate=3e-3, selection=math.nan, dev=0.99),
    ]
    assert best_rate(records) == 3e-4


def make_args(folder, **changes):
    given = {
        "tasks": ["sst2"],
        "teachers_dir": str(folder / "teachers"),
        "data_dir": str(folder / "glue"),
        "steps": [4],
        "evaluations": 2,
        "batch_size": 8,
        "max_length": 16,
        "seeds": [1, 2],
        "learning_rates": [1e-4, 1e-3],
        "results_file": str(folder / "accuracy.jsonl"),
        **changes,
    }
    return accuracy.AccuracyArguments(**given)


@pytest.fixture
def launched(monkeypatch):
    """The runs that were launched; each is better on the selection rows the higher its rate is, but for DeepSpeed."""
    made = []

    def fake(side, python, config):
        made.append((side, config["learning_rate"], config["seed"], python))
        rate = config["learning_rate"]
        made_of = record("sst2", side, selection=rate if side == "ours" else -rate, dev=1 - rate)
        return {name: value for name, value in made_of.items() if name not in ("key", "teacher_scores", "command")}

    monkeypatch.setattr(accuracy, "launch", fake)
    monkeypatch.setattr("sys.argv", ["accuracy.py"])
    return made


def records_of(args):
    return Results(Path(args.results_file)).records


def test_a_search_then_the_other_seeds_and_nothing_twice(folder, launched, tmp_path):
    args = make_args(folder, results_file=str(tmp_path / "a.jsonl"))
    records = accuracy.compare(args)
    ours, theirs = sys.executable, ".venv-deepspeed/bin/python"
    assert launched == [
        ("ours", 1e-4, 1, ours),
        ("deepspeed", 1e-4, 1, theirs),
        ("ours", 1e-3, 1, ours),
        ("deepspeed", 1e-3, 1, theirs),
        ("ours", 1e-3, 2, ours),
        ("deepspeed", 1e-4, 2, theirs),
    ]
    assert records[0]["rows"] == {"fit": 108, "selection": 12, "dev": 30}
    launched.clear()
    assert {json.dumps(r) for r in accuracy.compare(args)} == {json.dumps(r) for r in records}
    assert launched == []
    assert accuracy.stored(args) == sorted(records, key=records_of(args).index)
    Path(args.results_file).write_text("".join(json.dumps(r) + "\n" for r in records_of(args)[:3]))
    accuracy.compare(args)
    assert [run[:3] for run in launched] == [("deepspeed", 1e-3, 1), ("ours", 1e-3, 2), ("deepspeed", 1e-4, 2)]


@pytest.mark.parametrize(
    "changes",
    [{"steps": [6]}, {"batch_size": 4}, {"bf16": True}, {"threads": 2}, {"ours_arguments": '{"max_grad_norm": 0.5}'}],
    ids=lambda changes: next(iter(changes)),
)
def test_other_settings_are_other_runs(folder, launched, tmp_path, changes):
    common = {"sides": ["ours"], "seeds": [1], "learning_rates": [1e-3], "results_file": str(tmp_path / "a.jsonl")}
    accuracy.compare(make_args(folder, **common))
    accuracy.compare(make_args(folder, **common, **changes))
    assert len(launched) == 2
    assert len(accuracy.stored(make_args(folder, **common))) == 1


def test_the_table_is_of_the_latest_teacher(folder, launched, tmp_path):
    args = make_args(folder, sides=["ours"], results_file=str(tmp_path / "a.jsonl"))
    records = accuracy.compare(args)
    older = [{**r, "key": {**r["key"], "teacher": "another"}} for r in records]
    Path(args.results_file).write_text("".join(json.dumps(r) + "\n" for r in older + records))
    assert accuracy.stored(args) == records


def test_main_writes_the_table(folder, launched, tmp_path, monkeypatch, capsys):
    output = tmp_path / "accuracy.md"
    options = [
        "accuracy.py", "--tasks=sst2", f"--teachers_dir={folder / 'teachers'}", f"--data_dir={folder / 'glue'}",
        "--max_length=16", "--steps=4", "--evaluations=2", f"--results_file={tmp_path / 'a.jsonl'}",
        f"--output_file={output}",
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", options)
    accuracy.main()
    made, printed = len(launched), capsys.readouterr().out
    assert made == 2 * (3 + 2)
    assert "sst2, ours, rate 0.0001, seed 1: selection 0.0001, dev 0.9999, 0.50 s a step" in printed
    assert printed.endswith(output.read_text() + "\n")
    assert str(folder) not in Path(tmp_path / "a.jsonl").read_text()
    monkeypatch.setattr("sys.argv", [*options, "--table_only"])
    accuracy.main()
    assert capsys.readouterr().out == output.read_text() + "\n"
    assert len(launched) == made


def canned():
    """All tasks, two rates, three seeds: ours 2 points better on each but cola."""
    made = []
    for task in ALL_TASKS:
        for side in ("ours", "deepspeed"):
            made.append(record(task, side, rate=1e-4, selection=0.4, dev=0.99))
            for seed, wiggle in ((1, -0.01), (2, 0.0), (3, 0.01)):
                gain = 0.0 if side == "deepspeed" else -0.02 if task == "cola" else 0.02
                points = ((50, 10.0, 0.5), (100, 20.0, 0.8 + wiggle))
                if side == "deepspeed":
                    points = ((50, 100.0, 0.7), (100, 200.0, 0.8 + wiggle))
                made.append(record(task, side, seed=seed, dev=0.8 + wiggle + gain, points=points))
    return made


def test_table_of_all_tasks():
    text = markdown(canned(), list(ALL_TASKS), [1, 2, 3])
    for task in ALL_TASKS:
        gain = -2 if task == "cola" else 2
        cells = f"| 90.0 | {80 + gain:.1f} ± 1.0 | 80.0 ± 1.0 | {gain:+.1f} | 0.50, 3.00 | 3,000,000, 90,000,000 |"
        assert f"| {task} | {main_score(task)} {cells} 0.001*, 0.001* | 3 |" in text
    assert "- Mean difference over sst2, mrpc, rte, cola, stsb: +1.20 points (at least +1.0): met." in text
    assert "- Tasks worse by more than the larger spread: cola (none): NOT met." in text
    assert "- ours: bfloat16, rows padded to their batch, {'warmup': 0.1}; torch 2.13.0" in text
    assert "- deepspeed: float32, rows padded to 128, {'warmup': 0.1}; torch 2.13.0" in text
    assert text.count("| 3 |") == len(ALL_TASKS)


def test_table_of_one_side_or_of_some_tasks():
    some = [
        r for r in canned() if r["key"]["task"] != "rte" and (r["key"]["task"], r["key"]["side"]) != ("mrpc", "ours")
    ]
    text = markdown(some, list(ALL_TASKS), [1, 2, 3])
    assert "| mrpc | f1 | 90.0 |  | 80.0 ± 1.0 |  | 3.00 | 90,000,000 | 0.001* | 3 |" in text
    assert "over sst2, cola, stsb: +0.67 points (at least +1.0): mrpc, rte missing." in text
    assert "rte |" not in text
    assert markdown([], ["rte"], [1]) == "No runs.\n"


def test_a_rate_inside_the_grid_bears_no_star():
    grid = [record("rte", "ours", rate=rate, selection=s) for rate, s in ((1e-4, 0.1), (3e-4, 0.2), (1e-3, 0.1))]
    assert not side_of(grid, "rte", "ours", [1]).at_end
    assert side_of(grid[:2], "rte", "ours", [1]).at_end
    assert not side_of(grid[:1], "rte", "ours", [1]).at_end
    assert side_of(grid, "rte", "ours", [1]).spread == 0.0


def test_time_to_the_same_accuracy():
    ours = [
        record("sst2", "ours", seed=1, points=((50, 40.0, 0.7), (100, 80.0, 0.9))),
        record("sst2", "ours", seed=2, points=((50, 40.0, 0.7), (100, 80.0, 0.7))),
        record("sst2", "ours", seed=3, points=((50, 40.0, 0.8), (100, 80.0, 0.7))),
    ]
    theirs = [
        record("sst2", "deepspeed", seed=seed, points=((50, 200.0, 0.75), (100, 400.0, 0.8))) for seed in (1, 2, 3)
    ]
    text = time_to(side_of(ours, "sst2", "ours", [1, 2, 3]), side_of(theirs, "sst2", "deepspeed", [1, 2, 3]))
    assert text.splitlines() == [
        "Time to the same accuracy on sst2, median 0.20x (at most 0.33x): met.",
        "- seed 1, dev 80.0: DeepSpeed 400 s, ours 80 s: 0.20x",
        "- seed 2, dev 80.0: DeepSpeed 400 s, ours never: infx",
        "- seed 3, dev 80.0: DeepSpeed 400 s, ours 40 s: 0.10x",
    ]
    assert text in markdown(ours + theirs, ["sst2"], [1, 2, 3])


def test_commands_are_stored_without_the_machine():
    command = shown_command(["--teachers_dir", "/a/b/teachers", "--data_dir=/c/glue", "--ours_arguments", '{"a": 1}'])
    assert command == (
        "python benchmarks/accuracy.py --teachers_dir .../teachers --data_dir=.../glue --ours_arguments '{\"a\": 1}'"
    )


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"steps": [1, 2], "tasks": ["rte"]}, "2 values of steps for 1 tasks: give one, or one per task."),
        ({"sides": ["theirs"]}, "Unknown: theirs. There are: ours, deepspeed."),
        ({"selection_share": 0.0}, "selection_share is 0.0; it must be above 0 and below 1."),
        ({"seeds": []}, "Give at least one task, seed and learning rate, and no more evaluations than steps."),
        ({"steps": [5]}, "Give at least one task, seed and learning rate, and no more evaluations than steps."),
    ],
    ids=["steps", "sides", "selection", "seeds", "evaluations"],
)
def test_arguments_are_checked(changes, text):
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        accuracy.AccuracyArguments(**changes)


def test_steps_per_task_and_time_to():
    args = accuracy.AccuracyArguments(tasks=["rte", "cola"], steps=[100, 200])
    assert [args.task_steps(task) for task in args.tasks] == [100, 200]
    assert accuracy.AccuracyArguments(time_to=True).tasks == ["sst2"]
    assert accuracy.AccuracyArguments().task_steps("cola") == 1000


def test_a_process_that_fails_is_an_error():
    with pytest.raises(RuntimeError, match=r"^The run deepspeed, sst2, seed 1 ended with status 1\. See its output"):
        launch("deepspeed", "/bin/false", {"task": "sst2", "seed": 1, "threads": 1})


@pytest.mark.parametrize("side", runs.SIDES)
def test_only_our_process_finds_the_package(side, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    found = runs._environment(side, 3)
    assert found["OMP_NUM_THREADS"] == "3"
    assert (str(runs.REPOSITORY) in found["PYTHONPATH"].split(":")) == (side == "ours")
    assert "elsewhere" not in found["PYTHONPATH"]


def test_our_worker_trains_packs_and_scores(prepared, folder, tmp_path, monkeypatch):
    config = {
        "task": "sst2",
        "teacher": str(folder / "teachers" / "sst2"),
        "rows_file": str(prepared["file"]),
        "folder": str(tmp_path / "model"),
        "record_file": str(tmp_path / "record.json"),
        "steps": 6,
        "eval_steps": 3,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "seed": 1,
        "bf16": False,
        "threads": 1,
        "layers": [1, 3],
        "settings": ours_worker.SETTINGS,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("sys.argv", ["ours_worker.py", str(tmp_path / "config.json")])
    curve.serve(ours_worker.run)
    made = json.loads((tmp_path / "record.json").read_text())
    assert [point["step"] for point in made["curve"]] == [3, 6]
    assert 0 < made["curve"][0]["seconds"] < made["curve"][1]["seconds"] == made["training_seconds"]
    assert made["selected"] in made["curve"]
    assert made["files"] == {"model.safetensors": (tmp_path / "model" / "model.safetensors").stat().st_size}
    packed = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert (packed.config.state, packed.config.num_hidden_layers) == ("packed", 2)
    again = scores("sst2", predict(packed, prepared["data"]["dev"], 0).numpy(), prepared["data"]["dev"]["labels"])
    assert made["dev"] == again


def test_our_students_have_no_dropout(prepared, folder, tmp_path, monkeypatch):
    seen = []

    class Stopped(Exception):
        """Ends the run before it trains."""

    def stop(student, args, **kwargs):
        seen.extend(module.p for module in student.modules() if isinstance(module, torch.nn.Dropout))
        seen.append(args.train_sampling_strategy)
        raise Stopped

    monkeypatch.setattr(ours_worker, "XTCTrainer", stop)
    config = {"task": "sst2", "teacher": str(folder / "teachers" / "sst2"), "folder": str(tmp_path), "layers": None}
    config |= {"steps": 1, "eval_steps": 1, "batch_size": 8, "learning_rate": 1e-3, "seed": 1, "bf16": False}
    with pytest.raises(Stopped):
        ours_worker.run({**config, "settings": ours_worker.SETTINGS}, prepared["data"])
    assert seen[-1] == "group_by_length"
    assert set(seen[:-1]) == {0.0}


@pytest.mark.parametrize("layers", [None, [1, 3, 5]])
def test_deepspeed_gets_the_recipe_of_the_paper(layers):
    expected = XTCRecipe.paper(layers=None if layers is None else tuple(layers))
    assert XTCRecipe.from_deepspeed(deepspeed_worker.compression(layers)) == expected


@pytest.mark.parametrize("name", ["deepspeed_worker", "curve", "scores"])
def test_what_runs_in_deepspeeds_environment_does_not_import_the_package(name):
    tree = ast.parse(Path(runs.BENCHMARKS / "reference" / f"{name}.py").read_text())
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    names = {getattr(node, "module", None) or node.names[0].name for node in imports}
    assert not any(name.startswith(("hf_xtc", "datasets")) for name in names)


def test_deepspeeds_loss_is_that_of_its_example():
    torch.manual_seed(0)
    sizes = {"logits": (4, 2), "hidden_states": (4, 5, 8), "attentions": (4, 2, 5, 5)}

    def outputs(depth):
        states, maps = (
            [torch.randn(sizes[k]) for _ in range(n)] for k, n in (("hidden_states", depth + 1), ("attentions", depth))
        )
        return SequenceClassifierOutput(logits=torch.randn(sizes["logits"]), hidden_states=states, attentions=maps)

    teacher, student = outputs(6), outputs(3)
    logits = -(teacher.logits.softmax(-1) * student.logits.log_softmax(-1)).sum(-1).mean() / 2
    attention = sum(F.mse_loss(student.attentions[i], teacher.attentions[t]) for i, t in enumerate((1, 3, 5)))
    hidden = sum(F.mse_loss(student.hidden_states[i], teacher.hidden_states[t]) for i, t in enumerate((0, 2, 4, 6)))
    torch.testing.assert_close(deepspeed_worker.loss(student, teacher, [1, 3, 5]), logits + attention + hidden)
    same = deepspeed_worker.loss(teacher, teacher, None)
    entropy = -(teacher.logits.softmax(-1) * teacher.logits.log_softmax(-1)).mean()
    torch.testing.assert_close(same, entropy)
    teacher.logits, student.logits = torch.randn(4, 1), torch.randn(4, 1)
    regression = F.mse_loss(student.logits, teacher.logits)
    torch.testing.assert_close(deepspeed_worker.loss(student, teacher, [1, 3, 5]), regression + attention + hidden)


def test_deepspeeds_attention_returns_scores_of_padding_too():
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 1, 3, 4) for _ in range(3))
    mask = torch.tensor([0.0, 0.0, torch.finfo(torch.float32).min]).expand(1, 1, 3, 3)
    out, found = deepspeed_worker.attention(torch.nn.Module().eval(), query, key, value, mask, dropout=0.1)
    raw = query @ key.transpose(2, 3) / 2
    torch.testing.assert_close(found, raw + torch.tensor([0.0, 0.0, -10000.0]))
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.testing.assert_close(out, expected.transpose(1, 2))


def test_deepspeeds_batches_and_schedule():
    data = {"input_ids": [[1]] * 10, "token_type_ids": [[0]] * 10, "labels": [0] * 10}
    config = {"seed": 0, "batch_size": 4, "padding": 6, "learning_rate": 1e-3, "steps": 100}
    config["settings"] = deepspeed_worker.SETTINGS
    made = deepspeed_worker.batches(data, config, 0)
    assert [tuple(next(made)["input_ids"].shape) for _ in range(4)] == [(4, 6), (4, 6), (2, 6), (4, 6)]
    model = BertForSequenceClassification(BertConfig(num_hidden_layers=1, **TINY))
    optimizer, schedule = deepspeed_worker.optimizer(model, config, epoch=3)
    counts = [len(group["params"]) for group in optimizer.param_groups]
    assert counts == [10 + 1, sum(1 for _ in model.parameters()) - 11]  # 3 embeddings, 6 linears, pooler; classifier
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    rates = []
    for _ in range(4):
        optimizer.step()
        schedule.step()
        rates.append(schedule.get_last_lr()[0])
    assert rates[2] == max(rates) == pytest.approx(1e-3)


@pytest.mark.parametrize("weight, count", [([[1.0, -1.0], [2.0, -2.0]], 4), ([[1.0, -1.0], [1.0, 0.0]], 3)])
def test_levels_of_a_weight(weight, count):
    linear, embedding = torch.nn.Linear(2, 2), torch.nn.Embedding(2, 2)
    linear.weight.data = embedding.weight.data = torch.tensor(weight)
    assert deepspeed_worker.levels(linear) == count
    assert deepspeed_worker.levels(embedding) == 2


def test_accuracy_page_shows_what_the_results_say():
    root = Path(__file__).parent.parent.parent
    text = markdown(Results(root / accuracy.RESULTS).records, list(ALL_TASKS), [1, 2, 3])
    page = (root / "docs" / "accuracy.md").read_text(encoding="utf-8")
    shown = [line for line in text.splitlines() if line.startswith(("| ", "- Mean difference", "- Tasks worse"))]
    assert len(shown) == 1 + len(ALL_TASKS) + 2
    for line in shown:
        assert line in page, line
