"""Each registered task through the command line, from a base encoder to the card of the packed file, used as shown."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from commands import blocks
from compress_options import SHAPE, VOCAB
from datasets import Dataset
from huggingface_hub import ModelCard
from sentence_transformers import CrossEncoder, SentenceTransformer
from task_cases import options, table
from trainers import Stop, stop_the_first_student
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertTokenizerFast,
    pipeline,
    set_seed,
)

from hf_xtc.cli import command_parser, main
from hf_xtc.data import token_predictions
from hf_xtc.data.task_data import DataArguments
from hf_xtc.runs.predict import PREDICT, read_texts
from hf_xtc.runs.torch_pipeline import TorchPipeline
from hf_xtc.tasks import TASKS
from hf_xtc.tasks.question_answering import best_answers

QUICK = ["--use_cpu", "--learning_rate=1e-3", "--max_length=24", "--disable_tqdm=True", "--keep_layers=2"]
QUICK += ["--num_train_epochs=2", "--reduction_epochs=1", "--fine_tune_epochs=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base encoder with the head of its pre-training, and the rows of each task."""
    path = tmp_path_factory.mktemp("tasks")
    set_seed(0)
    BertForMaskedLM(BertConfig(vocab_size=len(VOCAB), max_position_embeddings=40, **SHAPE)).save_pretrained(
        path / "base"
    )
    BertTokenizerFast(vocab=VOCAB, model_max_length=40).save_pretrained(path / "base")
    for name in TASKS:
        for split, count in (("train", 96), ("validation", 32)):
            table(name, count, seed=count).to_json(path / f"{name}-{split}.jsonl", orient="records", lines=True)
    return path


def compress(folder, name, out, *more):
    data = [f"--{split}_file={folder / f'{name}-{split}.jsonl'}" for split in ("train", "validation")]
    models = [
        f"--teacher={folder / 'base'}",
        f"--output_dir={out}",
        *(["--fine_tune"] if TASKS[name].labelled else []),
    ]
    return main(["compress", *models, *data, *options(name), *QUICK, *more])


@pytest.fixture(scope="module")
def runs(folder):
    """The output folder of each task's run, made when it is first asked for."""
    made: dict[str, Path] = {}

    def run(name):
        if name not in made:
            made[name] = folder / f"out-{name}"
            more = ["--distillation_stages=2", f"--teacher_cache={folder / f'cache-{name}'}", "--selection_share=0.2"]
            assert compress(folder, name, made[name], *more) == 0
        return made[name]

    return run


@pytest.mark.parametrize("name", TASKS)
def test_a_run_measures_its_file_and_the_card_says_so(runs, name):
    task, metrics = TASKS[name](), json.loads((runs(name) / "metrics.json").read_text())
    assert [row["layers"] for row in metrics["rows"]] == [4, 2, 2, 2]
    assert all(math.isfinite(row["metrics"][metrics["metric"]]) for row in metrics["rows"])
    card = ModelCard.load(runs(name) / "README.md")
    assert card.data.pipeline_tag == task.pipeline_tag
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results[metrics["metric"]] == pytest.approx(metrics["rows"][-1]["metrics"][metrics["metric"]], abs=1e-6)


def test_a_data_set_is_compressed_evaluated_and_verified_by_its_name(folder, tmp_path, capsys):
    rows = tmp_path / "films"
    rows.mkdir()
    for split, count in (("train", 48), ("validation", 16), ("test", 24)):
        table("token-classification", count, seed=count).to_parquet(rows / f"{split}.parquet")
    out, quick = tmp_path / "out", [option for option in QUICK if "epochs" not in option]
    more = ["--fine_tune", "--num_train_epochs=1", "--reduction_epochs=0", "--test_split_name=test"]
    data = [f"--dataset_name={rows}", "--text_column_name=tokens", "--label_column_name=tags"]
    assert main(["compress", f"--teacher={folder / 'base'}", f"--output_dir={out}", *data, *quick, *more]) == 0
    expected = json.loads((out / "metrics.json").read_text())["rows"][-1]["metrics"]
    assert {"f1", "accuracy", "test_f1", "test_accuracy"} <= set(expected)
    capsys.readouterr()
    for command in ("evaluate", "verify"):
        assert main([command, f"--model={out}", *data, "--test_split_name=test", "--max_length=24"]) == 0
    evaluated, verified = (text for text in capsys.readouterr().out.split("ok", 1))
    assert f"test_f1: {expected['test_f1']:.6f}" in evaluated
    assert f"test_f1: {expected['test_f1']:.6f}, on the card" in verified


@pytest.mark.parametrize("name", TASKS)
def test_a_packed_file_is_evaluated_without_a_train_file(folder, runs, name, capsys):
    file = folder / f"{name}-validation.jsonl"
    expected = json.loads((runs(name) / "metrics.json").read_text())["rows"][-1]["metrics"]
    capsys.readouterr()  # what the run printed, if this test is the first to need it
    said = [option for option in options(name) if "task" not in option]  # the model's configuration tells it
    said += [f"--teacher={folder / 'base'}"] if TASKS[name].scored_by_teacher else []
    assert main(["evaluate", f"--model={runs(name)}", f"--validation_file={file}", "--max_length=24", *said]) == 0
    printed = dict(line.split(": ") for line in capsys.readouterr().out.strip().splitlines())
    assert {key: float(value) for key, value in printed.items()} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", TASKS)
def test_the_snippet_of_the_card_runs(runs, name, monkeypatch, capsys):
    monkeypatch.chdir(runs(name))
    (code,) = blocks(Path("README.md"), "python")
    capsys.readouterr()  # what the run printed, if this test is the first to need it
    names: dict = {}
    exec(compile(code, "card", "exec"), names)
    USES[name](names, capsys)


def use_tagger(names, capsys):
    found = names["pipe"]("good film is very bad")
    assert all({"entity_group", "score", "word", "start", "end"} <= set(entity) for entity in found)


def use_classifier(names, capsys):
    (found,) = names["pipe"](["good film"])
    assert {"label", "score"} == set(found)


def use_labels(names, capsys):
    (found,) = names["pipe"](["good film"])
    assert {entry["label"] for entry in found} == {"good", "bad", "film"}
    inputs = names["pipe"].tokenizer("good film", return_tensors="pt")
    with torch.no_grad():
        probabilities = names["pipe"].model(**inputs).logits[0].sigmoid()
    ids = names["pipe"].model.config.label2id
    assert {e["label"]: e["score"] for e in found} == pytest.approx(
        {n: probabilities[i].item() for n, i in ids.items()}
    )


def use_reader(names, capsys):
    assert type(names["model"]).__name__ == "XTCBertForQuestionAnswering"
    assert len(capsys.readouterr().out.splitlines()) == 1


def use_masked(names, capsys):
    assert len(names["pipe"]("good [MASK]")) == 5


def use_embedder(names, capsys):
    assert names["vectors"].shape == (2, SHAPE["hidden_size"])


def use_reranker(names, capsys):
    assert names["scores"].shape == (2,)


USES = {
    "sentence-embedding": use_embedder,
    "reranking": use_reranker,
    "sequence-classification": use_classifier,
    "regression": use_classifier,
    "multi-label-classification": use_labels,
    "token-classification": use_tagger,
    "question-answering": use_reader,
    "masked-lm": use_masked,
}


def predict_through_a_pipe(model, rows, *more):
    """The records that `hf-xtc predict` writes in a process of its own, without PyTorch where it can."""
    blocked = [] if "masked-lm" in model.name else ["torch", "transformers", "datasets", "pandas", "sklearn"]
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked})); from hf_xtc.cli import main; sys.exit(main())"
    words = ["predict", str(model), "--input_format=jsonl", "--output_format=jsonl", *more]
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    done = subprocess.run([sys.executable, "-c", code, *words], input=lines, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def predict_in_pytorch(model, rows, *more):
    """The records of the same command where PyTorch computes the model."""
    words = [f"--model={model}", f"--file={model / 'texts.jsonl'}", *more]
    (args,) = command_parser("predict").options(words)
    (model / "texts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    pipe = TorchPipeline(model, max_length=args.max_length)
    return PREDICT[pipe.task](pipe, read_texts(args, pipe.task), args)


@pytest.mark.parametrize("predict", [predict_through_a_pipe, predict_in_pytorch], ids=["pipe", "pytorch"])
@pytest.mark.parametrize("name", TASKS)
def test_predictions_are_those_of_the_libraries(runs, name, predict):
    rows, expected, more = PREDICTIONS[name](runs(name))
    found = predict(runs(name), rows, *more)
    assert len(found) == len(expected) > 0
    for record, other in zip(found, expected, strict=True):
        assert set(record) == {*other}
        for key, value in other.items():
            assert record[key] == (value if isinstance(value, str | None) else pytest.approx(value, abs=1e-4)), key


SENTENCES = ["good film is very bad", "bad plot", "is movie very nice actor good good"]


def predict_classes(model):
    found = pipeline("text-classification", model=str(model))(SENTENCES)
    return [{"text": text} for text in SENTENCES], [{"row": row, **best} for row, best in enumerate(found)], []


def predict_numbers(model):
    found = pipeline("text-classification", model=str(model), function_to_apply="none")(SENTENCES)
    expected = [{"row": row, "score": best["score"]} for row, best in enumerate(found)]
    return [{"text": text} for text in SENTENCES], expected, []


def predict_labels(model):
    found = pipeline("text-classification", model=str(model), top_k=None)(SENTENCES)
    scores = sorted(entry["score"] for entries in found for entry in entries)
    least = (scores[3] + scores[4]) / 2
    expected = [{"row": i, **entry} for i, entries in enumerate(found) for entry in entries if entry["score"] > least]
    return [{"text": text} for text in SENTENCES], expected, [f"--threshold={least}"]


def predict_tags(model):
    return [{"text": text} for text in SENTENCES], tags(model, "simple"), []


def tags(model, strategy):
    found = pipeline("token-classification", model=str(model), aggregation_strategy=strategy)(SENTENCES)
    return [{"row": row, **entity} for row, entities in enumerate(found) for entity in entities]


def predict_answers(model):
    rows = [{"question": "is very", "context": text} for text in (" ".join(SENTENCES * 4), *SENTENCES)]
    args = DataArguments(train_file="a.jsonl", validation_file="a.jsonl", max_length=24)
    task, tokenizer = TASKS["question-answering"](), AutoTokenizer.from_pretrained(model)
    inputs = task.tokenize(Dataset.from_list([{**row, "answers": [], "starts": []} for row in rows]), tokenizer, args)
    batch = task.collator(tokenizer)([{key: row[key] for key in tokenizer.model_input_names} for row in inputs])
    with torch.no_grad():
        outputs = AutoModelForQuestionAnswering.from_pretrained(model)(**batch)
    logits = [part.numpy() for part in (outputs.start_logits, outputs.end_logits)]
    assert len(inputs) > len(rows), "windows"
    best = best_answers(inputs, *logits, may_abstain=True)  # as some of the train rows have no answer
    found = predict_in_pytorch(model, rows, "--max_length=24")
    assert [record["answer"] for record in found] == list(best.values())
    spans = [row["context"][record["start"] : record["end"]] for record, row in zip(found, rows, strict=True)]
    assert spans == list(best.values())
    return rows, found, ["--max_length=24"]


def predict_tokens(model):
    texts = ["good [MASK] is bad", "[MASK] very [MASK]"]
    found = pipeline("fill-mask", model=str(model), top_k=2)(texts)
    masks = [(0, 0, found[0]), (1, 0, found[1][0]), (1, 1, found[1][1])]
    expected = [
        {"row": row, "mask": mask, "token": entry["token_str"], "score": entry["score"]}
        for row, mask, entries in masks
        for entry in entries
    ]
    return [{"text": text} for text in texts], expected, ["--top_k=2"]


def predict_vectors(model):
    vectors = SentenceTransformer(str(model), device="cpu").encode(SENTENCES)
    expected = [{"row": row, "embedding": vector.tolist()} for row, vector in enumerate(vectors)]
    return [{"text": text} for text in SENTENCES], expected, []


def predict_relevance(model):
    pairs = [("good film", text) for text in SENTENCES]
    scores = CrossEncoder(str(model), device="cpu").predict(pairs)
    expected = [{"row": row, "score": float(score)} for row, score in enumerate(scores)]
    rows = [{"query": query, "passage": passage} for query, passage in pairs]
    return rows, expected, ["--text_column=query", "--text_pair_column=passage"]


PREDICTIONS = {
    "sentence-embedding": predict_vectors,
    "reranking": predict_relevance,
    "sequence-classification": predict_classes,
    "regression": predict_numbers,
    "multi-label-classification": predict_labels,
    "token-classification": predict_tags,
    "question-answering": predict_answers,
    "masked-lm": predict_tokens,
}


@pytest.mark.parametrize("rows, more, expected", [(0, [], False), (0, ["--unanswerable"], True), (2, [], True)])
def test_a_model_that_was_taught_so_may_give_no_answer(rows, more, expected, runs, tmp_path, monkeypatch):
    model = shutil.copytree(
        runs("question-answering"), tmp_path / "student", ignore=shutil.ignore_patterns("training")
    )
    config = json.loads((model / "config.json").read_text())
    config["xtc"]["provenance"]["unanswerable_rows"] = rows
    (model / "config.json").write_text(json.dumps(config))
    asked = []
    monkeypatch.setattr(token_predictions, "answer", lambda *_, unanswerable: asked.append(unanswerable) or {})
    predict_in_pytorch(model, [{"question": "is very", "context": "bad plot"}], *more)
    assert asked == [expected]


@pytest.mark.parametrize("strategy", ["none", "first", "average", "max"])
def test_tags_are_aggregated_as_in_transformers_pipeline(runs, strategy):
    model = runs("token-classification")
    found = predict_in_pytorch(model, [{"text": text} for text in SENTENCES], f"--aggregation_strategy={strategy}")
    expected = tags(model, strategy)
    assert [{**record, "score": None} for record in found] == [{**record, "score": None} for record in expected]
    assert [record["score"] for record in found] == pytest.approx([record["score"] for record in expected], abs=1e-6)


@pytest.mark.parametrize("name", TASKS)
def test_an_interrupted_run_ends_in_the_same_file(folder, runs, tmp_path, monkeypatch, name):
    stop_the_first_student(monkeypatch)
    more = ["--distillation_stages=2", f"--teacher_cache={tmp_path / 'cache'}", "--selection_share=0.2"]
    with pytest.raises(Stop):
        compress(folder, name, tmp_path / "out", *more)
    assert compress(folder, name, tmp_path / "out", *more) == 0
    again, undisturbed = (path / "model.safetensors" for path in (tmp_path / "out", runs(name)))
    assert again.read_bytes() == undisturbed.read_bytes()


@pytest.mark.parametrize(
    ("name", "option", "why"),
    [
        *((name, "--augment", task.fixed_words) for name, task in TASKS.items() if task.fixed_words),
        *((name, "--unlabelled=more.txt", task.fixed_rows) for name, task in TASKS.items() if task.fixed_rows),
    ],
)
def test_rows_that_a_teacher_cannot_label_are_not_added(folder, tmp_path, name, option, why, capsys):
    assert compress(folder, name, tmp_path / "out", option) == 1
    said = f"{option.split('=')[0]} cannot add rows: {why}. Leave it out.\n"
    assert capsys.readouterr().err.endswith(said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["multi-label-classification", "reranking", "sentence-embedding", "masked-lm"])
def test_added_rows_teach_a_student(folder, tmp_path, name):
    known, more = (pd.read_json(folder / f"{name}-train.jsonl", lines=True), table(name, 24, seed=9))
    if "text_pair" in more:
        more["text"] = "nice plot"  # a query of the validation rows must not train
    reserved = pd.read_json(folder / f"{name}-validation.jsonl", lines=True)
    pd.concat([more, known[:3], reserved[:3]]).to_json(tmp_path / "more.jsonl", orient="records", lines=True)
    added = ["--augment", "--augmentation_copies=1", f"--unlabelled={tmp_path / 'more.jsonl'}"]
    quick = ["--fine_tune_epochs=1", "--reduction_epochs=0", "--num_train_epochs=1"]
    assert compress(folder, name, tmp_path / "out", *added, *quick) == 0
    facts = json.loads((tmp_path / "out" / "config.json").read_text())["xtc"]["provenance"]
    assert facts["augmented_rows"] > 24
    assert facts["unlabelled_rows"] == 24


def test_texts_that_the_teacher_tags_teach_a_tagger(folder, tmp_path):
    name, out = "token-classification", tmp_path / "out"
    more, known = table(name, 24, seed=9), pd.read_json(folder / f"{name}-validation.jsonl", lines=True)
    texts = [" ".join(words) for words in pd.concat([more, known[:3]])["tokens"]]
    (tmp_path / "more.txt").write_text("\n".join(texts))
    quick = ["--fine_tune_epochs=1", "--reduction_epochs=0", "--num_train_epochs=1"]
    labels = '--terms={"logits": 1, "labels": 1}'
    assert compress(folder, name, out, f"--unlabelled={tmp_path / 'more.txt'}", labels, *quick) == 0
    facts = json.loads((out / "config.json").read_text())["xtc"]["provenance"]
    assert (facts["unlabelled_rows"], facts["stages"][-1]["steps"]) == (24, -(-(96 + 24) // 32))
