"""`stripefold branches`: the kinds of branch block as a table."""

from __future__ import annotations

from stripefold_lab.cli.arguments import AsJson
from stripefold_lab.cli.output import print_json, print_table
from stripefold_lab.cli.users_code import Imports


def branches(*, imports: Imports = None, as_json: AsJson = False) -> None:
    """List every block that can stand for a convolution while training, yours (--import) among them."""
    from stripefold.branches.registry import branch_kinds

    columns = ("name", "branches", "options", "source")
    found = [{column: getattr(kind, column) for column in columns} for kind in branch_kinds()]
    if as_json:
        print_json(found)
        return
    print_table("Branch blocks", columns, [({**row, "options": ", ".join(row["options"])}).values() for row in found])
