"""`stripefold attention`: the zoo as a table."""

from __future__ import annotations

from stripefold_lab.cli.arguments import AsJson
from stripefold_lab.cli.output import print_json, print_table
from stripefold_lab.cli.users_code import Imports


def attention(*, imports: Imports = None, as_json: AsJson = False) -> None:
    """List every attention that a gate can be made of, yours (--import) among them."""
    from stripefold.attention import describe

    columns = ("name", "gates", "squeeze", "excite", "options", "source")
    found = [{column: getattr(row, column) for column in columns} for row in describe()]
    if as_json:
        print_json(found)
        return
    print_table("Attentions", columns, [({**row, "options": ", ".join(row["options"])}).values() for row in found])
