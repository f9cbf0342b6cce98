"""Hooks of MkDocs that add every file of the repository that the site's pages link to.

The pages can also be read in the repository, so they link to files outside docs/ by relative paths. Each such file is
copied to `repository/` of the site, Markdown files as pages, and the links are rewritten. A link to a missing file is
left unchanged and fails the strict build.
"""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")  # in the navigation
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)\s#]+)(#[^)\s]*)?(?=\))")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """The files of the site, with those outside docs/ that its pages link to, directly or through one another."""
    docs = Path(config.docs_dir)
    waiting = [docs / file.src_uri for file in files.documentation_pages()] + [ROOT / name for name in PAGES]
    seen: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        if docs not in path.parents:
            files.append(File.generated(config, _uri(path, docs), abs_src_path=str(path)))
        if path.suffix == ".md":
            linked = (_target(path, match[1]) for match in LINK.finditer(path.read_text(encoding="utf-8")))
            waiting += [target for target in linked if target.is_file() and docs not in target.parents]
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """The text of a page, with its links rewritten for the site."""
    docs, path = Path(config.docs_dir), Path(page.file.abs_src_path or "")

    def rewritten(match: re.Match[str]) -> str:
        target = _target(path, match[1])
        if not target.is_file():
            return match[0]
        return os.path.relpath(_uri(target, docs), os.path.dirname(page.file.src_uri)) + (match[2] or "")

    return LINK.sub(rewritten, markdown)


def _target(page: Path, link: str) -> Path:
    """The file that a link of a page points to."""
    return Path(os.path.normpath(page.parent / link))


def _uri(path: Path, docs: Path) -> str:
    """The path of a file in the site's sources."""
    if docs in path.parents:
        return path.relative_to(docs).as_posix()
    return f"repository/{path.relative_to(ROOT).as_posix()}"
