"""`stripefold fold`: from a run or a checkpoint to the plain backbone's weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stripefold.errors import ConfigError, DataError, FoldError
from stripefold_lab.cli.fold_own import fold_own
from stripefold_lab.cli.output import check_weights_file, make_folder, print_line
from stripefold_lab.cli.users_code import Imports, OwnModel, chosen_source, is_users

if TYPE_CHECKING:
    from stripefold.folding.files import FileKind
    from stripefold_lab.training.loading import LoadedRun


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
        fold_own(word, written, weights=weights, size=size, fuse=fuse)
        return
    if weights is not None or size is not None:
        raise ConfigError("--weights and --size are for --model: a run has its own")
    _fold_run(Path(word), written, fuse=fuse)


def _fold_run(source: Path, output: Path | None, *, fuse: bool) -> None:
    """Fold a run and write it; without a file only print the plan."""
    import stripefold as sf
    from stripefold_lab.training.agreement import verify_task
    from stripefold_lab.training.loading import load_run

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
        print_line(sf.plan(run.model, fuse=fuse, example=example))
        return
    # A detector finds nothing on noise, and two empty lists agree whatever the weights are: its heads are compared.
    detects = run.config.task == "detection"
    plain, report = sf.fold(run.model, fuse=fuse, example=example, check=False if detects else "auto", report=True)
    check = verify_task("detection", run.model, plain, example) if detects else None
    kind: FileKind = "fused" if fuse else "attached" if dynamic else "folded"
    make_folder(output.parent)
    sf.save_model(plain, output, kind=kind, extra=run.about)
    print_line(report)
    if dynamic:
        print_line("dynamic attention stays; `stripefold bake` replaces it by constants and says what that costs")
    if check is not None:
        print_line(check)
    print_line(f"written: {output} ({kind})")


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
