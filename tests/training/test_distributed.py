"""Two processes, on CPU with gloo, train like one process with twice the accumulation, under DDP, FSDP2 and ZeRO.

Each launch of `distributed_worker.py` is shared by several tests, since starting processes is slow.
"""

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from distributed_worker import DDP_RUNS, STATIC, UNEVEN, ZERO_STAGES, batches, ddp_options
from safetensors.torch import load_file
from task_cases import trainer_options
from trainers import logged, make_data, make_trainer

from hf_xtc.compression.convert import pack_model
from hf_xtc.files.writing import last_checkpoint
from hf_xtc.modeling.bert import XTCBertForSequenceClassification
from hf_xtc.tasks import TASKS

pytestmark = pytest.mark.usefixtures("one_thread")

TESTS = Path(__file__).parent.parent


def launch(part, folder, **environment):
    """Runs a part of the worker in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths, **environment}
    return subprocess.run(
        [*command, str(TESTS / "training" / "distributed_worker.py"), part, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,  # seconds suffice where the processor is free
    )


def assert_close(found, expected, atol=1e-6):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        difference = (found[name].double() - tensor.double()).abs().max().item()
        assert difference <= atol, f"{name}: {difference}"


@pytest.fixture(scope="module")
def ddp_folder(tmp_path_factory):
    """Results of the part of the worker with `DDP_RUNS`, from two processes."""
    folder = tmp_path_factory.mktemp("ddp")
    done = launch("ddp", folder)
    assert done.returncode == 0, done.stderr[-8000:]
    return folder


# Data parallelism


@pytest.mark.parametrize("name", DDP_RUNS)
def test_two_processes_are_one_with_twice_the_accumulation(tmp_path, ddp_folder, name):
    """Compares losses, weights, static ranges and metrics; both processes have the same."""
    options = ddp_options(name, tmp_path)
    options["gradient_accumulation_steps"] = 2 * options.get("gradient_accumulation_steps", 1)
    trainer = make_trainer(tmp_path / "alone", **options)
    trainer.train()
    found = json.loads((ddp_folder / name / "result.json").read_text())
    assert found["processes"] == 2
    expected = logged(trainer, "loss", "grad_norm", *trainer.args.term_weights)
    assert len(found["log"]) == len(expected) == 4
    for entry, alone in zip(found["log"], expected, strict=True):
        assert entry == pytest.approx(alone, rel=1e-6, abs=1e-6)
    states = [load_file(ddp_folder / name / f"state{rank}.safetensors") for rank in (0, 1)]
    assert_close(states[0], states[1], atol=0)
    assert_close(states[0], trainer.model.state_dict())
    # Nine rows in batches of four: the second process is given three of them again, and they count once.
    metrics, expected = found["metrics"], trainer.evaluate()
    assert metrics["eval_rows"] == UNEVEN
    assert metrics["eval_loss"] == pytest.approx(expected["eval_loss"], abs=1e-3)
    # Batches padded to another length: an activation may fall to the next level.
    torch.testing.assert_close(*(torch.tensor(m["eval_logits"]) for m in (metrics, expected)), rtol=0, atol=0.05)
    assert any(key.endswith("activation.range") for key in states[0]) == (name in ("static", "accumulated"))


@pytest.mark.parametrize("name", TASKS)
def test_every_task_trains_and_is_scored_in_two_processes(tmp_path, ddp_folder, name):
    folder = ddp_folder / "tasks" / name
    trainer = make_trainer(tmp_path, gradient_accumulation_steps=2, **trainer_options(name))
    trainer.train()
    found, expected = json.loads((folder / "result.json").read_text()), logged(trainer, "loss", *trainer.terms)
    assert len(found["log"]) == len(expected) == 4
    for entry, alone in zip(found["log"], expected, strict=True):
        assert entry == pytest.approx(alone, rel=1e-5, abs=1e-6)
    states = [load_file(folder / f"state{rank}.safetensors") for rank in (0, 1)]
    assert_close(states[0], states[1], atol=0)
    assert_close(states[0], trainer.model.state_dict(), atol=1e-5)
    metrics = trainer.evaluate()
    for key in metrics:
        if key.startswith("eval_") and not key.endswith(("_runtime", "_per_second", "_loss")):
            assert found["metrics"][key] == pytest.approx(metrics[key], abs=0.02), key


def test_one_process_writes(ddp_folder):
    """Each process had its own folder; the second writes nothing but its own random state."""
    written = {
        (name, path.relative_to(ddp_folder / name / "rank1").as_posix())
        for name in DDP_RUNS
        for path in (ddp_folder / name / "rank1").rglob("*")
        if path.is_file()
    }
    assert written == {("all_terms", "checkpoint-4/rng_state_1.pth")}
    for name in DDP_RUNS:
        packed = load_file(ddp_folder / name / "rank0" / "model.safetensors")
        assert ("bert.pooler.dense.weight_packed" in packed) == (name != "foreign")
    assert len(list((ddp_folder / "cached" / "cache").iterdir())) == 2


def test_rows_grouped_by_length_are_dealt_to_the_processes(ddp_folder):
    """165 rows, 8 per step: an epoch has each row; three rows come twice, to fill the last step."""
    ranks = [json.loads((ddp_folder / f"grouped{rank}.json").read_text()) for rank in (0, 1)]
    assert [len(batch) for rank in ranks for batch in rank] == [4] * 84
    steps = [ours + theirs for ours, theirs in zip(*ranks, strict=True)]
    lengths = [len(row["input_ids"]) for row in make_data(165)]
    for epoch in (steps[:21], steps[21:]):
        rows = [row for step in epoch for row in step]
        assert len(set(rows[:160])) == 160
        assert set(rows) == set(range(165))
        spans = [max(lengths[row] for row in step) - min(lengths[row] for row in step) for step in epoch[:20]]
        assert sum(spans) / 20 < 4, "rows of a step are of similar length, whichever process has them"
    assert steps[:21] != steps[21:]


# Sharded weights


def test_fully_sharded_models_train_to_the_same_weights(tmp_path, ddp_folder):
    """FSDP2's `fully_shard` of student and teacher; the gathered weights are a normal latent checkpoint."""
    pytest.importorskip("torch", minversion="2.7", reason="cannot shard fully on the CPU")
    trainer = make_trainer(tmp_path, recipe=STATIC)
    optimizer = torch.optim.AdamW(trainer.model.train().parameters(), lr=1e-3)
    losses = []
    for step in batches():
        parts = [trainer.compute_loss(trainer.model, batch) / 2 for batch in step]
        for part in parts:
            part.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(sum(part.item() for part in parts))
    assert json.loads((ddp_folder / "fsdp" / "losses.json").read_text()) == pytest.approx(losses, rel=1e-6)
    latent = XTCBertForSequenceClassification.from_pretrained(ddp_folder / "fsdp" / "latent")
    assert latent.config.state == "latent"
    assert_close(latent.state_dict(), trainer.model.state_dict())
    packed = load_file(ddp_folder / "fsdp" / "packed" / "model.safetensors")
    pack_model(latent).save_pretrained(tmp_path / "packed")
    assert_close(packed, load_file(tmp_path / "packed" / "model.safetensors"), atol=0)


@pytest.fixture(scope="module")
def zero_folder(tmp_path_factory):
    if find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    folder = tmp_path_factory.mktemp("zero")
    done = launch("zero", folder, DS_ACCELERATOR="cpu")
    assert done.returncode == 0, done.stderr[-8000:]
    return folder


@pytest.mark.parametrize("stage", ZERO_STAGES)
def test_zero_trains_to_the_same_weights(tmp_path, zero_folder, stage):
    """DeepSpeed's checkpoint is a normal latent one that can be packed, and resuming from it gives the same result."""
    trainer = make_trainer(tmp_path, recipe=STATIC, gradient_accumulation_steps=4, max_grad_norm=0.0)
    trainer.train()
    folder = zero_folder / f"zero{stage}"
    latent = XTCBertForSequenceClassification.from_pretrained(folder / "whole" / "checkpoint-4")
    assert latent.config.state == "latent"
    assert_close(latent.state_dict(), trainer.model.state_dict())
    found = json.loads((folder / "whole" / "result.json").read_text())
    expected = logged(trainer, "loss", *trainer.args.term_weights)
    for entry, alone in zip(found["log"], expected, strict=True):
        assert entry == pytest.approx(alone, rel=1e-6, abs=1e-6)
    pack_model(latent).save_pretrained(tmp_path / "packed")
    packed = load_file(tmp_path / "packed" / "model.safetensors")
    for run in ("whole", "resumed"):
        assert_close(load_file(folder / run / "model.safetensors"), packed, atol=0)
    sizes = [sum(p.numel() for p in model.parameters()) for model in (trainer.model, trainer.teacher)]
    if stage == 3:  # half of each weight, rounded up
        assert all(whole / 2 <= held < whole * 0.51 for held, whole in zip(found["held"], sizes, strict=True))
    else:
        assert found["held"] == sizes


def test_a_sharded_teacher_is_not_compressed(zero_folder):
    found = json.loads((zero_folder / "zero3" / "whole" / "result.json").read_text())
    assert found["refused"] == (
        "The weights of BertForSequenceClassification are sharded over processes, and compress needs them whole. Load "
        "the teacher and call compress before XTCTrainingArguments(deepspeed=...) is made: with ZeRO-3, models "
        "that are loaded after it are sharded."
    )


# A process that dies


def test_a_killed_process_ends_the_job_which_goes_on_from_its_checkpoint(tmp_path, ddp_folder):
    pytest.importorskip("torch", minversion="2.7", reason="cannot restore an optimizer that two CPU processes saved")
    folder = tmp_path / "job"
    start = time.monotonic()
    done = launch("killed", folder)
    assert done.returncode != 0
    assert "Signal 9" in done.stderr, done.stderr[-8000:]
    assert time.monotonic() - start < 600
    saved = last_checkpoint(folder)
    assert saved is not None
    assert saved.endswith("checkpoint-2")
    pack_model(XTCBertForSequenceClassification.from_pretrained(saved))
    assert not list(folder.glob("state*"))
    done = launch("killed", folder)
    assert done.returncode == 0, done.stderr[-8000:]
    trainer = make_trainer(tmp_path / "alone", recipe=STATIC, gradient_accumulation_steps=2)
    trainer.train()
    for rank in (0, 1):
        assert_close(load_file(folder / f"state{rank}.safetensors"), trainer.model.state_dict())
