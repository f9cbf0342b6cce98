"""The files by which sentence-transformers opens a folder: read from a teacher's, written beside a packed model.

`modules.json` names the steps from a text to its vector: a Transformer, a Pooling and, where vectors have length 1,
Normalize. What is written is the form that every version of sentence-transformers reads; both forms are read.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hf_xtc.errors import PackedFileError
from hf_xtc.files.safe_json import read_json
from hf_xtc.files.writing import write_json

MODULES = "modules.json"
TRANSFORMER = "sentence_bert_config.json"
SENTENCES = "config_sentence_transformers.json"
POOLING = "1_Pooling/config.json"
NORMALIZE = "2_Normalize/config.json"
# What is written beside a packed model, and what is read of a folder or repository.
WRITTEN = (MODULES, TRANSFORMER, SENTENCES, POOLING, NORMALIZE)
PATTERNS = (MODULES, TRANSFORMER, SENTENCES, "*_Pooling/config.json")

# Pooling -> its name in the older form of a Pooling's config.json.
POOLINGS = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}


@dataclass(frozen=True)
class SentenceSettings:
    """How a text's hidden states become its vector.

    Args:
        pooling (`str`): "mean" of the hidden states, or "cls" for the first.
        normalize (`bool`): Whether vectors have length 1.
        max_length (`int`, *optional*): Tokens to which texts are truncated; `None` for the tokenizer's own limit.
        prompts (`dict[str, str]`): Name -> text that `encode(..., prompt_name=name)` puts before each text.
        default_prompt_name (`str`, *optional*): The one of them that stands before each text if none is named.

    Raises:
        PackedFileError: if a value has another type, or there is no such pooling.
    """

    pooling: str = "mean"
    normalize: bool = False
    max_length: int | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None

    def __post_init__(self) -> None:
        length, prompts, default = self.max_length, self.prompts, self.default_prompt_name
        fits = {
            "pooling": self.pooling in POOLINGS,
            "normalize": isinstance(self.normalize, bool),
            "max_length": length is None or (type(length) is int and length > 0),
            "prompts": isinstance(prompts, dict) and all(isinstance(v, str) for v in (*prompts, *prompts.values())),
            "default_prompt_name": default is None or (isinstance(default, str) and default in prompts),
        }
        for name, fit in fits.items():
            if not fit:
                raise PackedFileError(
                    f"{name}={getattr(self, name)!r:.80} is no setting of a sentence embedder; pooling is one of "
                    f"{', '.join(POOLINGS)}, normalize true or false, max_length a positive number, "
                    "default_prompt_name one of prompts. Correct it."
                )

    @property
    def default_prompt(self) -> str:
        """What stands before each text for which no prompt is named."""
        return "" if self.default_prompt_name is None else self.prompts[self.default_prompt_name]

    @classmethod
    def from_dict(cls, values: Any) -> "SentenceSettings":
        """The settings that `to_dict` gave, as a JSON object.

        Raises:
            PackedFileError: if they are something else.
        """
        try:
            return cls(**values)
        except TypeError:
            raise PackedFileError(f"{values!r:.80} are no settings of a sentence embedder. Restore them.") from None

    def to_dict(self) -> dict[str, Any]:
        """The settings as a JSON object, of which `SentenceSettings(**values)` makes them again."""
        return asdict(self)


def read_sentence_settings(folder: Path) -> SentenceSettings | None:
    """The settings of a folder of sentence-transformers; `None` if it has no `modules.json`, or no Pooling in it.

    Raises:
        PackedFileError: if a file is invalid; if it has other modules than a Transformer, a Pooling and Normalize;
            or if it pools otherwise than by "mean" or "cls".
    """
    file = folder / MODULES
    if not file.exists():
        return None
    try:
        modules = {str(module["type"]).rpartition(".")[2]: str(module["path"]) for module in read_json(file)}
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise PackedFileError(f"{file} cannot be read ({error}). Download or write it again.") from error
    unknown, path = set(modules) - {"Transformer", "Pooling", "Normalize"}, modules.get("Pooling")
    if path is None:  # a CrossEncoder, for example
        return None
    if unknown or Path(path).name != path:
        raise PackedFileError(f"{file} has modules {sorted(modules)}, not a Transformer, a Pooling and Normalize.")
    pooling = _pooling(folder / path)
    transformer, sentences = read_settings(folder / TRANSFORMER), read_settings(folder / SENTENCES)
    prompts, default = sentences.get("prompts") or {}, sentences.get("default_prompt_name")
    if isinstance(prompts, dict):
        default = None if isinstance(default, str) and prompts.get(default) == "" else default
        prompts = {name: text for name, text in prompts.items() if text != ""}
    return SentenceSettings(pooling, "Normalize" in modules, transformer.get("max_seq_length"), prompts, default)


def _pooling(folder: Path) -> str:
    """How a Pooling's folder says it pools."""
    options = read_settings(folder / "config.json")
    given = options.get("pooling_mode")  # the newer form: a name, or a list of names
    if given is None:
        given = [name for name, value in options.items() if name.startswith("pooling_mode_") and value is True]
    chosen = [given] if isinstance(given, str) else list(given) if isinstance(given, list) else [given]
    names = {old: name for name, old in POOLINGS.items()} | {name: name for name in POOLINGS}
    if len(chosen) != 1 or str(chosen[0]) not in names:
        raise PackedFileError(f"{folder} pools by {chosen}; use one of: {', '.join(POOLINGS.values())}.")
    return names[chosen[0]]


def read_settings(file: Path) -> dict[str, Any]:
    """The JSON object of a file that a folder may have; empty if it has none.

    Raises:
        PackedFileError: if it is no JSON object.
    """
    if not file.exists():
        return {}
    try:
        values = read_json(file)
    except (OSError, ValueError) as error:
        raise PackedFileError(f"{file} cannot be read ({error}). Download or write it again.") from error
    if not isinstance(values, dict):
        raise PackedFileError(f"{file} is not a JSON object. Download or write it again.")
    return values


def write_sentence_files(folder: Path, settings: SentenceSettings, dimension: int) -> None:
    """Writes `WRITTEN` into a folder, so that `SentenceTransformer(folder)` opens the model in it.

    Args:
        folder (`Path`): It exists.
        dimension (`int`): Length of the vectors.
    """
    steps = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] * settings.normalize)]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (path, name) in enumerate(steps)
    ]
    files: Mapping[str, Any] = {
        MODULES: modules,
        TRANSFORMER: {"max_seq_length": settings.max_length, "do_lower_case": False},
        SENTENCES: {
            "prompts": settings.prompts,
            "default_prompt_name": settings.default_prompt_name,
            "similarity_fn_name": "cosine",
        },
        POOLING: {
            "word_embedding_dimension": dimension,
            **{old: name == settings.pooling for name, old in POOLINGS.items()},
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
        **({NORMALIZE: {}} if settings.normalize else {}),
    }
    for name, values in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        write_json(folder / name, values)
