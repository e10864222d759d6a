"""What `stripefold export` starts from: a run, a file or a model's name, with images where there are some."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stripefold.errors import ConfigError, DataError
from stripefold_lab.cli.users_code import is_users, users_model
from stripefold_lab.names import check_model_name
from stripefold_lab.training.tasks import DEFAULT_TASK, get_task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stripefold_lab.training import TrainConfig
    from stripefold_lab.training.data import Data, EvaluationSamples, ImageSpec

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
        preparation: how images are prepared for it, in words; "" where that is not known.
    """

    model: nn.Module
    example: Any
    about: dict[str, Any]
    data: Data | None = None
    config: TrainConfig | None = None
    without: str = ""
    preparation: str = ""

    def images(self) -> Tensor | None:
        """The first test images, (N, C, H, W), or None."""
        return None if self.data is None or not len(self.data.test) else self.data.test.first(REAL_IMAGES)

    def calibration_images(self) -> EvaluationSamples:
        """All training images as the test images are prepared.

        Raises:
            DataError: There are none, or they are scenes: int8 is judged by the accuracy of a classifier.
        """
        from stripefold_lab.training.data import EvaluationSamples

        if self.data is None or self.config is None:
            raise DataError(f"int8 needs images to calibrate on, and {self.without}; name them with --data")
        if not get_task(self.config.task).labels_images:
            raise DataError("int8 is for classifiers: its accuracy is measured. Export without --quantize")
        return EvaluationSamples(self.data.train.source, self.data.test.prepare)

    def calibration(self, count: int, batch: int = 32) -> Iterator[Tensor]:
        """Training images as the test images are prepared, (N, C, H, W): the same random choice every time.

        Raises:
            DataError: There are no images with a class each.
        """
        import torch

        images = self.calibration_images()
        chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count]
        for part in chosen.split(batch):
            yield torch.stack([images[index][0] for index in part.tolist()])


def deployable(
    source: str,
    *,
    data: str | None,
    data_dir: str | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    same_classes: bool = True,
    looks: bool = True,
    **named: Any,
) -> Deployable:
    """Read what is to be exported.

    Args:
        source: A run's folder, a checkpoint, a safetensors file of a run, or a model's name.
        data: A data set, as `train` takes it; None is the run's own.
        data_dir: Where torchvision's data sets lie.
        preprocessing: What takes the place of the run's, or the network's, own.
        same_classes: Whether the images have to be of as many classes as a run tells apart.
        looks: Whether images are looked at at all; if not, none are opened.
        named: Fields of ``ModelByName``, for a model that is given by name.

    Raises:
        CheckpointError: A file that is no run's, or no weights of the model.
        ConfigError: An unknown model, or options that a run decides itself.
        DataError: The images that were asked for are not there.
    """
    given = {name: value for name, value in named.items() if value not in (None, False)}
    changes: dict[str, Any] = {"data": data, "data_dir": data_dir, "preprocessing": preprocessing or None}
    changes = {name: value for name, value in changes.items() if value is not None}
    if not is_path(source):
        return _from_name(source, changes, ModelByName(**given))
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        advice = "; another size is for Python: stripefold.export.export_model(model, path, example=...)"
        raise ConfigError(f"{source} says itself what it is: leave out {options}{advice if 'size' in given else ''}")
    return _from_run(source, changes, same_classes=same_classes, looks=looks)


@dataclass(frozen=True, kw_only=True)
class ModelByName:
    """What is said of a model that is given by name.

    Attributes:
        classes: How many; the data set's if None, and 10 without one.
        size: Side of the images; the network's own if None.
        channels: Of the images; the data set's if None, and 3 without one.
        pretrained: Whether timm or torchvision load the published weights.
        weights: A file with weights.
        weights_key: Which state dict in it.
    """

    classes: int | None = None
    size: int | None = None
    channels: int | None = None
    pretrained: bool = False
    weights: Path | None = None
    weights_key: str | None = None

    @property
    def random(self) -> bool:
        """Whether the weights are nobody's."""
        return not self.pretrained and self.weights is None


def is_path(word: str) -> bool:
    """Whether a word names a file or a folder, there or not, and no model."""
    if is_users(word):
        return False
    path = Path(word).expanduser()
    named = word.partition("/")[0] in ("timm", "torchvision") or len(path.parts) == 1
    return os.path.exists(path) or path.suffix in (".ckpt", ".safetensors") or not named


def check_names(source: str, data: str | None) -> None:
    """Refuse a slip in a model's or a data set's name before anything heavy is loaded.

    Args:
        source: As for ``deployable``.
        data: Likewise.

    Raises:
        ConfigError: Nobody knows the name.
        DataError: There is no such folder.
    """
    if is_path(source):
        return  # the run says its task
    if not is_users(source):
        check_model_name(source)
    if data is not None:
        get_task(DEFAULT_TASK).check_data(data)


def _from_run(source: str, changes: dict[str, Any], *, same_classes: bool, looks: bool) -> Deployable:
    from stripefold_lab.training.loading import load_run

    run = load_run(source, **changes)
    data, reason = _images(run.open_data, asked="data" in changes) if looks else (None, "none were asked for")
    if same_classes and data is not None and len(data.spec.classes) != len(run.spec.classes):
        raise DataError(
            f"{source} was trained on {len(run.spec.classes)} classes, {run.config.data} has {len(data.spec.classes)}; "
            "give the data it was trained on"
        )
    if data is not None and "data" not in changes:
        run.check_data(data)
    return Deployable(
        model=run.model, example=run.spec.example(), about=run.about, data=data, config=run.config, without=reason,
        preparation="" if data is None else data.preparation,
    )  # fmt: skip


def _from_name(name: str, changes: dict[str, Any], named: ModelByName) -> Deployable:
    from stripefold.folding.weight_files import load_model_
    from stripefold.modules.example import infer_example
    from stripefold_lab.models.preprocessing import declared_preprocessing

    own = is_users(name)
    if own and (named.pretrained or named.classes is not None):
        raise ConfigError(f"{name} makes the network itself: leave out --pretrained and --classes")
    declared = {**({} if own else declared_preprocessing(name)), **changes.get("preprocessing", {})}
    own_size = declared.pop("size", None)
    size = named.size or own_size
    data, config = None, None
    if "data" in changes:
        data, config = _data_for(name, size, {**changes, "preprocessing": declared}, named)
    spec = None if data is None else data.spec
    model = users_model(name) if own else _built(name, spec, named)
    if named.weights is not None:
        load_model_(model, named.weights, key=named.weights_key)
    example: Any = infer_example(model)
    if example is None and spec is not None:
        example = spec.example()
    if example is None and not (own and named.size is not None):
        raise ConfigError(f"{name!r} does not say which images it takes, give --size")
    if named.size is not None:  # most networks take any size, and declare their own
        channels = (named.channels or 3) if example is None else example.shape[1]
        example = _noise((2, channels, named.size, named.size))
    return Deployable(
        model=model,
        example=example,
        about={"model": name, **({"preprocessing": {"size": size, **declared}} if declared else {})},
        data=data,
        config=config,
        without="a model by name brings no images",
        preparation=_preparation(data, size, declared),
    )


def _built(name: str, spec: ImageSpec | None, named: ModelByName) -> nn.Module:
    from stripefold_lab.cli.arguments import named_model

    return named_model(
        name,
        classes=named.classes or (10 if spec is None else len(spec.classes)),
        size=named.size if spec is None else spec.size,
        channels=named.channels or (3 if spec is None else spec.channels),
        pretrained=named.pretrained,
    )


def _noise(shape: tuple[int, ...]) -> Tensor:
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _data_for(name: str, size: Any, changes: dict[str, Any], named: ModelByName) -> tuple[Data, TrainConfig]:
    """The images for a named network, prepared as it declares.

    Raises:
        ConfigError: It takes no square images, or its published weights are for another number of classes.
    """
    from stripefold_lab.models.preprocessing import published_classes
    from stripefold_lab.training import TrainConfig
    from stripefold_lab.training.data import load_data

    if isinstance(size, list):
        raise ConfigError(
            f"{name!r} takes images of {size[0]} x {size[1]}, and the data give square ones: choose a side with --size"
        )
    config = TrainConfig(model=name, image_size=size, channels=named.channels, **changes)
    data = load_data(config)
    found, published = len(data.spec.classes), None if is_users(name) else published_classes(name)
    if named.pretrained and named.classes is None and published not in (None, found):
        raise ConfigError(
            f"the published weights of {name!r} are for {published} classes, {config.data} has {found}: the last "
            "layer would be random; give --weights"
        )
    return data, config


def _preparation(data: Data | None, size: Any, declared: dict[str, Any]) -> str:
    from stripefold_lab.training.preprocessing import Preprocessing

    if data is not None:
        return data.preparation
    settings = Preprocessing.read(declared)
    if not isinstance(size, int) or settings.mean is None or settings.std is None:
        return ""
    return settings.described(size, 1.0, (settings.mean, settings.std))


def _images(load: Callable[[], Data], *, asked: bool) -> tuple[Data | None, str]:
    """The images of a run; where nobody asked for them, their absence is no error."""
    try:
        return load(), ""
    except DataError as error:
        if asked:
            raise
        return None, str(error)
