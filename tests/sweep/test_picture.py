"""The picture shows every run, and intervals only where there are any."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from stripefold_lab.sweep import Sweep, plan_sweep
from stripefold_lab.sweep.picture import draw_result
from tests.sweep.conftest import Room
from tests.sweep.test_folder import finish


def points(axes: Any) -> list[float]:
    return sorted(float(x) for collection in axes.collections for x, _ in collection.get_offsets())


def intervals(axes: Any) -> list[list[float]]:
    return [list(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]


def test_every_run_is_a_point_beside_mean_and_interval(room: Room) -> None:
    for place, score in enumerate((0.5, 0.6, 0.52, 0.7)):
        finish(room, place, score)
    result = plan_sweep(room.sweep, room.paths.root)
    figure = draw_result(result)
    scores, differences = figure.axes
    assert points(scores) == pytest.approx([50, 52, 60, 70])
    assert points(differences) == pytest.approx([10, 18])
    assert len(intervals(scores)) == 2
    found = result.rows[1].difference
    assert intervals(differences) == [pytest.approx([100 * found.low, 100 * found.high])]
    # With two runs the interval is wider than the measure's own range, which the axis keeps to.
    assert intervals(scores)[1][1] > 100
    assert scores.get_xlim()[1] <= 100
    assert figure._supxlabel.get_text().startswith("circles: single runs, 2 seeds a setting; dots and lines")


def test_equal_runs_do_not_hide_each_other(room: Room) -> None:
    for place in range(4):
        finish(room, place, 0.5)
    scores, _ = draw_result(plan_sweep(room.sweep, room.paths.root)).axes
    places = [tuple(point) for collection in scores.collections for point in collection.get_offsets()]
    assert len(set(places)) == 4
    assert points(scores) == [50, 50, 50, 50]


def test_one_seed_has_no_interval_to_draw(sweep: Sweep, tmp_path: Any) -> None:
    room = Room(dataclasses.replace(sweep, seeds=(0,)), tmp_path / "one")
    finish(room, 0, 0.5)
    finish(room, 1, 0.6)
    figure = draw_result(plan_sweep(room.sweep, room.paths.root))
    assert [points(axes) for axes in figure.axes] == [pytest.approx([50, 60]), pytest.approx([10])]
    assert not any(intervals(axes) for axes in figure.axes)
    assert "nothing can be said about chance" in figure._supxlabel.get_text()


def test_without_a_control_there_is_one_panel(sweep: Sweep, tmp_path: Any) -> None:
    room = Room(dataclasses.replace(sweep, control=None, grid={"attention": ["se", "ie"]}), tmp_path / "none")
    assert len(draw_result(plan_sweep(room.sweep, room.paths.root)).axes) == 1
