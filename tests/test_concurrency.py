"""Concurrency: processes with one run, threads with one model, workers with one teacher cache; nothing is built."""

import ast
import os
import shutil
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from lock_holder import hold
from trainers import assert_equal_states, make_trainer

import hf_xtc
from hf_xtc import BACKENDS, XTCRecipe, compress, pack_model
from hf_xtc.cli import main
from hf_xtc.native.library import library, variant


def test_the_second_of_two_runs_at_a_folder_refuses_in_one_sentence(tmp_path, capsys):
    (tmp_path / "train.csv").write_text("text,label\n")
    out = tmp_path / "out"
    out.mkdir()
    data = [f"--train_file={tmp_path / 'train.csv'}", f"--validation_file={tmp_path / 'train.csv'}", "--use_cpu"]
    with hold(out) as holder:
        assert main(["compress", "--teacher=none", f"--output_dir={out}", "--overwrite", *data]) == 1
        holder.kill()
    error = capsys.readouterr().err
    assert error.startswith(f"hf-xtc: The folder {out} is in use by another run (process {holder.pid} on ")
    assert error.endswith("); wait for its end, or give another --output_dir.\n")
    assert error.count("\n") == 1
    left = {path.name for path in out.iterdir()}
    assert left == {".lock", ".lock_holder"}, "the holder was killed; nothing else was written"


@pytest.mark.parametrize("weights", ["binary", "ternary", "int4", "int8"])
@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_threads_that_predict_on_one_model_get_the_same_bits(backend, weights, tiny_teacher, tiny_batch):
    """All threads start the first forward of a new model together, which prepares its weights."""
    latent = compress(tiny_teacher, XTCRecipe(weights=weights, keep_layers=2)).eval()
    alone, shared = pack_model(latent).eval(), pack_model(latent).eval()
    alone.set_backend(backend)
    shared.set_backend(backend)
    batches = [tiny_batch, {name: tensor[:1] for name, tensor in tiny_batch.items()}]
    with torch.no_grad():
        expected = [alone(**batch).logits for batch in batches]
    found, together = [], threading.Barrier(4)

    def predict():
        together.wait()
        with torch.no_grad():
            for _ in range(4):
                found.append([shared(**batch).logits for batch in batches])

    threads = [threading.Thread(target=predict) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    assert all(torch.equal(a, b) for logits in found for a, b in zip(logits, expected, strict=True))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_read_the_teacher_cache_to_the_same_weights_forked_and_spawned(tmp_path):
    pytest.importorskip("transformers", minversion="5.20", reason="cannot choose how workers are started")
    cache = str(tmp_path / "cache")

    def weights(name, **options):
        trainer = make_trainer(tmp_path / name, teacher_cache=cache, max_steps=3, **options)
        trainer.train()
        return trainer.model.state_dict()

    alone = weights("alone")
    for context, workers in (("fork", 2), ("spawn", 1)):
        options = {"dataloader_num_workers": workers, "dataloader_multiprocessing_context": context}
        assert_equal_states(weights(context, **options), alone)


def test_nothing_is_built_when_the_package_runs():
    """The operator is built only by pip with `setup.py`, which is not in the package."""
    builders = {"setuptools", "distutils", "cffi", "torch.utils.cpp_extension", "torch.utils"}
    for path in Path(hf_xtc.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom | ast.Import):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert not builders & set(names), path
    assert variant() is None or os.environ.get("XTC_NATIVE") != "off"


@pytest.mark.skipif(
    find_spec("setuptools") is None or find_spec("setuptools.command.bdist_wheel") is None,
    reason="builds without the network need setuptools 70.1 here",
)
def test_two_installations_of_one_checkout_at_once_install_the_same(tmp_path):
    checkout = tmp_path / "checkout"
    package = Path(hf_xtc.__file__).parent
    shutil.copytree(package, checkout / package.name, ignore=shutil.ignore_patterns("_native*", "__pycache__"))
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(package.parent / name, checkout)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    command += ["--no-deps", "--no-build-isolation", "--no-compile", str(checkout), "--target"]
    targets = [tmp_path / "first", tmp_path / "second"]
    both = [subprocess.Popen([*command, str(target)], stderr=subprocess.PIPE, text=True) for target in targets]
    for one in both:
        error = one.communicate()[1]
        assert one.returncode == 0, error
    first, second = (
        {file.relative_to(target): file.read_bytes() for file in target.rglob("*") if file.is_file()}
        for target in targets
    )
    assert first == second
    assert {path.stem.split(".")[0] for path in first} > {"quantizers", "modeling_xtc"}
    assert any("_native" in path.name for path in first) == (library() is not None)
