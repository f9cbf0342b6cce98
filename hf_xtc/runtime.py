"""Runs packed models without PyTorch and transformers: numpy, safetensors, tokenizers and the native operator.

For a container, a function that starts cold, or a command line. Files are read and checked as `hf_xtc.reader` does;
logits are bitwise equal to those of the "auto" backend in PyTorch under `torch.no_grad()`. Models that the native
operator does not compute whole are refused: `hf_xtc.reader` runs them in numpy, slowly.
"""

import logging
import mmap
import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from hf_xtc.backends.layouts import describe_choice, fastest_layout
from hf_xtc.errors import ExtraError, HubError, PackedFileError, StateError, XTCError
from hf_xtc.files.sentence_files import PATTERNS, SentenceSettings, read_sentence_settings, read_settings
from hf_xtc.native import arrays
from hf_xtc.native.library import variant
from hf_xtc.reader import TOKEN_HEADS, PackedEncoder, ReadError

logger = logging.getLogger(__name__)

Array = NDArray[Any]
Text = str | tuple[str, str]

# Endings of the names of classes -> tasks; models of other classes embed.
TASKS = {
    "ForSequenceClassification": "sequence-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "masked-lm",
}
PROBLEMS = {"multi_label_classification": "multi-label-classification", "regression": "regression"}
# Classes of tokenizers that give token types unless their options say what they give.
TYPED = ("BertTokenizer", "ElectraTokenizer")
# The files of a repository that a pipeline reads.
FILES = ["config.json", "tokenizer.json", "tokenizer_config.json", "*.safetensors", "*.safetensors.index.json"]
FILES += PATTERNS
# What the native operator computes of what a recipe can say.
_ACTIVATIONS = {"activation_bits": 8, "activation_symmetric": True, "activation_calibration": "dynamic"}
_WEIGHTS = ("binary", "ternary", "int4")


class Pipeline:
    """A packed model and its tokenizer: classifies texts, or embeds them.

    Args:
        model (`str` or `Path`): A packed folder, or a repository on the Hub (needs huggingface_hub).
        revision (`str`, *optional*): Commit, branch or tag on the Hub.
        max_length (`int`, *optional*): Tokens to which texts are truncated; the model's own limit by default.
        threads (`int`, *optional*): Threads of the native operator; as many as the process has cores by default.

    Raises:
        PackedFileError: if the folder holds no packed model that the native operator runs, or no tokenizer.
        StateError: if the native operator is not in use.
        HubError: if the repository cannot be downloaded.
        ExtraError: if it is not a folder, and huggingface_hub is not installed.

    Example:
        >>> pipe = Pipeline("examples/minilm-3l-1bit-sst2")
        >>> pipe(["A joy from start to end.", "Dull."])[0]["label"]
        'positive'
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        revision: str | None = None,
        max_length: int | None = None,
        threads: int | None = None,
    ):
        if threads is not None and threads < 1:
            raise XTCError(f"threads={threads} must be at least 1.")
        self.folder = find_folder(model, revision)
        self.threads = threads or _cores()
        if variant() is None:
            raise StateError(
                "The native operator is not in use here (not built, or switched off by XTC_NATIVE), and this runtime "
                "needs it. hf_xtc.reader runs packed models in numpy, slowly."
            )
        try:
            read = PackedEncoder(self.folder)
            self.config = read.config
            self._model = _NativeModel(read)
        except ReadError as error:
            raise PackedFileError(str(error)) from error
        self._sentences = read_sentence_settings(self.folder) or SentenceSettings()
        self._tokenizer = self._read_tokenizer(max_length)

    def _read_tokenizer(self, max_length: int | None) -> Tokenizer:
        file, options = self.folder / "tokenizer.json", read_settings(self.folder / "tokenizer_config.json")
        try:
            if not file.is_file():
                raise OSError("there is no such file")
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises bare Exceptions
            raise PackedFileError(
                f"{file} cannot be read ({error}). Write it with save_pretrained of a fast tokenizer."
            ) from error
        longest = self._model.positions
        for own in (options.get("model_max_length"), self._sentences.max_length):
            if type(own) is int and own > 0:  # transformers writes a very large number where there is none
                longest = min(longest, own)
        least = tokenizer.num_special_tokens_to_add(True) + 1
        if not least <= (longest if max_length is None else max_length) <= longest:
            raise XTCError(f"max_length={max_length} must lie between {least} and {longest}, the model's limit.")
        side = "left" if options.get("truncation_side") == "left" else "right"
        tokenizer.enable_truncation(max_length or longest, direction=side)
        tokenizer.no_padding()
        self._has_types = _gives_types(options)
        return tokenizer

    @property
    def task(self) -> str:
        """The name of the task: what the configuration records, or else what the model's class tells."""
        recorded = self.config["xtc"].get("task")
        if isinstance(recorded, str):
            return recorded
        class_name = str((self.config.get("architectures") or [""])[0])
        task = next((task for ending, task in TASKS.items() if class_name.endswith(ending)), "sentence-embedding")
        return PROBLEMS.get(str(self.config.get("problem_type")), task) if task == "sequence-classification" else task

    @property
    def has_head(self) -> bool:
        """Whether it computes what the model's class does, and not the hidden states alone, as of a masked LM."""
        return bool(self._model.num_labels or self._model.token_outputs) or self.task == "sentence-embedding"

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, which truncates texts."""
        return self._tokenizer

    @property
    def labels(self) -> list[str]:
        """The names of the classes, in the order of the logits."""
        names = self.config.get("id2label")
        names = names if isinstance(names, dict) else {}
        count = self._model.num_labels or self._model.token_outputs
        return [str(names.get(str(i), f"LABEL_{i}")) for i in range(count)]

    def __call__(
        self, texts: Text | Sequence[Text], *, top_k: int | None = 1, batch_size: int = 32
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """Classifies texts, as transformers' text-classification pipeline does.

        Args:
            texts (`str`, a pair of them as a `tuple`, or a sequence of these): One text or several.
            top_k (`int`, *optional*): Labels of each text, the best first; `None` for all.
            batch_size (`int`): Texts that are computed at once.

        Returns:
            `list[dict]`: A `label` and its `score` for each text; with `top_k` other than 1, a list of such for each.
            Scores are probabilities (softmax; sigmoid of multi-label models and of one label), or the plain numbers
            of a regression. Those of a reranker are what its CrossEncoder predicts.

        Raises:
            XTCError: if the model is no classifier, or an argument is invalid.
        """
        if top_k is not None and top_k < 1:
            raise XTCError(f"top_k={top_k} must be at least 1, or None for all labels.")
        labels, found = self.labels, []
        for scores in self._scores(self.logits(texts, batch_size=batch_size)):
            order = np.argsort(-scores, kind="stable")[:top_k]
            found.append([{"label": labels[i], "score": float(scores[i])} for i in order])
        return [best for (best,) in found] if top_k == 1 else found

    def _scores(self, logits: Array) -> Array:
        problem = self.config.get("problem_type")
        if self.task == "reranking":  # as CrossEncoder of sentence-transformers does
            activation = (self.config.get("sentence_transformers") or {}).get("activation_fn", "Sigmoid")
            problem = "regression" if str(activation).endswith("Identity") else None
        if problem == "regression":
            return logits
        if problem == "multi_label_classification" or (problem is None and logits.shape[1] == 1):
            return np.asarray(1 / (1 + np.exp(-logits)))
        exps = np.exp(logits - logits.max(-1, keepdims=True))
        return np.asarray(exps / exps.sum(-1, keepdims=True))

    def logits(self, texts: Text | Sequence[Text], *, batch_size: int = 32) -> Array:
        """The logits, float32 of shape `(texts, labels)`; arguments and errors as of a call."""
        if not self._model.num_labels:
            raise PackedFileError(
                f"{self.folder} holds no sequence classifier, but {self.config.get('architectures')}. Use embed, or "
                "token_logits for the logits of tokens."
            )
        return self._in_batches(texts, batch_size, self._model.num_labels, lambda outputs, lengths: outputs.logits)

    def token_logits(
        self,
        texts: Text | Sequence[Text],
        *,
        stride: int | None = None,
        only: int | None = None,
        batch_size: int = 32,
    ) -> list[list[tuple[Encoding, Array]]]:
        """The logits of each token: of tags, of the start and the end of an answer, or of the vocabulary.

        Args:
            texts (`str`, a pair of them as a `tuple`, or a sequence of these): One text or several.
            stride (`int`, *optional*): Of pairs, a second text that is too long is read in windows that share so many
                tokens. Without it texts are truncated.
            only (`int`, *optional*): Id of a token: logits of the others are left out.
            batch_size (`int`): Windows that are computed at once.

        Returns:
            `list[list[tuple[Encoding, numpy.ndarray]]]`: The windows of each text: their tokens, and float32 logits of
            shape `(tokens, outputs)`.

        Raises:
            XTCError: if an argument is invalid, or a window has no room for the second text.
            PackedFileError: if the model has no head on tokens.
        """
        if not self._model.token_outputs:
            raise PackedFileError(f"{self.folder} has no head on tokens: it holds {self.config.get('architectures')}.")
        windows = self._windows(texts, stride)
        encodings = [encoding for row in windows for encoding in row]
        found: list[Any] = [None] * len(encodings)
        for chosen, lengths, outputs in self._outputs(encodings, batch_size):
            for i, logits in zip(chosen, np.split(np.asarray(outputs.logits), np.cumsum(lengths)[:-1]), strict=True):
                found[i] = logits if only is None else logits[np.array(encodings[i].ids) == only]
        logits_of = iter(found)
        return [[(encoding, next(logits_of)) for encoding in row] for row in windows]

    def _windows(self, texts: Text | Sequence[Text], stride: int | None) -> list[list[Encoding]]:
        """The tokens of each text: one window, or of pairs with `stride` as many as the second text needs."""
        texts = self._checked(texts)
        if stride is None:
            return [[encoding] for encoding in self._tokenizer.encode_batch(texts)]
        limits: dict[str, Any] = dict(self._tokenizer.truncation or {})
        try:
            self._tokenizer.enable_truncation(**limits | {"stride": stride, "strategy": "only_second"})
            encodings = self._tokenizer.encode_batch(texts)
        except BaseException as error:  # of the tokenizers library, in which a panic is no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise XTCError(
                f"max_length {limits['max_length']} with a stride of {stride} leaves no room for a second text after "
                f"the longest first one. Raise it, or lower the stride ({str(error).splitlines()[0]})."
            ) from None
        finally:
            self._tokenizer.enable_truncation(**limits)
        return [[encoding, *encoding.overflowing] for encoding in encodings]

    def embed(
        self,
        texts: Text | Sequence[Text],
        *,
        pooling: str | None = None,
        normalize: bool | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
    ) -> Array:
        """Embeds texts as vectors.

        Args:
            texts (`str`, a pair of them as a `tuple`, or a sequence of these): One text or several.
            pooling (`str`, *optional*): "mean" of a text's hidden states, or "cls" for its first. By default what
                the folder's `modules.json` says (sentence-transformers), else "mean".
            normalize (`bool`, *optional*): Scale vectors to length 1. By default as `modules.json` says, else not.
            prompt (`str`, *optional*): What stands before each text (of a pair, before its first). By default the
                one that the folder's `config_sentence_transformers.json` names, else nothing.
            batch_size (`int`): Texts that are computed at once.

        Returns:
            `numpy.ndarray` of shape `(texts, hidden)`, float32.

        Raises:
            XTCError: if there is no such pooling.
        """
        pooling = pooling or self._sentences.pooling
        normalize = self._sentences.normalize if normalize is None else normalize
        if pooling not in ("mean", "cls"):
            raise XTCError(f"pooling={pooling!r} does not exist here. Use 'mean' or 'cls'.")

        def pooled(outputs: arrays.Outputs, lengths: Array) -> Array:
            starts = np.cumsum(lengths) - lengths
            if pooling == "cls":
                return np.asarray(outputs.hidden[starts])
            return np.asarray(np.add.reduceat(outputs.hidden, starts) / lengths[:, None].astype(np.float32))

        prompt = self._sentences.default_prompt if prompt is None else prompt
        texts = [
            (prompt + text[0], text[1]) if isinstance(text, tuple) else prompt + text for text in self._checked(texts)
        ]
        vectors = self._in_batches(texts, batch_size, self._model.encoder.hidden, pooled)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12) if normalize else vectors

    def _in_batches(self, texts: Text | Sequence[Text], batch_size: int, width: int, take: Any) -> Array:
        """What `take` makes of each batch, in the order of the texts; batches are of texts of like lengths."""
        encodings = self._tokenizer.encode_batch(self._checked(texts))
        found = np.empty((len(encodings), width), np.float32)
        for chosen, lengths, outputs in self._outputs(encodings, batch_size):
            found[chosen] = take(outputs, lengths)
        return found

    def _checked(self, texts: Text | Sequence[Text]) -> list[Text]:
        texts = [texts] if isinstance(texts, str | tuple) else list(texts)
        if wrong := [text for text in texts if not _is_text(text)]:
            raise XTCError(f"{wrong[0]!r:.80} is not a text. Give a str, or a tuple of two for a pair.")
        return texts

    def _outputs(
        self, encodings: Sequence[Encoding], batch_size: int
    ) -> Iterator[tuple[list[int], Array, arrays.Outputs]]:
        """Of each batch the places of its encodings, their lengths, and what the model makes of them."""
        if batch_size < 1:
            raise XTCError(f"batch_size={batch_size} must be at least 1.")
        order = sorted(range(len(encodings)), key=lambda i: len(encodings[i].ids))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = [encodings[i] for i in chosen]
            try:
                lengths, outputs = self._model.run(batch, with_types=self._has_types, threads=self.threads)
            except IndexError as error:
                raise PackedFileError(f"The tokenizer of {self.folder} is not the model's: {error}") from error
            yield chosen, lengths, outputs


class _NativeModel:
    """The native encoder of a packed model with the head of a sequence classifier, on the arrays of its file.

    `num_labels` and `token_outputs` are the outputs of a head on texts, and of one on tokens; 0 without it.

    Raises:
        PackedFileError: if the native operator does not compute such a model.
        ReadError: if the file does not hold what its config promises.
    """

    def __init__(self, read: PackedEncoder):
        self._read, self._maps = read, {_map_of(tensor) for tensor in read.tensors.values()} - {None}
        config, family, base = read.config, read.family, f"{read.prefix}embeddings"
        _check_served(read)
        tables = [self._table(f"{base}.{name}") for name in family.tables]
        layers = [self._layer(f"{read.prefix}{family.layer}.{i}") for i in range(config["num_hidden_layers"])]
        epsilon, hidden = config["layer_norm_eps"], config["hidden_size"]
        self.has_types = len(tables) > 2
        self.positions = tables[1].rows - (0 if read.first_padding is None else read.first_padding + 1)
        self._count_positions = read.positions
        self.encoder = arrays.Encoder(
            layers,
            tables,
            self._norm(f"{base}.LayerNorm", tables[0].width),
            config["num_attention_heads"],
            (epsilon, epsilon),
            self._linear(f"{base}_project", hidden) if tables[0].width != hidden else None,
            read.distances(tables[1].rows),
        )
        self._pooler, self._activation, self._classifier = self._head()
        self.num_labels = 0 if self._classifier is None else self._classifier.rows
        self._token_head = self._linear_on_tokens()
        self.token_outputs = 0 if self._token_head is None else len(self._token_head[1])
        del self._read

    def run(self, encodings: list[Encoding], *, with_types: bool, threads: int) -> tuple[Array, arrays.Outputs]:
        """Lengths, and what `arrays.Encoder.run` makes of tokenized texts; a head on tokens gives logits of each.

        Args:
            encodings (`list[Encoding]`): At least one.
            with_types (`bool`): Whether token types count, where the model has any; else all are 0.
            threads (`int`): Threads of the native operator.
        """
        lengths = np.array([len(encoding.ids) for encoding in encodings], np.int64)
        words = [np.array(encoding.ids, np.int64) for encoding in encodings]
        positions = [self._count_positions(ids[None]).reshape(-1) for ids in words]
        indices = [np.concatenate(words), np.concatenate(positions)]
        if self.has_types:
            types = np.concatenate([np.array(encoding.type_ids, np.int64) for encoding in encodings])
            indices.append(types * int(with_types))
        if self._token_head is not None:
            weight, bias = self._token_head
            outputs = self.encoder.run(lengths, indices, threads=threads)
            return lengths, outputs._replace(logits=outputs.hidden @ weight.T + bias)
        head = (self._pooler, self._classifier)
        return lengths, self.encoder.run(lengths, indices, *head, activation=self._activation, threads=threads)

    def _head(self) -> tuple[arrays.Weight | arrays.Dense | None, str, arrays.Dense | None]:
        """The two linears of a sequence classifier's head, and the activation between; nothing of other models."""
        if not self._read.architecture.endswith("ForSequenceClassification"):
            return None, "tanh", None
        dense, activation, output = self._read.family.head
        dense = f"{self._read.prefix}{dense}" if dense.startswith("pooler") else dense
        labels = self._read.tensor(f"{output}.weight").shape[0]
        return self._linear(dense, self.encoder.hidden), activation, self._dense(output, labels)

    def _linear_on_tokens(self) -> tuple[Array, Array] | None:
        """Weight and bias of a head on tokens; `None` of other models."""
        path = TOKEN_HEADS.get(self._read.architecture.rpartition("For")[2])
        if path is None:
            return None
        bias = self._read.tensor(f"{path}.bias").astype(np.float32)
        weight = self._read.tensor(f"{path}.weight", len(bias), self.encoder.hidden)
        return weight.astype(np.float32), bias

    def _linear(self, path: str, rows: int) -> arrays.Weight | arrays.Dense:
        """A linear that may be packed or in float."""
        packed = f"{path}.weight_packed" in self._read.tensors
        return self._weight([path], rows) if packed else self._dense(path, rows)

    def _dense(self, path: str, rows: int) -> arrays.Dense:
        weight = self._read.tensor(f"{path}.weight", rows, self._read.columns(path))
        return arrays.Dense(weight, self._read.tensor(f"{path}.bias", rows))

    def _weight(self, paths: list[str], rows: int) -> arrays.Weight:
        """Quantized linears of `rows` output features each, as one weight."""
        codes = []
        for path in paths:
            packed, scale = self._read.packed(path)
            if len(packed) != rows:
                raise ReadError(f"{path} holds {len(packed)} rows, not {rows}.")
            if scale.shape[1] != 1:
                raise _not_served("its scales are per group")
            levels, columns = self._read.codes(path).levels, self._read.columns(path)
            codes.append(arrays.Codes(packed, scale, self._read.tensor(f"{path}.bias", rows), columns, levels))
        shape = str(self._read.recipe["weights"]), rows * len(paths), codes[0].columns
        _say_choice(describe_choice(*shape))
        return arrays.Weight(codes, fastest_layout(*shape))

    def _norm(self, path: str, width: int) -> list[Array]:
        return [self._read.tensor(f"{path}.{name}", width) for name in ("weight", "bias")]

    def _layer(self, path: str) -> arrays.Layer:
        hidden, inner = self._read.config["hidden_size"], self._read.config["intermediate_size"]
        family = self._read.family
        query, key, value, mix, into, out = (f"{path}.{name}" for name in family.linears)
        weights = [
            self._weight([query, key, value], hidden),
            self._weight([mix], hidden),
            self._weight([into], inner),
            self._weight([out], hidden),
        ]
        norms = [array for name in family.norms for array in self._norm(f"{path}.{name}", hidden)]
        layer = arrays.Layer(weights, norms)
        for content in self._maps:  # the pages of the file are read again where they are needed
            if hasattr(mmap, "MADV_DONTNEED"):
                content.madvise(mmap.MADV_DONTNEED)
        return layer

    def _table(self, path: str) -> arrays.Table:
        width = self._read.columns(path)
        if f"{path}.weight_packed" not in self._read.tensors:
            return arrays.Table(self._read.weight(path), None, 0, width)
        packed, scale = self._read.packed(path)
        if scale.shape != (len(packed), 1):
            raise ReadError(f"{path} holds scales {scale.shape} for {len(packed)} rows.")
        return arrays.Table(packed, scale, self._read.codes(path).levels, width)


@cache
def _say_choice(way: str) -> None:
    logger.info("Packed linears run on %s.", way)


def _check_served(read: PackedEncoder) -> None:
    """Raises `PackedFileError` unless the native operator computes a model of this config."""
    config, recipe = read.config, read.recipe
    if config["hidden_act"] != "gelu":
        raise _not_served(f"its activation is {config['hidden_act']}")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise _not_served(f"its positions are {config['position_embedding_type']}")
    for name, value in _ACTIVATIONS.items():
        if recipe[name] != value:
            raise _not_served(f"its recipe says {name}={recipe[name]!r}")
    if recipe.get("weights") not in _WEIGHTS:
        raise _not_served(f"its weights are {recipe.get('weights')!r}")
    if 0 in (config["num_hidden_layers"], config["hidden_size"]):
        raise _not_served("it has no layers")


def _not_served(why: str) -> PackedFileError:
    return PackedFileError(
        f"The native operator does not run this model: {why}. Load it with transformers, or with hf_xtc.reader."
    )


def _map_of(array: Any) -> Any:
    """The mapped file that an array lies in; `None` if it was copied."""
    while isinstance(array, np.ndarray):
        array = array.base
    return array.obj if isinstance(array, memoryview) else array


def _gives_types(options: dict[str, Any]) -> bool:
    """Whether a tokenizer with these options gives token types in transformers: it says so, or its class does."""
    names, kind = options.get("model_input_names"), options.get("tokenizer_class")
    return "token_type_ids" in names if names else kind is None or str(kind).removesuffix("Fast") in TYPED


def _is_text(text: Any) -> bool:
    if isinstance(text, tuple):
        return len(text) == 2 and all(isinstance(part, str) for part in text)
    return isinstance(text, str)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_folder(model: str | os.PathLike[str], revision: str | None) -> Path:
    """The local folder of a model, downloaded if it is a repository; errors are those of `Pipeline`."""
    if os.path.isdir(model):
        return Path(model)
    name = os.fspath(model)
    if os.path.exists(name) or name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise PackedFileError(f"{name} is not a folder. Give a packed folder, or a repository on the Hub.")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ExtraError(
            f"{name} is not a folder, and huggingface_hub, which downloads it from the Hub, is not installed. "
            "Run: pip install huggingface_hub"
        ) from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=FILES))
    except Exception as error:  # of huggingface_hub and of its HTTP client
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise HubError(f"{name} is not a folder, and cannot be downloaded from the Hub: {lines[0]}") from error
