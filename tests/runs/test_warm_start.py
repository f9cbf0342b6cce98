"""Students that start from another model: which weights they take, and which models are refused."""

import json

import pytest
import torch
from compress_options import QUICK, compress_options, data_options
from compress_options import folder as folder
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification

from hf_xtc import XTCRecipe, compress, pack_model
from hf_xtc.cli import main
from hf_xtc.errors import XTCError
from hf_xtc.runs.warm_start import check_start, started

pytestmark = pytest.mark.usefixtures("one_thread")

RECIPE = XTCRecipe(keep_layers=2)


@pytest.fixture(scope="module")
def packed(folder):
    """A packed student for a regression, with two layers and an encoder unlike that of any teacher here."""
    torch.manual_seed(5)
    config = BertConfig.from_pretrained(folder / "teacher", num_labels=1)
    model = pack_model(compress(BertForSequenceClassification(config), RECIPE))
    model.save_pretrained(folder / "packed")
    AutoTokenizer.from_pretrained(folder / "teacher").save_pretrained(folder / "packed")
    return model


def teacher_of(folder):
    return BertForSequenceClassification.from_pretrained(folder / "teacher").eval()


def assert_same_encoder(model, packed):
    """Compares encoders, with a tolerance for int8 rows (positions), which are quantized twice."""
    found, expected = model.base_model.state_dict(), packed.base_model.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        off = (found[name].float() - tensor.float()).abs().max()
        rounding = 0 if "position" not in name and "token_type" not in name else 1 if name.endswith("packed") else 1e-3
        assert off <= rounding, (name, off)


def test_encoder_comes_from_the_start_and_head_from_the_teacher(folder, packed):
    teacher = teacher_of(folder)
    student = started(str(folder / "packed"), AutoModelForSequenceClassification, teacher, RECIPE)
    assert student.config.layer_map.layers == (1, 3)
    assert torch.equal(student.classifier.weight, teacher.classifier.weight)
    assert_same_encoder(pack_model(student), packed)


def test_a_latent_start_gives_its_latent_weights(folder, packed, tmp_path):
    latent = compress(teacher_of(folder), XTCRecipe(layers=(0, 1)))
    latent.save_pretrained(tmp_path / "latent")
    student = started(str(tmp_path / "latent"), AutoModelForSequenceClassification, teacher_of(folder), RECIPE)
    key = "encoder.layer.1.output.dense.weight"
    assert torch.equal(student.base_model.state_dict()[key], latent.base_model.state_dict()[key])


@pytest.mark.parametrize(
    ("layers", "sizes", "message"),
    [
        (3, {}, r"cannot start from .*packed, which has num_hidden_layers 2, not 3\. Choose a model of the "),
        (2, {"hidden_size": 72}, r"which has hidden_size 36, not 72\."),
        (2, {"max_position_embeddings": 41}, r"which has max_position_embeddings 40, not 41\."),
        (
            2,
            {"vocab_size": 7, "intermediate_size": 9},
            r"which has vocab_size 19, not 7, intermediate_size 50, not 9\.",
        ),
    ],
)
def test_another_shape_is_refused(folder, packed, layers, sizes, message):
    tokenizer = AutoTokenizer.from_pretrained(folder / "teacher")
    config = BertConfig.from_pretrained(folder / "teacher", **sizes)
    with pytest.raises(XTCError, match=message):
        check_start(str(folder / "packed"), config, layers, tokenizer)


def test_another_vocabulary_is_refused(folder, packed, tmp_path):
    other = AutoTokenizer.from_pretrained(folder / "teacher")
    other.add_tokens(["brilliant"])
    config = BertConfig.from_pretrained(folder / "teacher")
    with pytest.raises(XTCError, match="its vocabulary is not the teacher's"):
        check_start(str(folder / "packed"), config, 2, other)


def test_a_run_starts_from_another_model_and_the_card_says_so(folder, packed, tmp_path):
    out = tmp_path / "out"
    options = [f"--teacher={folder / 'teacher'}", f"--output_dir={out}", "--keep_layers=2"]
    options += [*data_options(folder), *QUICK, "--num_train_epochs=0", f"--start_from={folder / 'packed'}"]
    assert main(["compress", *options]) == 0
    assert_same_encoder(AutoModelForSequenceClassification.from_pretrained(out), packed)
    stages = json.loads((out / "metrics.json").read_text())["provenance"]["stages"]
    assert [(stage["stage"], stage["start"]) for stage in stages] == [("student", "the encoder of packed")]
    assert str(folder) not in (out / "README.md").read_text()


def test_a_start_of_another_depth_is_refused_before_anything_is_written(folder, packed, tmp_path, capsys):
    out = tmp_path / "out"
    options = [*compress_options(folder, out), "--keep_layers=3", f"--start_from={folder / 'packed'}"]
    assert main(["compress", *options]) == 1
    assert "num_hidden_layers 2, not 3" in capsys.readouterr().err
    assert not out.exists()


def test_no_such_folder(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["compress", *compress_options(folder, out), f"--start_from={tmp_path / 'nothing'}"]) == 1
    assert f"There is no folder {tmp_path / 'nothing'}." in capsys.readouterr().err
