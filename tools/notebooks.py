"""Executes the notebooks, in order, and writes them back with their outputs: `python tools/notebooks.py [NAME ...]`.

The test of the notebooks executes them with the same `execute`. What differs from one execution to the next without
being a result (times, progress bars) is left out of the outputs, and warnings that come from other packages are off.
"""

import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# What other packages warn of: tqdm of widgets that nothing shows here, torch of a missing GPU, PEFT 0.21 of a property
# that transformers 5.23 has renamed.
WARNINGS = ("IProgress not found", "'pin_memory' argument", "`is_gradient_checkpointing` is deprecated")
QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "PYTHONWARNINGS": ",".join(f"ignore:{message}" for message in WARNINGS),
    "TQDM_DISABLE": "1",
}
# The progress of the Trainer, and the report of a head that is new.
NOISE = ("<progress", "<IPython.core.display.HTML object>", "LOAD REPORT")
# A reader of a notebook runs the backend that is the default.
UNSET = ("XTC_BACKEND", "MPLBACKEND")


def read(path: Path) -> NotebookNode:
    """The notebook in a file."""
    notebook: NotebookNode = nbformat.read(path, as_version=4)
    return notebook


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Executes a notebook in a fresh kernel, offline, and fills in its outputs.

    Args:
        notebook (`NotebookNode`): Changed in place, and returned.
        folder (`Path`): Where the kernel runs; `../examples` and `../tests` must be those of the repository.

    Raises:
        CellExecutionError: if a cell fails.
    """
    environment = {key: value for key, value in os.environ.items() if key not in UNSET}
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        timeout=None,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env={**environment, **QUIET, "HF_HUB_OFFLINE": "1"})
    return tidy(notebook)


def tidy(notebook: NotebookNode) -> NotebookNode:
    """Leaves out of a notebook what is no result: times, progress bars, the version of Python."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
        if cell.cell_type == "code":
            cell.outputs = joined(
                output for output in cell.outputs if not any(noise in text(output) for noise in NOISE)
            )
    return notebook


def joined(outputs: Iterable[NotebookNode]) -> list[NotebookNode]:
    """Outputs, those that follow one another on the same stream as one."""
    kept: list[NotebookNode] = []
    for output in outputs:
        if kept and "name" in output and output.name == kept[-1].get("name"):
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def text(output: NotebookNode) -> str:
    """What an output shows as text or HTML."""
    shown = output.get("data", {})
    return "".join([output.get("text", ""), shown.get("text/html", ""), shown.get("text/plain", "")])


def main(names: list[str]) -> None:
    """Executes the notebooks of these names, by default all, where they are."""
    for path in NOTEBOOKS:
        if not names or path.name in names or path.stem in names:
            start = time.perf_counter()
            nbformat.write(execute(read(path), path.parent), path)
            print(f"{path.name}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
