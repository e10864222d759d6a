"""What `stripefold export` starts from: a run, a file or a model's name, with images where there are some."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stripefold.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stripefold.training import TrainConfig
    from stripefold.training.data import Data, PlainImages

REAL_IMAGES = 4


@dataclass(frozen=True, kw_only=True)
class Deployable:
    """A model to export.

    Attributes:
        model: attached, folded, fused or plain.
        example: noise of the model's input size.
        about: what its file says about where it comes from.
        data: its images, or None.
        config: of the run, or of the data; None without data.
        without: why there are no images.
    """

    model: nn.Module
    example: Any
    about: dict[str, Any]
    data: Data | None = None
    config: TrainConfig | None = None
    without: str = ""

    def images(self) -> Tensor | None:
        """The first test images, (N, C, H, W), or None."""
        import torch

        if self.data is None or not len(self.data.test):
            return None
        return torch.stack([self.data.test[index][0] for index in range(min(REAL_IMAGES, len(self.data.test)))])

    def calibration_images(self) -> PlainImages:
        """All training images as the test images are prepared.

        Raises:
            DataError: There are none, or they are scenes: int8 is judged by the accuracy of a classifier.
        """
        from stripefold.training.data import PlainImages, TrainingImages

        if self.data is None:
            raise DataError(f"int8 needs images to calibrate on, and {self.without}; name them with --data")
        if not isinstance(self.data.train, TrainingImages) or not isinstance(self.data.test, PlainImages):
            raise DataError("int8 is for classifiers: its accuracy is measured. Export without --quantize")
        return PlainImages(self.data.train.images, self.data.test.pixels, self.data.test.normalise)

    def calibration(self, count: int, batch: int = 32) -> Iterator[Tensor]:
        """Training images as the test images are prepared, (N, C, H, W): the same random choice every time.

        Raises:
            DataError: There are no images with a class each.
        """
        import torch

        images = self.calibration_images()
        chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count].tolist()
        for start in range(0, len(chosen), batch):
            yield torch.stack([images[index][0] for index in chosen[start : start + batch]])


def deployable(
    source: str, *, data: str | None, classes: int | None, size: int | None, pretrained: bool = False
) -> Deployable:
    """Read what is to be exported.

    Args:
        source: A run's folder, a checkpoint, a safetensors file of a run, or a model's name.
        data: A data set, as `train` takes it; None is the run's own.
        classes: Of a model that is given by name.
        size: Side of the images, of a model that is given by name.
        pretrained: Whether timm or torchvision load the weights of a model that is given by name.

    Raises:
        CheckpointError: A file that is no run's.
        ConfigError: An unknown model, or options that a run decides itself.
        DataError: The images that were asked for are not there.
    """
    if _is_file(source):
        if classes is not None or size is not None or pretrained:
            raise ConfigError(f"{source} says itself what it is: leave out --classes, --size and --pretrained")
        return _from_run(source, data)
    return _from_name(source, data, classes, size, pretrained=pretrained)


def _is_file(source: str) -> bool:
    path = Path(source).expanduser()
    return path.exists() or path.suffix in (".ckpt", ".safetensors")


def _from_run(source: str, name: str | None) -> Deployable:
    from stripefold.training.loading import load_run

    overrides: dict[str, Any] = {} if name is None else {"data": name}
    run = load_run(source, **overrides)
    data, reason = _images(run.config, asked=name is not None)
    if data is not None and len(data.spec.classes) != len(run.spec.classes):
        raise DataError(
            f"{source} tells {len(run.spec.classes)} classes apart, {run.config.data} has {len(data.spec.classes)}; "
            "give the data it was trained on"
        )
    if data is not None and name is None:
        run.check_data(data)
    return Deployable(
        model=run.model, example=run.spec.example(), about=run.about, data=data, config=run.config, without=reason
    )


def _from_name(
    name: str, data_name: str | None, classes: int | None, size: int | None, *, pretrained: bool
) -> Deployable:
    from stripefold.cli.arguments import named_model
    from stripefold.surgery.example import infer_example

    data, config = None, None
    if data_name is not None:
        from stripefold.training import TrainConfig

        config = TrainConfig(data=data_name, model=name, image_size=size)
        data, _ = _images(config, asked=True)
    channels = 3 if data is None else data.spec.channels
    size = size if data is None else data.spec.size
    classes = classes or (10 if data is None else len(data.spec.classes))
    model = named_model(name, classes=classes, size=size, channels=channels, pretrained=pretrained)
    example = infer_example(model)
    if example is None:
        raise ConfigError(f"{name!r} does not say which images it takes, give --size")
    return Deployable(
        model=model, example=example, about={"model": name}, data=data, config=config, without="a model has none itself"
    )


def _images(config: TrainConfig, *, asked: bool) -> tuple[Data | None, str]:
    """The images a configuration names; where nobody asked for them, their absence is no error."""
    from stripefold.training.data import load_data

    try:
        return load_data(config), ""
    except DataError as error:
        if asked:
            raise
        return None, str(error)
