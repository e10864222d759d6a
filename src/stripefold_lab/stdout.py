"""Standard output that may go away while something works: `stripefold train | head -1`, or a disk that is full."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class LossyOutput:
    """A text stream that loses what cannot be written, and remembers why.

    Args:
        stream: What is written to.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write text, or lose it."""
        try:
            self.stream.write(text)
        except OSError as error:
            self.error = self.error or error
        return len(text)

    def flush(self) -> None:
        """Write out what is buffered, or lose it."""
        try:
            self.stream.flush()
        except OSError as error:
            self.error = self.error or error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def lossy_stdout() -> Iterator[LossyOutput | None]:
    """Let what works go on where what it prints cannot be written: a result is worth more than a line about it.

    Yields:
        The stream that stands for ``sys.stdout`` meanwhile; None where there is none (``>&-``).
    """
    before: Any = sys.stdout
    if before is None:
        yield None
        return
    output = LossyOutput(before)
    sys.stdout = output
    try:
        yield output
    finally:
        output.flush()
        sys.stdout = before


def time_left(seconds: float) -> str:
    """How long something still takes, in words.

    >>> time_left(12.3), time_left(200), time_left(8000)
    ('about 12 s left', 'about 3 min left', 'about 2.2 h left')
    """
    if seconds < 90:
        return f"about {max(1, round(seconds))} s left"
    return f"about {seconds / 60:.0f} min left" if seconds < 5400 else f"about {seconds / 3600:.1f} h left"
