"""Types of the functions that users give as ``progress``."""

from __future__ import annotations

from collections.abc import Callable

StepProgress = Callable[[str, int, int], None]
"""Called with what is going on, the steps done, and of how many; 0 where that is not known."""
ImageProgress = Callable[[int], None]
"""Called with the number of images seen so far."""
