"""The arguments of a compression run."""

import json
import math
from dataclasses import dataclass, field, fields

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy

from hf_xtc.checks import check_choice
from hf_xtc.distillation.terms import TERMS
from hf_xtc.errors import RecipeError

DEFAULT_TERMS = {"logits": 1.0, "hidden_states": 1.0, "attention_scores": 1.0}

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
        if not 0 <= self.adversarial_epsilon < math.inf:
            raise RecipeError(f"adversarial_epsilon={self.adversarial_epsilon} must be finite and at least 0.")
        for name in ("weight_quantization_start", "activation_quantization_start", "weight_annealing"):
            if not 0 <= getattr(self, name) < math.inf:
                raise RecipeError(f"{name}={getattr(self, name)} must be a step, or a share of all steps below 1.")

    @property
    def term_weights(self) -> dict[str, float]:
        """Name and weight of each distillation term."""
        assert isinstance(self.terms, dict)
        return self.terms
