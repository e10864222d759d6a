"""What MkDocs calls while it builds the site (see `mkdocs.yml`)."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from docs_site import tables
from docs_site.navigation import expand, named

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(\]\()(\.\./[^)#\s]+)((?:#[^)\s]*)?\))")
MARK = re.compile(r"<!-- generated: ([a-z-]+) -->")
OUTPUT = re.compile(r"^```text$", re.MULTILINE)
COPIED = (".png", ".svg")


def on_config(config: Any) -> Any:
    """Expand the entries of the navigation that stand for a folder."""
    config.nav = expand(config.nav, Path(config.docs_dir), named(config.nav))
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pictures that pages show from outside of `docs/`."""
    docs = Path(config.docs_dir)
    for page in docs.rglob("*.md"):
        for _, target, _ in LINK.findall(page.read_text(encoding="utf-8")):
            path = (page.parent / target).resolve()
            if is_outside(path, docs) and path.suffix in COPIED and files.get_file_from_path(copied(path)) is None:
                files.append(File.generated(config, copied(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Fill generated parts in, mark outputs, point links that leave `docs/` to copied pictures or the repository."""
    markdown = OUTPUT.sub("``` { .text .output }", markdown)
    markdown = MARK.sub(lambda mark: tables.PARTS[mark[1]](), markdown)
    here = Path(config.docs_dir, page.file.src_uri).parent

    def point(link: re.Match[str]) -> str:
        path = (here / link[2]).resolve()
        if not is_outside(path, Path(config.docs_dir)):
            return link[0]
        if not path.exists():
            raise FileNotFoundError(f"{page.file.src_uri} links to {link[2]}, which is not there")
        if path.suffix in COPIED:
            return link[1] + os.path.relpath(copied(path), Path(page.file.src_uri).parent) + link[3]
        kind = "tree" if path.is_dir() else "blob"
        return f"{link[1]}{config.repo_url}/{kind}/main/{path.relative_to(ROOT)}{link[3]}"

    return LINK.sub(point, markdown)


def is_outside(path: Path, docs: Path) -> bool:
    """Whether a path lies in the repository and not among the pages."""
    return docs.resolve() not in path.parents and ROOT in path.parents


def copied(path: Path) -> str:
    """Where a picture of the repository lies on the site."""
    return f"repository/{path.relative_to(ROOT)}"
