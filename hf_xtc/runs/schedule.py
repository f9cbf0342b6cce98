"""Schedules: the stages that train a student, from float to its final recipe, as data.

A stage sets the student's recipe and its training; what it leaves out is taken from the run (the recipe and the
training arguments that the user gave). A schedule is a JSON file, in `hf_xtc/runs/schedules` or elsewhere. `stage.py`
runs a stage.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_xtc.errors import RecipeError
from hf_xtc.files.safe_json import read_json
from hf_xtc.recipe.xtc_recipe import XTCRecipe
from hf_xtc.training.arguments import XTCTrainingArguments

FOLDER = Path(__file__).parent / "schedules"

# The recipe of a float student.
FLOAT = {"weights": None, "embedding_weights": None, "position_weights": None, "activation_bits": None}

# Epochs of the paper's budgets (Wu et al. 2022), as far as its authors' scripts confirm them: of the long one, C, on
# MNLI and QQP (bash_script/XTC in DeepSpeedExamples; float students there train for 36).
BUDGETS: dict[str, dict[str, float]] = {"C": {"mnli": 18, "qqp": 18}}


def budget_epochs(budget: str, task: str | None) -> float:
    """Returns the epochs of a budget of the paper for a GLUE task: "C" (long) for mnli or qqp.

    Raises:
        RecipeError: if there is no such budget, or its epochs for the task are not known from a source.
    """
    if budget not in ("A", "B", "C"):
        raise RecipeError(f"There is no budget {budget!r}. The paper's are A, B and C; C of mnli and qqp is known.")
    epochs = BUDGETS.get(budget, {})
    if task not in epochs:
        raise RecipeError(
            f"The epochs of budget {budget} for {task or 'other data'} are not known: the authors' scripts confirm "
            "those of C for mnli and qqp alone. Use --num_train_epochs."
        )
    return epochs[task]


@dataclass(frozen=True)
class Stage:
    """One stage of a schedule.

    Args:
        name (`str`): Name of its folder and of its row in the results: letters, digits, "-" and "_".
        recipe (`dict`): Fields of `XTCRecipe` that differ from the run's: `{"weights": "ternary"}`.
        training (`dict`): Fields of `XTCTrainingArguments` that differ from the run's: `{"learning_rate": 1e-4}`.
        learning_rates (`tuple[float, ...]`): Rates to try, each for the whole stage; the best on held-out train rows
            is kept. Empty: the learning rate of `training` or the run.
        share (`float`, *optional*): Epochs of this stage as a multiple of the run's `num_train_epochs`.
        dropout (`float`): Dropout of the student in this stage.

    Raises:
        RecipeError: if a field does not exist, or two contradict each other.
    """

    name: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    learning_rates: tuple[float, ...] = ()
    share: float | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.replace("-", "").replace("_", "").isalnum():
            raise RecipeError(f"The name of a stage is {self.name!r}; use letters, digits, '-' and '_'.")
        object.__setattr__(self, "learning_rates", tuple(self.learning_rates))
        _check_fields(self.name, "recipe", self.recipe, XTCRecipe)
        _check_fields(self.name, "training", self.training, XTCTrainingArguments)
        if self.learning_rates and "learning_rate" in self.training:
            raise RecipeError(f"Stage {self.name!r} has both learning_rate and learning_rates. Give one.")
        if self.share is not None and {"num_train_epochs", "max_steps"} & set(self.training):
            raise RecipeError(f"Stage {self.name!r} has both share and num_train_epochs or max_steps. Give one.")
        if any(not _is_number(rate) or rate <= 0 for rate in self.learning_rates):
            raise RecipeError(f"Stage {self.name!r}: learning_rates={self.learning_rates} must be positive numbers.")
        if self.share is not None and (not _is_number(self.share) or self.share < 0):
            raise RecipeError(f"Stage {self.name!r}: share={self.share!r} must be a number, at least 0.")
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            raise RecipeError(f"Stage {self.name!r}: dropout={self.dropout!r} must be at least 0 and below 1.")

    def arguments(self, run: XTCTrainingArguments, **changes: Any) -> XTCTrainingArguments:
        """Returns the run's training arguments, updated with this stage's and then with `changes`."""
        own = dict(self.training)
        if self.share is not None:
            own["num_train_epochs"] = self.share * run.num_train_epochs
            if run.max_steps > 0:
                own["max_steps"] = max(round(self.share * run.max_steps), 1)
        return dataclasses.replace(run, **{**own, **changes})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_fields(stage: str, kind: str, values: Any, owner: Any) -> None:
    if not isinstance(values, Mapping):
        raise RecipeError(f"Stage {stage!r}: {kind} is {values!r}; it must be an object of fields and values.")
    known = {entry.name for entry in dataclasses.fields(owner) if entry.init}
    for name in values:
        if name not in known:
            raise RecipeError(f"Stage {stage!r}: {kind} has the field {name!r}, which {owner.__name__} does not have.")


@dataclass(frozen=True)
class Schedule:
    """Stages in order, each starting from the weights of the previous one, the first from the teacher's.

    Raises:
        RecipeError: if there are no stages, or two have the same name.

    Example:
        >>> [stage.name for stage in Schedule.named("ternary-first").stages]
        ['reduced', 'ternary', 'student']
    """

    name: str
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        names = [stage.name for stage in self.stages]
        if not names:
            raise RecipeError(f"The schedule {self.name!r} has no stages.")
        if repeated := sorted({name for name in names if names.count(name) > 1} | ({"teacher"} & set(names))):
            raise RecipeError(f"The schedule {self.name!r} has more than one stage called {', '.join(repeated)}.")

    def recipes(self, recipe: XTCRecipe, depth: int) -> list[XTCRecipe]:
        """Returns the recipe of each stage; all must keep the same layers.

        Args:
            recipe (`XTCRecipe`): The run's.
            depth (`int`): Layers of the teacher.

        Raises:
            RecipeError: if a stage's recipe is invalid, or stages keep different layers of the teacher.
        """
        recipes: list[XTCRecipe] = []
        for stage in self.stages:
            try:
                recipes.append(XTCRecipe.from_dict({**recipe.to_dict(), **stage.recipe}))
                layers = recipes[-1].layer_map(depth).layers
            except RecipeError as error:
                raise RecipeError(f"Stage {stage.name!r} of the schedule {self.name!r}: {error}") from None
            first = recipes[0].layer_map(depth).layers
            if layers != first:
                raise RecipeError(
                    f"The schedule {self.name!r} does not fit together: stage {self.stages[0].name!r} keeps the "
                    f"teacher's layers {first}, stage {stage.name!r} keeps {layers}, and would start from weights "
                    "of other layers. Keep the same layers in all stages."
                )
        return recipes

    def to_dict(self) -> dict[str, Any]:
        """Returns the schedule as a JSON object; `from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Any, name: str = "schedule") -> "Schedule":
        """Reads `{"stages": [{"name": ..., "recipe": {...}, "training": {...}, ...}, ...]}`.

        Raises:
            RecipeError: if it has another form, or a stage is invalid.
        """
        stages = values.get("stages") if isinstance(values, Mapping) else None
        if not isinstance(stages, list | tuple) or not all(isinstance(stage, Mapping) for stage in stages):
            raise RecipeError(
                f"The schedule {name!r} must be a JSON object with a list of stages, not {values!r:.80}."
            )
        known = [entry.name for entry in dataclasses.fields(Stage)]
        for stage in stages:
            if unknown := sorted(set(stage) - set(known)):
                raise RecipeError(f"A stage has no field {', '.join(unknown)}; its fields are: {', '.join(known)}.")
            if "name" not in stage:
                raise RecipeError(f"A stage of the schedule {name!r} has no name.")
        return cls(str(values.get("name", name)), tuple(Stage(**stage) for stage in stages))

    @classmethod
    def named(cls, name: str) -> "Schedule":
        """Returns a schedule of the package by name, or of a JSON file by path.

        Raises:
            RecipeError: if it does not exist or cannot be read.
        """
        known = sorted(file.stem for file in FOLDER.glob("*.json"))
        file = FOLDER / f"{name}.json" if name in known else Path(name)
        if file.suffix != ".json":
            raise RecipeError(f"There is no schedule {name!r}. Use one of: {', '.join(known)}; or a JSON file.")
        try:
            values = read_json(file)
        except (OSError, ValueError) as error:
            raise RecipeError(f"Cannot read the schedule {name}: {error}.") from error
        return cls.from_dict(values, file.stem)
