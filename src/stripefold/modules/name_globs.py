"""Names chosen by globs, and what to say where none matches."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from stripefold.modules.foldable import Foldable


def matching(names: Iterable[str], glob: str) -> list[str]:
    """The names that a glob matches, in their order."""
    return [name for name in names if fnmatchcase(name, glob)]


def renamed(model: nn.Module, glob: str) -> str:
    """What to say where a glob means a path that putting something into the model has renamed; else an empty string.

    A module of ours has the user's own inside it, as ``base``.
    """
    named = dict(model.named_modules())
    ours = [f"{name}." if name else "" for name, module in named.items() if isinstance(module, Foldable)]
    for name in named:
        before, holder = name, ""
        for prefix in reversed(ours):  # inner ones first
            if before.startswith(f"{prefix}base."):
                before, holder = prefix + before[len(prefix) + len("base.") :], holder or prefix.rstrip(".")
        if before != name and fnmatchcase(before, glob):
            return (
                f" Attaching has renamed {before!r}: it is {name!r} now, a part of {holder!r}, which is one layer as "
                "long as it carries gates. Choose it before attaching, or name the site."
            )
    return ""


def close_names(word: str, known: Iterable[str]) -> str:
    """A question after the known names nearest to a word, with a leading space, or an empty string.

    >>> close_names("layer1.conv", ["layer1.conv1", "head"])
    " Did you mean 'layer1.conv1'?"
    """
    close = get_close_matches(word, list(filter(None, known)), n=3, cutoff=0.4)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
