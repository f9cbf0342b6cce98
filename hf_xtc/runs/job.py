"""The inputs of a compression run, checked before anything is written: data, recipe, schedule and arguments."""

import copy
import dataclasses
import json
import logging
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer

from hf_xtc.compression.convert import student_class
from hf_xtc.compression.size_ledger import ledger
from hf_xtc.compression.target_size import choose, parse_bytes
from hf_xtc.compression.vocabulary import can_trim, kept_tokens
from hf_xtc.data.augmentation import augment
from hf_xtc.data.task_data import DataArguments, TaskData, read_splits
from hf_xtc.data.unlabelled import SIDES, load_unlabelled, reserved_rows, with_teacher_labels
from hf_xtc.distillation.cache.format import check_cache_folder
from hf_xtc.errors import DataError, RecipeError, StateError, XTCError, needs_extra
from hf_xtc.files.lock import FolderLock
from hf_xtc.files.writing import clear_unfinished, require_empty
from hf_xtc.hub.results import Row
from hf_xtc.hub.upload import open_repository
from hf_xtc.recipe.xtc_recipe import XTCRecipe
from hf_xtc.runs.arguments import AugmentationArguments, JobArguments, RecipeArguments
from hf_xtc.runs.evaluation import check_options, measure
from hf_xtc.runs.fingerprint import (
    candidates_digest,
    deciding,
    digest,
    model_digest,
    open_run,
    quantizer_digests,
    read_run,
    remove_run,
    tokenizer_digest,
    versions,
)
from hf_xtc.runs.model_checks import check_config, check_tokenizer
from hf_xtc.runs.schedule import Schedule, budget_epochs
from hf_xtc.runs.teacher import load_config, load_reported, load_tokenizer
from hf_xtc.runs.warm_start import check_start
from hf_xtc.tasks import Task, find_task
from hf_xtc.tasks.sentence_embedding import read_settings
from hf_xtc.training.arguments import DEFAULT_TERMS, XTCTrainingArguments
from hf_xtc.training.trainer import XTCTrainer

with needs_extra("cli"):
    from datasets import Dataset

logger = logging.getLogger(__name__)

# Options of TrainingArguments that would be ignored here, or would do something else -> what to do instead.
UNSUPPORTED = {
    "resume_from_checkpoint": "a run that is started again with the same options resumes by itself.",
    "label_names": "rows have one label, in --label_column.",
    "length_column_name": "it takes the length of each row from its tokens.",
}


@dataclass
class Job:
    """Everything the stages share; the data are tokenized once.

    Without `students` only the teacher is trained. `teacher` is the one that was loaded, unless it is fine-tuned here.
    `sources` describes the models and word tables that were loaded.
    """

    args: JobArguments
    data_args: DataArguments
    recipe: XTCRecipe
    schedule: Schedule
    training_args: XTCTrainingArguments
    augmentation: AugmentationArguments
    task: Task
    data: TaskData
    tokenizer: Any
    unlabelled: Dataset | None = None
    students: bool = True
    teacher: PreTrainedModel | None = None
    sources: dict[str, Any] = field(default_factory=dict)
    augmented: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        splits = {"train": self.data.train, "validation": self.data.validation, **self.data.extra_validation}
        if self.data.selection is not None:
            splits["selection"] = self.data.selection
        self._rows = splits
        self.tokenized = {name: self._tokenize(split) for name, split in splits.items()}

    def with_tokenizer(self, tokenizer: Any) -> "Job":
        """The same job with rows that another tokenizer encodes."""
        other = copy.copy(self)
        other.tokenizer = tokenizer
        other.tokenized = {name: other._tokenize(rows) for name, rows in self._rows.items()}
        return other

    def _tokenize(self, rows: Dataset) -> Dataset:
        return self.task.tokenize(rows, self.tokenizer, self.data_args)

    @property
    def out(self) -> Path:
        """The folder of the packed model."""
        return Path(self.training_args.output_dir)

    @property
    def name(self) -> str:
        """The model's name: the repository it is published in, or its folder's name."""
        return str(self.training_args.hub_model_id if self.training_args.push_to_hub else self.out.resolve().name)

    @property
    def training(self) -> Path:
        """The folder of the unpacked models: checkpoints and models of the stages."""
        return self.out / "training"

    @property
    def metric(self) -> str:
        """Key of the task's main score."""
        return self.task.main_metric(self.data)

    def sizes(self) -> dict[str, Any]:
        """Rows of the splits and the longest row."""
        held_out = self.data.selection
        unlabelled = 0 if self.unlabelled is None else len(self.unlabelled)
        return {
            "train_rows": len(self.data.train),
            **self.task.facts(self.data),
            "augmented_rows": self.augmented,
            **({"vocabulary": len(self.tokenizer)} if self.args.trim_vocabulary else {}),
            **({"unlabelled_rows": unlabelled, "unlabelled_from": self._sources()} if unlabelled else {}),
            "held_out_rows": 0 if held_out is None else len(held_out),
            "validation_rows": len(self.data.validation),
            "max_length": self.data_args.max_length,
        }

    def _sources(self) -> list[str]:
        """Names of the sources of the unlabelled rows, without their paths."""
        return [Path(source).name for source in self.data_args.unlabelled]

    @cached_property
    def description(self) -> dict[str, Any]:
        """Everything that determines the result of the run."""
        validations = {name: split.to_dict() for name, split in self.data.extra_validation.items()}
        arguments, positive = self.training_args, self.data_args.positive_label
        best = any(stage.training.get("load_best_model_at_end") for stage in self.schedule.stages)
        shared = {
            "data": {
                "fingerprint": self.data.fingerprint,
                "max_length": self.data_args.max_length,
                **({} if positive is None else {"positive_label": positive}),
                **self.task.settings(self.data_args),
            },
            "task": self.data.task,
            "rows": [len(self.data.train), len(self.data.validation)],
            **({"more_validation": digest(validations)} if validations else {}),
            **self.sources,
            "job": {name: value for name, value in dataclasses.asdict(self.args).items() if name not in _EXCLUDED},
            "training": deciding(arguments, distils=self.students, best=best),
            "rows_per_step": arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size,
            "versions": versions(),
        }
        if not self.students:
            return shared
        more = {} if self.unlabelled is None else {"unlabelled": digest(self.unlabelled.to_dict())}
        augmentation = dataclasses.asdict(self.augmentation)
        return {
            **shared,
            **more,
            "augmentation": {name: value for name, value in augmentation.items() if name not in _EXCLUDED},
            "recipe": self.recipe.to_dict(),
            "schedule": self.schedule.to_dict(),
        }

    def add_rows(self, teacher: PreTrainedModel) -> None:
        """Adds augmented and unlabelled rows, labelled by `teacher`, to the train rows, where asked for."""
        rows, length = self.data.train, self.data_args.max_length
        labelled = "label" in rows.column_names
        if self.augmentation.augment:
            rows = augment(
                rows,
                self.augmentation.settings(self.data.task, self.training_args.seed),
                self.augmentation.source(teacher, self.tokenizer),
                exclude=reserved_rows(self.data),
                teacher=teacher if labelled else None,
                tokenizer=self.tokenizer,
                max_length=length,
            )
            self.augmented = len(rows) - len(self.data.train)
        if self.unlabelled is not None:
            label = partial(self.task.teacher_labels, teacher, self.tokenizer, args=self.data_args)
            rows = with_teacher_labels(self.unlabelled, rows, label)
        if rows is not self.data.train:
            texts = [column for column in (*SIDES, "label") if column in rows.column_names]
            self._rows["train"] = rows.select_columns(texts)
            self.tokenized["train"] = self._tokenize(self._rows["train"])

    def trainer(
        self, model: PreTrainedModel, teacher: PreTrainedModel | None, arguments: XTCTrainingArguments
    ) -> XTCTrainer:
        """A trainer on the train rows that evaluates on the held-out rows or, without any, on the validation split."""
        rows = self.tokenized.get("selection", self.tokenized["validation"])
        made: XTCTrainer = self.task.trainer_class(XTCTrainer)(
            model,
            arguments,
            teacher_model=teacher,
            train_dataset=self.tokenized["train"],
            eval_dataset=rows,
            processing_class=self.tokenizer,
            data_collator=self.task.collator(self.tokenizer),
            compute_metrics=self.task.compute_metrics(self.data, rows),
            preprocess_logits_for_metrics=self.task.reduce_outputs,
        )
        return made

    def measure(self, trainer: Trainer, splits: dict[str, Any]) -> dict[str, float]:
        """Metrics of a trainer's model on tokenized splits, the main one first; see `evaluation.measure`."""
        return measure(trainer, self.task, self.data, splits)

    def validation(self) -> dict[str, Any]:
        """The splits to report on, the main one first."""
        return {name: split for name, split in self.tokenized.items() if name not in ("train", "selection")}

    def row(self, name: str, model: Any, stage: str, metrics: dict[str, float], stored: str) -> Row:
        """A row of the results table: a model's metrics, and the bytes of its float weights on disk."""
        in_memory = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        size = weight_bytes(self.training / stage) or in_memory  # a teacher given fine-tuned is not saved again
        return Row(name, metrics, size, model.config.num_hidden_layers, stored)


# Not in the description by name: it has the weights and stages that they lead to; others do not affect the result.
_EXCLUDED = (
    *("teacher", "teacher_revision", "teacher_license", "overwrite", "schedule", "start_from", "target_bytes"),
    *("augmentation_masked_lm", "augmentation_glove"),
)


def _check_single_rates(args: JobArguments, schedule: Schedule) -> None:
    tried = {stage.name: stage.learning_rates for stage in schedule.stages}
    if args.fine_tune:
        tried["teacher"] = tuple(args.fine_tune_learning_rates)
    for name, rates in tried.items():
        if len(rates) > 1:
            raise RecipeError(
                f"Stage {name!r} tries learning rates {rates}, but no train rows are held out to choose on, and "
                "validation rows only report. Hold some out with --selection_share 0.1, or give one rate."
            )


def prepare(
    args: JobArguments,
    data_args: DataArguments,
    recipe_args: RecipeArguments,
    training_args: XTCTrainingArguments,
    augmentation: AugmentationArguments | None = None,
    *,
    lock: FolderLock,
    students: bool = True,
) -> Job:
    """Checks everything that can be checked before training, and claims the output folder.

    Args:
        lock (`FolderLock`): Lock of the output folder; taken here if it is not held yet.
        students (`bool`, *optional*): Whether students are trained. If not, the run only fine-tunes the teacher, and
            options that only concern students do not distinguish it from another run.

    Raises:
        XTCError: on bad input, before anything is written.
    """
    training = Path(training_args.output_dir) / "training"
    if read_run(training) is None:
        require_empty(training_args.output_dir, overwrite=args.overwrite)
    for entry in dataclasses.fields(training_args):
        if entry.name in UNSUPPORTED and getattr(training_args, entry.name) != entry.default:
            raise XTCError(f"hf-xtc compress does not support --{entry.name}: {UNSUPPORTED[entry.name]}")
    if training_args.teacher_cache is not None:
        check_cache_folder(training_args.teacher_cache)
    args = args if students else args.of_teacher()
    recipe, schedule = recipe_args.recipe(), args.stages()
    if args.budget is not None:
        changes: dict[str, Any] = {"num_train_epochs": budget_epochs(args.budget, data_args.task_name)}
        training_args = dataclasses.replace(training_args, **changes)
    if data_args.selection_share == 0:
        _check_single_rates(args, schedule)
    config = load_config(args.teacher, args.teacher_revision)
    check_config(config, args.teacher, fresh_head=args.fine_tune)
    if getattr(config, "state", None) == "packed":
        raise StateError(
            f"{args.teacher} holds a packed model, which cannot teach. Name the float model it was made of."
        )
    recipes = [recipe, *schedule.recipes(recipe, config.num_hidden_layers)]
    for stage_recipe in recipes:
        ledger(config, stage_recipe)  # a model type, layer or group size that does not fit is refused here
    rows = read_splits(data_args)
    if data_args.task is None and not args.fine_tune and read_settings(args.teacher, args.teacher_revision):
        data_args = dataclasses.replace(data_args, task="sentence-embedding")
    task = find_task(data_args, rows, config, args.teacher, fresh_head=args.fine_tune)
    check_options(task, data_args)
    task.open(config, args.teacher, args.teacher_revision, data_args, fresh_head=args.fine_tune)
    if task.fixed_words and augmentation is not None and augmentation.augment:
        raise RecipeError(f"--augment cannot add rows: {task.fixed_words}. Leave it out.")
    if task.fixed_rows and data_args.unlabelled:
        raise RecipeError(f"--unlabelled cannot add rows: {task.fixed_rows}. Leave it out.")
    if task.terms is not None and training_args.terms == DEFAULT_TERMS:
        training_args = dataclasses.replace(training_args, terms=dict(task.terms))
    data = task.load(data_args, rows)
    if data_args.positive_label is not None and task.positive_class(data) is None:
        raise DataError(f"--positive_label={data_args.positive_label} is for two classes; {data.name} has none.")
    best, known = training_args.metric_for_best_model, (*(["loss"] * task.has_loss), *task.metric_names(data))
    if best is not None and best.removeprefix("eval_") not in known:
        raise XTCError(f"--metric_for_best_model={best} is not measured. Use one of: {', '.join(known)}.")
    if not args.fine_tune:
        data = task.align_labels(data, config, args.teacher)
    unlabelled = load_unlabelled(data_args, data, task.unlabelled_rows) if students else None
    tokenizer = load_tokenizer(args.teacher, args.teacher_revision)
    check_tokenizer(tokenizer, config, args.teacher, data_args.max_length)
    labels = task.head_config(data)
    teacher, new = load_reported(
        args.teacher,
        task.auto_class,
        args.teacher_revision,
        fresh_head=args.fine_tune or not task.needs_head,
        **labels,
    )
    if not task.needs_head:
        with torch.no_grad():
            for name in new:  # of a pooler that is not used: the same in every run
                teacher.get_parameter(name).zero_()
    data = task.teach(data, teacher, tokenizer, data_args)
    augmentation = augmentation or AugmentationArguments()
    if students and args.target_bytes is not None:
        train = None if augmentation.augment or unlabelled is not None else data.train
        counts = None if train is None else _TokenCounts(task, train, tokenizer, data_args)
        args, recipe = _fit(args, recipe_args, schedule, teacher, counts)
        recipes = [recipe, *schedule.recipes(recipe, config.num_hidden_layers)]
    args = dataclasses.replace(args, trim_vocabulary=args.trim_vocabulary or 0)
    sources: dict[str, Any] = {
        "teacher": {**model_digest(config, teacher, new), "tokenizer": tokenizer_digest(tokenizer)}
    }
    if students:
        sources["quantizers"] = quantizer_digests(recipes)
        if args.start_from:
            layers = len(recipes[1].layer_map(config.num_hidden_layers).layers)
            check_start(args.start_from, config, layers, tokenizer)
            start, new = load_reported(args.start_from, task.auto_class, fresh_head=True)
            head = {name for name in start.state_dict() if not name.startswith(f"{start.base_model_prefix}.")}
            sources["start_from"] = model_digest(load_config(args.start_from), start, new | head)
        if augmentation.augment:
            candidates = augmentation.source(teacher, tokenizer)  # refuses what cannot be read
            if augmentation.augmentation_masked_lm or augmentation.augmentation_glove:
                sources["augmentation_source"] = candidates_digest(candidates)
    training_args = dataclasses.replace(training_args, **recipe_args.quantization_starts())
    if training_args.push_to_hub:
        name = training_args.hub_model_id or Path(training_args.output_dir).resolve().name
        access: dict[str, Any] = {"private": training_args.hub_private_repo, "token": training_args.hub_token}
        repository: dict[str, Any] = {"hub_model_id": open_repository(name, **access)}
        training_args = dataclasses.replace(training_args, **repository)
    job = Job(
        args=args,
        data_args=data_args,
        recipe=recipe,
        schedule=schedule,
        training_args=training_args,
        augmentation=augmentation,
        task=task,
        data=data,
        tokenizer=tokenizer,
        unlabelled=unlabelled,
        students=students,
        teacher=None if args.fine_tune else teacher,
        sources=sources,
    )
    lock.take()
    clear_unfinished(job.out, training)
    if args.overwrite and read_run(training) != json.loads(json.dumps(job.description, default=str)):
        _require_outside(args, data_args, job.out)
        remove_run(job.out, training)
    open_run(job.out, training, job.description, overwrite=args.overwrite)
    return job


def count_ids(rows: Dataset) -> Counter[int]:
    """How often tokenized rows have each token, by its number."""
    return Counter(chain.from_iterable(rows["input_ids"]))


class _TokenCounts:
    """How many tokens are left of those that the train rows have at least so many times; the rows are read once."""

    def __init__(self, task: Task, train: Dataset, tokenizer: Any, data_args: DataArguments):
        self.task, self.train, self.tokenizer, self.data_args = task, train, tokenizer, data_args

    @cached_property
    def _counts(self) -> Counter[int]:
        return count_ids(self.task.tokenize(self.train, self.tokenizer, self.data_args))

    def __call__(self, least: int) -> int:
        return len(kept_tokens(self.tokenizer, self._counts, min_count=least))


def _fit(
    args: JobArguments,
    recipe_args: RecipeArguments,
    schedule: Schedule,
    teacher: PreTrainedModel,
    counts: _TokenCounts | None,
) -> tuple[JobArguments, XTCRecipe]:
    """The options and the recipe with what `--target_bytes` chooses.

    Args:
        counts (`_TokenCounts`, *optional*): `None` if rows are added to the train rows, so that it is not known which
            tokens they will have.
    """
    recipe, last = recipe_args.recipe(), schedule.stages[-1].recipe
    free = recipe_args.free() - set(last)
    if args.start_from and "keep_layers" in free:
        free -= {"keep_layers"}
        recipe = dataclasses.replace(recipe, keep_layers=load_config(args.start_from).num_hidden_layers)
    if args.trim_vocabulary and counts is None:
        raise RecipeError(
            f"--target_bytes={args.target_bytes} cannot count the tokens that --trim_vocabulary leaves before rows "
            "are added. Leave out --trim_vocabulary, or --augment and --unlabelled."
        )
    if args.trim_vocabulary is None and counts is not None and can_trim(counts.tokenizer) and not args.start_from:
        free |= {"trim_vocabulary"}
    found = choose(
        teacher.config,
        parse_bytes(str(args.target_bytes)),
        XTCRecipe.from_dict({**recipe.to_dict(), **last}),
        model_class=student_class(teacher),
        free=free,
        trim_vocabulary=args.trim_vocabulary or 0,
        vocabulary=counts,
    )
    logger.info("--target_bytes=%s: the best student that fits has %s.", args.target_bytes, found)
    chosen = {name: getattr(found.recipe, name) for name in free - {"trim_vocabulary"}}
    return dataclasses.replace(args, trim_vocabulary=found.trim_vocabulary), dataclasses.replace(recipe, **chosen)


def _require_outside(args: JobArguments, data_args: DataArguments, out: Path) -> None:
    """Raises an `XTCError` if the run would replace a file or folder that it reads."""
    files = (data_args.train_file, data_args.validation_file, data_args.test_file, *data_args.unlabelled)
    folders = (data_args.data_dir, data_args.dataset_name)
    for given in (args.teacher, args.start_from, *files, *folders):
        path = Path(given or "/").resolve()
        if path.is_relative_to(out.resolve() / "training") or (given == args.teacher and path == out.resolve()):
            raise XTCError(f"--overwrite would replace {given}, which the run reads. Give another --output_dir.")


def weight_bytes(folder: Path) -> int:
    """Bytes of the weight files of a model folder; 0 if it has none."""
    return sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
