"""Computes the cost of a distillation step: floating point operations, and bytes on each GPU.

Nothing is timed. Student and teacher of full size are built of tensors without data (`FakeTensorMode`) and trained for
one step under bfloat16 autocast, while PyTorch counts the operations of its matrix products and the bytes that
autograd keeps for the backward pass. To validate the counters, they are also run on a small model with and without
data ("check" in the results), and the operations are compared with a formula.

    python benchmarks/scaling.py --output_file benchmarks/results/scaling.json
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForSequenceClassification, HfArgumentParser

from hf_xtc import TERMS, XTCRecipe, compress
from hf_xtc.files.writing import write_json
from hf_xtc.modeling.attention import SCORES
from machine import facts

BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
SMALL = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 384}
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
CASES = {
    "BERT-base, 12 layers": (BASE, 12),
    "BERT-base, 6 layers": (BASE, 6),
    "BERT-large, 24 layers": (LARGE, 24),
    "BERT-large, 12 layers": (LARGE, 12),
}
RESULTS = Path(__file__).parent / "results"
CARDS = (16, 24, 80)
USABLE = 0.9  # share of a GPU's memory; the rest is for CUDA's context, workspaces and fragmentation
GPUS = 8


@dataclass
class ScalingArguments:
    """Shape of a row."""

    tokens: int = field(default=128, metadata={"help": "Tokens of a row, padding included."})
    output_file: str | None = field(default=None, metadata={"help": "JSON file for the results."})


def forward_flops(shape: Mapping[str, int], layers: int, tokens: int, labels: int = 2) -> int:
    """Operations of the matrix products of a row's forward pass, a multiplication and an addition counted as two."""
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    linears = tokens * (8 * hidden**2 + 4 * hidden * inner)
    attention = 4 * tokens**2 * hidden
    return layers * (linears + attention) + 2 * hidden**2 + 2 * hidden * labels


def models(shape: Mapping[str, int], layers: int) -> tuple[Any, Any]:
    """A student in training mode, and its teacher."""
    config = BertConfig(**shape)
    teacher = BertForSequenceClassification(config).eval().requires_grad_(False)
    student = compress(teacher, XTCRecipe(keep_layers=layers)).train()
    for model in (student, teacher):
        model.set_attn_implementation(SCORES)
    return student, teacher


def size(tensor: Tensor) -> int:
    """Bytes of a tensor's storage."""
    return tensor.untyped_storage().nbytes()


def step(shape: Mapping[str, int], layers: int, rows: int, tokens: int, bf16: bool = True) -> dict[str, int]:
    """Operations of a distillation step, and the bytes in memory when its backward pass starts."""
    student, teacher = models(shape, layers)
    own = {p.untyped_storage()._cdata for model in (student, teacher) for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in own:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    ids = torch.ones(rows, tokens, dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[:, -1] = 0  # without padding, transformers drops the mask
    batch = {"input_ids": ids, "attention_mask": mask}
    wanted = {"output_hidden_states": True, "output_attentions": True}
    with FlopCounterMode(display=False) as counter:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16), saved_tensors_hooks(keep, lambda tensor: tensor):
            student_output = student(**batch, **wanted)
            with torch.no_grad():
                teacher_output = teacher(**batch, **wanted)
            terms = [
                TERMS[name]()(student_output, teacher_output, batch, student.config.layer_map)
                for name in ("logits", "hidden_states", "attention_scores")
            ]
        torch.stack(terms).sum().backward()
    targets = {t.untyped_storage()._cdata: t for t in (*teacher_output.hidden_states, *teacher_output.attentions)}
    return {
        "flops": counter.get_total_flops(),
        "kept_bytes": sum(map(size, kept.values())),
        "target_bytes": sum(size(tensor) for key, tensor in targets.items() if key not in kept),
        "student_weights": sum(p.numel() for p in student.parameters()),
        "teacher_weights": sum(p.numel() for p in teacher.parameters()),
    }


def faked(shape: Mapping[str, int], layers: int, rows: int, tokens: int, bf16: bool = True) -> dict[str, int]:
    """`step` with fake tensors, which hold no data."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        return step(shape, layers, rows, tokens, bf16)


def cost(name: str, tokens: int) -> dict[str, Any]:
    """Operations and bytes of one of `CASES`; bytes are split into those per row and those per batch."""
    shape, layers = CASES[name]
    few, many = (faked(shape, layers, rows, tokens) for rows in (2, 4))
    teacher = forward_flops(shape, shape["num_hidden_layers"], tokens)
    student = forward_flops(shape, layers, tokens)
    assert many["flops"] == 4 * (3 * student + teacher), "the formula and the counter disagree"
    per_row = (many["kept_bytes"] + many["target_bytes"] - few["kept_bytes"] - few["target_bytes"]) // 2
    per_batch = few["kept_bytes"] + few["target_bytes"] - 2 * per_row
    # float32: latent weights, gradients, and AdamW's two moments; the teacher in bfloat16.
    latent, states, teacher_bytes = (
        4 * many["student_weights"],
        12 * many["student_weights"],
        2 * many["teacher_weights"],
    )
    fixed = {
        "alone": latent + states + teacher_bytes,
        # ZeRO-2 shards gradients and moments, ZeRO-3 and fully_shard the weights of both models too.
        f"zero2_of_{GPUS}": latent + states // GPUS + teacher_bytes,
        f"zero3_of_{GPUS}": (latent + states + teacher_bytes) // GPUS,
    }
    return {
        "student_parameters": many["student_weights"],
        "teacher_parameters": many["teacher_weights"],
        "flops_per_row": 3 * student + teacher,
        "flops_per_row_cached": 3 * student,
        "bytes_per_row": per_row,
        "bytes_per_batch": per_batch,
        "fixed_bytes": fixed,
        "rows": {str(card): fitting(card, fixed["alone"] + per_batch, per_row) for card in CARDS},
    }


def fitting(card: int, fixed: int, per_row: int) -> int:
    """Rows of the largest batch, a multiple of 8, that fits into a GPU with `card` GB."""
    return max(int((USABLE * card * 1e9 - fixed) / per_row) // 8 * 8, 0)


def check(tokens: int) -> dict[str, Any]:
    """Counts for a small model with and without data, and the teachers' parameters counted on the meta device."""
    with_data, without = step(SMALL, 2, 4, tokens), faked(SMALL, 2, 4, tokens)
    meta = {}
    for name, shape in (("BERT-base", BASE), ("BERT-large", LARGE)):
        with torch.device("meta"):
            meta[name] = BertForSequenceClassification(BertConfig(**shape)).num_parameters()
    return {"small_with_data": with_data, "small_without": without, "parameters_on_meta": meta}


def measured() -> list[dict[str, Any]]:
    """Operations per second of the steps that `benchmarks/training.py` timed on CPUs."""
    found = []
    for name in ("training_amd", "training_bf16_amd", "training", "training_bf16"):
        results = json.loads((RESULTS / f"{name}.json").read_text())
        shape = results["arguments"]
        rows, tokens, layers = shape["batch_size"], shape["tokens"], shape["layers"]
        flops = rows * 4 * forward_flops(MINILM, layers, tokens)  # teacher and student of the same depth
        counted = faked(MINILM, layers, rows, tokens, shape["bf16"])
        known = 16 * counted["student_weights"] + 4 * counted["teacher_weights"]
        found.append(
            {
                "file": f"{name}.json",
                "cpu": results["cpu"],
                "threads": results["threads"],
                "seconds": results["xtc_seconds"],
                "flops": flops,
                "flops_per_second": flops / results["xtc_seconds"],
                "peak_bytes": results["xtc_peak_bytes"],
                "computed_bytes": known + counted["kept_bytes"] + counted["target_bytes"],
            }
        )
    return found


def tables(results: Mapping[str, Any]) -> str:
    """The tables of docs/scaling.md."""
    cards = "".join(f" {card} GB |" for card in CARDS)
    lines = [
        "| teacher, student | TFLOPs a row | with a teacher cache | weights and states | ZeRO-2 of 8 | ZeRO-3 of 8 "
        f"| each row |{cards}",
        "|---|" + "---|" * (6 + len(CARDS)),
    ]
    for name, case in results["cases"].items():
        fixed = " | ".join(f"{value / 1e9:.2f} GB" for value in case["fixed_bytes"].values())
        flops = f"{case['flops_per_row'] / 1e12:.3f} | {case['flops_per_row_cached'] / 1e12:.3f}"
        rows = " | ".join(str(rows) for rows in case["rows"].values())
        lines.append(f"| {name} | {flops} | {fixed} | {case['bytes_per_row'] / 1e6:.0f} MB | {rows} |")
    lines += ["", "| measured | seconds | GFLOPs | GFLOP/s | peak memory | of it computed |", "|---|" + "---|" * 5]
    for entry in results["measured"]:
        what = f"{entry['cpu']}, {entry['threads']} threads, {'bf16' if 'bf16' in entry['file'] else 'fp32'}"
        flops = f"{entry['flops'] / 1e9:.0f} | {entry['flops_per_second'] / 1e9:.0f}"
        memory = f"{entry['peak_bytes'] / 1e9:.2f} GB | {entry['computed_bytes'] / 1e9:.2f} GB"
        lines.append(f"| {what} | {entry['seconds']:.3f} | {flops} | {memory} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the tables, and writes the results if asked."""
    args = HfArgumentParser(ScalingArguments).parse_args_into_dataclasses()[0]
    results: dict[str, Any] = {
        "cases": {name: cost(name, args.tokens) for name in CASES},
        "measured": measured(),
        "check": check(args.tokens),
        "arguments": {"tokens": args.tokens},
        **facts(torch.get_num_threads(), "hf_xtc", "torch", "transformers"),
    }
    print(tables(results))
    if args.output_file:
        write_json(args.output_file, results)


if __name__ == "__main__":
    main()
