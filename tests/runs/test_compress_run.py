"""The whole command line on a tiny model, with real files and processes and all stages."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from commands import blocks
from compress_options import QUICK, SHAPE, VOCAB, compress_options, data_options, sentences
from compress_options import folder as folder
from families import make_config
from huggingface_hub import ModelCard
from safetensors import safe_open
from trainers import Stop, stop_the_first_student
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    ErnieConfig,
    ErnieForSequenceClassification,
    set_seed,
)

from hf_xtc import XTCTrainer, ledger
from hf_xtc.cli import main


@pytest.fixture(scope="module")
def compressed(folder) -> Path:
    """The result of one real run with fine-tuning, in this process."""
    out = folder / "out"
    assert main(["compress", *compress_options(folder, out)]) == 0
    return out


def test_output_folder_holds_what_a_user_ships(compressed):
    names = {path.name for path in compressed.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "metrics.json", "training"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]


def test_the_teacher_alone_is_trained_adversarially_and_the_card_says_so(compressed):
    provenance = json.loads((compressed / "metrics.json").read_text())["provenance"]
    assert provenance["fine_tuned"]["adversarial_epsilon"] == 0.1
    assert "adversarial_epsilon" not in provenance["training"]
    card = (compressed / "README.md").read_text(encoding="utf-8")
    assert "adversarial epsilon 0.1" in card
    assert "- Miyato et al., Adversarial Training Methods" in card


def test_card_credits_the_terms_and_the_quantizers_used(compressed):
    card = (compressed / "README.md").read_text(encoding="utf-8")
    for source in ("XTC: Extreme Compression", "TinyBERT", "Distilling the Knowledge", "XNOR-Net"):
        assert card.count(source) == 1, source
    assert "Ternary Weight Networks" not in card


def test_file_is_packed_and_as_large_as_its_ledger_says(compressed):
    with safe_open(compressed / "model.safetensors", framework="pt") as file:
        names = list(file.keys())
    assert "bert.encoder.layer.0.attention.self.query.weight_packed" in names
    assert "bert.encoder.layer.0.attention.self.query.weight" not in names
    model = AutoModelForSequenceClassification.from_pretrained(compressed)
    size = (compressed / "model.safetensors").stat().st_size
    header = int.from_bytes((compressed / "model.safetensors").read_bytes()[:8], "little")
    assert size == ledger(model.config).total_bytes + 8 + header


def test_metrics_have_four_rows_and_the_teacher_learns_the_task(compressed):
    metrics = json.loads((compressed / "metrics.json").read_text())
    assert [row["model"] for row in metrics["rows"]] == [
        "teacher",
        "layer-reduced student",
        "binary student",
        "packed file, reloaded",
    ]
    assert [row["layers"] for row in metrics["rows"]] == [4, 2, 2, 2]
    assert metrics["rows"][0]["metrics"]["accuracy"] > 0.9
    assert metrics["rows"][3]["bytes"] == (compressed / "model.safetensors").stat().st_size
    terms = [set(entry) & {"logits", "hidden_states", "attention_scores"} for entry in metrics["log"]]
    assert {"logits", "hidden_states", "attention_scores"} in terms or len(terms) > 0


def test_metric_of_the_card_is_that_of_the_file(compressed, folder, capsys):
    expected = json.loads((compressed / "metrics.json").read_text())["rows"][3]["metrics"]
    assert main(["evaluate", f"--model={compressed}", *data_options(folder), "--max_length=32"]) == 0
    printed = dict(line.split(": ") for line in capsys.readouterr().out.strip().splitlines())
    assert {name: float(value) for name, value in printed.items()} == pytest.approx(expected, abs=1e-6)


def test_a_new_process_gives_the_same_logits(compressed, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(compressed)
    batch = AutoTokenizer.from_pretrained(compressed)(
        ["good film", "a very bad plot"], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        here = model(**batch).logits
    program = (
        "import sys, torch, hf_xtc\n"
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n"
        "model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "batch = tokenizer(['good film', 'a very bad plot'], padding=True, return_tensors='pt')\n"
        "from safetensors.torch import save_file\n"
        "with torch.no_grad(): save_file({'logits': model(**batch).logits}, sys.argv[2])\n"
    )
    file = tmp_path / "logits.safetensors"
    subprocess.run([sys.executable, "-c", program, str(compressed), str(file)], check=True, capture_output=True)
    with safe_open(file, framework="pt") as there:
        assert torch.equal(there.get_tensor("logits"), here)


def test_latent_checkpoints_are_in_their_own_folder(compressed):
    training = compressed / "training"
    assert sorted(path.name for path in training.iterdir()) == ["reduced", "run.json", "student", "teacher"]
    with safe_open(training / "student" / "model.safetensors", framework="pt") as file:
        assert "bert.encoder.layer.0.attention.self.query.weight" in file.keys()  # noqa: SIM118
    assert list((training / "student").glob("checkpoint-*"))


def test_teacher_whose_labels_are_in_another_order_is_aligned(folder, tmp_path):
    out = tmp_path / "out"
    options = [f"--teacher={folder / 'teacher'}", f"--output_dir={out}", "--layers=0,3", "--weights=ternary"]
    assert main(["compress", *options, *data_options(folder), *QUICK, "--max_steps=2"]) == 0
    config = json.loads((out / "config.json").read_text())
    assert config["id2label"] == {"0": "positive", "1": "negative"}
    assert config["xtc"]["layer_map"]["layers"] == [0, 3]
    assert config["state"] == "packed"
    rows = json.loads((out / "metrics.json").read_text())["rows"]
    assert rows[2]["model"] == "ternary student"


def test_regression_runs_to_the_end(folder, tmp_path, capsys):
    out = tmp_path / "out"
    options = [f"--teacher={folder / 'base'}", f"--output_dir={out}", "--fine_tune", "--regression"]
    options += ["--label_column=score", "--embedding_weights=int8", "--activation_bits=none", "--max_steps=2"]
    assert main(["compress", *options, *data_options(folder), *QUICK]) == 0
    assert json.loads((out / "metrics.json").read_text())["metric"] == "pearson"
    assert "packed file, reloaded" in capsys.readouterr().out


def test_glue_task_from_a_folder_of_parquet_files(folder, tmp_path):
    glue = tmp_path / "glue" / "rte"
    glue.mkdir(parents=True)
    for split, count in (("train", 64), ("validation", 16)):
        table = sentences(count, count)
        pairs = {"sentence1": table.text, "sentence2": table.text, "label": (table.label == "positive").astype(int)}
        pd.DataFrame(pairs).to_parquet(glue / f"{split}.parquet")
    options = [f"--teacher={folder / 'base'}", f"--output_dir={tmp_path / 'out'}", "--fine_tune", "--keep_layers=2"]
    options += ["--task_name=rte", f"--data_dir={tmp_path / 'glue'}", "--max_steps=2"]
    assert main(["compress", *options, *QUICK]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {"0": "entailment", "1": "not_entailment"}


def test_folder_of_another_run_is_refused_before_anything_runs(folder, compressed, capsys):
    before = (compressed / "model.safetensors").read_bytes()
    assert main(["compress", *compress_options(folder, compressed), "--seed=7", "--keep_layers=3"]) == 1
    message = (
        f"hf-xtc: The folder {compressed} holds another run; it differs in recipe keep_layers (2 there, 3 here), "
        "training seed (42 there, 7 here). Give another --output_dir, or --overwrite to replace it.\n"
    )
    assert capsys.readouterr().err.endswith(message)
    assert (compressed / "model.safetensors").read_bytes() == before


def test_folder_of_something_else_is_refused(folder, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["compress", *compress_options(folder, tmp_path)]) == 1
    message = f"hf-xtc: The folder {tmp_path} is not empty. Give another --output_dir, or --overwrite to replace it.\n"
    assert capsys.readouterr().err.endswith(message)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_same_command_again_trains_nothing_and_gives_the_same_file(folder, compressed, monkeypatch):
    before = {name: (compressed / name).read_bytes() for name in ("model.safetensors", "metrics.json", "README.md")}
    monkeypatch.setattr(XTCTrainer, "train", lambda *args, **kwargs: pytest.fail("trained again"))
    assert main(["compress", *compress_options(folder, compressed)]) == 0
    assert {name: (compressed / name).read_bytes() for name in before} == before


def test_interrupted_run_resumes_and_ends_in_the_same_file(folder, compressed, tmp_path, monkeypatch):
    """Interrupted in the last stage, after a checkpoint; earlier stages are not trained again."""
    options = compress_options(folder, tmp_path / "out")
    trained = stop_the_first_student(monkeypatch)
    with pytest.raises(Stop):
        main(["compress", *options])
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert main(["compress", *options]) == 0
    assert trained == ["teacher", "reduced", "student", "student"]
    again, undisturbed = (path / "model.safetensors" for path in (tmp_path / "out", compressed))
    assert again.read_bytes() == undisturbed.read_bytes()


def test_rerunning_a_finished_run_keeps_its_configuration(folder, compressed, tmp_path):
    """transformers sets `problem_type` at the first loss, but a model that is read back computes none."""
    written = {path.name: path.read_bytes() for path in compressed.iterdir() if path.is_file()}
    problems = [json.loads((path / "config.json").read_text()).get("problem_type") for path in _stages(compressed)]
    assert problems == ["single_label_classification"] * 4
    assert main(["compress", *compress_options(folder, compressed)]) == 0
    assert {path.name: path.read_bytes() for path in compressed.iterdir() if path.is_file()} == written


def _stages(out):
    return [out, *(out / "training" / stage for stage in ("teacher", "reduced", "student"))]


def test_overwrite_replaces_another_run(folder, tmp_path):
    out = tmp_path / "out"
    quick = ["--max_steps=2", "--selection_share=0.2"]
    assert main(["compress", *compress_options(folder, out), *quick]) == 0
    first = json.loads((out / "metrics.json").read_text())
    assert main(["compress", *compress_options(folder, out), *quick, "--weights=ternary", "--overwrite"]) == 0
    second = json.loads((out / "metrics.json").read_text())
    assert (first["recipe"]["weights"], second["recipe"]["weights"]) == ("binary", "ternary")
    assert not list(out.rglob(".*")), "no lock and no scratch"


def test_a_run_that_replaces_another_and_is_stopped_leaves_no_packed_file(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    (out / "training").mkdir(parents=True)
    (out / "training" / "run.json").write_text('{"seed": 1}')
    for name in ("config.json", "model.safetensors", "README.md", "metrics.json"):
        (out / name).write_text("another run's")
    monkeypatch.setattr(XTCTrainer, "train", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        main(["compress", *compress_options(folder, out), "--overwrite"])
    assert [path.name for path in out.iterdir()] == ["training"]


def test_what_the_run_reads_is_not_overwritten(folder, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(folder / "base", out / "training" / "teacher")
    (out / "training" / "run.json").write_text('{"seed": 1}')
    options = [*compress_options(folder, out), f"--teacher={out / 'training' / 'teacher'}", "--overwrite"]
    assert main(["compress", *options]) == 1
    teacher = out / "training" / "teacher"
    message = f"--overwrite would replace {teacher}, which the run reads. Give another --output_dir."
    assert message in capsys.readouterr().err
    assert (out / "training" / "teacher" / "model.safetensors").exists()


def test_schedule_runs_its_stages_and_chooses_a_learning_rate_on_held_out_rows(folder, tmp_path):
    out = tmp_path / "out"
    options = [*compress_options(folder, out), "--schedule=ternary-first", "--selection_share=0.2"]
    assert main(["compress", *options, "--learning_rates", "1e-9", "2e-3", "--num_train_epochs=6"]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert [row["model"] for row in metrics["rows"]] == [
        *["teacher", "layer-reduced student", "ternary student", "binary student", "packed file, reloaded"]
    ]
    stages = metrics["provenance"]["stages"]
    assert [stage["stage"] for stage in stages] == ["reduced", "ternary", "student"]
    assert [entry["learning_rate"] for entry in stages[2]["tried"]] == [1e-9, 2e-3]
    scores = [entry["accuracy"] for entry in stages[2]["tried"]]
    assert stages[2]["learning_rate"] == [1e-9, 2e-3][scores.index(max(scores))]
    assert stages[2]["selection"]["accuracy"] == max(scores)
    assert metrics["provenance"]["held_out_rows"] == 51
    assert metrics["selection"] == "the last step, of 2 learning rates the best on train rows held out"
    tried = out / "training" / "student" / "lr-1e-09" / "receipt.json"
    assert json.loads(tried.read_text())["metrics"] == {}, "a rate that was only tried saw the validation rows"


def test_augmented_rows_teach_the_students_but_not_the_teacher(folder, tmp_path):
    out = tmp_path / "out"
    options = [*compress_options(folder, out), "--selection_share=0.1", "--augment", "--augmentation_copies=2"]
    assert main(["compress", *options, "--num_train_epochs=1"]) == 0
    provenance = json.loads((out / "metrics.json").read_text())["provenance"]
    rows = provenance["train_rows"] + provenance["augmented_rows"]
    assert provenance["augmented_rows"] > 100
    assert provenance["stages"][-1]["steps"] == -(-rows // 32)
    teacher = json.loads((out / "training" / "teacher" / "receipt.json").read_text())
    assert teacher["epochs"] == 10
    assert teacher["steps"] <= 10 * -(-provenance["train_rows"] // 32)


def test_learning_rates_are_not_chosen_on_validation_rows(folder, tmp_path, capsys):
    options = [*compress_options(folder, tmp_path / "out"), "--learning_rates", "1e-4", "1e-3"]
    assert main(["compress", *options]) == 1
    assert "no train rows are held out to choose on, and validation rows only report." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--keep_layers=9"], "keep_layers=9 does not fit a teacher of 4 layers. Keep between 1 and 4."),
        (
            ["--layers=1,4"],
            "layers=(1, 4) names teacher layer 4, but the teacher has 4 layers (0-3). Use LayerMap.skip(4, 2).",
        ),
        (["--weights=one"], "Unknown quantizer 'one'; registered: binary, int4, int8, ternary."),
        (["--label_column=stars"], "stars"),
        (
            ["--granularity=per_group", "--group_size=7"],
            "encoder.layer.0.attention.self.query: group_size=7 does not divide the 36 input columns",
        ),
        (["--validation_file=latin.csv"], "latin.csv"),
        (
            ["--resume_from_checkpoint=x"],
            "hf-xtc compress does not support --resume_from_checkpoint: a run that is started again with the same",
        ),
        (
            ["--push_to_hub", "--hub_model_id=a/b/c"],
            "hub_model_id='a/b/c' is no name of a repository: ",
        ),
        (
            ["--teacher_license=Apache 2.0"],
            "The licence 'Apache 2.0' is not named as on the Hub. Write it like",
        ),
        (["--push_to_hub", "--hub_strategy=checkpoint"], "hub_strategy='checkpoint' would publish checkpoints: float"),
    ],
    ids=[
        "too many layers",
        "layer out of range",
        "quantizer",
        "column",
        "group size",
        "file",
        "resume",
        "repository",
        "licence",
        "checkpoints",
    ],
)
def test_bad_input_ends_with_one_message_and_leaves_nothing(folder, tmp_path, capsys, options, message):
    out = tmp_path / "out"
    base = [f"--teacher={folder / 'base'}", "--fine_tune", f"--output_dir={out}", *data_options(folder), *QUICK]
    assert main(["compress", *base, *options]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not out.exists()


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_a_finished_run_is_published_and_verifies(hub, folder, tmp_path, capsys, monkeypatch):
    """Only the packed model is pushed, once, at the end; it has the card's scores on the same data."""
    out = tmp_path / "out"
    options = [f"--teacher={folder / 'teacher'}", f"--output_dir={out}", "--keep_layers=2", "--max_steps=2", *QUICK]
    publishing = ["--push_to_hub", "--hub_model_id=reviews", "--hub_private_repo=true", "--teacher_license=mit"]
    assert main(["compress", *options, *data_options(folder), *publishing]) == 0
    repo = hub.repos["user/reviews"]
    assert repo.private
    (commit,) = repo.branches["main"][1:]
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} < set(commit.files)
    assert not [path for path in commit.files if "training" in path or path == "metrics.json"]
    assert commit.files["model.safetensors"] == (out / "model.safetensors").read_bytes()
    published = commit.files["README.md"].decode()
    assert 'pipeline("text-classification", "user/reviews")' in published
    for card in (published, (out / "README.md").read_text(encoding="utf-8")):
        monkeypatch.chdir(out)
        names = {}
        exec(compile(*blocks(card, "python"), "card", "exec"), names)
        assert names["pipe"]("a good film")[0]["label"] in ("positive", "negative")
    ModelCard(published).validate()
    assert "license: mit\n" in published
    assert "- teacher: teacher\n- teacher license: mit\n" in published
    capsys.readouterr()
    assert main(["verify", "user/reviews", *data_options(folder), "--max_length=32"]) == 0
    told = capsys.readouterr().out
    assert told.count("ok") >= 5
    assert "DIFFERS" not in told
    assert "accuracy" in told


def test_teacher_of_an_unknown_family_is_refused(folder, tmp_path, capsys):
    config = ErnieConfig(vocab_size=len(VOCAB), **SHAPE)
    ErnieForSequenceClassification(config).save_pretrained(tmp_path / "ernie")
    options = [f"--teacher={tmp_path / 'ernie'}", f"--output_dir={tmp_path / 'out'}", *data_options(folder)]
    assert main(["compress", *options]) == 1
    assert "XTC does not know the model type 'ernie'; it compresses albert, bert, " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["distilbert", "mpnet", "modernbert"])
def test_teacher_of_another_family(family, folder, tmp_path, capsys):
    changes = {} if family == "distilbert" else {"vocab_size": len(VOCAB)}
    config = make_config(family, **changes, pad_token_id=0, num_labels=2)
    config.vocab_size, config.id2label = len(VOCAB), {0: "positive", 1: "negative"}
    config.label2id = {"positive": 0, "negative": 1}
    set_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "teacher")
    tokenizer = AutoTokenizer.from_pretrained(folder / "teacher")
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(tmp_path / "teacher")
    out = tmp_path / "out"
    options = [f"--teacher={tmp_path / 'teacher'}", f"--output_dir={out}", "--keep_layers=2", "--max_steps=2"]
    assert main(["compress", *options, f"--teacher_cache={tmp_path / 'cache'}", *data_options(folder), *QUICK]) == 0
    card = (out / "README.md").read_text(encoding="utf-8")
    name = {"distilbert": "DistilBERT", "mpnet": "MPNet", "modernbert": "ModernBERT"}[family]
    assert f"A 2-layer {name} with binary weights" in card
    model = AutoModelForSequenceClassification.from_pretrained(out)
    made_of = ledger(model.config)
    file = (out / "model.safetensors").read_bytes()
    assert len(file) == made_of.total_bytes + 8 + int.from_bytes(file[:8], "little")
    capsys.readouterr()
    for command in ("inspect", "verify", "report"):
        assert main([command, str(out)]) == 0
    assert type(model).__name__ in capsys.readouterr().out
    exported = main(["export", "--model", str(out), "--output_dir", str(tmp_path / "onnx")])
    if family == "modernbert":
        assert exported == 1
        assert "cannot be exported, since modernbert runs layer by layer" in capsys.readouterr().err
    else:
        assert exported == 0
        assert (tmp_path / "onnx" / "model.onnx").is_file()


def test_stages_share_a_teacher_cache(folder, tmp_path, caplog):
    """The last student reads the cache that the layer-reduced one wrote; fine-tuning the teacher needs none."""
    cache = tmp_path / "cache"
    options = [f"--teacher={folder / 'base'}", f"--output_dir={tmp_path / 'out'}", "--fine_tune", "--keep_layers=2"]
    options += [f"--teacher_cache={cache}", "--teacher_cache_dtype=int8", "--max_steps=2"]
    with caplog.at_level("INFO", logger="hf_xtc.distillation.cache.making"):
        assert main(["compress", *options, *data_options(folder), *QUICK]) == 0
    told = [message for message in caplog.messages if message.startswith("The teacher cache")]
    assert len(told) == 1
    found = json.loads((cache / "cache.json").read_text())
    assert sum(shard["rows"] for shard in found["shards"]) == 256
    assert found["layers"] == {"attentions": [1, 3], "hidden_states": [0, 2, 4]}


def test_the_students_vocabulary_is_that_of_the_train_rows(folder, tmp_path):
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
    vocabulary = {word: i for i, word in enumerate([*VOCAB, *letters, "zebra", "quartz"])}
    set_seed(0)
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=40, **SHAPE)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "teacher")
    BertTokenizerFast(vocab=vocabulary, model_max_length=40).save_pretrained(tmp_path / "teacher")
    rows = pd.read_csv(folder / "validation.csv")
    rows.loc[0, "text"] = "zebra"  # a word that no train row has
    rows.to_csv(tmp_path / "validation.csv", index=False)
    options = [
        f"--teacher={tmp_path / 'teacher'}",
        f"--train_file={folder / 'train.csv'}",
        "--schedule=direct",
        *QUICK,
    ]
    options += [f"--validation_file={tmp_path / 'validation.csv'}", "--keep_layers=2", "--fine_tune"]
    runs = {}
    for name, more in (("whole", []), ("trimmed", ["--trim_vocabulary=1"])):
        assert main(["compress", *options, f"--output_dir={tmp_path / name}", *more]) == 0
        runs[name] = json.loads((tmp_path / name / "metrics.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "trimmed")
    assert set(vocabulary) - set(tokenizer.get_vocab()) == {"zebra", "quartz"}
    assert tokenizer.tokenize("a zebra movie") == ["a", "z", "##e", "##b", "##r", "##a", "movie"]
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "trimmed")
    assert model.config.vocab_size == len(vocabulary) - 2
    assert runs["trimmed"]["provenance"]["vocabulary"] == len(vocabulary) - 2
    assert runs["trimmed"]["rows"][0] == runs["whole"]["rows"][0], "the teacher is measured with all of its tokens"
    assert runs["trimmed"]["rows"][-1]["bytes"] < runs["whole"]["rows"][-1]["bytes"]
    card = " ".join((tmp_path / "trimmed" / "README.md").read_text(encoding="utf-8").split())
    assert f"vocabulary: {len(vocabulary) - 2}" in card


def test_a_target_of_bytes_chooses_the_student(folder, tmp_path, caplog, capsys):
    """The file has the bytes that were promised; what is given stays; what cannot be is refused before training."""
    options = [f"--teacher={folder / 'teacher'}", *data_options(folder), *QUICK, "--schedule=direct"]
    out = tmp_path / "small"
    with caplog.at_level("INFO", "hf_xtc.runs.job"):
        assert (
            main(["compress", *options, f"--output_dir={out}", "--target_bytes=24kB", "--embedding_weights=int8"]) == 0
        )
    (line,) = [record.getMessage() for record in caplog.records if "target_bytes" in record.getMessage()]
    written = (out / "model.safetensors").stat().st_size
    assert written <= 24_000
    assert line.startswith(f"--target_bytes=24kB: the best student that fits has {written:,} bytes: ")
    recipe = AutoModelForSequenceClassification.from_pretrained(out).config.recipe
    assert (recipe.embedding_weights, recipe.weights, recipe.keep_layers) == ("int8", "ternary", 3)
    assert json.loads((out / "metrics.json").read_text())["provenance"]["job"]["target_bytes"] == "24kB"
    for more, message in (
        (["--target_bytes=5kB"], "too few: the smallest student"),
        (["--target_bytes=24kB", "--trim_vocabulary=1", "--augment"], "cannot count the tokens"),
    ):
        capsys.readouterr()
        assert main(["compress", *options, f"--output_dir={tmp_path / 'none'}", *more]) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "none").exists()
