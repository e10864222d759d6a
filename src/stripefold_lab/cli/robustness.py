"""`stripefold robustness`: how runs keep their score when images or layers are disturbed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from stripefold.errors import ConfigError
from stripefold.own_files import check_own_files
from stripefold_lab.cli.output import make_folder, print_line, print_table
from stripefold_lab.cli.progress import ProgressLine
from stripefold_lab.cli.users_code import Imports


def robustness(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="RUNS", help="Folders of runs, their checkpoints or their folded.safetensors."),
    ],
    *,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", "--output", help="Write here: robustness.json, robustness.csv, curves.png."),
    ] = None,
    kinds: Annotated[
        str | None,
        typer.Option(
            help="Kinds or their families (noise, corruption, inside), separated by commas; all if not given."
        ),
    ] = None,
    severities: Annotated[str | None, typer.Option(help="Of 1 to 5, separated by commas; all if not given.")] = None,
    images: Annotated[int | None, typer.Option(min=1, help="How many test images; the runs' own if not given.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
    imports: Imports = None,
) -> None:
    """Compare trained networks under noise in the image, common corruptions, and noise in their layers."""
    if out is not None:
        import matplotlib  # noqa: F401 - what draws is missed before the work, not after it

        from stripefold_lab.robustness.write import FILES

        make_folder(out)
        check_own_files(out, FILES, ConfigError)
    from stripefold_lab.robustness import measure_robustness, write_robustness

    with ProgressLine() as shown:
        report = measure_robustness(
            sources,
            kinds=None if kinds is None else _words(kinds),
            severities=None if severities is None else [_number(word) for word in _words(severities)],
            images=images,
            seed=seed,
            progress=lambda what, done, total: shown.tell(what, done, total, same="measurements"),
        )
    written = None if out is None else write_robustness(report, out)
    if as_json:
        print_line(json.dumps(report.to_dict(), allow_nan=False))
    else:
        print_table("Robustness", report.columns(), report.rows())
        for note in report.notes():
            print_line(note)
    if written is not None:
        print_line(f"written: {written}", aside=as_json)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _number(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise ConfigError(f"--severities has {word!r}; give numbers of 1 to 5, such as 1,3,5") from None
