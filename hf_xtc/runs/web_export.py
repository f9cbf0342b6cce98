"""`hf-xtc export --format web`: a folder with a page that runs the model in a browser, checked in Node.js."""

import base64
import json
import logging
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hf_xtc.errors import XTCError
from hf_xtc.export.graph import IDS, MASK, TYPES, interface_of, sentence_settings
from hf_xtc.export.verify import EXACT, Agreement, Batch, Outputs, compare, random_batches, with_vectors
from hf_xtc.export.web import copy_model, describe_model, page_files, write_site
from hf_xtc.files.sentence_files import SENTENCES, SentenceSettings, read_sentence_settings
from hf_xtc.files.writing import whole_folder
from hf_xtc.runtime import find_folder

logger = logging.getLogger(__name__)

CHECK = Path(__file__).parent.parent / "export" / "web_check.mjs"


def write_page(model: Any, name: str, output_dir: str, batches: Any) -> tuple[int, Agreement | None, Agreement | None]:
    """Writes the folder, and compares the module for browsers with the model, where Node.js is installed.

    Args:
        model (`PreTrainedModel`): The packed model.
        name (`str`): Its folder, or its repository on the Hub.
        output_dir (`str`): Where to write.
        batches: Rows to compare on; `None` for random tokens.

    Returns:
        The bytes of all files, the agreement, and the model's own noise; no agreement without Node.js.

    Raises:
        XTCError: if the model does not run in a browser, or it disagrees there; nothing is left then.
    """
    files, title = find_folder(name, None), Path(name).absolute().name
    with whole_folder(output_dir) as folder:
        copy_model(files, folder / "model")
        described = describe_model(folder / "model", "model/", title)
        write_site(folder, title, [described])
        agreement = noise = None
        if (node := shutil.which("node")) is None:
            logger.warning("The page was not checked, since node (Node.js 20 or later) is not installed here.")
        else:
            agreement, noise = _checked(model, folder / "model", node, batches)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return size, agreement, noise


def _checked(model: Any, folder: Path, node: str, batches: Any) -> tuple[Agreement, Agreement]:
    if type(model).__name__.endswith("Model") and getattr(model, "pooler", None) is not None:
        model.pooler = None  # pages do not compute it
    rows = random_batches(model.config, interface_of(model)) if batches is None else batches
    with _Runner(model, folder, node) as runner:
        _check_sentences(runner.sentences, folder)
        agreement, noise = compare(model, runner, rows)
    if not agreement.within(EXACT, noise):
        raise XTCError(
            f"The model disagrees with itself in Node.js: {agreement}. Its own noise: {noise}. The files were "
            "removed. Report this with your version of Node.js."
        )
    return agreement, noise


def _check_sentences(found: dict[str, Any], folder: Path) -> None:
    """Raises XTCError unless the module embeds as the runtime without PyTorch does: what `compare` does not see."""
    settings = read_sentence_settings(folder) or SentenceSettings()
    expected = {
        "pooling": settings.pooling,
        "normalize": settings.normalize,
        "maxLength": settings.max_length,
        "prompt": settings.default_prompt,
    }
    if found != expected:
        raise XTCError(
            f"The module for browsers would embed with {found}, Python with {expected}. The files were removed. "
            f"Report this with {SENTENCES} of the model."
        )


class _Runner:
    """The module for browsers in a process of Node.js, from a batch to the outputs of the model."""

    def __init__(self, model: Any, folder: Path, node: str):
        self._settings, self._class = sentence_settings(model), type(model).__name__
        module = (page_files()[1] / "hf-xtc.js").absolute().as_uri()
        command = [node, str(CHECK), module, str(folder.absolute())]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            self.sentences = self._read()
        except XTCError:
            self.__exit__()
            raise

    def __enter__(self) -> "_Runner":
        return self

    def __exit__(self, *_: Any) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(BrokenPipeError):
                pipe.close() if pipe is not None else None

    def __call__(self, batch: Batch) -> Outputs:
        mask = batch[MASK].bool()
        found = self._ask(batch, mask)
        if self._class.endswith("ForSequenceClassification"):
            return {"logits": found["logits"].reshape(len(mask), -1)}
        key = "hidden" if self._class.endswith("Model") else "logits"
        rows = found[key].reshape(int(mask.sum()), -1)
        padded = np.zeros((*mask.shape, rows.shape[1]), np.float32)
        padded[mask.numpy()] = rows
        if self._class.endswith("ForTokenClassification"):
            return {"logits": padded}
        if self._class.endswith("ForQuestionAnswering"):
            return {"start_logits": padded[..., 0], "end_logits": padded[..., 1]}
        return with_vectors({"last_hidden_state": torch.from_numpy(padded)}, batch, self._settings)

    def _ask(self, batch: Batch, mask: torch.Tensor) -> dict[str, NDArray[Any]]:
        def lists(name: str) -> list[list[int]] | None:
            return [row[real].tolist() for row, real in zip(batch[name], mask, strict=True)] if name in batch else None

        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, and said why
            self._process.stdin.write(json.dumps({"ids": lists(IDS), "types": lists(TYPES)}) + "\n")
            self._process.stdin.flush()
        return {name: np.frombuffer(base64.b64decode(text or ""), np.float32) for name, text in self._read().items()}

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        try:
            answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        except (OSError, ValueError) as error:
            raise XTCError(
                f"Node.js cannot run the module for browsers ({error}). Use Node.js 20 or later."
            ) from error
        if "error" in answer:
            raise XTCError(f"The model does not run in a browser: {answer['error']}")
        return answer
