"""`stripefold fold`: from a run or a checkpoint to the plain backbone's weights."""

from __future__ import annotations


def fold() -> None:
    """Fold."""
