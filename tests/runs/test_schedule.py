"""Schedules: stages as data, what they may change, and how they must fit together."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_xtc import XTCRecipe, XTCTrainingArguments
from hf_xtc.errors import RecipeError
from hf_xtc.runs.schedule import FOLDER, Schedule, Stage, budget_epochs

NAMED = sorted(file.stem for file in FOLDER.glob("*.json"))


def refuses(text):
    return pytest.raises(RecipeError, match=f"^{re.escape(text)}$")


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("weights", ["binary", "ternary"])
def test_schedules_of_the_package_end_with_the_runs_recipe_and_its_steps(name, weights, tmp_path):
    schedule, recipe = Schedule.named(name), XTCRecipe(weights=weights, keep_layers=3)
    recipes = schedule.recipes(recipe, 6)
    assert recipes[-1] == recipe
    assert schedule.stages[-1].name == "student"
    run = XTCTrainingArguments(str(tmp_path), max_steps=100, num_train_epochs=3, use_cpu=True)
    assert sum(stage.arguments(run).max_steps for stage in schedule.stages) == 100
    assert schedule == Schedule.from_dict(json.loads(json.dumps(schedule.to_dict())), name)


def test_ternary_first_goes_from_float_over_ternary():
    recipes = Schedule.named("ternary-first").recipes(XTCRecipe(keep_layers=2), 4)
    assert [(recipe.weights, recipe.embedding_weights, recipe.activation_bits) for recipe in recipes] == [
        (None, None, None),
        ("ternary", "ternary", 8),
        ("binary", "binary", 8),
    ]


def test_stage_changes_what_it_names_and_nothing_else(tmp_path):
    run = XTCTrainingArguments(str(tmp_path), learning_rate=1e-3, num_train_epochs=4, seed=7, use_cpu=True)
    own = Stage("a", training={"distillation_stages": 3, "terms": {"logits": 2.0}}, share=0.5).arguments(run, seed=8)
    assert (own.distillation_stages, own.terms, own.num_train_epochs, own.learning_rate, own.seed) == (
        *(3, {"logits": 2.0}, 2.0, 1e-3),
        8,
    )
    assert (run.distillation_stages, run.num_train_epochs) == (1, 4)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"name": "a b"}, "The name of a stage is 'a b'; use letters, digits, '-' and '_'."),
        (
            {"recipe": {"wieghts": "binary"}},
            "Stage 'x': recipe has the field 'wieghts', which XTCRecipe does not have.",
        ),
        ({"training": {"lr": 1}}, "Stage 'x': training has the field 'lr', which XTCTrainingArguments does not have."),
        ({"recipe": "binary"}, "Stage 'x': recipe is 'binary'; it must be an object of fields and values."),
        (
            {"training": {"learning_rate": 1e-4}, "learning_rates": [1e-4]},
            "Stage 'x' has both learning_rate and learning_rates. Give one.",
        ),
        (
            {"training": {"max_steps": 5}, "share": 0.5},
            "Stage 'x' has both share and num_train_epochs or max_steps. Give one.",
        ),
        ({"learning_rates": [0.0]}, "Stage 'x': learning_rates=(0.0,) must be positive numbers."),
        ({"share": -1}, "Stage 'x': share=-1 must be a number, at least 0."),
        ({"dropout": 1}, "Stage 'x': dropout=1 must be at least 0 and below 1."),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_stage_gets_one_clear_error(values, message):
    with refuses(message):
        Stage(**{"name": "x", **values})


@pytest.mark.parametrize(
    "stages, message",
    [
        ([], "The schedule 'l' has no stages."),
        ([{"name": "a"}, {"name": "a"}], "The schedule 'l' has more than one stage called a."),
        ([{"name": "teacher"}], "The schedule 'l' has more than one stage called teacher."),
        ([{"recipe": {}}], "A stage of the schedule 'l' has no name."),
        (
            [{"name": "a", "epochs": 3}],
            "A stage has no field epochs; its fields are: name, recipe, training, learning_rates, share, dropout.",
        ),
    ],
    ids=["none", "twice", "teacher", "no name", "unknown field"],
)
def test_bad_schedule_gets_one_clear_error(stages, message):
    with refuses(message):
        Schedule.from_dict({"stages": stages}, "l")


def test_stages_that_do_not_fit_together_are_refused():
    stages = [{"name": "reduced", "recipe": {"weights": None, "keep_layers": 2}}, {"name": "student"}]
    with refuses(
        "The schedule 'l' does not fit together: stage 'reduced' keeps the teacher's layers (2, 5), stage 'student' "
        "keeps (1, 3, 5), and would start from weights of other layers. Keep the same layers in all stages."
    ):
        Schedule.from_dict({"stages": stages}, "l").recipes(XTCRecipe(keep_layers=3), 6)


def test_stage_with_an_impossible_recipe_is_named():
    schedule = Schedule.from_dict({"stages": [{"name": "odd", "recipe": {"activation_bits": 5}}]}, "l")
    with pytest.raises(RecipeError, match=r"^Stage 'odd' of the schedule 'l': activation bits=5 does not exist\."):
        schedule.recipes(XTCRecipe(), 6)


@pytest.mark.parametrize("text", ["[1]", '{"stages": 3}', '{"stages": ["a"]}', "null"])
def test_json_that_is_not_a_schedule_is_refused(text, tmp_path):
    (tmp_path / "l.json").write_text(text)
    with pytest.raises(RecipeError, match=r"^The schedule 'l' must be a JSON object with a list of stages"):
        Schedule.named(str(tmp_path / "l.json"))


def test_unknown_and_unreadable_schedules_are_refused(tmp_path):
    with refuses(f"There is no schedule 'up'. Use one of: {', '.join(NAMED)}; or a JSON file."):
        Schedule.named("up")
    (tmp_path / "l.json").write_text("{")
    with pytest.raises(RecipeError, match=r"^Cannot read the schedule .*l\.json: "):
        Schedule.named(str(tmp_path / "l.json"))


@given(st.dictionaries(st.text(max_size=8), st.none() | st.integers() | st.text(max_size=5), max_size=4))
def test_any_json_object_is_read_or_refused_with_a_recipe_error(stage):
    try:
        Schedule.from_dict({"stages": [stage]}, "l")
    except RecipeError:
        return
    assert set(stage) <= {"name", "recipe", "training", "learning_rates", "share", "dropout"}


@pytest.mark.parametrize("task", ["mnli", "qqp"])
def test_the_budget_that_is_known(task):
    assert budget_epochs("C", task) == 18


@pytest.mark.parametrize("budget, task", [("A", "mnli"), ("A", "cola"), ("B", "qqp"), ("C", "cola"), ("C", None)])
def test_budgets_that_no_source_confirms_are_refused(budget, task):
    with refuses(
        f"The epochs of budget {budget} for {task or 'other data'} are not known: the authors' scripts confirm "
        "those of C for mnli and qqp alone. Use --num_train_epochs."
    ):
        budget_epochs(budget, task)


def test_there_are_three_budgets():
    with refuses("There is no budget 'D'. The paper's are A, B and C; C of mnli and qqp is known."):
        budget_epochs("D", "mnli")
