"""`stripefold bake`: take the dynamic attention out of a trained network, at a known cost."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stripefold.errors import BakeError, ConfigError, printable
from stripefold_lab.cli.arguments import (
    AsJson,
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
from stripefold_lab.cli.bake_report import make_bake_folders, print_made, save_bake_report
from stripefold_lab.cli.deployable import check_names
from stripefold_lab.cli.onnx_files import IMAGE_OPTIONS, Preprocess, bake_onnx, is_onnx, refuse, refuse_preprocess
from stripefold_lab.cli.output import check_weights_file
from stripefold_lab.cli.progress import ProgressLine
from stripefold_lab.cli.users_code import Imports, OwnModel, chosen_source, is_users

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from stripefold.baking.finetune import FineTune
    from stripefold.baking.report import BakeReport
    from stripefold.baking.settle_options import Settle
    from stripefold_lab.cli.deployable import Deployable
    from stripefold_lab.processes import ProcessRank

_CHOSEN = "The gates were chosen by the same test images that the figures are of."
_RECALIBRATE: dict[str, Any] = {"auto": "auto", "yes": True, "no": False}


def bake(
    given_source: Annotated[
        str | None,
        typer.Argument(metavar="RUN_OR_MODEL", help="A run's folder, one of its files, an ONNX file, a model's name."),
    ] = None,
    *,
    own: OwnModel = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--out", "--output", help="The safetensors or ONNX file to write; none: only tell."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="folder:PATH, cifar10, digits ...; for ONNX also FILE.npz, FILE.py:FUNCTION."),
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
    images: Annotated[int, typer.Option(min=2, help="How many training images calibrate.")] = 1024,
    test_images: Annotated[
        int | None, typer.Option(min=1, help="How many test images judge; all if not given.")
    ] = None,
    constants: Annotated[
        str | None,
        typer.Option(help="mean (the default), energy, descriptor; ONNX: least-squares (the default), mean."),
    ] = None,
    to: Annotated[str, typer.Option(help="plain, or asr: trainable gates that start there.")] = "plain",
    where: Annotated[list[str] | None, typer.Option(help="A glob of gate names; may be given again.")] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="Percent of accuracy that may be lost; every gate is baked if not given.")
    ] = None,
    recalibrate: Annotated[str, typer.Option(help="BatchNorm statistics anew: auto, yes or no.")] = "auto",
    finetune_epochs: Annotated[float, typer.Option(min=0, help="Train the constants for so long.")] = 0,
    finetune_rate: Annotated[float, typer.Option(help="The rate at which they train.")] = 0.01,
    settle: Annotated[
        int, typer.Option(min=0, help="Train all weights for so many steps while the gates become constants.")
    ] = 0,
    settle_way: Annotated[str, typer.Option(help="How gates move: first, ramp, staged, penalty or asr.")] = "first",
    settle_rate: Annotated[float, typer.Option(help="The rate at which all weights train.")] = 0.01,
    distill: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the loss that keeps to the network as given; 1: no labels.")
    ] = 0.0,
    checkpoint: Annotated[Path | None, typer.Option(help="File from which an interrupted --settle goes on.")] = None,
    report: Annotated[Path | None, typer.Option(help="Folder for the report: a page, bake.json, bake.csv.")] = None,
    speed: Annotated[bool, typer.Option("--speed", help="Also measure a forward pass before and after.")] = False,
    device: Device = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    preprocess: Preprocess = None,
    as_json: AsJson = False,
    imports: Imports = None,
) -> None:
    """Replace the dynamic attention of a trained model by constants, measure what that costs, and fold them."""
    source = chosen_source(given_source, own, "RUN_OR_MODEL")
    options: dict[str, Any] = {"where": where or None, "max_drop": max_drop, "speed": speed}
    options |= {} if constants is None else {"constants": constants}
    prepared = preprocessing_option(mean, std, crop, crop_mode, interpolation)
    if is_onnx(source):
        refuse({"--weights": weights, "--weights-key": weights_key, "--pretrained": pretrained, "--size": size})
        refuse({"--data-dir": data_dir, "--test-images": test_images, "--device": device != "auto"})
        refuse({"--to": to != "plain", "--recalibrate": recalibrate != "auto", "--finetune-epochs": finetune_epochs})
        refuse({IMAGE_OPTIONS: prepared, "--settle": settle, "--distill": distill, "--checkpoint": checkpoint})
        written: dict[str, Any] = {"output": output, "overwrite": overwrite, "report": report, "as_json": as_json}
        bake_onnx(source, data, preprocess, options={**options, "max_images": images}, **written)
        return
    refuse_preprocess(preprocess)
    check_names(source, data)
    if output is not None:
        check_weights_file(output, overwrite=overwrite)
    if recalibrate not in _RECALIBRATE:
        raise ConfigError(f"--recalibrate {recalibrate!r} is unknown, choose auto, yes or no")
    place, device = own_place(device)
    import stripefold as sf
    from stripefold_lab.processes import joined

    named = {"size": size, "pretrained": pretrained, "weights": weights, "weights_key": weights_key}
    given = _given(source, data=data, data_dir=data_dir, preprocessing=prepared, **named)
    _check_to(given, to, output)
    make_bake_folders(report, output)
    calibration, test = _images(given, images, test_images, place)
    options |= {"to": to, "validation": test, "recalibrate": _RECALIBRATE[recalibrate]}
    options["finetune"] = _finetune(given, finetune_epochs, finetune_rate)
    moved: dict[str, Any] = {"way": settle_way, "lr": settle_rate, "distill": distill, "checkpoint": checkpoint}
    options["settle"] = _settle(given, settle, moved)
    with joined(place) as group:
        progress = ProgressLine(told=place.first)
        tell = progress.tell if place.first else None
        model, made = sf.bake(given.model, calibration, device=device, progress=tell, process_group=group, **options)
    if not place.first:
        return
    progress.clear()
    files = _write(given, model, made, output, (report, source))  # before anything is said: nobody may be left to hear
    print_made(made, [f"images: {given.preparation}"], [*([] if max_drop is None else [_CHOSEN]), *files], as_json)


def _write(
    given: Deployable, model: nn.Module, made: BakeReport, output: Path | None, report: tuple[Path | None, str]
) -> list[str]:
    """Write what was asked for, a report into a folder and with a name; what to say of it."""
    folder, name = report
    written = []
    if folder is not None:
        written.append(save_bake_report(made, folder, name))
    if output is not None:
        written.append(f"written: {output} ({_save(given, model, made, output)})")
    return written


def _given(source: str, *, data: str | None, **options: Any) -> Deployable:
    """The trained model, with its images."""
    from stripefold.asr.gate import StaticGate
    from stripefold_lab.cli.deployable import deployable, is_path
    from stripefold_lab.training.tasks import get_task

    named = not is_path(source)
    if not named and options["weights"] is not None:
        raise ConfigError(f"{source} has weights of its own: leave out --weights")
    if named and not is_users(source) and options["weights"] is None and not options["pretrained"]:
        raise ConfigError(f"the weights of {source} would be random: give --weights FILE or --pretrained")
    given = deployable(source, data=data, **options)
    if given.data is None or given.config is None:
        raise ConfigError(f"baking looks at images: {given.without}; name them with --data")
    if not get_task(given.config.task).labels_images:
        raise ConfigError(
            f"{source} is of the task {given.config.task!r}, which the command has no accuracy for: use bake in Python "
            "with metric="
        )
    if any(isinstance(module, StaticGate) for module in given.model.modules()):
        raise BakeError(f"{source} has trainable gates: fold it first (stripefold fold), then bake what is left")
    _warn_of_other_classes(given, source, data)
    return given


def _warn_of_other_classes(given: Deployable, source: str, data: str | None) -> None:
    """An accuracy on classes that the network never learned says nothing, and chooses gates all the same."""
    trained, found = given.about.get("classes"), given.data.spec.classes if given.data is not None else ()
    if data is not None and trained is not None and list(trained) != list(found):
        told = (
            f"the classes of {data} ({_some(found)}) are not those that {source} was trained on ({_some(trained)}): "
            "the accuracy means little"
        )
        print(f"stripefold: {printable(told)}", file=sys.stderr)


def _some(classes: Sequence[str]) -> str:
    return ", ".join(classes[:3]) + (" ..." if len(classes) > 3 else "")


def _check_to(given: Deployable, to: str, output: Path | None) -> None:
    """A file with trainable gates has to say how it is built again; a run with our own attention can."""
    if to == "asr" and output is not None and given.about.get("config", {}).get("form") != "dynamic":
        raise ConfigError(
            "--to asr writes a file for runs of `stripefold train --form dynamic` only: use bake in Python"
        )


def _images(given: Deployable, images: int, test_images: int | None, place: ProcessRank) -> tuple[Any, Any]:
    """Training images as in training, and test images; of several processes each has its part."""
    from stripefold_lab.training.data import evaluation_loader, load_data, training_loader
    from stripefold_lab.training.loader import KeptBatches

    assert given.config is not None  # _given has seen to it
    changes = {"limit_train": images, **({} if test_images is None else {"limit_test": test_images})}
    config = given.config.with_overrides(**changes)
    data = load_data(config)
    # A budget is kept by some twenty passes over the same test images.
    test = KeptBatches(evaluation_loader(data, config, place, even=False))
    return training_loader(data, config, place, even=False), test


def _finetune(given: Deployable, epochs: float, rate: float) -> FineTune | None:
    import stripefold as sf
    from stripefold_lab.training.data import training_loader

    if not epochs:
        return None
    assert given.data is not None  # _given has seen to it
    assert given.config is not None
    loader = training_loader(given.data, given.config)
    return sf.FineTune(steps=max(1, round(epochs * len(loader))), lr=rate, data=loader)


def _settle(given: Deployable, steps: int, options: dict[str, Any]) -> Settle | None:
    import stripefold as sf
    from stripefold_lab.training.data import training_loader

    if not steps:
        if options["checkpoint"] is not None or options["distill"]:
            raise ConfigError("--checkpoint and --distill belong to --settle STEPS")
        return None
    assert given.data is not None  # _given has seen to it
    assert given.config is not None
    return sf.Settle(steps=steps, data=training_loader(given.data, given.config), seed=given.config.seed, **options)


def _save(given: Deployable, model: nn.Module, made: BakeReport, output: Path) -> str:
    """Write the weights with what is needed to build the model again; returns the file's kind."""
    import stripefold as sf
    from stripefold.baking.rebuild import KEY, structure

    if made.to == "asr":
        if made.kept:
            raise BakeError(f"{made.kept[0].name!r} stays dynamic ({made.kept[0].why}): use bake in Python")
        about = {**given.about, "config": {**given.about["config"], "form": "static"}}
        sf.save_model(model, output, kind="attached", extra=about)
        return "attached"
    sf.save_model(model, output, kind="baked", extra={**_about(given), KEY: structure(made)})
    return "baked"


def _about(given: Deployable) -> dict[str, Any]:
    if "config" in given.about:
        return given.about
    assert given.data is not None  # _given has seen to it
    assert given.config is not None
    spec = given.data.spec
    config = given.config.with_overrides(form="none").to_dict()
    return {"classes": list(spec.classes), "channels": spec.channels, "image_size": spec.size, "config": config}
