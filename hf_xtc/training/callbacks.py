"""Callbacks: the quantization schedule, the size of the packed file, and statistics of the weights.

The schedule is a pure function of `state.global_step` and `state.max_steps`, and what must survive a restart lives in
module buffers. So a callback has no state to restore when training resumes from a checkpoint.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_xtc.compression.size_ledger import ledger
from hf_xtc.modeling.adapters import has_adapters
from hf_xtc.modeling.layers import XTCEmbedding, XTCLinear
from hf_xtc.modeling.sharded_weights import is_sharded
from hf_xtc.quantization.quantizers import decode_weight, encode_weight

logger = logging.getLogger(__name__)


def start_step(start: float, max_steps: int) -> int:
    """Returns the step that `start` means: `start` itself if it is at least 1, else that share of `max_steps`."""
    return int(start) if start >= 1 else int(start * max_steps)


def set_quantization(model: nn.Module, *, weights: float, activations: bool, compiled: bool = False) -> None:
    """Sets what latent layers fake-quantize in train mode; in eval mode they always quantize weights and activations.

    Args:
        model (`nn.Module`): Its `XTCLinear` and `XTCEmbedding` layers are changed.
        weights (`float`): Share of the quantized weights in the blend with the float ones, 0 to 1.
        activations (`bool`): Whether activations are quantized.
        compiled (`bool`): Whether the model is compiled: a share between 0 and 1 is then a tensor, since each float
            would be compiled anew.
    """
    share = torch.tensor(float(weights)) if compiled and 0 < weights < 1 else float(weights)
    for module in model.modules():
        if isinstance(module, XTCLinear | XTCEmbedding):
            module.quantized_part = share
        if isinstance(module, XTCLinear):
            module.quantize_activation = activations


class BestCheckpointCallback(TrainerCallback):
    """Finds the best checkpoint again when a training goes on in a folder that was moved.

    The state of a training names its best checkpoint by its path at that time; Trainer would keep the last step.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.best_global_step is None or (
            state.best_model_checkpoint and Path(state.best_model_checkpoint).is_dir()
        ):
            return
        moved = Path(str(args.output_dir)) / f"checkpoint-{state.best_global_step}"
        if moved.is_dir():
            state.best_model_checkpoint = str(moved)


class QuantizationCallback(TrainerCallback):
    """Starts the quantization of weights and of activations at given steps (DeepSpeed's `schedule_offset`).

    Weights may be annealed: blended with their quantized values, whose share grows from 0 to 1. The schedule is for
    train mode only: evaluations use the quantized model, like its packed file, so that the scores of all steps can
    be compared. At the end of training the model is quantized in train mode too.

    Args:
        weight_start, activation_start (`float`): A step if at least 1, else a share of all steps; 0: from the start.
        weight_annealing (`float`): Length of the annealing, in steps or as a share, like the starts.
    """

    def __init__(self, weight_start: float = 0.0, activation_start: float = 0.0, weight_annealing: float = 0.0):
        self.weight_start = weight_start
        self.activation_start = activation_start
        self.weight_annealing = weight_annealing

    def _quantized_part(self, state: TrainerState) -> float:
        steps = state.global_step - start_step(self.weight_start, state.max_steps)
        length = start_step(self.weight_annealing, state.max_steps)
        return float(steps >= 0) if length == 0 else min(max(steps / length, 0.0), 1.0)

    def _apply(self, args: TrainingArguments, state: TrainerState, model: nn.Module) -> None:
        set_quantization(
            model,
            weights=self._quantized_part(state),
            activations=state.global_step >= start_step(self.activation_start, state.max_steps),
            compiled=args.torch_compile,
        )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Sets the state of the step that training starts or resumes at."""
        self._apply(args, state, model)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Sets the state of the coming step."""
        if self.weight_start or self.activation_start or self.weight_annealing:
            self._apply(args, state, model)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Quantizes everything: the trained model is what will be packed."""
        set_quantization(model, weights=1.0, activations=True)


class PackedSizeCallback(TrainerCallback):
    """Logs at the start of training how large the packed file will be, in bytes and relative to float32."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Logs the total of the ledger; nothing if the model is not latent, since its file will not be packed."""
        config: Any = getattr(model, "config", None)
        packs = getattr(config, "state", None) == "latent" and not has_adapters(model)
        if state.is_world_process_zero and packs:
            packed = ledger(config, model_class=type(model))  # type: ignore[arg-type]
            ratio = packed.float32_bytes / packed.total_bytes
            logger.info("The packed file will take %d bytes, %.1f times less than float32.", packed.total_bytes, ratio)
            state.log_history.append(
                {"packed_bytes": packed.total_bytes, "packed_ratio": round(ratio, 2), "step": state.global_step}
            )


class WeightStatisticsCallback(TrainerCallback):
    """Records at each log how well the weights of a latent model quantize; `hf-xtc report` plots it.

    Adds an entry to `state.log_history` with, for each part of the encoder ("layer 0", "pooler", ...):

    - `quantization_error/<part>`: `sum (w - q)^2 / sum w^2` of its linear layers, q the fake-quantized weight;
    - `flip_rate/<part>`: the share of its codes that have changed since the previous log (not in the first entry).

    Costs one encoding of the linear layers per log, and one byte of memory per weight. Sharded models are skipped.
    """

    def __init__(self) -> None:
        self._codes: dict[str, Tensor] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Clears the codes of a previous training."""
        self._codes = {}

    @torch.no_grad()
    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Adds the entry, after each log of a loss."""
        if not state.is_world_process_zero or "loss" not in (kwargs.get("logs") or {}) or is_sharded(model):
            return
        sums: dict[str, list[float]] = {}
        for name, module in model.named_modules():
            if isinstance(module, XTCLinear):
                total = sums.setdefault(part_of(name), [0.0, 0.0, 0.0, 0.0])
                for i, value in enumerate(self._measure(name, module)):
                    total[i] += value
        entry: dict[str, Any] = {}
        for part, (error, norm, flips, compared) in sums.items():
            entry[f"quantization_error/{part}"] = round(error / norm, 6) if norm else 0.0
            if compared:
                entry[f"flip_rate/{part}"] = round(flips / compared, 6)
        if entry:
            state.log_history.append({**entry, "step": state.global_step})

    def _measure(self, name: str, module: XTCLinear) -> tuple[float, float, float, float]:
        """Returns the squared error, the squared norm, and how many codes changed of how many."""
        codes, scale = encode_weight(module.weight, module.spec)
        weight = module.weight.float()
        error = (weight - decode_weight(codes, scale, module.spec)).square().sum().item()
        before, self._codes[name] = self._codes.get(name), codes
        flips, compared = (0, 0) if before is None else (int((codes != before).sum()), codes.numel())
        return error, weight.square().sum().item(), flips, compared


def part_of(name: str) -> str:
    """Returns the part of the model that a module belongs to: "layer 0" for "bert.encoder.layer.0.output.dense"."""
    pieces = name.split(".")
    index = next((i for i, piece in enumerate(pieces) if piece.isdigit()), None)
    return "pooler" if "pooler" in pieces else name if index is None else f"layer {pieces[index]}"
