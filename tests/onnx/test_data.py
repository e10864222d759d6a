"""Data in all its forms, and the words about data that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stripefold import onnx as so
from stripefold.errors import DataError
from stripefold.onnx.data import FeedBatches, Input
from stripefold.onnx.images import Images
from tests.onnx.nets import data

IMAGES = Input("x", np.dtype(np.float32), (None, 3, None, None))
FIXED = Input("x", np.dtype(np.float32), (4, 3, 6, 5))


def shapes(given: Any, *inputs: Input, **options: Any) -> list[tuple[int, ...]]:
    return [batch.feed["x"].shape for batch in FeedBatches(given, inputs or [IMAGES], **options)]


def test_forms() -> None:
    array = np.zeros((5, 3, 4, 4))
    for one in (
        array,
        {"x": array},
        (array, np.arange(5)),
        torch.from_numpy(array),
        {"x": array, "labels": np.arange(5)},
    ):
        assert shapes(one) == [(5, 3, 4, 4)]
        assert shapes([one, one]) == [(5, 3, 4, 4)] * 2
        assert shapes(lambda one=one: one) == [(5, 3, 4, 4)]
        assert shapes(lambda one=one: iter([one, one])) == [(5, 3, 4, 4)] * 2
    assert shapes([array, array], limit=7) == [(5, 3, 4, 4), (2, 3, 4, 4)]
    labelled = FeedBatches([(array, np.arange(5)), (array, list(range(5)))][:1], [IMAGES], limit=3).first()
    assert labelled.labels is not None
    assert labelled.labels.tolist() == [0, 1, 2]
    assert labelled.feed["x"].dtype == np.float32  # cast from float64


def test_npz(tmp_path: Path) -> None:
    array = np.zeros((40, 3, 4, 4), np.float32)
    np.savez(tmp_path / "one.npz", images=array, labels=np.zeros(40, int))
    assert shapes(tmp_path / "one.npz") == [(16, 3, 4, 4), (16, 3, 4, 4), (8, 3, 4, 4)]
    second = Input("y", np.dtype(np.int64), None)
    np.savez(tmp_path / "two.npz", x=array, y=np.zeros(40, np.int32))
    batch = FeedBatches(tmp_path / "two.npz", [IMAGES, second]).first()
    assert batch.feed["y"].dtype == np.int64
    assert batch.labels is None
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 and so on")
    np.savez(tmp_path / "odd.npz", x=array, y=np.zeros(3))
    np.savez(tmp_path / "objects.npz", x=np.asarray([{}], object))
    for name, match in (("broken", "cannot be read"), ("odd", "not of one length"), ("objects", "cannot be read")):
        with pytest.raises(DataError, match=match):
            FeedBatches(tmp_path / f"{name}.npz", [IMAGES])


def test_what_does_not_fit() -> None:
    array = np.zeros((5, 3, 4, 4), np.float32)
    cases: list[tuple[Any, str]] = [
        (3, "data is int: give a folder"),
        (iter([array]), "can be read only once"),
        ("nowhere", "does not exist"),
        (__file__, "neither a folder of images nor an .npz file"),
        (lambda: 3, "gives int when it is called"),
        ([], "holds no samples"),
        ([object()], "is object, no array"),
        ([np.float32(3)], "is float32, no array"),
        ({"y": array}, r"gives \['y'\], and the network takes \['x'\]"),
        (array[0], r"is \(3, 4, 4\) for the input 'x' of \? x 3 x \? x \?"),
        (array[:, :2], r"is \(5, 2, 4, 4\)"),
        (array.astype(np.uint8), "is uint8 for the input 'x' of float32"),
        ((array, np.zeros(4, int)), "the labels of batch 0 of data are int64"),
        ((array, np.zeros(5)), "are float64"),
        ((array, np.full(5, -1)), "whole numbers from 0"),
    ]
    for given, match in cases:
        with pytest.raises(DataError, match=match):
            list(FeedBatches(given, [IMAGES]))
    assert shapes(iter([array]), again=False) == [(5, 3, 4, 4)]


def test_inputs_that_are_no_numbers() -> None:
    import onnx_ir as ir

    value = ir.Value(name="words", type=ir.TensorType(ir.DataType.STRING))
    with pytest.raises(DataError, match="'words' is no tensor of numbers"):
        Input.of(value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for index in range(6):
        place = tmp_path / ("dark" if index % 2 else "bright")
        place.mkdir(exist_ok=True)
        pixels = rng.integers(0, 100 if index % 2 else 256, (8 + index, 12, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{index}.png")
    return tmp_path


def test_a_folder_of_images(folder: Path) -> None:
    assert shapes(folder, FIXED) == [(4, 3, 6, 5)]  # a fixed batch cannot take the rest
    batches = list(FeedBatches(Images(folder, size=(7, 9), batch=4, labels=True), [IMAGES]))
    assert [batch.feed["x"].shape for batch in batches] == [(4, 3, 7, 9), (2, 3, 7, 9)]
    assert [batch.labels.tolist() for batch in batches if batch.labels is not None] == [[0, 0, 0, 1], [1, 1]]
    last = Input("x", np.dtype(np.float32), (None, None, None, 3))
    assert shapes(Images(folder, size=(7, 9)), last) == [(6, 7, 9, 3)]


def test_preprocessing_is_what_it_says(folder: Path) -> None:
    first = Images(folder, size=(8, 12)).files()[0]
    pixels = np.asarray(Image.open(first), np.float32)

    def prepared(**options: Any) -> np.ndarray:
        images = Images(folder, size=options.pop("size", (8, 12)), batch=1, **options)
        return next(iter(images.batches((None, 3, None, None), np.dtype(np.float32))))[0]

    np.testing.assert_allclose(prepared(), pixels.transpose(2, 0, 1) / 255, atol=1e-6)
    np.testing.assert_allclose(prepared(order="bgr", scale=1), pixels[:, :, ::-1].transpose(2, 0, 1), atol=1e-6)
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    expected = ((pixels / 255 - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(prepared(mean=mean, std=std), expected, atol=1e-5)
    np.testing.assert_allclose(prepared(layout="nhwc"), pixels / 255, atol=1e-6)
    assert prepared(order="gray").shape == (1, 8, 12)
    padded = prepared(fit="pad", size=(8, 30))
    np.testing.assert_allclose(padded[:, :, :12], pixels.transpose(2, 0, 1) / 255, atol=1e-6)
    assert not padded[:, :, 12:].any()
    cropped = prepared(fit="crop", size=(8, 8))
    np.testing.assert_allclose(cropped, pixels.transpose(2, 0, 1)[:, :, 2:10] / 255, atol=0.3)


def test_folders_that_cannot_be_used(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(DataError, match="holds no images"):
        shapes(empty)
    with pytest.raises(DataError, match="images of any size: say which"):
        shapes(folder)
    with pytest.raises(DataError, match="first input has four axes"):
        shapes(folder, Input("x", np.dtype(np.float32), (None, 3)))
    (folder / "loose.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="loose.png lies in"):
        shapes(Images(folder, size=(4, 4), labels=True))
    with pytest.raises(DataError, match="loose.png cannot be read as an image"):
        shapes(Images(folder, size=(4, 4)))
    (folder / "loose.png").unlink()
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "thumb.png").write_bytes(b"no image")
    assert shapes(Images(folder, size=(4, 4))) == [(6, 3, 4, 4)]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"fit": "squeeze"}, "fit='squeeze': choose one of stretch, crop, pad"),
        ({"order": "hsv"}, "order='hsv'"),
        ({"layout": "nc"}, "layout='nc'"),
        ({"mean": (1.0, 2.0)}, "mean has 2 values: give 1, or 3 for rgb"),
        ({"std": (1.0, 2.0, 3.0), "order": "gray"}, "std has 3 values: give 1, or 1 for gray"),
        ({"std": (0.0,)}, "std must not be 0"),
        ({"batch": 0}, "whole numbers from 1"),
        ({"size": (0, 3)}, "whole numbers from 1"),
    ],
)
def test_bad_preprocessing(options: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=match):
        Images("somewhere", **options)


def test_without_pillow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(DataError, match="Pillow, which is not installed"):
        shapes(Images(folder, size=(4, 4)))


def test_names() -> None:
    with pytest.raises(AttributeError, match="no_such"):
        so.no_such  # noqa: B018
    assert so.bake is so.bake
    assert callable(so.observe)
    assert data(1)[0].shape == (2, 3, 8, 10)
