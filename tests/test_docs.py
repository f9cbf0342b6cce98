"""The examples of docs/ run: in this process, on the command line, and where hf_xtc cannot be imported."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import blocks, commands

import check_reference
import hf_xtc
import rooms
from hf_xtc import ARCHITECTURES, BACKENDS, TERMS
from hf_xtc import QUANTIZERS as QUANTIZER_TABLE
from hf_xtc.cli import main
from hf_xtc.reader import QUANTIZERS
from hf_xtc.tasks import TASKS

ROOT = Path(__file__).parent.parent
PAGES = ("format", "extending", "how-to", "web")
FORMAT, EXTENDING, HOW_TO, WEB = (ROOT / "docs" / f"{name}.md" for name in PAGES)


def test_extensions_work_as_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    registries = (QUANTIZER_TABLE, TERMS, BACKENDS, ARCHITECTURES, TASKS)
    before = [dict(registry) for registry in registries]
    try:
        names = {"__name__": "extending"}
        for block in blocks(EXTENDING, "python"):
            quick = block.replace("max_steps=2", "max_steps=2, use_cpu=True, report_to='none', save_strategy='no'")
            exec(compile(quick, "extending.md", "exec"), names)
    finally:
        for registry, known in zip(registries, before, strict=True):
            registry.clear()
            registry.update(known)
    assert names["trainer"].state.global_step == 2
    query = names["loaded"].ernie.encoder.layer[1].attention.self.query
    assert query.weight_packed.dtype == torch.uint8
    assert "encoder codes" in capsys.readouterr().out


def test_python_blocks_run_in_order(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    names = {}
    for block in blocks(FORMAT, "python"):
        exec(compile(block, "format.md", "exec"), names)
    assert len(set(map(abs, names["weights"]))) == 1
    assert names["logits"].argmax() == 0
    assert "'label': 'positive'" in capsys.readouterr().out


def test_last_block_runs_without_the_package(tmp_path):
    absent = 'import sys\nsys.modules["hf_xtc"] = None\n'
    done = subprocess.run(
        [sys.executable, "-c", absent + blocks(FORMAT, "python")[-1]],
        cwd=ROOT,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert "'label': 'positive'" in done.stdout, done.stderr


@pytest.mark.parametrize("words", commands(FORMAT), ids=" ".join)
def test_commands_run(words):
    assert words[0] == "python"
    done = subprocess.run([sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()


def test_cold_starts_are_those_of_the_results():
    models = {"bert-base-12": "BERT-base, 12 layers", "minilm-6": "MiniLM, 6 layers"}
    names = {"runtime": "`hf_xtc.runtime`", "onnxruntime": "ONNX Runtime, dynamic int8", "auto": "`auto` in PyTorch"}
    page = (ROOT / "docs" / "runtime.md").read_text(encoding="utf-8")
    for row in json.loads((ROOT / "benchmarks" / "results" / "cold_start.json").read_text(encoding="utf-8"))["rows"]:
        cells = [models[row["model"]], names[row["runtime"]]]
        cells += [f"{row[key]:.2f} s" for key in ("import_seconds", "first_answer_seconds")]
        cells += [f"{row['megabytes_above_imports']:.1f} MB", f"{row['peak_megabytes']:.0f} MB"]
        assert f"| {' | '.join(cells)} |" in page


def test_the_page_on_browsers_states_the_results():
    def results(name):
        return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))

    page = WEB.read_text(encoding="utf-8")
    load, speed, logits, kept = (results(name) for name in ("web_load", "web", "web_logits", "vocabulary"))
    names = ("exported page, MiniLM of 3 layers, 1 bit", "transformers.js, MiniLM of 6 layers, int8")
    for name, row in zip(names, load["rows"], strict=True):
        assert f"| {name} | {row['bytes'] / 1e6:.2f} MB | {row['seconds']:.2f} s |" in page
    assert f"medians of {load['repeats']} fresh browsers" in page
    assert (speed["model"], load["peer_model"]) == ("minilm-3", "minilm-6")
    for shape, cells in speed["milliseconds"].items():
        times = [cells["medians"][name] for name in ("ours_relaxed", "ours", "onnxruntime_web")]
        assert f"| {shape.replace('x', ' x ')} | {' | '.join(f'{time:.1f}' for time in times)} |" in page
    rows = logits["rows"]
    assert {(row["place"], row["wasm"]) for row in rows} == {
        (place, wasm) for place in ("node", "chromium") for wasm in ("xtc.wasm", "xtc-relaxed.wasm")
    }
    assert not any(row["broken"] for row in rows)
    texts, worst = {row["texts"] for row in rows}, max(row["largest_difference"] for row in rows)
    assert f"On {texts.pop():,} texts" in page
    assert f"differ by {worst:.0e}".replace("e-0", "e-") in page
    tokens = next(row for row in rows if row.get("classes", 0) > row["texts"])
    assert f"of {tokens['different_classes']} of {tokens['classes']:,} tokens" in page
    fuzzed = [results("web_fuzz"), results("web_fuzz_relaxed")]
    assert [found["broken"] for found in fuzzed] == [0, 0]
    assert f"{sum(found['inputs'] for found in fuzzed):,} damaged models" in page
    counts = [f"{count:,} with N = {n}" for n, count in kept["kept"].items()]
    assert f"{kept['texts']:,} rows {', '.join(counts[:-1])} and {counts[-1]}" in page.replace("\n", " ")
    assert f"{kept['tokens']:,} rows" in page


@pytest.mark.parametrize(
    "format, page", [("transformers.js", "docs/web.md"), ("transformers", "docs/command-line.md")]
)
def test_sizes_of_the_exported_example_are_as_stated(format, page, tmp_path):
    example = ROOT / "examples" / "minilm-3l-1bit-sst2"
    assert main(["export", f"--model={example}", f"--format={format}", f"--output_dir={tmp_path / 'out'}"]) == 0
    (file,) = [*(tmp_path / "out").rglob("*.onnx"), *(tmp_path / "out").glob("*.safetensors")]
    text = (ROOT / page).read_text(encoding="utf-8")
    assert f"{file.stat().st_size:,} bytes" in text
    assert f"{(example / 'model.safetensors').stat().st_size:,}" in text


def test_the_page_on_browsers_runs(tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.chdir(tmp_path)
    example = str(ROOT / "examples" / "minilm-3l-1bit-sst2")
    assert main(["export", "--model", example, "--format", "openvino", "--output_dir", "student-openvino"]) == 0
    (block,) = blocks(WEB, "python")
    names = {}
    exec(compile(block, "web.md", "exec"), names)
    assert names["logits"].shape == (1, 2)


def test_speeds_are_those_of_the_results():
    def results(name):
        return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))

    families, page = results("family_speed"), (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    ratios = [ways["layer by layer / native"] for ways in families["ms"].values()]
    assert f"one call is {min(ratios):.2f} to {max(ratios):.2f} times as fast" in page
    assert f"MPNet takes {families['mpnet / bert']:.2f} times as long as BERT" in page
    page = (ROOT / "docs" / "sizes-and-speed.md").read_text(encoding="utf-8")
    parts = {(c["model"], c["shape"]): c["milliseconds"] for c in results("split")["cells"]}
    large, small = parts["bert-base-5", "1x128"], parts["minilm-6", "1x128"]
    rest, python = large["native call"] - large["products"], large["forward"] - large["native call"]
    for figure in (
        f"128 tokens take {large['forward']:.1f} ms, of which products take {large['products']:.1f}, ",
        f"(attention, GELU, LayerNorm, pooler, head) {rest:.1f} and Python {python:.1f}.",
        f"PyTorch's integer product {large['int_mm']:.1f} ms",
        f"({small['forward']:.1f} ms against\n{small['int_mm']:.1f})",
    ):
        assert figure in page


def test_python_of_the_how_to_runs(tiny_teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_teacher.save_pretrained("my-fine-tuned-bert")
    example = str(ROOT / "examples" / "minilm-3l-1bit-sst2")
    assert main(["export", "--model", example, "--output_dir", "student-onnx"]) == 0
    for block in blocks(HOW_TO, "python"):
        if "SentenceTransformer" not in block:  # an embedder's, as in tests/tasks/test_sentence_embedding.py
            exec(compile(block, "how-to.md", "exec"), {})
    assert (tmp_path / "student" / "model.safetensors").is_file()


def test_the_page_of_the_runtime_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    names = {}
    for block in blocks(ROOT / "docs" / "runtime.md", "python"):
        exec(compile(block, "runtime.md", "exec"), names)
    assert names["vectors"].shape == (2, 384)
    assert [found["label"] for found in names["handler"]({"texts": ["moving", "dull"]}, None)] == [
        "positive",
        "negative",
    ]


def test_page_states_what_the_package_packs():
    page = FORMAT.read_text(encoding="utf-8")
    for name, codes in QUANTIZERS.items():
        value = f"{codes.step if codes.step > 1 else ''}*c* - {-codes.first}"
        bits = f"{8 / codes.per_byte:g}"
        assert f"| `{name}` | {codes.levels} | {codes.per_byte} | {value} | {bits} |" in page


def test_contributing_lists_the_rooms_in_their_order():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = page[page.index("| room |") : page.index("Tests are in")]
    names = [name for row in re.findall(r"^\| (`.*?) \|", table, flags=re.M) for name in re.findall(r"`(\w+)", row)]
    assert names == [*rooms.ORDER, *rooms.ALONE]


def test_the_reference_has_every_public_name():
    assert {f"hf_xtc.{name}" for name in hf_xtc.__all__} <= check_reference.shown()
