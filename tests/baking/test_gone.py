"""Baked means gone: counted by a dispatch mode, in eager models, graph modules and exported programs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import stripefold as sf
from stripefold.baking.graph_modules import GateProbe, discover_probed_
from stripefold.baking.override_gates import override_gates
from stripefold.stripe.discover import discover
from tests.baking.nets import C
from tests.lifecycle import EXACT, error, images, prepared, snapshot


def operations(model: nn.Module, x: Tensor) -> int:
    class Count(TorchDispatchMode):
        n = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.n += 1
            return function(*args, **(kwargs or {}))

    with Count() as count, torch.no_grad():
        model(x)
    return count.n


class Traced(nn.Module):
    """A gate written in the network's own forward, which a tracer takes apart."""

    def __init__(self, gate: Callable[[Traced, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.proj, self.out = nn.Conv2d(3, C, 3, padding=1), nn.Conv2d(C, C, 1), nn.Linear(C, 4)
        self.fc1, self.fc2, self.act = nn.Linear(C, 4), nn.Linear(4, C), nn.ReLU(inplace=True)
        self.gate = gate

    def z(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x.mean((2, 3)))))

    def v(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.z(x))[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.proj(self.gate(self, F.silu(self.stem(x)))).mean((2, 3)))


def two(net: Traced, x: Tensor) -> Tensor:
    v = net.v(x)
    return net.proj(x * v) + F.gelu(x) * v


def last(net: Traced, x: Tensor) -> Tensor:
    x = x.permute(0, 2, 3, 1)
    v = torch.sigmoid(net.fc2(net.act(net.fc1(x.mean((1, 2), keepdim=True)))))
    return (x * v).permute(0, 3, 1, 2)


# Form -> (what becomes of it in a graph, how many operations go at least).
FORMS: dict[str, tuple[Callable[[Traced, Tensor], Tensor], str, int]] = {
    "product": (lambda net, x: x * net.v(x), "folded", 6),
    "gate first": (lambda net, x: net.v(x) * x, "folded", 6),
    "hard sigmoid": (lambda net, x: x * (F.relu6(net.z(x) + 3) / 6)[..., None, None], "folded", 7),
    "clamped": (lambda net, x: x * (net.z(x) * 0.2 + 0.5).clamp(0, 1)[..., None, None], "folded", 7),
    "in place": (lambda net, x: x.mul_(net.v(x)), "folded", 6),
    "expanded": (lambda net, x: x * net.v(x).expand_as(x), "folded", 7),
    "beside": (lambda net, x: x + x * net.v(x), "folded", 6),
    "channels last": (last, "folded", 6),
    "einsum": (lambda net, x: torch.einsum("nchw,nc->nchw", x, net.v(x).flatten(1)), "multiply", 2),
    "two products": (two, "multiply", 5),
    "pool also used": (lambda net, x: net.proj(x * net.v(x)) + x.mean((2, 3))[..., None, None], "multiply", 4),
}  # fmt: skip


def traced(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    gate = FORMS[name][0]
    model = prepared(Traced(gate).double(), images(8, seed=3)).eval()
    with torch.no_grad():
        model.fc2.weight.mul_(4)
    return model, images(8, seed=4)


def in_eager(model: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Identity(), model).eval()


FORM_OF: dict[str, Callable[[nn.Module, Tensor], nn.Module]] = {
    "fx": lambda model, x: torch.fx.symbolic_trace(model),
    "inside an eager model": lambda model, x: in_eager(torch.fx.symbolic_trace(model)),
    "exported": lambda model, x: torch.export.export(
        model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},)
    ).module(),
}


@pytest.mark.parametrize("form", FORM_OF)
@pytest.mark.parametrize("name", FORMS)
def test_graph_modules(name: str, form: str) -> None:
    eager, x = traced(name)
    model = FORM_OF[form](eager, x)
    before, text = snapshot(model), str(model)
    baked, report = sf.bake(model, [x], example=x, recalibrate=False)
    assert snapshot(model) == before
    assert str(model) == text
    outcome, gone = FORMS[name][1:]
    expected = "multiply" if form == "exported" else outcome  # its layers are functions
    assert {site.outcome for site in report.sites} == {expected}
    assert not report.still_computed
    assert operations(model, x) - operations(baked, x) >= gone - (form == "exported") * 2
    assert not any(isinstance(module, GateProbe) for module in baked.modules())
    with torch.no_grad():
        probed, _ = discover_probed_(copied := copy.deepcopy(model), x)
        means = {layer.name: layer.mean for layer in sf.observe(model, x).layers}
        with override_gates(copied, probed.gates, means):
            held = copied(x)
        assert error(baked(x), held) < EXACT
        assert error(baked(x), model(x)) > 1e-4
    assert discover(baked, x).gates == ()
    assert len(baked.state_dict()) < len(model.state_dict())


@pytest.mark.parametrize("form", ["fx", "exported"])
def test_in_place_gives_the_same(form: str) -> None:
    eager, x = traced("product")
    model = FORM_OF[form](eager, x)
    baked, expected = sf.bake(model, [x], example=x)
    assert sf.bake_(model, [x], example=x) == expected
    with torch.no_grad():
        assert torch.equal(model(x), baked(x))
    assert operations(model, x) == operations(baked, x)


def test_gates_that_stay_are_computed_as_before() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(traced("product")[0].stem, nn.SiLU())
    first, second = Traced(FORMS["product"][0]).double(), Traced(FORMS["clamped"][0]).double()
    first.stem = second.stem = nn.Identity()
    first.out = nn.Identity()
    model = torch.fx.symbolic_trace(Two(net, first, second)).double().eval()
    x = images(8, seed=4)
    baked, report = sf.bake(model, [x], where="#2", recalibrate=False)
    assert [site.outcome for site in report.sites] == ["dynamic", "folded"]
    assert not any(isinstance(module, GateProbe) for module in baked.modules())
    assert [gate.channels for gate in discover(baked, x).gates] == [C]
    unchanged, report = sf.bake(model, [x], metric=lambda m: -float((m(x) - model(x)).abs().max()), max_drop=0)
    assert report.baked == ()
    with torch.no_grad():
        assert torch.equal(unchanged(x), model(x))
    assert operations(unchanged, x) == operations(model, x)


class Two(nn.Module):
    """Two gates in one forward."""

    def __init__(self, stem: nn.Module, first: Traced, second: Traced) -> None:
        super().__init__()
        self.stem, self.first, self.second = stem, first, second

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.first.proj(self.first.gate(self.first, x))
        return self.second.out(self.second.proj(self.second.gate(self.second, x)).mean((2, 3)))


def test_what_writes_into_a_value_that_stays_is_left() -> None:
    def gate(net: Traced, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3))
        v = torch.sigmoid(net.fc2(net.fc1(pooled.mul_(2))))
        return net.proj(x * v[..., None, None]) + pooled[..., None, None]

    torch.manual_seed(0)
    model = torch.fx.symbolic_trace(prepared(Traced(gate).double(), images(8)).eval())
    x = images(8, seed=4)
    baked, report = sf.bake(model, [x], recalibrate=False)
    (site,) = report.sites
    assert (site.outcome, site.remaining) == ("constant", 1)
    assert "operations that computed it go on running" in site.why
    assert any(node.target == "mul_" for node in baked.graph.nodes)


# Eager models: layers of the gate are attributes of the block.


class Port(nn.Module):
    """As MobileNetV3 is ported by hand; with a value that only serves the gate read by the block's code where asked."""

    def __init__(self, *, read: str = "") -> None:
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, C, 3, padding=1), nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2, self.act = nn.Conv2d(C, 4, 1), nn.Conv2d(4, C, 1), nn.Hardsigmoid()
        self.proj, self.out = nn.Conv2d(C, C, 1), nn.Linear(C, 4)
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        hidden = self.fc1(self.pool(x))
        if self.read == "attribute":
            hidden = hidden * self.fc1.out_channels
        if self.read == "value" and bool(hidden.abs().max() > 1e9):
            hidden = hidden + 1
        w = self.act(self.fc2(torch.relu(hidden)))
        return self.out(self.proj(x * w).mean((2, 3)))


def ported(**options: Any) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return prepared(Port(**options).double(), images(8, seed=3)).eval(), images(8, seed=4)


def test_layers_of_the_gate_in_the_blocks_own_forward() -> None:
    model, x = ported()
    baked, report = sf.bake(model, [x], recalibrate=False)
    assert [site.outcome for site in report.sites] == ["multiply"]
    assert operations(model, x) - operations(baked, x) > 2
    left = {name for name, module in baked.named_modules() if isinstance(module, nn.Conv2d)}
    assert left == {"stem", "proj"}
    for size in (5, 9):  # and at another size
        with torch.no_grad():
            assert baked(torch.randn(3, 3, size, size, dtype=torch.float64)).isfinite().all()


def test_a_block_that_reads_an_attribute_keeps_its_layers() -> None:
    model, x = ported(read="attribute")
    baked, report = sf.bake(model, [x], recalibrate=False)
    (site,) = report.sites
    assert site.outcome == "constant"
    assert isinstance(baked.fc1, nn.Conv2d)
    again, _ = ported(read="attribute")
    sf.bake_(again, [x], recalibrate=False)
    with torch.no_grad():
        assert torch.equal(again(x), baked(x))


def test_a_block_that_looks_at_values_keeps_its_layers() -> None:
    model, x = ported(read="value")
    baked, report = sf.bake(model, [x], recalibrate=False)
    (site,) = report.sites
    assert site.outcome == "constant"
    assert site.remaining >= 1
    assert isinstance(baked.fc1, nn.Conv2d)


class Squashed(nn.Module):
    """The last function of the gate is no module."""

    def __init__(self, squash: Callable[[Tensor], Tensor], *, pool: bool = True) -> None:
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, C, 3, padding=1), nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(C, 4, 1), nn.Conv2d(4, C, 1)
        self.proj, self.out = nn.Conv2d(C, C, 1), nn.Linear(C, 4)
        self.squash, self.pools = squash, pool

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        pooled = self.pool(x) if self.pools else F.adaptive_avg_pool2d(x, 1)
        v = self.squash(self.fc2(F.relu(self.fc1(pooled))))
        return self.out(self.proj(x * v).mean((2, 3)))


SQUASHED: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "hard sigmoid": F.hardsigmoid,
    "ReLU6": lambda z: F.relu6(z + 3) / 6,
    "clamped": lambda z: (0.2 * z + 0.5).clamp(0, 1),
    "one plus tanh": lambda z: 1 + torch.tanh(z),
    "written out": lambda z: 1 / (1 + torch.exp(-z)),
    "doubled": lambda z: 2 * torch.sigmoid(z),
    "less": lambda z: 1 - torch.sigmoid(z),
    "bounded by tensors": lambda z: torch.minimum(torch.maximum(z + 3, torch.zeros_like(z)), z.new_tensor(6)) / 6,
    "clamped by tensors": lambda z: torch.clamp(z + 3, min=torch.tensor(0.0).to(z), max=torch.tensor(6.0).to(z)) / 6,
    "clamped in turn": lambda z: (z * 0.2 + 0.5).clamp(min=0).clamp(max=1),
    "hard tanh": lambda z: (F.hardtanh(z) + 1) / 2,
    "written over": lambda z: (z + 3).clamp_(0, 6).div_(6),
    "log sigmoid": lambda z: torch.exp(F.logsigmoid(z)),
}


@pytest.mark.parametrize("name", SQUASHED)
def test_functions_behind_the_last_module_of_a_gate_are_undone(name: str) -> None:
    torch.manual_seed(0)
    model, x = prepared(Squashed(SQUASHED[name]).double(), images(8, seed=3)).eval(), images(8, seed=4)
    baked, report = sf.bake(model, [x], metric=lambda other: -float((other(x) - model(x)).abs().sum()))
    assert [site.outcome for site in report.sites] == ["multiply"]
    assert report.after == pytest.approx(report.constant, rel=1e-6)
    assert report.constant < -1e-7
    assert {n for n, module in baked.named_modules() if isinstance(module, nn.Conv2d)} == {"stem", "proj"}
    assert operations(model, x) - operations(baked, x) >= 3  # the pool and two layers
    inputs: list[Tensor] = []
    baked.proj.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with torch.no_grad():
        baked(x)
        (layer,) = sf.observe(model, x).layers
        assert error(inputs[0], F.silu(model.stem(x)) * layer.mean[:, None, None]) < EXACT


@pytest.mark.parametrize("form", ["fx", "exported"])
@pytest.mark.parametrize("name", SQUASHED)
def test_any_function_of_a_gate_in_a_graph(name: str, form: str) -> None:
    torch.manual_seed(0)
    eager = prepared(Squashed(SQUASHED[name], pool=False).double(), images(8, seed=3)).eval()
    x = images(8, seed=4)
    baked, report = sf.bake(FORM_OF[form](eager, x), [x], example=x, recalibrate=False)
    assert {site.outcome for site in report.sites} == {"folded" if form == "fx" else "multiply"}
    assert not report.still_computed
    assert discover(baked, x).gates == ()
    (layer,) = sf.observe(eager, x).layers
    with torch.no_grad():
        scaled = F.silu(eager.stem(x)) * layer.mean[:, None, None]
        assert error(baked(x), eager.out(eager.proj(scaled).mean((2, 3)))) < EXACT
        assert error(baked(x), eager(x)) > 1e-7


@pytest.mark.parametrize(
    "model",
    [
        Squashed(torch.sigmoid, pool=False),
        Squashed(lambda z: z.softmax(1)),
        Squashed(lambda z: (F.relu(z + 3) - F.relu(z - 3)) / 6),
        Squashed(lambda z: torch.where(z < -3, torch.zeros_like(z), (z / 6 + 0.5).clamp(max=1))),
        Squashed(lambda z: torch.maximum(z * 0.1, z)),
    ],
    ids=["pooled by code", "softmax", "two users", "chosen", "a bound that moves"],
)
def test_functions_that_cannot_be_undone_leave_the_gate(model: nn.Module) -> None:
    with pytest.raises(sf.errors.BakeError, match="no module returns the gate"):
        sf.bake(model.double().eval(), [images(8)])


class Picky(Squashed):
    """Code that does not take one row for all samples, or writes into the gate."""

    def __init__(self, how: str) -> None:
        super().__init__(torch.sigmoid)
        self.act, self.how = nn.Sigmoid(), how

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x))
        w = self.act(self.fc2(F.relu(self.fc1(self.pool(x)))))
        if self.how == "rows":
            w = w.view(x.shape[0], C, 1, 1)
        if self.how == "writes":
            w *= 0.5
        return self.out(self.proj(x * w).mean((2, 3)))


@pytest.mark.parametrize("how", ["rows", "writes"])
def test_code_that_wants_a_row_for_every_sample(how: str) -> None:
    torch.manual_seed(0)
    model, x = prepared(Picky(how).double(), images(8, seed=3)).eval(), images(8, seed=4)
    baked, report = sf.bake(model, [x], recalibrate=False)
    with torch.no_grad():
        first = baked(x)
        assert torch.equal(baked(x), first)  # nothing was written into the constant
        assert error(first, model(x)) < 1e-2
    assert len(report.sites) == 1


class Beside(nn.Module):
    """x + gate(x)."""

    def __init__(self, gate: nn.Module, *, flip: bool = False, again: bool = False) -> None:
        super().__init__()
        self.conv, self.gate, self.out = nn.Conv2d(3, C, 3, padding=1), gate, nn.Conv2d(C, 4, 1)
        self.flip, self.again = flip, again

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        y = self.gate(x) + x if self.flip else x + self.gate(x)
        return self.out(F.silu(y) + x if self.again else y).mean((2, 3))


@pytest.mark.parametrize("flip", [False, True])
def test_a_gate_beside_its_map_folds_as_one_plus_v(flip: bool) -> None:
    from tests.baking.nets import SE

    torch.manual_seed(0)
    model, x = prepared(Beside(SE(), flip=flip).double(), images(8)).eval(), images(8, seed=4)
    baked, report = sf.bake(model, [x], recalibrate=False)
    assert [site.outcome for site in report.sites] == ["folded"]
    (layer,) = sf.observe(model, x).layers
    with torch.no_grad(), override_gates(model, discover(model, x).gates, {layer.name: layer.mean}):
        assert error(baked(x), model(x)) < EXACT
    again = prepared(Beside(SE(), flip=flip, again=True).double(), images(8)).eval()
    assert [site.outcome for site in sf.bake(again, [x], recalibrate=False)[1].sites] == ["multiply"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "efficientnet_b0", "ghostnet_100"])
def test_timm_as_a_graph(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    model = prepared(timm.create_model(name).double(), x).eval()
    graph = torch.fx.symbolic_trace(copy.deepcopy(model))
    eager, expected = sf.bake(model, [x], recalibrate=False)
    baked, report = sf.bake(graph, [x], recalibrate=False)
    assert len(report.folded) == len(expected.folded) == len(report.sites)
    with torch.no_grad():
        assert error(baked(x), eager(x)) < EXACT
    assert operations(baked, x) <= operations(eager, x)
