"""`stripefold attention`: the zoo as a table."""

from __future__ import annotations


def attention() -> None:
    """List every attention that a gate can be made of."""
    from stripefold.attention import describe
    from stripefold_lab.cli.output import print_table

    rows = [(row.name, row.gates, row.squeeze, row.excite, ", ".join(row.options), row.source) for row in describe()]
    print_table("Attentions", ("name", "gates", "squeeze", "excite", "options", "source"), rows)
