"""What is written as COCO, VOC and ADE20K-style files is read back; what is wrong with a file is said."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from stripefold.errors import DataError
from stripefold_lab.datasets import IGNORED, Shapes
from stripefold_lab.datasets.ade20k import open_ade20k
from stripefold_lab.datasets.coco import open_coco
from stripefold_lab.datasets.coco_objects import object_mask
from stripefold_lab.datasets.files import read_json
from stripefold_lab.datasets.image_files import read_class_map
from stripefold_lab.datasets.voc import VOC_CLASSES, open_voc_boxes, open_voc_maps
from stripefold_lab.datasets.write import write_ade20k, write_coco, write_voc

TRAIN, VAL = Shapes(count=3, size=40, seed=0), Shapes(count=2, size=40, seed=1)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    write_coco(tmp_path / "coco", TRAIN, VAL)
    return tmp_path / "coco"


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    write_voc(tmp_path / "voc", TRAIN, VAL)
    return tmp_path / "voc"


@pytest.fixture
def ade20k(tmp_path: Path) -> Path:
    write_ade20k(tmp_path / "ade", TRAIN, VAL)
    return tmp_path / "ade"


def change_json(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_coco_gives_back_what_was_drawn(coco: Path) -> None:
    for found, drawn in zip(open_coco(coco), (TRAIN, VAL), strict=True):
        assert found.classes == drawn.classes
        assert len(found) == len(drawn)
        for index in range(len(drawn)):
            expected, scene = drawn[index], found[index]
            assert torch.equal(scene.image, expected.image)  # PNG
            assert torch.equal(scene.boxes, expected.boxes)
            assert torch.equal(scene.labels, expected.labels)
            assert torch.equal(scene.masks, expected.masks)
            assert torch.equal(scene.classes, expected.classes)
            assert not scene.crowd.any()


def test_coco_crowds_empty_boxes_and_missing_masks(coco: Path) -> None:
    file = coco / "annotations" / "instances_val.json"

    def change(content: dict) -> None:
        content["images"].append({"id": 5, "file_name": "000001.png", "height": 40, "width": 40})
        first = content["annotations"][0]
        first["iscrowd"] = 1
        content["annotations"].append({**first, "id": 900, "bbox": [3, 3, 0, 4]})
        content["annotations"][1:2] = [{**content["annotations"][1], "segmentation": []}]

    change_json(file, change)
    with pytest.warns(UserWarning, match=r"val.json: 1 objects without area .* \(the first: annotation 900\)"):
        _, val = open_coco(coco)
    assert len(val[0].labels) == len(VAL[0].labels)  # the box without area is left out
    assert val[0].crowd.tolist()[0]
    assert any(val[index].masks is None for index in range(2))
    empty = val[2]  # no annotation names this image
    assert empty.boxes.shape == (0, 4)
    assert empty.masks.shape == (0, 40, 40)
    assert empty.classes.sum() == 0


def test_three_forms_of_a_mask_are_one() -> None:
    from pycocotools import mask as runs

    square = torch.zeros(6, 8, dtype=torch.bool)
    square[2:5, 1:4] = True
    # Down the columns, zeros first.
    uncompressed = {"size": [6, 8], "counts": [8, 3, 3, 3, 3, 3, 25]}
    compressed = runs.frPyObjects(uncompressed, 6, 8)
    for form in ([[1, 2, 4, 2, 4, 5, 1, 5]], uncompressed, compressed):
        assert torch.equal(object_mask(form, 6, 8), square)


def test_coco_says_what_is_wrong(coco: Path) -> None:
    file = coco / "annotations" / "instances_val.json"
    text = file.read_text()
    wrong = [
        (lambda c: c.pop("categories"), "is no COCO annotation file .missing 'categories'"),
        (lambda c: c["annotations"][0].update(category_id=99), "annotation 1 has category 99, unlisted"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2]), r"has bbox \[1, 2\]; give"),
        (lambda c: c.update(images=[]), "lists no images"),
        (lambda c: c["categories"][0].update(name="ring"), "different categories .*ring.*; they must be the same"),
        (lambda c: c["categories"][0].update(name="x\ny"), r"different categories .*'x\\ny'.*; they must be the same"),
    ]
    for change, match in wrong:
        change_json(file, change)
        with pytest.raises(DataError, match=match):
            open_coco(coco)
        file.write_text(text)
    file.rename(file.with_name("boxes.json"))
    with pytest.raises(DataError, match=r"must hold one instances_val\*.json; found: none"):
        open_coco(coco)
    with pytest.raises(DataError, match="needs the folder annotations; found: no such folder"):
        open_coco(coco / "nowhere")


def test_coco_without_pycocotools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(DataError, match=r"read by pycocotools; run: pip install .stripefold\[train\]"):
        object_mask([[0, 0, 1, 0, 1, 1]], 4, 4)


def test_voc_gives_back_what_was_drawn(voc: Path) -> None:
    for maps, boxes, drawn in zip(open_voc_maps(voc), open_voc_boxes(voc), (TRAIN, VAL), strict=True):
        assert maps.classes == boxes.classes == drawn.classes
        assert len(maps) == len(boxes) == len(drawn)
        for index in range(len(drawn)):
            expected = drawn[index]
            assert torch.equal(maps[index].classes, expected.classes)
            assert torch.equal(boxes[index].boxes, expected.boxes)
            assert torch.equal(boxes[index].labels, expected.labels)
            # JPEG: near, not equal.
            assert (boxes[index].image.float() - expected.image.float()).abs().mean() < 16
            assert maps[index].masks is boxes[index].classes is None


def test_voc_without_names_has_vocs_own(voc: Path) -> None:
    (voc / "labels.txt").unlink()
    assert open_voc_maps(voc)[0].classes == VOC_CLASSES
    with pytest.raises(
        DataError,
        match=r"class '.*' is not among aeroplane.*; name the classes of the data, one a line, in .*/labels\.txt",
    ):
        open_voc_boxes(voc)[0][0]


def test_voc_says_what_is_wrong(voc: Path) -> None:
    listing = voc / "ImageSets" / "Segmentation" / "val.txt"
    picture, classes = voc / "JPEGImages" / "val_000000.jpg", voc / "SegmentationClass" / "val_000000.png"
    annotation = voc / "Annotations" / "val_000000.xml"
    text = annotation.read_text()

    annotation.write_text(text.replace("<difficult>0", "<difficult>1", 1))
    assert open_voc_boxes(voc)[1][0].crowd.tolist()[0]
    annotation.write_text(text.replace("<xmin>", "<x>").replace("</xmin>", "</x>"))
    with pytest.raises(DataError, match="is no VOC annotation: object 1 .*: could not convert"):
        open_voc_boxes(voc)[1][0]
    annotation.write_text("<annotation>")
    with pytest.raises(DataError, match="is no VOC annotation"):
        open_voc_boxes(voc)[1][0]

    Image.new("L", (40, 40), 9).save(classes)
    with pytest.raises(DataError, match=r"holds class 9; there are 3 classes.*one a line, in labels\.txt"):
        open_voc_maps(voc)[1][0]
    Image.new("P", (30, 40)).save(classes)
    with pytest.raises(DataError, match=r"differ in size: \(40, 30\) and \(40, 40\)"):
        open_voc_maps(voc)[1][0]
    picture.write_bytes(b"x")
    with pytest.raises(DataError, match="is no readable image"):
        open_voc_maps(voc)[1][0]
    listing.write_text("\n")
    with pytest.raises(DataError, match=r"val.txt lists no images"):
        open_voc_maps(voc)
    listing.unlink()
    with pytest.raises(DataError, match="cannot read .*val.txt"):
        open_voc_maps(voc)
    (voc / "labels.txt").write_text("disc\ndisc\n")
    with pytest.raises(DataError, match="must name each class of .* once"):
        open_voc_boxes(voc)


def test_ade20k_gives_back_what_was_drawn_and_other_does_not_count(ade20k: Path) -> None:
    for found, drawn in zip(open_ade20k(ade20k), (TRAIN, VAL), strict=True):
        assert found.classes == drawn.classes
        for index in range(len(drawn)):
            expected = drawn[index].classes
            assert torch.equal(found[index].classes, expected.masked_fill(expected == 0, IGNORED))
    (ade20k / "labels.txt").write_text("round\nsquare\npointed\n")
    assert open_ade20k(ade20k)[0].classes == ("round", "square", "pointed")


def test_ade20k_says_what_is_wrong(ade20k: Path) -> None:
    (ade20k / "annotations" / "validation" / "000001.png").unlink()
    with pytest.raises(DataError, match=r"has no 000001.png for 000001.jpg \(1 of 2\)"):
        open_ade20k(ade20k)
    for path in (ade20k / "images" / "validation").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="validation holds no images"):
        open_ade20k(ade20k)
    (ade20k / "objectInfo150.txt").unlink()
    with pytest.raises(DataError, match=r"holds neither labels.txt nor objectInfo150.txt"):
        open_ade20k(ade20k)


def test_a_class_map_in_colours_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "colours.png")
    with pytest.raises(DataError, match=r"is an image in colours \(mode RGB\)"):
        read_class_map(tmp_path / "colours.png")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(DataError, match="cannot read .*x.json"):
        read_json(tmp_path / "x.json")
