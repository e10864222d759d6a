"""``python -m stripefold`` is the command ``stripefold``."""

from __future__ import annotations

from stripefold_lab.cli import command

command()
