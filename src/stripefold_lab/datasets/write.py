"""Drawn scenes as files: what the readers of this package read."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from torch import Tensor

from stripefold_lab.datasets.scene import Scene
from stripefold_lab.datasets.shapes import CLASSES, Shapes

PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
"""VOC's first colours; a class map shows them, and its pixels are the class numbers."""


def write_coco(root: Path, train: Shapes, val: Shapes) -> None:
    """Write ``annotations/instances_*.json`` and the images as PNG; squares become polygons, the rest run lengths.

    Args:
        root: The folder to make.
        train: Scenes to train on.
        val: Scenes to test on.
    """
    (root / "annotations").mkdir(parents=True)
    for half, scenes in (("train", train), ("val", val)):
        (root / half).mkdir()
        # Ids need not be dense or sorted in COCO: these are not.
        content: dict[str, Any] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 7 * (number + 1), "name": name} for number, name in enumerate(CLASSES)][::-1],
        }
        for index in range(len(scenes)):
            scene, name = scenes[index], f"{index:06d}.png"
            _save(scene.image, root / half / name)
            height, width = scene.image.shape[1:]
            content["images"].append({"id": 100 + index, "file_name": name, "height": height, "width": width})
            content["annotations"] += _coco_objects(scene, 100 + index, len(content["annotations"]))
        (root / "annotations" / f"instances_{half}.json").write_text(json.dumps(content), encoding="utf-8")


def _coco_objects(scene: Scene, image: int, first: int) -> list[dict[str, Any]]:
    assert scene.masks is not None
    found = []
    for offset, (box, label, mask) in enumerate(
        zip(scene.boxes.tolist(), scene.labels.tolist(), scene.masks, strict=True)
    ):
        left, top, right, bottom = box
        square = [[left, top, right, top, right, bottom, left, bottom]]
        found.append(
            {
                "id": first + offset + 1,
                "image_id": image,
                "category_id": 7 * label,
                "bbox": [left, top, right - left, bottom - top],
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": square if CLASSES[label - 1] == "square" else _runs(mask),
            }
        )
    return found


def _runs(mask: Tensor) -> dict[str, Any]:
    """Run lengths down the columns, zeros first: COCO's uncompressed form of a mask (H, W)."""
    flat = mask.t().flatten().numpy().astype(np.int8)
    changes = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
    ends = [0, *changes, len(flat)]
    return {"size": list(mask.shape), "counts": [after - before for before, after in itertools.pairwise(ends)]}


def write_voc(root: Path, train: Shapes, val: Shapes) -> None:
    """Write ``JPEGImages``, ``SegmentationClass``, ``Annotations``, ``ImageSets`` and ``labels.txt``.

    Args:
        root: The folder to make.
        train: Scenes to train on.
        val: Scenes to test on.
    """
    for name in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Main", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    (root / "labels.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    for half, scenes in (("train", train), ("val", val)):
        names = [f"{half}_{index:06d}" for index in range(len(scenes))]
        for kind in ("Main", "Segmentation"):
            (root / "ImageSets" / kind / f"{half}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
        for index, name in enumerate(names):
            scene = scenes[index]
            _save(scene.image, root / "JPEGImages" / f"{name}.jpg")
            _save_map(scene, root / "SegmentationClass" / f"{name}.png")
            _voc_xml(scene, name).write(root / "Annotations" / f"{name}.xml")


def _voc_xml(scene: Scene, name: str) -> ElementTree.ElementTree[ElementTree.Element]:
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = f"{name}.jpg"
    for box, label in zip(scene.boxes.tolist(), scene.labels.tolist(), strict=True):
        each = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(each, "name").text = CLASSES[label - 1]
        ElementTree.SubElement(each, "difficult").text = "0"
        corners = ElementTree.SubElement(each, "bndbox")
        # From 1, last pixel included.
        for side, value in zip(("xmin", "ymin", "xmax", "ymax"), (box[0] + 1, box[1] + 1, box[2], box[3]), strict=True):
            ElementTree.SubElement(corners, side).text = str(int(value))
    return ElementTree.ElementTree(root)


def write_ade20k(root: Path, train: Shapes, val: Shapes) -> None:
    """Write ``images``, ``annotations`` and ``objectInfo150.txt``; the background is number 0, which does not count.

    Args:
        root: The folder to make.
        train: Scenes to train on.
        val: Scenes to test on.
    """
    for half, scenes in (("training", train), ("validation", val)):
        for kind in ("images", "annotations"):
            (root / kind / half).mkdir(parents=True)
        for index in range(len(scenes)):
            _save(scenes[index].image, root / "images" / half / f"{index:06d}.jpg")
            _save_map(scenes[index], root / "annotations" / half / f"{index:06d}.png")
    rows = ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
    rows += [f"{number}\t0\t{len(train)}\t{len(val)}\t0\t{name}" for number, name in enumerate(CLASSES, start=1)]
    (root / "objectInfo150.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")


def _save(image: Tensor, path: Path) -> None:
    from PIL import Image

    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path, quality=95)


def _save_map(scene: Scene, path: Path) -> None:
    from PIL import Image

    assert scene.classes is not None
    picture = Image.fromarray(scene.classes.numpy(), mode="L").convert("P")
    picture.putdata(scene.classes.flatten().tolist())
    picture.putpalette(PALETTE)
    picture.save(path)
