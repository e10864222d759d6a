"""A throw-away task: how many objects there are on an image. CONTRIBUTING.md counts the lines of this file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stripefold.distributed import summed
from stripefold.errors import TrainingError
from stripefold_lab.training.scene_task import SceneTask
from stripefold_lab.training.task import TaskMeasure

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stripefold_lab.datasets import Scene
    from stripefold_lab.training.config import TrainConfig
    from stripefold_lab.training.data import ImageSpec


class Counting(SceneTask):
    """Squared error; the network gives one number per image."""

    measures = (TaskMeasure("error", "mean absolute error", share=False), TaskMeasure("within_one", "within one"))
    readers = {"coco": "stripefold_lab.datasets.coco:open_coco"}

    def fit(
        self, scene: Scene, image: Tensor, *, config: TrainConfig, size: int, flip: bool, train: bool
    ) -> tuple[Tensor, float]:
        """An image in 0..1, and a count."""
        from stripefold_lab.training.scene_data import pad

        image = pad(image, size, 0.0)
        return image.flip(2) if flip else image, float(len(scene.labels))

    def build(self, config: TrainConfig, spec: ImageSpec) -> nn.Module:
        """A classifier of one class."""
        from stripefold_lab.models import create_model

        return create_model(config.model, num_classes=1, image_size=spec.size, options=config.model_options)

    def loss(self, network: nn.Module, batch: tuple[Tensor, Tensor], config: TrainConfig) -> Tensor:
        """Mean squared error."""
        images, counts = batch
        return (network(images)[:, 0] - counts.float()).square().mean()

    def meter(self, classes: int, *, group: Any = None) -> CountMeter:
        """How far off the counts are."""
        return CountMeter(group)


class CountMeter:
    """Mean absolute error, and the share of images whose count is less than one off."""

    def __init__(self, group: Any) -> None:
        self.group = group
        self.off: list[float] = []

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Add one batch."""
        self.off += (outputs[:, 0] - targets).abs().tolist()

    def compute(self) -> dict[str, float]:
        """Both so far."""
        own = (sum(self.off), sum(off < 1 for off in self.off), len(self.off))
        off, near, images = summed(own, self.group, TrainingError)
        return {"error": off / images, "within_one": near / images}
