"""Example inputs: run a model on one, or infer one from what the model says about itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stripefold.errors import StripefoldError
from stripefold.modules.modules import first_parameter

Example = Any
"""A tensor, a tuple of positional arguments, or a mapping of keyword arguments; or a list of several such inputs."""

_TORCHVISION_SIZES = {"torchvision.models.inception": 299, "torchvision.models.video": 112}


def examples_of(example: Example) -> list[Example]:
    """The inputs that are given: each of a list, or the one."""
    if isinstance(example, list) and not example:
        raise StripefoldError("example=[] holds no input: give a tensor, tuple or dict, or a list of such")
    return example if isinstance(example, list) else [example]


def run_example(model: nn.Module, example: Example) -> Any:
    """``model(example)``, ``model(*example)`` or ``model(**example)``, after the example's kind."""
    if isinstance(example, Mapping):
        return model(**example)
    if isinstance(example, tuple):
        return model(*example)
    return model(example)


def example_to(example: Example, device: torch.device, dtype: torch.dtype | None) -> Example:
    """The example on another device, its floating-point tensors in another dtype (None: as they are).

    Always a copy, since a model may write into what it is given: the example itself, and what the next model gets of
    it, stay as they are. A tensor that is there twice is one in the copy, too.
    """
    return _moved(example, device, dtype, {})


def example_copy(example: Example) -> Example:
    """The example once more, on its devices and in its types: a model may write into what it is given."""
    return _moved(example, None, None, {})


def placements(model: nn.Module, example: Example) -> list[Example]:
    """The example as it may be meant, on the model's device: as it is given, and in the type of its first parameter.

    A model may take bytes, or numbers of another type than its first parameter's; or the example is float32 only
    because that is what torch makes.
    """
    like = first_parameter(model)
    device = torch.device("cpu") if like is None else like.device
    given = example_to(example, device, None)
    if like is None or all(t.dtype == like.dtype for t in _tensors(given) if t.is_floating_point()):
        return [given]
    return [given, example_to(example, device, like.dtype)]


def _tensors(example: Example) -> Iterator[Tensor]:
    if isinstance(example, Tensor):
        yield example
    elif isinstance(example, (Mapping, list, tuple)):
        for value in example.values() if isinstance(example, Mapping) else example:
            yield from _tensors(value)


def _moved(
    example: Example, device: torch.device | None, dtype: torch.dtype | None, known: dict[int, Tensor]
) -> Example:
    if isinstance(example, Tensor):
        if id(example) not in known:
            wanted = dtype if example.is_floating_point() else None
            if example.is_complex() and dtype == torch.float64:
                wanted = torch.complex128
            known[id(example)] = example.to(device, wanted, copy=True)
        return known[id(example)]
    if isinstance(example, Mapping):
        return {key: _moved(value, device, dtype, known) for key, value in example.items()}
    if isinstance(example, (list, tuple)):
        moved = (_moved(value, device, dtype, known) for value in example)
        return type(example)(*moved) if hasattr(example, "_fields") else type(example)(moved)  # a namedtuple
    return example


def infer_example(model: nn.Module, batch: int = 2) -> Example | None:
    """An input of the size the model itself declares, or None where it declares none.

    Known declarations: ``input_size`` (our own networks), timm's ``pretrained_cfg`` / ``default_cfg``, transformers'
    ``dummy_inputs`` and ``config``, torchvision's module of origin.

    Args:
        model: any model.
        batch: number of samples, for images.

    Returns:
        Standard normal images (batch, channels, height, width) from a fixed seed, in the model's dtype and device; or a
        mapping of keyword arguments.
    """
    if callable(getattr(model, "can_generate", None)) or hasattr(model, "dummy_inputs"):
        return _transformers_example(model, batch)
    size = _declared_size(model)
    return None if size is None else _image(model, (batch, *size))


def _declared_size(model: nn.Module) -> tuple[int, ...] | None:
    own = getattr(model, "input_size", None)
    if own is not None and _is_size(own):
        return tuple(own)
    for attribute in ("pretrained_cfg", "default_cfg"):
        declared = getattr(model, attribute, None)
        if isinstance(declared, Mapping) and _is_size(declared.get("input_size")):
            return _timm_size(model, tuple(declared["input_size"]))
    origin = type(model).__module__
    if origin.startswith("torchvision.models.video"):
        return (3, 8, 112, 112)
    if origin.startswith("torchvision.models.detection") or not origin.startswith("torchvision.models"):
        return None
    side = getattr(model, "image_size", None) or _TORCHVISION_SIZES.get(origin, 224)
    return (3, int(side), int(side))


def _is_size(value: object) -> bool:
    return isinstance(value, (tuple, list)) and len(value) in (2, 3, 4) and all(isinstance(n, int) for n in value)


def _timm_size(model: nn.Module, declared: tuple[int, ...]) -> tuple[int, ...]:
    """A timm model built for another size or channel count than its default says so in its patch embedding or stem."""
    embed = getattr(model, "patch_embed", None)
    built = getattr(embed, "img_size", None)
    sides = tuple(built) if isinstance(built, (tuple, list)) and len(built) == 2 else declared[1:]
    channels = getattr(model, "in_chans", None)
    if not isinstance(channels, int):
        weight = next((p for p in model.parameters() if p.dim() == 4), None)
        channels = int(weight.shape[1]) if weight is not None and weight.shape[1] <= 4 else declared[0]
    return (channels, *sides)


def _image(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    like = first_parameter(model)
    device = like.device if like is not None else torch.device("cpu")
    dtype = like.dtype if like is not None else torch.get_default_dtype()
    generator = torch.Generator("cpu").manual_seed(0)
    image = torch.randn(shape, generator=generator, device="cpu")
    return image.to(device, dtype)


def _transformers_example(model: nn.Module, batch: int) -> Example | None:
    config = getattr(model, "config", None)
    main = getattr(model, "main_input_name", "input_ids")
    like = first_parameter(model)
    device = like.device if like is not None else torch.device("cpu")
    vision = getattr(config, "vision_config", config)
    side = getattr(vision, "image_size", None)
    if main == "pixel_values" and isinstance(side, int):
        return {"pixel_values": _image(model, (batch, getattr(vision, "num_channels", 3), side, side))}
    try:
        dummy = dict(model.dummy_inputs)  # type: ignore[arg-type]
    except Exception:  # a model may declare none, or raise in its own way: then nothing is declared
        return None
    vocabulary = getattr(config, "vocab_size", None)
    ids = dummy.get("input_ids")
    if isinstance(ids, Tensor) and isinstance(vocabulary, int):
        dummy["input_ids"] = ids % vocabulary
    return example_to(dummy, device, None)
