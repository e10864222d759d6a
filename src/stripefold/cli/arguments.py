"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from stripefold.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from stripefold.processes import Place

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model's name: resnet20, resnet164, or any of timm or torchvision.")
]
Attention = Annotated[str, typer.Option(help="Which channel attention; `stripefold attention` lists them.")]
Where = Annotated[
    list[str] | None, typer.Option(help="residual, norm, affine, or a glob of layer names; may be given again.")
]
Classes = Annotated[int, typer.Option(help="Number of classes.")]
Size = Annotated[int | None, typer.Option(help="Side of the images; the model's own where not given.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")]


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
        raise ConfigError(f"--device {name!r} cannot be used here: {reason}; take cpu") from error


def own_place(device: str) -> tuple[Place, str]:
    """Where torchrun has put this process, if it did, and the device that is its own: ``cuda`` is one GPU each."""
    from stripefold.processes import ALONE, torchrun_place

    place = torchrun_place() or ALONE
    return place, f"cuda:{place.local_rank}" if device == "cuda" and place.world > 1 else device


def named_model(name: str, *, classes: int, size: int | None, channels: int = 3, pretrained: bool = False) -> nn.Module:
    """Build a model by name, with random weights from a fixed seed unless it is to be pretrained."""
    import torch

    from stripefold.nets import create_model

    torch.manual_seed(0)
    return create_model(name, num_classes=classes, in_channels=channels, image_size=size, pretrained=pretrained)
