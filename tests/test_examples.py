"""The examples: the files that the demo reads, its split by film, and the scripts for GLUE and checkpoints."""

import bz2
import importlib
import importlib.util
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, BertTokenizerFast

from hf_xtc import XTCRecipe, XTCTrainer, ledger
from hf_xtc.hub.results import Row, Run

FILE = Path(__file__).parent.parent / "examples" / "rotten_tomatoes.py"


@pytest.fixture
def demo():
    spec = importlib.util.spec_from_file_location("rotten_tomatoes", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def corpus(demo, tmp_path, monkeypatch):
    """Forty films of three reviews and a plot each; two reviews are the same sentence, one is the word null."""
    rows = [("plot", f"plot of {film}", f"film{film}") for film in range(40)]
    rows += [
        (kind, f"{kind} {film} {i}", f"film{film}") for film in range(40) for i, kind in enumerate(["fresh", "rotten"])
    ]
    rows += [("fresh", "the same words", "film1"), ("rotten", "the same words", "film2"), ("fresh", "null", "film3")]
    table = pd.DataFrame(
        [(*row, True) for row in rows], columns=["category", "text", "movie_name", "has_plot_and_reviews"]
    )
    path = tmp_path / "corpus.csv.bz2"
    path.write_bytes(bz2.compress(table.to_csv(index=False).encode()))
    monkeypatch.setattr(demo, "packaged_file", lambda package, ending: path)
    return table


def test_no_film_is_in_both_splits(demo, corpus, tmp_path):
    train, validation = (pd.read_csv(p, keep_default_na=False) for p in demo.write_splits(tmp_path / "data", seed=1))
    film_of = dict(zip(corpus.text, corpus.movie_name, strict=True))
    films = [{film_of[text] for text in split.text if text != "the same words"} for split in (train, validation)]
    assert films[0].isdisjoint(films[1])
    assert len(films[1]) == 4, "a tenth of forty films"


def test_reviews_are_kept_once_and_plots_not_at_all(demo, corpus, tmp_path):
    splits = [pd.read_csv(path, keep_default_na=False) for path in demo.write_splits(tmp_path / "data", seed=1)]
    both = pd.concat(splits)
    assert list(both.columns) == ["text", "label"]
    assert set(both.label) == {"fresh", "rotten"}
    assert not both.text.duplicated().any()
    assert len(both) == 80 + 2
    assert "null" in set(both.text)


def test_split_depends_on_the_seed_alone(demo, corpus, tmp_path):
    first, again, other = (
        demo.write_splits(tmp_path / name, seed)[1].read_text() for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again
    assert first != other


def test_changed_weights_are_refused(demo, tmp_path, monkeypatch):
    weights = tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"other weights")
    monkeypatch.setattr(demo, "packaged_file", lambda package, ending: weights)
    with pytest.raises(
        ValueError, match=f"^model.safetensors has sha256 [0-9a-f]{{64}}, expected {demo.WEIGHTS_SHA256}.$"
    ):
        demo.base_encoder(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


def test_packaged_file_finds_one_file_without_importing(demo):
    assert demo.packaged_file("torch", "torch/version.py").name == "version.py"
    with pytest.raises(FileNotFoundError, match=r"^torch holds 0 files ending in no/such\.file; expected one\.$"):
        demo.packaged_file("torch", "no/such.file")


@pytest.fixture
def glue_example(monkeypatch):
    monkeypatch.syspath_prepend(str(FILE.parent))
    return importlib.import_module("glue")


@pytest.fixture
def tiny_glue(tmp_path):
    """A base encoder and the task rte as parquet; the label is whether the first sentence has good words."""
    words = ["good", "great", "fine", "bad", "awful", "poor", "film", "plot"]
    vocab = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    shape = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
    BertModel(BertConfig(vocab_size=len(vocab), max_position_embeddings=40, **shape)).save_pretrained(
        tmp_path / "base"
    )
    BertTokenizerFast(vocab=vocab, model_max_length=40).save_pretrained(tmp_path / "base")
    (tmp_path / "glue" / "rte").mkdir(parents=True)
    for split, count in (("train", 80), ("validation", 24)):
        first = [" ".join([*words[3 * (i % 2) :][:3][i % 3 :], "film"]) for i in range(count)]
        rows = {"sentence1": first, "sentence2": ["plot"] * count, "label": [i % 2 for i in range(count)]}
        pd.DataFrame(rows).to_parquet(tmp_path / "glue" / "rte" / f"{split}.parquet")
    return tmp_path


def test_glue_example_trains_a_student_per_seed_and_keeps_one_table(glue_example, tiny_glue, capsys, monkeypatch):
    options = [f"--teacher={tiny_glue / 'base'}", "--fine_tune", "--task_name=rte", f"--data_dir={tiny_glue / 'glue'}"]
    options += [f"--output_dir={tiny_glue / 'runs'}", "--keep_layers=2", "--seeds", "1", "2", "--fine_tune_epochs=2"]
    options += ["--fine_tune_learning_rates", "1e-3", "5e-3", "--selection_share=0.2", "--max_length=32"]
    options += ["--num_train_epochs=1", "--use_cpu", "--disable_tqdm=True"]
    assert glue_example.main(options) == 0
    assert glue_example.main(options) == 0, "again: nothing is trained twice, no line is written twice"
    lines = [json.loads(line) for line in (tiny_glue / "runs" / "results.jsonl").read_text().splitlines()]
    assert [(line["run"], line["seed"]) for line in lines] == [
        ("rte-2l-binary-default-seed1", 1),
        ("rte-2l-binary-default-seed2", 2),
    ]
    assert lines[0]["teacher"] == lines[1]["teacher"], "the seeds share a teacher"
    table = (tiny_glue / "runs" / "results.md").read_text()
    assert table in capsys.readouterr().out
    mean = sum(line["packed"] for line in lines) / 2
    assert f"| rte | accuracy | binary | 2 | default | {lines[0]['teacher']:.4f} | {mean:.4f} ± " in table
    # An argument that only students use changes nothing about the teacher.
    monkeypatch.setattr(XTCTrainer, "train", lambda *args, **kwargs: pytest.fail("trained again"))
    assert glue_example.main([*options, "--teacher_only", "--weight_annealing=0.1"]) == 0


def test_a_teacher_may_start_from_that_of_another_task(glue_example, tiny_glue):
    shutil.copytree(tiny_glue / "glue" / "rte", tiny_glue / "glue" / "stsb")
    for file in (tiny_glue / "glue" / "stsb").iterdir():
        pd.read_parquet(file).assign(label=lambda rows: rows.label * 5.0).to_parquet(file)
    options = [f"--teacher={tiny_glue / 'base'}", "--fine_tune", "--task_name=rte", f"--data_dir={tiny_glue / 'glue'}"]
    options += [f"--output_dir={tiny_glue / 'runs'}", "--start_task=stsb", "--teacher_only", "--max_length=32"]
    options += ["--fine_tune_epochs=1", "--fine_tune_learning_rates=1e-3", "--selection_share=0.2", "--use_cpu"]
    assert glue_example.main([*options, "--disable_tqdm=True"]) == 0
    runs = tiny_glue / "runs"
    receipt = json.loads((runs / "rte-teacher" / "training" / "teacher" / "receipt.json").read_text())
    assert receipt["start"] == "base-fine-tuned-on-stsb"
    encoder, teacher = (
        load_file(folder / "model.safetensors")
        for folder in (runs / "base-fine-tuned-on-stsb", runs / "stsb-teacher" / "training" / "teacher")
    )
    assert set(encoder) == {name.removeprefix("bert.") for name in teacher if name.startswith("bert.")}
    assert all(torch.equal(encoder[name], teacher[f"bert.{name}"]) for name in encoder)
    assert json.loads((runs / "rte-teacher" / "training" / "teacher" / "config.json").read_text())["id2label"] == {
        "0": "entailment",
        "1": "not_entailment",
    }


def test_glue_example_prints_one_message_on_an_error(glue_example, tiny_glue, capsys):
    options = [f"--teacher={tiny_glue / 'base'}", "--task_name=cola", f"--data_dir={tiny_glue / 'glue'}"]
    assert glue_example.main([*options, f"--output_dir={tiny_glue / 'runs'}", "--use_cpu"]) == 1
    assert "--data_dir holds no GLUE cola" in capsys.readouterr().err


def test_checkpoints_publish_the_seed_that_is_best_on_held_out_rows(glue_example, tiny_glue, monkeypatch):
    checkpoints = importlib.import_module("checkpoints")
    monkeypatch.setattr(glue_example, "base_encoder", lambda folder: tiny_glue / "base")
    quick = {"max_length": 32, "selection_share": 0.2, "fine_tune_epochs": 1, "fine_tune_learning_rates": [1e-3]}
    listed = {
        "options": {"schedule": "reduced-first", "num_train_epochs": 2, "learning_rate": 1e-3, **quick},
        "tasks": {"rte": {}},
        "checkpoints": [{"task": "rte", "keep_layers": 2, "weights": "ternary"}],
    }
    (tiny_glue / "list.json").write_text(json.dumps(listed))
    folders = {"output_dir": "runs", "publish_dir": "published", "cards_dir": "cards", "list_file": "list.json"}
    options = [f"--{key}={tiny_glue / value}" for key, value in folders.items()]
    assert checkpoints.main([*options, f"--data_dir={tiny_glue}", "--seeds", "1", "2", "--use_cpu"]) == 0
    name = "minilm-2l-ternary-rte"
    card = (tiny_glue / "cards" / f"{name}.md").read_text(encoding="utf-8")
    assert card == (tiny_glue / "published" / name / "README.md").read_text(encoding="utf-8")
    assert f"# {name}" in card
    assert "Over the seeds 1, 2 the packed file's accuracy is" in card
    lines = [json.loads(line) for line in (tiny_glue / "runs" / "results.jsonl").read_text().splitlines()]
    best = max(lines, key=lambda line: line["held_out"])
    published = (tiny_glue / "published" / name / "model.safetensors").read_bytes()
    assert published == (tiny_glue / "runs" / best["run"] / "model.safetensors").read_bytes()
    assert not list((tiny_glue / "published").rglob("training"))


def test_listed_runs_are_compressed_and_published(glue_example, tiny_glue):
    """One compression each, from an encoder of a folder; started again, it only writes the same folder and card."""
    checkpoints = importlib.import_module("checkpoints")
    files = {f"{split}_file": f"glue/rte/{split}.parquet" for split in ("train", "validation")}
    columns = {"text_column": "sentence1", "text_pair_column": "sentence2", "max_length": 32}
    run = {"teacher": "base", **files, **columns, "fine_tune": True, "fine_tune_epochs": 1, "keep_layers": 2}
    listed = {"options": {}, "tasks": {}, "checkpoints": [], "runs": {"tiny-2l-1bit": {**run, "schedule": "direct"}}}
    (tiny_glue / "list.json").write_text(json.dumps(listed))
    folders = {"output_dir": "runs", "publish_dir": "published", "cards_dir": "cards", "list_file": "list.json"}
    options = [f"--{key}={tiny_glue / value}" for key, value in folders.items()]
    options += [f"--data_dir={tiny_glue}", f"--encoders_dir={tiny_glue}", "--use_cpu"]
    assert checkpoints.main(options) == 0
    folder, card = tiny_glue / "published" / "tiny-2l-1bit", tiny_glue / "cards" / "tiny-2l-1bit.md"
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert files["README.md"] == card.read_bytes()
    assert b"--names tiny-2l-1bit" in files["README.md"]
    assert b"# tiny-2l-1bit" in files["README.md"]
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(files)
    assert not {"training", "metrics.json"} & set(files)
    assert checkpoints.main([*options, "--names", "tiny-2l-1bit"]) == 0
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == files


def test_unknown_checkpoint_is_refused(glue_example, tmp_path, capsys):
    checkpoints = importlib.import_module("checkpoints")
    assert checkpoints.main([f"--data_dir={tmp_path}", "--names", "bert"]) == 1
    assert capsys.readouterr().err.startswith("There is no checkpoint bert; there are: minilm-3l-1bit-sst2, ")


def test_listed_checkpoints_have_options_that_parse(glue_example, tmp_path, monkeypatch):
    checkpoints = importlib.import_module("checkpoints")
    monkeypatch.setattr(glue_example, "base_encoder", lambda folder: tmp_path / "base")
    args = checkpoints.CheckpointArguments(data_dir=str(tmp_path), use_cpu=True)
    listed = json.loads(Path(args.list_file).read_text(encoding="utf-8"))
    for entry in listed["checkpoints"]:
        own, job, data, recipe, training, _ = glue_example.parse(checkpoints.options_of(args, listed, entry))
        assert recipe.recipe().keep_layers == entry["keep_layers"]
        assert (own.seeds, data.selection_share, job.fine_tune) == ([1, 2, 3], 0.1, True)
        assert training.num_train_epochs >= (1 if "encoder" in entry else 2)
        if "encoder" in entry:
            teacher = Path("encoders") / listed["encoders"][entry["encoder"]]["options"]["teacher"]
            assert (job.teacher, training.output_dir) == (str(teacher), str(Path("runs") / entry["encoder"]))
        else:
            assert (job.teacher, training.output_dir) == (str(tmp_path / "base"), "runs")
        start = entry.get("start_from")
        assert job.start_from == (start and str(Path("checkpoints") / start))


def test_a_checkpoint_is_made_after_the_one_it_starts_from(glue_example):
    checkpoints = importlib.import_module("checkpoints")
    entries = {"b": {"start_from": "a"}, "a": {}, "c": {}, "d": {"start_from": "a"}}
    assert checkpoints.in_order(["c", "b", "a", "d"], entries) == ["c", "a", "b", "d"]
    listed = json.loads((FILE.parent / "checkpoints.json").read_text(encoding="utf-8"))["checkpoints"]
    shapes = {checkpoints.name_of(entry): (entry["keep_layers"], entry["weights"]) for entry in listed}
    for entry in listed:
        start = entry.get("start_from", checkpoints.name_of(entry))
        assert shapes[start] == (entry["keep_layers"], entry["weights"])


def test_means_compare_students_with_their_teachers_over_the_same_tasks(glue_example):
    def line(task, layers, seed, packed, teacher):
        kind = {"task": task, "weights": "binary", "layers": layers, "schedule": "direct", "seed": seed}
        return {**kind, "packed": packed, "teacher": teacher}

    records = [line("cola", 6, 1, 0.2, 0.4), line("cola", 6, 2, 0.4, 0.4), line("sst2", 6, 1, 0.9, 0.9)]
    records += [line("sst2", 3, 1, 0.6, 0.8)]
    rows = glue_example.results.means(records).splitlines()[2:]
    assert rows == [
        "| binary | 3 | direct | sst2 | 0.8000 | 0.6000 | 75.0% |",
        "| binary | 6 | direct | cola, sst2 | 0.6500 | 0.6000 | 92.3% |",
    ]


def test_a_smaller_vocabulary_is_another_kind_of_student(glue_example, tiny_config):
    rows = [Row(name, {"accuracy": score}, 1000, 3, "") for name, score in (("teacher", 0.9), ("packed", 0.8))]
    made = {"stages": [{"selection": None, "learning_rate": 1e-3, "steps": 5, "seconds": 1.0}], "job": {}}
    records = []
    for more in ({}, {"vocabulary": 11507}):
        facts = {**made, **more, "versions": {}}
        run = Run("r", "sst2", "accuracy", rows, ledger(tiny_config, XTCRecipe()), facts, XTCRecipe(), "")
        records.append(glue_example.results.record(run, 1))
    assert [record["weights"] for record in records] == ["binary", "binary, 11,507 tokens"]
    assert len(glue_example.results.table(records).splitlines()) == 4


def test_the_table_has_standard_errors_where_they_were_measured(glue_example):
    about = {"task": "cola", "metric": "matthews_correlation", "weights": "binary", "schedule": "direct"}
    made = {"teacher": 0.5, "packed": 0.4, "packed_bytes": 2000, "steps": 10}
    old = {**about, **made, "layers": 6}
    records = [{**about, **made, "layers": 3, "packed": p, "standard_errors": [0.02, p / 10]} for p in (0.3, 0.5)]
    table = glue_example.results.table
    assert "standard errors" not in table([old])
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table([old, *records]).splitlines()]
    (place,) = (i for i, title in enumerate(lines[0]) if title == "standard errors")
    assert [line[place] for line in lines[2:]] == ["0.0200, 0.0400", "-"]
    assert [line[place + 1 :] for line in lines[2:]] == [["2", "2,000", "10"], ["1", "2,000", "10"]]
    assert lines[2][6:8] == ["0.4000 ± 0.1414", "80.0%"]


def test_accuracy_page_states_the_results_of_the_checkpoints(glue_example):
    results, root = glue_example.results, FILE.parent.parent
    records = results.read(root / "benchmarks" / "results" / "checkpoints.jsonl")
    page = (root / "docs" / "accuracy.md").read_text(encoding="utf-8")
    assert results.table(records) in page
    glue = [record for record in records if record["task"] in ("sst2", "mrpc", "rte", "cola", "stsb")]
    assert results.means(glue) in page
    twelve = results.read(root / "benchmarks" / "results" / "mpnet.jsonl")
    assert results.table(twelve) in page
    for name in {record["run"].rpartition("-seed")[0] for record in records}:
        assert (root / "model_cards" / f"{name}.md").is_file()
