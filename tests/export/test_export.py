"""Exports for ONNX Runtime and OpenVINO, run by the real runtimes: exactness, sizes, refusals, the command."""

import csv
import json
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    BertTokenizerFast,
    set_seed,
)

from hf_xtc import XTCError, XTCRecipe, compress, pack_model
from hf_xtc.cli import main
from hf_xtc.errors import RecipeError, StateError
from hf_xtc.export import emitter
from hf_xtc.export.exporting import default_weights, export_model
from hf_xtc.export.graph import IDS, MASK, TYPES, Interface, interface_of
from hf_xtc.export.verify import CLOSE, EXACT, Agreement, random_batches
from hf_xtc.modeling.layers import PackedLinear

BOTH = pytest.mark.parametrize("format", ["onnx", "openvino"])


@pytest.fixture
def build(tiny_config, tiny_batch):
    """Builds a packed model of two layers by head and recipe; static ranges come from one training step."""

    def make(head=BertForSequenceClassification, **recipe):
        tiny_config.num_hidden_layers = 2
        if head is BertForQuestionAnswering:
            tiny_config.num_labels = 2
        set_seed(0)
        student = compress(head(tiny_config), XTCRecipe(**recipe))
        if recipe.get("activation_calibration") == "static":
            student.train()(**tiny_batch)
        return pack_model(student.eval())

    return make


def write(model, folder, format, weights=None):
    """Writes a file without the package's verification; the tests that call this have stricter bounds."""
    runtime, weights = import_module(f"hf_xtc.export.{format}"), weights or default_weights(format)
    runtime.check(model, weights)
    return runtime.write(model, interface_of(model), folder, weights)[0]


def needs_two_bits(format="onnx"):
    """Skips a test if ONNX Runtime multiplies by 4 and 8 bits only, such as the newest one for Python 3.10."""
    if format == "onnx":
        pytest.importorskip("onnxruntime", minversion="1.24")


def run(format, path, batch):
    return import_module(f"hf_xtc.export.{format}").Runner(path)(batch)


def whole_batch(tiny_batch):
    types = (torch.arange(11) > 1).long() * tiny_batch["attention_mask"]
    return {**tiny_batch, "token_type_ids": types}


def assert_equal_outputs(model, path, format, batch, tolerance=2e-5):
    """Equal up to the order of float sums; one level of one activation moves these outputs by 5e-6 of the largest."""
    found = run(format, path, batch)
    with torch.inference_mode():
        expected = model(**batch, return_dict=True)
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert found[name].shape == tuple(values.shape)
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], values.numpy(), rtol=0, atol=tolerance * values.abs().max().item())


@BOTH
@pytest.mark.parametrize("granularity, group_size", [("per_tensor", None), ("per_channel", None), ("per_group", 2)])
@pytest.mark.parametrize("weights", ["binary", "ternary", "int4", "int8"])
def test_every_quantizer_and_granularity(weights, granularity, group_size, format, build, tiny_batch, tmp_path):
    model = build(weights=weights, embedding_weights=weights, granularity=granularity, group_size=group_size)
    path = write(model, tmp_path, format)
    assert_equal_outputs(model, path, format, whole_batch(tiny_batch))


@pytest.mark.parametrize("granularity, group_size", [("per_tensor", None), ("per_channel", None), ("per_group", 2)])
@pytest.mark.parametrize("weights", ["binary", "ternary", "int4", "int8"])
def test_packed_codes_are_unpacked_by_the_runtime(weights, granularity, group_size, build, tiny_batch, tmp_path):
    """Bitwise as the graph of bytes, in a file that holds each code once, as the packed file does."""
    model = build(weights=weights, granularity=granularity, group_size=group_size)
    batch, found = whole_batch(tiny_batch), {}
    for form in ("int8", "packed"):
        (tmp_path / form).mkdir()
        found[form] = run("onnx", write(model, tmp_path / form, "onnx", form), batch)["logits"]
    np.testing.assert_array_equal(found["packed"], found["int8"])
    stored = onnx.load(tmp_path / "packed" / "model.onnx").graph.initializer
    for name, layer in model.named_modules():
        if isinstance(layer, PackedLinear) and weights != "int8":
            held = [onnx.numpy_helper.to_array(tensor) for tensor in stored]
            assert any(np.array_equal(array, layer.weight_packed) for array in held), name


def test_packed_codes_are_unpacked_once_when_the_file_is_loaded(build, tmp_path):
    """The graph that runs multiplies bytes, and looks nothing up but rows of embeddings."""
    path = write(build(), tmp_path, "onnx", "packed")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "optimized.onnx").graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    codes = [node.input[1] for node in graph.node if node.op_type == "MatMulInteger"]
    assert len(codes) == 13
    assert {stored[name].data_type for name in codes} == {onnx.TensorProto.INT8}


@BOTH
@pytest.mark.parametrize("calibration", ["dynamic", "static"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits, granularity", [(8, "per_channel"), (4, "per_tensor"), (8, "per_group")])
def test_every_activation(bits, granularity, symmetric, calibration, format, build, tiny_batch, tmp_path):
    group_size = 2 if granularity == "per_group" else None
    scheme = {"activation_bits": bits, "activation_symmetric": symmetric, "activation_calibration": calibration}
    model = build(granularity=granularity, group_size=group_size, **scheme)
    path = write(model, tmp_path, format)
    assert_equal_outputs(model, path, format, whole_batch(tiny_batch))


@BOTH
@pytest.mark.parametrize(
    "recipe",
    [
        {"activation_bits": None},
        {"weights": None, "embedding_weights": None, "position_weights": None},
        {"quantize_pooler": False, "scale_dtype": "float32", "rest_dtype": "float32"},
        {"scale_dtype": "bfloat16", "rest_dtype": "bfloat16"},
    ],
    ids=["float inputs", "float weights", "float32", "bfloat16"],
)
def test_parts_left_in_float(recipe, format, build, tiny_batch, tmp_path):
    model = build(**recipe)
    path = write(model, tmp_path, format)
    assert_equal_outputs(model, path, format, whole_batch(tiny_batch))


@BOTH
@pytest.mark.parametrize(
    "head",
    [
        BertModel,
        BertForTokenClassification,
        BertForQuestionAnswering,
        BertForMaskedLM,
        BertForNextSentencePrediction,
    ],
)
@pytest.mark.usefixtures("reference_backend")
def test_heads(head, format, build, tiny_batch, tmp_path):
    model = build(head)
    path = export_model(model, tmp_path, format=format)
    assert_equal_outputs(model, path, format, whole_batch(tiny_batch))


@BOTH
@pytest.mark.parametrize("embedding", ["ternary", "int8", None])
@pytest.mark.usefixtures("reference_backend")
def test_masked_lm_shares_the_rows_of_the_embedding(embedding, format, build, tiny_batch, tmp_path):
    needs_two_bits(format)
    model = build(BertForMaskedLM, embedding_weights=embedding)
    path = write(model, tmp_path, format, "2bit")
    tolerance = 2e-5 if format == "openvino" else 5e-3
    assert_equal_outputs(model, path, format, whole_batch(tiny_batch), tolerance)


@BOTH
@pytest.mark.parametrize("rows, length", [(1, 1), (1, 40), (5, 7)])
def test_any_batch_size_and_length(rows, length, format, build, tmp_path):
    model = build()
    path = write(model, tmp_path, format)
    ids = torch.randint(101, (rows, length), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    assert_equal_outputs(model, path, format, batch)


@BOTH
def test_a_row_beyond_the_positions_is_refused_by_the_runtime(format, build, tmp_path):
    path = write(build(), tmp_path, format)
    ids = torch.ones(1, 41, dtype=torch.long)
    with pytest.raises(Exception, match=r"41|out of data bounds|not compatible"):
        run(format, path, {"input_ids": ids, "attention_mask": ids, "token_type_ids": ids * 0})


@BOTH
def test_a_half_precision_model_is_exported_in_float32_and_not_changed(format, build, tiny_batch, tmp_path):
    model = build().half()
    path = export_model(model, tmp_path, format=format)
    assert model.dtype == torch.float16
    assert_equal_outputs(model.float(), path, format, whole_batch(tiny_batch))


@pytest.mark.parametrize("weights", ["binary", "int4", "int8"])
def test_onnx_products_of_extremes_do_not_saturate(weights, build, tmp_path):
    """All inputs are at one end of the levels, all codes at the other: these sums would saturate in int16."""
    from hf_xtc.export.onnx import OnnxEmitter

    layer = build(weights=weights).bert.encoder.layer[0].output.dense
    layer.weight_packed.fill_({"binary": 255, "int4": 0, "int8": 0}[weights])
    layer.weight_scale.fill_(1)
    value = -torch.arange(1, 51).float().expand(2, 50)
    graph = OnnxEmitter("int8")
    output = graph.linear("x", layer)
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "linear",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (2, 50))],
            [onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, (2, 36))],
            list(graph.initializers.values()),
        ),
        opset_imports=[onnx.helper.make_opsetid("", 21)],
        ir_version=10,
    )
    session = import_module("onnxruntime").InferenceSession(proto.SerializeToString())
    with torch.inference_mode():
        expected = layer(value)
    np.testing.assert_allclose(session.run(None, {"x": value.numpy()})[0], expected.numpy(), rtol=1e-6)


def test_onnx_holds_the_codes_as_bytes(build, tmp_path):
    model = build(weights="ternary")
    proto = onnx.load(export_model(model, tmp_path))
    onnx.checker.check_model(proto)
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds.count("MatMulInteger") == 13
    assert kinds.count("QuantizeLinear") == 9  # query, key and value share one
    dense = model.bert.encoder.layer[1].intermediate.dense
    found = [onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer]
    assert any(np.array_equal(array, emitter.signed_codes(dense).T) for array in found if array.dtype == np.int8)


def test_onnx_2bit_is_smaller_and_close(build, tiny_batch, tmp_path):
    needs_two_bits()
    model = build(weights="ternary")
    small = export_model(model, tmp_path / "2bit", weights="2bit")
    nodes = [node for node in onnx.load(small).graph.node if node.op_type == "MatMulNBits"]
    attributes = {a.name: a.i for a in nodes[0].attribute}
    assert (len(nodes), attributes["bits"], attributes["accuracy_level"]) == (13, 2, 4)
    assert small.stat().st_size < 0.7 * export_model(model, tmp_path / "int8").stat().st_size
    assert_equal_outputs(model, small, "onnx", whole_batch(tiny_batch), tolerance=0.05)


def test_onnx_2bit_keeps_the_scales_of_groups(tiny_config, build, tiny_batch, tmp_path):
    needs_two_bits()
    tiny_config.hidden_size, tiny_config.intermediate_size = 64, 128
    model = build(weights="binary", granularity="per_group", group_size=64)
    path = export_model(model, tmp_path, weights="2bit")
    assert_equal_outputs(model, path, "onnx", whole_batch(tiny_batch), tolerance=0.05)


@pytest.mark.parametrize("weights, bits", [("binary", 1), ("ternary", 2), ("int4", 4), ("int8", 8)])
def test_openvino_constants_have_the_bits_of_the_quantizer(weights, bits, build, tmp_path):
    model = build(weights=weights, activation_bits=None)
    path = write(model, tmp_path, "openvino")
    found = path.read_text(encoding="utf-8").count(
        f'element_type="{"i8" if bits == 8 else f"u{bits}"}" shape="50, 36"'
    )
    assert found == 2
    binary = path.with_suffix(".bin").stat().st_size
    (tmp_path / "bytes").mkdir()
    write(build(weights="int8", activation_bits=None), tmp_path / "bytes", "openvino")
    numel = 2 * (4 * 36 * 36 + 2 * 36 * 50) + 36 * 36
    saved = (tmp_path / "bytes" / path.name).with_suffix(".bin").stat().st_size - binary
    assert saved == pytest.approx(numel * (8 - bits) / 8, abs=150)  # constants are aligned


@BOTH
@pytest.mark.parametrize("head, outputs", [(BertForMaskedLM, "logits"), (BertModel, "last_hidden_state")])
def test_the_embedding_is_never_expanded(head, outputs, format, tiny_config, build, tmp_path):
    needs_two_bits(format)
    tiny_config.vocab_size = 4000
    path = export_model(build(head), tmp_path, format=format, weights="2bit")
    table, scales, head_bias = 4000 * 5, 4000 * 2, 4000 * 2
    total = sum(file.stat().st_size for file in tmp_path.iterdir() if file.suffix in (".onnx", ".bin"))
    assert total < table + scales + head_bias + 40_000
    assert path.exists()


@BOTH
def test_a_latent_model_is_refused(format, tiny_teacher, tmp_path):
    with pytest.raises(StateError) as error:
        export_model(compress(tiny_teacher), tmp_path / "out", format=format)
    assert str(error.value) == (
        "XTCBertForSequenceClassification is not packed; only packed models are exported. Call pack_model first."
    )
    assert not (tmp_path / "out").exists()


def test_a_head_without_a_graph_is_refused(build, tmp_path):
    with pytest.raises(XTCError) as error:
        export_model(build(BertForMultipleChoice), tmp_path)
    assert str(error.value) == (
        "XTCBertForMultipleChoice cannot be exported. Those that can: XTCBertModel, XTCBertForMaskedLM, "
        "XTCBertForNextSentencePrediction, XTCBertForSequenceClassification, XTCBertForTokenClassification, "
        "XTCBertForQuestionAnswering."
    )


def test_a_decoder_is_refused(tiny_config, build, tmp_path):
    tiny_config.is_decoder = True
    with pytest.raises(XTCError, match=r"^XTCBertModel with is_decoder or add_cross_attention cannot be exported"):
        export_model(build(BertModel), tmp_path)


@pytest.mark.parametrize(
    "format, weights, message",
    [
        ("gguf", None, "format='gguf' does not exist. Use one of: onnx, openvino, transformers.js, transformers."),
        ("onnx", "1bit", "The format onnx has no weights '1bit'. Use one of: int8, 2bit, packed."),
        ("openvino", "packed", "The format openvino has no weights 'packed'. Use one of: 2bit, int8."),
        ("transformers", "int8", "The format transformers has no weights 'int8'. Use one of: float16."),
    ],
)
def test_unknown_choices(format, weights, message, build, tmp_path):
    with pytest.raises(RecipeError) as error:
        export_model(build(), tmp_path, format=format, weights=weights)
    assert str(error.value) == message


@BOTH
def test_an_unknown_activation_function_is_refused(format, tiny_config, build, tmp_path):
    tiny_config.hidden_act = "mish"
    with pytest.raises(XTCError, match=r"^The activation 'mish' cannot be exported to \w+\. Those that can: gelu,"):
        export_model(build(), tmp_path, format=format)


@BOTH
@pytest.mark.parametrize("name", ["gelu_new", "relu", "tanh"])
def test_activation_functions(name, format, tiny_config, build, tiny_batch, tmp_path):
    tiny_config.hidden_act = name
    model = build()
    path = write(model, tmp_path, format)
    assert_equal_outputs(model, path, format, whole_batch(tiny_batch))


@pytest.mark.parametrize(
    "recipe, message",
    [
        ({"weights": "int4"}, "is int4, which does not fit 2 bits; only binary and ternary do. "),
        (
            {"granularity": "per_group", "group_size": 2},
            "has a scale for every 2 inputs, but MatMulNBits has one for every 32. ",
        ),
    ],
)
def test_weights_that_onnx_2bit_cannot_hold_are_refused(recipe, message, build, tmp_path):
    with pytest.raises(XTCError) as error:
        export_model(build(**recipe), tmp_path, weights="2bit")
    path = "bert.encoder.layer.0.attention.self.query"
    assert str(error.value) == f"{path} {message}Export with weights='int8'."


@pytest.mark.parametrize("format, package", [("onnx", "onnx"), ("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_a_missing_package_is_named_with_its_install_command(format, package, build, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(XTCError) as error:
        export_model(build(), tmp_path / "out", format=format)
    assert str(error.value) == (
        f"The package {package} cannot be imported (import of {package} halted; None in sys.modules). "
        f"Run: pip install 'hf_xtc[{format}]'"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format, weights", [("onnx", "int8"), ("onnx", "2bit"), ("openvino", "2bit")])
def test_a_file_that_disagrees_is_an_error_and_is_removed(format, weights, build, tmp_path, monkeypatch):
    if weights == "2bit":
        needs_two_bits(format)
    model, name = build(), "signed_codes" if format == "onnx" else "raw_codes"
    module = import_module(f"hf_xtc.export.{format}")
    right = getattr(module, name)
    wrong = {"signed_codes": lambda layer: -right(layer), "raw_codes": lambda layer: 1 - right(layer)}[name]
    monkeypatch.setattr(module, name, wrong)
    with pytest.raises(XTCError, match=rf"^\w+\.\w+ \({weights}\) disagrees with its model: ") as error:
        export_model(model, tmp_path / "out", format=format, weights=weights)
    assert "The file was removed." in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_file_that_does_not_run_is_an_error(build, tmp_path, monkeypatch):
    import hf_xtc.export.onnx as module

    def write(model, interface, folder, weights):
        (folder / "model.onnx").write_bytes(b"nonsense")
        return [folder / "model.onnx"]

    monkeypatch.setattr(module, "write", write)
    with pytest.raises(XTCError, match=r"^model\.onnx was written, but onnxruntime cannot run it: "):
        export_model(build(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_agreement_counts_classes_and_leaves_padding_out():
    mask = np.array([[1, 1, 1], [1, 0, 0]])
    tokens = np.zeros((2, 3, 2), np.float32)
    tokens[..., 0] = 1
    moved = tokens.copy()
    moved[1, 1:] = 9  # padding
    moved[0, 0] = [1, 3]
    agreement = Agreement()
    agreement.add({"logits": tokens}, {"logits": moved}, mask)
    assert (agreement.rows, agreement.predictions, agreement.equal, agreement.largest) == (2, 4, 3, 3.0)
    spans = Agreement()
    start = np.array([[0, 1, 2], [5, 9, 9]], np.float32)
    found = np.array([[0, 1, 2], [5, 16, 16]], np.float32)
    spans.add({"start_logits": start}, {"start_logits": found}, mask)
    assert (spans.predictions, spans.equal, spans.largest, spans.magnitude) == (2, 2, 0.0, 5.0)


def test_agreement_of_a_regression_has_no_classes():
    agreement = Agreement()
    agreement.add({"logits": np.ones((2, 1))}, {"logits": np.ones((2, 1)) * 1.5}, np.ones((2, 3)))
    assert str(agreement) == "largest difference 0.5 of outputs up to 1, mean difference 50.00% of the mean output"
    assert not agreement.within(EXACT, Agreement())


def test_tolerance():
    agreement = Agreement(rows=1000, predictions=1000, equal=990, largest=0.01, magnitude=1.0)
    assert not agreement.within(EXACT, Agreement())
    assert agreement.within(CLOSE, Agreement())
    noise = Agreement(rows=1000, predictions=1000, equal=995, largest=0.01)
    assert agreement.within(EXACT, noise)
    assert not replace(agreement, largest=float("nan")).within(CLOSE, noise)


def test_a_trained_model_exports_in_2_bits_without_data(tmp_path):
    example = Path(__file__).parents[2] / "examples" / "minilm-3l-1bit-sst2"
    assert main(["export", f"--model={example}", "--weights=2bit", f"--output_dir={tmp_path / 'out'}"]) == 0
    assert (tmp_path / "out" / "model.onnx").exists()


INPUTS = (IDS, MASK, TYPES)


def test_random_batches_are_ragged_and_the_same_at_every_call(tiny_config):
    first, again = (list(random_batches(tiny_config, Interface(INPUTS, 40))) for _ in range(2))
    assert all(torch.equal(a[name], b[name]) for a, b in zip(first, again, strict=True) for name in a)
    assert sum(len(batch["input_ids"]) for batch in first) == 64
    assert {int(n) for batch in first for n in batch["attention_mask"].sum(1)} > {32}


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "plot"]


@pytest.fixture
def checkpoint(build, tiny_config, tmp_path):
    """A packed classifier on disk with its tokenizer, and validation data."""
    tiny_config.id2label = {0: "bad", 1: "good"}
    tiny_config.label2id = {"bad": 0, "good": 1}
    build().save_pretrained(tmp_path / "model")
    BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(tmp_path / "model")
    with open(tmp_path / "dev.csv", "w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *[["good film " * (i % 5 + 1), "good"] for i in range(9)]])
        csv.writer(file).writerow(["bad plot", "bad"])
    return tmp_path


def export_command(folder, *options):
    model, out = str(folder / "model"), str(folder / "out")
    return main(["export", "--model", model, "--output_dir", out, "--max_length", "16", *options])


@pytest.mark.parametrize(
    "options, file", [(["--weights", "int8"], "model.onnx"), (["--format", "openvino"], "openvino_model.xml")]
)
def test_command_verifies_on_the_validation_rows(options, file, checkpoint, capsys):
    assert export_command(checkpoint, *options, "--validation_file", str(checkpoint / "dev.csv")) == 0
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["agreement"].startswith("10 of 10 predicted classes equal, largest difference ")
    assert lines["verified on"] == "10 rows of the validation split"
    out = checkpoint / "out"
    assert lines["written to"] == str(out / file)
    written = [path for path in out.iterdir() if path.name.startswith(("model", "openvino"))]
    assert int(lines["bytes"]) == sum(path.stat().st_size for path in written)
    config = json.loads((out / "config.json").read_text())
    assert (config["model_type"], config["id2label"]) == ("bert", {"0": "bad", "1": "good"})
    assert (out / "tokenizer.json").exists()


def test_command_without_data_verifies_on_random_rows(checkpoint, capsys):
    assert export_command(checkpoint) == 0
    assert "verified on: 64 rows of random tokens (no data was given)" in capsys.readouterr().out
    assert export_command(checkpoint) == 1
    assert "out is not empty. Give another --output_dir, or --overwrite" in capsys.readouterr().err


def test_exported_tokenizer_gives_the_inputs_that_the_graph_reads(checkpoint):
    file = checkpoint / "model" / "tokenizer_config.json"
    settings = {**json.loads(file.read_text()), "model_input_names": ["input_ids", "attention_mask"]}
    file.write_text(json.dumps(settings))
    assert export_command(checkpoint) == 0
    rows = dict(AutoTokenizer.from_pretrained(checkpoint / "out")(["good film"], return_tensors="np"))
    session = import_module("onnxruntime").InferenceSession(checkpoint / "out" / "model.onnx")
    assert rows.keys() == {entry.name for entry in session.get_inputs()}
    assert session.run(None, rows)[0].shape == (1, 2)


def test_command_refuses_a_model_that_is_not_packed(checkpoint, tiny_teacher, capsys):
    tiny_teacher.save_pretrained(checkpoint / "model")
    assert export_command(checkpoint) == 1
    message = "model holds no packed model. Export one that hf-xtc compress or pack_model made."
    assert message in capsys.readouterr().err


def test_command_removes_a_file_that_disagrees(checkpoint, capsys, monkeypatch):
    import hf_xtc.export.onnx as module

    right = module.signed_codes
    monkeypatch.setattr(module, "signed_codes", lambda layer: -right(layer))
    assert export_command(checkpoint) == 1
    assert "disagrees with its model" in capsys.readouterr().err
    assert not (checkpoint / "out").exists()
