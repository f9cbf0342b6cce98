"""`XTCTrainer`: the standard Trainer loop with a frozen teacher, distillation terms, and packed files as its product.

Overrides `compute_loss` (terms instead of the head's loss, while training), `log` (each term by name) and
`save_model` (packed; `checkpoint-*` folders stay latent, so that training resumes).
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer

from hf_xtc.attention import SCORES
from hf_xtc.callbacks import QuantizationCallback
from hf_xtc.checkpoint import last_checkpoint
from hf_xtc.compress import is_packed, pack_model
from hf_xtc.distillation import TERMS, DistillationTerm, HiddenStatesTerm, LogitsTerm
from hf_xtc.errors import RecipeError, StateError, XTCError
from hf_xtc.specs import LayerMap
from hf_xtc.training_args import XTCTrainingArguments

logger = logging.getLogger(__name__)

PROJECTION = "distillation_projection"


class XTCTrainer(Trainer):
    """Trains a latent student against a teacher and saves it packed.

    `push_to_hub` is still Trainer's own and uploads what its checkpoints hold: latent weights. To publish the packed
    file, call `save_model(folder)` and upload that folder.

    Args:
        model (`PreTrainedModel`, *optional*): Latent student, as `compress` makes it; or give `model_init`.
        args (`XTCTrainingArguments`, *optional*): Terms, stages and everything the Trainer knows.
        teacher_model (`PreTrainedModel`, *optional*): Fine-tuned teacher, in any float dtype; frozen and put in eval
            mode. Not needed where the only term is "labels".
        kwargs: As in `transformers.Trainer`.

    Raises:
        StateError: if the student is packed.
        XTCError: if a teacher is missing, or student and teacher do not fit each other.
        RecipeError: if a stage of distillation would have no term.
    """

    # Terms are batch means; Trainer divides by the accumulation steps itself.
    loss_is_scaled_for_ga = False
    args: XTCTrainingArguments

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        args: XTCTrainingArguments | None = None,
        *,
        teacher_model: PreTrainedModel | None = None,
        **kwargs: Any,
    ):
        args = XTCTrainingArguments(output_dir="tmp_trainer") if args is None else args
        if not isinstance(args, XTCTrainingArguments):
            raise XTCError(
                f"args is a {type(args).__name__}; XTCTrainer needs XTCTrainingArguments (same fields, more)."
            )
        self._check_teacher(args, teacher_model)
        if kwargs.get("compute_loss_func") is not None or args.label_smoothing_factor:
            raise XTCError(
                "compute_loss_func and label_smoothing_factor would be ignored: XTCTrainer trains on its terms. "
                "Register a DistillationTerm of your own instead."
            )
        self.teacher = teacher_model
        self.terms = _build_terms(args)
        self._stages = [
            stage_terms(list(self.terms), i, args.distillation_stages) for i in range(args.distillation_stages)
        ]
        self._term_sums: dict[str, Tensor] = {}
        self._term_steps = 0
        self._attention_before: list[tuple[Any, str]] = []
        super().__init__(model, args, **kwargs)
        self.model_accepts_loss_kwargs = False
        if kwargs.get("model_init") is None:
            self._prepare_student(self.model)
        if self.teacher is not None:
            self.teacher.requires_grad_(False).eval()
            self.teacher = self.accelerator.prepare_model(self.teacher.to(args.device), evaluation_mode=True)
        self.add_callback(QuantizationCallback(args.weight_quantization_start, args.activation_quantization_start))

    @staticmethod
    def _check_teacher(args: XTCTrainingArguments, teacher: PreTrainedModel | None) -> None:
        taught = [name for name in args.term_weights if name != "labels"]
        if teacher is None and taught:
            raise XTCError(
                f"The terms {', '.join(taught)} need a teacher. Give teacher_model, or terms={{'labels': 1.0}} to "
                "train on labels alone."
            )

    def _prepare_student(self, student: Any) -> None:
        """Checks a student, fits it to the teacher, and makes attention return its scores where a term needs them."""
        if is_packed(student):
            raise StateError(
                f"{type(student).__name__} is packed: its codes cannot be trained. Call unpack_model(model) and train "
                "the latent model it returns, or train an adapter on the packed one with the stock Trainer."
            )
        if self.teacher is None:
            return
        teacher: Any = self.teacher.config
        _fit_logits(self.terms.get("logits"), student.config)
        self._layer_map = _layer_map(student.config, teacher)
        self._label_order = label_order(student.config, teacher)
        hidden = self.terms.get("hidden_states")
        if isinstance(hidden, HiddenStatesTerm) and student.config.hidden_size != teacher.hidden_size:
            # A submodule of the student: so it is optimised, checkpointed and moved with it. pack_model leaves it out.
            projection = nn.Linear(student.config.hidden_size, teacher.hidden_size, bias=False)
            student.add_module(PROJECTION, projection.to(next(student.parameters()).device))
            hidden.projection = student.get_submodule(PROJECTION)

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """As in Trainer; each new student is checked and fitted to the teacher."""
        model: nn.Module = super().call_model_init(trial)
        self._prepare_student(model)
        return model

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """As in Trainer; at the end, however it ends, both models have their attention implementations back."""
        self._term_sums, self._term_steps = {}, 0
        try:
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        finally:
            while self._attention_before:
                model, implementation = self._attention_before.pop()
                model.set_attn_implementation(implementation)

    def term_weights(self) -> dict[str, float]:
        """Name and weight of the terms that train at the current step: a function of `state.global_step` alone."""
        stages = self.args.distillation_stages
        stage = min(self.state.global_step * stages // max(self.state.max_steps, 1), stages - 1)
        return {name: float(self.args.term_weights[name]) for name in self._stages[stage]}

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """While training, the weighted sum of the terms; in evaluation the head's own loss."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        weights = self.term_weights()
        student, teacher = self._run(model, inputs, list(weights))
        losses = {name: self.terms[name](student, teacher, inputs, self._layer_map) for name in weights}
        self._check_finite(losses)
        self._record(losses)
        loss = torch.stack([weights[name] * losses[name] for name in weights]).sum()
        return (loss, student) if return_outputs else loss

    def _run(self, model: nn.Module, inputs: Mapping[str, Any], names: list[str]) -> tuple[Any, Any]:
        """Outputs of student and teacher, with just what the active terms read."""
        needs = frozenset().union(*(self.terms[name].needs for name in names))
        asked = {f"output_{kind}": True for kind in needs}
        unlabelled = {key: value for key, value in inputs.items() if key not in self.label_names}
        self._return_scores(model)
        student = model(**(inputs if "labels" in names else unlabelled), **asked)
        if self.teacher is None:
            return student, None
        self._return_scores(self.teacher)
        with torch.no_grad():
            teacher = self.teacher(**unlabelled, **asked)
        if self._label_order is not None and "logits" in teacher:
            teacher["logits"] = teacher["logits"][..., self._label_order]
        return student, teacher

    def _return_scores(self, model: nn.Module) -> None:
        """In all stages if any term reads scores: implementations round differently, and a run may resume in any."""
        unwrapped: Any = self.accelerator.unwrap_model(model)
        wanted = any("attentions" in term.needs for term in self.terms.values())
        if wanted and unwrapped.config._attn_implementation != SCORES:
            self._attention_before.append((unwrapped, unwrapped.config._attn_implementation))
            unwrapped.set_attn_implementation(SCORES)

    _layer_map = LayerMap((0,), 1)
    _label_order: list[int] | None = None

    def _check_finite(self, losses: dict[str, Tensor]) -> None:
        """Stops at the first loss that is none; what was saved before stays as it is."""
        finite = torch.isfinite(torch.stack(list(losses.values()))).tolist()
        bad = [name for name, good in zip(losses, finite, strict=True) if not good]
        if bad:
            saved = last_checkpoint(self.args.output_dir)
            kept = f"The last checkpoint is {saved}." if saved else "No checkpoint had been saved."
            raise StateError(
                f"The term {', '.join(bad)} is NaN or infinite at step {self.state.global_step + 1}; training "
                f"stopped. {kept} Use a lower learning_rate than {self.args.learning_rate:g}, or train without fp16."
            )

    def _record(self, losses: dict[str, Tensor]) -> None:
        for name, loss in losses.items():
            self._term_sums[name] = self._term_sums.get(name, torch.zeros_like(loss)) + loss.detach()
        self._term_steps += 1

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in Trainer, with the mean of each term since the last log under its registered name."""
        if "loss" in logs and self._term_steps:
            for name, total in self._term_sums.items():
                logs[name] = round(self.accelerator.gather(total / self._term_steps).mean().item(), 6)
            self._term_sums, self._term_steps = {}, 0
        super().log(logs, start_time)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As in Trainer, but weights that are no numbers are not saved: they would take the place of good ones."""
        weights = [parameter.detach().sum() for parameter in self.model.parameters()]
        if not bool(torch.isfinite(torch.stack(weights)).all()):
            raise StateError(
                f"Weights are NaN or infinite after step {self.state.global_step}; training stopped, and earlier "
                f"checkpoints are kept. Use a lower learning_rate than {self.args.learning_rate:g}."
            )
        super()._save_checkpoint(model, trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the *packed* model and the tokenizer; `checkpoint-*` folders, written by the loop, stay latent.

        Raises:
            StateError: if a latent weight is NaN or infinite, or the folder cannot be written.
        """
        student = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if _internal_call or getattr(student.config, "state", None) != "latent":
            super().save_model(output_dir, _internal_call)
            return
        folder = self.args.output_dir if output_dir is None else output_dir
        if self.args.should_save:
            pack_model(student).save_pretrained(folder)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)


def stage_terms(names: list[str], stage: int, stages: int) -> list[str]:
    """The terms that train in one stage: 2 stages are intermediate, head; 3 are intermediate, all, head.

    Raises:
        RecipeError: if the stage would have none.
    """
    first, last = stage == 0 and stages > 1, stage == stages - 1 and stages > 1
    intermediate = {name for name in names if TERMS[name].intermediate}
    active = [n for n in names if (not first or n in intermediate) and (not last or n not in intermediate)]
    if not active:
        kind = (
            "intermediate terms (hidden_states, attention_scores)" if first else "terms of the head (logits, labels)"
        )
        raise RecipeError(
            f"distillation_stages={stages} with terms {', '.join(names)}: stage {stage + 1} trains the {kind}, "
            "and there are none. Add one, or use distillation_stages=1."
        )
    return active


def label_order(student: Any, teacher: Any) -> list[int] | None:
    """Indices that bring the teacher's logits into the student's label order; `None` where nothing is to be done.

    Args:
        student, teacher (`PreTrainedConfig`): Their `label2id` are compared by name, ignoring case.

    Raises:
        XTCError: if both name their labels and the names differ.
    """
    if student.num_labels != teacher.num_labels or not getattr(teacher, "id2label", None):
        return None
    ours = [str(student.id2label[i]).lower() for i in range(student.num_labels)]
    theirs = [str(teacher.id2label[i]).lower() for i in range(teacher.num_labels)]
    generic = [f"label_{i}" for i in range(student.num_labels)]
    if ours == theirs or generic in (ours, theirs):
        return None
    if sorted(ours) != sorted(theirs):
        raise XTCError(
            f"The student's labels are {ours}, the teacher's {theirs}: their logits mean different things. "
            "Set label2id and id2label of both configs to the same names."
        )
    logger.warning("Teacher and student order their labels differently; the teacher's logits are reordered by name.")
    return [theirs.index(name) for name in ours]


def _build_terms(args: XTCTrainingArguments) -> dict[str, DistillationTerm]:
    options: dict[str, dict[str, Any]] = {"logits": {"temperature": args.temperature}}
    return {name: TERMS[name](**options.get(name, {})) for name in args.term_weights}


def _fit_logits(term: DistillationTerm | None, student: Any) -> None:
    """Tells the term 'logits' what kind of head it compares.

    Raises:
        XTCError: for a multi-label head, whose outputs are no distribution.
    """
    if isinstance(term, LogitsTerm):
        if student.problem_type == "multi_label_classification":
            raise XTCError(
                "The term 'logits' compares one distribution over classes; a multi-label head has one per label. "
                "Use the terms hidden_states, attention_scores and labels."
            )
        term.regression = student.problem_type == "regression"


def _layer_map(student: Any, teacher: Any) -> LayerMap:
    layer_map = getattr(student, "layer_map", None)
    if layer_map is None:
        return LayerMap.skip(teacher.num_hidden_layers, student.num_hidden_layers)
    if layer_map.num_teacher_layers != teacher.num_hidden_layers:
        raise XTCError(
            f"The student's layer map names layers {layer_map.layers} of a {layer_map.num_teacher_layers}-layer "
            f"teacher, but this teacher has {teacher.num_hidden_layers}. Use the teacher it was compressed from."
        )
    found: LayerMap = layer_map
    return found
