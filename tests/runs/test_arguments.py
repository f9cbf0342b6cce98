"""Options of the command line, and the recipes made of them."""

import json
import math

import pytest
from transformers import HfArgumentParser

from hf_xtc import XTCRecipe
from hf_xtc.data.augmentation import Augmentation
from hf_xtc.data.task_data import DataArguments
from hf_xtc.errors import RecipeError, XTCError
from hf_xtc.runs.arguments import AugmentationArguments, EvaluateArguments, JobArguments, RecipeArguments
from hf_xtc.training.arguments import XTCTrainingArguments


def recipe_of(*options: str) -> XTCRecipe:
    return HfArgumentParser(RecipeArguments).parse_args_into_dataclasses(list(options))[0].recipe()


def test_default_options_are_the_default_recipe():
    assert recipe_of() == XTCRecipe()
    assert RecipeArguments().quantization_starts() == {}


@pytest.mark.parametrize(
    "options, recipe",
    [
        (["--weights", "ternary", "--keep_layers", "5"], XTCRecipe(weights="ternary", keep_layers=5)),
        (["--layers", "2,4,6,8,10"], XTCRecipe(layers=(2, 4, 6, 8, 10))),
        (
            ["--embedding_weights", "none", "--activation_bits", "none"],
            XTCRecipe(embedding_weights=None, activation_bits=None),
        ),
        (
            ["--embedding_weights", "int8", "--position_weights", "None"],
            XTCRecipe(embedding_weights="int8", position_weights=None),
        ),
        (["--granularity", "per_group", "--group_size", "64"], XTCRecipe(granularity="per_group", group_size=64)),
        (
            ["--activation_bits", "4", "--activation_asymmetric"],
            XTCRecipe(activation_bits=4, activation_symmetric=False),
        ),
        (
            ["--rest_dtype", "float32", "--scale_dtype", "float32"],
            XTCRecipe(rest_dtype="float32", scale_dtype="float32"),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_give_the_recipe_they_name(options, recipe):
    assert recipe_of(*options) == recipe


@pytest.mark.parametrize(
    "options, message",
    [
        (["--weights", "binry"], "Unknown quantizer 'binry'; registered: binary, int4, int8, ternary."),
        (["--activation_bits", "3"], "activation_bits='3' does not exist. Use one of: 8, 4, none."),
        (["--layers", "2,x"], "--layers '2,x' is not a list of whole numbers. Write it like 2,4,6,8,10."),
        (
            ["--layers", "1,3", "--keep_layers", "2"],
            "keep_layers=2 and layers=(1, 3) both choose the student's depth. Give one.",
        ),
        (
            ["--granularity", "per_group"],
            "granularity='per_group' with group_size=None: 'per_group' requires a group size, and the other "
            "granularities take none.",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_get_one_clear_error(options, message):
    with pytest.raises(XTCError) as caught:
        recipe_of(*options)
    assert str(caught.value) == message


def test_recipe_file_is_read_as_written(tmp_path):
    recipe = XTCRecipe(weights="ternary", layers=(0, 3), scale_dtype="float32")
    file = tmp_path / "recipe.json"
    file.write_text(recipe.to_json())
    assert recipe_of("--recipe_file", str(file)) == recipe


def test_recipe_file_may_be_deepspeeds(tmp_path):
    file = tmp_path / "ds_config.json"
    modules = ["attention.self", "intermediate", "output.dense", "word_embeddings"]
    shared = {"enabled": True, "quantize_groups": 1, "quantize_weight_in_forward": True, "schedule_offset": 7}
    groups = {"wq1": {"params": {"start_bits": 1, "target_bits": 1}, "modules": modules}}
    weights = {"shared_parameters": shared, "different_groups": groups}
    file.write_text(json.dumps({"compression_training": {"weight_quantization": weights}}))
    options = RecipeArguments(recipe_file=str(file))
    starts = {"weight_quantization_start": 7, "activation_quantization_start": 0}
    assert options.quantization_starts() == {**starts, "weight_annealing": 0.0}
    recipe = options.recipe()
    assert (recipe.weights, recipe.embedding_weights, recipe.granularity) == ("binary", "binary", "per_tensor")
    assert recipe.activation_bits is None


def test_unreadable_recipe_file_names_the_file(tmp_path):
    file = tmp_path / "recipe.json"
    file.write_text("{")
    with pytest.raises(RecipeError, match=f"^Cannot read the recipe {file}: Expecting property name"):
        recipe_of("--recipe_file", str(file))


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("reduction_epochs", -1.0, "reduction_epochs=-1.0 must be at least 0 and below 1,000,000."),
        ("fine_tune_adversarial", math.inf, "fine_tune_adversarial=inf must be at least 0 and below 1,000,000."),
        ("fine_tune_epochs", math.nan, "fine_tune_epochs=nan must be at least 0 and below 1,000,000."),
        ("reduction_learning_rate", -0.1, "reduction_learning_rate=-0.1 must be at least 0 and below 1,000,000."),
        ("student_dropout", 1.0, "student_dropout=1.0 must be at least 0 and below 1."),
    ],
)
def test_job_arguments_are_checked(field, value, message):
    with pytest.raises(RecipeError) as caught:
        JobArguments(teacher="x", **{field: value})
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "options, task, settings",
    [
        ([], None, Augmentation(copies=20)),
        ([], "wnli", Augmentation(copies=20)),
        ([], "mrpc", Augmentation(copies=30)),
        (["--augmentation_copies=3"], "mrpc", Augmentation(copies=3)),
        (["--augmentation_candidates=4", "--augmentation_probability=1"], None, Augmentation(20, 4, 1.0)),
    ],
    ids=str,
)
def test_options_of_augmentation(options, task, settings):
    (args,) = HfArgumentParser(AugmentationArguments).parse_args_into_dataclasses(["--augment", *options])
    assert args.settings(task) == settings
    assert args.settings(task, seed=7).seed == 7


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"augmentation_glove": "glove.txt"},
            "--augmentation_glove has no effect without --augment. Give both or neither.",
        ),
        ({"augment": True, "augmentation_copies": 0}, "augmentation_copies=0 must be a positive whole number."),
        ({"augmentation_together": 0}, "augmentation_together=0 must be a positive whole number."),
        ({"augmentation_probability": 2.0}, "augmentation_probability=2.0 must be from 0 to 1."),
    ],
    ids=str,
)
def test_options_of_augmentation_are_checked(options, message):
    with pytest.raises(RecipeError) as caught:
        AugmentationArguments(**options)
    assert str(caught.value) == message


def test_every_option_has_a_help_text():
    compress = (JobArguments, DataArguments, RecipeArguments, AugmentationArguments, XTCTrainingArguments)
    actions = [*HfArgumentParser(compress)._actions, *HfArgumentParser(EvaluateArguments)._actions]
    ours = {"teacher", "weights", "layers", "recipe_file", "terms", "temperature", "model", "text_column", "overwrite"}
    texts = {action.dest: action.help for action in actions}
    assert ours <= texts.keys()
    assert [name for name, text in texts.items() if not text and name not in ("help",)] == []
