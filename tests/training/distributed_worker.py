"""Runs in each process of `test_distributed.py`: `torchrun --nproc_per_node=2 distributed_worker.py PART FOLDER`."""

import copy
import json
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from packaging.version import Version
from safetensors.torch import save_file
from task_cases import trainer_options
from trainers import DATA, collate, logged, make_args, make_data, make_teacher, make_trainer
from transformers import BertForSequenceClassification, TrainerCallback

from hf_xtc.compression.convert import compress, pack_model, with_weights
from hf_xtc.errors import StateError
from hf_xtc.files.writing import last_checkpoint
from hf_xtc.modeling.sharded_weights import is_sharded, local_part
from hf_xtc.recipe.xtc_recipe import XTCRecipe
from hf_xtc.tasks import TASKS
from hf_xtc.training.finite_checks import require_finite_weights

STATIC = XTCRecipe(keep_layers=2, activation_calibration="static")
DDP_RUNS = ("one_term", "all_terms", "accumulated", "foreign", "static", "projection", "cached", "adversarial")
ZERO_STAGES = (1, 2, 3)
UNEVEN = 9  # rows of an evaluation in batches of four: two whole ones, and one row more


def ddp_options(name, folder):
    """Arguments of `make_trainer` for one of `DDP_RUNS`, the same in every process."""
    return {
        "one_term": lambda: {"terms": {"logits": 1.0}},
        "all_terms": lambda: {"save_strategy": "steps", "save_steps": 4},
        # Sums of four gradients, in another order: SGD passes the difference on as it is.
        "accumulated": lambda: {"gradient_accumulation_steps": 2, "optim": "sgd", "recipe": STATIC},
        "foreign": lambda: {"student": make_teacher(num_hidden_layers=2)},
        "static": lambda: {"recipe": STATIC, "weight_annealing": 0.0},
        # DDP searches the student's outputs for parameters; the projection of hidden states is not among them.
        "projection": lambda: {
            "teacher": make_teacher(hidden_size=48),
            "student": compress(make_teacher(), XTCRecipe(keep_layers=2)),
            "terms": {"logits": 1.0, "hidden_states": 1.0},
            "ddp_find_unused_parameters": False,
        },
        "cached": lambda: {"teacher_cache": str(folder / "cache")},
        "adversarial": lambda: {"terms": {"labels": 1.0}, "adversarial_epsilon": 0.5, "optim": "sgd"},
    }[name]() | {"compute_metrics": counted, "eval_dataset": DATA[:UNEVEN], "per_device_eval_batch_size": 4}


def counted(prediction):
    """The rows that an evaluation included, by their logits."""
    return {"rows": len(prediction.predictions), "logits": prediction.predictions.tolist()}


def save_state(model, path):
    """All weights and buffers; shared tensors are copied."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().clone() for name, tensor in model.state_dict().items()}, path)


def ddp(folder):
    """Runs each of `DDP_RUNS`; each process has its own folder, so that the test finds all that it writes."""
    rank = dist.get_rank()
    for name in DDP_RUNS:
        trainer = make_trainer(folder / name / f"rank{rank}", **ddp_options(name, folder / name))
        trainer.train()
        save_state(trainer.model, folder / name / f"state{rank}.safetensors")
        metrics = trainer.evaluate()
        trainer.save_model()
        log = logged(trainer, "loss", "grad_norm", *trainer.args.term_weights)
        if rank == 0:
            result = {"processes": trainer.args.world_size, "log": log, "metrics": metrics}
            (folder / name / "result.json").write_text(json.dumps(result))


def tasks(folder):
    """A training of each registered task, and its scores."""
    for name in TASKS:
        trainer = make_trainer(folder / "tasks" / name / f"rank{dist.get_rank()}", **trainer_options(name))
        trainer.train()
        metrics = trainer.evaluate()
        save_state(trainer.model, folder / "tasks" / name / f"state{dist.get_rank()}.safetensors")
        if dist.get_rank() == 0:
            log = logged(trainer, "loss", *trainer.args.term_weights)
            (folder / "tasks" / name / "result.json").write_text(json.dumps({"log": log, "metrics": metrics}))


def grouped(folder):
    """Rows that each process gets in two epochs of 165 rows, grouped by length, as `[step][row]`."""
    data, seen = make_data(165), []
    options = {"max_steps": -1, "num_train_epochs": 2, "terms": {"logits": 1.0}}
    trainer = make_trainer(folder / "grouped", data=data, train_sampling_strategy="group_by_length", **options)
    trainer.data_collator = lambda rows: seen.append([data.index(row) for row in rows]) or collate(rows)
    trainer.train()
    (folder / f"grouped{dist.get_rank()}.json").write_text(json.dumps(seen))


def shard(model, mesh):
    """Applies `fully_shard` to each layer and to the model."""
    from torch.distributed.fsdp import fully_shard

    for layer in model.bert.encoder.layer:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def batches(steps=3):
    """One batch of four rows for each step and process."""
    return [[collate(DATA[start : start + 4]) for start in (8 * step, 8 * step + 4)] for step in range(steps)]


def fsdp(folder):
    """Student and teacher fully sharded, in a loop of three steps around `compute_loss`."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh

    trainer = make_trainer(folder / "fsdp", recipe=STATIC)
    student, mesh = trainer.model.train(), init_device_mesh("cpu", (2,))
    shard(student, mesh)
    shard(trainer.teacher, mesh)
    assert is_sharded(student)
    assert is_sharded(trainer.teacher)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    losses = []
    for step in batches():
        loss = trainer.compute_loss(student, step[dist.get_rank()])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(trainer.accelerator.gather(loss.detach()).mean().item())
    require_finite_weights(student.parameters(), 3, 1e-3)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(student, options=options)
    if dist.get_rank() == 0:
        whole = with_weights(student, weights)
        whole.save_pretrained(folder / "fsdp" / "latent")
        pack_model(whole).save_pretrained(folder / "fsdp" / "packed")
        (folder / "fsdp" / "losses.json").write_text(json.dumps(losses))


class KilledAfterThreeSteps(TrainerCallback):
    """Kills the second process, as a failing node would."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def killed(folder):
    """Four steps with a checkpoint after two; one process is killed after three, unless there is a checkpoint."""
    saved = last_checkpoint(folder)
    callbacks = [] if saved else [KilledAfterThreeSteps()]
    trainer = make_trainer(folder, save_strategy="steps", save_steps=2, recipe=STATIC, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=saved)
    save_state(trainer.model, folder / f"state{dist.get_rank()}.safetensors")


def zero_options(stage):
    """A DeepSpeed configuration that shards everything that `stage` can shard."""
    zero = {"stage": stage, "reduce_bucket_size": "auto"}
    if stage == 3:
        zero |= {"stage3_gather_16bit_weights_on_model_save": True, "stage3_param_persistence_threshold": 0}
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    return {"zero_optimization": zero, "zero_allow_untested_optimizer": True, **dict.fromkeys(sizes, "auto")}


def zero(folder):
    """Each stage of ZeRO, from the start and from a checkpoint after two steps."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo alone, and no minutes at a compiler
    make_teacher().save_pretrained(folder / f"teacher{os.environ['RANK']}")
    for stage in ZERO_STAGES:
        student = compress(make_teacher(), STATIC)  # with ZeRO-3, before the arguments turn sharding on
        for run in ("whole", "resumed"):
            here = folder / f"zero{stage}" / run
            AcceleratorState._reset_state(reset_partial_state=True)
            saved = last_checkpoint(folder / f"zero{stage}" / "whole")
            trainer = make_trainer(
                here,
                student=copy.deepcopy(student),
                deepspeed=zero_options(stage),
                gradient_accumulation_steps=2,
                max_grad_norm=0.0,
                save_strategy="steps",
                save_steps=2,
                save_total_limit=None,
            )
            trainer.train(resume_from_checkpoint=saved and saved.replace("checkpoint-4", "checkpoint-2"))
            held = [sum(local_part(p).numel() for p in m.parameters()) for m in (trainer.model, trainer.teacher)]
            trainer.save_model()
            if dist.get_rank() == 0:
                log = logged(trainer, "loss", *trainer.args.term_weights)
                result = {"log": log, "held": held, "refused": refused(folder) if stage == 3 else None}
                (here / "result.json").write_text(json.dumps(result))
            else:
                refused(folder) if stage == 3 else None


def refused(folder):
    """The error of `compress` for a teacher that was loaded under ZeRO-3."""
    args = make_args(folder / "refused", deepspeed=zero_options(3))
    assert args.deepspeed
    teacher = BertForSequenceClassification.from_pretrained(folder / f"teacher{dist.get_rank()}")
    try:
        compress(teacher)
    except StateError as error:
        return str(error)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] != "zero":  # there DeepSpeed starts it
        dist.init_process_group("gloo")
    sharded = [fsdp] if Version(torch.__version__) >= Version("2.7") else []
    parts = {"ddp": [ddp, tasks, grouped, *sharded], "killed": [killed], "zero": [zero]}[sys.argv[1]]
    for part in parts:
        part(Path(sys.argv[2]))
    dist.barrier()
    os._exit(0)  # gloo's own teardown aborts about once in fifty times on a busy machine
