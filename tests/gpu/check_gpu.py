"""Trains, packs, saves, loads and resumes on a GPU: `python tests/gpu/check_gpu.py`. Compares with what the CPU gives.

Not a test of pytest's. Uses one GPU, for a minute or two. Exit status 0: all checks hold; 1: one does not; 2: no
GPU was found. `TRITON_INTERPRET=1 XTC_NATIVE=off python tests/gpu/check_gpu.py --device cpu` runs every line without
one, which checks this script and not the GPU.
"""

import argparse
import copy
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PrinterCallback

sys.path.insert(0, str(Path(__file__).parent.parent))

from trainers import DATA, collate, logged, make_args, make_teacher

from hf_xtc import XTCRecipe, XTCTrainer, compress, pack_model, unpack_model
from hf_xtc.backends import BACKENDS
from hf_xtc.modeling.layers import PackedLinear
from hf_xtc.native import gpu
from hf_xtc.native.encoder import Codes
from hf_xtc.quantization.activations import ActivationQuantizer
from hf_xtc.quantization.packing import pack_weight
from hf_xtc.quantization.specs import ActivationSpec, QuantSpec

BATCH = {key: value for key, value in collate(DATA[:16]).items() if key != "labels"}
RECIPES = {
    "binary": XTCRecipe(keep_layers=2),
    "ternary, static": XTCRecipe("ternary", embedding_weights="ternary", activation_calibration="static"),
    "int8, per group": XTCRecipe("int8", "per_group", 2, "int4", activation_symmetric=False),
}


def logits(model: Any, device: str) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(**{key: value.to(device) for key, value in BATCH.items()}).logits
    return found.float().cpu()


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float, what: str) -> None:
    off = float((found - expected).abs().max())
    if not off <= tolerance:
        raise AssertionError(f"{what}: off by {off:.3g}, more than {tolerance:g}")


def on(model: Any, device: str, what: str) -> None:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if elsewhere := [f"{name} ({t.device})" for name, t in tensors.items() if t.device.type != device]:
        raise AssertionError(f"{what}: not on {device}: {', '.join(elsewhere[:3])}")


def trainer(device: str, folder: str, teacher: Any, student: Any, **changes: Any) -> XTCTrainer:
    args = make_args(folder, use_cpu=device == "cpu", **changes)
    made = XTCTrainer(student, args, teacher_model=teacher, train_dataset=DATA, data_collator=collate)
    made.remove_callback(PrinterCallback)
    return made


def training(device: str, folder: str, precision: str) -> None:
    """The first loss is that of the CPU in float32, and all are finite; in fp16 the scaler may skip steps."""
    losses = []
    for where, options in (("cpu", {}), (device, {precision: True} if precision != "fp32" else {})):
        teacher = make_teacher()
        trained = trainer(where, folder, teacher, compress(teacher, RECIPES["binary"]), **options)
        trained.train()
        on(trained.model, where, "the student")
        on(trained.teacher, where, "the teacher")
        losses.append([entry["loss"] for entry in logged(trained, "loss")])
    expected, found = (torch.tensor(values) for values in losses)
    if len(found) != 4 or not torch.isfinite(found).all():
        raise AssertionError(f"the losses are {found.tolist()}")
    close(found[0] / expected[0], torch.tensor(1.0), 0.02, "the first loss, as a ratio")


def conversion(device: str, folder: str, name: str) -> None:
    """Compressing, packing and unpacking stay on the device, and give what they give on the CPU; so does the file."""
    teacher = make_teacher()
    here = pack_model(compress(teacher, RECIPES[name]))
    student = compress(copy.deepcopy(teacher).to(device), RECIPES[name])
    packed = pack_model(student)
    for what, model in (("student", student), ("packed", packed), ("unpacked", unpack_model(packed))):
        on(model, device, what)
    codes = {key: tensor.cpu() for key, tensor in packed.state_dict().items() if key.endswith("weight_packed")}
    differing = sum(int((codes[key] != here.state_dict()[key]).sum()) for key in codes)
    if differing > sum(tensor.numel() for tensor in codes.values()) / 100:  # a scale may round the other way
        raise AssertionError(f"{differing} bytes of codes differ from those of the CPU")
    packed.save_pretrained(folder)
    expected = logits(packed, device)
    for options in ({"device_map": device}, {"device_map": {"": device}}, {"device_map": "auto"}):
        loaded = AutoModelForSequenceClassification.from_pretrained(folder, **options)
        loaded = loaded.to(device)  # "auto" may choose another
        on(loaded, device, f"loaded with {options}")
        close(logits(loaded, device), expected, 1e-3, f"logits loaded with {options}")


def products(device: str, folder: str, name: str) -> None:
    """The integer products of all linears agree with the reference, in three dtypes."""
    packed = pack_model(compress(make_teacher(), RECIPES[name])).to(device).eval()
    generator = torch.Generator().manual_seed(0)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.02), (torch.float16, 0.005)):
        model = copy.deepcopy(packed).to(dtype)
        for path, layer in model.named_modules():
            if isinstance(layer, PackedLinear):
                rows = torch.randn(5, layer.in_features, generator=generator).to(device, dtype)
                found = {}
                for layer.backend in ("reference", "int8", "packed", "auto"):
                    with torch.no_grad():
                        found[layer.backend] = layer(rows).float()
                for backend, product in found.items():
                    scale = float(found["reference"].abs().max())
                    close(product, found["reference"], tolerance * scale, f"{path}, {backend} in {dtype}")
    expected = logits(copy.deepcopy(packed).to("cpu"), "cpu")
    close(logits(packed, device), expected, 0.02 * float(expected.abs().max()), "logits of both devices")


def kernel(device: str, folder: str, name: str) -> None:
    """The Triton kernel's products are bitwise those of `torch._int_mm`, by every tile, at widths of BERT-base too."""
    if not gpu.runs_on(torch.device(device)):
        raise AssertionError("the Triton kernel does not run here; on the CPU it needs TRITON_INTERPRET=1")
    quantizer = ActivationQuantizer(ActivationSpec())
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 21, 5), (17, 300, 70), (16, 768, 768), (130, 768, 3072), (130, 3072, 768), (2048, 768, 768)]
    for tokens, columns, rows in shapes if device == "cuda" else shapes[:3]:
        weight = pack_weight(torch.randn(rows, columns, generator=generator), QuantSpec(name))
        weight = weight._replace(packed=weight.packed.to(device), scale=weight.scale.to(device))
        bias = torch.randn(rows, generator=generator).to(device)
        codes = Codes(weight.packed, weight.scale, bias, columns, {"binary": 2, "ternary": 3}[name])
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            x = torch.randn(tokens, columns, generator=generator).to(device, dtype)
            expected = BACKENDS["int8"]().linear(x, weight, bias.to(dtype), quantizer)
            for blocks in {gpu.default_blocks(count) for count in (1, 17, 65, 1025)}:
                found = gpu.multiply(x, codes._replace(bias=bias.to(dtype)), blocks)
                if device == "cpu" and dtype == torch.bfloat16:  # the interpreter cuts a float32 off
                    close(found / expected, torch.ones_like(found), 2**-7, f"{tokens} tokens, {columns} to {rows}")
                elif not torch.equal(found, expected):
                    raise AssertionError(f"{tokens} tokens, {columns} to {rows}, {dtype}, {blocks}: other bits")


def resuming(device: str, folder: str) -> None:
    """A training that goes on from a checkpoint logs the losses of one that was not interrupted."""
    teacher = make_teacher(dropout=0.1)
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = trainer(device, f"{folder}/whole", teacher, compress(teacher, RECIPES["binary"]), **options)
    whole.train()
    resumed = trainer(device, f"{folder}/resumed", teacher, compress(teacher, RECIPES["binary"]), **options)
    resumed.train(resume_from_checkpoint=f"{folder}/whole/checkpoint-2")
    losses = [torch.tensor([entry["loss"] for entry in logged(made, "loss")]) for made in (whole, resumed)]
    close(losses[1] / losses[0], torch.ones(4), 1e-3, "losses, as a ratio")
    whole.save_model(f"{folder}/packed")
    loaded = AutoModelForSequenceClassification.from_pretrained(f"{folder}/packed", device_map=device)
    close(logits(loaded, device), logits(pack_model(whole.model), device), 1e-3, "the saved model")


def checks(device: str) -> Iterator[tuple[str, Callable[..., None], tuple[Any, ...]]]:
    for precision in ("fp32", "bf16", "fp16"):
        if precision != "fp16" or device != "cpu":  # accelerate has no fp16 training on the CPU
            yield f"training in {precision}", training, (precision,)
    for name in RECIPES:
        yield f"conversion and loading, {name}", conversion, (name,)
        yield f"products, {name}", products, (name,)
    for name in ("binary", "ternary"):
        yield f"the Triton kernel, {name}", kernel, (name,)
    yield "resuming", resuming, ()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    device = parser.parse_args().device
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # Trainer would split batches over several
    if device == "cuda" and not torch.cuda.is_available():
        print("No GPU that PyTorch can use was found; nothing was checked.")
        return 2
    failed = 0
    for name, check, arguments in checks(device):
        with tempfile.TemporaryDirectory() as folder:
            try:
                check(device, folder, *arguments)
                print(f"ok      {name}")
            except Exception:  # the other checks are run all the same
                failed += 1
                print(f"FAILED  {name}\n{traceback.format_exc()}")
    print(f"{failed} of the checks failed." if failed else "All checks hold.")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
