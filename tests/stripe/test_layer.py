"""The numbers of one gate: the stripe index of known vectors, a case by hand, merging."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from stripefold.errors import ObserveError
from stripefold.stripe.layer import LayerStripes
from stripefold.stripe.moments import Moments

EXACT = 1e-12


def layer_of(values: Tensor, *, keep: int = 4, labels: Sequence[int] | None = None, name: str = "se") -> LayerStripes:
    """An entry computed from all values (n, C) at once."""
    values = values.double()
    means, counts = None, None
    if labels is not None:
        label = torch.tensor(labels)
        classes = int(label.max()) + 1
        counts = torch.bincount(label, minlength=classes)
        rows = [
            values[label == c].mean(0) if counts[c] else torch.zeros(values.shape[1]).double() for c in range(classes)
        ]
        means = torch.stack(rows)
    return LayerStripes(
        name=name,
        kind="Squeeze",
        depth=0.5,
        channels=values.shape[1],
        images=len(values),
        mean=values.mean(0),
        m2=(values - values.mean(0)).square().sum(0),
        sample=values[:keep].float(),
        keep=keep,
        class_means=means,
        class_counts=counts,
        descriptor_mean=values.mean(0) * 2,
    )


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_constant_vector_has_index_one() -> None:
    layer = layer_of(noise(1, 16).expand(100, 16))
    assert layer.stripe_index == pytest.approx(1, abs=EXACT)
    assert layer.index_flag == ""
    assert layer.within_over_mean == pytest.approx(0, abs=EXACT)


@pytest.mark.parametrize("value", [0.5, 0.1, 0.0, 1.0, 1 / 3])
def test_equal_constants_have_index_one_and_say_so(value: float) -> None:
    layer = layer_of(torch.full((1000, 16), value, dtype=torch.float64))
    assert (layer.stripe_index, layer.index_flag) == (1.0, "constant")
    assert layer.class_share is None
    assert layer.within_over_mean == (None if value == 0 else pytest.approx(0, abs=EXACT))


def test_noise_has_an_index_about_zero() -> None:
    layer = layer_of(noise(2000, 64))
    assert layer.stripe_index == pytest.approx(1 / 2000, rel=0.5)
    assert layer.index_flag == ""


def test_nearly_constant_gates_look_unstriped_by_the_index_alone() -> None:
    """0.5 +- 0.001: the index is low, and the deviation beside it says that the gate hardly moves."""
    layer = layer_of(0.5 + 0.001 * (2 * noise(2000, 64) - 1))
    assert layer.stripe_index < 0.01
    assert float(layer.within_std.max()) < 0.001
    assert layer.within_over_mean == pytest.approx(0.001 / 3**0.5 / 0.5, rel=0.05)
    assert layer.index_flag == ""


def test_a_case_by_hand() -> None:
    """Channel 0 gives 1 and 3, channel 1 gives 5 and 5: means 2 and 5, variances 1 and 0."""
    layer = layer_of(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), labels=[0, 1])
    assert layer.mean.tolist() == [2, 5]
    assert layer.within_variance.tolist() == [1, 0]
    assert layer.between_variance == 2.25
    assert layer.total_variance == 2.75 == float(torch.tensor([1.0, 3, 5, 5]).double().var(correction=0))
    assert layer.stripe_index == 2.25 / 2.75
    assert layer.within_over_mean == 0.5 / 3.5
    assert layer.class_share == 1.0


def test_one_image_says_that_nothing_can_vary() -> None:
    layer = layer_of(noise(1, 8))
    assert (layer.stripe_index, layer.index_flag) == (1.0, "one image")


def test_rounding_in_the_models_dtype_is_no_variance() -> None:
    values = 0.5 + 2e-8 * noise(50, 4)  # below the spacing of float32 at 0.5
    single = LayerStripes(**{**vars(layer_of(values)), "dtype": "float32"})
    double = LayerStripes(**{**vars(layer_of(values)), "dtype": "float64"})
    assert (single.stripe_index, single.index_flag) == (1.0, "constant")
    assert double.stripe_index < 0.5
    assert double.index_flag == ""


def test_share_of_the_class() -> None:
    labels = [0, 1, 2] * 40
    offsets = torch.tensor([[0.0], [1.0], [2.0]]).double().repeat(40, 5)
    assert layer_of(offsets, labels=labels).class_share == pytest.approx(1, abs=EXACT)
    assert layer_of(noise(120, 5), labels=labels).class_share < 0.1
    mixed = layer_of(offsets + noise(120, 5), labels=labels)
    assert mixed.class_share == pytest.approx((2 / 3) / (2 / 3 + 1 / 12), rel=0.1)
    assert layer_of(noise(120, 5)).class_share is None


@pytest.mark.parametrize("sizes", [(20,), (1,) * 20, (7, 13), (19, 1)])
def test_moments_in_any_split(sizes: tuple[int, ...]) -> None:
    values = 1e3 + noise(20, 6)  # far from zero, where naive sums of squares lose the variance
    merged: Moments | None = None
    for part in torch.split(values, list(sizes)):
        merged = Moments.of(part) if merged is None else merged.merge(Moments.of(part))
    assert merged is not None
    assert merged.count == 20
    torch.testing.assert_close(merged.mean, values.mean(0), rtol=EXACT, atol=0)
    torch.testing.assert_close(merged.m2, (values - values.mean(0)).square().sum(0), rtol=1e-11, atol=0)


def test_merge_is_the_whole() -> None:
    values, labels = noise(30, 6), [0, 1, 3] * 10
    first, second = (
        layer_of(values[:11], labels=labels[:11], keep=20),
        layer_of(values[11:], labels=labels[11:], keep=20),
    )
    merged, whole = first.merge(second), layer_of(values, labels=labels, keep=20)
    for key in ("mean", "m2", "class_means", "class_counts", "descriptor_mean", "sample"):
        got, wanted = getattr(merged, key), getattr(whole, key)
        torch.testing.assert_close(got, wanted, rtol=EXACT, atol=EXACT, msg=key)
    assert (merged.images, merged.keep, len(merged.sample)) == (30, 20, 20)
    assert merged.stripe_index == pytest.approx(whole.stripe_index, rel=EXACT)
    assert merged.class_share == pytest.approx(whole.class_share, rel=EXACT)


def test_merge_with_classes_on_one_side_only_drops_them() -> None:
    values = noise(10, 3)
    merged = layer_of(values[:5], labels=[0, 1, 0, 1, 0]).merge(layer_of(values[5:]))
    assert (merged.class_means, merged.class_counts, merged.class_share) == (None, None, None)


def test_other_gates_do_not_merge() -> None:
    with pytest.raises(ObserveError, match=r"cannot merge the gate 'se' \(3 channels\) with 'other' \(3 channels\)"):
        layer_of(noise(5, 3)).merge(layer_of(noise(5, 3), name="other"))
