"""Stripes over training: the differences by hand, what cannot be recorded, and the way to a file and back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stripefold.errors import ObserveError
from stripefold.stripe.trajectory import QUANTITIES, Trajectory
from tests.html_report.reports import make_layer, make_report, make_trajectory


def test_differences_computed_by_hand() -> None:
    trajectory = Trajectory()
    trajectory.add(1, replace(make_report(()), layers=(make_layer("se", torch.tensor([[0.0, 1.0], [0.5, 0.0]])),)))
    trajectory.add(3, replace(make_report(()), layers=(make_layer("se", torch.tensor([[0.25, 1.0], [0.25, 0.5]])),)))
    # |v - v before|: 0.25, 0, 0.25, 0.5; means 0.25, 0.5 and then 0.25, 0.75.
    assert trajectory.epochs == [1, 3]
    assert trajectory.series("se", "first_difference") == [None, 0.25]
    assert trajectory.series("se", "mean_difference") == [None, 0.125]
    assert trajectory.series("se", "mean") == [0.375, 0.5]
    assert trajectory.series("se", "within_std_mean") == [0.375, 0.125]
    assert trajectory.channel_means("se").tolist() == [[0.25, 0.5], [0.25, 0.75]]


def test_numbers_are_those_of_the_report() -> None:
    report = make_report()
    trajectory = Trajectory()
    trajectory.add(0, report)
    for layer in report.layers:
        (row,) = trajectory.rows(layer.name)
        assert row.stripe_index == layer.stripe_index
        assert row.within_std_max == float(layer.within_std.max())
        assert row.within_over_mean == layer.within_over_mean
        assert row.between_std == layer.between_variance**0.5
        assert row.class_share is None
    assert trajectory.gates == tuple(layer.name for layer in report.layers)


def test_a_network_that_stands_still_has_no_differences() -> None:
    trajectory = Trajectory()
    for epoch in (1, 2):
        trajectory.add(epoch, make_report())
    assert {trajectory.series(gate, "first_difference")[1] for gate in trajectory.gates} == {0.0}
    trajectory.add(3, make_report(seed=1))  # the same comparison, with something to see
    assert all(trajectory.series(gate, "first_difference")[2] > 0.01 for gate in trajectory.gates)


def test_without_kept_images_only_the_means_have_differences() -> None:
    trajectory = Trajectory()
    for epoch in (1, 2):
        report = make_report((4,), seed=epoch)
        bare = replace(report, layers=(replace(report.layers[0], sample=report.layers[0].sample[:0]),))
        trajectory.add(epoch, bare)
    row = trajectory.rows("stage.0.se")[1]
    assert row.first_difference is None
    assert row.mean_difference > 0


def test_going_on_from_a_state_is_going_on(tmp_path: Path) -> None:
    whole = make_trajectory(epochs=(0, 2, 4, 6))
    part = make_trajectory(epochs=(0, 2))
    torch.save(part.state_dict(), tmp_path / "state.pt")
    resumed = Trajectory.from_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for epoch in (4, 6):
        resumed.add(epoch, make_report(noise=0.1 + 1 / (1 + epoch), seed=epoch))
    assert resumed.to_dict() == whole.to_dict()
    assert torch.equal(resumed.channel_means("stage.1.se"), whole.channel_means("stage.1.se"))


def test_file_and_back(tmp_path: Path) -> None:
    trajectory = make_trajectory()
    path = trajectory.save(tmp_path / "trajectory.json")
    read = Trajectory.load(path)
    assert read.to_dict() == trajectory.to_dict()
    assert (read.model, read.images, read.epochs) == ("TinyNet", 24, [0, 2, 4, 6])
    for gate in trajectory.gates:
        assert read.rows(gate) == trajectory.rows(gate)
        torch.testing.assert_close(read.channel_means(gate), trajectory.channel_means(gate), rtol=1e-5, atol=0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["trajectory.json"]


def test_a_constant_gate_stays_strict_json() -> None:
    trajectory = Trajectory()
    for epoch in (1, 2):
        trajectory.add(epoch, replace(make_report(()), layers=(make_layer("se", torch.zeros(3, 4)),)))
    content = json.loads(json.dumps(trajectory.to_dict(), allow_nan=False))
    assert content["gates"]["se"]["rows"][1]["within_over_mean"] is None
    assert content["gates"]["se"]["rows"][1]["stripe_index"] == 1.0


@pytest.mark.parametrize("epoch", [0, 6])
def test_epochs_rise(epoch: int) -> None:
    with pytest.raises(ObserveError, match=f"epoch {epoch} does not follow epoch 6"):
        make_trajectory().add(epoch, make_report())


def test_other_gates_are_refused_and_nothing_is_recorded() -> None:
    trajectory = make_trajectory()
    before = trajectory.to_dict()
    with pytest.raises(ObserveError, match=r"epoch 7 shows other gates than the epochs before \('stage.2.se'\)"):
        trajectory.add(7, make_report((8, 16)))
    first, second, third = make_report().layers
    shuffled = replace(make_report(), layers=(second, first, third))
    with pytest.raises(ObserveError, match=r"epoch 7 shows other gates .*\('stage.1.se'\)"):
        trajectory.add(7, shuffled)
    assert trajectory.to_dict() == before


def test_other_images_are_refused() -> None:
    with pytest.raises(ObserveError, match=r"'stage.0.se' was kept for \(24, 8\) .* at epoch 7 for \(23, 8\): observe"):
        make_trajectory().add(7, make_report(images=23))


def test_unknown_gate_and_quantity() -> None:
    with pytest.raises(ObserveError, match="no gate 'se' in this trajectory of TinyNet. Its gates: 'stage.0.se'"):
        make_trajectory().rows("se")
    with pytest.raises(ObserveError, match="no gate 'se' .* Its gates: none"):
        Trajectory().channel_means("se")
    with pytest.raises(ObserveError, match="no quantity 'index' in a trajectory; choose one of stripe_index"):
        make_trajectory().series("stage.0.se", "index")
    assert "first_difference" in QUANTITIES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "stripefold stripes 1"}, "no trajectory of stripes"),
        ({"epochs": [0, 2]}, "does not have one row per epoch"),
        (
            {"gates": {"se": {"rows": [{"stripe_index": 1}]}}},
            "damaged: entry 0 of rows of 'se' of gates of the trajectory lacks within_std_mean",
        ),
        ({"gates": {"se": {"rows": []}}}, "damaged: 'se' of gates of the trajectory lacks channel_means"),
        ({"gates": None}, "damaged: gates of the trajectory is None; it must be a mapping"),
    ],
)
def test_what_is_no_trajectory_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ObserveError, match=message):
        Trajectory.from_dict({**make_trajectory().to_dict(), **change})


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ObserveError, match=r"none\.json cannot be read: .*No such file"):
        Trajectory.load(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"format": "stripef')
    with pytest.raises(ObserveError, match=r"half\.json cannot be read: it is no JSON: Unterminated"):
        Trajectory.load(tmp_path / "half.json")


def state(**changes: object) -> dict:
    return {**make_trajectory((4,)).state_dict(), **changes}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, "last of the trajectory is None"),
        (state(last=None), "last of the trajectory is None; it must be a mapping"),
        (state(last={}), "it holds different gates"),
        (
            state(means={"stage.0.se": [1.0]}),
            "'stage.0.se' of means of .*; it must be of type Tensor",
        ),
        (state(means={"stage.0.se": torch.zeros(3, 4)}), "what it holds of 'stage.0.se' does not fit together"),
        (state(last={"stage.0.se": (torch.zeros(2, 9), torch.zeros(4))}), "does not fit together"),
        (state(more=1), "the trajectory has an unknown entry 'more': a newer version may have written it"),
        (state(epochs=[0, 2, 2, 6]), "its epochs do not rise"),
        (state(images="24"), "images of the trajectory is '24'; it must be a whole number"),
    ],
)
def test_a_state_that_is_none_is_refused(content: object, match: str) -> None:
    with pytest.raises(ObserveError, match=match):
        Trajectory.from_state_dict(content)


@pytest.mark.parametrize(
    ("means", "match"),
    [
        ([[1.0]], "does not have one row per epoch"),
        ([[1.0], [2.0, 3.0], [1.0], [1.0]], "channel_means of 'stage.0.se' is no list of numbers"),
        ([["1"]] * 4, "is no list of numbers"),
        ([[None]] * 4, "is no list of numbers"),
        ([[float("nan")] * 4] * 4, "what is no finite number"),
        ([[1e300] * 4] * 4, "what is no finite number"),
        (3, "channel_means of 'stage.0.se' is 3; it must be a list"),
    ],
)
def test_means_that_are_none_are_refused(means: object, match: str) -> None:
    content = make_trajectory((4,)).to_dict()
    content["gates"]["stage.0.se"]["channel_means"] = means
    with pytest.raises(ObserveError, match=match):
        Trajectory.from_dict(content)
