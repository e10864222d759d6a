"""Classification: one class per image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stripefold.errors import ConfigError
from stripefold_lab.names import TORCHVISION_DATA, check_model_name
from stripefold_lab.training.task import LOSS, Meter, Task, TaskMeasure

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stripefold_lab.training.config import TrainConfig
    from stripefold_lab.training.data import Data, ImageSpec


class Classification(Task):
    """Cross-entropy; the network gives logits (N, classes)."""

    measures = (LOSS, TaskMeasure("accuracy", "accuracy"))
    labels_images = True

    def check_options(self, config: TrainConfig) -> None:
        """Every option is of use here."""
        return

    def check_data(self, data: str) -> None:
        """Refuse what is neither embedded, nor a folder, nor one of torchvision's."""
        name, _, path = data.partition(":")
        if data not in ("digits", *TORCHVISION_DATA) and not (name == "folder" and path):
            known = ", ".join(["digits", "folder:PATH", *TORCHVISION_DATA])
            raise ConfigError(f"data is {data!r}; choose one of {known}")

    def check_names(self, config: TrainConfig) -> None:
        """Also refuse a model that stands nowhere in the libraries' sources."""
        super().check_names(config)
        check_model_name(config.model)

    def load_data(self, config: TrainConfig) -> Data:
        """Images with a class each."""
        from stripefold_lab.training.labelled_data import load_labelled

        return load_labelled(config)

    def build(self, config: TrainConfig, spec: ImageSpec) -> nn.Module:
        """One of our own networks, timm's or torchvision's."""
        from stripefold_lab.models import create_model

        return create_model(
            config.model, num_classes=len(spec.classes), in_channels=spec.channels, image_size=spec.size,
            pretrained=config.pretrained, options=config.model_options,
        )  # fmt: skip

    def loss(self, network: nn.Module, batch: tuple[Tensor, Tensor], config: TrainConfig) -> Tensor:
        """Cross-entropy of images (N, C, H, W) and labels (N,); mixed images are judged by the classes of both."""
        from stripefold_lab.training.labels import label_loss

        return label_loss(network, *batch, smoothing=config.label_smoothing, mixup=config.mixup)

    def meter(self, classes: int, *, group: Any = None) -> Meter:
        """Accuracy and loss."""
        from stripefold_lab.training.labels import LabelMeter

        return LabelMeter(group=group)
