"""One run of DeepSpeed's XTC, in a separate environment: `deepspeed.compression` and the recipe of its example.

Reimplements the example (`run_glue_no_trainer.py`, one-stage distillation) without copying its code. Unchanged: scales
per tensor, dropout as in the teacher's configuration, rows padded to the full length and their padding in the loss,
means over all elements (over classes too), sums over layers, AdamW with decay of all but biases and LayerNorm, warm-up
of one epoch or a tenth of the steps if that is less, linear decay, gradients clipped. Different: the loop is plain
torch instead of DeepSpeed's engine, which does more in a step; the best weights are chosen on the selection rows, not
on dev. Does not import hf_xtc.
"""

import logging
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    BertForSequenceClassification,
    get_linear_schedule_with_warmup,
    set_seed,
)
from transformers.masking_utils import eager_mask

from machine import versions
from reference.curve import Curve, file_bytes, pad, serve

SETTINGS = {"weight_decay": 0.01, "max_grad_norm": 1.0, "warmup": 0.1}
SCORES = "scores_with_mask"
LINEARS = ["attention.self", "intermediate", "output.dense"]
# Added to the scores of padded keys, as in older BERT. transformers now adds the lowest float, which would absorb the
# scores, but the example has the scores of padded keys in its loss.
MASKED = -10000.0


def compression(layers: list[int] | None) -> dict[str, Any]:
    """The example's JSON for 1-bit weights and 8-bit activations from the first step; `layers` of the teacher stay."""
    weights = {
        "enabled": True,
        "quantizer_kernel": False,
        "schedule_offset": 0,
        "quantize_groups": 1,
        "quantize_verbose": False,
        "quantization_type": "symmetric",
        "quantize_weight_in_forward": True,
        "rounding": "nearest",
        "fp16_mixed_quantize": {"enabled": False, "quantize_change_ratio": 0.1},
    }
    activations = {
        "enabled": True,
        "quantization_type": "symmetric",
        "range_calibration": "dynamic",
        "schedule_offset": 0,
    }
    bits = {"start_bits": 1, "target_bits": 1, "quantization_period": 0}
    section: dict[str, Any] = {
        "weight_quantization": {
            "shared_parameters": weights,
            "different_groups": {"wq1": {"params": bits, "modules": [*LINEARS, "word_embeddings"]}},
        },
        "activation_quantization": {
            "shared_parameters": activations,
            "different_groups": {"aq1": {"params": {"bits": 8}, "modules": LINEARS}},
        },
    }
    if layers is not None:
        section["layer_reduction"] = {
            "enabled": True,
            "keep_number_layer": len(layers),
            "module_name_prefix": "bert.encoder.layer",
            "teacher_layer": layers,
            "other_module_name": ["bert.pooler", "bert.embeddings", "classifier"],
        }
    return {"train_batch_size": 32, "fp16": {"enabled": False}, "compression_training": section}


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor]:
    """Attention whose second output is the scores with the mask added, before softmax."""
    scores = torch.matmul(query, key.transpose(2, 3)).float() * query.size(-1) ** -0.5
    if mask is not None:
        scores = scores + mask.clamp(min=MASKED)
    probabilities = F.dropout(F.softmax(scores, dim=-1), options.get("dropout", 0.0), module.training)
    return torch.matmul(probabilities.to(value.dtype), value).transpose(1, 2).contiguous(), scores


def loss(student: Any, teacher: Any, layers: list[int] | None) -> Tensor:
    """The one-stage loss: logits, attention scores, hidden states; all weights 1, no labels."""
    ours, theirs = student.logits.float(), teacher.logits.float()
    if ours.shape[-1] == 1:
        total = F.mse_loss(ours, theirs)
    else:
        total = -(F.softmax(theirs, dim=-1) * F.log_softmax(ours, dim=-1)).mean()
    kept = list(range(len(teacher.attentions))) if layers is None else layers
    states = [0, *(layer + 1 for layer in kept)] if layers is None else [kept[0] - 1, *(layer + 1 for layer in kept)]
    for scores, layer in zip(student.attentions, kept, strict=True):
        total = total + F.mse_loss(scores, teacher.attentions[layer])
    for state, layer in zip(student.hidden_states, states, strict=True):
        total = total + F.mse_loss(state, teacher.hidden_states[layer])
    return total


def load(config: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """Teacher and compressed student, both with `attention`; the student's quantizers are on."""
    from deepspeed.compression.compress import init_compression
    from deepspeed.compression.config import get_compression_config
    from deepspeed.compression.scheduler import compression_scheduler

    AttentionInterface.register(SCORES, attention)
    AttentionMaskInterface.register(SCORES, eager_mask)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    teacher = BertForSequenceClassification.from_pretrained(config["teacher"], attn_implementation=SCORES).float()
    student = BertForSequenceClassification.from_pretrained(config["teacher"], attn_implementation=SCORES).float()
    if config["layers"] is not None:
        student.config.num_hidden_layers = len(config["layers"])
        student = BertForSequenceClassification(student.config)
        student.set_attn_implementation(SCORES)
    student = init_compression(student, compression(config["layers"]), teacher_model=teacher)
    schedule = compression_scheduler(student, get_compression_config(compression(config["layers"])))
    schedule.step(step_zero_check=True)  # all offsets are 0, so this enables everything, as in DeepSpeed's engine
    return teacher.eval().requires_grad_(False), student.train()


def batches(rows: dict[str, list[Any]], config: dict[str, Any], pad_token_id: int) -> Iterator[dict[str, Tensor]]:
    """Shuffled batches, epoch after epoch; the last of an epoch may be short."""
    generator = torch.Generator().manual_seed(config["seed"])
    while True:
        order = torch.randperm(len(rows["labels"]), generator=generator).tolist()
        for at in range(0, len(order), config["batch_size"]):
            yield pad(rows, order[at : at + config["batch_size"]], pad_token_id, config["padding"])


def optimizer(student: nn.Module, config: dict[str, Any], epoch: int) -> tuple[Any, Any]:
    """AdamW and its linear schedule; `epoch` is the number of steps in an epoch."""
    decayed, not_decayed = [], []
    for name, parameter in student.named_parameters():
        (not_decayed if name.endswith("bias") or "LayerNorm" in name else decayed).append(parameter)
    decay = config["settings"]["weight_decay"]
    groups = [{"params": decayed, "weight_decay": decay}, {"params": not_decayed, "weight_decay": 0.0}]
    made = torch.optim.AdamW(groups, lr=config["learning_rate"])
    warmup = min(epoch, int(config["settings"]["warmup"] * config["steps"]))
    return made, get_linear_schedule_with_warmup(made, warmup, config["steps"])


def train(teacher: nn.Module, student: nn.Module, config: dict[str, Any], data: dict[str, Any], curve: Curve) -> None:
    """Runs all steps."""
    epoch = -(-len(data["fit"]["labels"]) // config["batch_size"])
    step_optimizer, schedule = optimizer(student, config, epoch)
    asked = {"output_attentions": True, "output_hidden_states": True}
    rows = batches(data["fit"], config, data["pad_token_id"])
    curve.start()
    for step in range(1, config["steps"] + 1):
        batch = next(rows)
        with torch.autocast("cpu", torch.bfloat16) if config["bf16"] else nullcontext():
            with torch.no_grad():
                expected = teacher(**batch, **asked)
            error = loss(student(**batch, **asked), expected, config["layers"])
        error.backward()
        nn.utils.clip_grad_norm_(student.parameters(), config["settings"]["max_grad_norm"])
        step_optimizer.step()
        schedule.step()
        step_optimizer.zero_grad()
        curve.step(step, student)


def save(student: nn.Module, folder: str) -> nn.Module:
    """Writes the state of the cleaned model, as the example does, and reads it back as a stock BERT."""
    torch.save(student.state_dict(), Path(folder) / "pytorch_model.bin")
    student.config.save_pretrained(folder)
    stock = BertForSequenceClassification(student.config)
    stock.load_state_dict(torch.load(Path(folder) / "pytorch_model.bin", weights_only=True))
    return stock.eval()


def quantized(student: nn.Module) -> dict[str, nn.Module]:
    """Name -> module whose weights are quantized; DeepSpeed replaces all linears, also those that stay float."""
    return {name: m for name, m in student.named_modules() if getattr(m, "weight_quantization_enabled", False)}


def levels(module: nn.Module) -> int:
    """Number of distinct values of a quantized weight; for an embedding the largest number in a row.

    2, or 3 if a weight is exactly 0, since DeepSpeed's `sign` leaves it 0.
    """
    weight = module.weight.detach()
    rows = weight if isinstance(module, nn.Embedding) else weight.reshape(1, -1)
    return int((rows.sort(1).values.diff(dim=1) != 0).sum(1).max()) + 1


def run(config: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Trains the student, cleans its best weights, and scores it with 8-bit inputs and, from the file, without."""
    from deepspeed.compression.compress import redundancy_clean

    set_seed(config["seed"])
    teacher, student = load(config)
    curve = Curve(config, data)
    train(teacher, student, config, data, curve)
    student.load_state_dict(curve.best)
    student = redundancy_clean(student, compression(config["layers"])).eval()
    modules = quantized(student).values()
    stock = save(student, config["folder"])
    return {
        **curve.record(),
        "dev": curve.scores(student, "dev"),
        "dev_float_activations": curve.scores(stock, "dev"),
        "files": file_bytes(config["folder"]),
        "quantized_weights": len(modules),
        "quantized_inputs": sum(getattr(module, "activation_quantization_enabled", False) for module in modules),
        "levels": {type(module).__name__: levels(module) for module in sorted(modules, key=levels)},
        "zero_weights": sum(int((module.weight == 0).sum()) for module in modules),
        "versions": versions("deepspeed", "torch", "transformers", "numpy"),
    }


if __name__ == "__main__":
    serve(run)
