"""``start="reference"``: hidden units as the reference code draws them, dead gates included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import stripefold as sf
from stripefold.asr.sites import attached_sites
from stripefold.errors import AttachError, ConfigError
from stripefold_lab.models import create_model
from stripefold_lab.training import TrainConfig
from stripefold_lab.training.build import build_model
from stripefold_lab.training.data import ImageSpec
from stripefold_lab.training.unused_options import canonical

SPEC = ImageSpec(classes=tuple("ab"), channels=3, size=32)


def dead_and_all(model: nn.Module) -> tuple[int, int]:
    gates = [gate for site in attached_sites(model).values() for gate in site.static_gates]
    dead = [gate.attention.dead_units(gate.psi) == gate.attention.mlp.reduce.out_features for gate in gates]
    return sum(dead), len(dead)


@pytest.mark.parametrize(("attention", "options"), [("se", {}), ("se", {"reduction": 8}), ("cbam", {}), ("fca", {})])
def test_gates_are_drawn_as_their_layers_draw_them(attention: str, options: dict[str, Any]) -> None:
    """The distribution is the layers' own because the numbers are: nothing is done to them."""
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32))
    torch.manual_seed(5)
    expected = [nn.Linear(32, width) if down else nn.Linear(width, 32)
                for width in [round(32 / options.get("reduction", 16))] for down in (True, False)]  # fmt: skip
    torch.manual_seed(5)
    gated = sf.attach(model, attention, where=["1"], start="reference", attention_options=options)
    perceptron = gated[1].static_gates[0].attention.mlp
    for ours, theirs in zip((perceptron.reduce, perceptron.expand), expected, strict=True):
        assert torch.equal(ours.weight, theirs.weight)
        assert torch.equal(ours.bias, theirs.bias)


def test_some_gates_are_born_dead_as_often_as_chance_has_it_and_live_ones_never() -> None:
    counts = {"live": [0, 0], "reference": [0, 0]}
    for seed in range(60):
        for start in ("live", "reference"):
            torch.manual_seed(seed)
            model = create_model("resnet8", num_classes=2)
            dead, total = dead_and_all(sf.attach(model, "se", start=start))  # type: ignore[arg-type]
            counts[start][0] += dead
            counts[start][1] += total
    assert counts["live"][0] == 0
    # Hidden widths 1, 2, 4: one in 2, 4 and 16 of them, 49 of 180; four standard deviations either way.
    assert 26 < counts["reference"][0] < 72


@pytest.mark.parametrize("form", ["static", "both"])
def test_a_run_takes_the_option_and_keeps_its_backbone(form: Any) -> None:
    live, reference = (
        build_model(TrainConfig(model="resnet8", form=form, start=start, seed=2), SPEC)
        for start in ("live", "reference")
    )
    assert dead_and_all(live)[0] == 0 < dead_and_all(reference)[0]
    assert torch.equal(live.conv1.weight, reference.conv1.weight)


def test_options_per_place() -> None:
    torch.manual_seed(2)
    model = create_model("resnet8", num_classes=2)
    where = {"layer1.*.bn2": {"start": "reference"}, "layer2.*.bn2": {}}
    assert len(sf.scales(sf.attach(model, "se", where=where))) == 2


def test_it_folds_like_any_other() -> None:
    torch.manual_seed(0)
    model = sf.attach(create_model("resnet8", num_classes=2), "se", start="reference").eval()
    folded = sf.fold(model)
    sf.verify(model, folded, SPEC.example())
    assert not torch.allclose(sf.detach(model).eval()(SPEC.example()), folded(SPEC.example()), atol=1e-3)


def test_where_it_does_nothing_it_is_refused_or_forgotten() -> None:
    model = create_model("resnet8", num_classes=2)
    with pytest.raises(AttachError, match="start has a meaning only with form='static'"):
        sf.attach(model, "se", form="dynamic", start="reference")
    with pytest.raises(AttachError, match="start='dead': expected one of 'live', 'reference'"):
        sf.attach(model, "se", start="dead")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="start is 'dead'"):
        TrainConfig(start="dead")  # type: ignore[arg-type]
    assert canonical(TrainConfig(form="none", start="reference")) == TrainConfig(form="none")
    assert canonical(TrainConfig(form="dynamic", start="reference")) == TrainConfig(form="dynamic")
