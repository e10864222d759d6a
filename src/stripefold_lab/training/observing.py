"""Stripe Observation while a network trains: a Lightning callback, for this package's runs and for any other."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as lightning
import torch
from torch import Tensor, nn

from stripefold import __version__
from stripefold.asr.sites import scales
from stripefold.errors import ConfigError, ObserveError, TraceError, TrainingError
from stripefold.own_files import own_files
from stripefold.stripe.layer import LayerStripes
from stripefold.stripe.observe import observe
from stripefold.stripe.report import StripeReport
from stripefold.stripe.trajectory import Trajectory
from stripefold_lab.training.checkpoint import write_failure
from stripefold_lab.training.fixed import fixed_images

if TYPE_CHECKING:
    from stripefold_lab.training.config import TrainConfig
    from stripefold_lab.training.data import Data

STATIC = "StaticGate"
_BATCH = 128


class StripeCallback(lightning.Callback):
    """Observes a network's gates before training, after every k-th epoch and after the last, on the same images.

    Training goes on as if nobody had looked: modes, BatchNorm statistics, random state and metrics stay as they are,
    and a resumed run keeps the epochs recorded before (they travel in the checkpoint).

    Args:
        images: The images to look at: a tensor (N, ...), or batches that can be gone through again and again, such as a
            list or a DataLoader that does not shuffle.
        every: k.
        keep: How many images' scales are kept until the next epoch for the first differences, the first ones.
        by_class: Also record the share of the variance that the class explains; needs (images, labels) batches.
        folder: Gets ``trajectory.json`` after every record and the report's page at the end; None writes nothing.
        part: Dotted path of the network in the LightningModule, such as "model"; "" is the whole.
        title: The page's heading.

    Raises:
        ConfigError: ``every`` is below 1, the images can be gone through only once, or what draws is not installed.
    """

    def __init__(
        self,
        images: Tensor | Iterable[Any],
        *,
        every: int = 1,
        keep: int = 512,
        by_class: bool = False,
        folder: str | os.PathLike[str] | None = None,
        part: str = "",
        title: str | None = None,
    ) -> None:
        if every < 1:
            raise ConfigError(f"every is {every}; it must be at least 1 epoch")
        if isinstance(images, Iterator):
            raise ConfigError(
                f"images is a {type(images).__name__}, which can be gone through only once; give a tensor, a list of "
                "batches, or a DataLoader"
            )
        if folder is not None:
            check_drawing()
        self.images = images.split(_BATCH) if isinstance(images, Tensor) else images
        self.every = every
        self.keep = keep
        self.by_class = by_class
        self.folder = None if folder is None else Path(folder)
        self.part = part
        self.title = title
        self.trajectory = Trajectory()

    def state_dict(self) -> dict[str, Any]:
        """The epochs recorded so far."""
        return self.trajectory.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the record of the run that is resumed."""
        self.trajectory = Trajectory.from_state_dict(state_dict)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Record the network before its first step, as epoch 0.

        Raises:
            ObserveError: It has no gates, dynamic or static.
            TrainingError: The record cannot be written.
        """
        if trainer.is_global_zero and not self.trajectory.epochs and trainer.current_epoch == 0:
            self._record(0, pl_module)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Record the epoch, if it is its turn.

        Raises:
            ObserveError: The gates cannot be observed; the reason is told.
            TrainingError: The record cannot be written.
        """
        epoch = trainer.current_epoch + 1
        if trainer.is_global_zero and (epoch % self.every == 0 or epoch == trainer.max_epochs):
            self._record(epoch, pl_module)

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write the page: the network as it is now, and what was recorded.

        Raises:
            ObserveError: It cannot be written.
        """
        if trainer.is_global_zero and self.folder is not None:
            from stripefold.html_report.write import write_report

            write_report(self._look(pl_module), self.folder, trajectory=self.trajectory, title=self.title)

    def _look(self, pl_module: lightning.LightningModule) -> StripeReport:
        network = pl_module.get_submodule(self.part)
        return look(network, self.images, keep=self.keep, by_class=self.by_class)

    def _record(self, epoch: int, pl_module: lightning.LightningModule) -> None:
        self.trajectory.add(epoch, self._look(pl_module))
        if self.folder is None:
            return
        path = self.folder / "trajectory.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with own_files(self.folder, [path.name], TrainingError):
                self.trajectory.save(path)
        except OSError as error:
            raise TrainingError(write_failure(path, error)) from error


def check_observable(model: nn.Module, data: Data, config: TrainConfig) -> None:
    """Refuse before anything is written what asks for an observation that cannot be made.

    Args:
        model: The network with its attention.
        data: The data set.
        config: The run's configuration.

    Raises:
        ConfigError: The network has nothing to observe, or what draws is not installed.
    """
    if not config.observe_every:
        return
    check_drawing()
    try:
        look(model, data.spec.example())
    except (ObserveError, TraceError) as error:
        raise ConfigError(
            f"observe_every is {config.observe_every}, but {error} (model {config.model!r}, form {config.form!r}); set "
            "form to dynamic or static, or observe_every to 0"
        ) from error


def run_observer(data: Data, config: TrainConfig, folder: Path) -> StripeCallback | None:
    """The callback of a run that asks for one, or None.

    Args:
        data: The data set.
        config: The run's configuration.
        folder: Where the record goes.
    """
    if not config.observe_every:
        return None
    return StripeCallback(
        fixed_images(data, config.observe_images, config.batch_size),
        every=config.observe_every,
        keep=config.observe_images,
        by_class=config.task == "classification",
        folder=folder,
        part="model",
        title=f"{config.model} with {config.attention} on {config.data.partition(':')[0]}, seed {config.seed}",
    )


def look(network: nn.Module, images: Any, *, keep: int = 256, by_class: bool = False) -> StripeReport:
    """The observation of a network's dynamic gates; without any, the scales of its static ones.

    A static gate gives every image the same scale, so its entry holds one vector, and the report no images.

    Args:
        network: Any model.
        images: For ``observe``.
        keep: Likewise.
        by_class: Likewise.

    Raises:
        ObserveError: It has no gates of either kind.
    """
    report = observe(network, images, keep=keep, by_class=by_class)
    return report if report.layers else _static_report(network, report)


def _static_report(network: nn.Module, empty: StripeReport) -> StripeReport:
    found = scales(network)
    if not found:
        raise ObserveError(f"{empty.model} has no attention to observe, neither dynamic nor static")
    last = max(1, len(found) - 1)
    layers = tuple(
        LayerStripes(
            name=name, kind=STATIC, depth=place / last, channels=len(v), images=1, keep=1, dtype="float32",
            mean=v.double().cpu(), m2=torch.zeros(len(v), dtype=torch.float64), sample=v[None].float().cpu(),
        )
        for place, (name, v) in enumerate(found.items())
    )  # fmt: skip
    versions = {"stripefold": __version__, "torch": str(torch.__version__)}
    return StripeReport(layers=layers, model=empty.model, versions=versions)


def check_drawing() -> None:
    """Refuse at the start what would fail after hours of training.

    Raises:
        ConfigError: A library that draws is missing.
    """
    from stripefold.html_report.write import DRAWING, require

    try:
        require(DRAWING, "the report of an observation")
    except ModuleNotFoundError as error:
        raise ConfigError(str(error)) from error
