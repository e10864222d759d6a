"""What `where="residual"` picks in twenty families of networks; makes the table of docs/guides/where.md."""

from __future__ import annotations

import argparse
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

import stripefold as sf
from stripefold.asr.sites import SiteTable
from stripefold_lab.models import create_detector, create_model, create_segmenter

PAGE = Path(__file__).parents[1] / "docs" / "guides" / "where.md"
MARKS = re.compile(r"(<!-- families: [^>]*-->\n).*?(<!-- end of families -->)", re.DOTALL)
CLASSIFIERS = {
    "ResNet (basic)": "resnet20",
    "ResNet (bottleneck)": "timm/resnet50",
    "ResNeXt": "timm/resnext50_32x4d",
    "SE-ResNet": "timm/seresnet50",
    "Pre-activation ResNet": "timm/resnetv2_50",
    "RegNetY": "timm/regnety_004",
    "DenseNet": "timm/densenet121",
    "VGG": "timm/vgg11_bn",
    "MobileNetV2": "timm/mobilenetv2_100",
    "MobileNetV3": "timm/mobilenetv3_large_100",
    "EfficientNet": "timm/efficientnet_b0",
    "GhostNet": "timm/ghostnet_100",
    "RepVGG": "timm/repvgg_a0",
    "ConvNeXt": "timm/convnext_tiny",
    "ConvNeXt V2": "timm/convnextv2_tiny",
    "ViT": "timm/vit_tiny_patch16_224",
    "Swin": "timm/swin_tiny_patch4_window7_224",
    "MLP-Mixer": "timm/mixer_s32_224",
    "PoolFormer": "timm/poolformer_s12",
    "MobileViT": "timm/mobilevit_xs",
}
DENSE = {
    "FCN": ("segmentation", "fcn_resnet18"),
    "LR-ASPP": ("segmentation", "lraspp_mobilenet_v3_small"),
    "Faster R-CNN": ("detection", "fasterrcnn_resnet18_fpn"),
    "RetinaNet": ("detection", "retinanet_resnet18_fpn"),
    "SSDlite": ("detection", "ssdlite_mobilenet_v3_small"),
}


def pattern(name: str) -> str:
    """A layer's path, the number at the end of each part but the last as a star: `layer*.*.bn2`, `blocks.*.mlp.fc2`."""
    *above, last = name.split(".")
    return ".".join([*(re.sub(r"^(\D*)\d+$", r"\1*", part) for part in above), last])


def row(family: str, name: str, table: SiteTable) -> str:
    """One line of the table: how many sites, of which types, under which paths."""
    types = Counter(site.layer for site in table)
    paths = Counter(pattern(site.name) for site in table)
    shown = [f"`{path}`" + (f" ({count})" if len(paths) > 1 else "") for path, count in paths.most_common(4)]
    more = f" and {len(paths) - 4} more" if len(paths) > 4 else ""
    told = ", ".join(f"{kind}" for kind, _ in types.most_common()) or "none"
    return f"| {family} | `{name}` | {len(table)} | {told} | {', '.join(shown)}{more} |"


def sites_of(task: str, name: str) -> SiteTable:
    """The dry run on a network of a task, weights random."""
    example = torch.zeros(2, 3, 64, 64)
    torch.manual_seed(0)
    if task == "classification":
        return sf.sites(create_model(name, num_classes=1000))
    network: nn.Module
    if task == "segmentation":
        network = create_segmenter(name, num_classes=4)
    else:
        network = create_detector(name, num_classes=4, image_size=64)
    return sf.sites(network, example=example)


def table() -> str:
    """The whole table as Markdown."""
    lines = ["| family | network | sites | layers | paths |", "|---|---|---|---|---|"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries that build the networks
        lines += [row(family, name, sites_of("classification", name)) for family, name in CLASSIFIERS.items()]
        lines += [row(family, name, sites_of(task, name)) for family, (task, name) in DENSE.items()]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the table between its marks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, default=PAGE)
    page = parser.parse_args(arguments).page
    text, found = page.read_text(encoding="utf-8"), table()
    page.write_text(MARKS.sub(lambda marks: marks[1] + found + marks[2], text), encoding="utf-8")
    print(found)


if __name__ == "__main__":
    main()
