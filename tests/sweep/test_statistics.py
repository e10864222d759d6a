"""Means, spreads and intervals against scipy's own, and against what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from stripefold_lab.sweep.result import compare
from stripefold_lab.sweep.statistics import estimate, joint_level, paired
from stripefold_lab.sweep.trials import Setting
from stripefold_lab.training import TrainConfig


def test_the_paired_interval_is_that_of_the_paired_t_test() -> None:
    generator = np.random.default_rng(0)
    ours, control = generator.normal(0.7, 0.02, 5), generator.normal(0.68, 0.02, 5)
    found = estimate(paired(dict(enumerate(ours)), dict(enumerate(control))))
    expected = stats.ttest_rel(ours, control).confidence_interval(0.95)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx((ours - control).mean())
    assert found.spread == pytest.approx((ours - control).std(ddof=1))
    # Pairing is what makes it narrow: unpaired intervals of the same runs differ.
    unpaired = stats.ttest_ind(ours, control).confidence_interval(0.95)
    assert found.high - found.low != pytest.approx(unpaired.high - unpaired.low)


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    found = [estimate(list(generator.normal(3.0, 2.0, 4))) for _ in range(2000)]
    covered = np.mean([each is not None and each.low < 3.0 < each.high for each in found])
    assert 0.935 < covered < 0.965
    assert (
        np.mean([abs(each.mean - 3.0) < 1.96 * each.spread / 2 for each in found if each]) < 0.9
    )  # without Student's t


def test_pairs_are_the_seeds_of_both() -> None:
    assert paired({0: 0.5, 2: 0.7, 3: 0.9}, {2: 0.6, 1: 0.1, 3: 0.6}) == pytest.approx([0.1, 0.3])


def test_no_interval_where_there_is_none() -> None:
    assert estimate([]) is None
    one, alike = estimate([0.5]), estimate([0.5 - 0.3, 0.3 - 0.1])
    assert one is not None
    assert (one.spread, one.low, one.high) == (None, None, None)
    assert alike is not None
    assert (alike.spread, alike.low, alike.high) == (0.0, None, None)


def settings(*labels: str) -> list[Setting]:
    config = TrainConfig()
    return [
        Setting(label="backbone", config=config, control=None),
        *(Setting(label=label, config=config, control="backbone") for label in labels),
    ]


def test_rows_compare_with_their_control_and_count_the_comparisons() -> None:
    scores = {"backbone": {0: 0.5, 1: 0.6, 2: 0.4}, "a": {0: 0.6, 1: 0.69, 2: 0.51}, "b": {0: 0.4}}
    base, better, short = compare(settings("a", "b"), scores)
    assert (base.difference, base.stands_out) == (None, False)
    assert better.difference.mean == pytest.approx(0.1)
    assert (better.difference.low, better.difference.high) == pytest.approx((0.0752, 0.1248), abs=1e-4)
    # Wider for both together than for one, and still without 0.
    assert better.joint.low < better.difference.low
    assert better.stands_out
    assert (len(short.scores), short.difference.mean, short.difference.low) == (1, pytest.approx(-0.1), None)
    assert not short.stands_out


def test_alone_it_would_stand_out_among_many_it_does_not() -> None:
    scores = {"backbone": {0: 0.5, 1: 0.5, 2: 0.5}, "a": {0: 0.52, 1: 0.54, 2: 0.53}}
    assert compare(settings("a"), scores)[1].stands_out
    others = [f"other {number}" for number in range(9)]
    rows = compare(settings("a", *others), {**scores, **dict.fromkeys(others, scores["backbone"])})
    assert rows[1].difference.low > 0
    assert not rows[1].stands_out


def test_joint_level() -> None:
    assert joint_level(1) == pytest.approx(0.95)
    assert joint_level(10) == pytest.approx(0.995)
