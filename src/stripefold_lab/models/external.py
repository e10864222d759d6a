"""Models of timm and torchvision, imported only when one is asked for."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, cast

from torch import nn

from stripefold.errors import ConfigError


def _load(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise ConfigError(f'{library} is not installed ({error}); run: pip install "stripefold[vision]"') from error


def _load_or_none(module: str) -> ModuleType | None:
    try:
        return _load(module)
    except ConfigError:
        return None


def timm_has(name: str) -> bool:
    """Whether timm is installed and knows ``name`` (a pretrained tag after a dot is allowed)."""
    timm = _load_or_none("timm")
    return timm is not None and bool(timm.is_model(name))


def torchvision_has(name: str) -> bool:
    """Whether torchvision is installed and knows ``name`` as a classifier."""
    return name in _torchvision_classifiers(_load_or_none("torchvision.models"))


def _torchvision_classifiers(models: ModuleType | None) -> list[str]:
    """The classifiers of torchvision; detection, segmentation, video and quantized models are in submodules of it."""
    return [] if models is None else cast("list[str]", models.list_models(module=models))


def external_names() -> tuple[bool, list[str]]:
    """Whether any library is installed, and all names that the installed ones know."""
    timm, models = _load_or_none("timm"), _load_or_none("torchvision.models")
    names = [] if timm is None else list(timm.list_models())
    return timm is not None or models is not None, [*names, *_torchvision_classifiers(models)]


def unknown_among(kind: str, name: str, known: Sequence[str]) -> str:
    """The message for a name that is not among ``known``, with the nearest names that are.

    Args:
        kind: What was looked for.
        name: What was asked for.
        known: The names there are.
    """
    close = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    return f"no {kind} {name!r}; {'close' if close else 'there are'}: {', '.join(close or known)}"


def _unknown(library: str, name: str, known: list[str]) -> ConfigError:
    close = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    hint = f"close: {', '.join(close)}" if close else f"see {library}'s list_models()"
    return ConfigError(f"{library} knows no classifier {name!r}; {hint}")


@contextmanager
def published_weights(name: str) -> Iterator[None]:
    """Around a build that may download weights: what the libraries raise without a network becomes a ConfigError.

    Args:
        name: The model, as it was asked for.
    """
    try:
        yield
    except OSError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"the published weights of {name!r} could not be loaded; run where they can be downloaded, put them into "
            f"the libraries' cache (HF_HOME, TORCH_HOME), or leave out pretrained ({type(error).__name__}: {reason})"
        ) from error


def from_timm(
    name: str, *, num_classes: int, in_channels: int, image_size: int | None, pretrained: bool, options: dict[str, Any]
) -> nn.Module:
    """Build a timm model.

    Args:
        name: timm's name, with or without a pretrained tag.
        num_classes: Width of the last layer.
        in_channels: Channels of the images.
        image_size: Side of the images, handed on to models that are built for one size.
        pretrained: Whether timm loads its weights.
        options: Keyword arguments for the network's constructor.

    Raises:
        ConfigError: If timm is missing, does not know the name, or cannot build the network so.
    """
    timm = _load("timm")
    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    _check_constructor(timm.create_model, options)
    sized: dict[str, Any] = {}
    cfg = timm.get_pretrained_cfg(name)
    if image_size is not None and cfg is not None and cfg.fixed_input_size:
        sized["img_size"] = image_size
    given = {"num_classes": num_classes, "in_chans": in_channels, **sized, **options}
    try:
        with published_weights(name):
            model = timm.create_model(name, pretrained=pretrained, **given)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        # timm passes options through to hundreds of constructors, so the kinds of failure are as many.
        wish = f"{in_channels} channels, image_size {image_size}, pretrained {pretrained}, model_options {options}"
        raise ConfigError(f"timm cannot build {name!r} with {wish}: {error}") from error
    return cast("nn.Module", model)


def _check_constructor(create: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse what is no option of a network but says where weights come from: ``pretrained`` alone decides that.

    Raises:
        ConfigError: There is such an option.
    """
    own = [name for name in options if name in inspect.signature(create).parameters]
    if own:
        raise ConfigError(f"model_options holds {own[0]!r}, which is no option of the network; say pretrained")


def from_torchvision(
    name: str, *, num_classes: int, in_channels: int, image_size: int | None, pretrained: bool, options: dict[str, Any]
) -> nn.Module:
    """Build a torchvision classifier.

    Args:
        name: torchvision's name.
        num_classes: Width of the last layer; published weights come with their own 1000 only.
        in_channels: Must be 3.
        image_size: Side of the images, handed on to the vision transformers.
        pretrained: Whether torchvision loads its default weights.
        options: Keyword arguments for the network's constructor.

    Raises:
        ConfigError: If torchvision is missing, does not know the name, or cannot take the channels, classes or options.
    """
    models = _load("torchvision.models")
    known = _torchvision_classifiers(models)
    if name not in known:
        raise _unknown("torchvision", name, known)
    if in_channels != 3:
        raise ConfigError(
            f"torchvision's {name!r} takes 3 channels, the data has {in_channels}; set channels: 3 or take a timm model"
        )
    if pretrained and num_classes != 1000:
        raise ConfigError(
            f"torchvision's weights for {name!r} have 1000 classes, the data has {num_classes}; take the timm model"
        )
    weights = "DEFAULT" if pretrained else None
    given = {**({} if image_size is None else _size_option(name, image_size)), **options}
    try:
        with published_weights(name):
            return cast("nn.Module", models.get_model(name, weights=weights, num_classes=num_classes, **given))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"torchvision cannot build {name!r} with model_options {options}: {error}") from error


def _size_option(name: str, image_size: int) -> dict[str, int | tuple[int, int]]:
    """Torchvision's two families that are built for one image size, each with its own word for it."""
    if name.startswith("vit_"):
        return {"image_size": image_size}
    if name.startswith("maxvit"):
        return {"input_size": (image_size, image_size)}
    return {}
