"""Makes, completes or reuses the teacher cache of a training run; raises an error for one that does not match it.

A cache is made with the teacher and the collator of the run, for any columns of the data. The teacher's outputs for a
row must depend on that row alone: rows that change each time they are read (random masking in the collator) are an
error. Padding on the left is accepted, with a warning if positions then depend on the other rows of a batch.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import tqdm
from torch import Tensor, nn

from hf_xtc.distillation.cache.format import (
    TOKENS,
    Manifest,
    Shape,
    broken_shards,
    check_key,
    plan_shards,
    read_manifest,
)
from hf_xtc.distillation.cache.rows import ROW, NumberedRows, sequence_mask
from hf_xtc.distillation.cache.shards import ShardWriter, TeacherCache
from hf_xtc.distillation.terms import DistillationTerm
from hf_xtc.errors import DataError, StateError, XTCError
from hf_xtc.files.lock import FolderLock
from hf_xtc.files.writing import LOCK_FILE, SCRATCH, clear_unfinished
from hf_xtc.recipe.layer_map import LayerMap

logger = logging.getLogger(__name__)

_SCANNED_ROWS = 1000
# Fields of a configuration that do not affect the outputs, or that change when the model is used.
_IGNORED = re.compile(
    "_.*|transformers_version|.*label.*|dtype|architectures|problem_type|.*dropout.*|.*_token_id|output_.*|use_cache"
)


def kept_layers(terms: Sequence[DistillationTerm], layer_map: LayerMap, depth: int) -> dict[str, tuple[int, ...]]:
    """The hidden states and attention layers that terms read: those of the layer map where they are `mapped`, the last
    hidden state where they are `pooled`, and else all.

    Args:
        depth (`int`): Number of layers of the teacher.
    """
    kept = {}
    for kind, count in (("hidden_states", depth + 1), ("attentions", depth)):
        readers = [term for term in terms if kind in term.needs]
        layers: set[int] = set()
        for term in readers:
            layers |= {count - 1} if term.pooled else set(getattr(layer_map, kind) if term.mapped else range(count))
        if readers:
            kept[kind] = tuple(sorted(layers))
    return kept


def teacher_fingerprint(teacher: nn.Module, config: Mapping[str, Any]) -> str:
    """sha256 of the teacher's tensors and of the fields of its configuration that affect its outputs."""
    relevant = {key: value for key, value in config.items() if not _IGNORED.fullmatch(key)}
    digest = hashlib.sha256(json.dumps(relevant, sort_keys=True).encode())
    for name, tensor in sorted(teacher.state_dict().items()):
        _hash_tensor(digest, name, tensor)
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """sha256 of a tokenizer without its padding and truncation settings; "none" for `None`."""
    if tokenizer is None:
        return "none"
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        vocabulary = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else {}
        text = json.dumps([type(tokenizer).__name__, vocabulary], sort_keys=True)
    else:
        text = json.dumps({**json.loads(backend.to_str()), "truncation": None, "padding": None}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _hash_tensor(digest: Any, name: str, tensor: Tensor) -> None:
    tensor = tensor.detach().cpu().contiguous()
    digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy())


@dataclass
class Teaching:
    """The teacher and the data of a training run, and the folder of their cache.

    Args:
        folder (`Path`): Folder of the cache.
        dtype (`str`): "float16" or "int8".
        rows (`NumberedRows`): The data.
        collator (`Callable`): Makes batches of rows.
        labels (`list[str]`): Keys of a batch that are not passed to the teacher.
        terms (`list[DistillationTerm]`): Terms whose inputs are cached.
        layer_map (`LayerMap`): Layer map of the student.
        teacher_config (`PreTrainedConfig`): The teacher's configuration.
        teacher (`nn.Module`, *optional*): Without one, the cache must be complete.
        run (`Callable`): (batch without labels, names of outputs beyond the logits) -> the teacher's outputs, in the
            precision of the run.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Part of the key.
        precision (`str`): Precision of autocast; part of the key.
        batch_size (`int`): Rows per forward pass of the teacher.
        quiet (`bool`): Show no progress bar.
    """

    folder: Path
    dtype: str
    rows: NumberedRows
    collator: Callable[[list[Any]], Any]
    labels: Sequence[str]
    terms: Sequence[DistillationTerm]
    layer_map: LayerMap
    teacher_config: Any
    teacher: nn.Module | None
    run: Callable[[dict[str, Any], Iterable[str]], Any]
    tokenizer: Any
    precision: str
    batch_size: int
    quiet: bool

    def __post_init__(self) -> None:
        depth = self.teacher_config.num_hidden_layers
        self.layers = kept_layers(self.terms, self.layer_map, depth)
        self.depths = {kind: depth + (kind == "hidden_states") for kind in self.layers}
        self.config: dict[str, Any] = json.loads(self.teacher_config.to_json_string(use_diff=False))

    def cache(self, *, make: bool) -> TeacherCache:
        """The complete cache, opened for reading: reused, completed or made.

        Args:
            make (`bool`): Whether missing shards are made; if not, they are an error.

        Raises:
            StateError: if the folder holds the cache of another run, the disk is too small, or the cache cannot be
                made or written.
            XTCError: if the rows change each time they are read, or the teacher's outputs have an unknown layout.
        """
        self._check_rows()
        lengths, key = self._scan()
        manifest = read_manifest(self.folder)
        if manifest is not None:
            check_key(self.folder, manifest.key, key)
        if make and self.teacher is not None and self._is_unfinished(manifest):
            with FolderLock(self.folder, wait=True) as lock:
                self._complete(lengths, key, lock)
        return TeacherCache(self.folder)

    def _is_unfinished(self, manifest: Manifest | None) -> bool:
        """Whether shards are missing or broken, or a killed process left files that can be removed."""
        if manifest is None or broken_shards(self.folder, manifest):
            return True
        left = [*self.folder.glob(f"{SCRATCH}*"), *self.folder.glob(LOCK_FILE)]
        return bool(left) and os.access(self.folder, os.W_OK)

    def _complete(self, lengths: Sequence[int], key: dict[str, Any], lock: FolderLock) -> None:
        """Makes the shards that are missing or broken once this process holds the lock."""
        clear_unfinished(self.folder)
        manifest = read_manifest(self.folder) or self._plan(lengths, key)
        check_key(self.folder, manifest.key, key)
        if broken := broken_shards(self.folder, manifest):
            self._check_space(manifest, list(broken))
            lock.take()
            manifest.write(self.folder)
            self._make(manifest, broken, lengths)

    def _batch(self, indices: Sequence[int]) -> tuple[dict[str, Any], Tensor]:
        """The teacher's input for these rows, and its token mask."""
        features = self.rows.__getitems__(indices)
        for feature in features:
            del feature[ROW]
        batch = self.collator(features)
        return {key: value for key, value in batch.items() if key not in self.labels}, sequence_mask(batch)

    def _check_rows(self) -> None:
        """Checks that rows read twice are the same; warns if padding on the left shifts positions.

        Raises:
            XTCError: if they differ.
        """
        sample = range(min(len(self.rows), 32))
        (first, mask), (second, _) = self._batch(sample), self._batch(sample)
        if any(isinstance(v, Tensor) and not torch.equal(v, second[key]) for key, v in first.items()):
            raise XTCError(
                "Rows of the train_dataset change each time they are read (random masking or augmentation): the "
                "teacher's outputs for them cannot be cached. Train without teacher_cache."
            )
        shifted = (mask[:, 0] == 0).nonzero().flatten().tolist()
        if shifted and self._batch(shifted[:1])[1][0, 0] != 0:
            logger.warning(
                "Rows are padded on the left to the longest of their batch: with absolute positions the teacher's "
                "outputs depend on that padding, which differs between the cache and training. "
                "Pad on the right, or to one length."
            )

    def _scan(self) -> tuple[list[int], dict[str, Any]]:
        """Reads all rows; returns the number of tokens of each, and the key of the cache."""
        lengths: list[int] = []
        digest = hashlib.sha256()
        for start in range(0, len(self.rows), _SCANNED_ROWS):
            batch, mask = self._batch(range(start, min(start + _SCANNED_ROWS, len(self.rows))))
            counts = (mask != 0).sum(1)
            if not counts.all():
                raise DataError(f"Row {start + int(counts.argmin())} of the train_dataset has no token.")
            lengths += counts.tolist()
            _hash_tensor(digest, TOKENS, counts)
            for name in sorted(batch):
                value = batch[name]
                if isinstance(value, Tensor):
                    _hash_tensor(digest, name, value[mask != 0] if value.shape == mask.shape else value)
        recipe: dict[str, Any] = {"dtype": self.dtype, "precision": self.precision}
        recipe |= {kind: list(self.layers.get(kind, ())) for kind in ("hidden_states", "attentions")}
        return lengths, {
            "teacher": None if self.teacher is None else teacher_fingerprint(self.teacher, self.config),
            "tokenizer": tokenizer_fingerprint(self.tokenizer),
            "data": digest.hexdigest(),
            "recipe": recipe,
        }

    def _plan(self, lengths: Sequence[int], key: dict[str, Any]) -> Manifest:
        """The manifest of a new cache; runs the teacher on one row to learn the shapes of its outputs."""
        batch, mask = self._batch([0])
        outputs = {n: _shape(n, tensor, mask.shape[1]) for n, tensor in self._outputs(batch).items()}
        shards = plan_shards(outputs, self.dtype, lengths)
        return Manifest(key, self.dtype, outputs, self.layers, self.depths, shards, self.config)

    def _outputs(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The teacher's outputs to cache, float32 on the CPU; axis 0 is the batch, axis 1 the layers, if any."""
        outputs = self.run(batch, self.layers)
        kept = {name: outputs[name] for name in outputs if name.endswith("logits")}
        for kind, layers in self.layers.items():
            if len(outputs.get(kind) or ()) != self.depths[kind]:
                raise XTCError(f"The teacher returns no {kind}; drop the terms that need them, or teacher_cache.")
            kept[kind] = torch.stack([outputs[kind][layer] for layer in layers], 1)
        return {name: tensor.detach().float().cpu() for name, tensor in kept.items()}

    def _check_space(self, manifest: Manifest, missing: Sequence[int]) -> None:
        """Logs the size of the cache, and raises `StateError` if the disk is too small for it."""
        needed = manifest.nbytes(missing)
        place = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(place).free
        logger.info(
            "The teacher cache in %s takes %d bytes, %d of them to be written.", self.folder, manifest.nbytes(), needed
        )
        if needed > free:
            smaller = "" if self.dtype == "int8" else ", or use teacher_cache_dtype='int8'"
            raise StateError(
                f"The teacher cache needs {needed} more bytes in {self.folder}, and {free} are free. Free some, give "
                f"teacher_cache a folder on another disk{smaller}."
            )

    def _make(self, manifest: Manifest, broken: Mapping[int, str], lengths: Sequence[int]) -> None:
        """Makes the shards that are missing or broken."""
        for what in broken.values():
            if not what.endswith("is missing"):
                logger.warning("%s: %s; it is made again.", self.folder, what)
        total = sum(manifest.shards[index].rows for index in broken)
        size = f"Teacher cache ({manifest.nbytes(list(broken)) / 1e6:.1f} MB)"
        with tqdm(total=total, desc=size, disable=self.quiet) as bar:
            for index in broken:
                self._make_shard(manifest, index, lengths, bar.update)

    def _make_shard(
        self, manifest: Manifest, index: int, lengths: Sequence[int], update: Callable[[int], Any]
    ) -> None:
        """Runs the teacher on a shard's rows, in batches of similar length, and writes the outputs."""
        first = sum(shard.rows for shard in manifest.shards[:index])
        own = lengths[first : first + manifest.shards[index].rows]
        order = sorted(range(len(own)), key=own.__getitem__)
        writer = ShardWriter(manifest, index, own)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            batch, mask = self._batch([first + row for row in rows])
            writer.put(rows, self._outputs(batch), mask)
            update(len(rows))
        writer.save(self.folder)


def _shape(name: str, output: Tensor, width: int) -> Shape:
    """The shape of a row's block, from an output that is padded to `width` tokens.

    Raises:
        XTCError: if the output is neither per row, nor per token, nor a span.
    """
    sizes = output.shape[1:]
    if name == "hidden_states":
        return sizes[0], TOKENS, sizes[2]
    if name == "attentions":
        return sizes[0], sizes[1], TOKENS, TOKENS
    if name in ("start_logits", "end_logits") and sizes == (width,):
        return (TOKENS,)
    if len(sizes) == 1:
        return (sizes[0],)
    if len(sizes) == 2 and sizes[0] == width:
        return TOKENS, sizes[1]
    raise XTCError(
        f"The teacher's {name} have shape {list(output.shape)} for 1 row of {width} tokens: teacher_cache supports "
        "outputs per row, per token and spans. Train without it."
    )
