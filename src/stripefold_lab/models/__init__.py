"""The CIFAR and STL10 residual networks of the paper, and one door to every other model.

What: ``ResNet`` in its basic (depth 6n+2) and bottleneck (depth 9n+2) form, widths 16/32/64 (times 4 with bottlenecks),
and ``create_model``, which knows these by name and hands every other name to timm or torchvision; ``create_segmenter``
and ``create_detector`` for torchvision's networks of other tasks, on small backbones too.
Paper: He et al. 2016 (section 4.2 for the form, arXiv 1603.05027 for depth 164); the paper's Table 1 gives 1.73 M
parameters for ResNet164 with 100 classes.
Why here: timm and torchvision hold the ImageNet form of these networks, not the small one of the paper.
"""

from __future__ import annotations

from stripefold_lab.models.detectors import create_detector, detector_names
from stripefold_lab.models.factory import create_model, own_names
from stripefold_lab.models.heads import HeadOutputs
from stripefold_lab.models.resnet import BasicBlock, Bottleneck, ResNet
from stripefold_lab.models.segmenters import create_segmenter, segmenter_names

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "HeadOutputs",
    "ResNet",
    "create_detector",
    "create_model",
    "create_segmenter",
    "detector_names",
    "own_names",
    "segmenter_names",
]
