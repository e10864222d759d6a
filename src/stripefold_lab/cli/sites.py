"""`stripefold sites`: where gates would go, and why not elsewhere."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from stripefold_lab.cli.arguments import MODEL_NAME_HELP, AsJson, Classes, Size, WhereOption, named_model, where_option
from stripefold_lab.cli.output import print_json, print_line
from stripefold_lab.cli.users_code import Imports, OwnModel, chosen_source, is_users, users_model


def sites(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help=MODEL_NAME_HELP, show_default=False)] = None,
    *,
    own: OwnModel = None,
    where: WhereOption = None,
    classes: Classes = 10,
    size: Size = None,
    imports: Imports = None,
    as_json: AsJson = False,
) -> None:
    """Show the layers that `attach` would choose, and every refused layer with its reason; changes nothing."""
    import stripefold as sf

    source = chosen_source(model, own, "MODEL")
    if is_users(source):
        network, example = users_model(source), None if size is None else _noise(size)
        table = sf.sites(network, where=where_option(where), example=example)
    else:
        network = named_model(source, classes=classes, size=size)  # refuses a name before anything heavy is loaded
        table = sf.sites(network, where=where_option(where))
    if as_json:
        print_json({"chosen": [asdict(row) for row in table], "refused": [asdict(row) for row in table.refused]})
        return
    print_line(table)
    if not table and not where:
        print_line("no residual branch was found: try --where norm or --where affine")


def _noise(size: int) -> object:
    import torch

    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
