"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stripefold.errors import ConfigError
from stripefold_lab.names import ATTENTIONS, check_model_name

if TYPE_CHECKING:
    from torch import nn

    from stripefold_lab.processes import ProcessRank

MODEL_NAME_HELP = "A model's name: resnet20, resnet164, or any of timm or torchvision."
ATTENTION_HELP = f"{', '.join(ATTENTIONS)}, or one of your own (--import); `stripefold attention` describes them."
Attention = Annotated[str, typer.Option(help=ATTENTION_HELP)]
WhereOption = Annotated[
    list[str] | None, typer.Option(help="residual, norm, affine, or a glob of layer names; may be given again.")
]
Classes = Annotated[int, typer.Option(help="Number of classes.")]
Size = Annotated[int | None, typer.Option(help="Side of the images; the model's own where not given.")]
Device = Annotated[str, typer.Option(help="auto (the GPU where there is one), cpu, cuda, cuda:1, mps ...")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")]
DataDir = Annotated[str | None, typer.Option(help="Where torchvision's data sets lie.")]
WeightsOption = Annotated[
    Path | None, typer.Option(help="Weights of a model that is given by name: .safetensors, .pth, .pth.tar, .bin.")
]
WeightsKey = Annotated[
    str | None, typer.Option(help="Which state dict of the weights' file, where it holds several: state_dict_ema ...")
]
Mean = Annotated[
    str | None, typer.Option(help="Per channel, of images in 0..1, as in 0.5,0.5,0.5; the network's own if not given.")
]
Std = Annotated[str | None, typer.Option(help="Deviation per channel, likewise.")]
Crop = Annotated[float | None, typer.Option(help="Share of the resized image that is seen; the network's own.")]
CropMode = Annotated[str | None, typer.Option(help="center, squash or border; the network's own.")]
InterpolationOption = Annotated[str | None, typer.Option(help="bilinear, bicubic, nearest ...; the network's own.")]


def preprocessing_option(
    mean: str | None, std: str | None, crop: float | None, crop_mode: str | None, interpolation: str | None
) -> dict[str, Any]:
    """What was said of the preprocessing on the command line, as ``TrainConfig.preprocessing`` takes it.

    Raises:
        ConfigError: A mean or a deviation is no list of numbers.
    """
    given = {
        "crop": crop,
        "mode": crop_mode,
        "interpolation": interpolation,
        "mean": None if mean is None else _numbers("--mean", mean),
        "std": None if std is None else _numbers("--std", std),
    }
    return {name: value for name, value in given.items() if value is not None}


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} {text!r}: give numbers with commas between, such as 0.5,0.5,0.5") from None


def where_option(where: list[str] | None) -> str | list[str]:
    """Return what `attach` takes for the words given on the command line."""
    if not where:
        return "residual"
    return where[0] if len(where) == 1 else where


def check_device(name: str) -> None:
    """Refuse a device that is not here.

    Raises:
        ConfigError: No such device, or none that torch can use on this machine.
    """
    import torch

    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:  # the second from a torch that is built without CUDA
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"--device {name!r} cannot be used here: {reason}; take auto or cpu") from error


def resolve_device(name: str) -> str:
    """The device that a word names: ``auto`` is the GPU where there is one, else the CPU.

    Raises:
        ConfigError: No such device, or none that torch can use on this machine.
    """
    import torch

    if name != "auto":
        check_device(name)
        return name
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def own_place(device: str) -> tuple[ProcessRank, str]:
    """Where torchrun has put this process, if it did, and the device that is its own: ``cuda`` is one GPU each.

    Raises:
        ConfigError: As for ``resolve_device``.
    """
    from stripefold_lab.processes import ALONE, torchrun_place

    place, device = torchrun_place() or ALONE, resolve_device(device)
    if device == "cuda" and place.world > 1:
        device = f"cuda:{place.local_rank}"
        check_device(device)
    return place, device


def named_model(name: str, *, classes: int, size: int | None, channels: int = 3, pretrained: bool = False) -> nn.Module:
    """Build a model by name, with random weights from a fixed seed unless it is to be pretrained."""
    check_model_name(name)  # before anything heavy is loaded
    import torch

    from stripefold_lab.models import create_model

    torch.manual_seed(0)
    return create_model(name, num_classes=classes, in_channels=channels, image_size=size, pretrained=pretrained)
