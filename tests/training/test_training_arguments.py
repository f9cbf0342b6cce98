"""XTCTrainingArguments: every form of the terms, every refusal, and round trips through transformers."""

import dataclasses
import json
import re

import pytest
import torch
from transformers import HfArgumentParser, TrainingArguments

from hf_xtc.errors import RecipeError, XTCError
from hf_xtc.training.arguments import XTCTrainingArguments

ALL_TERMS = {"logits": 1.0, "hidden_states": 1.0, "attention_scores": 1.0}


@pytest.fixture
def make(tmp_path):
    """Makes arguments with a temporary folder, on the CPU."""
    return lambda **kwargs: XTCTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **kwargs)


def refuses(text, error=RecipeError):
    return pytest.raises(error, match=f"^{re.escape(text)}$")


@pytest.mark.parametrize(
    "terms, expected",
    [
        (None, ALL_TERMS),
        ({"logits": 2}, {"logits": 2}),
        ('{"logits": 2, "labels": 0.5}', {"logits": 2, "labels": 0.5}),
        ("{'attention_scores': 3}", {"attention_scores": 3}),
    ],
    ids=["none", "dict", "json", "single_quotes"],
)
def test_terms(make, terms, expected):
    args = make(terms=terms)
    assert args.terms == args.term_weights == expected
    assert list(args.terms) == list(expected)


def test_defaults(make):
    args = make()
    assert (args.learning_rate, args.warmup_steps, args.num_train_epochs) == (1e-3, 0.1, 3)
    assert (args.per_device_train_batch_size, args.per_device_eval_batch_size) == (32, 64)
    assert (args.train_sampling_strategy, args.logging_steps) == ("group_by_length", 50)
    assert (args.save_strategy, args.save_total_limit) == ("epoch", 1)
    assert args.dataloader_pin_memory == torch.accelerator.is_available()
    assert (args.temperature, args.distillation_stages) == (1.0, 1)
    assert (args.weight_quantization_start, args.activation_quantization_start) == (0.0, 0.0)
    assert args.adversarial_epsilon == 0.0
    assert (args.teacher_cache, args.teacher_cache_dtype) == (None, "float16")


def test_parser_starts_from_the_defaults(make, tmp_path):
    (args,) = HfArgumentParser(XTCTrainingArguments).parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--use_cpu"]
    )
    made = make()
    assert {name: value for name, value in args.to_dict().items() if value != made.to_dict()[name]} == {}


def test_help_of_stock_arguments_stays():
    stock = {field.name: field.metadata for field in dataclasses.fields(TrainingArguments)}
    ours = {field.name: field.metadata for field in dataclasses.fields(XTCTrainingArguments)}
    assert {name for name in stock if ours[name] != stock[name]} == set()


def test_fields_of_transformers_with_other_defaults(make):
    args, stock = make(), {field.name: field for field in dataclasses.fields(TrainingArguments)}
    ours = {f.name: f.default for f in dataclasses.fields(XTCTrainingArguments) if f.name in stock}
    assert {name: value for name, value in ours.items() if value != stock[name].default} == {
        "learning_rate": 1e-3,
        "warmup_steps": 0.1,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 64,
        "train_sampling_strategy": "group_by_length",
        "logging_steps": 50,
        "save_strategy": "epoch",
        "save_total_limit": 1,
        **({} if torch.accelerator.is_available() else {"dataloader_pin_memory": False}),
    }
    assert args.learning_rate == 1e-3


def test_defaults_are_not_shared(make):
    make().terms["logits"] = 7.0
    assert make().terms == ALL_TERMS


def test_only_new_fields_are_added(make):
    stock = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert {field.name for field in dataclasses.fields(XTCTrainingArguments)} - stock == {
        "terms",
        "temperature",
        "distillation_stages",
        "weight_quantization_start",
        "activation_quantization_start",
        "weight_annealing",
        "adversarial_epsilon",
        "teacher_cache",
        "teacher_cache_dtype",
    }
    assert "terms" not in TrainingArguments._VALID_DICT_FIELDS


@pytest.mark.parametrize(
    "terms, text",
    [
        (
            "logits=1",
            "terms='logits=1' is not a JSON object (Expecting value: line 1 column 1 (char 0)). "
            "Example: '{\"logits\": 1}'.",
        ),
        ("[1]", "terms=[1] must name at least one term and its weight."),
        ("null", None),
        ({}, "terms={} must name at least one term and its weight."),
        (["logits"], "terms=['logits'] must name at least one term and its weight."),
        ({"logits": 0}, "terms: the weight of 'logits' is 0; it must be a positive number."),
        ({"logits": 1, "labels": -2.5}, "terms: the weight of 'labels' is -2.5; it must be a positive number."),
        ({"logits": float("nan")}, "terms: the weight of 'logits' is nan; it must be a positive number."),
        ({"logits": float("inf")}, "terms: the weight of 'logits' is inf; it must be a positive number."),
        ({"logits": True}, "terms: the weight of 'logits' is True; it must be a positive number."),
        ({"logits": "1"}, "terms: the weight of 'logits' is '1'; it must be a positive number."),
    ],
    ids=["text", "list", "null", "empty", "names", "zero", "negative", "nan", "inf", "bool", "string"],
)
def test_bad_terms(make, terms, text):
    if text is None:
        assert make(terms=terms).terms == ALL_TERMS
        return
    with refuses(text):
        make(terms=terms)


def test_unknown_term(make):
    text = (
        "Unknown distillation term 'logit'; registered: attention_scores, embeddings, hidden_states, labels, logits, "
        "similarities."
    )
    with refuses(text, XTCError):
        make(terms={"logit": 1.0})


@pytest.mark.parametrize("stages", [0, 4, "2"])
def test_bad_stages(make, stages):
    with refuses(f"distillation_stages={stages!r} does not exist. Use one of: 1, 2, 3."):
        make(distillation_stages=stages)


def test_bad_teacher_cache_dtype(make):
    with refuses("teacher_cache_dtype='float32' does not exist. Use one of: float16, int8."):
        make(teacher_cache="cache", teacher_cache_dtype="float32")


@pytest.mark.parametrize("name", ["weight_quantization_start", "activation_quantization_start", "weight_annealing"])
@pytest.mark.parametrize("value", [-1, -0.5, float("nan"), float("inf")])
def test_bad_starts(make, name, value):
    with refuses(f"{name}={value} must be a step, or a share of all steps below 1."):
        make(**{name: value})


def test_parser_reads_every_field(tmp_path):
    command = f"--output_dir {tmp_path} --use_cpu --distillation_stages 2 --temperature 4 --learning_rate 1e-3"
    command += " --weight_quantization_start 0.1 --activation_quantization_start 30 --weight_annealing 0.2"
    command += " --teacher_cache cache --teacher_cache_dtype int8"
    parser = HfArgumentParser(XTCTrainingArguments)
    (args,) = parser.parse_args_into_dataclasses([*command.split(), "--terms", '{"logits": 2, "labels": 0.5}'])
    assert args.terms == {"logits": 2, "labels": 0.5}
    assert (args.distillation_stages, args.temperature, args.learning_rate) == (2, 4.0, 1e-3)
    assert (args.weight_quantization_start, args.activation_quantization_start) == (0.1, 30.0)
    assert args.weight_annealing == 0.2
    assert args.adversarial_epsilon == 0.0
    assert (args.teacher_cache, args.teacher_cache_dtype) == ("cache", "int8")
    (args,) = parser.parse_args_into_dataclasses(command.split())
    assert args.terms == ALL_TERMS


def test_parser_names_the_terms(capsys):
    with pytest.raises(SystemExit):
        HfArgumentParser(XTCTrainingArguments).parse_args_into_dataclasses(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("--terms", "'attention_scores': 1} (default). The term 'labels'", "--distillation_stages"):
        assert text in shown


@pytest.mark.parametrize("terms", [None, {"logits": 2.0, "hidden_states": 0.5}], ids=["default", "given"])
def test_json_round_trip(make, terms):
    args = make(terms=terms, distillation_stages=2 if terms is None else 1, temperature=2.0)
    assert args.to_dict()["terms"] == args.terms
    read = XTCTrainingArguments(**json.loads(args.to_json_string()))
    assert read.to_dict() == args.to_dict()
    (read,) = HfArgumentParser(XTCTrainingArguments).parse_dict(args.to_dict())
    assert read.to_dict() == args.to_dict()


def test_json_file(make, tmp_path):
    file = tmp_path / "args.json"
    file.write_text(json.dumps({"output_dir": str(tmp_path), "use_cpu": True, "terms": {"labels": 1}}))
    (args,) = HfArgumentParser(XTCTrainingArguments).parse_json_file(file)
    assert args.terms == {"labels": 1}


def test_replace(make):
    args = make(terms={"labels": 1.0}, temperature=3.0)
    other = dataclasses.replace(args, terms={"logits": 2.0}, learning_rate=1e-3)
    assert (other.terms, other.temperature, other.learning_rate) == ({"logits": 2.0}, 3.0, 1e-3)
    assert args.terms == {"labels": 1.0}
    with refuses("distillation_stages=9 does not exist. Use one of: 1, 2, 3."):
        dataclasses.replace(args, distillation_stages=9)
