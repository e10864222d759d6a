"""The command `stripefold`: thin commands over the library.

A command parses, calls one library function and prints. Importing this package is cheap, because `stripefold --help`
must be: each command imports what it needs when it runs. Every error is one line on standard error and a non-zero exit
(2: what was asked for is wrong, 1: it failed on the way, 130: interrupted); `--debug` shows the traceback.
"""

from __future__ import annotations

from stripefold_lab.cli.entry import command, main

__all__ = ["command", "main"]
