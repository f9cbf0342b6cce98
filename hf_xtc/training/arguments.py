"""The arguments of a compression run."""

import json
import math
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import SaveStrategy

from hf_xtc.checks import ABOVE_ZERO, check_choice, check_count, check_range
from hf_xtc.distillation.terms import TERMS
from hf_xtc.errors import RecipeError, needs_extra
from hf_xtc.files.safe_json import parse_json, read_json

DEFAULT_TERMS = {"logits": 1.0, "hidden_states": 1.0, "attention_scores": 1.0}

# Stock options whose values transformers takes unchecked -> the smallest, and what all must be below.
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), (1, 2**31)),
    **dict.fromkeys(("gradient_accumulation_steps", "eval_accumulation_steps"), (1, 2**31)),
    **dict.fromkeys(("num_train_epochs", "learning_rate", "weight_decay", "max_grad_norm"), (0, 1e6)),
    **dict.fromkeys(("logging_steps", "eval_delay", "save_total_limit", "warmup_steps"), (0, 2**31)),
    **dict.fromkeys(("eval_steps", "save_steps", "adam_epsilon"), (ABOVE_ZERO, 2**31)),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor", "warmup_ratio"), (0, 1)),
    **dict.fromkeys(("seed", "data_seed"), (0, 2**32)),
    **dict.fromkeys(("ddp_bucket_cap_mb", "ddp_timeout"), (1, 2**31)),
    "neftune_noise_alpha": (0, 1e6),
    "dataloader_num_workers": (0, 1e4),
}
# Stock options that are JSON objects -> whether they may also name a JSON file.
_OBJECTS = {
    **dict.fromkeys(
        ("lr_scheduler_kwargs", "activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"), False
    ),
    **dict.fromkeys(("accelerator_config", "fsdp_config", "deepspeed"), True),
}
_COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")

STOCK = {entry.name: entry.metadata for entry in fields(TrainingArguments)}


@dataclass
class XTCTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with arguments for distillation and quantization.

    The stock arguments listed here have defaults that suit short quantization-aware training; `hf-xtc compress` uses
    the same. Rows of unknown length are drawn in random order, also with `group_by_length`.

    Raises:
        XTCError: if a term is unknown (lists the registered ones).
        RecipeError: if another value is invalid.
    """

    learning_rate: float = field(default=1e-3, metadata=STOCK["learning_rate"])
    warmup_steps: float = field(default=0.1, metadata=STOCK["warmup_steps"])
    per_device_train_batch_size: int = field(default=32, metadata=STOCK["per_device_train_batch_size"])
    per_device_eval_batch_size: int = field(default=64, metadata=STOCK["per_device_eval_batch_size"])
    train_sampling_strategy: str = field(default="group_by_length", metadata=STOCK["train_sampling_strategy"])
    logging_steps: float = field(default=50, metadata=STOCK["logging_steps"])
    save_strategy: SaveStrategy | str = field(default="epoch", metadata=STOCK["save_strategy"])
    save_total_limit: int | None = field(default=1, metadata=STOCK["save_total_limit"])
    dataloader_pin_memory: bool = field(
        default=torch.accelerator.is_available(), metadata=STOCK["dataloader_pin_memory"]
    )

    terms: dict[str, float] | str | None = field(
        default=None,
        metadata={
            "help": "Distillation terms and their weights, as JSON: {'logits': 1, 'hidden_states': 1, "
            "'attention_scores': 1} (default). The term 'labels' is the loss against the labels of the data."
        },
    )
    temperature: float = field(default=1.0, metadata={"help": "Temperature of the term 'logits'."})
    distillation_stages: int = field(
        default=1,
        metadata={
            "help": "1: all terms at once (XTC's finding). 2: intermediate terms, then the head's. 3: intermediate "
            "terms, all, then the head's. Stages share the steps evenly."
        },
    )
    weight_quantization_start: float = field(
        default=0.0,
        metadata={"help": "Step from which weights are quantized; below 1: a share of all steps (schedule_offset)."},
    )
    activation_quantization_start: float = field(
        default=0.0,
        metadata={"help": "Step from which activations are quantized; below 1: a share of all steps."},
    )
    weight_annealing: float = field(
        default=0.3,
        metadata={
            "help": "Steps (below 1: a share of all) over which weights are blended from float to quantized, "
            "starting at weight_quantization_start; 0 switches at once."
        },
    )
    adversarial_epsilon: float = field(
        default=0.0,
        metadata={
            "help": "Train on each batch a second time, with an adversarial perturbation of this norm added to its "
            "word embeddings (Miyato et al. 2017; measured with 1); steps take twice as long. 0: off."
        },
    )
    teacher_cache: str | None = field(
        default=None,
        metadata={
            "help": "Folder for the outputs of the teacher: the first training on these data writes it, later ones "
            "read it and do not run the teacher. Rows must be the same in every epoch (no random masking)."
        },
    )
    teacher_cache_dtype: str = field(
        default="float16",
        metadata={"help": "Hidden states and scores in the cache: float16, or int8 (half the size, coarser)."},
    )

    def __post_init__(self) -> None:
        if isinstance(self.terms, str):
            try:
                self.terms = json.loads(self.terms.replace("'", '"'))
            except json.JSONDecodeError as error:
                raise RecipeError(
                    f"terms={self.terms!r} is not a JSON object ({error}). Example: '{{\"logits\": 1}}'."
                ) from None
        if self.terms is None:
            self.terms = dict(DEFAULT_TERMS)
        self._check_stock()
        super().__post_init__()
        if not isinstance(self.terms, dict) or not self.terms:
            raise RecipeError(f"terms={self.terms!r} must name at least one term and its weight.")
        for name, weight in self.terms.items():
            TERMS[name]
            if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 < weight < math.inf:
                raise RecipeError(f"terms: the weight of {name!r} is {weight!r}; it must be a positive number.")
        check_choice("distillation_stages", self.distillation_stages, (1, 2, 3))
        check_choice("teacher_cache_dtype", self.teacher_cache_dtype, ("float16", "int8"))
        if self.push_to_hub and self.hub_strategy in ("checkpoint", "all_checkpoints"):
            raise RecipeError(
                f"hub_strategy={self.hub_strategy.value!r} would publish checkpoints: float latent weights and "
                "optimizer states. Use 'every_save' or 'end', which publish the packed model only."
            )
        check_range("temperature", self.temperature, ABOVE_ZERO, 1e6)
        check_range("adversarial_epsilon", self.adversarial_epsilon, 0, 1e6)
        for name in ("weight_quantization_start", "activation_quantization_start", "weight_annealing"):
            if not 0 <= getattr(self, name) < math.inf:
                raise RecipeError(f"{name}={getattr(self, name)} must be a step, or a share of all steps below 1.")

    def _check_stock(self) -> None:
        """Checks the options of transformers that it would take as they are, and fail on later."""
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name, None)  # older and newer versions of transformers lack some
            if value is not None:
                check_range(name, value, low, high)
        if self.max_steps != -1:
            check_count("max_steps", self.max_steps)
        for name, file_allowed in _OBJECTS.items():
            value = getattr(self, name, None)  # older versions of transformers lack some
            if isinstance(value, str):
                setattr(self, name, _read_object(name, value, file_allowed))
        if self.optim_args is not None and any(part.count("=") != 1 for part in self.optim_args.split(",")):
            raise RecipeError(f"optim_args={self.optim_args!r} must be names and values, like: beta=0.9,gamma=0.5.")
        for choice in self.include_for_metrics:
            check_choice("include_for_metrics", choice, ("inputs", "loss"))
        if self.torch_compile_backend is not None:
            check_choice("torch_compile_backend", self.torch_compile_backend, _compile_backends())
        if self.torch_compile_mode is not None:
            check_choice("torch_compile_mode", self.torch_compile_mode, _COMPILE_MODES)
        reports = [self.report_to] if isinstance(self.report_to, str) else self.report_to or []
        for name in reports:
            check_choice("report_to", name, ("none", "all", *INTEGRATION_TO_CALLBACK))
        if self.hub_model_id is not None:
            try:
                validate_repo_id(self.hub_model_id)
            except HFValidationError as error:
                raise RecipeError(f"hub_model_id={self.hub_model_id!r} is no name of a repository: {error}") from None
        if self.deepspeed is not None:
            with needs_extra("deepspeed"):
                version("deepspeed")

    @property
    def term_weights(self) -> dict[str, float]:
        """Name and weight of each distillation term."""
        assert isinstance(self.terms, dict)
        return self.terms


def _compile_backends() -> tuple[object, ...]:
    return tuple(torch.compiler.list_backends(exclude_tags=()))


def _read_object(name: str, text: str, file_allowed: bool) -> dict[str, Any]:
    """The JSON object that an option gives, itself or by the name of a file."""
    inline = text.lstrip().startswith("{") or not file_allowed
    try:
        value = parse_json(text) if inline else read_json(text)
        if not isinstance(value, dict):
            raise ValueError(f"it is {value!r:.80}")
    except (OSError, ValueError) as error:
        what = "a JSON object, or the name of a file with one" if file_allowed else "a JSON object"
        raise RecipeError(f"{name}={text!r:.80} must be {what} ({error}).") from error
    return value
