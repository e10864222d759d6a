"""`stripefold fold`: from a run or a checkpoint to the plain backbone's weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stripefold.errors import ConfigError, DataError, FoldError
from stripefold_lab.cli.arguments import AsJson
from stripefold_lab.cli.fold_own import fold_own
from stripefold_lab.cli.output import check_weights_file, make_folder, print_line, print_report
from stripefold_lab.cli.users_code import Imports, OwnModel, chosen_source, is_users

if TYPE_CHECKING:
    from stripefold.folding.weight_files import FileKind
    from stripefold_lab.training.loading import LoadedRun

_DYNAMIC_STAYS = "dynamic attention stays; `stripefold bake` replaces it by constants and says what that costs"


def fold(
    given_source: Annotated[
        Path | None, typer.Argument(metavar="SOURCE", help="A run's folder, or one of its checkpoints.")
    ] = None,
    *,
    own: OwnModel = None,
    weights: Annotated[Path | None, typer.Option(help="With --model: weights of the attached model.")] = None,
    size: Annotated[int | None, typer.Option(help="With --model: side of the images that the check runs on.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--out", "--output", help="The safetensors file to write.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would be merged where, and what would stay and why.")
    ] = False,
    fuse: Annotated[bool, typer.Option("--fuse", help="Also merge BatchNorms into the layers around them.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    as_json: AsJson = False,
    imports: Imports = None,
) -> None:
    """Fold the gates of a trained model into its layers and write the plain backbone."""
    word = chosen_source(None if given_source is None else str(given_source), own, "SOURCE")
    if output is None and not dry_run:
        raise ConfigError("fold writes a file: name it with -o, or look first with --dry-run")
    if output is not None:
        check_weights_file(output, overwrite=overwrite)
    written = None if dry_run else output
    if is_users(word):
        fold_own(word, written, weights=weights, size=size, fuse=fuse, as_json=as_json)
        return
    if weights is not None or size is not None:
        raise ConfigError("--weights and --size are for --model: a run has its own")
    _fold_run(Path(word), written, fuse=fuse, as_json=as_json)


def _fold_run(source: Path, output: Path | None, *, fuse: bool, as_json: bool) -> None:
    """Fold a run and write it; without a file only print the plan."""
    import stripefold as sf
    from stripefold_lab.training.loading import load_run
    from stripefold_lab.training.tasks import get_task

    run = load_run(source)
    if source.is_dir():
        _check_data(run)
    if run.kind != "attached":
        raise FoldError(f"{run.path} is of kind {run.kind!r} and has no gates to fold; give the run or its checkpoint")
    dynamic = run.config.keeps_attention
    if dynamic and fuse:
        raise FoldError(f"{run.path} keeps its dynamic attention, whose file cannot be fused; leave out --fuse")
    example = run.spec.example()
    if output is None:
        print_report(sf.plan(run.model, fuse=fuse, example=example), as_json)
        return
    task = get_task(run.config.task)
    own = task.comparable(run.model) is not run.model
    plain, report = sf.fold(run.model, fuse=fuse, example=example, check=False if own else "auto", report=True)
    check = task.verify(run.model, plain, example) if own else None
    kind: FileKind = "fused" if fuse else "attached" if dynamic else "folded"
    make_folder(output.parent)
    sf.save_model(plain, output, kind=kind, extra=run.about)
    print_report(report, as_json)
    if dynamic:
        print_line(_DYNAMIC_STAYS, aside=as_json)
    if check is not None:
        print_line(check, aside=as_json)
    print_line(f"written: {output} ({kind})", aside=as_json)


def _check_data(run: LoadedRun) -> None:
    """Refuse a run whose data has changed: what is written would name classes that are no more. Missing data is none.

    Raises:
        DataError: Naming the first difference, with both values.
    """
    try:
        data = run.open_data()
    except (ConfigError, DataError):
        return
    try:
        run.check_data(data)
    except DataError as error:
        raise DataError(f"{error}, or fold without a look at it by naming the file {run.path}") from error
