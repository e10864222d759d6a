"""Tasks on scenes: images whose pixels or objects have classes."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from stripefold.errors import ConfigError, DataError
from stripefold_lab.training.task import Task
from stripefold_lab.training.tasks import DEFAULT_TASK

if TYPE_CHECKING:
    from torch import Tensor

    from stripefold_lab.datasets import Scene
    from stripefold_lab.training.config import TrainConfig
    from stripefold_lab.training.data import Data

DRAWN = "shapes"


class SceneTask(Task):
    """Reads drawn shapes, or folders by the reader that ``data`` names before its colon.

    Attributes:
        readers: Name -> function that opens a folder as training and test scenes, imported when it is asked for.
    """

    readers: ClassVar[Mapping[str, str]]
    example_images = 16  # their networks compute much more for an image

    @abstractmethod
    def fit(
        self, scene: Scene, image: Tensor, *, config: TrainConfig, size: int, flip: bool, train: bool
    ) -> tuple[Tensor, Any]:
        """What the network takes of a scene: a square image (3, size, size), and its target.

        Args:
            scene: What a reader gave.
            image: Its image (3, h, w) in 0..1, whose longer side is ``size``; to be normalised and padded.
            config: The run's configuration.
            size: Side of the square.
            flip: Whether to mirror both left and right.
            train: Whether it is for training.
        """

    def check_options(self, config: TrainConfig) -> None:
        """What would need boxes or masks changed along with the image, and does not, is refused."""
        if config.augmentation not in ("none", "flip"):
            raise ConfigError(f"augmentation is {config.augmentation!r}; for {self.name} choose none or flip")
        if config.mixup:
            raise ConfigError(f"mixup is {config.mixup}; it mixes classes of whole images, set 0 for {self.name}")
        if config.preprocessing:
            raise ConfigError(f"preprocessing is {config.preprocessing}; it is for {DEFAULT_TASK}, set {{}}")
        if config.cache:
            raise ConfigError(f"cache is True; it is for {DEFAULT_TASK}; set false for {self.name}")
        if config.channels == 1:
            raise ConfigError(f"channels is 1; networks for {self.name} take 3")

    def check_data(self, data: str) -> None:
        """Refuse what is neither drawn nor a folder that one of the readers knows."""
        name, _, path = data.partition(":")
        if data == DRAWN:
            return
        if name not in self.readers or not path:
            known = ", ".join([DRAWN, *(f"{reader}:PATH" for reader in self.readers)])
            raise ConfigError(f"data is {data!r}; for {self.name} choose one of {known}")
        root = Path(path).expanduser()
        if not os.path.isdir(root):
            raise DataError(f"no folder {root}; data={name}:PATH needs the folder of the data set")

    def load_data(self, config: TrainConfig) -> Data:
        """Scenes, drawn or read."""
        from stripefold_lab.training.scene_data import load_scenes

        return load_scenes(config, self)
