"""A layer with gates, and a block of branches, are instances of the layer's class: other people's code finds them."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stripefold as sf
from stripefold.asr.site import Site
from stripefold.branches.block import BranchBlock
from stripefold.errors import AttachError, BranchError
from tests.lifecycle import error, snapshot

C = 8


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LAYERS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "Conv1d": lambda: (nn.Conv1d(C, C, 3), noise(2, C, 9)),
    "Conv2d": lambda: (nn.Conv2d(C, C, 3), noise(2, C, 6, 6)),
    "ConvTranspose2d": lambda: (nn.ConvTranspose2d(C, C, 3), noise(2, C, 6, 6)),
    "Linear": lambda: (nn.Linear(C, C), noise(2, C)),
    "BatchNorm1d": lambda: (nn.BatchNorm1d(C), noise(4, C)),
    "BatchNorm3d": lambda: (nn.BatchNorm3d(C), noise(2, C, 3, 3, 3)),
    "LayerNorm": lambda: (nn.LayerNorm(C), noise(2, 5, C)),
    "GroupNorm": lambda: (nn.GroupNorm(2, C), noise(2, C, 4, 4)),
}


@pytest.mark.parametrize("form", ["static", "dynamic"])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_site_is_an_instance_of_its_layers_class(kind: str, form: Any) -> None:
    layer, _ = LAYERS[kind]()
    model = nn.Sequential(layer, nn.ReLU()).double().eval()
    site = sf.attach(model, where="0", form=form)[0]
    assert isinstance(site, type(layer))
    assert isinstance(site, Site)
    assert type(site) is Site
    assert site.__class__.__name__ == kind
    assert not isinstance(site, nn.Conv3d)
    for other in (copy.deepcopy(site), pickle.loads(pickle.dumps(site))):
        assert (type(other), isinstance(other, type(layer))) == (Site, True)


@pytest.mark.parametrize("kind", ["dbb", "repvgg", "doconv"])
@pytest.mark.parametrize("width", [1, 2])
def test_a_block_is_an_instance_of_its_convolutions_class(kind: str, width: int) -> None:
    convolution = {1: nn.Conv1d, 2: nn.Conv2d}[width]
    model = nn.Sequential(convolution(C, C, 3, padding=1), nn.ReLU()).double().eval()
    block = sf.branch(model, kind)[0]
    assert isinstance(block, convolution)
    assert type(block) is BranchBlock
    assert isinstance(copy.deepcopy(block), convolution)
    assert isinstance(sf.attach(nn.Sequential(block), where="0")[0], convolution)


class Dispatching(nn.Module):
    """Chooses what follows a layer by what the layer is."""

    def __init__(self, follows: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, C, 3, padding=1), nn.BatchNorm2d(C), nn.Conv2d(C, C, 3, padding=1)])
        self.head = nn.Linear(C, 4)
        self.follows = follows

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.follows(layer, layer(x))
        return self.head(x.mean((2, 3)))


def by_instance(layer: nn.Module, x: Tensor) -> Tensor:
    return x.relu() if isinstance(layer, nn.BatchNorm2d) else x


def by_base_class(layer: nn.Module, x: Tensor) -> Tensor:
    return x.tanh() if isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)) else x


def by_match(layer: nn.Module, x: Tensor) -> Tensor:
    match layer:
        case nn.Conv2d(in_channels=8):
            return x.sigmoid()
        case nn.BatchNorm2d():
            return F.hardswish(x)
    return x


def by_attribute(layer: nn.Module, x: Tensor) -> Tensor:
    return x + layer.out_channels if hasattr(layer, "out_channels") else x


def by_class_name(layer: nn.Module, x: Tensor) -> Tensor:
    return x.relu() if layer.__class__.__name__.startswith("BatchNorm") else x


@functools.singledispatch
def by_dispatch(layer: nn.Module, x: Tensor) -> Tensor:
    return x


by_dispatch.register(nn.BatchNorm2d)(lambda layer, x: x.relu())

FINDS = [by_instance, by_base_class, by_match, by_attribute, by_class_name, by_dispatch]


def by_exact_type(layer: nn.Module, x: Tensor) -> Tensor:
    return x.relu() if type(layer) is nn.BatchNorm2d else x


def by_children(layer: nn.Module, x: Tensor) -> Tensor:
    return x.relu() if not list(layer.children()) else x


def by_parameter_names(layer: nn.Module, x: Tensor) -> Tensor:
    return x * (1.5 if "weight" in dict(layer.named_parameters()) else 1.0) + 0


def by_table(layer: nn.Module, x: Tensor) -> Tensor:
    return {nn.BatchNorm2d: F.relu, nn.Conv2d: F.gelu}.get(type(layer), torch.clone)(x)


PASSES_BY = [by_exact_type, by_children, by_table]
EVERYWHERE = ["layers.1", "layers.2"]


@pytest.mark.parametrize("follows", FINDS)
def test_a_forward_that_asks_what_a_layer_is_takes_the_same_path(follows: Any) -> None:
    torch.manual_seed(0)
    plain, x = Dispatching(follows).double().eval(), noise(2, 3, 7, 7)
    model = sf.attach(plain, where=EVERYWHERE, init="identity", example=x)
    assert error(model(x), plain(x)) < 1e-12
    blocks = sf.branch(plain, "doconv", where="layers.2", init="identity").eval()
    assert error(blocks(x), plain(x)) < 1e-12
    for gate in (site.gates[0] for site in model.layers[1:]):
        gate.psi.data.normal_()
    assert error(sf.fold(model, example=x)(x), model(x)) < 1e-12
    assert error(model(x), plain(x)) > 1e-5  # the control: the gates do something


@pytest.mark.parametrize("way", ["compile", "export", "strict export", "jit", "pickle"])
def test_tracers_take_that_path_too(way: str) -> None:
    torch.manual_seed(0)
    x = noise(2, 3, 7, 7)
    model = sf.attach(Dispatching(by_instance).double().eval(), where=EVERYWHERE, example=x)
    run: Any = {
        "compile": lambda: torch.compile(model, backend="eager"),
        "export": lambda: torch.export.export(model, (x,), strict=False).module(),
        "strict export": lambda: torch.export.export(model, (x,), strict=True).module(),
        "jit": lambda: torch.jit.trace(model, x),
        "pickle": lambda: pickle.loads(pickle.dumps(model)),
    }[way]()
    assert error(run(x), model(x)) < 1e-12


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("follows", PASSES_BY)
def test_a_forward_that_a_site_cannot_follow_is_refused(follows: Any, in_place: bool) -> None:
    torch.manual_seed(0)
    model, x = Dispatching(follows).double().eval(), noise(2, 3, 7, 7)
    seen: list[str] = []
    model.layers[1].register_forward_hook(lambda module, args, output: seen.append(type(module).__name__))
    before, expected = snapshot(model), model(x)
    attach = sf.attach_ if in_place else sf.attach
    with pytest.raises(AttachError, match=r"takes another path once its layers carry gates: .*isinstance\(layer"):
        attach(model, where=EVERYWHERE, example=x)
    assert snapshot(model) == before
    assert torch.equal(model(x), expected)
    assert set(seen) == {"BatchNorm2d"}
    assert sf.attach(model, where="head", example=x) is not None  # the control: what nobody asks about


def test_a_refused_second_gate_leaves_the_first() -> None:
    torch.manual_seed(0)
    model, x = Dispatching(by_instance).double().eval(), noise(2, 3, 7, 7)
    sf.attach_(model, where=EVERYWHERE, example=x)
    model.follows = lambda layer, y: y.relu() if len(getattr(layer, "gates", ())) == 1 else y
    before = snapshot(model)
    with pytest.raises(AttachError, match="another path"):
        sf.attach_(model, form="dynamic", where=EVERYWHERE, example=x)
    assert snapshot(model) == before


class Reading(nn.Module):
    """Breaks on a layer that has children."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(C)

    def forward(self, x: Tensor) -> Tensor:
        if len(list(self.norm.modules())) > 1:
            raise TypeError("a plain layer is wanted")
        return self.norm(x)


def test_a_model_that_does_not_run_any_more_is_refused() -> None:
    with pytest.raises(AttachError, match="does not run on its example any more once its layers carry gates"):
        sf.attach(Reading(), where="norm", example=torch.randn(2, C))


def walked() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C), nn.ReLU(), nn.Sequential(nn.Conv2d(C, C, 1)))
    return plain, sf.attach(plain, where=["0", "1", "3.0"])


def test_a_walk_over_modules_meets_each_layer_once() -> None:
    """With its real parameters: for counting, for splitting the weight decay, for starting anew."""
    plain, model = walked()
    for kind in (nn.Conv2d, nn.BatchNorm2d):
        mine = [m for m in model.modules() if isinstance(m, kind)]
        assert [type(m) for m in mine] == [type(m) for m in plain.modules() if isinstance(m, kind)]
    decayed = [
        f"{name}.{key}"
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d))
        for key, _ in module.named_parameters(recurse=False)
    ]
    names = dict(model.named_parameters())
    assert decayed == [
        "0.base.weight",
        "0.base.bias",
        "1.base.weight",
        "1.base.bias",
        "3.0.base.weight",
        "3.0.base.bias",
    ]
    assert set(decayed) <= set(names)
    torch.optim.SGD([m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d)], lr=1.0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 0.25)
    assert bool((model[0].base.weight == 0.25).all())


def test_a_walk_down_the_children_finds_the_layer() -> None:
    _, model = walked()

    def counted(module: nn.Module) -> int:
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            return sum(p.numel() for p in (module.weight, module.bias))
        return sum(counted(child) for child in module.children())

    assert counted(model) == sum(p.numel() for p in walked()[0].parameters())
    assert [isinstance(child, nn.BatchNorm2d) for child in model.children()] == [False, True, False, False]


def test_a_walk_that_was_left_is_forgotten() -> None:
    _, model = walked()
    walk = model.modules()
    while next(walk) is not model[1]:
        pass
    assert not isinstance(model[1], nn.BatchNorm2d)  # it was handed out last; the layer inside comes next
    del walk
    assert isinstance(model[1], nn.BatchNorm2d)
    assert list(model.modules())[2] is model[0].base


def test_conversions_by_type_reach_the_layer_inside() -> None:
    _, model = walked()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert type(converted[1]) is Site
    assert type(converted[1].base) is nn.SyncBatchNorm
    assert isinstance(converted[1], nn.SyncBatchNorm)


class ByType(nn.Module):
    """Declares its input, so that branch can look at it."""

    input_size = (3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, C, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y.relu() if type(self.conv) is nn.Conv2d else y


def test_a_block_that_the_forward_passes_by_is_refused() -> None:
    with pytest.raises(BranchError, match="takes another path"):
        sf.branch(ByType(), "repvgg")
