"""Scenes as the loop takes them: letterboxed, mirrored with everything that belongs to them, the same every time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stripefold.errors import ConfigError, DataError
from stripefold_lab.datasets import IGNORED, Scene, Shapes
from stripefold_lab.datasets.scene import has_area
from stripefold_lab.datasets.write import write_ade20k, write_coco, write_voc
from stripefold_lab.training import TrainConfig
from stripefold_lab.training.data import evaluation_loader, load_data, training_loader
from stripefold_lab.training.scene_data import bring_to
from stripefold_lab.training.tasks import get_task

SEGMENT = TrainConfig(task="segmentation", data="shapes", model="fcn_resnet18", image_size=32, batch_size=4)
DETECT = TrainConfig(task="detection", data="shapes", model="maskrcnn_resnet18_fpn", image_size=32, batch_size=4)


def wide_scene() -> Scene:
    """20 x 40, one object in columns 10 to 20 and rows 4 to 8."""
    mask = torch.zeros(1, 20, 40, dtype=torch.bool)
    mask[0, 4:8, 10:20] = True
    return Scene(
        image=(mask[0] * 200).to(torch.uint8).expand(3, 20, 40),
        boxes=torch.tensor([[10.0, 4.0, 20.0, 8.0]]),
        labels=torch.tensor([2]),
        masks=mask,
        crowd=torch.tensor([False]),
        classes=(mask[0] * 2).to(torch.uint8),
    )


def fitted(config: TrainConfig, scene: Scene, *, flip: bool, train: bool) -> tuple[torch.Tensor, Any]:
    """A scene as a square of 20 pixels."""
    image = bring_to(scene.image, 20)
    return get_task(config.task).fit(scene, image, config=config, size=20, flip=flip, train=train)


@pytest.mark.parametrize("flip", [False, True])
def test_a_scene_is_letterboxed_with_its_boxes_and_masks(flip: bool) -> None:
    image, target = fitted(DETECT, wide_scene(), flip=flip, train=True)
    assert image.shape == (3, 20, 20)
    left, right = (10, 15) if flip else (5, 10)
    assert target["boxes"].tolist() == [[left, 2, right, 4]]
    assert target["masks"].shape == (1, 20, 20)
    assert target["masks"][0, 2:4, left:right].all()
    assert target["masks"].sum() == 10
    assert image[:, 2:4, left + 1 : right - 1].min() > 0.5
    assert image[:, 10:].abs().max() == 0  # padding
    assert "iscrowd" not in target


@pytest.mark.parametrize("flip", [False, True])
def test_class_maps_go_along_and_padding_does_not_count(flip: bool) -> None:
    image, classes = fitted(SEGMENT, wide_scene(), flip=flip, train=True)
    assert classes.dtype == torch.int64
    assert (classes[10:] == IGNORED).all()
    left, right = (10, 15) if flip else (5, 10)
    assert (classes[2:4, left:right] == 2).all()
    assert (classes[:10] == 2).sum() == 10
    assert image[0, 2, left + 1] > image[0, 9, 0]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shape", [(480, 640), (3, 1000), (2000, 31), (7, 7)])
def test_a_box_that_a_scene_may_hold_keeps_its_area_to_the_loss(shape: tuple[int, int], flip: bool) -> None:
    """Resized, mirrored, and brought to a detector's size; boxes as thin as a scene takes them, and at the edges."""
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    height, width = shape
    longest = torch.tensor([width, height] * 2, dtype=torch.float32)
    corners = torch.rand(4000, 4, generator=torch.Generator().manual_seed(0)) * longest
    corners[:200, :2], corners[200:400, 0] = 0, width
    corners[400:600, 2] = corners[400:600, 0] + max(shape) * 2.0**-20 * 1.1
    boxes = torch.cat([corners[:, :2].minimum(corners[:, 2:]), corners[:, :2].maximum(corners[:, 2:])], 1)
    boxes = boxes.minimum(longest)
    boxes = boxes[has_area(boxes, max(shape))]
    assert len(boxes) > 3000
    assert (boxes[:, 2] - boxes[:, 0]).min() < max(shape) * 2.0**-19
    labels, crowd = torch.ones(len(boxes), dtype=torch.int64), torch.zeros(len(boxes), dtype=torch.bool)
    image = torch.zeros(3, *shape, dtype=torch.uint8)
    scene = Scene(image=image, boxes=boxes, labels=labels, masks=None, crowd=crowd, classes=None)
    config = DETECT.with_overrides(model="fasterrcnn_resnet18_fpn")
    for size, own in ((32, 800), (320, 320), (801, 64)):
        square, target = get_task("detection").fit(
            scene, bring_to(image, size), config=config, size=size, flip=flip, train=True
        )
        assert has_area(target["boxes"], 0).all()
        _, given = GeneralizedRCNNTransform(own, own, [0.0] * 3, [1.0] * 3)([square], [target])
        assert has_area(given[0]["boxes"], 0).all()


def test_crowds_are_left_out_of_training_and_marked_in_tests() -> None:
    scene = replace(wide_scene(), crowd=torch.tensor([True]))
    _, training = fitted(DETECT, scene, flip=False, train=True)
    assert training["boxes"].shape == (0, 4)
    assert training["masks"].shape == (0, 20, 20)
    assert fitted(DETECT, scene, flip=False, train=False)[1]["iscrowd"].tolist() == [1]


def test_what_a_task_needs_must_be_there() -> None:
    scene = replace(wide_scene(), classes=None, masks=None)
    with pytest.raises(DataError, match="a scene has no class map"):
        fitted(SEGMENT, scene, flip=False, train=True)
    with pytest.raises(DataError, match="boxes without masks; Mask R-CNN needs"):
        fitted(DETECT, scene, flip=False, train=True)


def test_batches_of_both_tasks() -> None:
    images, classes = next(iter(evaluation_loader(load_data(SEGMENT), SEGMENT)))
    assert images.shape == (4, 3, 32, 32)
    assert classes.shape == (4, 32, 32)
    images, targets = next(iter(training_loader(load_data(DETECT), DETECT)))
    assert images.shape == (4, 3, 32, 32)
    assert 0 <= images.min() < images.max() <= 1
    assert [set(target) for target in targets] == [{"boxes", "labels", "masks"}] * 4
    assert load_data(SEGMENT).spec.classes == ("background", "disc", "square", "triangle")


def test_training_and_test_scenes_differ_and_limits_choose() -> None:
    data = load_data(SEGMENT.with_overrides(limit_train=5, limit_test=3))
    assert (len(data.train), len(data.test)) == (5, 3)
    again = load_data(SEGMENT.with_overrides(limit_train=5, limit_test=3, seed=9))
    assert torch.equal(data.test[0][0], again.test[0][0])
    assert not torch.equal(data.train[0, 0][0], data.test[0][0])


def test_mirroring_follows_from_seed_epoch_and_index() -> None:
    data = load_data(SEGMENT.with_overrides(augmentation="flip", limit_train=16))
    plain = load_data(SEGMENT.with_overrides(limit_train=16))
    mirrored = set()
    for epoch in range(2):
        for index in range(16):
            image, classes = data.train[epoch, index]
            bare, bare_classes = plain.train[epoch, index]
            flips = not torch.equal(image, bare)
            assert torch.equal(image, bare.flip(2) if flips else bare)
            assert torch.equal(classes, bare_classes.flip(1) if flips else bare_classes)
            mirrored |= {(epoch, index)} if flips else set()
    assert 6 < len(mirrored) < 26
    assert {index for epoch, index in mirrored if epoch == 0} != {index for epoch, index in mirrored if epoch == 1}
    assert torch.equal(data.train[1, 3][0], data.train[1, 3][0])


def test_real_formats_give_the_same_batches_as_the_drawing(tmp_path: Path) -> None:
    train, val = Shapes(count=4, size=40, seed=0), Shapes(count=3, size=40, seed=1)
    write_coco(tmp_path / "coco", train, val)
    write_voc(tmp_path / "voc", train, val)
    write_ade20k(tmp_path / "ade", train, val)
    config = DETECT.with_overrides(data=f"coco:{tmp_path}/coco", image_size=40)
    image, target = load_data(config).test[1]
    assert torch.equal(image, val[1].image.float() / 255)
    assert torch.equal(target["boxes"], val[1].boxes)
    config = config.with_overrides(data=f"voc:{tmp_path}/voc", model="fasterrcnn_resnet18_fpn")
    assert torch.equal(load_data(config).test[1][1]["boxes"], val[1].boxes)
    config = SEGMENT.with_overrides(data=f"voc:{tmp_path}/voc", image_size=40)
    assert torch.equal(load_data(config).test[1][1], val[1].classes.long())
    config = config.with_overrides(data=f"ade20k:{tmp_path}/ade")
    expected = val[1].classes.long()
    assert torch.equal(load_data(config).test[1][1], expected.masked_fill(expected == 0, IGNORED))


@pytest.mark.parametrize(
    ("config", "changes", "error", "match"),
    [
        (SEGMENT, {"data": "digits"}, ConfigError, "data is 'digits'; for segmentation choose one of shapes, voc:PATH"),
        (DETECT, {"data": "ade20k:x"}, ConfigError, "for detection choose one of shapes, coco:PATH, voc:PATH"),
        (DETECT, {"data": "coco:/no/such"}, DataError, "no folder /no/such; data=coco:PATH needs"),
        (DETECT, {"augmentation": "shift"}, ConfigError, "augmentation is 'shift'; for detection choose none or flip"),
        (SEGMENT, {"mixup": 0.2}, ConfigError, "mixup is 0.2; it mixes classes of whole images"),
        (DETECT, {"label_smoothing": 0.1}, ConfigError, "a detector has its own losses"),
        (SEGMENT, {"channels": 1}, ConfigError, "channels is 1; networks for segmentation take 3"),
        (SEGMENT, {"task": "matting"}, ConfigError, "task is 'matting'; choose one of classification, segmentation"),
    ],
)
def test_what_does_not_fit_is_refused(config: TrainConfig, changes: dict, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        load_data(config.with_overrides(**changes))


def test_images_of_many_sizes_need_a_size(tmp_path: Path) -> None:
    write_voc(tmp_path / "voc", Shapes(count=2, size=40), Shapes(count=2, size=40))
    with pytest.raises(ConfigError, match="differ in size; set image_size"):
        load_data(SEGMENT.with_overrides(data=f"voc:{tmp_path}/voc", image_size=None))


def test_a_folder_may_be_smaller_than_any_drawing(tmp_path: Path) -> None:
    write_voc(tmp_path / "voc", Shapes(count=2, size=40), Shapes(count=2, size=40))
    assert load_data(SEGMENT.with_overrides(data=f"voc:{tmp_path}/voc", image_size=24)).spec.size == 24
