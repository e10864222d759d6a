"""How far a command is, on standard error, and about how long it still takes."""

from __future__ import annotations

import sys
import time

from stripefold.errors import printable
from stripefold_lab.stdout import time_left

LINE_EVERY = 10.0
"""Seconds between two lines where standard error is no terminal."""


class ProgressLine:
    """One line that is written over on a terminal; elsewhere a line now and then.

    Args:
        told: Whether anything is said: of several processes the first one speaks.
    """

    def __init__(self, *, told: bool = True) -> None:
        self._told = told
        self._live = told and sys.stderr.isatty()
        self._last_line = time.monotonic()
        self._stage = ("", 0, 0)
        self._started = time.monotonic()

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def tell(self, what: str, done: int = 0, total: int = 0, *, same: str | None = None) -> None:
        """Say how far it is.

        Args:
            what: Is done now.
            done: How much of it.
            total: All of it; 0 where that is not known.
            same: What stays the same while the clock runs; ``what`` if None.
        """
        stage, before, of = self._stage
        key = what if same is None else same
        if (stage, of) != (key, total) or done < before:
            self._started = time.monotonic()
        self._stage = (key, done, total)
        elapsed = time.monotonic() - self._started
        words = [printable(what)] + ([f"{done} of {total}"] if total else [f"{done}"] if done else [])
        if total > done > 0 and elapsed > 1:
            words.append(time_left(elapsed * (total - done) / done))
        self._say(", ".join(words))

    def clear(self) -> None:
        """Leave the terminal's line empty for what is printed next."""
        if self._live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _say(self, text: str) -> None:
        if self._live:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        elif self._told and time.monotonic() - self._last_line > LINE_EVERY:
            self._last_line = time.monotonic()
            print(text, file=sys.stderr, flush=True)
