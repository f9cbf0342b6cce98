"""The description of a run: all that determines its result. It is kept in the run's folder.

A command with the same description continues the run; one with another description raises an error. Models and word
tables are described by the values that were loaded, not by their files: so every format, sharding, revision and
adapter counts, and a folder that was moved, or saved again in another format, is still the same.
"""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from transformers import TrainingArguments

from hf_xtc.data.masked_lm import MaskedLM
from hf_xtc.data.word_table import WordTable
from hf_xtc.distillation.cache.making import tokenizer_fingerprint
from hf_xtc.errors import XTCError
from hf_xtc.files.safe_json import read_json
from hf_xtc.files.sentence_files import WRITTEN
from hf_xtc.files.writing import SCRATCH, WEIGHT_FILES, clear_unfinished, require_empty, write_json, writing
from hf_xtc.quantization.quantizers import fake_quantize
from hf_xtc.quantization.specs import QuantSpec
from hf_xtc.recipe.xtc_recipe import XTCRecipe
from hf_xtc.training.arguments import XTCTrainingArguments

RUN_FILE = "run.json"

# Packages whose versions may change weights, token ids or draws of random numbers.
_PACKAGES = ("hf_xtc", "torch", "transformers", "tokenizers", "accelerate", "numpy")

# Prefixes of training arguments that change what a run logs or keeps, or how fast it is, not its result.
_WITHOUT_EFFECT: tuple[str, ...] = (
    *("logging_", "log_", "hub_", "save_", "trackio_", "output_dir", "report_to", "run_name", "project"),
    *("disable_tqdm", "push_to_hub", "resume_from_checkpoint", "skip_memory_metrics", "enable_jit_checkpoint"),
    *("dataloader_num_workers", "dataloader_p", "dataloader_multiprocessing_context", "torch_empty_cache_steps"),
    *("do_train", "do_eval", "do_predict", "debug", "local_rank", "ddp_timeout", "eval_accumulation_steps"),
    "include_num_input_tokens_seen",
)

# Fields of a configuration that say where and how a model was stored.
_STORAGE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")


def deciding(arguments: XTCTrainingArguments, *, distils: bool = True, best: bool = False) -> dict[str, Any]:
    """Returns the training arguments that determine the result of a run, as a JSON object.

    Args:
        distils (`bool`, *optional*): If false, arguments of distillation and quantization are left out; fine-tuning
            on labels does not use them.
        best (`bool`, *optional*): Whether a stage keeps its best checkpoint, whatever `arguments` say; which steps
            are saved then determines which can be kept.
    """
    given = arguments.to_dict()
    values = {name: value for name, value in given.items() if not name.startswith(_WITHOUT_EFFECT)}
    if arguments.load_best_model_at_end or best:
        values |= {name: given[name] for name in ("save_strategy", "save_steps")}
    if isinstance(arguments.deepspeed, str):
        values["deepspeed"] = read_json(arguments.deepspeed)
    if distils:
        values["teacher_cache"] = bool(values["teacher_cache"])  # its path has no effect
    else:
        stock = {field.name for field in dataclasses.fields(TrainingArguments)}
        values = {name: value for name, value in values.items() if name in stock}
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain


def digest(value: Any) -> str:
    """Returns the sha256 (hex) of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Returns the sha256 (hex) of named tensors: names, dtypes, shapes and values."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(save({name: tensors[name].detach().cpu().contiguous()}))
    return total.hexdigest()


def model_digest(config: Any, model: Any, new: Collection[str] = ()) -> dict[str, str]:
    """Returns the sha256 (hex) of a model's configuration and of its weights.

    Args:
        config (`PreTrainedConfig`): As it was loaded; the model's own may have the labels of the run.
        model (`PreTrainedModel`): As it was loaded, adapters merged.
        new (`Collection[str]`, *optional*): Names of tensors that were not loaded: drawn at random, they are left out.
    """
    fields = {name: value for name, value in config.to_dict().items() if name not in _STORAGE}
    weights = {name: tensor for name, tensor in model.state_dict().items() if name not in new}
    return {"config": digest(fields), "weights": tensors_digest(weights)}


def tokenizer_digest(tokenizer: Any) -> str:
    """Returns the sha256 (hex) of a tokenizer: its pieces and rules, special tokens, and the sides that it pads and
    truncates."""
    names = ("padding_side", "truncation_side", "model_max_length", "special_tokens_map", "model_input_names")
    return digest([tokenizer_fingerprint(tokenizer), *(getattr(tokenizer, name, None) for name in names)])


def candidates_digest(source: WordTable | MaskedLM) -> dict[str, Any]:
    """Returns the sha256 (hex) of what augmentation takes its words from."""
    table = source.table if isinstance(source, MaskedLM) else source
    values = {} if table is None else {"words": digest([table.words, tensors_digest(_vectors(table))])}
    if isinstance(source, MaskedLM):
        values |= model_digest(source.model.config, source.model)
        values |= {"tokenizer": tokenizer_digest(source.tokenizer)}
    return values


def _vectors(table: WordTable) -> dict[str, Tensor]:
    return {"vectors": torch.from_numpy(table.vectors)}


def quantizer_digests(recipes: Iterable[XTCRecipe]) -> dict[str, str]:
    """Returns, for each quantizer of the recipes, the sha256 (hex) of what it makes of one fixed weight.

    Its values are multiples of 1/8, whose sums are exact: so every processor gives the same.
    """
    weight = (torch.arange(-64, 64).view(4, 32) * 7 % 31 - 15) / 8
    kinds = {kind for r in recipes for kind in (r.weights, r.embedding_weights, r.position_weights) if kind}
    return {kind: tensors_digest({"weight": fake_quantize(weight, QuantSpec(kind))}) for kind in sorted(kinds)}


def versions() -> dict[str, str]:
    """Returns the versions of the packages that may change the result of a run."""
    return {package: version(package) for package in _PACKAGES}


def remove_run(out: Path, training: Path) -> None:
    """Removes another run: first its results, so that they are not mistaken for the new run's, then its training.

    A folder without a run is left as it is; a model in it stays loadable until the new run's replaces it.
    """
    if read_run(training) is None:
        return
    names = ("config.json", *WEIGHT_FILES, *WRITTEN, "metrics.json", "README.md")
    with writing(out, kept=""):
        for file in [file for name in names for file in out.glob(name)]:
            file.unlink()
        training.rename(out / f"{SCRATCH}{training.name}")  # atomic: never half of a folder
    clear_unfinished(out)


def open_run(out: Path, training: Path, description: dict[str, Any], *, overwrite: bool) -> None:
    """Makes `training` the folder of the described run; does nothing if it is already.

    Args:
        out (`Path`): The folder of the results.
        training (`Path`): The folder inside it that holds the run's description.
        description (`dict`): JSON; all that determines the result.
        overwrite (`bool`): Whether another run may be replaced; the caller removes it (`remove_run`).

    Raises:
        XTCError: if the folder holds other files, or another run; names the options that differ.
        StateError: if the folder cannot be written.
    """
    plain = json.loads(json.dumps(description, default=str))
    found = read_run(training)
    if found == plain:
        return
    if found is None or overwrite:
        require_empty(out, overwrite=overwrite)
    else:
        raise XTCError(
            f"The folder {out} holds another run; it differs in {', '.join(_differences(found, plain))}. "
            "Give another --output_dir, or --overwrite to replace it."
        )
    if training.is_dir():  # other files, which may be replaced
        write_json(training / RUN_FILE, plain)
        return
    scratch = out / f"{SCRATCH}{training.name}"
    with writing(training, kept=""):
        scratch.mkdir(parents=True, exist_ok=True)
        write_json(scratch / RUN_FILE, plain)
        scratch.rename(training)  # atomic: the folder never lacks its description


def read_run(training: Path) -> dict[str, Any] | None:
    """Returns the description of the run in a folder, or `None`."""
    try:
        found = json.loads((training / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    names: list[str] = []
    for name in sorted(set(found) | set(wanted)):
        old, new = found.get(name), wanted.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            names += [f"{name} {inner}" for inner in _differences(old, new)]
        elif old != new:
            shown = [value if len(str(value)) <= 24 else "other" for value in (old, new)]
            names.append(name if shown == ["other", "other"] else f"{name} ({shown[0]} there, {shown[1]} here)")
    return names
