"""The navigation of the site: an entry `folder/*.md` stands for the pages of a folder that nothing else names."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def named(nav: Any) -> set[str]:
    """Return the pages that a navigation names one by one."""
    if isinstance(nav, str):
        return {nav}
    return {page for entry in (nav.values() if isinstance(nav, dict) else nav) for page in named(entry)}


def expand(nav: Any, docs: Path, known: set[str]) -> Any:
    """Return a navigation with each ``folder/*.md`` replaced by the pages that nothing else names."""
    if isinstance(nav, str):
        return nav
    if isinstance(nav, dict):
        return {title: expand(entry, docs, known) for title, entry in nav.items()}
    pages: list[Any] = []
    for entry in nav:
        if isinstance(entry, str) and entry.endswith("/*.md"):
            found = (str(path.relative_to(docs)) for path in sorted(docs.glob(entry)))
            pages += [page for page in found if page not in known]
        else:
            pages.append(expand(entry, docs, known))
    return pages
