"""The README's Python runs as written, its commands parse, and its figures are those of the committed results."""

import json
import re
from pathlib import Path

import datasets
import pytest
from commands import blocks, commands, parse
from datasets import Dataset
from transformers import BertConfig, BertTokenizerFast

from hf_xtc import XTCRecipe, ledger

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = {
    page.relative_to(ROOT).as_posix(): page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
README = PAGES["README.md"].read_text(encoding="utf-8")
SIZES = PAGES["docs/sizes-and-speed.md"].read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's way with its HTTP client
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
def test_python_blocks_run_in_order(hub, tiny_teacher, tmp_path, monkeypatch, capsys):
    """Blocks of the README, then of the pages that continue it, with a tiny teacher, a few rows and one step."""
    monkeypatch.chdir(tmp_path)
    tiny_teacher.save_pretrained("your-name/bert-sst2")
    vocab = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film"])}
    BertTokenizerFast(vocab=vocab).save_pretrained("your-name/bert-sst2")
    rows = Dataset.from_dict({"sentence": ["good film", "film"] * 2, "label": [0, 1, 2, 0], "idx": [0, 1, 2, 3]})
    monkeypatch.setattr(datasets, "load_dataset", lambda name, task, split: rows)
    names = {}
    for name in ("README.md", "docs/sizes-and-speed.md", "docs/publishing.md", "docs/adapters.md"):
        for block in blocks(PAGES[name], "python"):
            quick = block.replace("keep_layers=5)\n", "keep_layers=2)\n").replace(
                "keep_layers=5))\n", "keep_layers=2))\n"
            )
            quick = quick.replace(
                'XTCTrainingArguments("student")', 'XTCTrainingArguments("student", max_steps=1, use_cpu=True)'
            )
            quick = quick.replace('"examples/', f'"{ROOT}/examples/')
            exec(compile(quick, name, "exec"), names)
        if name == "README.md":
            assert names["trainer"].state.global_step == 1
            assert names["classify"]("good film")[0]["label"] == "positive", "the example of the repository"
            assert "'label': 'positive'" in capsys.readouterr().out
    assert "times smaller than in float32" in capsys.readouterr().out
    assert names["anywhere"]("good film")[0]["label"].startswith("LABEL_")
    assert set(hub.repos) == {"user/student"}


@pytest.mark.parametrize(
    "words", [words for page in PAGES.values() for words in commands(page)], ids=lambda words: " ".join(words)
)
def test_commands_exist(words):
    """Commands of `hf-xtc` parse, targets of make are in the Makefile, and scripts exist."""
    words = [word for word in words if not re.fullmatch(r"[A-Z_]+=\S*", word)]
    if words[0] == "hf-xtc":
        parse(words)
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
    elif words[0] == "python" and words[1].endswith(".py"):
        assert (ROOT / words[1]).is_file() or words[1] == "train.py", "a script of the reader's own"
    else:
        assert words[0] in ("pip", "python", "torchrun", "accelerate")


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
    line = next(line for line in SIZES.splitlines() if line.startswith(row.split("{}")[0]))
    megabytes = float(line.split("|")[4])
    assert found.total_bytes + 13_000 <= megabytes * 1e6 + 5_000
    assert megabytes * 1e6 - 5_000 <= found.total_bytes + 33_000
    assert line.split("|")[5].strip() == f"{437_935_112 / (megabytes * 1e6):.0f}x"


RUNTIMES = {"PyTorch float32": "torch_fp32", "ONNX Runtime int8": "ort_int8", "hf_xtc 1 bit": "ours_auto"}


def milliseconds(seconds):
    """Rounds as benchmarks/latency/report.py does."""
    return f"{seconds * 1e3:.{1 if seconds < 1 else 0}f} ms"


def test_speed_table_states_the_results():
    measured = json.loads((RESULTS / "inference.json").read_text(encoding="utf-8"))
    rows = re.findall(r"^\| (\d+) layers, ([^|]+) \| (.+) \|$", README, flags=re.M)
    assert len(rows) == 5
    for layers, name, cells in rows:
        own = {"model": f"bert-base-{layers}", "runtime": RUNTIMES[name]}
        (process,) = (entry for entry in measured["processes"] if own.items() <= entry.items())
        times = {
            entry["shape"]: entry["median_seconds"] for entry in measured["latency"] if own.items() <= entry.items()
        }
        assert cells.split(" | ") == [
            f"{process['file_bytes'] / 1e6:.1f} MB",
            f"{(process['peak_bytes'] - process['imports_bytes']) / 1e6:.0f} MB",
            milliseconds(times["1x16"]),
            milliseconds(times["8x128"]),
        ]
    assert measured["cpu"] in README
    assert f"{measured['threads']} threads" == "2 threads"


@pytest.fixture(scope="module")
def scores():
    """Task, weights and depth -> the scores of the teacher and of the packed file."""
    lines = (RESULTS / "checkpoints.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert {record["seed"] for record in records} == {1}, "with more seeds the page shows means"
    return {
        (record["task"], record["weights"], record["layers"]): (record["teacher"], record["packed"])
        for record in records
    }


@pytest.mark.parametrize("layers, words", [(6, "(3.2 MB) keep {} of"), (3, "(2.5 MB) {};")])
def test_share_of_the_teachers_mean_is_that_of_the_results(scores, layers, words):
    found = [scores[task, "binary", layers] for task in ("sst2", "mrpc", "cola", "stsb", "rte")]
    kept = sum(packed for _, packed in found) / sum(teacher for teacher, _ in found)
    assert words.format(f"{kept:.1%}") in README


def test_the_example_is_scored_as_its_results_say(scores):
    teacher, packed = scores["sst2", "binary", 3]
    assert f"accuracy {packed:.3f} on the dev split against the teacher's {teacher:.3f}" in README
