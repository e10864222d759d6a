"""`stripefold export`: from a run, a checkpoint or a model's name to a file that other runtimes run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from stripefold.errors import ConfigError, ExportError
from stripefold_lab.cli.arguments import (
    AsJson,
    Crop,
    CropMode,
    DataDir,
    InterpolationOption,
    Mean,
    Std,
    WeightsKey,
    WeightsOption,
    preprocessing_option,
)
from stripefold_lab.cli.deployable import check_names
from stripefold_lab.cli.output import make_folder, print_json, print_line
from stripefold_lab.cli.quantized import quantized
from stripefold_lab.cli.users_code import Imports, OwnModel, chosen_source


def export(
    given_source: Annotated[
        str | None,
        typer.Argument(metavar="SOURCE", help="A run's folder, a checkpoint, a safetensors file, or a model's name."),
    ] = None,
    *,
    own: OwnModel = None,
    output: Annotated[Path, typer.Option("-o", "--out", "--output", help="NAME.safetensors, NAME.pt2 or NAME.onnx.")],
    fuse: Annotated[
        bool | None,
        typer.Option("--fuse/--no-fuse", help="Merge BatchNorms; the default for .pt2 and .onnx.", show_default=False),
    ] = None,
    batch: Annotated[str, typer.Option(help="dynamic, or the one batch size of the file.")] = "dynamic",
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Channels last in memory (.pt2).")] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile ahead of time (.pt2).")] = False,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Run the file beside the eager model.")] = True,
    quantize: Annotated[str | None, typer.Option(help="int8: write NAME.int8.onnx too, and measure it.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Images to check and calibrate on; the run's own if not given.")
    ] = None,
    data_dir: DataDir = None,
    calibrate: Annotated[int, typer.Option(min=1, help="How many images calibrate int8.")] = 256,
    classes: Annotated[int | None, typer.Option(help="Number of classes, for a model's name.")] = None,
    size: Annotated[int | None, typer.Option(help="Side of the images, for a model's name.")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Published weights, for a model's name.")] = False,
    weights: WeightsOption = None,
    weights_key: WeightsKey = None,
    mean: Mean = None,
    std: Std = None,
    crop: Crop = None,
    crop_mode: CropMode = None,
    interpolation: InterpolationOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    as_json: AsJson = False,
    imports: Imports = None,
) -> None:
    """Fold a model, write it as weights, as a program or as ONNX, and check the file before it is there."""
    source = chosen_source(given_source, own, "SOURCE")
    check_names(source, data)
    int8 = _check_words(output, quantize, overwrite=overwrite)
    fixed = None if batch == "dynamic" else _batch(batch)
    from stripefold.export import export_model
    from stripefold.export.batch import resized
    from stripefold_lab.cli.deployable import deployable

    named: dict[str, Any] = {"size": size, "pretrained": pretrained, "weights": weights, "weights_key": weights_key}
    prepared = preprocessing_option(mean, std, crop, crop_mode, interpolation)
    given = deployable(source, data=data, data_dir=data_dir, preprocessing=prepared, classes=classes, **named)
    if int8 is not None:
        given.calibration_images()  # what is missing is told before anything is written
    make_folder(output.parent)
    report = export_model(
        given.model,
        output,
        example=given.example if fixed is None else resized(given.example, fixed),
        fuse=fuse,
        dynamic_batch=fixed is None,
        channels_last=channels_last,
        compiled=compiled,
        check=check,
        inputs=given.images(),
        extra=given.about,
    )
    print_line(f"written: {report}", aside=as_json)
    if given.preparation:
        print_line(f"images: {given.preparation}", aside=as_json)
    if check and given.data is None:
        print_line(f"compared on random numbers only: {given.without} (--data names some)", aside=as_json)
    made = None if int8 is None else quantized(given, output, int8, calibrate)
    if as_json:
        print_json({**asdict(report), "int8": None if made is None else made.to_dict()})
    elif made is not None:
        made.print()


def _check_words(output: Path, quantize: str | None, *, overwrite: bool) -> Path | None:
    """Refuse what cannot be done before anything heavy is loaded; the int8 file's path."""
    int8 = None
    if quantize is not None:
        if quantize != "int8":
            raise ConfigError(f"--quantize {quantize!r} is unknown, choose int8")
        if output.suffix != ".onnx":
            raise ConfigError(f"--quantize int8 runs in onnxruntime: -o {output} must end in .onnx")
        int8 = output.with_suffix(".int8.onnx")
    for path in (output, int8):
        if path is not None and path.exists() and not overwrite:
            raise ExportError(f"{path} exists; choose another --out, or say --overwrite")
    return int8


def _batch(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"--batch {text!r}: give dynamic, or a number from 1 on")
    return int(text)
