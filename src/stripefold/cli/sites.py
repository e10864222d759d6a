"""`stripefold sites`: where gates would go, and why not elsewhere."""

from __future__ import annotations

from stripefold.cli.arguments import Classes, ModelName, Size, Where, named_model, where_option


def sites(model: ModelName, *, where: Where = None, classes: Classes = 10, size: Size = None) -> None:
    """Show the layers that `attach` would choose, and every refused layer with its reason; changes nothing."""
    import stripefold as sf

    print(sf.sites(named_model(model, classes=classes, size=size), where=where_option(where)))
