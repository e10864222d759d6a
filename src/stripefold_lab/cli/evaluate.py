"""`stripefold eval`: how well does a run, or a network with weights, do on test images?"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stripefold.errors import ConfigError
from stripefold_lab.cli.arguments import (
    AsJson,
    Crop,
    CropMode,
    DataDir,
    InterpolationOption,
    Mean,
    Size,
    Std,
    WeightsKey,
    WeightsOption,
    preprocessing_option,
)
from stripefold_lab.cli.deployable import check_names, deployable, is_path
from stripefold_lab.cli.output import print_json, print_line
from stripefold_lab.cli.users_code import Imports

if TYPE_CHECKING:
    from stripefold_lab.training.results import EvalResult


def evaluate(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_MODEL",
            help="A run's folder, one of its checkpoints, its folded.safetensors, or a model's name.",
        ),
    ],
    *,
    data: Annotated[
        str | None, typer.Option(help="folder:PATH, cifar10, digits ...; the run's own if not given.")
    ] = None,
    data_dir: DataDir = None,
    weights: WeightsOption = None,
    weights_key: WeightsKey = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Load the named model's published weights.")] = False,
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
    crop: Crop = None,
    crop_mode: CropMode = None,
    interpolation: InterpolationOption = None,
    as_json: AsJson = False,
    imports: Imports = None,
) -> None:
    """Measure a model on test images: accuracy and loss, mIoU, or mAP."""
    check_names(source, data)
    preprocessing = preprocessing_option(mean, std, crop, crop_mode, interpolation)
    named = {"size": size, "pretrained": pretrained, "weights": weights, "weights_key": weights_key}
    changes = {"data": data, "data_dir": data_dir, "preprocessing": preprocessing or None}
    result = _of_run(source, changes, named) if is_path(source) else _of_name(source, changes, named)
    if as_json:
        print_json(asdict(result))
        return
    prepared = f", images: {result.preparation}" if result.preparation else ""
    print_line(f"{result.source} ({result.kind}){prepared}")
    print_line(result)


def _of_run(source: str, changes: dict[str, Any], named: dict[str, Any]) -> EvalResult:
    from stripefold_lab.training import evaluate as run_evaluation

    given = [f"--{name.replace('_', '-')}" for name, value in named.items() if value not in (None, False)]
    if given:
        raise ConfigError(f"{source} says itself what it is: leave out {', '.join(given)}")
    return run_evaluation(source, **{name: value for name, value in changes.items() if value is not None})


def _of_name(name: str, changes: dict[str, Any], named: dict[str, Any]) -> EvalResult:
    from stripefold_lab.training.evaluation import evaluate_model

    if named["weights"] is None and not named["pretrained"]:
        raise ConfigError(f"the weights of {name} would be random: give --weights FILE or --pretrained")
    if changes["data"] is None:
        raise ConfigError(f"say which images {name!r} is to see: --data folder:PATH, cifar10, digits ...")
    given = deployable(name, **changes, **named)
    assert given.data is not None  # the images were named
    assert given.config is not None
    return evaluate_model(given.model, given.data, given.config, kind="plain", source=name)
