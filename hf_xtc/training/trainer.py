"""`XTCTrainer`: Trainer's loop with a frozen teacher, distillation terms, and packed files as output.

Overrides `compute_loss` (terms instead of the head's loss, while training), `training_step` (the second pass of
adversarial training), `log` (each term by name), `get_train_dataloader` (the teacher cache, if there is one), the
order of rows grouped by length, and what is saved and published: `save_model`, `push_to_hub` and the pushes during
training write the packed form of a latent student. Any other model is saved as in Trainer, and is not published:
Trainer would upload `training_args.bin` too.
"""

import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler
from transformers import AutoConfig, PreTrainedModel, Trainer
from transformers.trainer_pt_utils import find_batch_size
from transformers.trainer_utils import HubStrategy, has_length
from transformers.utils import PushInProgress

from hf_xtc.compression.convert import is_packed, with_weights
from hf_xtc.distillation.cache import ROW, TARGETS, CachedTargets, NumberedRows, TeacherCache, Teaching
from hf_xtc.distillation.matching import build_terms, fit_layers, fit_logits, fit_pooling, label_order, stage_terms
from hf_xtc.distillation.terms import HiddenStatesTerm
from hf_xtc.errors import StateError, XTCError
from hf_xtc.files.writing import WEIGHT_FILES, whole_checkpoint, whole_folder
from hf_xtc.hub.publish import write_packed
from hf_xtc.hub.upload import hub_errors, push_folder
from hf_xtc.modeling.adapters import has_adapters
from hf_xtc.modeling.architecture import check_pair
from hf_xtc.modeling.attention import SCORES, check_scores, return_scores
from hf_xtc.modeling.sharded_weights import is_sharded
from hf_xtc.recipe.layer_map import LayerMap
from hf_xtc.training.adversarial import embedding_weight, moved
from hf_xtc.training.arguments import XTCTrainingArguments
from hf_xtc.training.callbacks import BestCheckpointCallback, QuantizationCallback
from hf_xtc.training.finite_checks import require_finite_losses, require_finite_weights
from hf_xtc.training.length_batches import LengthGroupedBatches, row_lengths
from hf_xtc.training.saving import FAILED, latent_student, log_failed_push, require_student, write_student_card
from hf_xtc.training.sharding import prepared_teacher, restore_forward

logger = logging.getLogger(__name__)

PROJECTION = "distillation_projection"


def _has_columns(rows: Any) -> bool:
    """Whether rows are a `datasets.Dataset`, of which Trainer keeps only the columns that the model reads."""
    datasets: Any = sys.modules.get("datasets")  # an optional package
    return datasets is not None and isinstance(rows, datasets.Dataset)


class XTCTrainer(Trainer):
    """Trains a latent student against a teacher; saves and publishes it packed.

    Args:
        model (`PreTrainedModel`, *optional*): Latent student, as `compress` makes it, or a latent or packed model with
            adapters (`PeftModel`), of which only the adapters are trained and saved; or give `model_init`.
        args (`XTCTrainingArguments`, *optional*): Terms, stages and all arguments of the Trainer.
        teacher_model (`PreTrainedModel`, *optional*): Fine-tuned teacher, in any float dtype, with or without
            adapters; frozen, put in eval mode and moved to the device of the training. Not needed if the only term is
            "labels", or if `args.teacher_cache` is complete.
        kwargs: As in `transformers.Trainer`.

    Raises:
        StateError: if the student is packed; when training starts, if the teacher cache was made for another
            training or the disk is too small for it.
        XTCError: if a teacher is missing, or student and teacher do not fit each other, or if `compute_loss_func` or
            `label_smoothing_factor` is given with another term than "labels"; when training starts, if the rows or
            the teacher cannot be cached.
        RecipeError: if a stage of distillation would have no term.
    """

    args: XTCTrainingArguments
    push_in_progress: Any
    train_dataset: Any
    data_collator: Any
    # Without a teacher these stay as they are.
    _layer_map = LayerMap((0,), 1)
    _label_order: list[int] | None = None
    _built_from: tuple[Any, ...] | None = None

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
            raise XTCError(f"args is a {type(args).__name__}; XTCTrainer needs XTCTrainingArguments, its subclass.")
        self.teacher = teacher_model
        self.compute_loss_func = kwargs.get("compute_loss_func")
        self._schedule = QuantizationCallback()
        self._term_sums: dict[str, Tensor] = {}
        self._term_steps = 0
        self._restore_attention: list[Callable[[], None]] = []
        self._read_arguments(args)
        if model is not None:
            restore_forward(model)
        super().__init__(model, args, **kwargs)
        self.model_accepts_loss_kwargs = False
        if kwargs.get("model_init") is None:
            self._prepare_student(self.model)
        if self.teacher is not None:
            self.teacher.requires_grad_(False).eval()
            self.teacher = prepared_teacher(self.teacher.to(args.device), self.accelerator, args.teacher_cache is None)
        self.add_callback(self._schedule)
        self.add_callback(BestCheckpointCallback())

    def _read_arguments(self, args: XTCTrainingArguments) -> bool:
        """Builds the terms, the stages and the schedule that the arguments name; returns whether the terms are new.

        Called when the trainer is made, so that errors come early, and again when a training starts: a search of
        hyper-parameters sets fields of `args` in between.
        """
        if (self.compute_loss_func is not None or args.label_smoothing_factor) and list(args.term_weights) != [
            "labels"
        ]:
            raise XTCError(
                "compute_loss_func and label_smoothing_factor change the loss on labels, and can be used with "
                f"terms={{'labels': 1.0}} alone, but the terms are {', '.join(args.term_weights)}. Drop them, or "
                "register a DistillationTerm of your own."
            )
        # Terms are batch means, which Trainer divides by the accumulation steps; such a function divides by itself.
        self.loss_is_scaled_for_ga = self.compute_loss_func is not None
        self._schedule.weight_start = args.weight_quantization_start
        self._schedule.activation_start = args.activation_quantization_start
        self._schedule.weight_annealing = args.weight_annealing
        built_from = (dict(args.term_weights), args.temperature, args.distillation_stages)
        if built_from == self._built_from:
            return False
        self._built_from = built_from
        self._teacher_terms = [name for name in args.term_weights if name != "labels"]
        self._teacher_config = self._find_teacher_config(args, self.teacher)
        self.terms = build_terms(args.term_weights, args.temperature)
        stages = args.distillation_stages
        self._stages = [stage_terms(list(self.terms), i, stages) for i in range(stages)]
        return True

    def _require_gradients_of_outputs(self) -> None:
        """Turns reentrant checkpointing off, if a term reads hidden states or scores.

        It runs the layers without gradients in the forward pass, where these outputs are recorded: such a term would
        be logged and teach nothing.
        """
        for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
            options = getattr(self.args, name, None)
            if options and options.get("use_reentrant") and any(term.needs for term in self.terms.values()):
                logger.warning("Reentrant checkpointing would hide hidden states and scores from the loss; it is off.")
                setattr(self.args, name, {**options, "use_reentrant": False})

    def _hp_search_setup(self, trial: Any) -> None:
        """As in Trainer, which sets fields of `args` to the values of a trial."""
        super()._hp_search_setup(trial)
        if trial is not None and self._read_arguments(self.args):
            self._prepare_student(self.model)

    def _find_teacher_config(self, args: XTCTrainingArguments, teacher: PreTrainedModel | None) -> Any:
        """Returns the configuration of the teacher, given or cached; `None` if no term needs a teacher."""
        if teacher is not None or not self._teacher_terms:
            return None if teacher is None else teacher.config
        if args.teacher_cache is None:
            raise XTCError(
                f"The terms {', '.join(self._teacher_terms)} need a teacher. Give teacher_model, or "
                "terms={'labels': 1.0} to train on labels alone."
            )
        values = TeacherCache(args.teacher_cache).manifest.teacher_config
        return AutoConfig.for_model(**values)

    def _prepare_student(self, student: Any) -> None:
        """Checks a student, and fits the terms, the layer map and the order of labels to it and the teacher."""
        if is_packed(student) and not has_adapters(student):
            raise StateError(
                f"{type(student).__name__} is packed: its codes cannot be trained. Call unpack_model(model) and train "
                "the latent model it returns, or train an adapter on the packed one (get_peft_model)."
            )
        teacher = self._teacher_config
        if teacher is None:
            return
        check_pair(student.config, teacher)
        if any("attentions" in term.needs for term in self.terms.values()):
            check_scores(teacher)
        fit_logits(self.terms.get("logits"), student.config)
        if fit_pooling(self.terms.values(), student.config):
            pooler = getattr(student, "pooler", None)  # of a model without a head; these terms do not read its output
            if isinstance(pooler, nn.Module):
                pooler.requires_grad_(False)  # else DistributedDataParallel waits for its gradients
        self._layer_map = fit_layers(student.config, teacher)
        self._label_order = label_order(student.config, teacher)
        hidden = self.terms.get("hidden_states")
        if isinstance(hidden, HiddenStatesTerm) and student.config.hidden_size != teacher.hidden_size:
            # A submodule of the student, to be optimized, checkpointed and moved with it; pack_model leaves it out.
            if not hasattr(student, PROJECTION):  # there is one from the last training
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
        """As in Trainer; afterwards, also after an error, restores the attention implementations of both models."""
        self._term_sums, self._term_steps = {}, 0
        if self._read_arguments(self.args) and self.model_init is None:
            self._prepare_student(self.model)
        self._require_gradients_of_outputs()
        try:
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        finally:
            while self._restore_attention:
                self._restore_attention.pop()()

    def term_weights(self) -> dict[str, float]:
        """Name and weight of the terms of the current step, which depend on `state.global_step` only."""
        stages = self.args.distillation_stages
        stage = min(self.state.global_step * stages // max(self.state.max_steps, 1), stages - 1)
        return {name: float(self.args.term_weights[name]) for name in self._stages[stage]}

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """As in Trainer; with `adversarial_epsilon` a second forward and backward pass with perturbed word embeddings.

        The gradients of both passes are added; the logged loss is that of the first pass.

        Raises:
            XTCError: if the word embeddings are frozen, or sharded over processes, and `adversarial_epsilon` is set.
        """
        epsilon = self.args.adversarial_epsilon
        if not epsilon:
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
            return loss
        weight = embedding_weight(self.accelerator.unwrap_model(model), deepspeed=self.is_deepspeed_enabled)
        before = None if weight.grad is None else weight.grad.clone()  # from gradient accumulation
        with self.accelerator.no_sync(model):  # the local gradient; the second pass reduces both over processes
            loss = super().training_step(model, inputs, num_items_in_batch)
        gradient = weight.grad if before is None else weight.grad - before
        recorded = dict(self._term_sums), self._term_steps
        with moved(weight, gradient, epsilon):
            super().training_step(model, inputs, num_items_in_batch)
        self._term_sums, self._term_steps = recorded
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Returns the weighted sum of the terms in train mode, the loss of the head in eval mode.

        Where the only term is "labels", Trainer's `label_smoothing_factor` and `compute_loss_func` apply to it.
        """
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        weights = self.term_weights()
        losses, student = self._term_losses(model, dict(inputs), list(weights), num_items_in_batch)
        step, rate = self.state.global_step + 1, self.args.learning_rate
        require_finite_losses(losses, step, rate, self.args.output_dir)
        self._record(losses)
        loss = torch.stack([weights[name] * losses[name] for name in weights]).sum()
        return (loss, student) if return_outputs else loss

    def _term_losses(
        self, model: nn.Module, inputs: dict[str, Any], names: list[str], num_items_in_batch: Tensor | int | None
    ) -> tuple[dict[str, Tensor], Any]:
        """Returns the losses of the active terms, and the student's outputs."""
        if self.compute_loss_func is not None or self.label_smoother is not None:  # "labels" is the only term
            loss, student = super().compute_loss(model, inputs, True, num_items_in_batch)
            return {"labels": loss.float()}, student
        cached = inputs.pop(TARGETS, None)
        student, teacher = self._run_models(model, inputs, names, cached)
        return {name: self.terms[name](student, teacher, inputs, self._layer_map) for name in names}, student

    def _run_models(
        self, model: nn.Module, inputs: Mapping[str, Any], names: list[str], cached: Any
    ) -> tuple[Any, Any]:
        """Returns the outputs of student and teacher that the active terms read; the teacher's may be cached."""
        needs = frozenset().union(*(self.terms[name].needs for name in names))
        unlabelled = {key: value for key, value in inputs.items() if key not in self.label_names}
        self._return_scores(model)
        student = model(**(inputs if "labels" in names else unlabelled), **{f"output_{kind}": True for kind in needs})
        teacher = cached
        if teacher is None and self.teacher is not None:
            teacher = self._run_teacher(unlabelled, needs)
        if self._label_order is not None and teacher is not None and "logits" in teacher:
            teacher["logits"] = teacher["logits"][..., self._label_order]
        return student, teacher

    def _run_teacher(self, inputs: Mapping[str, Any], needs: Iterable[str]) -> Any:
        """Returns the outputs of the teacher, with those that `needs` names."""
        teacher: Any = self.teacher
        self._return_scores(teacher)
        with torch.no_grad():
            return teacher(**inputs, **{f"output_{kind}": True for kind in needs})

    def get_train_dataloader(self) -> DataLoader[Any]:
        """As in Trainer; in a training with `teacher_cache`, batches contain the teacher's outputs.

        The cache is made or completed first, by one process while the others wait, at most `ddp_timeout` seconds.
        """
        source, collator = self.train_dataset, self.data_collator
        if source is None or not (self.args.teacher_cache and self._teacher_terms and self.is_in_train):
            loader: DataLoader[Any] = super().get_train_dataloader()
            return loader
        rows = NumberedRows(self._remove_unused_columns(source, "Training") if _has_columns(source) else source)
        cache = self._open_cache(rows)
        self._set_signature_columns_if_needed()
        if ROW not in self._signature_columns:
            self._signature_columns.append(ROW)
        try:
            self.train_dataset, self.data_collator = rows, CachedTargets(collator, cache)
            loader = super().get_train_dataloader()
        finally:
            self.train_dataset, self.data_collator = source, collator
        return loader

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """As in Trainer, but `group_by_length` shuffles its batches, and draws rows of unknown length in random order.

        A teacher cache does not change the order.
        """
        rows = self.train_dataset if train_dataset is None else train_dataset
        rows = rows.source if isinstance(rows, NumberedRows) else rows
        if rows is None or not has_length(rows) or self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(rows)
        column = self.args.length_column_name
        if _has_columns(rows) and column in rows.column_names:
            lengths: list[int] | None = [int(length) for length in rows[column]]
        else:
            lengths = row_lengths(rows, getattr(self.processing_class, "model_input_names", ["input_ids"])[0])
        if lengths is None:
            logger.info("The lengths of the train rows are not known; they are drawn in random order.")
            return RandomSampler(rows)
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return LengthGroupedBatches(lengths, batch_size, seed)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Rows are evaluated in their order, which scores of groups of rows rely on, and not grouped by length."""
        return SequentialSampler(eval_dataset) if eval_dataset is not None and has_length(eval_dataset) else None

    def _open_cache(self, rows: NumberedRows) -> TeacherCache:
        """Opens the teacher cache of this training, which is made or completed first."""
        teaching = Teaching(
            folder=Path(str(self.args.teacher_cache)),
            dtype=self.args.teacher_cache_dtype,
            rows=rows,
            collator=self._get_collator_with_removed_columns(self.data_collator),
            labels=self.label_names,
            terms=list(self.terms.values()),
            layer_map=self._layer_map,
            teacher_config=self._teacher_config,
            teacher=None if self.teacher is None else self.accelerator.unwrap_model(self.teacher),
            run=lambda batch, needs: self._run_teacher(self._prepare_inputs(batch), needs),
            tokenizer=self.processing_class,
            precision=self.accelerator.mixed_precision,
            batch_size=self.args.train_batch_size,
            quiet=self.args.disable_tqdm,
        )
        with self.args.main_process_first(local=self.args.save_on_each_node, desc="making the teacher cache"):
            return teaching.cache(make=self.args.should_save)

    def _return_scores(self, model: nn.Module) -> None:
        """Switches to the attention that returns its scores, if a term reads them.

        Terms of all stages count: attention implementations round differently, and a run may resume in any stage.
        """
        unwrapped: Any = self.accelerator.unwrap_model(model)
        needed = any("attentions" in term.needs for term in self.terms.values())
        if needed and unwrapped.config._attn_implementation != SCORES:
            self._restore_attention.append(return_scores(unwrapped))

    def _record(self, losses: dict[str, Tensor]) -> None:
        for name, loss in losses.items():
            self._term_sums[name] = self._term_sums.get(name, torch.zeros_like(loss)) + loss.detach()
        self._term_steps += 1

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in Trainer, with the mean of each term since the previous log, under its registered name."""
        if "loss" in logs and self._term_steps:
            for name, total in self._term_sums.items():
                logs[name] = round(self.accelerator.gather(total / self._term_steps).mean().item(), 6)
            self._term_sums, self._term_steps = {}, 0
        super().log(logs, start_time)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> Any:
        """As in Trainer, but rows that pad the last batch of several processes are left out of the loss too."""
        loss, *rest = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        state, size = self.accelerator.gradient_state, find_batch_size(inputs)
        if loss is not None and self.args.world_size > 1 and state.end_of_dataloader and state.remainder > 0:
            rows = min(max(state.remainder - self.args.process_index * size, 1), size)
            real = {key: value[:rows] if find_batch_size(value) == size else value for key, value in inputs.items()}
            loss = super().prediction_step(model, real, True, ignore_keys)[0]
        return (loss, *rest)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As in Trainer, but an incomplete checkpoint is removed; writes none if a weight is NaN or infinite.

        Raises:
            StateError: if a weight is NaN or infinite.
        """
        step = self.state.global_step
        require_finite_weights(self.model.parameters(), step, self.args.learning_rate)
        with whole_checkpoint(Path(self._get_output_dir(trial=trial), f"checkpoint-{step}")):
            super()._save_checkpoint(model, trial)

    # Saving and publishing: the packed form, except in `checkpoint-*`, from which training resumes.

    def _unwrapped(self) -> Any:
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def _student(self) -> Any:
        """Returns the latent student, unwrapped; `None` for any other model."""
        return latent_student(self._unwrapped())

    def _full_student(self) -> Any:
        """Returns the student with its full weights.

        If they are sharded, all processes must call this; the first gets a copy on the CPU, the others `None`.
        """
        student = self._student()
        if not is_sharded(student):
            return student
        weights = self.accelerator.get_state_dict(self.model_wrapped)
        return with_weights(student, weights) if self.is_world_process_zero() else None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the *packed* model and the tokenizer; the `checkpoint-*` folders of the training loop stay latent.

        With `push_to_hub=True` in the arguments it then publishes them, as in Trainer.

        Raises:
            StateError: if a latent weight is NaN or infinite, or the folder cannot be written.
            HubError: if it cannot be published; the folder is written.
        """
        student = self._student()
        if _internal_call or student is None:
            super().save_model(output_dir, _internal_call)
            return
        full = self._full_student()
        if self.args.should_save and full is not None:
            folder = self.args.output_dir if output_dir is None else output_dir
            write_packed(full, folder, tokenizer=self.processing_class)
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """As in Trainer, but each file appears in the folder only when it is complete, whatever the model."""
        if not self.args.should_save:
            super()._save(output_dir, state_dict)
            return
        with whole_folder(self.args.output_dir if output_dir is None else output_dir, replaces=WEIGHT_FILES) as folder:
            super()._save(str(folder), state_dict)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Makes the repository before training starts, as in Trainer (whose older versions have no `private`).

        Raises:
            XTCError: if the model is not a student, and cannot be published.
            HubError: if the Hub cannot be reached or refuses.
        """
        require_student(self._unwrapped())
        original = self.args.hub_private_repo
        try:
            self.args.hub_private_repo = original if private is None else private
            with hub_errors(self._repository()):
                super().init_hf_repo(token)
        finally:
            self.args.hub_private_repo = original

    def _repository(self) -> str:
        return str(self.args.hub_model_id or Path(self.args.output_dir).absolute().name)

    def create_model_card(self, model_name: str | None = None, **facts: Any) -> None:
        """Writes the card of a packed student into the output folder, with the metrics of the last evaluation.

        Args:
            model_name (`str`, *optional*): Name of the model on the card; by default the repository's name, or the
                folder's.
            facts: As in Trainer; a student's card uses `language`, `license`, `tags`, `dataset`, `dataset_tags`
                and `finetuned_from` (its teacher's name on the Hub).
        """
        student = self._student()
        if student is None:
            super().create_model_card(model_name=model_name, **facts)
        elif self.is_world_process_zero():
            name = model_name or self.hub_model_id or self._repository()
            write_student_card(student, self.args, self.state, name, facts)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Publishes the packed student, its tokenizer and card, in one commit; they are left in the output folder too.

        Args:
            commit_message (`str`, *optional*): Message of the commit.
            blocking (`bool`): Wait until the push has ended.
            token (`str`, *optional*): Hub token; by default `args.hub_token`.
            revision (`str`, *optional*): Branch to publish on.
            private (`bool`, *optional*): Make a new repository private.
            **kwargs (`Any`): As for `create_model_card`.

        Returns:
            `CommitInfo`, or a `Future` of it if not `blocking`; `None` on all processes but the first.

        Raises:
            XTCError: if the model is not a student: a float model, or one with adapters (says how to publish those).
            StateError: if a latent weight is NaN or infinite, or the output folder cannot be written.
            HubError: if the Hub cannot be reached or refuses; nothing was published.
        """
        require_student(self._unwrapped())
        token = self.args.hub_token if token is None else token
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        self._finish_current_push()
        full = self._full_student()
        if not self.is_world_process_zero():
            return None
        return self._push_packed(
            full,
            run_as_future=not blocking,
            card=kwargs,
            commit_message=commit_message,
            token=token,
            private=self.args.hub_private_repo if private is None else private,
            revision=revision or self.args.hub_revision,
        )

    def _push_packed(self, student: Any, *, card: dict[str, Any], **options: Any) -> Any:
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        write_packed(student, self.args.output_dir, tokenizer=self.processing_class)
        self.create_model_card(**card)
        return push_folder(self.args.output_dir, str(self.hub_model_id), **options)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Publishes the packed student in the background, at each save; a push that fails is only logged."""
        if self.args.hub_strategy == HubStrategy.END:
            return
        full = self._full_student()
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if not self.is_world_process_zero():
            return
        if busy and not self.args.hub_always_push:
            return
        try:
            job = self._push_packed(
                full,
                run_as_future=True,
                card={},
                commit_message=f"Training in progress, step {self.state.global_step}",
                token=self.args.hub_token,
                revision=self.args.hub_revision,
            )
        except XTCError as error:  # such as a weight outside the float16 range of the file
            logger.warning(FAILED, error)
            return
        job.add_done_callback(log_failed_push)
        if busy:
            self.push_in_progress.jobs.append(job)
        else:
            self.push_in_progress = PushInProgress([job])
