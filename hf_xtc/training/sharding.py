"""Prepares the teacher for training, also on several processes; the Trainer prepares the student."""

import copy
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from hf_xtc.errors import needs_extra


def prepared_teacher(teacher: nn.Module, accelerator: Any, shard: bool) -> Any:
    """Returns the frozen teacher, ready to run beside its student in this process.

    ZeRO-1 and ZeRO-2 shard gradients and optimizer states, which a teacher does not have: with them, as without
    DeepSpeed, each process holds the whole teacher. ZeRO-3 shards its weights like those of the student.

    accelerate replaces the `forward` of a model by one in the precision of the trainer. So what it gets is a shallow
    copy, with the same weights: the caller's teacher stays as it is, and each trainer has its own precision.

    Args:
        teacher (`nn.Module`): On its device, in eval mode.
        accelerator (`Accelerator`): The trainer's.
        shard (`bool`): Whether ZeRO-3 may shard it; false with a teacher cache, whose key hashes the full weights.

    Returns:
        `nn.Module`: the teacher, or a DeepSpeed engine around it.
    """
    if isinstance(teacher, PreTrainedModel):  # else each copy adds its hooks to the modules that all copies share
        maybe_install_capturing_hooks(teacher.base_model)
    teacher = copy.copy(teacher)
    restore_forward(teacher)
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    if plugin is None or plugin.zero_stage != 3 or not shard:
        return accelerator.prepare_model(teacher, evaluation_mode=True)
    with needs_extra("deepspeed"):
        import deepspeed

    sections = {key: plugin.deepspeed_config.get(key, {}) for key in ("zero_optimization", "bf16", "fp16")}
    # "auto" stands for values of the student that are not known yet; DeepSpeed has defaults for them.
    config = {key: {k: v for k, v in section.items() if v != "auto"} for key, section in sections.items()}
    engine, *_ = deepspeed.initialize(model=teacher, config={"train_micro_batch_size_per_gpu": 1, **config})
    engine.eval()  # returns None
    return engine


def restore_forward(model: nn.Module) -> None:
    """Removes the `forward` that an earlier trainer's accelerator left on a model, which computes in its precision."""
    if "_original_forward" in vars(model):
        del model._original_forward
        del model.forward
