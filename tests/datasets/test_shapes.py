"""Drawn scenes: the same for the same seed and index, and annotated as drawn."""

from __future__ import annotations

import pytest
import torch

from stripefold.errors import DataError
from stripefold_lab.datasets import Shapes
from stripefold_lab.datasets.scene import box_of


def test_seed_index_and_size_decide_alone() -> None:
    scenes = Shapes(count=8, size=48, seed=3)
    again = Shapes(count=20, size=48, seed=3)
    torch.manual_seed(5)
    for index in (7, 0, 3):
        assert torch.equal(scenes[index].image, again[index].image)
        assert torch.equal(scenes[index].boxes, again[index].boxes)
    assert not torch.equal(scenes[0].image, Shapes(count=8, size=48, seed=4)[0].image)
    assert not torch.equal(scenes[0].image, scenes[1].image)


def test_boxes_masks_and_class_map_tell_the_same() -> None:
    scenes = Shapes(count=40, size=64, seed=0)
    counts, labels = set(), set()
    for index in range(len(scenes)):
        scene = scenes[index]
        assert scene.image.shape == (3, 64, 64)
        assert scene.image.dtype == torch.uint8
        # No pixel belongs to two shapes, so the class map is the sum.
        assert scene.masks.sum(0).max() == 1
        expected = (scene.masks * scene.labels[:, None, None]).sum(0)
        assert torch.equal(scene.classes.long(), expected)
        for box, mask in zip(scene.boxes, scene.masks, strict=True):
            left, top, right, bottom = box.int().tolist()
            assert mask.sum() == mask[top:bottom, left:right].sum() > 50
            assert mask[top].any()
            assert mask[bottom - 1].any()
            assert mask[:, left].any()
            assert mask[:, right - 1].any()
        counts.add(len(scene.labels))
        labels |= set(scene.labels.tolist())
    assert counts == {1, 2, 3}
    assert labels == {1, 2, 3}


def test_forms_differ() -> None:
    """A square fills its box, a disc pi/4 of it, a triangle half."""
    shares: dict[int, list[float]] = {1: [], 2: [], 3: []}
    scenes = Shapes(count=60, size=96, seed=1)
    for index in range(len(scenes)):
        scene = scenes[index]
        for box, mask, label in zip(scene.boxes, scene.masks, scene.labels.tolist(), strict=True):
            shares[label].append(float(mask.sum() / ((box[2] - box[0]) * (box[3] - box[1]))))
    assert min(shares[2]) == 1.0
    assert torch.tensor(shares[1]).mean() == pytest.approx(torch.pi / 4, abs=0.03)
    assert torch.tensor(shares[3]).mean() == pytest.approx(0.5, abs=0.06)


def test_a_colour_says_nothing_about_the_class() -> None:
    means: dict[int, list[torch.Tensor]] = {1: [], 2: [], 3: []}
    scenes = Shapes(count=200, size=32, seed=2)
    for index in range(len(scenes)):
        scene = scenes[index]
        for mask, label in zip(scene.masks, scene.labels.tolist(), strict=True):
            means[label].append(scene.image[:, mask].float().mean(1))
    for colours in means.values():
        # 127 +- 5 standard errors of a uniform colour.
        assert torch.stack(colours).mean(0).sub(127).abs().max() < 5 * 74 / len(colours) ** 0.5 + 8


def test_refuses_what_cannot_be_drawn() -> None:
    with pytest.raises(DataError, match="shapes of size 16, count 4: give a size from 32"):
        Shapes(count=4, size=16)
    with pytest.raises(DataError, match="count 0"):
        Shapes(count=0)
    with pytest.raises(IndexError, match="scene 4 of 4"):
        Shapes(count=4)[4]


def test_a_mask_without_pixels_has_an_empty_box() -> None:
    assert box_of(torch.zeros(4, 4, dtype=torch.bool)).tolist() == [0, 0, 0, 0]
