"""The ablation's parts: what was tried must be what it says, and the table must compare like with like."""

import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import BertTokenizerFast

import ablation
from hf_xtc import XTCRecipe, compress
from hf_xtc.modeling.layers import XTCLinear
from hf_xtc.quantization.specs import QuantSpec
from hf_xtc.recipe.layer_map import LayerMap
from tried.candidates import BASE, registered
from tried.quantization import CentredBinaryQuantizer, Freezing
from tried.report import against_base, markdown
from tried.sub_norms import add_sub_norms
from tried.terms import AttentionProbabilitiesTerm, RelationsTerm, masked_divergence

LAYERS = LayerMap((0, 1), 2)


def lines():
    """Two candidates on two tasks; the second candidate has no base to compare with on one of them."""
    made = []
    for task, seed, name, score, divergence in (
        ("cola", 1, BASE, 0.30, 0.10),
        ("cola", 1, "maps", 0.32, 0.05),
        ("rte", 1, BASE, 0.60, 0.20),
        ("rte", 1, "maps", 0.60, 0.20),
        ("rte", 2, "maps", 0.90, 0.01),
    ):
        line = {"task": task, "seed": seed, "candidate": name, "score": score, "divergence": divergence}
        made.append({**line, "seconds": 10.0})
    return made


def test_candidates_are_compared_with_the_base_of_their_task_and_seed():
    compared = against_base(lines())
    assert [run["divergence"] for run in compared["maps"]] == [0.5, 1.0]
    assert [run["points"] for run in compared["maps"]] == pytest.approx([2.0, 0.0])
    row = next(row for row in markdown(lines(), {"steps": 8}).splitlines() if row.startswith("| maps"))
    assert [cell.strip() for cell in row.strip("|").split("|")][2:] == ["0.707", "1 of 2", "+1.00 ± 1.41"]


def test_divergence_of_attention_ignores_padding_and_is_zero_for_the_teacher():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 5, 5), torch.randn(2, 3, 5, 5)
    mask = torch.tensor([[1.0, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    assert masked_divergence(teacher, teacher, mask).item() == pytest.approx(0, abs=1e-6)
    whole = masked_divergence(student, teacher, mask)
    cut = masked_divergence(student[1:, :, :3, :3], teacher[1:, :, :3, :3], torch.ones(1, 3))
    first = masked_divergence(student[:1], teacher[:1], torch.ones(1, 5))
    assert whole.item() == pytest.approx((first.item() + cut.item()) / 2, rel=1e-5)
    p, q = teacher[0].softmax(-1), student[0].softmax(-1)
    assert first.item() == pytest.approx((p * (p / q).log()).sum(-1).mean().item(), rel=1e-5)


@pytest.mark.parametrize("term, shape", [(AttentionProbabilitiesTerm, (2, 4, 5, 5)), (RelationsTerm, (3, 2, 4, 5, 6))])
def test_terms_are_zero_for_the_teacher_and_reach_the_student(term, shape):
    torch.manual_seed(0)
    teacher = {"attentions": [torch.randn(shape), torch.randn(shape)]}
    batch = {"attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])}
    assert term()(teacher, teacher, batch, LAYERS).item() == pytest.approx(0, abs=1e-6)
    student = {"attentions": [torch.randn(shape).requires_grad_() for _ in range(2)]}
    loss = term()(student, teacher, batch, LAYERS)
    loss.backward()
    assert loss.item() > 0
    assert student["attentions"][1].grad.abs().sum() > 0


def test_centred_codes_compare_with_the_rows_mean():
    groups = torch.tensor([[1.0, 2.0, 3.0, 6.0]])
    assert CentredBinaryQuantizer().encode(groups, groups.mean(1, keepdim=True)).tolist() == [[0, 0, 1, 1]]


def test_freezing_holds_the_weights_that_kept_changing_sign():
    class State:
        global_step, max_steps = 0, 10

    layer = torch.nn.Sequential(XTCLinear(2, 1, bias=False, spec=QuantSpec("binary")))
    freezing = Freezing(0.5, 0.01)
    for step in range(1, 9):
        with torch.no_grad():
            layer[0].weight.copy_(torch.tensor([[(-1.0) ** step, float(step)]]))
        State.global_step = step
        freezing.on_step_end(None, State, None, model=layer)
    assert layer[0].weight.tolist() == [[-1.0, 8.0]], "the first stays as at step 5, the second moves on"


def test_norms_before_the_output_projections_normalise_and_learn(tiny_teacher):
    student = add_sub_norms(compress(tiny_teacher, XTCRecipe(keep_layers=2)))
    norms = {name: module for name, module in student.named_modules() if name.endswith("sub_norm")}
    assert len(norms) == 2 * 2
    seen = {}
    for name in norms:
        dense = student.get_submodule(name.removesuffix(".sub_norm"))
        dense.register_forward_pre_hook(lambda module, inputs, name=name: seen.update({name: inputs[0]}))
    student.train()(input_ids=torch.tensor([[2, 5, 6, 3]])).logits.square().sum().backward()
    assert seen.keys() == norms.keys()
    assert all(tensor.mean(-1).abs().max() < 1e-4 for tensor in seen.values())
    assert all(norm.weight.grad.abs().sum() > 0 for norm in norms.values())


def test_runs_are_kept_and_not_repeated(tiny_teacher, tmp_path, monkeypatch):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film"]
    folder = tmp_path / "cola-teacher" / "training" / "teacher"
    tiny_teacher.config.num_labels = 2
    type(tiny_teacher)(tiny_teacher.config).save_pretrained(folder)
    BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}, model_max_length=128).save_pretrained(folder)
    (tmp_path / "glue" / "cola").mkdir(parents=True)
    rows = {"sentence": ["good film", "bad film"] * 40, "label": [1, 0] * 40}
    for split in ("train", "validation"):
        pd.DataFrame(rows).to_parquet(tmp_path / "glue" / "cola" / f"{split}.parquet")
    args = ablation.AblationArguments(
        str(tmp_path),
        str(tmp_path / "glue"),
        ["cola"],
        [1],
        [BASE, "relations", "annealed", "ternary-first", "sub-norms"],
        steps=4,
    )
    args = dataclasses.replace(args, keep_layers=2, bf16=False, results_file=str(tmp_path / "results.jsonl"))
    with registered():
        ablation.run(args)
    found = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["candidate"] for line in found] == args.candidates
    assert all(math.isfinite(line["divergence"]) and line["rows"] == 8 for line in found)
    monkeypatch.setattr(ablation, "train", lambda *a: pytest.fail("trained again"))
    ablation.run(args)


def test_divergence_of_predictions():
    logits = np.array([[1.0, 0.0], [0.0, 2.0]])
    assert ablation.divergence(logits, logits) == 0
    p = 1 / (1 + math.exp(-1))
    expected = (p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)) / 1
    assert ablation.divergence(np.zeros((1, 2)), logits[:1]) == pytest.approx(expected)
    assert ablation.divergence(np.array([[1.0], [2.0]]), np.array([[1.0], [4.0]])) == 2.0
