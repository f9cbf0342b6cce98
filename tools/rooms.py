"""Prints which room of hf_xtc imports which: `python tools/rooms.py`.

A room is a folder of the package, or one of the few modules beside them. It may only import rooms before it in
`ORDER`, which tests/test_rooms.py checks.
"""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parent.parent / "hf_xtc"

# From the lowest layer up.
ORDER = [
    "reader",  # first, since it must import nothing else of the package
    *("errors", "version", "registry", "checks"),
    *("files", "native", "quantization", "backends", "runtime", "recipe", "data", "tasks"),
    *("modeling", "distillation", "compression", "export", "hub", "training", "runs", "cli"),
]
# Imports nothing else of the package: the code that pushed folders include.
ALONE = ["remote_code"]
# These run without transformers.
TORCH_ONLY = ORDER[: ORDER.index("runtime") + 1]


class Import(NamedTuple):
    """An import statement: the importing room, the imported module, and `file:line`."""

    room: str
    module: str
    place: str


def imports(room: str, source: str, place: str) -> Iterator[Import]:
    """Every import of a source, also inside functions; the module of a relative import starts with a dot."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names = ["." * node.level + (node.module or "")]
            if node.module == "hf_xtc" and not node.level:
                names = [f"hf_xtc.{alias.name}" for alias in node.names]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (Import(room, name, f"{place}:{node.lineno}") for name in names)


def package_imports() -> Iterator[Import]:
    """The imports of every module of the package except `__init__` and `__main__`, which may import every room."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).parts
        if parts[0] not in ("__init__.py", "__main__.py"):
            yield from imports(parts[0].removesuffix(".py"), path.read_text(encoding="utf-8"), "/".join(parts))


def arrow(found: Import) -> tuple[str, str] | None:
    """The importing and the imported room; `None` for an import within a room, or of another package."""
    top, _, rest = found.module.partition(".")
    target = rest.partition(".")[0]
    return (found.room, target) if top == "hf_xtc" and target != found.room else None


def forbidden(found: Import) -> str | None:
    """What is wrong with an import; `None` if nothing is."""
    if found.module.startswith("."):
        return f"{found.place}: write an absolute import (from hf_xtc.room.module import name)"
    if found.module.partition(".")[0] == "transformers" and found.room in TORCH_ONLY:
        return f"{found.place}: {found.room} must run without transformers"
    joined = arrow(found)
    below = ORDER[: ORDER.index(found.room)] if found.room in ORDER else []
    if joined is not None and joined[1] not in below:
        return f"{found.place}: {found.room} -> {found.module}"
    return None


def main() -> None:
    """Prints the arrows and what breaks the order."""
    found = list(package_imports())
    arrows = Counter(joined for joined in map(arrow, found) if joined is not None)
    for room in [*ORDER, *ALONE]:
        targets = [target for target in ORDER if (room, target) in arrows]
        print(f"{room:>13} -> {', '.join(targets) or '-'}")
    broken = [message for message in map(forbidden, found) if message is not None]
    print(
        f"{len(arrows)} arrows between {len(ORDER) + len(ALONE)} rooms, {len(broken)} that the order forbids",
        *broken,
        sep="\n",
    )


if __name__ == "__main__":
    main()
