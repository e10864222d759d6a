"""The commands under their names."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from stripefold_lab.cli import (
    attention,
    bake,
    bench,
    branches,
    demo,
    evaluate,
    export,
    fold,
    observe,
    recipes,
    robustness,
    sites,
    sweep,
    train,
    verify,
)
from stripefold_lab.cli.entry import CommandInterruptedError
from stripefold_lab.cli.examples import examples
from stripefold_lab.users_files import import_files


def _prepared(command: Callable[..., None]) -> Callable[..., None]:
    """Run the files of ``--import`` first, and keep what a command says about an interrupt, which the parser drops."""

    @functools.wraps(command)
    def wrapped(*words: Any, **options: Any) -> None:
        try:
            import_files(options.get("imports") or ())
            command(*words, **options)
        except KeyboardInterrupt as error:
            raise CommandInterruptedError(str(error)) from error

    return wrapped


_HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    name="stripefold",
    help="Attention while it trains, nothing when it runs: attach, train, fold, verify.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings=_HELP,
    rich_markup_mode=None,  # rich would double the time that --help takes
)
COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo.demo,
    "train": train.train,
    "sweep": sweep.sweep,
    "eval": evaluate.evaluate,
    "sites": sites.sites,
    "fold": fold.fold,
    "verify": verify.verify,
    "observe": observe.observe,
    "bake": bake.bake,
    "robustness": robustness.robustness,
    "export": export.export,
    "bench": bench.bench,
    "attention": attention.attention,
    "branches": branches.branches,
    "recipes": recipes.recipes,
}
for name, command in COMMANDS.items():
    app.command(name, epilog=examples(name), context_settings=_HELP)(_prepared(command))


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"stripefold {version('stripefold')}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Attention while it trains, nothing when it runs: attach, train, fold, verify."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit status; errors are raised, not printed."""
    result = typer.main.get_command(app).main(args=list(arguments), prog_name="stripefold", standalone_mode=False)
    return result if isinstance(result, int) else 0
