"""The notebooks run in a fresh folder, and their committed outputs are those of an execution."""

import functools
import re

import pytest

from notebooks import NOTEBOOKS, ROOT, execute, read, text

FIRST = NOTEBOOKS[0]
PLACES = re.compile(r"(?<![\w.~:])/(work|tmp|home|root|usr|opt|var|Users|mnt|data)\b|[A-Z]:\\")


def kinds(cell):
    """The kinds of a cell's outputs: names of streams, and MIME types of other outputs."""
    return [output.get("name") or sorted(output.get("data", {"error": None})) for output in cell.outputs]


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Executes a notebook in a new folder, after the first notebook if it needs that."""
    folder = tmp_path_factory.mktemp("repository")
    (folder / "notebooks").mkdir()
    for name in ("examples", "tests"):
        (folder / name).symlink_to(ROOT / name, target_is_directory=True)

    @functools.cache
    def run(path):
        notebook = read(path)
        if any("Run [1: quickstart]" in cell.source for cell in notebook.cells):
            run(FIRST)
        return execute(notebook, folder / "notebooks")

    return run


def test_there_are_five_numbered_notebooks():
    assert [path.name[:2] for path in NOTEBOOKS] == ["1_", "2_", "3_", "4_", "5_"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_and_gives_what_is_committed(path, executed):
    committed, found = code(read(path)), code(executed(path))
    assert [cell.execution_count for cell in committed] == list(range(1, len(committed) + 1))
    for cell, other in zip(committed, found, strict=True):
        assert kinds(cell) == kinds(other), cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_outputs_have_no_noise(path):
    for cell in code(read(path)):
        assert "stderr" not in kinds(cell), cell.source
        for shown in (cell.source, *map(text, cell.outputs)):
            assert not PLACES.search(shown), shown
    assert any("image/png" in kind for cell in code(read(path)) for kind in kinds(cell))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_resolve(path):
    for cell in read(path).cells:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", cell.source if cell.cell_type == "markdown" else ""):
            assert (path.parent / link).exists(), link
