"""`stripefold observe`: what a network's channel attention does with each image."""

from __future__ import annotations

import itertools
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stripefold.errors import ConfigError, DataError, printable
from stripefold_lab.cli.arguments import (
    Crop,
    CropMode,
    DataDir,
    Device,
    InterpolationOption,
    Mean,
    Size,
    Std,
    WeightsKey,
    WeightsOption,
    own_place,
    preprocessing_option,
)
from stripefold_lab.cli.deployable import Deployable, check_names, deployable, is_path
from stripefold_lab.cli.onnx_files import IMAGE_OPTIONS, Preprocess, is_onnx, observe_onnx, refuse, refuse_preprocess
from stripefold_lab.cli.output import print_line
from stripefold_lab.cli.progress import ProgressLine
from stripefold_lab.cli.users_code import Imports, OwnModel, chosen_source, is_users

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from stripefold.stripe.report import StripeReport
    from stripefold.stripe.trajectory import Trajectory
    from stripefold_lab.processes import ProcessRank

NOISE = "noise"
_CLASSES = 1000  # what pretrained weights know; the gates do not depend on it
_BATCH = 64


def observe(
    source: Annotated[
        str | None,
        typer.Argument(metavar="MODEL_OR_RUN", help="A run's folder, one of its files, an ONNX file, a model's name."),
    ] = None,
    *,
    own: OwnModel = None,
    data: Annotated[
        str | None,
        typer.Option(help="folder:PATH, cifar10, digits ... or noise; for ONNX also FILE.npz, FILE.py:FUNCTION."),
    ] = None,
    data_dir: DataDir = None,
    images: Annotated[int, typer.Option(min=1, help="How many test images, at even distances.")] = 512,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", "--output", help="Write the report here: page, pictures, tables.")
    ] = None,
    paper: Annotated[
        str | None,
        typer.Option(metavar="WIDTH", help="Pictures as PDF and SVG, too: column, text or lncs (a paper's width)."),
    ] = None,
    by_class: Annotated[bool, typer.Option("--by-class", help="How much of what varies is the class?")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Load the named model's published weights.")] = False,
    weights: WeightsOption = None,
    weights_key: WeightsKey = None,
    classes: Annotated[int | None, typer.Option(min=1, help="Classes of a named model with weights: 1000.")] = None,
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
    crop: Crop = None,
    crop_mode: CropMode = None,
    interpolation: InterpolationOption = None,
    device: Device = "auto",
    preprocess: Preprocess = None,
    imports: Imports = None,
) -> None:
    """Find every channel attention of a model and show how much its scales vary from image to image."""
    model = chosen_source(source, own, "MODEL_OR_RUN")
    _check_out(out)
    prepared = preprocessing_option(mean, std, crop, crop_mode, interpolation)
    _check_paper(paper, out)
    if is_onnx(model):
        refuse({"--weights": weights, "--weights-key": weights_key, "--pretrained": pretrained, "--size": size})
        refuse({"--data-dir": data_dir, "--classes": classes, IMAGE_OPTIONS: prepared, "--device": device != "auto"})
        _observe_onnx(Path(model), data, preprocess, images, by_class=by_class, out=out, paper=paper, as_json=as_json)
        return
    refuse_preprocess(preprocess)
    check_names(model, None if data == NOISE else data)
    import stripefold as sf
    from stripefold_lab.processes import joined

    place, device = own_place(device)
    named: dict[str, Any] = {"size": size, "pretrained": pretrained, "weights": weights, "weights_key": weights_key}
    named["classes"] = classes
    if not is_path(model):
        named |= _check_named(model, data, named, place)
    given = deployable(
        model,
        data=None if data == NOISE else data,
        data_dir=data_dir,
        preprocessing=prepared,
        same_classes=False,
        looks=data != NOISE,
        **named,
    )
    batches = _batches(given, images, place, noise=data == NOISE)
    with ProgressLine(told=place.first) as progress:
        options: dict[str, Any] = {"max_images": images, "by_class": by_class}
        options["progress"] = partial(_seen, progress, len(place.part(images)))
        with joined(place) as group:
            report = sf.observe(given.model, batches, device=device, process_group=group, **options)
        if not place.first:
            return
        page = _write(report, out, model, paper, partial(_writing, progress))
    _print(report, page, as_json=as_json, prepared="" if data == NOISE else given.preparation)


def _observe_onnx(
    path: Path,
    data: str | None,
    preprocess: list[str] | None,
    images: int,
    *,
    by_class: bool,
    out: Path | None,
    paper: str | None,
    as_json: bool,
) -> None:
    with ProgressLine() as progress:
        seen = partial(_seen, progress, images)
        report = observe_onnx(path, data, preprocess, images=images, by_class=by_class, progress=seen)
        page = _write(report, out, str(path), paper, partial(_writing, progress))
    _print(report, page, as_json=as_json)


def _print(report: StripeReport, page: Path | None, *, as_json: bool, prepared: str = "") -> None:
    import json

    if prepared:
        print_line(f"images: {prepared}", aside=as_json)
    print_line(json.dumps(_brief(report), allow_nan=False) if as_json else report)
    if page is not None:
        print_line(f"written: {page}", aside=as_json)


def _check_paper(paper: str | None, out: Path | None) -> None:
    from stripefold.html_report.paper_figures import check_width

    if paper is None:
        return
    check_width(paper)
    if out is None:
        raise ConfigError("--paper writes pictures: say where with --out")


def _check_named(name: str, data: str | None, named: dict[str, Any], place: ProcessRank) -> dict[str, Any]:
    """What is added to the options of a model's name: the gates do not depend on how many classes there are.

    Raises:
        ConfigError: It was not said which images the model is to see.
    """
    if data is None:
        raise ConfigError(
            f"say which images {name!r} is to see: --data folder:PATH, cifar10, digits ..., or --data noise, which "
            "only shows where the gates are"
        )
    if is_users(name):
        return {}
    if not named["pretrained"] and named["weights"] is None and place.first:
        _say(f"the weights of {name} are random: its gates are found, but what they show was not learned")
    return {"classes": named["classes"] or _CLASSES, "channels": 3}


def _batches(given: Deployable, images: int, place: ProcessRank, *, noise: bool) -> Iterable[Any]:
    from stripefold_lab.training.fixed import fixed_images

    if noise:
        return _noise(tuple(given.example.shape[1:]), images, place)
    if given.data is None:
        raise DataError(f"{given.without}; name some with --data")
    return fixed_images(given.data, images, _BATCH, place)


def _noise(shape: tuple[int, ...], images: int, place: ProcessRank) -> Iterable[Any]:
    import torch

    generator = torch.Generator().manual_seed(0)
    sizes = [min(_BATCH, images - start) for start in range(0, images, _BATCH)]
    batches = (torch.randn(count, *shape, generator=generator) for count in sizes)
    mine = place.part(len(sizes))
    return itertools.islice(batches, mine.start, mine.stop)


def _check_out(out: Path | None) -> None:
    if out is not None:
        from stripefold.html_report.write import check_report_folder

        check_report_folder(out)


def _write(
    report: StripeReport, out: Path | None, source: str, paper: str | None, progress: Callable[[str], None]
) -> Path | None:
    if out is None:
        return None
    from stripefold.html_report.write import write_report

    place = Path(source).expanduser()
    title = f"Stripes of {place.resolve().name if place.is_dir() else source}"
    drawn: Any = paper
    return write_report(report, out, trajectory=_trajectory(place), title=title, paper=drawn, progress=progress)


def _trajectory(run: Path) -> Trajectory | None:
    """What a run with `--observe-every` recorded."""
    from stripefold.stripe.trajectory import Trajectory

    path = run / "stripes" / "trajectory.json"
    return Trajectory.load(path) if path.is_file() else None


def _brief(report: StripeReport) -> dict[str, Any]:
    """The report without the single images' values, which only the written folder holds."""
    content = report.to_dict()
    return {**content, "layers": [{**layer, "sample": []} for layer in content["layers"]]}


def _say(text: str) -> None:
    print(f"stripefold: {printable(text)}", file=sys.stderr)


def _seen(progress: ProgressLine, images: int, count: int) -> None:
    progress.tell("images", count, images)


def _writing(progress: ProgressLine, name: str) -> None:
    progress.tell(f"writing {name}")
