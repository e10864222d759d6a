"""One process at a time works in a folder.

The lock is the operating system's: one that was killed holds nothing, and nothing has to be cleaned up after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stripefold.errors import ConfigError


@contextmanager
def locked(file: Path, refusal: str, *, wait: float = 0.0, keep: bool = True) -> Iterator[None]:
    """Hold a lock file.

    Args:
        file: The lock file, in a folder that exists.
        refusal: What to say where another process holds it.
        wait: Seconds that it is waited for.
        keep: Whether the file stays when the lock is let go.

    Raises:
        ConfigError: ``refusal``.
        OSError: The file cannot be made.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(file, timeout=wait)
    try:
        lock.acquire()
    except Timeout as error:
        raise ConfigError(refusal) from error
    try:
        yield
    finally:
        if not keep:
            # While it is held, so that nobody else can hold it: who comes next makes a new one.
            with suppress(OSError):
                file.unlink()
        lock.release()
