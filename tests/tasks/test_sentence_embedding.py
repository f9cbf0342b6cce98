"""Sentence embeddings through the command line, on a tiny teacher, and used as their users do."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from commands import blocks
from compress_options import SHAPE, VOCAB, sentences
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, BertConfig, BertModel, BertTokenizerFast, set_seed

from hf_xtc.cli import main
from hf_xtc.distillation.cache import TeacherCache
from hf_xtc.files.sentence_files import SentenceSettings, read_sentence_settings, write_sentence_files
from hf_xtc.hub.upload import shipped_files
from hf_xtc.runtime import Pipeline
from hf_xtc.training.trainer import XTCTrainer
from rooms import package_imports

TEXTS = ["good movie", "a very bad plot", "film", "nice nice actor is good " * 9]
SETTINGS = SentenceSettings("mean", True, 24, {"query": "very "})
QUICK = ["--use_cpu", "--max_length=16", "--disable_tqdm=True", "--schedule=direct", "--keep_layers=2"]
QUICK += ["--max_steps=6", "--save_strategy=steps", "--save_steps=2", "--per_device_train_batch_size=8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A teacher of sentence-transformers, an encoder without such files, texts, and pairs with scores."""
    path = tmp_path_factory.mktemp("embed")
    set_seed(0)
    model = BertModel(BertConfig(vocab_size=len(VOCAB), max_position_embeddings=40, **SHAPE))
    for name in ("teacher", "encoder"):
        model.save_pretrained(path / name)
        BertTokenizerFast(vocab=VOCAB, model_max_length=40).save_pretrained(path / name)
    write_sentence_files(path / "teacher", SETTINGS, SHAPE["hidden_size"])
    texts = sentences(64, 1)["text"].tolist()
    (path / "train.txt").write_text("\n".join([*texts, "", texts[0]]) + "\n")
    (path / "texts.txt").write_text("\n".join(sentences(16, 2)["text"]) + "\n")
    pairs = sentences(24, 3)
    pairs["other"] = pairs["text"].tolist()[::-1]
    pairs.to_csv(path / "pairs.csv", index=False)
    return path


PAIRS = ["--text_pair_column=other", "--label_column=score"]


def compress(folder, out, *options, teacher="teacher", validation="pairs.csv"):
    words = [f"--teacher={folder / teacher}", f"--train_file={folder / 'train.txt'}", f"--output_dir={out}"]
    words += [f"--validation_file={folder / validation}", *(PAIRS if validation == "pairs.csv" else [])]
    return main(["compress", *words, *QUICK, *options])


@pytest.fixture(scope="module")
def compressed(folder) -> Path:
    assert compress(folder, folder / "out") == 0
    return folder / "out"


def metrics(out):
    return [row["metrics"] for row in json.loads((out / "metrics.json").read_text())["rows"]]


def test_sentence_transformers_opens_what_is_written(compressed):
    model = SentenceTransformer(str(compressed), device="cpu")
    assert type(model[0].auto_model).__name__ == "XTCBertModel"
    assert type(AutoModel.from_pretrained(compressed)).__name__ == "XTCBertModel"
    vectors = model.encode(TEXTS)
    assert vectors.shape == (4, SHAPE["hidden_size"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    short = SentenceTransformer(str(compressed), device="cpu", truncate_dim=8).encode(TEXTS)
    np.testing.assert_array_equal(short, vectors[:, :8])
    np.testing.assert_allclose(model.encode("movie", prompt_name="query"), model.encode("very movie"), rtol=1e-5)


def test_the_runtime_embeds_alike(compressed):
    expected = SentenceTransformer(str(compressed), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(Pipeline(compressed).embed(TEXTS), expected, rtol=1e-4, atol=1e-6)


def test_the_default_prompt_of_the_teacher_counts_everywhere(folder, tmp_path):
    shutil.copytree(folder / "teacher", tmp_path / "teacher")
    settings = replace(SETTINGS, default_prompt_name="query")
    write_sentence_files(tmp_path / "teacher", settings, SHAPE["hidden_size"])
    assert compress(folder, tmp_path / "out", teacher=tmp_path / "teacher") == 0
    assert read_sentence_settings(tmp_path / "out") == settings
    for row, name in ((0, "teacher"), (-1, "out")):
        model, pairs = SentenceTransformer(str(tmp_path / name), device="cpu"), pd.read_csv(folder / "pairs.csv")
        vectors = [model.encode(pairs[column].tolist()) for column in ("text", "other")]
        found = np.corrcoef((vectors[0] * vectors[1]).sum(1), pairs["score"])[0, 1]
        assert metrics(tmp_path / "out")[row]["pearson"] == pytest.approx(found, abs=1e-3)  # ranks of equal ones vary
    pipe = Pipeline(tmp_path / "out")
    np.testing.assert_allclose(pipe.embed(TEXTS), model.encode(TEXTS), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(pipe.embed(TEXTS), pipe.embed([f"very {text}" for text in TEXTS], prompt=""))


def test_it_opens_where_the_package_is_not_installed(compressed):
    code = """
import sys
sys.modules["hf_xtc"] = None
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], trust_remote_code=True, device="cpu")
print(*model.encode("good movie").tolist())
"""
    done = subprocess.run([sys.executable, "-c", code, str(compressed)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [float(number) for number in done.stdout.split()]
    np.testing.assert_allclose(found, Pipeline(compressed).embed("good movie")[0], rtol=1e-3, atol=1e-4)


def test_the_card_says_what_it_is_and_its_code_runs(compressed, monkeypatch):
    card = ModelCard.load(compressed / "README.md")
    assert card.data.pipeline_tag == "sentence-similarity"
    assert card.data.library_name == "sentence-transformers"
    assert "spearmanr, validation" in card.text
    assert "Reimers and Gurevych" in card.text
    monkeypatch.chdir(compressed)
    scope = {}
    exec(blocks(compressed / "README.md", "python")[0], scope)
    assert scope["vectors"].shape == (2, SHAPE["hidden_size"])


def test_settings_of_the_teacher_are_kept_and_shipped(compressed):
    assert read_sentence_settings(compressed) == SETTINGS
    names = set(shipped_files(compressed))
    assert {"modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "2_Normalize/config.json"} <= names


def test_evaluation_needs_no_train_file(compressed, folder, capsys):
    words = [f"--model={compressed}", f"--validation_file={folder / 'pairs.csv'}", *PAIRS, "--max_length=16"]
    assert main(["evaluate", *words]) == 0
    printed = dict(line.split(": ") for line in capsys.readouterr().out.strip().splitlines())
    assert {name: float(value) for name, value in printed.items()} == pytest.approx(metrics(compressed)[-1], abs=1e-6)
    assert set(printed) == {"pearson", "spearmanr", "spearmanr_standard_error"}


def test_scores_are_those_of_the_vectors(compressed, folder):
    rows = sentences(24, 3)
    first, second = (Pipeline(compressed, max_length=16).embed(list(texts)) for texts in (rows.text, rows.text[::-1]))
    expected = np.corrcoef((first * second).sum(1), rows.score)[0, 1]
    assert metrics(compressed)[-1]["pearson"] == pytest.approx(expected, abs=1e-4)


def test_predict_writes_vectors_as_json_lines(compressed, folder, tmp_path, capsys):
    (tmp_path / "t.txt").write_text("\n".join(TEXTS))
    assert main(["predict", str(compressed), str(tmp_path / "t.txt")]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["row"] for record in records] == [0, 1, 2, 3]
    np.testing.assert_allclose([r["embedding"] for r in records], Pipeline(compressed).embed(TEXTS), rtol=1e-6)
    assert main(["predict", str(compressed), str(tmp_path / "t.txt"), "--output_file=o.csv"]) == 1
    assert "hf-xtc: A csv table cannot hold embeddings. Write jsonl, or name a .npy or" in capsys.readouterr().err


def test_texts_without_scores_are_compared_with_the_teacher(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert compress(folder, out, "--selection_share=0.2", validation="texts.txt") == 0
    teacher, *_, packed = metrics(out)
    assert teacher["spearmanr"] == pytest.approx(1)
    capsys.readouterr()
    words = ["evaluate", f"--validation_file={folder / 'texts.txt'}", "--max_length=16"]
    assert main([*words, f"--model={out}", f"--teacher={folder / 'teacher'}"]) == 0
    printed = dict(line.split(": ") for line in capsys.readouterr().out.strip().splitlines())
    assert float(printed["spearmanr"]) == pytest.approx(packed["spearmanr"], abs=1e-6)
    assert main([*words, f"--model={out}"]) == 1
    assert (
        "texts has texts without scores, which those of the teacher replace. Pass --teacher" in capsys.readouterr().err
    )


def test_an_encoder_is_pooled_as_told(folder, tmp_path):
    options = ["--task=sentence-embedding", "--pooling=cls"]
    assert compress(folder, tmp_path / "out", *options, teacher="encoder") == 0
    assert read_sentence_settings(tmp_path / "out") == SentenceSettings("cls")
    model = AutoModel.from_pretrained(tmp_path / "out").eval()
    with torch.inference_mode():
        first = model(input_ids=torch.tensor([[2, 5, 13, 3]])).last_hidden_state[0, 0]
    np.testing.assert_allclose(Pipeline(tmp_path / "out").embed("good movie")[0], first, rtol=1e-4, atol=1e-5)


def test_a_killed_run_resumes_with_a_teacher_cache_and_ends_in_the_same_file(folder, tmp_path, monkeypatch):
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert compress(folder, whole, f"--teacher_cache={tmp_path / 'cache'}") == 0
    assert TeacherCache(tmp_path / "cache").manifest.layers["hidden_states"] == (0, 2, 4)
    step = XTCTrainer.training_step

    def killed(trainer, *args, **kwargs):
        if trainer.state.global_step == 5:
            raise KeyboardInterrupt
        return step(trainer, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(XTCTrainer, "training_step", killed)
        with pytest.raises(KeyboardInterrupt):
            compress(folder, again, f"--teacher_cache={tmp_path / 'cache'}")
    assert (again / "training" / "student" / "checkpoint-4").is_dir()
    assert compress(folder, again, f"--teacher_cache={tmp_path / 'cache'}") == 0
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--task=sentence-embedding", "--fine_tune"], "--fine_tune trains a head on labels, and sentence-embedding"),
        (["--pooling=max"], "--pooling=max does not exist. Use one of: mean, cls."),
        (["--task=regression", "--pooling=cls"], "--pooling=cls is for sentence-embedding, not for this task."),
        (["--metric_for_best_model=loss"], "--metric_for_best_model=loss is not measured. Use one of: pearson, "),
        (["--text_column=texts"], "pairs.csv has no column texts; its columns are text, label, score, other."),
        (["--text_pair_column=second"], "train.txt has no column second; its columns are text."),
        (["--label_column=grade"], "pairs.csv has no column grade; its columns are text, label, score, other."),
    ],
)
def test_errors(folder, tmp_path, capsys, options, message):
    assert compress(folder, tmp_path / "out", *options) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_package_itself_does_not_import_sentence_transformers():
    assert not [found for found in package_imports() if found.module.startswith("sentence_transformers")]


def test_few_texts_are_refused(folder, tmp_path, capsys):
    (tmp_path / "few.txt").write_text("good\nbad\n")
    assert compress(folder, tmp_path / "out", validation=tmp_path / "few.txt") == 1
    assert "few.txt has 2 different texts; three are needed to compare similarities." in capsys.readouterr().err
