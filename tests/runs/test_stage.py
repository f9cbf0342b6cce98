"""Stages: which folder each learning rate trains in."""

from trainers import DATA, make_teacher, make_trainer
from transformers import AutoModelForSequenceClassification, BertTokenizerFast

from hf_xtc.compression.convert import compress
from hf_xtc.recipe.xtc_recipe import XTCRecipe
from hf_xtc.runs.schedule import Stage
from hf_xtc.runs.stage import StageRun, run_stage


def test_learning_rates_that_are_nearly_the_same_train_apart(tmp_path):
    """The second would find the checkpoints of the first, and go on from them."""
    teacher, rates = make_teacher(), (1e-3, 1.0000001e-3)

    def trainer(model, folder, rate):
        return make_trainer(folder, teacher, model, learning_rate=rate, max_steps=1)

    run = StageRun(
        folder=tmp_path,
        key="key",
        metric="accuracy",
        build=lambda: compress(teacher, XTCRecipe(keep_layers=2)),
        trainer=trainer,
        validation={"validation": DATA[:8]},
        measure=lambda trainer, splits: {"accuracy": 1.0},
        held_out=DATA[:8],
        tokenizer=BertTokenizerFast(vocab={"[PAD]": 0, "[UNK]": 1}),
        start="the teacher",
        auto_class=AutoModelForSequenceClassification,
    )
    receipt = run_stage(Stage("student", learning_rates=rates), run)[1]
    assert [entry["learning_rate"] for entry in receipt.tried] == list(rates)
    assert {folder.name for folder in tmp_path.glob("lr-*")} == {"lr-0.001", "lr-0.0010000001"}
