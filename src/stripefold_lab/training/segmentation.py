"""Semantic segmentation: one class per pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stripefold_lab.training.scene_task import SceneTask
from stripefold_lab.training.task import LOSS, Meter, TaskMeasure

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stripefold_lab.datasets import Scene
    from stripefold_lab.training.config import TrainConfig
    from stripefold_lab.training.data import ImageSpec

AUXILIARY = 0.5
"""Weight of the auxiliary head's loss, as in torchvision's reference recipe."""


class Segmentation(SceneTask):
    """Cross-entropy over pixels; the network gives ``{"out": logits}`` (N, classes, H, W), and maybe ``aux``."""

    measures = (LOSS, TaskMeasure("pixel_accuracy", "pixel accuracy"), TaskMeasure("miou", "mIoU"))
    accuracy = "pixel_accuracy"
    readers = {
        "voc": "stripefold_lab.datasets.voc:open_voc_maps", "ade20k": "stripefold_lab.datasets.ade20k:open_ade20k"
    }  # fmt: skip

    def fit(
        self, scene: Scene, image: Tensor, *, config: TrainConfig, size: int, flip: bool, train: bool
    ) -> tuple[Tensor, Tensor]:
        """A normalised image and its class map."""
        from stripefold_lab.training.class_maps import fit_class_map

        return fit_class_map(scene, image, size, flip=flip)

    def build(self, config: TrainConfig, spec: ImageSpec) -> nn.Module:
        """One of torchvision's networks, or a small one made of its parts."""
        from stripefold_lab.models import create_segmenter

        return create_segmenter(
            config.model, num_classes=len(spec.classes), pretrained=config.pretrained, options=config.model_options
        )

    def loss(self, network: nn.Module, batch: tuple[Tensor, Tensor], config: TrainConfig) -> Tensor:
        """Mean over the pixels that count, of images (N, 3, H, W) and class maps (N, H, W)."""
        from stripefold_lab.training.class_maps import pixel_loss

        images, classes = batch
        outputs: dict[str, Tensor] = network(images)
        smoothing = config.label_smoothing
        main = pixel_loss(outputs["out"], classes, smoothing)
        return main if "aux" not in outputs else main + AUXILIARY * pixel_loss(outputs["aux"], classes, smoothing)

    def counted(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The pixels that count."""
        from stripefold_lab.training.class_maps import counting

        return counting(batch[1]).sum()

    def meter(self, classes: int, *, group: Any = None) -> Meter:
        """Mean intersection over union, accuracy and loss of the pixels."""
        from stripefold_lab.training.class_maps import PixelMeter

        return PixelMeter(classes, group=group)
