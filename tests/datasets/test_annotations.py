"""COCO and VOC annotations that are wrong: refused with file and annotation, or counted in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stripefold.errors import DataError
from stripefold_lab.datasets import Scene, Shapes
from stripefold_lab.datasets.coco import open_coco
from stripefold_lab.datasets.coco_objects import object_mask, run_lengths
from stripefold_lab.datasets.voc import MOST_CLASSES, open_voc_boxes, open_voc_maps
from stripefold_lab.datasets.write import write_coco, write_voc

TRAIN, VAL = Shapes(count=2, size=40, seed=0), Shapes(count=2, size=40, seed=1)
HUGE = 10**400


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    write_coco(tmp_path / "coco", TRAIN, VAL)
    return tmp_path / "coco"


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    write_voc(tmp_path / "voc", TRAIN, VAL)
    return tmp_path / "voc"


def change(root: Path, act: Callable[[dict[str, Any]], Any]) -> None:
    path = root / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    act(content)
    path.write_text(json.dumps(content))


def first(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content["annotations"][0].update(values)


def runs(counts: Any, size: Any = (40, 40)) -> Callable[[dict[str, Any]], Any]:
    return first(segmentation={"size": list(size) if isinstance(size, tuple) else size, "counts": counts})


@pytest.mark.parametrize(
    ("act", "match"),
    [
        (first(image_id=4711), "annotation 1 is of image 4711, unlisted"),
        (lambda c: c["images"].pop(0), "annotation 1 is of image 100, unlisted"),
        (first(image_id="100"), "image_id of annotation 1 is '100'; it must be a whole number"),
        (first(image_id=None), "image_id of annotation 1 is None"),
        (first(image_id=100.5), "image_id of annotation 1 is 100.5"),
        (first(category_id="7"), "category_id of annotation 1 is '7'"),
        (first(category_id=[7]), r"category_id of annotation 1 is \[7\]"),
        (lambda c: c["images"][0].update(id="100"), "id of image '100' is '100'; it must be a whole number"),
        (lambda c: c["images"][0].update(file_name=3), "file_name of image 100 is 3; it must be a text"),
        (lambda c: c["images"][0].update(file_name="/etc/passwd"), "file names must be relative to .*val"),
        (lambda c: c["images"][0].update(file_name="../train/000000.png"), "file names must be relative"),
        (lambda c: c["images"][0].update(file_name="gone.png"), "lists 'gone.png', .*1 of 2 are missing"),
        (lambda c: c["images"][0].update(height=0), "image 100 has an id that is taken, or an impossible size: 0 x 40"),
        (lambda c: c["images"][0].update(width=10**9), "image 100 has .* impossible size"),
        (lambda c: c["images"][1].update(id=100), "image 100 has an id that is taken"),
        (lambda c: c["categories"][0].update(id=14), "category 14 .* has the id or the name of another one"),
        (lambda c: c["categories"][0].update(name="square"), "category 14 .'square'. has the id or the name"),
        (lambda c: c["categories"][0].update(name=None), "name of category 21 is None"),
        (first(bbox=[float("nan"), 1, 5, 5]), "a number of the bbox of annotation 1 is nan"),
        (first(bbox=[1, float("inf"), 5, 5]), "a number of the bbox of annotation 1 is inf"),
        (first(bbox=[1, 1, HUGE, 5]), "a number of the bbox of annotation 1 is 1000.*; it must be a finite number"),
        (first(bbox=[1, 1, 1e300, 5]), "annotation 1 has bbox .*1e.300.*; give .x, y, w, h. in pixels"),
        (first(bbox=[20, 20, -5, 5]), "annotation 1 has bbox .20, 20, -5, 5.; .* not below 0"),
        (first(bbox=["1", 1, 5, 5]), "a number of the bbox of annotation 1 is '1'"),
        (first(bbox=None), "annotation 1 has bbox None; give"),
        (first(bbox={"x": 1}), "annotation 1 has bbox {'x': 1}; give"),
        (lambda c: c["annotations"][0].pop("bbox"), "annotation 1 lacks 'bbox'"),
        (lambda c: c["annotations"].insert(0, None), "annotation number 1 in the list is None; it must be a mapping"),
        (first(iscrowd="0"), "annotation 1 has iscrowd '0'; give 0 or 1"),
        (first(iscrowd=None), "annotation 1 has iscrowd None"),
        (first(iscrowd=2), "annotation 1 has iscrowd 2"),
        (first(iscrowd=[0]), r"annotation 1 has iscrowd \[0\]"),
        (runs([1600], (10**6, 10**6)), r"1 has run lengths of size \[1000000, .*, its image is \[40, 40\]"),
        (runs("0" * 50, (2**31, 2)), "annotation 1 has run lengths of size"),
        (runs([1600], (40.0, 40)), "entry 0 of the size of the run lengths of annotation 1 is 40.0"),
        (runs([10, 2**31]), "the run lengths of annotation 1 add up to 2147483658, not to 40 x 40 pixels"),
        (runs([2000, -400]), "the run lengths of annotation 1 are no list of whole numbers from 0 on"),
        (runs([]), "the run lengths of annotation 1 add up to 0"),
        (runs(["800", 800]), "the run lengths of annotation 1 are no list"),
        (runs("PPPPPPPP7"), "the run lengths of annotation 1 add up to"),
        (runs("o"), "the run lengths of annotation 1 end in the middle of a number"),
        (runs("a b"), "the run lengths of annotation 1 hold ' '"),
        (runs("oooooooooooooooooooo"), "the run lengths of annotation 1 hold 'o'"),
        (runs(None), "the run lengths of annotation 1 are no list"),
        (first(segmentation="0000"), "annotation 1 has the segmentation '0000'; give polygons, or size and counts"),
        (first(segmentation={"counts": [1600]}), "annotation 1 has the segmentation"),
        (first(segmentation=[[1, 2, 3, 4]]), r"annotation 1 has the polygon \[1, 2, 3, 4\]"),
        (first(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "annotation 1 has the polygon"),
        (first(segmentation=[[1, 2, 3, 4, 5, float("nan")]]), "annotation 1 has the polygon"),
        (first(segmentation=[["1", 2, 3, 4, 5, 6]]), "annotation 1 has the polygon"),
        (first(segmentation=[[0, 0, 1e9, 0, 0, 1e9]]), "annotation 1 has a polygon far outside of its image"),
        (first(segmentation=[[0, 0, 40, 40] * 100_000]), "annotation 1 has a polygon .* or an endless one"),
        (lambda c: c.update(images={}), "images is {}; it must be a list"),
        (lambda c: c.update(annotations=None), "annotations is None; it must be a list"),
        (lambda c: c["images"].append(3), "no COCO annotation file|image number 3"),
    ],
)  # fmt: skip
def test_coco_refuses(coco: Path, act: Callable[[dict[str, Any]], Any], match: str) -> None:
    change(coco, act)
    with pytest.raises(DataError, match=match) as caught:
        open_coco(coco)
    assert "instances_val.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("box", "told", "left"),
    [
        ([5, 5, 0, 9], "1 objects without area in their image are left out .the first: annotation 1.", None),
        ([5, 5, 3, 0], "1 objects without area", None),
        ([50, 5, 3, 3], "1 objects without area", None),
        ([5, -9, 3, 8], "1 objects without area", None),
        ([5, 5, 1e-6, 3], "1 objects without area", None),  # 0 in float32
        ([5, 5, 3, 1e-300], "1 objects without area", None),
        ([40 - 1e-9, 5, 3, 3], "1 objects without area", None),  # 40 in float32
        ([-5, 5, 5 + 1e-9, 3], "1 objects without area", None),
        ([5, 5, 1e-3, 3], "", [5, 5, torch.tensor(5.001).item(), 8]),
        ([30, 30, 30, 5], "1 boxes are cut to it .the first: annotation 1.", [30, 30, 40, 35]),
        ([-7, 1, 20, 20], "1 boxes are cut to it", [0, 1, 13, 21]),
        ([30, 30, 10.5, 5], "", [30, 30, 40, 35]),
    ],
)
def test_coco_counts_in_one_line(coco: Path, box: list[float], told: str, left: list[float] | None) -> None:
    change(coco, first(bbox=box, segmentation=[]))
    if told:
        with pytest.warns(UserWarning, match=rf"instances_val.json: {told}") as caught:
            scene = open_coco(coco)[1][0]
        assert len(caught) == 1
    else:
        scene = open_coco(coco)[1][0]
    assert len(scene.boxes) == len(VAL[0].boxes) - (left is None)
    assert left is None or scene.boxes[0].tolist() == left


def test_coco_takes_crowds_as_booleans_and_compressed_masks(coco: Path) -> None:
    from pycocotools import mask

    pixels = VAL[0].masks[0].numpy()
    compressed = mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
    told = {"size": [40, 40], "counts": compressed["counts"].decode()}
    change(coco, first(iscrowd=True, segmentation=told))
    scene = open_coco(coco)[1][0]
    assert scene.crowd.tolist()[0] is True
    assert torch.equal(scene.masks[0], VAL[0].masks[0])
    assert sum(run_lengths(compressed["counts"])) == 1600


def test_an_image_of_another_size_than_its_file_says(coco: Path) -> None:
    Image.new("RGB", (40, 30)).save(coco / "val" / "000000.png")
    with pytest.raises(DataError, match=r"000000.png has 30 x 40 pixels, its annotations are of 40 x 40"):
        open_coco(coco)[1][0]


def test_more_classes_than_a_byte_holds_have_boxes_and_masks(coco: Path) -> None:
    for half in ("train", "val"):
        path = coco / "annotations" / f"instances_{half}.json"
        content = json.loads(path.read_text())
        content["categories"] += [{"id": 100 + number, "name": f"c{number}"} for number in range(300)]
        content["annotations"][0]["category_id"] = 399
        path.write_text(json.dumps(content))
    scene = open_coco(coco)[1][0]
    assert scene.labels[0] == 303
    assert scene.masks is not None
    assert scene.classes is None


def test_masks_are_checked_before_native_code_sees_them() -> None:
    for wrong in (
        {"size": [10**5, 10**5], "counts": [10**10]},
        {"size": [4, 4], "counts": b"\x30" * 9},
        [[0, 0, 1e7, 0, 1e7, 1e7]],
        [[1, 2]],
        [7],
        7,
    ):
        with pytest.raises(DataError, match="an object has|the run lengths of an object"):
            object_mask(wrong, 4, 4)


def rewrite(voc: Path, old: str, new: str) -> None:
    path = voc / "Annotations" / "val_000000.xml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def set_box(voc: Path, **sides: str) -> None:
    from xml.etree import ElementTree

    path = voc / "Annotations" / "val_000000.xml"
    tree = ElementTree.parse(path)
    for side, value in sides.items():
        tree.find(f"object/bndbox/{side}").text = value
    tree.write(path)


@pytest.mark.parametrize(
    ("sides", "match"),
    [
        ({"xmin": "nan"}, "object 1 .* has no name, or a box that is none"),
        ({"ymax": "inf"}, "a box that is none"),
        ({"xmax": "1e12"}, "a box that is none"),
        ({"xmin": "30", "xmax": "20"}, "a box that is none"),
        ({"ymin": "31", "ymax": "30"}, "a box that is none"),
        ({"xmin": "-40", "xmax": "-20"}, "a box that is none"),
        ({"xmin": ""}, "object 1 .*: could not convert"),
        ({"ymin": "ten"}, "object 1 .*: could not convert"),
        ({"xmin": "50", "xmax": "60"}, r"object 1 .* has a box outside of its image of 40 x 40 pixels: xmin 50"),
        ({"ymax": "44"}, "a box outside of its image of 40 x 40"),
        ({"xmin": "-1", "xmax": "0"}, "a box outside of its image of 40 x 40"),
        ({"xmin": "41", "xmax": "41"}, "a box outside of its image of 40 x 40"),  # the file does not say its size
        ({"ymin": "40.9999999", "ymax": "41"}, "a box outside of its image of 40 x 40"),
    ],
)
def test_voc_refuses_boxes(voc: Path, sides: dict[str, str], match: str) -> None:
    set_box(voc, **sides)
    with pytest.raises(DataError, match=rf"val_000000.xml.*{match}"):
        open_voc_boxes(voc)[1][0]


def test_voc_files_that_count_from_zero_are_cut_to_the_image(voc: Path) -> None:
    set_box(voc, xmin="0", ymin="0", xmax="41", ymax="12")
    assert open_voc_boxes(voc)[1][0].boxes[0].tolist() == [0, 0, 40, 12]


@pytest.mark.parametrize(
    "sides",
    [
        {"xmin": "0", "xmax": "0"},
        {"ymin": "0", "ymax": "0"},
        {"xmin": "0", "xmax": "1e-9"},
        {"xmin": "41", "xmax": "41"},
        {"ymin": "40.9999999", "ymax": "41"},
    ],
)
def test_voc_objects_of_which_nothing_is_left_are_counted(voc: Path, sides: dict[str, str]) -> None:
    set_box(voc, **sides)
    rewrite(voc, "<object>", "<size><width>40</width><height>40</height></size><object>")
    told = r"Annotations: 1 objects without area in their image are left out .the first: object 1 of val_000000.xml"
    with pytest.warns(UserWarning, match=told) as caught:
        scene = open_voc_boxes(voc)[1][0]
    assert len(caught) == 1
    assert torch.equal(scene.boxes, VAL[0].boxes[1:])
    assert torch.equal(scene.labels, VAL[0].labels[1:])


def test_the_others_keep_their_numbers(voc: Path) -> None:
    set_box(voc, xmin="0", xmax="0")
    box = "<xmin>60</xmin><ymin>1</ymin><xmax>70</xmax><ymax>9</ymax>"
    other = f"<object><name>disc</name><bndbox>{box}</bndbox></object>"
    rewrite(voc, "</annotation>", f"{other}</annotation>")
    with pytest.warns(UserWarning, match="1 objects without area"):
        _, val = open_voc_boxes(voc)
    with pytest.raises(DataError, match=rf"object {len(VAL[0].labels) + 1} .'disc'. has a box outside"):
        val[0]


@pytest.mark.parametrize(
    "box", [[3, 3, 3, 9], [3, 9, 8, 9], [8, 3, 3, 9], [5, 5, 5.000001, 9], [0, 0, 0, 0], [1, 1, float("nan"), 9]]
)
def test_a_scene_holds_no_box_without_area(box: list[float]) -> None:
    boxes = torch.tensor([[1, 1, 2, 2], box], dtype=torch.float32)
    values = {"image": torch.zeros(3, 20, 40, dtype=torch.uint8), "masks": None, "classes": None}
    labels, crowd = torch.tensor([1, 1]), torch.tensor([False, False])
    with pytest.raises(DataError, match=r"object 2 of a scene of 20 x 40 pixels has the box \[.*no area; leave it out"):
        Scene(boxes=boxes, labels=labels, crowd=crowd, **values)
    Scene(boxes=boxes[:1], labels=labels[:1], crowd=crowd[:1], **values)


def turn(path: Path, *, wide: int, high: int) -> None:
    """A picture that lies there as wide x high, and whose EXIF says that it stands upright after a quarter turn."""
    image = Image.new("RGB", (wide, high))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, format="PNG", exif=exif)


@pytest.mark.parametrize(("width", "height"), [(60, 40), (40, 60), (0, 0), (None, None)])
def test_the_size_in_a_voc_file_says_which_way_its_boxes_were_drawn(voc: Path, width, height) -> None:
    turn(voc / "JPEGImages" / "val_000000.jpg", wide=60, high=40)
    if width is not None:
        rewrite(voc, "<object>", f"<size><width>{width}</width><height>{height}</height></size><object>")
    # Upright unless they are of the pixels as they lie there.
    assert open_voc_boxes(voc)[1][0].image.shape == ((3, 40, 60) if width == 60 else (3, 60, 40))


@pytest.mark.parametrize(
    ("width", "match"), [("41", "has 40 x 40 pixels, its annotations are of 40 x 41"), ("x", "is no VOC annotation")]
)
def test_a_size_in_a_voc_file_that_is_not_the_images(voc: Path, width: str, match: str) -> None:
    rewrite(voc, "<object>", f"<size><width>{width}</width><height>40</height></size><object>")
    with pytest.raises(DataError, match=match):
        open_voc_boxes(voc)[1][0]


@pytest.mark.parametrize(("wide", "high"), [(40, 60), (60, 40)])
def test_the_size_in_a_coco_file_says_which_way_its_boxes_were_drawn(coco: Path, wide: int, high: int) -> None:
    turn(coco / "val" / "000000.png", wide=60, high=40)
    path = coco / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    content["images"][0].update(width=wide, height=high)
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] != content["images"][0]["id"]]
    path.write_text(json.dumps(content))
    assert open_coco(coco)[1][0].image.shape == (3, high, wide)


def test_voc_names_what_is_wrong(voc: Path) -> None:
    path = voc / "Annotations" / "val_000000.xml"
    text = path.read_text()
    for old, new, match in (
        ("<difficult>0", "<difficult>maybe", "has difficult 'maybe'; give 0 or 1"),
        ("<annotation>", "<!DOCTYPE a [<!ENTITY b 'c'>]><annotation>", "defines entities"),
        ("<name>", "<names>", "is no VOC annotation"),
    ):
        rewrite(voc, old, new)
        with pytest.raises(DataError, match=rf"val_000000.xml.*{match}"):
            open_voc_boxes(voc)
        path.write_text(text)
    path.write_text(text.replace("<name>", "<name>un").replace("<name>un", "<name>un", 1))
    with pytest.raises(DataError, match=r"class 'un.*' is not among disc, square, triangle; .* in .*voc/labels\.txt"):
        open_voc_boxes(voc)
    path.write_text("<a>" * 200_000)
    with pytest.raises(DataError, match="is no VOC annotation"):
        open_voc_boxes(voc)


def test_voc_files_that_are_not_there(voc: Path) -> None:
    for kind, opened, gone in (
        ("Main", open_voc_boxes, voc / "JPEGImages" / "val_000001.jpg"),
        ("Main", open_voc_boxes, voc / "Annotations" / "val_000000.xml"),
        ("Segmentation", open_voc_maps, voc / "SegmentationClass" / "val_000000.png"),
    ):
        content = gone.read_bytes()
        gone.unlink()
        with pytest.raises(DataError, match=rf"{kind}/val.txt lists '{gone.name}', .*1 of 2 are missing"):
            opened(voc)
        gone.write_bytes(content)
    listing = voc / "ImageSets" / "Main" / "val.txt"
    for name in ("../../x", "/etc/passwd", "x" * 400):
        listing.write_text(f"{name}\n")
        with pytest.raises(DataError, match="file names must be relative|which is not in"):
            open_voc_boxes(voc)


def test_more_names_than_any_data_set_has(voc: Path) -> None:
    (voc / "labels.txt").write_text("\n".join(map(str, range(MOST_CLASSES + 1))))
    with pytest.raises(DataError, match=r"labels.txt names 100001 classes; there may be 100000"):
        open_voc_boxes(voc)
