"""The commands under their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from stripefold.cli import attention, bench, demo, evaluate, fold, sites, train, verify

app = typer.Typer(
    name="stripefold",
    help="Attention while it trains, nothing when it runs: attach, train, fold, verify.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo.demo,
    "train": train.train,
    "eval": evaluate.evaluate,
    "sites": sites.sites,
    "fold": fold.fold,
    "verify": verify.verify,
    "bench": bench.bench,
    "attention": attention.attention,
}
for name, command in COMMANDS.items():
    app.command(name)(command)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"stripefold {version('stripefold')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Attention while it trains, nothing when it runs: attach, train, fold, verify."""


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit status; errors are raised, not printed."""
    result = typer.main.get_command(app).main(args=list(arguments), prog_name="stripefold", standalone_mode=False)
    return result if isinstance(result, int) else 0
