"""Callbacks for Lightning: ``StripeCallback`` observes the gates while training, ``FoldOnEnd`` folds at the end."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from stripefold.errors import ConfigError, TrainingError
from stripefold.folding.fold import fold
from stripefold.folding.report import FoldReport
from stripefold.folding.weight_files import save_model
from stripefold.integrations.observing import STATIC, check_drawing, look
from stripefold.modules.example import Example, infer_example
from stripefold.own_files import own_files
from stripefold.stripe.report import StripeReport
from stripefold.stripe.trajectory import Trajectory

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")
_BATCH = 128


def _lightning() -> Any:
    """The package that the program uses: of two that are installed, the one it has imported."""
    for name in sorted(_PACKAGES, key=lambda name: name not in sys.modules):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not name.startswith(str(error.name)):
                raise
    raise ModuleNotFoundError(
        "stripefold.integrations.lightning needs Lightning, which is not installed: pip install lightning",
        name="lightning",
    )


if TYPE_CHECKING:
    from pytorch_lightning import Callback, LightningModule, Trainer
else:
    Callback = _lightning().Callback


class StripeCallback(Callback):
    """Observes a network's gates before training, after every k-th epoch and after the last, on the same images.

    Training goes on as if nobody had looked: modes, BatchNorm statistics, random state and metrics stay as they are,
    and a resumed run keeps the epochs recorded before (they travel in the checkpoint). The trainer's loggers get
    ``stripe_index/GATE`` of every dynamic gate, and ``stripe_change/GATE``, the mean first difference, of every gate.

    Args:
        images: The images to look at: a tensor (N, ...), or batches that can be gone through again and again, such as a
            list or a DataLoader that does not shuffle.
        every: k.
        keep: How many images' scales are kept until the next epoch for the first differences, the first ones.
        by_class: Also record the share of the variance that the class explains; needs (images, labels) batches.
        folder: Gets ``trajectory.json`` after every record and the report's page at the end; None writes nothing.
        part: Dotted path of the network in the LightningModule, such as "model"; "" is the whole, which then needs a
            ``forward`` of its own.
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

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the network before anything is trained.

        Raises:
            ConfigError: ``part`` names no network that can be called.
        """
        network_in(pl_module, self.part, "StripeCallback")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the network before its first step, as epoch 0.

        Raises:
            ObserveError: It has no gates, dynamic or static.
            TrainingError: The record cannot be written.
        """
        if trainer.is_global_zero and not self.trajectory.epochs and trainer.current_epoch == 0:
            self._record(0, trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the epoch, if it is its turn.

        Raises:
            ObserveError: The gates cannot be observed; the reason is told.
            TrainingError: The record cannot be written.
        """
        epoch = trainer.current_epoch + 1
        if trainer.is_global_zero and (epoch % self.every == 0 or epoch == trainer.max_epochs):
            self._record(epoch, trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the page: the network as it is now, and what was recorded.

        Raises:
            ObserveError: It cannot be written.
        """
        if trainer.is_global_zero and self.folder is not None:
            from stripefold.html_report.write import write_report

            write_report(self._look(pl_module), self.folder, trajectory=self.trajectory, title=self.title)

    def _look(self, pl_module: LightningModule) -> StripeReport:
        network = network_in(pl_module, self.part, "StripeCallback")
        return look(network, self.images, keep=self.keep, by_class=self.by_class)

    def _record(self, epoch: int, trainer: Trainer, pl_module: LightningModule) -> None:
        report = self._look(pl_module)
        self.trajectory.add(epoch, report)
        measures = {**_indices(report), **_changes(self.trajectory)}
        for logger in trainer.loggers if measures else ():
            logger.log_metrics(measures, step=trainer.global_step)
        if self.folder is None:
            return
        path = self.folder / "trajectory.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with own_files(self.folder, [path.name], TrainingError):
                self.trajectory.save(path)
        except OSError as error:
            reason = error.strerror or error
            raise TrainingError(f"cannot write {path}: {reason}; make room or choose another folder") from error


def _indices(report: StripeReport) -> dict[str, float]:
    """The stripe index of every gate that could have given each image another vector."""
    return {f"stripe_index/{each.name}": each.stripe_index for each in report.layers if each.kind != STATIC}


def _changes(trajectory: Trajectory) -> dict[str, float]:
    """How far every gate has moved since the epoch recorded before."""
    changes = {name: trajectory.rows(name)[-1].first_difference for name in trajectory.gates}
    return {f"stripe_change/{name}": change for name, change in changes.items() if change is not None}


class FoldOnEnd(Callback):
    """Folds the network when ``fit`` has ended, verifies it against the trained one, and writes it.

    The trained network stays as it is. Of several processes the first one folds.

    Args:
        path: The safetensors file to write, of kind "folded", or "fused" with ``fuse``; what is there is replaced.
        part: Dotted path of the network in the LightningModule, such as "model"; "" is the whole, which then needs a
            ``forward`` of its own.
        fuse: Also merge BatchNorms, as ``stripefold.fold`` does.
        example: What the check runs both networks on, such as a batch of validation images; the module's
            ``example_input_array``, or what the network declares, if None.

    Attributes:
        folded: The folded network after ``fit``, None before.
        report: The ``FoldReport``, likewise.

    Raises:
        ConfigError: The path does not end in ``.safetensors``.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, part: str = "", fuse: bool = False, example: Example | None = None
    ) -> None:
        self.path = Path(path)
        if self.path.suffix != ".safetensors":
            raise ConfigError(f"FoldOnEnd writes a safetensors file: end {self.path} in .safetensors")
        self.part = part
        self.fuse = fuse
        self.example = example
        self.folded: nn.Module | None = None
        self.report: FoldReport | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the network and an example before anything is trained.

        Raises:
            ConfigError: ``part`` names no network that can be called, or there is nothing to check it on.
        """
        network = network_in(pl_module, self.part, "FoldOnEnd")
        if self._example(pl_module, network) is None:
            raise ConfigError(
                f"FoldOnEnd compares the folded {type(network).__name__} with the trained one and has no input for "
                "that: give it example=, or set example_input_array in the LightningModule"
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fold, verify and write.

        Raises:
            FoldError: It cannot be folded; nothing is written.
            VerifyError: The folded network differs; nothing is written.
            CheckpointError: The file cannot be written.
        """
        if not trainer.is_global_zero:
            return
        network = network_in(pl_module, self.part, "FoldOnEnd")
        example = _on_device_of(network, self._example(pl_module, network))
        self.folded, self.report = fold(network, fuse=self.fuse, example=example, check=True, report=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        save_model(self.folded, self.path, kind="fused" if self.fuse else "folded")

    def _example(self, pl_module: LightningModule, network: nn.Module) -> Example | None:
        if self.example is not None:
            return self.example
        own: Example | None = pl_module.example_input_array
        return infer_example(network) if own is None else own


def network_in(pl_module: LightningModule, part: str, who: str) -> nn.Module:
    """The network that a callback is about.

    Args:
        pl_module: The LightningModule.
        part: Dotted path in it.
        who: The callback, for the message.

    Raises:
        ConfigError: There is no such part, or it is the whole and has no ``forward`` of its own.
    """
    children = ", ".join(repr(name) for name, _ in pl_module.named_children()) or "none"
    try:
        network: nn.Module = pl_module.get_submodule(part)
    except AttributeError as error:
        raise ConfigError(
            f"{who}: part={part!r} is no module of {type(pl_module).__name__}; its own are {children}"
        ) from error
    if type(network).forward.__module__.startswith(("lightning.pytorch.core", "pytorch_lightning.core")):
        raise ConfigError(
            f"{who}: {type(network).__name__} has no forward of its own, so it cannot be run on an example: name the "
            f"network in it with part= ({children})"
        )
    return network


def _on_device_of(network: nn.Module, example: Any) -> Any:
    first = next(network.parameters(), None)
    if first is None:
        return example
    if isinstance(example, Tensor):
        return example.to(first.device)
    if isinstance(example, dict):
        return {name: _on_device_of(network, value) for name, value in example.items()}
    if isinstance(example, list | tuple):
        return type(example)(_on_device_of(network, value) for value in example)
    return example
