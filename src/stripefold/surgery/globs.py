"""Names chosen by globs, and what to say where none matches."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase


def matching(names: Iterable[str], glob: str) -> list[str]:
    """The names that a glob matches, in their order."""
    return [name for name in names if fnmatchcase(name, glob)]


def close_names(word: str, known: Iterable[str]) -> str:
    """A question after the known names nearest to a word, with a leading space, or an empty string.

    >>> close_names("layer1.conv", ["layer1.conv1", "head"])
    " Did you mean 'layer1.conv1'?"
    """
    close = get_close_matches(word, list(filter(None, known)), n=3, cutoff=0.4)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
