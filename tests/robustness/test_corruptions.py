"""Corruptions of images: in range, repeatable, rising with the severity, one image at a time."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from stripefold.errors import ConfigError
from stripefold_lab.robustness import corrupt
from stripefold_lab.robustness.corruptions import FIXED, RANDOM, Corruption
from stripefold_lab.robustness.image_noise import add_gaussian, add_uniform, salt_and_pepper
from stripefold_lab.robustness.image_quality import blur, brighten, compress, fade, pixelate
from stripefold_lab.robustness.kinds import KINDS, choose_kinds, choose_severities
from stripefold_lab.training.config import TrainConfig
from stripefold_lab.training.data import load_data

IMAGE_KINDS = [*RANDOM, *FIXED]


def smooth_image(channels: int = 3, side: int = 32, seed: int = 0) -> torch.Tensor:
    """Like a photograph, in 0..1: large shapes and some detail."""
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.rand(1, channels, size, size, generator=generator) for size in (4, 12)]
    large, fine = (torch.nn.functional.interpolate(p, size=(side, side), mode="bilinear") for p in parts)
    return (0.15 + 0.5 * large + 0.25 * fine)[0]


def test_every_image_kind_has_a_function() -> None:
    assert [name for name, kind in KINDS.items() if kind.family != "inside"] == IMAGE_KINDS


@pytest.mark.parametrize("kind", IMAGE_KINDS)
@pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 8), (3, 5), (1, 64)])
def test_range_shape_and_dtype_are_kept(kind: str, channels: int, side: int) -> None:
    image = smooth_image(channels, side)
    before = image.clone()
    for severity in range(1, 6):
        found = corrupt(image, kind, severity)
        assert (found.shape, found.dtype) == (image.shape, image.dtype)
        assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert not torch.equal(found, image)  # at severity 5; a weaker noise may miss every value of a small image
    assert torch.equal(image, before)


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_severity_0_is_the_image_itself(kind: str) -> None:
    image = smooth_image()
    found = corrupt(image, kind, 0)
    assert torch.equal(found, image)
    assert found.data_ptr() != image.data_ptr()


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_the_distance_rises_with_the_severity(kind: str) -> None:
    images = [smooth_image(seed=seed) for seed in range(12)]
    distances = [
        sum(float((corrupt(image, kind, severity, index=i) - image).square().sum()) for i, image in enumerate(images))
        for severity in range(6)
    ]
    assert distances[0] == 0
    assert all(lower < upper for lower, upper in itertools.pairwise(distances)), distances


@given(st.integers(0, 2**31), st.integers(0, 10**6), st.sampled_from([*RANDOM]))
def test_noise_follows_from_seed_and_index_alone(seed: int, index: int, kind: str) -> None:
    image = torch.full((1, 6, 6), 0.5)
    torch.manual_seed(seed)
    state = torch.get_rng_state()
    found = corrupt(image, kind, 5, seed=seed, index=index)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(corrupt(image, kind, 5, seed=seed, index=index), found)


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_other_seeds_and_other_images_give_other_noise(kind: str) -> None:
    image = smooth_image()
    found = corrupt(image, kind, 5, seed=0, index=0)
    others = [corrupt(image, kind, 5, seed=1, index=0), corrupt(image, kind, 5, seed=0, index=1)]
    assert [torch.equal(other, found) for other in others] == [kind in FIXED] * 2


def test_a_stronger_noise_is_the_weaker_one_enlarged() -> None:
    image = torch.full((3, 16, 16), 0.5)
    weak, strong = (corrupt(image, "gaussian-noise", severity) - image for severity in (1, 2))
    assert torch.allclose(strong, weak * 0.06 / 0.04, atol=1e-6)
    few, many = (corrupt(image, "salt-and-pepper", severity) != image for severity in (1, 5))
    assert few.any()
    assert bool((many | ~few).all())  # what was hit stays hit


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_batch_does_not_matter(batch_size: int) -> None:
    data = load_data(TrainConfig(limit_test=20)).test.changed(Corruption("gaussian-noise", 3, seed=1))
    found = torch.cat([images for images, _ in DataLoader(data, batch_size=batch_size)])
    assert torch.equal(found, torch.stack([data[index][0] for index in range(20)]))
    assert len({tuple(image.flatten()[:3].tolist()) for image in found}) > 1


def test_noise_is_added_in_pixels_before_they_are_normalised() -> None:
    plain = load_data(TrainConfig(limit_test=5)).test
    noisy = plain.changed(Corruption("salt-and-pepper", 5, seed=0))
    extremes = {round(float((value - 0.3053) / 0.3761), 4) for value in (0.0, 1.0)}
    moved = torch.cat([noisy[i][0][noisy[i][0] != plain[i][0]] for i in range(5)])
    assert len(moved)
    assert {round(float(value), 4) for value in moved} <= extremes
    assert torch.equal(plain.changed(None)[3][0], plain[3][0])


def test_what_each_function_does() -> None:
    generator = torch.Generator().manual_seed(0)
    grey = torch.full((3, 64, 64), 0.5)
    assert float((add_gaussian(grey, 0.05, generator) - grey).std()) == pytest.approx(0.05, rel=0.05)
    width = add_uniform(grey, 0.2, generator) - grey
    assert 0.19 < float(width.abs().max()) <= 0.2
    assert float(width.std()) == pytest.approx(0.2 / 3**0.5, rel=0.05)
    hit = salt_and_pepper(grey, 0.3, generator)
    assert float((hit != 0.5).float().mean()) == pytest.approx(0.3, rel=0.05)
    assert float((hit == 1).float().mean()) == pytest.approx(0.15, rel=0.1)
    image = smooth_image()
    assert torch.allclose(blur(grey, 2.0), grey, atol=1e-6)
    assert float(blur(image, 1.0).std()) < float(image.std())
    assert len(pixelate(torch.arange(64.0).view(1, 8, 8) / 64, 0.5).unique()) == 16
    assert float((compress(image, 95) - image).abs().max()) < float((compress(image, 20) - image).abs().max())
    assert torch.allclose(brighten(0.3 * image, 1.5), 0.45 * image)
    assert float(fade(image, 0.0).std()) == pytest.approx(0, abs=1e-6)


def test_a_larger_image_is_blurred_in_proportion() -> None:
    edge = (torch.arange(128) >= 64).float().expand(1, 128, -1)
    rows = (blur(edge, 1.0)[0, 64], blur(edge[:, 48:80, 48:80], 1.0)[0, 16])
    large, small = (int(((row > 0.05) & (row < 0.95)).sum()) for row in rows)
    assert large > 3 * small > 0


def test_wrong_use_is_refused() -> None:
    image = smooth_image()
    with pytest.raises(ConfigError, match="no corruption 'fog' of an image; choose one of gaussian-noise"):
        corrupt(image, "fog", 1)
    with pytest.raises(ConfigError, match="no corruption 'batch-random'"):
        corrupt(image, "batch-random", 1)
    with pytest.raises(ConfigError, match="severity is 6; choose 1 to 5"):
        corrupt(image, "jpeg", 6)
    with pytest.raises(ConfigError, match=r"has the shape \(2, 8, 8\)"):
        corrupt(torch.zeros(2, 8, 8), "jpeg", 1)
    with pytest.raises(ConfigError, match=r"dtype torch.uint8; give floats in 0..1"):
        corrupt(torch.zeros(3, 8, 8, dtype=torch.uint8), "jpeg", 1)


def test_kinds_and_severities_are_chosen_by_name() -> None:
    assert choose_kinds(None) == tuple(KINDS)
    assert choose_kinds(["inside", "jpeg"])[0] == "jpeg"
    assert choose_severities([5, 1, 1]) == (1, 5)
    with pytest.raises(ConfigError, match="unknown kind 'snow'; choose from corruption, inside, noise, gaussian-noise"):
        choose_kinds(["snow"])
    with pytest.raises(ConfigError, match="no kind of disturbance was named"):
        choose_kinds([])
    with pytest.raises(ConfigError, match="severity 0 does not exist"):
        choose_severities([0, 1])
    with pytest.raises(ConfigError, match="no severity was named"):
        choose_severities([])
