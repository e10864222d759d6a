"""One record, one rounding: what gates, blocks and norms make of a tensor is its float64 number, rounded once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.models import byobnet, fastvit
from torch import Tensor, nn

import stripefold as sf
from stripefold.errors import FoldError
from stripefold.modules.float64_weights import Float64Weights
from tests.asr.position_nets import NETS, pictures
from tests.asr.position_nets import gated as gated_positions
from tests.baking.test_warm import forward_site
from tests.folding.test_layer_addition import Shift
from tests.folding.test_layer_scale import Scale
from tests.lifecycle import assert_refused, images, prepared, scatter_, tiny
from tests.zoo.prepare import Randomness, randomise_

Case = tuple[nn.Module, Tensor]
X = torch.randn(4, 6, 9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def chain(*, bias: bool = False, classes: int = 5) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(6, 8, 3, padding=1, bias=bias), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1, bias=bias),
        nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes),
    )  # fmt: skip


def gated(*gates: tuple[str, str], **options: Any) -> Case:
    """The chain with an attention on a path each, in this order."""
    model = prepared(chain(**options).double(), X)
    for attention, path in gates:
        model = sf.attach(model, attention, where=[path])
    return scatter_(model).eval(), X


def rep_vgg() -> Case:
    """A block of timm that merges its own branches, with gates on a convolution and on a norm inside it."""
    torch.manual_seed(0)
    model = prepared(nn.Sequential(byobnet.RepVggBlock(6, 6, group_size=0), nn.Conv2d(6, 4, 1)).double(), X)
    return scatter_(sf.attach(model, "se", where=["0.conv_kxk.conv", "0.conv_1x1.bn"])).eval(), X


def branch_block() -> Case:
    """A block of ours with a gate inside it and one around it, and a gated norm behind it."""
    blocks = prepared(sf.branch(chain().double(), "dbb", where=["0"]), X)
    inside = next(name for name, part in blocks[0].named_modules() if isinstance(part, nn.BatchNorm2d))
    return scatter_(sf.attach(blocks, "se", where=[f"0.{inside}", "0", "1"])).eval(), X


def library_block() -> Case:
    """A block of timm that merges its branches, its LayerScale, and a norm."""
    torch.manual_seed(0)
    block = fastvit.MobileOneBlock(6, 6, 3, group_size=1, use_act=False)
    model = nn.Sequential(block, fastvit.LayerScale2d(6), nn.BatchNorm2d(6)).double()
    randomise_(model, Randomness(0))
    return prepared(model, X).eval(), X


def constants() -> Case:
    """A learned scale and a learned addition in front of a norm, and behind it."""
    model = nn.Sequential(nn.Conv2d(6, 6, 1), Scale(6, 1, 1), Shift(6, 1, 1), nn.BatchNorm2d(6), Shift(6, 1, 1))
    randomise_(model.double(), Randomness(0))
    with torch.no_grad():
        for module in (model[2], model[4]):
            module.offset.normal_()
    return prepared(model, X).eval(), X


def norms_on_both_sides() -> Case:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4))
    return prepared(model.double(), X).eval(), X


UNGATED: dict[str, Callable[[], Case]] = {
    "a whole network": lambda: (prepared(tiny(), images()).eval(), images()),
    "learned constants and a norm": constants,
    "norms on both sides": norms_on_both_sides,
    "block, LayerScale and norm of timm": library_block,
}
FUSED: dict[str, Callable[[], Case]] = {
    "gate on a norm": lambda: gated(("se", "1"), ("se", "4")),
    "gate on a convolution": lambda: gated(("se", "0"), ("se", "3")),
    "gates on both": lambda: gated(("se", "0"), ("se", "1"), ("eca", "3"), ("se", "4")),
    "gate and addition on a norm": lambda: gated(("se", "1"), ("shift", "1"), ("shift", "4")),
    "addition on a convolution": lambda: gated(("shift", "0"), ("se", "1")),
    "addition on a convolution with a bias": lambda: gated(("shift", "0"), ("se", "0"), bias=True),
    "inside a block of timm": rep_vgg,
    "around and inside a branch block": branch_block,
}


def fold(model: nn.Module, x: Tensor, *, fuse: bool) -> dict[str, Tensor]:
    state: dict[str, Tensor] = sf.fold(model, fuse=fuse, example=x, check=False).state_dict()
    return state


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("case", FUSED)
def test_a_gate_and_a_norm_are_rounded_once(case: str, dtype: torch.dtype) -> None:
    model, x = FUSED[case]()
    narrow = model.to(dtype)
    found = fold(narrow, x.to(dtype), fuse=True)
    exact = fold(copy.deepcopy(narrow).double(), x, fuse=True)
    assert found.keys() == exact.keys()
    assert all(torch.equal(tensor, exact[key].to(tensor.dtype)) for key, tensor in found.items())
    # The control: folded, rounded, and only then fused, the numbers are others.
    twice = fold(sf.fold(narrow, fuse=False, example=x.to(dtype), check=False), x.to(dtype), fuse=True)
    assert any(not torch.equal(tensor, twice[key]) for key, tensor in found.items())


@pytest.mark.parametrize("case", UNGATED)
def test_what_the_model_itself_carries_is_rounded_once(case: str) -> None:
    model, x = UNGATED[case]()
    narrow = model.bfloat16()
    plain, report = sf.fold(narrow, fuse=True, example=x.bfloat16(), check=False, report=True)
    exact = fold(copy.deepcopy(narrow).double(), x, fuse=True)
    assert not report.left
    assert not any(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
    assert plain.state_dict().keys() == exact.keys()
    assert all(torch.equal(tensor, exact[key].bfloat16()) for key, tensor in plain.state_dict().items())


def test_the_product_by_hand() -> None:
    model, x = gated(("se", "0"), ("se", "1"), ("shift", "1"))
    narrow: Any = model.bfloat16()
    found = fold(narrow, x.bfloat16(), fuse=True)
    first, norm = narrow[0], narrow[1]
    v, w, a = first.scale(torch.float64), norm.scale(torch.float64), norm.shift(torch.float64)
    gain = w * norm.base.weight.double() / (norm.base.running_var.double() + norm.base.eps).sqrt()
    weight = (gain * v)[:, None, None, None] * first.base.weight.double()
    bias = w * norm.base.bias.double() + a - gain * norm.base.running_mean.double()
    assert torch.equal(found["0.weight"], weight.bfloat16())
    assert torch.equal(found["0.bias"], bias.bfloat16())
    # The control: the gate rounded into the norm first.
    gamma = (w * norm.base.weight.double()).bfloat16().double()
    gain = gamma / (norm.base.running_var.double() + norm.base.eps).sqrt()
    assert not torch.equal(found["0.weight"], ((gain * v)[:, None, None, None] * first.base.weight.double()).bfloat16())


def both_sides() -> Case:
    """A linear layer with a gate over the positions before it, one over its channels, and an addition."""
    build, name, _ = NETS["lenet"]
    model = gated_positions(build, "spatial")
    return scatter_(
        sf.attach(sf.attach(model, "se", where=[f"{name}.base"]), "shift", where=[f"{name}.base"])
    ).eval(), pictures()


def before_a_linear_layer() -> Case:
    """An addition without a bias to take it, in front of a gated linear layer whose bias does."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Linear(8, 8)).double()
    model = sf.attach(sf.attach(model, "shift", where=["0"]), "se", where=["1"])
    return scatter_(model).eval(), X[:, :, 0, 0]


def elsewhere() -> Case:
    """A gate that folds into the convolution behind it, which has gates of its own."""
    warm, x, _ = forward_site()
    return scatter_(sf.attach(warm, "se", where=["conv"], example=x)).eval(), x


PLAIN = {"both sides": both_sides, "before a linear layer": before_a_linear_layer, "elsewhere": elsewhere}


@pytest.mark.filterwarnings("ignore:.* folded layers have a bias")
@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("case", PLAIN)
def test_several_gates_that_meet_in_one_tensor_are_rounded_once(case: str, fuse: bool) -> None:
    model, x = PLAIN[case]()
    narrow = model.bfloat16()
    found = fold(narrow, x.bfloat16(), fuse=fuse)
    exact = fold(copy.deepcopy(narrow).double(), x, fuse=fuse)
    assert all(torch.equal(tensor, exact[key].to(tensor.dtype)) for key, tensor in found.items())
    bare = fold(sf.detach(narrow), x.bfloat16(), fuse=False)
    assert any(not torch.equal(tensor, bare[key]) for key, tensor in found.items() if key in bare)  # the control


def test_gates_that_fit_one_by_one_and_overflow_together_are_refused() -> None:
    model, _ = elsewhere()
    model.half()
    site: Any = model.se
    with torch.no_grad():
        site.base.weight.fill_(300.0)
        model.conv.base.weight.fill_(100.0)
        model.conv.gates[0].register_forward_hook(lambda gate, args, v: v * 500)
    assert_refused(
        model, lambda: sf.fold_(model, check=False), FoldError, "cannot fold into 'conv.base': its weight overflows"
    )
    site.base.weight.data.fill_(1.0)
    sf.fold_(model, check=False)


def test_one_policy_of_what_a_type_holds() -> None:
    """What overflows, what is lost, and what is no worse than it was."""
    layer, weights = nn.Linear(2, 2).half(), Float64Weights()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[torch.inf, 1.0], [2.0, 3.0]]))
    exact = layer.weight.detach().double()
    weights.set(layer, {"weight": exact * 1.5, "bias": torch.full((2,), 1e-9, dtype=torch.float64)}, added=["bias"])
    assert weights.misfit() is None
    for factor, why in [(1e5, "overflows"), (1e-9, "underflows")]:
        fork = weights.fork()
        fork.set(layer, {"weight": torch.where(exact.isinf(), 0.0, exact) * factor})
        assert str(fork.misfit()) == str(fork.misfit(since=weights)) == f"weight {why} torch.float16"
        assert fork.fork().misfit(since=fork) is None  # judged before


def test_a_record_forgets_kernels_that_are_written_unless_they_are_merged_into_later() -> None:
    for keep in (True, False):
        layer = nn.Conv2d(2, 3, 1).bfloat16()
        exact = {"weight": torch.rand(3, 2, 1, 1, dtype=torch.float64), "bias": torch.rand(3, dtype=torch.float64)}
        weights = Float64Weights(keep=keep)
        weights.set(layer, exact)
        weights.write_()
        known = weights.read(layer, "weight"), weights.read(layer, "bias")
        assert torch.equal(known[0], exact["weight"] if keep else layer.weight.double())
        assert torch.equal(known[1], exact["bias"])
