"""Executes the notebooks, in order, and writes them back with their outputs: `python tools/notebooks.py [NAME ...]`.

The test of the notebooks uses the same `execute`. Times and progress bars, which differ between executions, are
removed from the outputs, and warnings of other packages are disabled.
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
# Warnings of other packages: tqdm's about missing widgets, torch's about a missing GPU, and PEFT 0.21's about a
# property that transformers 5.23 has renamed.
WARNINGS = ("IProgress not found", "'pin_memory' argument", "`is_gradient_checkpointing` is deprecated")
QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "PYTHONWARNINGS": ",".join(f"ignore:{message}" for message in WARNINGS),
    "TQDM_DISABLE": "1",
}
# The Trainer's progress, and the report of a newly initialized head.
NOISE = ("<progress", "<IPython.core.display.HTML object>", "LOAD REPORT")
# Unset for the kernel, so that the notebooks run with the default backends.
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
    """Removes times, progress bars and the version of Python from a notebook."""
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
    """The outputs, with consecutive ones of the same stream merged."""
    kept: list[NotebookNode] = []
    for output in outputs:
        if kept and "name" in output and output.name == kept[-1].get("name"):
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def text(output: NotebookNode) -> str:
    """The text and HTML of an output."""
    shown = output.get("data", {})
    return "".join([output.get("text", ""), shown.get("text/html", ""), shown.get("text/plain", "")])


def main(names: list[str]) -> None:
    """Executes the notebooks of these names, by default all, in place."""
    for path in NOTEBOOKS:
        if not names or path.name in names or path.stem in names:
            start = time.perf_counter()
            nbformat.write(execute(read(path), path.parent), path)
            print(f"{path.name}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
