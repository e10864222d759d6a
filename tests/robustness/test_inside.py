"""Noise in the layers: as the formula says, paired by name and image, gone afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import stripefold as sf
from stripefold.errors import ConfigError
from stripefold.layers import rule
from stripefold_lab.robustness import noise_inside
from stripefold_lab.robustness.inside import INSIDE, noisy_layers
from stripefold_lab.training.noise_hooks import backbone_layers, batch_norms, disturb
from tests.lifecycle import EXACT, attached, error, images, snapshot, tiny

WHERE = ["stem", "*bn1", "*bn2", "head"]
NORMS = [f"blocks.{block}.bn{place}" for block in (0, 1) for place in (1, 2)]


def run(model: nn.Module, kind: str, severity: int = 3, *, batch: int = 4, seed: int = 0) -> torch.Tensor:
    x = images(8)
    with noise_inside(model.eval(), kind, severity, images=8, seed=seed), torch.no_grad():
        return torch.cat([model(part) for part in x.split(batch)])


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("trailing", [(), (5,), (3, 2)])
def test_disturb_is_the_formula(affine: bool, trailing: tuple[int, ...]) -> None:
    norm = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d}[len(trailing)](4, affine=affine).double()
    if affine:
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
    x = torch.randn(16, 4, *trailing, dtype=torch.float64)
    y = norm(x)
    wide = (1, -1, *(1,) * len(trailing))
    gamma = norm.weight.view(wide) if affine else 1.0
    beta = norm.bias.view(wide) if affine else 0.0
    normalised = (y - beta) / gamma
    scale, shift = torch.tensor([0.5, 0.8, 1.5, 1.0]), torch.tensor([0.2, -0.3, 0.0, 1.0])
    expected = gamma * (scale.view(wide) * normalised + shift.view(wide)) + beta
    assert error(disturb(y, norm, scale, shift), expected) <= EXACT
    # One draw for each sample: here the same for all, and then another for the second one.
    assert error(disturb(y, norm, scale.expand(16, 4), shift.expand(16, 4)), expected) <= EXACT
    own = scale.repeat(16, 1)
    own[1] += 1
    moved = (disturb(y, norm, own, shift.expand(16, 4)) - expected).abs().flatten(1).amax(1)
    assert (moved > 1e-3).tolist() == [False, True, *[False] * 14]


def test_a_wrong_mean_and_deviation_are_that_noise() -> None:
    model = tiny().eval()
    norm = model.blocks[0].bn1
    x = torch.randn(4, 8, 6, 6, dtype=torch.float64)
    scale, shift = torch.full((8,), 1.25), torch.full((8,), -0.5)
    found = disturb(norm(x), norm, scale, shift)
    deviation = (norm.running_var + norm.eps).sqrt()
    norm.running_mean -= shift * deviation / scale
    norm.running_var.copy_((deviation / scale) ** 2 - norm.eps)
    assert error(found, norm(x)) <= 1e-6  # scale and shift are float32, as they are drawn


def test_names_are_those_of_the_backbone() -> None:
    plain, gated = tiny(), attached(where=WHERE)
    assert list(batch_norms(plain)) == list(batch_norms(gated)) == NORMS
    assert list(noisy_layers(plain, "layer-random")) == list(noisy_layers(gated, "layer-random"))
    assert set(backbone_layers(sf.attach(tiny(), "se", form="dynamic"))) == set(backbone_layers(plain))
    both = nn.ModuleList([plain.stem, plain.stem])
    assert list(noisy_layers(both, "layer-random")) == ["0"]  # a shared layer is hooked once


def test_gates_over_positions_are_no_layers_of_the_backbone() -> None:
    """Their attention has a convolution and a BatchNorm of its own, which no noise is meant for."""
    torch.manual_seed(0)
    pooled = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    flat = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 4))
    for plain, place in ((pooled, "2"), (flat, "3")):
        model = sf.attach(plain, "spatial", where="positions", example=images(dtype=torch.float32))
        if place == "3":
            model = sf.attach(model, "se", where="3.base")
        assert list(backbone_layers(model)) == list(backbone_layers(plain))
        assert list(batch_norms(model)) == ["1"]
        layer = backbone_layers(model)[place]
        assert type(layer.module) is type(plain.get_submodule(place))
        assert any(layer.called is module for module in model.modules())


@pytest.mark.parametrize("kind", INSIDE)
def test_attached_and_folded_meet_the_same_noise(kind: str) -> None:
    model = attached(where=WHERE)
    folded = sf.fold(model, check=False)
    clean = run(folded, kind, 0)
    disturbed = run(folded, kind)
    assert error(run(model, kind), disturbed) <= EXACT
    # Controls: the noise counts, and so do the gates.
    assert error(clean, disturbed) > 1e-2
    assert error(run(sf.detach(model), kind), disturbed) > 1e-2


@pytest.mark.parametrize("kind", INSIDE)
def test_the_noise_follows_from_seed_and_image_and_not_from_the_batch(kind: str) -> None:
    model = tiny()
    whole = run(model, kind, batch=8)
    for batch in (1, 3, 4):
        assert error(run(model, kind, batch=batch), whole) <= EXACT
    other = run(model, kind, batch=8, seed=1)
    assert (error(other, whole) <= EXACT) == kind.endswith("constant")
    same = images(1).expand(8, -1, -1, -1)
    with noise_inside(model, kind, 3, images=8), torch.no_grad():
        outputs = model(same)
    assert (error(outputs[1:], outputs[:1].expand(7, -1)) > 1e-3) == kind.endswith("random")


def test_the_next_pass_meets_the_same_noise() -> None:
    model, x = tiny().eval(), images(8)
    with noise_inside(model, "batch-random", 5, images=8), torch.no_grad():
        first, second = model(x), model(x)
        model(x[:3])
        assert error(model(x[3:]), first[3:]) <= EXACT
    assert torch.equal(first, second)


@pytest.mark.parametrize("kind", INSIDE)
def test_severity_0_and_the_network_afterwards(kind: str) -> None:
    model = attached().eval()
    x = images(8)
    with torch.no_grad():
        clean = model(x)
        before = snapshot(model)
        state = torch.get_rng_state()
        assert torch.equal(run(model, kind, 0, batch=8), clean)
        distances = [error(run(model, kind, severity, batch=8), clean) for severity in (1, 3, 5)]
        assert 0 < distances[0] < distances[1] < distances[2]
        assert torch.equal(torch.get_rng_state(), state)
        with pytest.raises(RuntimeError, match="stop"), noise_inside(model, kind, 3, images=8):
            raise RuntimeError("stop")
        assert torch.equal(model(x), clean)
    assert snapshot(model) == before


def test_layer_noise_is_a_share_of_the_layers_deviation() -> None:
    layer = nn.Sequential(nn.Linear(6, 4000)).eval()
    x = torch.randn(3, 6)
    with torch.no_grad():
        clean = layer(x)
        for kind in ("layer-random", "layer-constant"):
            with noise_inside(layer, kind, 5, images=3):
                moved = layer(x) - clean
            ratio = moved.square().mean(1).sqrt() / clean.std(1, correction=0)
            assert torch.allclose(ratio, torch.full((3,), 0.5), rtol=0.05)


class Tokens(nn.Module):
    """Puts two rows of a layer where one image was."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.view(-1, 4))


class OwnNorm(nn.BatchNorm2d):
    """Might do anything."""


class RectifiedNorm(nn.BatchNorm2d):
    """Does more."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).relu()


@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_that_was_taught_takes_noise_if_it_only_normalises(
    affine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rule, "_rules", dict(rule.known_rules()))
    for kind in (OwnNorm, RectifiedNorm):
        sf.register_rule(kind, like=nn.BatchNorm2d)
    assert list(batch_norms(nn.Sequential(nn.Conv2d(3, 2, 1), OwnNorm(2, affine=affine)))) == ["1"]
    with pytest.raises(ConfigError, match=r"no noise can be put into '1': RectifiedNorm \(exact type\)"):
        batch_norms(nn.Sequential(nn.Conv2d(3, 2, 1), RectifiedNorm(2, affine=affine)))


class Functional(nn.Module):
    """Takes the weight of a layer instead of calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.passed_over = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.called(x) @ self.passed_over.weight


def test_layers_that_no_noise_reached_are_named() -> None:
    network = Functional()
    told = pytest.warns(UserWarning, match="no noise reached 'passed_over': the network did not call them")
    with told, noise_inside(network, "layer-random", 1, images=2):
        network(torch.randn(2, 4))
    with noise_inside(network, "layer-random", 1, images=2):
        pass  # the network did not run: nothing to say


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ConfigError, match="no noise inside a network is called 'jpeg'"):
        noise_inside(tiny(), "jpeg", 1, images=1).__enter__()
    with pytest.raises(ConfigError, match="Linear has no BatchNorm"):
        noisy_layers(nn.Linear(2, 2), "batch-random")
    with pytest.raises(ConfigError, match="ReLU has no convolution and no linear layer"):
        noisy_layers(nn.ReLU(), "layer-random")
    with pytest.raises(ConfigError, match=r"no noise can be put into '1': OwnNorm \(exact type\)"):
        batch_norms(nn.Sequential(nn.Conv2d(3, 2, 1), OwnNorm(2)))
    tokens = Tokens()
    before = snapshot(tokens)
    refused = pytest.raises(ConfigError, match=r"behind 'layer': 3 images went in, \(6, 4\) came out")
    with refused, noise_inside(tokens, "layer-random", 1, images=3):
        tokens(torch.zeros(3, 8))
    assert snapshot(tokens) == before
