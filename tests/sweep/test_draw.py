"""The random search's samples."""

from __future__ import annotations

from typing import Any

import pytest

from stripefold.errors import ConfigError
from stripefold_lab.sweep.draw import DISTRIBUTIONS, draw

RATE = {"learning_rate": {"loguniform": [1e-3, 1.0]}}


def test_the_same_seed_draws_the_same() -> None:
    assert draw(RATE, 3, 0) == draw(RATE, 3, 0)
    assert draw(RATE, 3, 0) != draw(RATE, 3, 1)


def test_more_samples_and_more_options_leave_the_others_alone() -> None:
    assert draw(RATE, 5, 0)[:3] == draw(RATE, 3, 0)
    both = draw({"repeats": {"randint": [1, 5]}, **RATE}, 3, 0)
    assert [{"learning_rate": each["learning_rate"]} for each in both] == draw(RATE, 3, 0)


def test_loguniform_is_uniform_in_the_logarithm() -> None:
    values = [each["learning_rate"] for each in draw(RATE, 300, 0)]
    assert all(1e-3 <= value <= 1 for value in values)
    assert 70 < sum(value < 1e-2 for value in values) < 130  # a third; uniform would give 3


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_every_distribution_of_ray_gives_plain_values(kind: str) -> None:
    arguments: dict[str, list[Any]] = {
        "choice": [["a", "b"], ["c"], None], "quniform": [0, 1, 0.1], "qloguniform": [0.1, 1, 0.1],
        "qrandn": [0, 1, 0.1], "qrandint": [0, 10, 2], "qlograndint": [2, 10, 2], "lograndint": [1, 10],
        "randint": [0, 10], "loguniform": [0.1, 1],
    }  # fmt: skip
    values = [each["x"] for each in draw({"x": {kind: arguments.get(kind, [0, 1])}}, 20, 0)]
    assert len({str(value) for value in values}) > 1
    assert {type(value) for value in values} <= ({list, type(None)} if kind == "choice" else {int, float})


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (3, "random, x is 3; give one distribution, such as"),
        ({"uniform": [0, 1], "randn": [0, 1]}, "give one distribution"),
        ({"normal": [0, 1]}, "random, x: no distribution 'normal'; Ray Tune's are uniform, quniform"),
        ({"uniform": 1}, "random, x: uniform is given 1; give a list"),
        ({"choice": []}, r"random, x: choice is given \[\]; give a list"),
        ({"loguniform": [0, 1]}, r"random, x: Ray Tune refuses loguniform of \[0, 1\]"),
        ({"uniform": [0]}, r"random, x: Ray Tune refuses uniform of \[0\]"),
    ],
)
def test_refused(given: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        draw({"x": given}, 1, 0)
