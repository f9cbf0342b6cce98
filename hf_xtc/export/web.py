"""Writes a folder that any web server serves as it is: a page that runs packed models in the browser.

The page and the JavaScript module come from `web/` of the repository, which wheels carry as `hf_xtc/export/site`.
"""

import html
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hf_xtc.errors import PackedFileError, StateError
from hf_xtc.files.safe_json import read_json
from hf_xtc.files.sentence_files import MODULES, WRITTEN, SentenceSettings, read_settings, write_sentence_files
from hf_xtc.files.writing import whole_folder

PAGE = ("index.html", "page.css", "start.js", "page.js", "service-worker.js", "icon.svg")
MODULE = ("hf-xtc.js", "hf-xtc-worker.js", "tokenizers.js", "xtc.wasm", "xtc-relaxed.wasm")
# Endings of the names of the classes that run there.
SERVED = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "Model")
_SITE = '<script type="application/json" id="site">{"title": "hf_xtc", "models": []}</script>'
_TITLE = "<title>hf_xtc</title>"

# What a page shows before anything is typed, by task.
EXAMPLES = {
    "sequence-classification": [
        "I enjoyed every minute of it, and I would go again tomorrow.",
        "It arrived late, it was broken, and nobody answers my letters.",
        "The shop opens at nine on weekdays.",
    ],
    "token-classification": [
        "Ada Lovelace met Charles Babbage in London in 1833.",
        "Next year Nintendo opens a museum in Kyoto.",
    ],
    "question-answering": [
        "The lighthouse was built in 1841 by two brothers from Bergen. It is 31 metres high, and its light reaches "
        "19 nautical miles. Since 1987 nobody lives there.",
        "How high is the lighthouse?",
    ],
    "sentence-embedding": ["I forgot my password", "something warm to eat", "my parcel is late"],
}
SENTENCES = """\
How do I reset the password of my account?
You can change your email address in the settings.
We sent a link to your inbox that signs you in.
Two-factor authentication protects your account.
Your order left our warehouse this morning.
The delivery takes three to five working days.
Packages abroad can be held up at customs.
You may send back anything within thirty days.
A refund reaches your bank account within a week.
We accept credit cards and bank transfers.
The invoice is attached to the confirmation.
Students get a discount of twenty percent.
The battery lasts ten hours on one charge.
Hold the power button for ten seconds to restart the device.
The screen stays black after the update.
Keep the charger away from water.
The warranty covers two years.
Our shop in the centre is open until eight in the evening.
The nearest bus stop is five minutes away on foot.
Parking is free for the first hour.
Dogs are welcome on the terrace.
The soup of the day is tomato with basil.
Bake the bread at 220 degrees for forty minutes.
Add a pinch of salt to the chocolate.
This curry tastes best on the second day.
The vegetarian menu changes every week.
Tea should steep for four minutes.
It will rain in the north on Tuesday.
Strong winds closed the bridge for two hours.
The first snow fell in the mountains last night.
The train to Vienna leaves from platform four.
Our flight was cancelled because of fog.
The museum shows paintings from the seventeenth century.
Children under six enter for free.
The orchestra plays Brahms on Friday.
Her new novel is set in Lisbon.
The film was too long, but the ending surprised me.
The home team won in the last minute.
She ran the marathon in less than three hours.
Regular sleep helps you remember what you learned.
A short walk after lunch lowers blood sugar.
See a doctor if the fever lasts more than three days.
The library lends e-books for two weeks.
Plants grow towards the light.
The moon moves away from the earth by four centimetres a year.
Bees tell each other by dancing where flowers are.
The company hired forty engineers this spring.
Interest rates stay as they are until autumn.
Rents in the city rose by five percent.
The council voted for a new cycle path along the river.
"""


@dataclass(frozen=True)
class SiteModel:
    """A model of a page.

    Args:
        name (`str`): What the page calls it.
        folder (`str`): Its address, relative to the page, with a slash at the end.
        task (`str`): As `hf_xtc.runtime.Pipeline.task`.
        labels (`list[str]`): Names of the classes, in the order of the logits.
        bytes (`int`): Of its files, for the bar that shows how far loading is.
        max_length (`int`, *optional*): Tokens to which texts are truncated; by default the model's limit.
        about (`str`): A sentence above it.
        examples (`list[str]`): Texts to try; of a question-answering model a context and a question.
        sentences (`list[str]`): What an embedder searches at first.
        pair (`bool`): Whether a second text is asked for.
    """

    name: str
    folder: str
    task: str
    labels: list[str]
    bytes: int
    max_length: int | None = None
    about: str = ""
    examples: list[str] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    pair: bool = False


def describe_model(files: str | os.PathLike[str], folder: str, name: str, **options: Any) -> SiteModel:
    """What a page says of a packed folder, with examples for its task.

    Args:
        files (`str` or `os.PathLike`): The packed folder.
        folder (`str`): Its address, relative to the page.
        name (`str`): What the page calls it.
        **options: Other fields of `SiteModel`.

    Raises:
        PackedFileError: as `hf_xtc.runtime.Pipeline`; also if its head does not run in a browser.
    """
    from hf_xtc.runtime import Pipeline

    files, pipe = Path(files), Pipeline(files)
    name_of_class = str((pipe.config.get("architectures") or ["Model"])[0])
    if not name_of_class.endswith(SERVED):
        raise PackedFileError(
            f"{files} holds a {name_of_class}, which has no page. Those that have one end in: {', '.join(SERVED)}."
        )
    if not (files / "model.safetensors").is_file():
        raise PackedFileError(f"{files} holds no model.safetensors in one file. Save the model again without shards.")
    examples = EXAMPLES.get(pipe.task, EXAMPLES["sequence-classification"])
    sentences = SENTENCES.splitlines() if pipe.task == "sentence-embedding" else []
    values = {"examples": examples, "sentences": sentences, **options}
    size = sum((files / file).stat().st_size for file in ("model.safetensors", "tokenizer.json"))
    return SiteModel(name, folder, pipe.task, pipe.labels, size, **values)


def write_site(folder: str | os.PathLike[str], title: str, models: Sequence[SiteModel]) -> None:
    """Writes the page and the module into a folder; models are left where they are.

    Args:
        folder (`str` or `os.PathLike`): Created if missing; its other files stay.
        title (`str`): Of the page.
        models (sequence of `SiteModel`): At least one.

    Raises:
        StateError: if the files cannot be written, or this installation has none of the page.
    """
    pages, module = page_files()
    site = json.dumps({"title": title, "models": [asdict(model) for model in models]}, ensure_ascii=False)
    escaped = site.replace("<", "\\u003c")  # so that no text ends the script
    page = (pages / "index.html").read_text(encoding="utf-8")
    if _SITE not in page or _TITLE not in page:
        raise StateError(f"{pages / 'index.html'} has no place for the models. Install hf_xtc again.")
    page = page.replace(_SITE, f'<script type="application/json" id="site">{escaped}</script>')
    page = page.replace(_TITLE, f"<title>{html.escape(title)}</title>")
    page = page.replace('<h1 id="title">hf_xtc</h1>', f'<h1 id="title">{html.escape(title)}</h1>')
    with whole_folder(folder) as scratch:
        for name in PAGE:
            shutil.copyfile(pages / name, scratch / name)
        (scratch / "index.html").write_text(page, encoding="utf-8")
        (scratch / "hf-xtc").mkdir(exist_ok=True)
        for name in MODULE:
            shutil.copyfile(module / name, scratch / "hf-xtc" / name)


def copy_model(files: Path, folder: Path) -> None:
    """Copies what the page reads of a packed folder; tokenizer.json becomes one line, which is a third shorter.

    Raises:
        PackedFileError: if a file is missing or damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors", "tokenizer_config.json", *WRITTEN):
        if (files / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(files / name, folder / name)
    try:
        tokenizer = read_json(files / "tokenizer.json")
    except (OSError, ValueError) as error:
        raise PackedFileError(f"{files / 'tokenizer.json'} cannot be read ({error}). Download it again.") from error
    text = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    config = read_settings(files / "config.json")
    if not (folder / MODULES).exists() and str((config.get("architectures") or ["Model"])[0]).endswith("Model"):
        write_sentence_files(folder, SentenceSettings(), config["hidden_size"])  # or the page asks for files in vain


def page_files() -> tuple[Path, Path]:
    """The folders of the page and of the built module: of a wheel, or of a checkout.

    Raises:
        StateError: if this installation has neither.
    """
    here = Path(__file__).parent
    for root in (here / "site", here.parent.parent / "web"):
        if (root / "dist" / "xtc.wasm").is_file() and (root / "page" / "index.html").is_file():
            return root / "page", root / "dist"
    raise StateError("This installation has no files of the page. Install hf_xtc from a wheel, or run: make web")
