"""What makes two runs the same."""

import dataclasses

import pytest
from transformers import TrainingArguments

from hf_xtc import XTCTrainingArguments
from hf_xtc.identity import deciding


def arguments(**changes):
    return XTCTrainingArguments("out", use_cpu=True, **changes)


@pytest.mark.parametrize(
    "change", [{"weight_annealing": 0.1}, {"terms": {"logits": 2.0}}, {"teacher_cache": "cache"}], ids=str
)
def test_what_only_students_use_decides_nothing_about_fine_tuning(change):
    assert deciding(arguments(), distils=False) == deciding(arguments(**change), distils=False)
    assert deciding(arguments()) != deciding(arguments(**change))


def test_options_of_every_trainer_decide_both():
    for distils in (True, False):
        assert deciding(arguments(), distils=distils) != deciding(arguments(learning_rate=0.5), distils=distils)
        assert deciding(arguments(), distils=distils) == deciding(arguments(logging_steps=7), distils=distils)


def test_fine_tuning_is_described_by_stock_arguments_alone():
    assert set(deciding(arguments(), distils=False)) <= {field.name for field in dataclasses.fields(TrainingArguments)}
