"""`stripefold sites`: where gates would go, and why not elsewhere."""

from __future__ import annotations

from stripefold_lab.cli.arguments import Classes, ModelName, Size, Where, named_model, where_option
from stripefold_lab.cli.output import print_line


def sites(model: ModelName, *, where: Where = None, classes: Classes = 10, size: Size = None) -> None:
    """Show the layers that `attach` would choose, and every refused layer with its reason; changes nothing."""
    import stripefold as sf

    table = sf.sites(named_model(model, classes=classes, size=size), where=where_option(where))
    print_line(table)
    if not table and not where:
        print_line("no residual branch was found: try --where norm or --where affine")
