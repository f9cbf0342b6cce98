"""The README's Python runs as written, its commands parse, its sizes are the ledger's, its scores the results'."""

import importlib
import json
import re
from pathlib import Path

import pytest
from commands import blocks, commands, parse
from datasets import Dataset
from transformers import BertConfig, BertTokenizerFast

from hf_xtc import XTCRecipe, ledger

EXAMPLES = Path(__file__).parent.parent / "examples"
PAGE = Path(__file__).parent.parent / "README.md"
README = PAGE.read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's way with its HTTP client
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
def test_python_blocks_run_in_order(hub, tiny_teacher, tmp_path, monkeypatch, capsys):
    """With a tiny teacher under the README's name, and one step instead of three epochs."""
    monkeypatch.chdir(tmp_path)
    tiny_teacher.save_pretrained("my-fine-tuned-bert")
    vocab = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film"])}
    BertTokenizerFast(vocab=vocab).save_pretrained("my-fine-tuned-bert")
    rows = {"input_ids": [[2, 5, 6, 3]] * 4, "attention_mask": [[1] * 4] * 4, "labels": [0, 1, 2, 0]}
    names = {"tokenized": Dataset.from_dict(rows)}
    for block in blocks(PAGE, "python"):
        quick = block.replace("keep_layers=5", "keep_layers=2").replace(
            "num_train_epochs=3", "max_steps=1, use_cpu=True"
        )
        quick = quick.replace('"examples/', f'"{EXAMPLES}/')
        exec(compile(quick, "README.md", "exec"), names)
    assert names["classify"]("good film")[0]["label"] == "positive", "the example of the repository"
    printed = capsys.readouterr().out
    assert "'label': 'positive'" in printed
    assert "times smaller than in float32" in printed
    assert names["anywhere"]("good film")[0]["label"].startswith("LABEL_")
    assert set(hub.repos) == {"user/student"}


@pytest.mark.parametrize("words", commands(PAGE), ids=" ".join)
def test_commands_parse(words, monkeypatch):
    if words[0] == "make":
        makefile = (PAGE.parent / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{words[1]}:", makefile, flags=re.M)
    elif words[0] == "python":
        monkeypatch.syspath_prepend(str(EXAMPLES))
        glue = importlib.import_module("glue")
        monkeypatch.setattr(glue, "base_encoder", lambda folder: "base")
        assert words[1] == "examples/glue.py"
        assert glue.parse([*words[2:], "--use_cpu"])[1].fine_tune
    else:
        assert words[0] == "hf-xtc"
        parse(words)


@pytest.mark.parametrize(
    "row, recipe",
    [
        ("| 12 | binary | default | {} |", XTCRecipe()),
        ("| 5 | binary | default | {} |", XTCRecipe(keep_layers=5)),
        ("| 5 | ternary |", XTCRecipe(weights="ternary", keep_layers=5)),
        ("| 5 | ternary (embedding too)", XTCRecipe(weights="ternary", embedding_weights="ternary", keep_layers=5)),
        ("| 12 | binary | `XTCRecipe.paper()`", XTCRecipe.paper()),
    ],
    ids=["12 binary", "5 binary", "5 ternary", "5 all ternary", "12 paper"],
)
def test_size_table_states_the_ledger(row, recipe):
    """To the table's two decimals, the header (14 to 32 kB) included."""
    found = ledger(BertConfig(), recipe)
    line = next(line for line in README.splitlines() if line.startswith(row.split("{}")[0]))
    megabytes = float(line.split("|")[4])
    assert found.total_bytes + 13_000 <= megabytes * 1e6 + 5_000
    assert megabytes * 1e6 - 5_000 <= found.total_bytes + 33_000
    assert line.split("|")[5].strip() == f"{437_935_112 / (megabytes * 1e6):.0f}x"


TASKS = {
    "sst2": "SST-2, accuracy",
    "mrpc": "MRPC, F1",
    "cola": "CoLA, Matthews",
    "stsb": "STS-B, Pearson",
    "rte": "RTE, accuracy",
    "banking77": "BANKING77, accuracy",
}


@pytest.fixture(scope="module")
def scores():
    """Of each task, kind and depth the teacher's and the packed file's score."""
    lines = (EXAMPLES.parent / "benchmarks" / "results" / "checkpoints.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert {record["seed"] for record in records} == {1}, "with more seeds the page shows means"
    return {
        (record["task"], record["weights"], record["layers"]): (record["teacher"], record["packed"])
        for record in records
    }


@pytest.mark.parametrize("task", TASKS)
def test_score_table_states_the_results(task, scores):
    cells = []
    for kind in (("binary", 6), ("binary", 3), ("ternary", 6)):
        teacher, packed = scores.get((task, *kind), (1.0, None))
        cells.append("-" if packed is None else f"{packed:.3f} ({packed / teacher:.1%})")
    assert f"| {TASKS[task]} | {scores[task, 'binary', 6][0]:.3f} | {' | '.join(cells)} |" in README


def test_the_last_row_is_what_is_kept_of_the_teachers_mean(scores):
    kept = []
    for kind in (("binary", 6), ("binary", 3), ("ternary", 6)):
        found = [scores[(task, *kind)] for task in TASKS if task != "banking77" and (task, *kind) in scores]
        kept.append(f"{sum(packed for _, packed in found) / sum(teacher for teacher, _ in found):.1%}")
    assert f"| mean of the GLUE tasks, kept | | {' | '.join(kept)} |" in README


def test_the_example_is_scored_as_its_results_say(scores):
    teacher, packed = scores["sst2", "binary", 3]
    assert f"accuracy {packed:.3f} on the dev split against the teacher's {teacher:.3f}" in README
