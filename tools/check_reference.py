"""Checks that every public name of the package has a docstring and is in the API reference.

python tools/check_reference.py
"""

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "reference"


def shown() -> set[str]:
    """The paths that the pages of the reference document."""
    pages = [page.read_text(encoding="utf-8") for page in PAGES.glob("*.md")]
    return {name for page in pages for name in re.findall(r"^::: (\S+)$", page, flags=re.M)}


def faults() -> list[str]:
    """One line for each public name that is missing in the reference or has no docstring; does not import hf_xtc."""
    import griffe

    package = griffe.load("hf_xtc", search_paths=[str(ROOT)])
    public = [str(name) for name in package.exports or []]
    missing = [f"{name}: not in docs/reference" for name in public if f"hf_xtc.{name}" not in shown()]
    paths = sorted({*shown(), *(f"hf_xtc.{name}" for name in public)})
    return missing + [f"{path}: no docstring" for path in paths if not _documented(package, path)]


def _documented(package: Any, path: str) -> bool:
    try:
        found = package[path.removeprefix("hf_xtc.")]
    except KeyError:  # a lazily imported name that is missing under TYPE_CHECKING
        return False
    return bool((found.final_target if found.is_alias else found).has_docstring)


def main() -> int:
    """Prints the faults; returns 1 if there are any."""
    found = faults()
    print(*found, sep="\n", end="\n" if found else "")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
