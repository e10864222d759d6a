"""`stripefold recipes`: the configurations that come with the package."""

from __future__ import annotations

from stripefold_lab.cli.arguments import AsJson
from stripefold_lab.cli.output import print_json, print_line, print_table

_COLUMNS = ("task", "data", "model", "form", "attention", "branch", "epochs")


def recipes(*, as_json: AsJson = False) -> None:
    """List the recipes that `stripefold train --config` knows."""
    from stripefold_lab.training.recipe import load_config, recipe_names

    found = {name: load_config(name).to_dict() for name in recipe_names()}
    if as_json:
        print_json(found)
        return
    rows = [(name, *("" if values[key] is None else values[key] for key in _COLUMNS)) for name, values in found.items()]
    print_table("Recipes", ("name", *_COLUMNS), rows)
    print_line("`stripefold train --config NAME --print-config` shows everything that one says")
