"""Which layers run hangs on an argument, a size, a value: a constant goes only where it is right on every way."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stripefold as sf
from stripefold.baking.report import BakeReport
from tests.baking.nets import SE, C
from tests.lifecycle import EXACT, error, images, prepared

Way = tuple[Any, ...]


class Ways(nn.Module):
    """stem -> norm -> body -> pooled classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, C, 3, padding=1), nn.BatchNorm2d(C)
        self.conv, self.se = nn.Conv2d(C, C, 3, padding=1), SE()
        self.behind, self.out = nn.Conv2d(C, C, 1), nn.Linear(C, 4)

    def forward(self, x: Tensor, way: int = 0) -> Tensor:
        return self.out(F.silu(self.body(F.silu(self.bn(self.stem(x))), way)).mean((2, 3)))

    def body(self, x: Tensor, way: int) -> Tensor:
        raise NotImplementedError


class NormPerDomain(Ways):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(C), nn.BatchNorm2d(C)])

    def body(self, x: Tensor, way: int) -> Tensor:
        return self.behind(F.silu(self.norms[way](self.se(self.conv(x)))))


class Skipped(Ways):
    """An argument skips the attention: nothing shows that but a run."""

    def body(self, x: Tensor, way: int) -> Tensor:
        x = self.conv(x)
        return self.behind(x if way else self.se(x))


class ByBatchSize(Ways):
    """One image alone is gated behind a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.single = nn.Conv2d(C, C, 1)

    def body(self, x: Tensor, way: int) -> Tensor:
        x = self.se(self.conv(x))
        return self.behind(self.single(x) if len(x) == 1 else x)


class ByValue(Ways):
    """Dark images go past the attention, into a layer of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.dark = nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor, way: int = 0) -> Tensor:
        self.is_dark = float(x.mean()) < -5
        return super().forward(x, way)

    def body(self, x: Tensor, way: int) -> Tensor:
        x = self.conv(x)
        return self.behind(self.dark(x) if self.is_dark else self.se(x))


def made(model: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    return prepared(model.double(), images(8, seed=30)).eval()


def data() -> list[Tensor]:
    return [images(6, seed=k) for k in range(3)]


def held(model: nn.Module, *names: str) -> nn.Module:
    """The model with the mean of the gates in the attention's place, put there by hand: the truth."""
    kept: dict[str, list[Tensor]] = {name: [] for name in names}
    other = copy.deepcopy(model)

    def note(name: str) -> Callable[..., None]:
        return lambda module, args, output: kept[name].append((output / args[0]).mean((2, 3)))

    for name in names:
        handle = other.get_submodule(name).register_forward_hook(note(name))
        with torch.no_grad():
            for x in data():
                other(x)
        handle.remove()
    for name in names:
        v = torch.cat(kept[name]).mean(0)[:, None, None]
        other.get_submodule(name).forward = lambda x, v=v: x * v
    return other


def assert_right(baked: nn.Module, truth: nn.Module, *inputs: Way) -> None:
    for each in inputs:
        with torch.no_grad():
            assert error(baked(*each), truth(*each)) < EXACT


def outcomes(report: BakeReport) -> list[str]:
    return [site.outcome for site in report.sites]


X, ONE = images(4, seed=9), images(1, seed=8)
BOTH: tuple[Way, Way] = ((X,), (X, 1))


def test_a_norm_per_domain_behind_an_se_block() -> None:
    model = made(NormPerDomain())
    with pytest.warns(UserWarning, match=r"'norms.1' did not run on the example.*give example=\[...\]"):
        baked, report = sf.bake(model, data(), example=X)
    assert outcomes(report) == ["multiply"]
    assert "may meet 'norms.1'" in report.sites[0].why
    assert any(note.startswith("'norms.1' did not run on the example") for note in report.notes)
    assert_right(baked, held(model, "se"), *BOTH)
    baked, report = sf.bake(model, data(), example=[X, (X, 1)])
    assert (outcomes(report), report.sites[0].place) == (["folded"], "conv")
    assert not any("did not run" in note for note in report.notes)
    assert_right(baked, held(model, "se"), *BOTH)
    with torch.no_grad():
        assert error(baked(X, 1), baked(X, 0)) > 1e-3  # the control: the two ways differ


def test_an_argument_that_skips_the_attention() -> None:
    model = made(Skipped())
    baked, report = sf.bake(model, data(), example=[X, (X, 1)])
    assert outcomes(report) == ["multiply"]
    assert "'conv' runs without it on another example" in report.sites[0].why
    assert_right(baked, held(model, "se"), *BOTH)
    baked, report = sf.bake(model, data(), example=X)  # the control: nothing shows the other way
    assert outcomes(report) == ["folded"]
    with torch.no_grad():
        assert error(baked(X, 1), model(X, 1)) > 1e-3
    baked, report = sf.bake(model, data(), example=[(X, 1), (X, 0)])  # the gate is in the second run alone
    assert outcomes(report) == ["multiply"]
    assert_right(baked, held(model, "se"), *BOTH)


def test_a_layer_for_batches_of_one() -> None:
    model = made(ByBatchSize())
    with pytest.warns(UserWarning, match="'single' did not run"):
        baked, report = sf.bake(model, data(), example=X)
    assert outcomes(report) == ["multiply"]
    assert_right(baked, held(model, "se"), (X,), (ONE,))
    for examples in ([X, ONE], [ONE, X]):
        baked, report = sf.bake(model, data(), example=examples)
        assert (outcomes(report), report.sites[0].place) == (["folded"], "conv")
        assert_right(baked, held(model, "se"), (X,), (ONE,))


def test_a_value_that_skips_the_attention() -> None:
    model, dark = made(ByValue()), X - 20
    with pytest.warns(UserWarning, match="'dark' did not run"):
        baked, report = sf.bake(model, data(), example=X)
    assert outcomes(report) == ["multiply"]
    assert_right(baked, held(model, "se"), (X,), (dark,))
    baked, report = sf.bake(model, data(), example=[X, dark])
    assert outcomes(report) == ["multiply"]
    assert_right(baked, held(model, "se"), (X,), (dark,))


class TwoGates(Ways):
    """Each way has an attention of its own, and a layer in front of it."""

    def __init__(self) -> None:
        super().__init__()
        self.other, self.se2 = nn.Conv2d(C, C, 3, padding=1), SE()

    def body(self, x: Tensor, way: int) -> Tensor:
        return self.behind(self.se2(self.other(x)) if way else self.se(self.conv(x)))


def test_the_gates_of_all_ways_are_found() -> None:
    model = made(TwoGates())
    example = [X, (X, 1)]
    report = sf.observe(model, [(each, torch.tensor(1)) for each in data()], example=[(X, 1), X])
    assert [layer.name for layer in report.layers] == ["se2"]
    assert report.unrecorded == ("se: in the trace, but no batch came through it",)
    report = sf.observe(model, data(), example=example)
    assert [layer.name for layer in report.layers] == ["se"]
    baked, report = sf.bake(model, data(), example=example)
    assert outcomes(report) == ["folded", "dynamic"]
    assert report.sites[0].place == "conv"
    assert report.sites[1].why == "no batch of the data came through it"
    assert_right(baked, held(model, "se"), *BOTH)


class SharedPool(Ways):
    """A pool that serves the gate on one way and the network on the other."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Conv2d(C, C, 1)

    def body(self, x: Tensor, way: int) -> Tensor:
        x = self.conv(x)
        if way:
            return self.behind(x - self.pool(x))
        return self.behind(x * torch.sigmoid(self.fc(self.pool(x))))


def test_a_module_that_serves_more_than_the_gate_on_another_way_stays() -> None:
    model = made(SharedPool())
    baked, report = sf.bake(model, data(), example=[X, (X, 1)])
    assert report.sites[0].outcome == "constant"  # its pool goes on running
    assert_right(baked, model, (X, 1))
    alone, report = sf.bake(model, data(), example=X)
    assert report.sites[0].outcome == "multiply"
    with torch.no_grad():
        assert error(alone(X, 1), model(X, 1)) > 1e-3  # the control


class GatePerDomain(Ways):
    """Which layer computes the gate hangs on the argument."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.ModuleList(nn.Conv2d(C, C, 1) for _ in range(2))
        self.squash, self.act = nn.Tanh(), nn.Sigmoid()

    def body(self, x: Tensor, way: int) -> Tensor:
        x = self.conv(x)
        return self.behind(x * self.act(self.gates[way](self.squash(x.mean((2, 3), keepdim=True)))))


@pytest.mark.parametrize("several", [False, True])
def test_a_gate_of_other_layers_on_another_way_stays_dynamic(several: bool) -> None:
    model = made(GatePerDomain())
    why = "other layers compute it on another example" if several else "what computes it may meet 'gates.1'"
    with pytest.raises(sf.errors.BakeError, match=why):
        sf.bake(model, data(), example=[X, (X, 1)] if several else X)


class AlsoAlone(Ways):
    """The attention is also called for something else."""

    def body(self, x: Tensor, way: int) -> Tensor:
        x = self.conv(x)
        return self.behind(
            self.se.fc2(F.relu(self.se.fc1(x.mean((2, 3)))))[:, :, None, None] + x if way else self.se(x)
        )


def test_an_attention_whose_parts_run_elsewhere_stays_dynamic() -> None:
    model = made(AlsoAlone())
    with pytest.raises(sf.errors.BakeError, match="'se' also runs on an example on which it does not give this gate"):
        sf.bake(model, data(), example=[X, (X, 1)])


def test_no_example_in_the_list() -> None:
    for call in (sf.bake, sf.observe):
        with pytest.raises(sf.errors.StripefoldError, match=r"example=\[\] holds no input"):
            call(made(Skipped()), data(), example=[])
