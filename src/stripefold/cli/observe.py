"""`stripefold observe`: what a network's channel attention does with each image."""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stripefold.cli.arguments import Device, Size, check_device, own_place
from stripefold.cli.onnx_files import Preprocess, is_onnx, observe_onnx, refuse, refuse_preprocess
from stripefold.cli.output import print_line, tell_written
from stripefold.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import nn

    from stripefold.processes import Place
    from stripefold.stripe.report import StripeReport
    from stripefold.stripe.trajectory import Trajectory

NOISE = "noise"
_CLASSES = 1000  # what pretrained weights know; the gates do not depend on it
_BATCH = 64
_LINE_EVERY = 10.0  # seconds, where standard error is no terminal


def observe(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL_OR_RUN", help="A run's folder, one of its files, an ONNX file, a model's name."),
    ],
    *,
    data: Annotated[
        str | None,
        typer.Option(help="folder:PATH, cifar10, digits ... or noise; for ONNX also FILE.npz, FILE.py:FUNCTION."),
    ] = None,
    data_dir: Annotated[str | None, typer.Option(help="Where torchvision's data sets lie.")] = None,
    images: Annotated[int, typer.Option(min=1, help="How many test images, at even distances.")] = 512,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write the report here: page, pictures, tables.")
    ] = None,
    paper: Annotated[
        str | None,
        typer.Option(metavar="WIDTH", help="Pictures as PDF and SVG, too: column, text or lncs (a paper's width)."),
    ] = None,
    by_class: Annotated[bool, typer.Option("--by-class", help="How much of what varies is the class?")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Load the named model's published weights.")] = False,
    size: Size = None,
    device: Device = "cpu",
    preprocess: Preprocess = None,
) -> None:
    """Find every channel attention of a model and show how much its scales vary from image to image."""
    _check_paper(paper, out)
    if is_onnx(model):
        refuse({"--data-dir": data_dir, "--pretrained": pretrained, "--size": size, "--device": device != "cpu"})
        with _Progress(images, told=True) as progress:
            wanted: dict[str, Any] = {"images": images, "by_class": by_class, "progress": progress.seen}
            report = observe_onnx(Path(model), data, preprocess, **wanted)
            page = None if out is None else _write(report, out, model, paper, progress.writing)
        _print(report, page, as_json=as_json)
        return
    refuse_preprocess(preprocess)
    import stripefold as sf
    from stripefold.processes import joined

    place, device = own_place(device)
    check_device(device)
    changes = {name: value for name, value in (("data", data), ("data_dir", data_dir)) if value is not None}
    if _is_path(model):
        if pretrained or size is not None:
            raise ConfigError("--pretrained and --size are for a model's name; a run has its own weights and size")
        network, batches = _of_run(Path(model), changes, images, place)
    else:
        network, batches = _of_name(model, changes, images, place, size=size, pretrained=pretrained)
    with _Progress(len(place.part(images)), told=place.first) as progress:
        options: dict[str, Any] = {"max_images": images, "by_class": by_class, "progress": progress.seen}
        with joined(place) as group:
            report = sf.observe(network, batches, device=device, process_group=group, **options)
        if not place.first:
            return
        page = None if out is None else _write(report, out, model, paper, progress.writing)
    _print(report, page, as_json=as_json)


def _print(report: StripeReport, page: Path | None, *, as_json: bool) -> None:
    import json

    print_line(json.dumps(_brief(report), allow_nan=False) if as_json else report)
    if page is not None:
        tell_written(page, aside=as_json)


def _check_paper(paper: str | None, out: Path | None) -> None:
    from stripefold.figures.paper import check_width

    if paper is None:
        return
    check_width(paper)
    if out is None:
        raise ConfigError("--paper writes pictures: say where with --out")


def _is_path(word: str) -> bool:
    path = Path(word).expanduser()
    named = word.partition("/")[0] in ("timm", "torchvision") or len(path.parts) == 1
    return path.exists() or path.suffix in (".ckpt", ".safetensors") or not named


def _of_run(path: Path, changes: dict[str, Any], images: int, place: Place) -> tuple[nn.Module, Iterable[Any]]:
    from stripefold.training.data import load_data
    from stripefold.training.loading import load_run

    run = load_run(path, **{name: value for name, value in changes.items() if value != NOISE})
    if changes.get("data") == NOISE:
        return run.model, _noise((run.spec.channels, run.spec.size, run.spec.size), images, place)
    found = load_data(run.config)
    if "data" not in changes:
        run.check_data(found)
    return run.model, _test_images(found, images, place)


def _of_name(
    name: str, changes: dict[str, Any], images: int, place: Place, *, size: int | None, pretrained: bool
) -> tuple[nn.Module, Iterable[Any]]:
    import torch

    from stripefold.nets import create_model
    from stripefold.surgery.example import infer_example
    from stripefold.training.config import TrainConfig
    from stripefold.training.data import load_data

    if "data" not in changes:
        raise ConfigError(
            f"say which images {name!r} is to see: --data folder:PATH, cifar10, digits ..., or --data noise, which "
            "only shows where the gates are"
        )
    torch.manual_seed(0)
    network = create_model(name, num_classes=_CLASSES, image_size=size, pretrained=pretrained)
    if not pretrained and place.first:
        _say(f"the weights of {name} are random: its gates are found, but what they show was not learned")
    declared = infer_example(network)
    shape = (3, size, size) if size is not None else tuple(declared.shape[1:]) if declared is not None else None
    if shape is None:
        raise ConfigError(f"{name!r} does not say which images it takes, give --size")
    if changes["data"] == NOISE:
        return network, _noise(shape, images, place)
    config = TrainConfig(**changes, image_size=shape[-1], channels=shape[0], batch_size=_BATCH)
    return network, _test_images(load_data(config), images, place)


def _test_images(data: Any, images: int, place: Place) -> Iterable[Any]:
    from stripefold.training.fixed import fixed_images

    return fixed_images(data, images, _BATCH, place)


def _noise(shape: tuple[int, ...], images: int, place: Place) -> Iterable[Any]:
    import torch

    generator = torch.Generator().manual_seed(0)
    sizes = [min(_BATCH, images - start) for start in range(0, images, _BATCH)]
    batches = (torch.randn(count, *shape, generator=generator) for count in sizes)
    mine = place.part(len(sizes))
    return itertools.islice(batches, mine.start, mine.stop)


def _write(report: StripeReport, out: Path, source: str, paper: str | None, progress: Callable[[str], None]) -> Path:
    from stripefold.figures.write import write_report

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
    print(f"stripefold: {text}", file=sys.stderr)


class _Progress:
    """One line on standard error that is written over; a line now and then where that is no terminal."""

    def __init__(self, images: int, *, told: bool) -> None:
        self._images = images
        self._told_at_all = told
        self._live = told and sys.stderr.isatty()
        self._told = time.monotonic()

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def seen(self, count: int) -> None:
        """Say how many images were seen."""
        self._tell(f"{count} of {self._images} images")

    def writing(self, name: str) -> None:
        """Say which file comes next."""
        self._tell(f"writing {name}")

    def _tell(self, text: str) -> None:
        if self._live:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        elif self._told_at_all and time.monotonic() - self._told > _LINE_EVERY:
            self._told = time.monotonic()
            print(text, file=sys.stderr, flush=True)
