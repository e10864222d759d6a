"""Data sets, transforms, and randomness that follows from the place in the run."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stripefold.errors import ConfigError, DataError
from stripefold_lab.training import transforms
from stripefold_lab.training.config import TrainConfig
from stripefold_lab.training.data import evaluation_loader, load_data, training_loader
from stripefold_lab.training.images import ArrayImages, choose, read_image
from stripefold_lab.training.seeding import EpochSampler, derive_seed


def write_images(folder: Path, count: int, size: tuple[int, int] = (12, 12)) -> None:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(len(str(folder)))
    for number in range(count):
        pixels = generator.integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part, count in (("train", 5), ("test", 2)):
        for name in ("cat", "dog"):
            write_images(tmp_path / part / name, count)
    return tmp_path


def test_digits_come_without_a_download() -> None:
    data = load_data(TrainConfig(image_size=16, augmentation="shift"))
    assert (len(data.train), len(data.test)) == (1437, 360)
    assert (data.spec.channels, data.spec.size, len(data.spec.classes)) == (1, 16, 10)
    images, labels = next(iter(evaluation_loader(data, TrainConfig(batch_size=360))))
    assert images.shape == (360, 1, 16, 16)
    assert torch.bincount(labels).min() >= 34
    assert abs(images.mean()) < 0.05
    overlap = {image.numpy().tobytes() for image, _ in data.train.source} & {
        image.numpy().tobytes() for image, _ in data.test.source
    }
    assert not overlap


def test_folder(folder: Path) -> None:
    config = TrainConfig(data=f"folder:{folder}", batch_size=4, augmentation="crop-flip", workers=1)
    data = load_data(config)
    assert data.spec.classes == ("cat", "dog")
    assert (len(data.train), len(data.test), data.spec.size, data.spec.channels) == (10, 4, 12, 3)
    batches = list(training_loader(data, config))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    assert batches[0][0].shape == (4, 3, 12, 12)


def test_folder_of_val_and_odd_sizes(folder: Path) -> None:
    (folder / "test").rename(folder / "val")
    write_images(folder / "train" / "cat" / "deep", 1, size=(20, 9))
    config = TrainConfig(data=f"folder:{folder}")
    with pytest.raises(ConfigError, match="image_size is None, and the images of 'folder:.*' differ in size"):
        load_data(config.with_overrides(data=f"folder:{folder}"))
    data = load_data(config.with_overrides(image_size=8, augmentation="resized-crop"))
    assert {data.train[(0, index)][0].shape for index in range(len(data.train))} == {(3, 8, 8)}
    assert data.test[0][0].shape == (3, 8, 8)


def test_hidden_folders_are_no_classes(folder: Path) -> None:
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    assert load_data(TrainConfig(data=f"folder:{folder}")).spec.classes == ("cat", "dog")


@pytest.mark.parametrize("limit", [None, 3])
def test_images_in_memory_are_those_of_the_files(folder: Path, limit: int | None) -> None:
    config = TrainConfig(data=f"folder:{folder}", augmentation="crop-flip", limit_train=limit)
    read, kept = load_data(config), load_data(config.with_overrides(cache=True))
    shutil.rmtree(folder)  # from here on only what is kept can be had
    with pytest.raises(DataError, match="is no readable image"):
        read.train[0, 0]
    assert len(kept.train) == len(read.train)
    assert kept.train[0, 0][0].shape == (3, 12, 12)
    assert kept.train.source.images.dtype == torch.uint8


def test_images_in_memory_change_no_number(folder: Path) -> None:
    config = TrainConfig(data=f"folder:{folder}", augmentation="crop-flip")
    read, kept = load_data(config), load_data(config.with_overrides(cache=True))
    for index in range(len(read.train)):
        (image, label), (same, number) = read.train[3, index], kept.train[3, index]
        assert torch.equal(image, same)
        assert label == number
    assert torch.equal(read.test[1][0], kept.test[1][0])
    digits = TrainConfig(cache=True)
    assert len(load_data(digits).train) == 1437


def test_images_of_several_sizes_are_not_kept(folder: Path) -> None:
    write_images(folder / "train" / "cat" / "deep", 1, size=(20, 9))
    config = TrainConfig(data=f"folder:{folder}", image_size=8, cache=True)
    with pytest.raises(
        DataError, match=r"image 0 is \(3, 12, 12\) where image \d+ is \(3, 20, 9\): set cache to false"
    ):
        load_data(config)
    for task in ("segmentation", "detection"):
        with pytest.raises(ConfigError, match="cache is True; it is for classification"):
            TrainConfig(task=task, data="shapes", cache=True)  # type: ignore[arg-type]


def remove(part: str) -> Callable[[Path], None]:
    return lambda folder: (folder / part).rename(folder / "other")


def break_image(folder: Path) -> None:
    (folder / "train" / "cat" / "0.png").write_bytes(b"no image")


def empty_class(folder: Path) -> None:
    for file in (folder / "train" / "cat").iterdir():
        file.unlink()


def one_class(folder: Path) -> None:
    for half in ("train", "test"):
        shutil.rmtree(folder / half / "dog")


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (one_class, "train has one class, 'cat'; at least two are needed"),
        (remove("train"), "needs train/ and test/ or val/, each with a folder per class; found: other, test"),
        (remove("test"), "found: other, train"),
        (remove("test/dog"), r"train and test have different classes \(dog, other\)|found"),
        (empty_class, "is no folder of classes"),
        (break_image, "0.png is no readable image"),
    ],
)
def test_folder_refuses(folder: Path, spoil: Callable[[Path], None], match: str) -> None:
    if match.startswith("train and test"):
        (folder / "test" / "dog").rename(folder / "test" / "wolf")
        match = r"train and test have different classes \(dog, wolf\)"
    else:
        spoil(folder)
    with pytest.raises(DataError, match=match):
        load_data(TrainConfig(data=f"folder:{folder}"))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"data": "mnist1d"}, ConfigError, "data is 'mnist1d'; choose one of digits, folder:PATH, cifar10"),
        ({"data": "folder:no/such/folder"}, DataError, "no folder no/such/folder; data=folder:PATH needs"),
    ],
)
def test_refuses_unknown_data(options: dict, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        load_data(TrainConfig(**options))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10", "fashion_mnist", "imagenet"])
def test_missing_data_says_where_it_looked(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"{name} was looked for in {tmp_path}.*; (set data_dir|put its)"):
        load_data(TrainConfig(data=name, data_dir=str(tmp_path)))


def test_cifar10_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    base = tmp_path / CIFAR10.base_folder
    base.mkdir()
    pixels = np.arange(4 * 3072, dtype=np.uint8).reshape(4, 3072)
    for name in ("data_batch_1", "test_batch"):
        (base / name).write_bytes(pickle.dumps({"data": pixels, "labels": [0, 1, 2, 3]}))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": [*"abcdefghij"]}))
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: True)
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", ""]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", ""]])
    data = load_data(TrainConfig(data="cifar10", data_dir=str(tmp_path)))
    image, label = data.test[1]
    assert (image.shape, label, data.spec.classes[1]) == ((3, 32, 32), 1, "b")
    red = (pixels[1].reshape(3, 32, 32)[0] / 255 - 0.4914) / 0.2023
    assert torch.allclose(image[0].double(), torch.from_numpy(red), atol=1e-5)


def test_augmentation_follows_from_seed_epoch_and_index() -> None:
    config = TrainConfig(image_size=16, augmentation="crop-flip", limit_train=8)
    one, two = load_data(config).train, load_data(config).train
    torch.manual_seed(1)
    first = one[(0, 3)][0]
    torch.manual_seed(2)
    assert torch.equal(first, two[(0, 3)][0])
    others = [one[(epoch, 3)][0] for epoch in range(1, 6)]
    assert any(not torch.equal(first, other) for other in others)
    assert any(
        not torch.equal(first, load_data(config.with_overrides(seed=seed)).train[(0, 3)][0]) for seed in range(1, 6)
    )


def test_the_order_follows_from_seed_and_epoch() -> None:
    sampler = EpochSampler(50, seed=7)
    first = list(sampler)
    assert first == list(EpochSampler(50, seed=7))
    assert sorted(index for _, index in first) == list(range(50))
    sampler.set_epoch(1)
    second = list(sampler)
    assert {epoch for epoch, _ in second} == {1}
    assert [index for _, index in second] != [index for _, index in first]
    assert [index for _, index in EpochSampler(50, seed=8)] != [index for _, index in first]


def test_seeds_differ_by_purpose_and_place() -> None:
    seeds = {
        derive_seed(seed, purpose, *place)
        for seed in (0, 1)
        for purpose in ("order", "step")
        for place in ((0,), (1,), (0, 1), (1, 0), (11,))
    }
    assert len(seeds) == 20
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(("count", "sizes"), [(33, [16, 16]), (34, [16, 16, 2]), (5, [5])])
def test_no_batch_of_a_single_image(count: int, sizes: list[int]) -> None:
    config = TrainConfig(limit_train=count, batch_size=16)
    assert [len(labels) for _, labels in training_loader(load_data(config), config)] == sizes


def test_too_few_images() -> None:
    config = TrainConfig(limit_train=1)
    with pytest.raises(DataError, match="digits has 1 training images; training needs at least 2"):
        training_loader(load_data(config), config)
    data = load_data(config)
    data.test.source = ArrayImages(torch.empty(0, 1, 8, 8), torch.empty(0))
    with pytest.raises(DataError, match="digits has no test images"):
        evaluation_loader(data, config)


def test_parts_are_the_same_in_every_run() -> None:
    data = load_data(TrainConfig(limit_test=20, seed=0)), load_data(TrainConfig(limit_test=20, seed=5))
    assert torch.equal(data[0].test.source.labels, data[1].test.source.labels)
    whole = data[0].whole[1]
    for samples in (whole, [whole[index] for index in range(len(whole))]):  # in memory, and one by one
        some, again = choose(samples, 5), choose(samples, 5)
        assert [some[index][1] for index in range(len(some))] == [again[index][1] for index in range(5)]
        assert torch.equal(some[4][0], choose(whole, 5)[4][0])
    assert choose(whole, None) is whole


def test_channels_are_repeated_or_averaged(folder: Path) -> None:
    colour = load_data(TrainConfig(channels=3)).test[0][0]
    assert colour.shape == (3, 8, 8)
    assert torch.equal(colour[0], colour[2])
    assert load_data(TrainConfig(data=f"folder:{folder}", channels=1)).test[0][0].shape == (1, 12, 12)


def test_transforms() -> None:
    image = torch.arange(48.0).reshape(1, 6, 8)
    assert transforms.fit(4, image).shape == (1, 4, 4)
    assert torch.equal(transforms.fit(6, image), image[:, :, 1:7])
    assert transforms.fit(6, image, share=0.75).shape == (1, 6, 6)
    torch.manual_seed(0)
    flips = [torch.equal(transforms.random_flip(image), image.flip(2)) for _ in range(20)]
    assert 2 < sum(flips) < 18
    crops = [transforms.random_crop(2, image) for _ in range(40)]
    assert {crop.shape for crop in crops} == {(1, 6, 8)}
    assert any(torch.equal(crop, image) for crop in crops)
    assert any(crop[0, 0].eq(0).all() for crop in crops)
    parts = [transforms.random_resized_crop(5, image) for _ in range(20)]
    assert {part.shape for part in parts} == {(1, 5, 5)}
    assert len({float(part.mean()) for part in parts}) > 10
    assert transforms.random_resized_crop(5, torch.zeros(1, 1, 400)).shape == (1, 5, 5)


def test_an_image_file_is_read_as_three_channels(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 6), 128, np.uint8)).save(tmp_path / "grey.png")
    assert torch.equal(read_image(tmp_path / "grey.png"), torch.full((3, 4, 6), 128, dtype=torch.uint8))
    with pytest.raises(DataError, match=r"missing.png is no readable image .*; replace it or take it out"):
        read_image(tmp_path / "missing.png")
