"""The options of the command line, as dataclasses for `HfArgumentParser`; data and training have their own modules."""

import math
import os
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from hf_xtc.checks import check_choice, check_count, check_range
from hf_xtc.compression.origin import check_license
from hf_xtc.compression.target_size import parse_bytes
from hf_xtc.data.augmentation import PUBLISHED_COPIES, Augmentation
from hf_xtc.data.masked_lm import MaskedLM, candidate_source
from hf_xtc.data.task_data import SPLITS, DataArguments
from hf_xtc.data.word_table import WordTable
from hf_xtc.errors import RecipeError
from hf_xtc.files.safe_json import read_json
from hf_xtc.recipe.deepspeed import schedule_offsets
from hf_xtc.recipe.xtc_recipe import XTCRecipe
from hf_xtc.runs.schedule import FLOAT, Schedule, Stage


@dataclass
class JobArguments:
    """What to compress, and how long the stages before quantization train."""

    teacher: str = field(
        metadata={"help": "Fine-tuned BERT (folder or Hub id), adapter folder, or pretrained BERT with --fine_tune."}
    )
    teacher_revision: str | None = field(default=None, metadata={"help": "Revision of a teacher on the Hub."})
    teacher_license: str | None = field(default=None, metadata={"help": "Its licence; default: that on its card."})
    fine_tune: bool = field(default=False, metadata={"help": "Fine-tune the teacher on the task first."})
    fine_tune_epochs: float = field(default=3.0, metadata={"help": "Epochs of the fine-tuning."})
    fine_tune_learning_rates: list[float] = field(
        default_factory=lambda: [5e-5],
        metadata={"help": "Learning rates of the fine-tuning; of several, the best on held-out rows is kept."},
    )
    fine_tune_adversarial: float = field(
        default=0.0, metadata={"help": "adversarial_epsilon of the fine-tuning; above 0 it takes twice as long."}
    )
    schedule: str | None = field(
        default=None,
        metadata={
            "help": "Stages that train the student: direct, reduced-first, ternary-first, or a JSON file. Without it: "
            "a float stage of --reduction_epochs, then the recipe for --num_train_epochs."
        },
    )
    budget: str | None = field(
        default=None, metadata={"help": "C: the paper's epochs (18) for mnli and qqp; others are not known."}
    )
    reduction_epochs: float = field(
        default=1.0, metadata={"help": "Epochs of the float student from which the 1-bit student starts."}
    )
    reduction_learning_rate: float = field(default=1e-4, metadata={"help": "Learning rate of that stage."})
    learning_rates: list[float] = field(
        default_factory=list,
        metadata={"help": "Rates to try in the last stage, chosen on held-out rows; default: --learning_rate."},
    )
    start_from: str | None = field(
        default=None, metadata={"help": "Model of the student's shape to start from, instead of the teacher's layers."}
    )
    trim_vocabulary: int | None = field(
        default=None,
        metadata={
            "help": "Leave tokens out of the student's vocabulary that the train rows have less than so many times; "
            "what they spell is then spelled in smaller pieces. 0, the default: keep all."
        },
    )
    target_bytes: str | None = field(
        default=None,
        metadata={
            "help": "Size that the packed file may have, such as 2MB: chooses those of layers, weights and vocabulary "
            "that no option names."
        },
    )
    student_dropout: float = field(default=0.0, metadata={"help": "Dropout of the students."})
    overwrite: bool = field(default=False, metadata={"help": "Replace another run in --output_dir."})

    def __post_init__(self) -> None:
        for name in ("fine_tune_epochs", "fine_tune_adversarial", "reduction_epochs", "reduction_learning_rate"):
            check_range(name, getattr(self, name), 0, 1e6)
        if self.teacher_license is not None:
            check_license(self.teacher_license)
        for name in ("fine_tune_learning_rates", "learning_rates"):
            if any(not 0 < rate < math.inf for rate in getattr(self, name)):
                raise RecipeError(f"{name}={getattr(self, name)} must be positive numbers.")
        if self.teacher_revision is not None and os.path.isdir(self.teacher):
            raise RecipeError(
                f"--teacher_revision={self.teacher_revision} is for a teacher on the Hub, but {self.teacher} is a "
                "folder. Leave the revision out."
            )
        if self.trim_vocabulary:
            check_count("trim_vocabulary", self.trim_vocabulary)
        if self.target_bytes is not None:
            parse_bytes(self.target_bytes)
        if not 0 <= self.student_dropout < 1:
            raise RecipeError(f"student_dropout={self.student_dropout} must be at least 0 and below 1.")

    def of_teacher(self) -> "JobArguments":
        """The options of the teacher and of its fine-tuning; those of the students are as if they were not given."""
        own = ("overwrite", *(entry.name for entry in fields(self) if entry.name.startswith(("teacher", "fine_tune"))))
        return JobArguments(**{name: getattr(self, name) for name in own})

    def stages(self) -> Schedule:
        """The `Schedule` of these options.

        Raises:
            RecipeError: if the schedule does not exist or cannot be read, or an option does not fit it.
        """
        if self.schedule is None:
            training = {"num_train_epochs": self.reduction_epochs, "learning_rate": self.reduction_learning_rate}
            stages = [Stage("reduced", FLOAT, training, dropout=self.student_dropout)] if not self.start_from else []
            stages += [Stage("student", dropout=self.student_dropout)]
            schedule = Schedule("default", tuple(stages))
        else:
            schedule = Schedule.named(self.schedule)
        if not self.learning_rates:
            return schedule
        last = replace(schedule.stages[-1], learning_rates=tuple(self.learning_rates))
        return replace(schedule, stages=(*schedule.stages[:-1], last))


@dataclass
class RecipeArguments:
    """The fields of the recipe; `none` keeps a part in float."""

    weights: str | None = field(default=None, metadata={"help": "binary (the default), ternary, int4, int8 or none."})
    embedding_weights: str | None = field(
        default=None, metadata={"help": "binary (the default), ternary, int4, int8 or none."}
    )
    position_weights: str = field(default="int8", metadata={"help": "Position and token-type: int8 or none."})
    granularity: str = field(default="per_channel", metadata={"help": "per_tensor, per_channel or per_group scales."})
    group_size: int | None = field(default=None, metadata={"help": "Input columns per scale, for per_group."})
    activation_bits: str = field(default="8", metadata={"help": "8, 4 or none."})
    activation_calibration: str = field(default="dynamic", metadata={"help": "dynamic (per token) or static."})
    activation_asymmetric: bool = field(default=False, metadata={"help": "Asymmetric activation levels."})
    keep_layers: int | None = field(default=None, metadata={"help": "Layers of the student, spread evenly."})
    layers: str | None = field(default=None, metadata={"help": "Teacher layers to keep, from 0: 2,4,6,8,10."})
    scale_dtype: str = field(default="float16", metadata={"help": "Type of the scales."})
    rest_dtype: str = field(
        default="float16", metadata={"help": "Type the file stores biases, LayerNorm and head in."}
    )
    recipe_file: str | None = field(
        default=None,
        metadata={"help": "JSON of a recipe, or a DeepSpeed JSON with compression_training, in place of the options."},
    )

    def recipe(self) -> XTCRecipe:
        """The `XTCRecipe` of these options.

        Raises:
            XTCError: if an option has an invalid value, or the file cannot be read.
        """
        if self.recipe_file is not None:
            values = _read_json(self.recipe_file)
            return XTCRecipe.from_deepspeed(values) if _is_deepspeed(values) else XTCRecipe.from_dict(values)
        check_choice("activation_bits", self.activation_bits, ("8", "4", "none"))
        return XTCRecipe(
            weights=_or_none(self.weights or XTCRecipe.weights),
            granularity=self.granularity,
            group_size=self.group_size,
            embedding_weights=_or_none(self.embedding_weights or XTCRecipe.embedding_weights),
            position_weights=_or_none(self.position_weights),
            activation_bits=None if self.activation_bits == "none" else int(self.activation_bits),
            activation_symmetric=not self.activation_asymmetric,
            activation_calibration=self.activation_calibration,
            keep_layers=self.keep_layers,
            layers=None if self.layers is None else _layer_list(self.layers),
            scale_dtype=self.scale_dtype,
            rest_dtype=self.rest_dtype,
        )

    def free(self) -> set[str]:
        """The fields that `--target_bytes` may choose, as the user gave none of them."""
        if self.recipe_file is not None:
            return set()
        given: dict[str, Any] = {
            "weights": self.weights,
            "embedding_weights": self.embedding_weights,
            "keep_layers": self.layers or self.keep_layers,
        }
        return {name for name, value in given.items() if value is None}

    def quantization_starts(self) -> dict[str, Any]:
        """Returns the `XTCTrainingArguments` that a DeepSpeed `recipe_file` sets: when quantization starts."""
        values = {} if self.recipe_file is None else _read_json(self.recipe_file)
        return {**schedule_offsets(values), "weight_annealing": 0.0} if _is_deepspeed(values) else {}


def _or_none(value: str | None) -> str | None:
    return None if value is None or value.lower() == "none" else value


def _layer_list(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise RecipeError(f"--layers {text!r} is not a list of whole numbers. Write it like 2,4,6,8,10.") from None


def _is_deepspeed(values: Any) -> bool:
    return isinstance(values, dict) and "compression_training" in values


def _read_json(path: str) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise RecipeError(f"Cannot read the recipe {path}: {error}.") from error


@dataclass
class AugmentationArguments:
    """Whether and how to augment the train rows; see `hf_xtc.data.augmentation`.

    Raises:
        RecipeError: if a value is out of range, or an option is given without `--augment`.
    """

    augment: bool = field(default=False, metadata={"help": "Train on augmented rows too, labelled by the teacher."})
    augmentation_copies: int | None = field(
        default=None, metadata={"help": "Copies to try per text; default: TinyBERT's for the GLUE task, else 20."}
    )
    augmentation_candidates: int = field(default=15, metadata={"help": "Candidates that may replace a word."})
    augmentation_probability: float = field(default=0.4, metadata={"help": "Probability that a word is replaced."})
    augmentation_masked_lm: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of a masked language model to take candidates from."}
    )
    augmentation_together: int = field(
        default=1, metadata={"help": "Words masked at once; 1 as published, more is faster (masked LM only)."}
    )
    augmentation_glove: str | None = field(
        default=None,
        metadata={"help": "GloVe as a text file, folder or installed package, instead of the teacher's embeddings."},
    )

    def __post_init__(self) -> None:
        for name in ("augmentation_copies", "augmentation_candidates", "augmentation_together"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if not 0 <= self.augmentation_probability <= 1:
            raise RecipeError(f"augmentation_probability={self.augmentation_probability} must be from 0 to 1.")
        for option in fields(self):
            if not self.augment and getattr(self, option.name) != option.default:
                raise RecipeError(f"--{option.name} has no effect without --augment. Give both or neither.")

    def settings(self, task: str | None, seed: int = 0) -> Augmentation:
        """Returns the settings for a GLUE task, or for other data if `task` is `None`."""
        copies = self.augmentation_copies
        if copies is None:
            copies = PUBLISHED_COPIES.get(str(task), Augmentation.copies)
        return Augmentation(copies, self.augmentation_candidates, self.augmentation_probability, seed)

    def source(self, teacher: Any, tokenizer: Any) -> WordTable | MaskedLM:
        """Returns the source of candidates: the masked language model, else GloVe, else the teacher's embeddings.

        Raises:
            XTCError: if it cannot be read.
        """
        return candidate_source(
            teacher,
            tokenizer,
            masked_lm=self.augmentation_masked_lm,
            glove=self.augmentation_glove,
            together=self.augmentation_together,
        )


def _check_output_file(file: str | None) -> None:
    """Raises `RecipeError` if a file cannot be written because of what is there, before it has cost any time."""
    path = Path(file or "new")
    if path.is_dir():
        raise RecipeError(f"--output_file={file} is a folder. Name a file in it.")
    if not path.parent.is_dir():
        raise RecipeError(f"--output_file={file}: there is no folder {path.parent}. Make it first.")


@dataclass
class EvaluateArguments:
    """What to measure."""

    model: str = field(metadata={"help": "Folder or Hub id of a packed or float sequence classifier."})
    teacher: str | None = field(
        default=None, metadata={"help": "Model whose similarities score texts without scores (sentence-embedding)."}
    )
    teacher_revision: str | None = field(default=None, metadata={"help": "Revision of a teacher on the Hub."})
    output_file: str | None = field(default=None, metadata={"help": "JSON file to write the metrics to."})
    batch_size: int = field(default=64, metadata={"help": "Rows per forward pass."})

    def __post_init__(self) -> None:
        check_count("batch_size", self.batch_size)
        _check_output_file(self.output_file)


@dataclass
class PushArguments:
    """What to publish, and where."""

    folder: str = field(metadata={"help": "Folder of a packed model; also as first positional argument."})
    repo_id: str = field(metadata={"help": "Repository, user/name; also as second positional argument."})
    revision: str | None = field(default=None, metadata={"help": "Branch to publish on; made if it does not exist."})
    private: bool = field(default=False, metadata={"help": "Make a new repository private."})
    commit_message: str | None = field(default=None, metadata={"help": "Message of the commit."})
    with_onnx: bool = field(
        default=False, metadata={"help": "Also publish an ONNX file for transformers.js; the card shows its use."}
    )


@dataclass
class InspectArguments:
    """What to inspect."""

    model: str = field(metadata={"help": "Folder or Hub id of a packed model; also as positional argument."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit on the Hub."})

    def __post_init__(self) -> None:
        if self.revision is not None and os.path.isdir(self.model):
            raise RecipeError(
                f"--revision={self.revision} is for a model on the Hub, but {self.model} is a folder. Leave it out."
            )


@dataclass
class VerifyArguments(InspectArguments):
    """What to verify, and how closely a metric must agree with the card."""

    tolerance: float = field(
        default=0.002,
        metadata={"help": "Accepted difference of a metric from the card's, as processors round differently."},
    )
    batch_size: int = field(default=64, metadata={"help": "Rows per forward pass."})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("batch_size", self.batch_size)
        check_range("tolerance", self.tolerance, 0)


@dataclass
class ReportArguments:
    """What to report on."""

    folder: str = field(metadata={"help": "Output folder of hf-xtc compress; also as positional argument."})
    output_file: str | None = field(default=None, metadata={"help": "HTML file; default: report.html in the folder."})

    def __post_init__(self) -> None:
        _check_output_file(self.output_file)


@dataclass
class ExportArguments:
    """What to export, and how."""

    model: str = field(metadata={"help": "Folder or Hub id of a packed model."})
    output_dir: str = field(metadata={"help": "Folder for the exported file, its configuration and tokenizer."})
    format: str = field(
        default="onnx",
        metadata={
            "help": "onnx; openvino; web: a page that runs the model; transformers.js; or transformers: a stock model "
            "in float16."
        },
    )
    weights: str | None = field(
        default=None,
        metadata={
            "help": "int8 (default for onnx), 2bit (default for openvino; for onnx smaller, but less exact) or packed "
            "(default for transformers.js; for onnx; the smallest, exact)."
        },
    )
    batch_size: int = field(default=64, metadata={"help": "Rows per forward pass of the verification."})
    overwrite: bool = field(default=False, metadata={"help": "Write into an --output_dir that is not empty."})

    def __post_init__(self) -> None:
        check_count("batch_size", self.batch_size)


@dataclass
class EvaluationDataArguments(DataArguments):
    """The data to evaluate or verify a model on: as for training, but train rows are optional, and so are the data.

    Without a train file, or the name of a split to train on, validation rows stand in for train rows.
    """

    def __post_init__(self) -> None:
        if self.dataset_name is not None:
            self.train_split_name = self.train_split_name or self._validation_split
        elif self.task_name is None and self.train_file is None:
            self.train_file = self.validation_file
        if self.given:
            super().__post_init__()

    @property
    def _validation_split(self) -> str:
        return self.validation_split_name or SPLITS["validation_split_name"]

    @property
    def partial(self) -> bool:
        if self.dataset_name is not None:
            return self.train_split_name == self._validation_split
        return self.task_name is None and self.train_file == self.validation_file

    @property
    def given(self) -> bool:
        """Whether data were given."""
        sources = (self.task_name, self.dataset_name, self.train_file, self.validation_file, self.test_file)
        return any(value is not None for value in sources)
