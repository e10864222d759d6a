"""The interface of a task: all that depends on what a network learns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stripefold.folding.verify import EquivalenceReport
    from stripefold_lab.training.agreement import DetectorReport
    from stripefold_lab.training.config import TrainConfig
    from stripefold_lab.training.data import Data, ImageSpec


@dataclass(frozen=True)
class TaskMeasure:
    """One number that networks are judged by.

    Attributes:
        name: In tables and files.
        word: In sentences.
        share: Whether it lies in 0 to 1, and is shown in per cent.

    >>> TaskMeasure("miou", "mIoU").shown(0.5), TaskMeasure("loss", "loss", share=False).shown(0.5)
    ('50.00%', '0.5000')
    """

    name: str
    word: str
    share: bool = True

    def shown(self, value: float) -> str:
        """A value of it as text."""
        return f"{value:.2%}" if self.share else f"{value:.4f}"


LOSS = TaskMeasure("loss", "loss", share=False)


class Meter(Protocol):
    """What adds up a task's measures over batches, as torchmetrics does."""

    def update(self, outputs: Any, targets: Any) -> None:
        """Add what the network gave for one batch, beside what is right; tensors of both are on one device."""

    def compute(self) -> dict[str, float]:
        """Every measure so far, by its name."""


@dataclass(frozen=True)
class Task(ABC):
    """What a network learns: its data, its network, its loss, its measures, and how two networks are compared.

    Everything else asks a task and names none. Options are checked before torch is loaded, so the module of a task
    imports nothing heavy but in its methods. What is refused is a ``ConfigError``, and data that is missing or of the
    wrong form a ``DataError``.

    Attributes:
        name: As in ``TASKS``.
        measures: What an evaluation gives. The last is the score, a share of which more is better.
        accuracy: Name of the measure that ``EvalResult.accuracy`` gives.
        labels_images: Whether the target of an image is the number of its class.
        example_images: On how many test images a trained and a folded network are compared.
        mixed_rows: Why a layer may see other rows than one per image, as noise inside a network needs; "" if none does.
    """

    name: str
    measures: ClassVar[tuple[TaskMeasure, ...]]
    accuracy: ClassVar[str] = "accuracy"
    labels_images: ClassVar[bool] = False
    example_images: ClassVar[int] = 64
    mixed_rows: ClassVar[str] = ""

    @property
    def score(self) -> TaskMeasure:
        """The measure that decides which epoch was the best."""
        return self.measures[-1]

    @abstractmethod
    def check_options(self, config: TrainConfig) -> None:
        """Refuse options that mean nothing for the task."""

    @abstractmethod
    def check_data(self, data: str) -> None:
        """Refuse data that the task does not read, as ``TrainConfig.data`` names it, or a folder that is not there."""

    def check_names(self, config: TrainConfig) -> None:
        """Refuse a slip in the name of the data or the model, as far as it is seen without torch."""
        self.check_data(config.data)

    @abstractmethod
    def load_data(self, config: TrainConfig) -> Data:
        """The data set, once ``check_data`` has let its name pass."""

    @abstractmethod
    def build(self, config: TrainConfig, spec: ImageSpec) -> nn.Module:
        """The network, without attention."""

    @abstractmethod
    def loss(self, network: nn.Module, batch: Any, config: TrainConfig) -> Tensor:
        """The training loss of one batch, a scalar."""

    def counted(self, batch: Any) -> Tensor | None:
        """How many things the loss of a batch is the mean of, where these are not its images: then None."""
        return None

    @abstractmethod
    def meter(self, classes: int, *, group: Any = None) -> Meter:
        """What adds up the measures, over all processes of a group where there is one."""

    def comparable(self, model: nn.Module) -> nn.Module:
        """What of a network is compared number by number: itself, or a module around it."""
        return model

    def verify(
        self, model: nn.Module, other: nn.Module, images: Tensor, *, raise_on_mismatch: bool = True
    ) -> EquivalenceReport | DetectorReport:
        """Compare two networks in eval mode on images (N, C, H, W); as ``stripefold.verify`` where they differ."""
        from stripefold.folding.verify import verify

        return verify(model, other, images, raise_on_mismatch=raise_on_mismatch)
