"""Files to read: what is no file is refused before it is opened, for reading from a pipe may never end."""

from __future__ import annotations

import os
import stat

from stripefold.errors import StripefoldError

_KINDS = (
    (stat.S_ISFIFO, "a pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check_regular(path: str | os.PathLike[str], error: type[StripefoldError]) -> None:
    """Refuse a pipe, a socket or a device where a file is to be read; what is missing is left to the reader to say.

    Args:
        path: What is about to be opened.
        error: What to raise.

    Raises:
        StripefoldError: ``error``: it is neither a file nor a folder.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # the second for a name with a null byte in it
        return
    kind = next((name for holds, name in _KINDS if holds(mode)), None)
    if kind is not None:
        raise error(f"{os.fspath(path)} is {kind}, not a file; put its content into a file and give that")
