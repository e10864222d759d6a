"""What happens to an image on its way into a network: a part of the network, like its weights."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from stripefold.errors import ConfigError

if TYPE_CHECKING:  # a configuration is read without torch
    from torch import Tensor

    from stripefold_lab.training.transforms import Transform

Mode = Literal["center", "squash", "border"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How images are brought to a network's size and normalised; None is the data set's own way.

    With ``interpolation`` images are resized by Pillow, as timm and torchvision do it, number for number; without, as
    training does it.

    Attributes:
        crop: Share of the resized image's side that the network sees, timm's ``crop_pct``.
        mode: What is resized: the shorter side (``center``), both (``squash``), or the longer one, and the rest is
            padded with the mean (``border``).
        interpolation: How.
        mean: Per channel, of images in 0..1.
        std: Likewise.

    Raises:
        ConfigError: If a value is out of its range, or one is given without the other that it needs.
    """

    crop: float | None = None
    mode: Mode = "center"
    interpolation: Interpolation | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        for name, kinds in (("mode", get_args(Mode)), ("interpolation", (*get_args(Interpolation), None))):
            if getattr(self, name) not in kinds:
                words = ", ".join(str(kind) for kind in kinds if kind)
                raise ConfigError(f"preprocessing has {name} {getattr(self, name)!r}; choose one of {words}")
        if self.crop is not None and not (_is_number(self.crop) and 0 < self.crop <= 1):
            raise ConfigError(f"preprocessing has crop {self.crop!r}; give a share above 0, up to 1")
        for name, lowest in (("mean", -math.inf), ("std", 0.0)):
            self._check_channels(name, lowest)
        if self.mode != "center" and self.interpolation is None:
            raise ConfigError(f"preprocessing has mode {self.mode!r} and no interpolation; give one, such as bicubic")

    def _check_channels(self, name: str, lowest: float) -> None:
        values = getattr(self, name)
        if values is None:
            return
        fits = isinstance(values, (list, tuple)) and len(values) in (1, 3)
        if not fits or not all(_is_number(value) and value > lowest for value in values):
            least = " above 0" if name == "std" else ""
            raise ConfigError(f"preprocessing has {name} {values!r}; give 1 or 3 finite numbers{least}")
        object.__setattr__(self, name, tuple(float(value) for value in values))

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Preprocessing:
        """What a run's ``preprocessing`` says.

        Args:
            values: The fields by name.

        Raises:
            ConfigError: If a key is none of them, or a value is refused.

        >>> Preprocessing.read({"mean": [0.5], "std": [0.5]}).mean
        (0.5,)
        """
        known = [spec.name for spec in dataclasses.fields(cls)]
        unknown = [key for key in values if key not in known]
        if unknown:
            raise ConfigError(f"preprocessing has the key {unknown[0]!r}; give {', '.join(known)}")
        return cls(**values)

    def pixels(self, size: int, channels: int, middle: float) -> Transform:
        """From an image as it lies there to one of the network's size (channels, size, size), in 0..1.

        Args:
            size: Side of the network's images.
            channels: Their channels.
            middle: The data set's own share.
        """
        from stripefold_lab.training import transforms

        share = middle if self.crop is None else self.crop
        convert: list[Transform] = [functools.partial(transforms.to_channels, channels)]
        if self.interpolation is None:
            return transforms.compose(
                [transforms.scale_to_unit, *convert, functools.partial(transforms.fit, size, share=share)]
            )
        from timm.data.transforms_factory import create_transform

        *steps, _ = create_transform(
            (3, size, size),
            is_training=False,
            interpolation=self.interpolation,
            crop_pct=share,
            crop_mode=self.mode,
            mean=_spread(self.mean or (0.5,), 3),  # of the padding
        ).transforms
        return transforms.compose([functools.partial(_as_the_libraries, tuple(steps)), *convert])

    def normalisation(
        self, mean: tuple[float, ...], std: tuple[float, ...], channels: int
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation per channel: averaged or repeated where the channels are other ones.

        Args:
            mean: The data set's own.
            std: Likewise.
            channels: Of the network's images.
        """
        return _spread(self.mean or mean, channels), _spread(self.std or std, channels)

    def described(self, size: int, middle: float, statistics: tuple[tuple[float, ...], tuple[float, ...]]) -> str:
        """All of it in a line, with what the data set adds; the last two words are those of ``--preprocess``.

        Args:
            size: As for ``pixels``.
            middle: As for ``pixels``.
            statistics: What ``normalisation`` gave.
        """
        share = middle if self.crop is None else self.crop
        side = {"center": "shorter side", "squash": "both sides", "border": "longer side"}[self.mode]
        resized = math.floor(size / share) if self.interpolation else round(size / share)
        mean, std = (",".join(f"{value:g}" for value in values) for values in statistics)
        how = self.interpolation or "bilinear"
        return f"{side} to {resized} ({how}), middle {size} x {size}, mean={mean} std={std}"


def _as_the_libraries(steps: tuple[Any, ...], image: Tensor) -> Tensor:
    """Bytes go through Pillow, as timm and torchvision have them; numbers of more bits stay numbers."""
    import torch
    from torchvision.transforms.functional import to_pil_image

    image = image.expand(3, -1, -1)
    prepared: Any = to_pil_image(image) if image.dtype == torch.uint8 else image
    for step in steps:
        prepared = step(prepared)
    return torch.as_tensor(prepared).clamp(0, 1)  # bicubic overshoots; in bytes Pillow has cut that off


def _spread(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
