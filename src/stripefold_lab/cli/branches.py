"""`stripefold branches`: the kinds of branch block as a table."""

from __future__ import annotations


def branches() -> None:
    """List every block that can stand for a convolution while training."""
    from stripefold.branches.registry import describe
    from stripefold_lab.cli.output import print_table

    rows = [(kind.name, kind.branches, ", ".join(kind.options), kind.source) for kind in describe()]
    print_table("Branch blocks", ("name", "branches", "options", "source"), rows)
