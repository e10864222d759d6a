"""The judge: the user's model is never hooked, and what is returned is what was judged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stripefold as sf
from stripefold.baking.modules import ConstantScale
from stripefold.errors import BakeError
from tests.baking.nets import SE, C, Net, before_conv, before_norm, functional, nowhere
from tests.lifecycle import assert_refused, images, prepared, snapshot


def made(body: Callable[[Net, Tensor], Tensor] = before_conv, **modules: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    model = prepared(Net(body, **(modules or {"se": SE()})).double(), images(8, seed=30)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("se."):
                parameter.mul_(5)  # gates that move
    return model


def data() -> list[tuple[Tensor, Tensor]]:
    return [(images(6, seed=k), torch.arange(6) % 4) for k in range(3)]


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(x) for x, _ in data()])


def unhooked(model: nn.Module) -> bool:
    return not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def by_outputs(model: nn.Module) -> Callable[[nn.Module], float]:
    return lambda other: -float((outputs(other) - outputs(model)).abs().sum())


def by_a_layer(model: nn.Module) -> Callable[[nn.Module], float]:
    """Compares what a layer behind the gate gives, in both models, by hooks of the user's own."""

    def of(network: nn.Module) -> Tensor:
        found: list[Tensor] = []
        handle = network.conv.register_forward_hook(lambda module, args, output: found.append(output))
        outputs(network)
        handle.remove()
        return torch.cat(found)

    return lambda other: -float((of(other) - of(model)).abs().sum())


def by_predictions(model: nn.Module) -> Callable[[nn.Module], float]:
    return lambda other: 100 * float((outputs(other).argmax(1) == outputs(model).argmax(1)).double().mean())


@pytest.mark.parametrize("metric", [by_outputs, by_a_layer, by_predictions])
@pytest.mark.parametrize("call", [sf.bake, sf.bake_], ids=["bake", "bake_"])
def test_a_metric_that_looks_at_the_users_own_model(metric: Any, call: Any) -> None:
    model = made()
    compare = metric(model)
    clean: list[bool] = []

    def judged(other: nn.Module) -> float:
        clean.append(unhooked(model) and other is not model)
        return float(compare(other))

    result = call(model, data(), metric=judged, max_drop=1e9, recalibrate=False)
    report = result if call is sf.bake_ else result[1]
    assert all(clean)
    assert report.before == (100 if metric is by_predictions else 0)
    if call is sf.bake:
        assert report.after == pytest.approx(compare(result[0]), abs=1e-9)
        assert report.after == pytest.approx(report.constant, abs=1e-9)
        if metric is not by_predictions:
            assert report.constant < -1e-3


@pytest.mark.parametrize("metric", [by_outputs, by_a_layer])
def test_the_budget_holds_for_what_is_returned(metric: Any) -> None:
    model = made()
    baked, report = sf.bake(model, data(), metric=metric(model), max_drop=1e-6, recalibrate=False)
    assert not report.baked
    assert report.before - report.after <= 1e-6
    assert metric(model)(baked) >= -1e-6


def test_the_model_is_not_even_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a flag, a buffer or a hook of it changes while it is judged."""
    model = made(before_norm, se=SE(), norm=nn.BatchNorm2d(C)).train()
    before = snapshot(model)
    seen: list[bool] = []

    def metric(other: nn.Module) -> float:
        seen.append(snapshot(model) == before)
        return float(outputs(other).abs().mean())

    sf.bake(model, data(), metric=metric, max_drop=1e9, recalibrate=True, finetune=sf.FineTune(steps=2), device="cpu")
    assert len(seen) > 4
    assert all(seen)


def test_a_norm_that_was_left_in_training_mode_is_judged_as_it_runs() -> None:
    model = made(before_norm, se=SE(), norm=nn.BatchNorm2d(C))
    model.norm.train()
    before = snapshot(model)
    mean = model.norm.running_mean.clone()

    def score(other: nn.Module) -> float:
        return float(outputs(other).abs().sum())

    baked, report = sf.bake(model, data(), metric=score, recalibrate=False)
    assert snapshot(model) == before
    assert baked.norm.training
    assert torch.equal(baked.norm.running_mean, mean)
    assert report.before == pytest.approx(score(model), rel=1e-10)
    assert report.after == pytest.approx(score(baked), rel=1e-10)


class Structural:
    """Judges how a model is built beside what it computes."""

    def __init__(self, bonus: float) -> None:
        self.bonus = bonus

    def __call__(self, model: nn.Module) -> float:
        value = float(outputs(model).abs().mean())
        return value + self.bonus * (not any(isinstance(module, SE) for module in model.modules()))


@pytest.mark.parametrize("call", [sf.bake, sf.bake_], ids=["bake", "bake_"])
def test_a_returned_model_that_differs_from_what_was_judged_is_an_error(call: Any) -> None:
    model = made()
    for bonus in (-5.0, 5.0):
        metric = Structural(bonus)
        assert_refused(model, lambda m=metric: call(model, data(), metric=m), BakeError, "more than its noise")


def test_a_returned_model_that_breaks_the_budget_is_an_error() -> None:
    model = made()
    options = {"metric": Structural(-5.0), "max_drop": 2.0}
    assert_refused(model, lambda: sf.bake(model, data(), **options), BakeError, "breaks the budget: the metric falls")
    worse = made(before_norm, se=SE(), norm=nn.BatchNorm2d(C))
    shifted = [x + 3 for x, _ in data()]

    def still(other: nn.Module) -> float:
        return -float((other.norm.running_mean - worse.norm.running_mean).abs().max())

    options = {"metric": still, "max_drop": 1e-3, "recalibrate": True}
    assert_refused(worse, lambda: sf.bake(worse, shifted, **options), BakeError, "breaks the budget")
    _, report = sf.bake(worse, shifted, metric=still, max_drop=1e-3)  # "auto" leaves that repair out
    assert report.after == 0


def test_noise_of_the_metrics_own_is_no_error() -> None:
    model, drawn = made(), iter(torch.randn(100, generator=torch.Generator().manual_seed(0)).tolist())
    _, report = sf.bake(model, data(), metric=lambda other: float(outputs(other).abs().mean()) + 0.2 * next(drawn))
    assert report.after != report.constant


def test_a_metric_that_does_not_run_what_it_is_given_is_named() -> None:
    model = made()
    _, report = sf.bake(model, data(), metric=lambda other: float(outputs(model).mean()))
    assert any("did not run the model that it was given" in note for note in report.notes)
    _, other = sf.bake(model, data(), metric=by_outputs(model))
    assert not any("did not run" in note for note in other.notes)


# What is baked, and what only became constant.


class Block(nn.Module):
    """A block with the layers of its gate as attributes; ``pool`` says who pools, ``squash`` who squashes."""

    def __init__(self, pool: str, squash: str) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1) if pool == "module" else None
        self.fc1, self.fc2 = nn.Conv2d(C, 4, 1), nn.Conv2d(4, C, 1)
        self.act = nn.Hardsigmoid() if squash == "hard" else nn.Sigmoid()
        self.how = pool

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(x) if self.how == "module" else x.mean((2, 3), keepdim=True)
        return torch.relu(x * self.act(self.fc2(torch.relu(self.fc1(pooled)))))


@pytest.mark.parametrize("squash", ["hard", "soft"])
def test_a_gate_that_is_still_computed_is_not_baked(squash: str) -> None:
    model = made(before_conv, se=Block("function", squash))
    baked, report = sf.bake(model, data(), recalibrate=False)
    (site,) = report.sites
    assert site.outcome == "constant"
    assert site.remaining >= 1
    assert report.baked == ()
    assert report.still_computed == (site,)
    assert "constant, still computed" in str(report)
    assert report.to_dict()["sites"][0]["remaining"] == site.remaining
    assert not any(type(module) is nn.Conv2d for module in baked.se.modules())


def test_a_gate_of_which_a_factor_is_left_is_baked() -> None:
    model = made(before_conv, se=Block("module", "hard"))
    baked, report = sf.bake(model, data(), recalibrate=False)
    assert [(site.outcome, site.remaining > 0) for site in report.baked] == [("multiply", True)]
    assert not any(type(module) is nn.Conv2d for module in baked.se.modules())
    _, whole = sf.bake(made(nowhere), data(), recalibrate=False)
    assert [(site.outcome, site.remaining) for site in whole.baked] == [("multiply", 0)]
    kept, report = sf.bake(made(), data(), where="se", recalibrate=False)
    assert not any(isinstance(module, ConstantScale) for module in kept.modules())


def test_functional_gates_stay() -> None:
    model = made(functional, fc=nn.Linear(C, C))
    assert_refused(model, lambda: sf.bake(model, data()), BakeError, "no module returns the gate")
