"""The type of ``where``: which modules of a model are meant."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

Where = str | Sequence[str] | Callable[[str, nn.Module], bool]
"""A keyword or a glob of dotted paths, several of them, or a function of (path, module)."""
