"""Object detection: boxes with a class each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stripefold.errors import ConfigError
from stripefold_lab.training.scene_task import SceneTask
from stripefold_lab.training.task import Meter, TaskMeasure

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stripefold_lab.datasets import Scene
    from stripefold_lab.training.agreement import DetectorReport
    from stripefold_lab.training.boxes import Objects
    from stripefold_lab.training.config import TrainConfig
    from stripefold_lab.training.data import ImageSpec


class Detection(SceneTask):
    """The sum of the losses that torchvision's detectors give in training.

    Over several processes each draws its own anchors and proposals for its own images: as good, not the same numbers.
    A detector finds nothing on noise, and two empty lists agree whatever the weights are: its heads are compared.
    """

    measures = (TaskMeasure("map", "mAP"), TaskMeasure("map50", "mAP50"))  # in eval mode these detectors give no loss
    readers = {
        "coco": "stripefold_lab.datasets.coco:open_coco", "voc": "stripefold_lab.datasets.voc:open_voc_boxes"
    }  # fmt: skip
    mixed_rows = "a detector's heads see boxes"

    def check_options(self, config: TrainConfig) -> None:
        """As of every scene; a detector has no targets to smooth."""
        super().check_options(config)
        if config.label_smoothing:
            raise ConfigError(f"label_smoothing is {config.label_smoothing}; a detector has its own losses, set 0")

    def fit(
        self, scene: Scene, image: Tensor, *, config: TrainConfig, size: int, flip: bool, train: bool
    ) -> tuple[Tensor, Objects]:
        """An image in 0..1, which detectors normalise themselves, and its boxes; with masks for Mask R-CNN."""
        from stripefold_lab.training.boxes import fit_boxes

        return fit_boxes(scene, image, size, flip=flip, train=train, masks=config.model.startswith("maskrcnn"))

    def build(self, config: TrainConfig, spec: ImageSpec) -> nn.Module:
        """One of torchvision's networks, or a small one made of its parts."""
        from stripefold_lab.models import create_detector

        return create_detector(
            config.model, num_classes=len(spec.classes), image_size=spec.size, pretrained=config.pretrained,
            options=config.model_options,
        )  # fmt: skip

    def loss(self, network: nn.Module, batch: tuple[Tensor, list[Objects]], config: TrainConfig) -> Tensor:
        """Of images (N, 3, H, W) in 0..1 and the objects on each."""
        import torch

        losses: dict[str, Tensor] = network(*batch)
        return torch.stack(list(losses.values())).sum()

    def meter(self, classes: int, *, group: Any = None) -> Meter:
        """Mean average precision."""
        from stripefold_lab.training.boxes import BoxMeter

        return BoxMeter(group=group)

    def comparable(self, model: nn.Module) -> nn.Module:
        """The heads' outputs before non-maximum suppression."""
        from stripefold_lab.models import HeadOutputs

        return HeadOutputs(model)

    def verify(
        self, model: nn.Module, other: nn.Module, images: Tensor, *, raise_on_mismatch: bool = True
    ) -> DetectorReport:
        """The heads, and then the final detections."""
        from stripefold_lab.training.agreement import verify_detector

        return verify_detector(model, other, images, raise_on_mismatch=raise_on_mismatch)
