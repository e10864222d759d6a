"""How the networks of timm and torchvision want their images prepared, as they themselves declare it."""

from __future__ import annotations

from typing import Any

from stripefold_lab.models.external import _load, timm_has, torchvision_has
from stripefold_lab.names import OWN_MODELS


def declared_preprocessing(name: str) -> dict[str, Any]:
    """The size of a network's images, and what ``TrainConfig.preprocessing`` takes; empty where nothing is declared.

    timm declares it in ``pretrained_cfg``, torchvision in the transforms of its default weights; our own networks
    have no published weights, so nothing is declared.

    Args:
        name: As for ``create_model``.

    Returns:
        ``size`` (a list of height and width where these differ), ``crop``, ``mode``, ``interpolation``, ``mean``,
        ``std``.

    >>> declared_preprocessing("resnet20")
    {}
    """
    library, _, rest = name.partition("/")
    if name in OWN_MODELS:
        return {}
    if (library == "timm" and timm_has(rest)) or timm_has(name):
        return _of_timm(rest if library == "timm" else name)
    if (library == "torchvision" and torchvision_has(rest)) or torchvision_has(name):
        return _of_torchvision(rest if library == "torchvision" else name)
    return {}


def published_classes(name: str) -> int | None:
    """How many classes the published weights of a timm model tell apart; None where nothing is known of it.

    Args:
        name: As for ``create_model``.
    """
    bare = name.removeprefix("timm/")
    declared = _load("timm").get_pretrained_cfg(bare) if name not in OWN_MODELS and timm_has(bare) else None
    return None if declared is None else int(declared.num_classes)


def _of_timm(name: str) -> dict[str, Any]:
    declared = _load("timm").get_pretrained_cfg(name)
    if declared is None:
        return {}
    found = _load("timm.data").resolve_data_config(pretrained_cfg=declared.to_dict())
    _, height, width = found["input_size"]
    return {
        "size": height if height == width else [height, width],
        "crop": found["crop_pct"],
        "mode": found["crop_mode"],
        "interpolation": found["interpolation"],
        "mean": list(found["mean"]),
        "std": list(found["std"]),
    }


def _of_torchvision(name: str) -> dict[str, Any]:
    weights = list(_load("torchvision.models").get_model_weights(name))
    if not weights:
        return {}
    found = type(weights[0]).DEFAULT.transforms()  # what ``create_model`` loads
    size, shorter = found.crop_size[0], found.resize_size[0]
    return {
        "size": size,
        "crop": size / shorter,
        "mode": "center",
        "interpolation": found.interpolation.value,
        "mean": list(found.mean),
        "std": list(found.std),
    }
