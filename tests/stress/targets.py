"""The kinds of files to fuzz: how undamaged ones are made, how one is damaged, and what loading may do.

`load` returns a word for an accepted input, raises the loader's errors, and raises `Broken` if a requirement is
broken.
"""

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    set_seed,
)

from hf_xtc import XTCRecipe, compress, pack_model
from hf_xtc.distillation.cache import TeacherCache
from hf_xtc.distillation.cache.format import Manifest, check_key, plan_shards, shard_file
from hf_xtc.distillation.cache.shards import ShardWriter
from hf_xtc.errors import XTCError
from hf_xtc.modeling.adapters import adapter_base, head_labels, with_adapter
from hf_xtc.modeling.base import XTCModel
from hf_xtc.reader import PackedEncoder, ReadError
from hf_xtc.runs.arguments import RecipeArguments
from mutations import HOSTILE, PATTERNS, TEXTS, damage_folder, damage_json, damage_safetensors

IDS = torch.tensor([[1, 5, 9, 2], [3, 4, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
TRAP = b"open('exploded', 'w')\nclass Trap: pass\n"
DEEPSPEED = Path(__file__).parent / "deepspeed.json"


class Broken(Exception):
    """A requirement that was not met."""


def small_teacher(cls: Any = BertForSequenceClassification, layers: int = 2) -> Any:
    """A random BERT; the same every time."""
    set_seed(0)
    sizes = {"hidden_size": 12, "intermediate_size": 20, "max_position_embeddings": 16, "vocab_size": 37}
    return cls(BertConfig(num_hidden_layers=layers, num_attention_heads=2, num_labels=3, **sizes)).eval()


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def check_numbers(values: Any, shape: tuple[int, ...], what: str) -> None:
    """Raises `Broken` unless an output has this shape and is finite."""
    if tuple(values.shape) != shape:
        raise Broken(f"{what} of shape {tuple(values.shape)}, not {shape}")
    if not np.isfinite(np.asarray(values, dtype=np.float64)).all():
        raise Broken(f"{what} are not finite")


class Target:
    """One kind of input: variants of good files, the damage done to one of them, and the loading."""

    extra: tuple[Any, ...] = ()
    standard: tuple[type[BaseException], ...] = ()  # what libraries raise of a bad file
    foreign: tuple[type[BaseException], ...] = ()  # what breaks in a library before any code of hf_xtc is reached
    readers = 1  # how often each input is read

    def __init__(self, scratch: Path):
        self.good: list[dict[str, bytes]] = []
        self.scratch = scratch

    def write(self, files: dict[str, bytes], folder: Path) -> None:
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)

    def damage(self, rng: random.Random, folder: Path) -> str:
        """Writes the files of a variant into a folder, damages one of them, and returns how."""
        files = dict(rng.choice(self.good))
        name = rng.choice(sorted(name for name in files if name.endswith((".json", ".safetensors"))))
        if rng.random() < 0.04:
            self.write(files, folder)
            return damage_folder(rng, folder, name)
        if name.endswith(".json"):
            done, files[name] = damage_json(rng, files[name], self.extra)
        else:
            done, files[name] = damage_safetensors(rng, files[name])
        self.write(files, folder)
        return done

    def load(self, folder: Path) -> str:
        raise NotImplementedError


class Packed(Target):
    """Packed checkpoints, in one file and in shards, by transformers on two backends and by the numpy reader."""

    standard = (ValueError, StrictDataclassError)  # of transformers, reading config.json
    foreign = (TypeError, AttributeError, KeyError, IndexError, RecursionError, MemoryError)
    readers = 2
    extra = ("XTCBertForMaskedLM", "bert", "trap.Trap", "latent", "relu", "float32", "int4", "bfloat16", *HOSTILE)

    def __init__(self, scratch: Path):
        super().__init__(scratch)
        ternary = XTCRecipe("ternary", "per_group", 2, embedding_weights="ternary", activation_calibration="static")
        paper = XTCRecipe.paper(2)
        makes = ((None, XTCRecipe()), (None, ternary), ("20KB", paper), ("6KB", ternary), ("lm", XTCRecipe()))
        for i, (size, recipe) in enumerate(makes):
            student = compress(
                small_teacher(BertForMaskedLM if size == "lm" else BertForSequenceClassification, layers=1), recipe
            )
            student.train()(IDS, MASK)
            shards = {} if size in (None, "lm") else {"max_shard_size": size}
            pack_model(student.eval()).save_pretrained(scratch / f"good{i}", **shards)
            self.good.append({**files_of(scratch / f"good{i}"), "trap.py": TRAP, "modeling_xtc.py": TRAP})

    def write(self, files: dict[str, bytes], folder: Path) -> None:
        super().write(files, folder)
        self.masked = any(b'"cls.predictions' in data for name, data in files.items() if name.endswith("tensors"))

    def load(self, folder: Path) -> str:
        read, auto = self._read(folder), AutoModelForSequenceClassification
        if self.masked:  # with another class the head would be new, as transformers says
            auto = AutoModelForMaskedLM
        model = auto.from_pretrained(folder)
        if not isinstance(model, XTCModel):
            return "transformers' own model, by model_type"
        if type(model).__name__ in (model.config.architectures or ()):  # else the head is new, as transformers says
            self._check_values(folder, model)
        shape = (2, 4, model.config.vocab_size) if auto is AutoModelForMaskedLM else (2, model.config.num_labels)
        ids = IDS.clamp(max=model.config.vocab_size - 1)
        for backend in ("auto", "reference") if model.packed else (None,):
            if backend is not None:
                model.set_backend(backend)
            with torch.no_grad():
                check_numbers(model(ids, attention_mask=MASK).logits, shape, f"logits ({backend})")
        return f"loaded, the reader {read}"

    def _read(self, folder: Path) -> str:
        try:
            with np.errstate(all="ignore"):
                reader = PackedEncoder(folder)
                if reader.config.get("architectures") != ["XTCBertForSequenceClassification"]:
                    hidden = reader.hidden_states(IDS.numpy(), MASK.numpy())
                    check_numbers(hidden, (2, 4, reader.config["hidden_size"]), "the reader's hidden states")
                else:
                    logits = reader.logits(IDS.numpy(), MASK.numpy())
                    check_numbers(logits, (2, len(reader.tensor("classifier.weight"))), "the reader's logits")
        except ReadError:
            return "refuses"
        return "agrees"

    def _check_values(self, folder: Path, model: Any) -> None:
        """Raises `Broken` if a tensor of the model differs from the file."""
        found = {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}
        for name, tensor in model.state_dict().items():
            name = name if name in found else model.all_tied_weights_keys.get(name, name)
            if name not in found or not torch.equal(found[name].to(tensor.dtype), tensor):
                raise Broken(f"{name} is not what the file holds")


class Recipes(Target):
    """Recipes: from a JSON text and from a file; what is accepted compresses and packs a model."""

    extra = ("ternary", "int4", "int8", "per_group", "per_tensor", "static", "float32", "bfloat16", 4, 8)

    def __init__(self, scratch: Path):
        super().__init__(scratch)
        some = (XTCRecipe(), XTCRecipe.paper(2, layers=(0, 1)), XTCRecipe("int4", "per_group", 2, keep_layers=1))
        self.good = [{"recipe.json": recipe.to_json().encode()} for recipe in some]

    def load(self, folder: Path) -> str:
        arguments = RecipeArguments(recipe_file=str(folder / "recipe.json"))
        recipe, schedule = arguments.recipe(), arguments.quantization_starts()
        if not all(isinstance(value, int | float) for value in schedule.values()):
            raise Broken(f"the schedule is {schedule}")
        if XTCRecipe.from_json(recipe.to_json()) != recipe:
            raise Broken("the recipe does not survive writing")
        compressed(recipe)
        return "accepted"


class Texts(Recipes):
    """Recipes as text, as `XTCRecipe.from_json` takes them."""

    def load(self, folder: Path) -> str:
        file = folder / "recipe.json"
        if not file.is_file() or file.stat().st_size > 2**26:  # no text: a pipe, or a hole of a terabyte
            return "no text"
        compressed(XTCRecipe.from_json(file.read_text(encoding="utf-8")))
        return "accepted"

    standard = (UnicodeDecodeError,)  # of read_text above


class DeepSpeed(Recipes):
    """DeepSpeed configurations, patterns of modules among them."""

    extra = (*PATTERNS, "asymmetric", "static", 2, 4, 8)

    def __init__(self, scratch: Path):
        super().__init__(scratch)
        self.good = [{"recipe.json": DEEPSPEED.read_bytes()}]


@cache
def compressed(recipe: XTCRecipe) -> None:
    """Compresses and packs a model by a recipe; raises `Broken` if its logits are not finite."""
    model = pack_model(compress(small_teacher(), recipe))
    with torch.no_grad():
        check_numbers(model(IDS, attention_mask=MASK).logits, (2, 3), "logits")


class Caches(Target):
    """Teacher caches in float16 and int8, of two shards."""

    extra = ("tokens", "int8", "float16", *HOSTILE)
    lengths = (4, 2, 1, 4)

    def __init__(self, scratch: Path):
        super().__init__(scratch)
        outputs = {"logits": (3,), "hidden_states": (2, "tokens", 4), "attentions": (1, 2, "tokens", "tokens")}
        layers, depths = {"hidden_states": (0, 2), "attentions": (1,)}, {"hidden_states": 3, "attentions": 2}
        self.key = {"teacher": "a" * 64, "tokenizer": "none", "data": "b" * 64, "recipe": {"dtype": "float16"}}
        for dtype in ("float16", "int8"):
            shards = [plan_shards(outputs, dtype, self.lengths[i : i + 2])[0] for i in (0, 2)]
            manifest = Manifest(self.key, dtype, outputs, layers, depths, tuple(shards), {"num_hidden_layers": 2})
            folder = scratch / dtype
            manifest.write(folder)
            for i in range(2):
                writer = ShardWriter(manifest, i, self.lengths[2 * i : 2 * i + 2])
                sizes = [tuple(4 if size == "tokens" else size for size in shape) for shape in outputs.values()]
                made = {name: torch.randn(2, *size) for name, size in zip(outputs, sizes, strict=True)}
                writer.put([0, 1], made, self._mask()[2 * i : 2 * i + 2])
                writer.save(folder)
                assert shard_file(folder, i).exists()
            self.good.append(files_of(folder))

    def _mask(self) -> torch.Tensor:
        return (torch.arange(4) < torch.tensor(self.lengths)[:, None]).long()

    def load(self, folder: Path) -> str:
        opened = TeacherCache(folder)
        check_key(folder, opened.manifest.key, self.key)
        targets = opened.read(range(len(self.lengths)), self._mask())
        check_numbers(targets["logits"], (4, 3), "logits")
        for name, shape in (("hidden_states", (4, 4, 4)), ("attentions", (4, 2, 4, 4))):
            for output in targets.get(name, ()):
                if output is not None:
                    check_numbers(output, shape, name)
        return "loaded"


class Adapters(Target):
    """LoRA folders: merged into a float teacher by hf_xtc, and loaded on a packed base by PEFT."""

    standard = (ValueError,)  # PEFT's, of a variant that packed layers do not serve
    extra = ("DORA", "pissa", "PREFIX_TUNING", "classifier", "all-linear", "query", *HOSTILE)

    def __init__(self, scratch: Path):
        super().__init__(scratch)
        set_seed(1)
        config = LoraConfig(target_modules=["query", "value"], r=2, task_type="SEQ_CLS")
        get_peft_model(small_teacher(), config).save_pretrained(scratch / "adapter")
        files = files_of(scratch / "adapter")
        values = {**json.loads(files["adapter_config.json"]), "base_model_name_or_path": "user/base"}
        self.good = [{**files, "adapter_config.json": json.dumps(values).encode(), "trap.py": TRAP}]

    def load(self, folder: Path) -> str:
        if adapter_base(str(folder)) is None:
            return "no adapter"
        labels = head_labels(str(folder))
        model = with_adapter(small_teacher(), str(folder))
        with torch.no_grad():
            check_numbers(model(IDS, attention_mask=MASK).logits, (2, 3), "logits")
        packed = PeftModel.from_pretrained(pack_model(compress(small_teacher())), folder)
        with torch.no_grad():  # PEFT alone reads the adapter here, whatever its values
            logits = packed(IDS, attention_mask=MASK).logits.nan_to_num()
        check_numbers(logits, (2, 3), "logits beside a packed base")
        return f"loaded, {labels} labels"


TARGETS: dict[str, type[Target]] = {
    **{"packed": Packed, "recipe": Recipes, "recipe text": Texts, "deepspeed": DeepSpeed},
    **{"teacher cache": Caches, "adapter": Adapters},
}
EXPECTED = (XTCError, ReadError)
assert TEXTS
