"""Annotated images: drawn by the package, or read from COCO, Pascal VOC and ADE20K-style folders.

What: ``Shapes`` draws coloured shapes with boxes and masks, the same for the same seed and index; the readers give the
scenes of real files in one form; ``write_coco``, ``write_voc`` and ``write_ade20k`` put drawn scenes into those files.
Paper: Lin et al. 2014 (COCO), Everingham et al. 2010 (VOC), Zhou et al. 2017 (ADE20K) define the formats.
Why here: segmentation and detection need data that is there without a download, and readers that were run on files.
"""

from __future__ import annotations

from stripefold_lab.datasets.scene import IGNORED, Scene, Scenes
from stripefold_lab.datasets.shapes import Shapes

__all__ = ["IGNORED", "Scene", "Scenes", "Shapes"]
