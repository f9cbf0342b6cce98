"""Models that `hf_xtc.runtime` does not run, in PyTorch: other families and heads, float ones, no native operator."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Encoding

import hf_xtc.modeling  # noqa: F401  (registers the models with the Auto classes)
from hf_xtc.errors import XTCError
from hf_xtc.files.sentence_files import MODULES, SentenceSettings, read_sentence_settings
from hf_xtc.native.arrays import Outputs
from hf_xtc.runs.model_checks import check_config
from hf_xtc.runs.teacher import load_config, load_model, load_tokenizer
from hf_xtc.runtime import Pipeline
from hf_xtc.tasks import TASKS

Array = NDArray[Any]


class TorchPipeline(Pipeline):
    """A `Pipeline` whose model is computed by PyTorch; the rest, and the answers, are those of `Pipeline`.

    Args:
        folder (`Path`): Of a model that transformers opens, packed or not, with a `tokenizer.json`.
        max_length (`int`, *optional*), threads (`int`, *optional*): As of `Pipeline`.

    Raises:
        XTCError: if the folder holds no model of a task, or no tokenizer.
    """

    def __init__(self, folder: Path, *, max_length: int | None = None, threads: int | None = None):
        if threads is not None:
            torch.set_num_threads(threads)
        self.folder, self.threads = folder, torch.get_num_threads()
        config = load_config(str(folder))
        check_config(config, str(folder), fresh_head=False)
        found = config.to_dict()
        self.config = {**found, "xtc": found.get("xtc") or {}, "architectures": config.architectures}
        self.config["id2label"] = {str(i): name for i, name in (config.id2label or {}).items()}
        if (folder / MODULES).is_file():
            self.config["xtc"] = {**self.config["xtc"], "task": "sentence-embedding"}
        elif "sentence_transformers" in found:  # of a float CrossEncoder
            self.config["xtc"] = {**self.config["xtc"], "task": "reranking"}
        task = TASKS[self.task]()
        model = load_model(str(folder), task.auto_class, fresh_head=not task.needs_head, dtype="auto")
        self._model: Any = _TorchModel(model.eval(), self.task)
        self._sentences = read_sentence_settings(folder) or SentenceSettings()
        self._tokenizer = self._read_tokenizer(max_length)

    @property
    def mask_id(self) -> int:
        """Id of the token that a masked language model replaces.

        Raises:
            XTCError: if the tokenizer has none.
        """
        found = load_tokenizer(str(self.folder)).mask_token_id
        if found is None:
            raise XTCError(f"The tokenizer of {self.folder} has no mask token. Set tokenizer.mask_token and save it.")
        return int(found)


class _TorchModel:
    """What `Pipeline` asks of a model, computed on padded batches."""

    def __init__(self, model: Any, task: str):
        self._model, config = model, model.config
        heads = {"token-classification": config.num_labels, "question-answering": 2, "masked-lm": config.vocab_size}
        self.token_outputs = heads.get(task, 0)
        self.num_labels = 0 if task in heads or task == "sentence-embedding" else config.num_labels
        self.positions = getattr(config, "max_position_embeddings", None) or 2**31
        padding = [
            getattr(m, "padding_idx", None) for n, m in model.named_modules() if n.endswith("position_embeddings")
        ]
        if padding and padding[0] is not None:  # RoBERTa counts from there
            self.positions -= padding[0] + 1
        self.encoder = self  # whose width `Pipeline.embed` asks for
        self.hidden = config.hidden_size
        self._padding = getattr(config, "pad_token_id", None) or 0

    @torch.no_grad()
    def run(self, encodings: list[Encoding], *, with_types: bool, threads: int) -> tuple[Array, Outputs]:
        """Lengths, and outputs for tokenized texts; a head on tokens gives logits `(tokens, outputs)`."""
        lengths = np.array([len(encoding.ids) for encoding in encodings], np.int64)
        kept = np.arange(lengths.max()) < lengths[:, None]
        rows = {"input_ids": [encoding.ids for encoding in encodings]}
        types = [encoding.type_ids for encoding in encodings]
        if with_types and any(map(any, types)):  # some models do not take them
            rows["token_type_ids"] = types
        batch = {"attention_mask": torch.from_numpy(kept.astype(np.int64))}
        for name, values in rows.items():
            padded = np.full(kept.shape, self._padding if name == "input_ids" else 0, np.int64)
            padded[kept] = np.concatenate(values)
            batch[name] = torch.from_numpy(padded)
        try:
            outputs = self._model(**batch)
        except IndexError as error:
            raise IndexError(f"a token has no embedding ({error})") from error
        if "start_logits" in outputs:
            logits = torch.stack([outputs.start_logits, outputs.end_logits], -1)
        else:
            logits = outputs.get("logits")
        if logits is None:
            return lengths, Outputs(outputs[0].float().numpy()[kept], None, None)
        found = logits.float().numpy()
        return lengths, Outputs(None, None, found[kept] if self.token_outputs else found)
