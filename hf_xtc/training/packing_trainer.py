"""`PackingTrainer`: a Trainer whose products are packed. What it saves for resuming (`checkpoint-*`) stays latent.

`save_model`, `push_to_hub` and the pushes during training write the packed form of a latent student. Any other model
is saved as in Trainer, and published by itself alone: Trainer would send its `training_args.bin` too.
"""

import logging
from concurrent.futures import Future
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from hf_xtc.compression.convert import with_weights
from hf_xtc.distillation.terms import TERMS
from hf_xtc.errors import XTCError
from hf_xtc.files.writing import WEIGHT_FILES, whole_folder
from hf_xtc.hub.publish import write_packed, write_plain_card
from hf_xtc.hub.upload import hub_errors, push_folder
from hf_xtc.modeling.adapters import has_adapters
from hf_xtc.modeling.sharded_weights import is_sharded

logger = logging.getLogger(__name__)

FAILED = "A push during training failed, and training goes on: %s"


class PackingTrainer(Trainer):
    """A Trainer that saves and publishes a latent XTC student packed."""

    args: Any
    push_in_progress: Any

    def _student(self) -> Any:
        """The latent student, unwrapped, or `None` for another model, such as one whose adapters alone are saved."""
        model: Any = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return model if getattr(model.config, "state", None) == "latent" and not has_adapters(model) else None

    def _whole_student(self) -> Any:
        """The student with all of its weights. Where they are sharded all processes must call this, and the first
        alone gets it: a copy in the memory of the CPU."""
        student = self._student()
        if not is_sharded(student):
            return student
        weights = self.accelerator.get_state_dict(self.model_wrapped)
        return with_weights(student, weights) if self.is_world_process_zero() else None

    def _require_student(self) -> None:
        model: Any = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if has_adapters(model):
            raise XTCError(
                f"{type(model).__name__} carries adapters, and XTCTrainer publishes packed students. Publish the "
                "adapters alone: trainer.model.push_to_hub('user/name')."
            )
        if self._student() is None:
            raise XTCError(
                f"{type(model).__name__} is a float model, and XTCTrainer publishes packed students. Compress it "
                "first: hf-xtc compress, or compress(model, recipe); or publish it as it is: "
                "trainer.model.push_to_hub('user/name')."
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the *packed* model and the tokenizer; `checkpoint-*` folders, written by the loop, stay latent.

        With `push_to_hub=True` in the arguments it is then published, as in Trainer.

        Raises:
            StateError: if a latent weight is NaN or infinite, or the folder cannot be written.
            HubError: if it cannot be published; the folder is written.
        """
        student = self._student()
        if _internal_call or student is None:
            super().save_model(output_dir, _internal_call)
            return
        whole = self._whole_student()
        if self.args.should_save and whole is not None:
            folder = self.args.output_dir if output_dir is None else output_dir
            write_packed(whole, folder, tokenizer=self.processing_class)
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """As in Trainer, but each file is there whole or not at all, whatever the model."""
        if not self.args.should_save:
            super()._save(output_dir, state_dict)
            return
        with whole_folder(self.args.output_dir if output_dir is None else output_dir, replaces=WEIGHT_FILES) as folder:
            super()._save(str(folder), state_dict)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """As in Trainer (whose older versions know no `private`): makes the repository, before training starts.

        Raises:
            XTCError: if the model is no student, so that nothing could be published.
            HubError: if the Hub cannot be reached or refuses.
        """
        self._require_student()
        stated = self.args.hub_private_repo
        try:
            self.args.hub_private_repo = stated if private is None else private
            with hub_errors(self._repository()):
                super().init_hf_repo(token)
        finally:
            self.args.hub_private_repo = stated

    def _repository(self) -> str:
        return str(self.args.hub_model_id or Path(self.args.output_dir).absolute().name)

    def create_model_card(self, model_name: str | None = None, **facts: Any) -> None:
        """Writes the card of a packed student into the output folder, with the metrics of the last evaluation.

        Args:
            model_name (`str`, *optional*): What the card calls the model; by default the repository's name, or the
                folder's.
            facts: As in Trainer; a student's card has use for `language`, `license`, `tags`, `dataset`, `dataset_tags`
                and `finetuned_from` (its teacher's name on the Hub).
        """
        student = self._student()
        if student is None:
            super().create_model_card(model_name=model_name, **facts)
        elif self.is_world_process_zero():
            name = model_name or self.hub_model_id or self._repository()
            metadata = {key: facts.get(key) for key in ("language", "license", "tags")}
            metadata["datasets"] = facts.get("dataset_tags") or facts.get("dataset")
            metadata["base_model"] = facts.get("finetuned_from")
            write_plain_card(
                student.config,
                type(student),
                self.args.output_dir,
                name,
                metrics=self._last_metrics(),
                made=self._made(),
                citations=tuple(line for term in self.args.term_weights for line in TERMS[term].citations),
                metadata=metadata,
            )

    def _last_metrics(self) -> dict[str, float]:
        logs: dict[str, Any] = next((logs for logs in reversed(self.state.log_history) if "eval_loss" in logs), {})
        timing = ("_runtime", "_per_second", "_time")
        return {
            key.removeprefix("eval_"): float(value)
            for key, value in logs.items()
            if key.startswith("eval_") and not key.endswith(timing)
        }

    def _made(self) -> dict[str, Any]:
        arguments = ("learning_rate", "per_device_train_batch_size", "seed", "terms", "bf16", "fp16")
        return {
            "training": {
                "steps": self.state.global_step,
                "epochs": self.state.epoch or 0,
                **{name: getattr(self.args, name) for name in arguments},
            },
            "versions": {package: version(package) for package in ("hf_xtc", "torch", "transformers")},
        }

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
            commit_message, blocking, token, revision, private, kwargs: As in Trainer; `kwargs` go to
                `create_model_card`.

        Returns:
            `CommitInfo`, or a `Future` of it if not `blocking`; `None` on other processes than the first.

        Raises:
            XTCError: if the model is no student: a float model, or one with adapters (says how to publish those).
            StateError: if a latent weight is NaN or infinite, or the output folder cannot be written.
            HubError: if the Hub cannot be reached or refuses; nothing was published.
        """
        self._require_student()
        token = self.args.hub_token if token is None else token
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        self._finish_current_push()
        whole = self._whole_student()
        if not self.is_world_process_zero():
            return None
        return self._push_packed(
            whole,
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
        """At each save, in the background: as in Trainer, but the packed student; one that fails is only logged."""
        if self.args.hub_strategy == HubStrategy.END:
            return
        whole = self._whole_student()
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if not self.is_world_process_zero():
            return
        if busy and not self.args.hub_always_push:
            return
        try:
            job = self._push_packed(
                whole,
                run_as_future=True,
                card={},
                commit_message=f"Training in progress, step {self.state.global_step}",
                token=self.args.hub_token,
                revision=self.args.hub_revision,
            )
        except XTCError as error:  # such as a weight that the file's float16 cannot hold yet
            logger.warning(FAILED, error)
            return
        job.add_done_callback(_log_failure)
        if busy:
            self.push_in_progress.jobs.append(job)
        else:
            self.push_in_progress = PushInProgress([job])


def _log_failure(job: "Future[Any]") -> None:
    if not job.cancelled() and job.exception() is not None:
        logger.warning(FAILED, job.exception())
