"""Blocks that re-parameterize themselves: called on a float64 copy, kept only where they compute the same."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import timm.layers
import timm.models
import torch
from timm.models import byobnet
from torch import Tensor, nn

import stripefold as sf
from stripefold.folding.third_party import _BLOCKS, _WALKERS, METHODS, offered, unknown_offer
from stripefold.layers.rule import type_key
from tests.lifecycle import assert_refused, error
from tests.zoo.prepare import Randomness, jitter_, randomise_, statistics_of_the_last_batch

IMAGE = (2, 8, 12, 12)
ROWS = (4, 8)
# What the methods of timm's blocks have to cope with, one line per class; all of 8 channels.
BLOCKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "RepVggBlock": (lambda: of_timm("byobnet", "RepVggBlock")(8, 8, group_size=0), IMAGE),
    "RepVggBlock strided": (lambda: of_timm("byobnet", "RepVggBlock")(8, 16, stride=2), IMAGE),
    "MobileOneBlock": (lambda: of_timm("byobnet", "MobileOneBlock")(8, 8, num_conv_branches=3), IMAGE),
    "ConvLayer2d": (lambda: of_timm("efficientvim", "ConvLayer2d")(8, 6, 3, padding=1), IMAGE),
    "ConvLayer1d": (lambda: of_timm("efficientvim", "ConvLayer1d")(8, 6, 3, padding=1), (2, 8, 12)),
    "PatchMerging": (lambda: of_timm("efficientvim", "PatchMerging")(8, 16), IMAGE),
    "EfficientViMBlock": (lambda: of_timm("efficientvim", "EfficientViMBlock")(8, state_dim=4), IMAGE),
    "efficientvit ConvNorm": (lambda: of_timm("efficientvit_msra", "ConvNorm")(8, 8, 3, 1, 1, groups=8), IMAGE),
    "efficientvit NormLinear": (lambda: of_timm("efficientvit_msra", "NormLinear")(8, 3, bias=False), ROWS),
    "fastvit MobileOneBlock": (lambda: of_timm("fastvit", "MobileOneBlock")(8, 8, 3, group_size=1), IMAGE),
    "RepConditionalPosEnc": (lambda: of_timm("fastvit", "RepConditionalPosEnc")(8), IMAGE),
    "RepMixer": (lambda: of_timm("fastvit", "RepMixer")(8), IMAGE),
    "ReparamLargeKernelConv": (
        lambda: of_timm("fastvit", "ReparamLargeKernelConv")(8, 8, 7, 1, 1, small_kernel=3), IMAGE
    ),
    "GhostModuleV3": (lambda: of_timm("ghostnet", "GhostModuleV3")(8, 8, mode="original"), IMAGE),
    "GhostBottleneckV3": (lambda: of_timm("ghostnet", "GhostBottleneckV3")(8, 12, 8, stride=2), IMAGE),
    "iformer ConvNorm": (lambda: of_timm("iformer", "ConvNorm")(8, 6), IMAGE),
    "iformer NormLinear": (lambda: of_timm("iformer", "NormLinear")(8, 3), ROWS),
    "iformer classifier": (lambda: of_timm("iformer", "RepVitClassifier")(8, 3, distillation=True), ROWS),
    "RepCPE": (lambda: of_timm("iformer", "RepCPE")(8, 5), IMAGE),
    "RepDepthwiseSeparable": (
        lambda: of_timm("lcnetv2", "RepDepthwiseSeparable")(8, 8, 1, dw_kernel_size=5, use_rep=True), IMAGE
    ),
    "levit ConvNorm": (lambda: of_timm("levit", "ConvNorm")(8, 6), IMAGE),
    "levit LinearNorm": (lambda: of_timm("levit", "LinearNorm")(8, 6), (2, 5, 8)),
    "levit NormLinear": (lambda: of_timm("levit", "NormLinear")(8, 3), ROWS),
    "NextConvBlock": (lambda: of_timm("nextvit", "NextConvBlock")(8, 32), IMAGE),
    "NextTransformerBlock": (lambda: of_timm("nextvit", "NextTransformerBlock")(8, 128, 0.0, sr_ratio=2), IMAGE),
    "RepGhostModule": (lambda: of_timm("repghost", "RepGhostModule")(8, 8), IMAGE),
    "repvit ConvNorm": (lambda: of_timm("repvit", "ConvNorm")(8, 8, 3, 2, 1, groups=2), IMAGE),
    "repvit NormLinear": (lambda: of_timm("repvit", "NormLinear")(8, 3), ROWS),
    "RepVggDw": (lambda: of_timm("repvit", "RepVggDw")(8, 3), IMAGE),
    "RepVggDw legacy": (lambda: of_timm("repvit", "RepVggDw")(8, 3, legacy=True), IMAGE),
    "repvit classifier": (lambda: of_timm("repvit", "RepVitClassifier")(8, 3, distillation=True), ROWS),
    "Conv2dNorm": (lambda: of_timm("shvit", "Conv2dNorm")(8, 6), IMAGE),
    "shvit NormLinear": (lambda: of_timm("shvit", "NormLinear")(8, 3), ROWS),
    "shvit Residual": (
        lambda: of_timm("shvit", "Residual")(of_timm("shvit", "Conv2dNorm")(8, 8, 3, 1, 1, groups=8)), IMAGE
    ),
    "tiny_vit ConvNorm": (lambda: of_timm("tiny_vit", "ConvNorm")(8, 6, 3, 1, 1, groups=2), IMAGE),
}  # fmt: skip


def of_timm(room: str, name: str) -> Any:
    """A class of timm, where this version has it."""
    found = getattr(pytest.importorskip(f"timm.models.{room}"), name, None)
    if found is None or not hasattr(found, _BLOCKS[type_key(found)]):
        pytest.skip(f"timm {timm.__version__} has no {room}.{name}")
    return found


def random_numbers(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def ready(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Every number random, statistics fitting and then jittered; eval mode, float64."""
    randomness = Randomness(0)
    randomise_(model, randomness)
    with torch.no_grad(), statistics_of_the_last_batch(model):
        model.train()(torch.randn(shape))
    jitter_(model, randomness)
    return model.double().eval()


def tensor_of(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def norms_in(model: nn.Module) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def why(report: sf.FoldReport) -> dict[str, str]:
    return {note.name: note.why for note in report.notes}


@pytest.mark.parametrize("case", BLOCKS)
def test_blocks_of_timm(case: str) -> None:
    build, shape = BLOCKS[case]
    torch.manual_seed(0)
    model, x = nn.Sequential(ready(build(), shape)), random_numbers(shape)
    plain, report = sf.fold(model, fuse=True, example=x, check=False, report=True)
    with torch.no_grad():
        expected = tensor_of(model(x.clone()))
        assert error(tensor_of(plain(x.clone())), expected) <= 1e-10
        assert float((expected - expected.mean(0)).abs().max() / expected.abs().max()) > 1e-2
    assert norms_in(model) > 0 or case == "RepConditionalPosEnc"
    assert norms_in(plain) == 0
    assert list(plain.state_dict()) != list(model.state_dict())
    assert any("re-parameterized by its own" in note.why for note in report.folded)
    assert {p.dtype for p in plain.parameters()} == {torch.float64}
    assert all(p.requires_grad for p in plain.parameters())
    again, second = sf.fold(plain, fuse=True, example=x, check=False, report=True)
    assert second.folded == ()
    assert all(torch.equal(t, again.state_dict()[key]) for key, t in plain.state_dict().items())


def test_the_list_covers_timm() -> None:
    """A new class with such a method is to be looked at: added to the table, or to the walkers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rooms = [
            importlib.import_module(found.name)
            for package in (timm.models, timm.layers)
            for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
        ]
    classes = {c for room in rooms for c in vars(room).values() if inspect.isclass(c) and issubclass(c, nn.Module)}
    with_method = {
        type_key(c) for c in classes if c.__module__.startswith("timm") and any(hasattr(c, m) for m in METHODS)
    }
    assert with_method <= set(_BLOCKS) | _WALKERS


def test_every_known_block_is_tested() -> None:
    tested = {type_key(type(build())) for build, _ in BLOCKS.values()}
    assert {key for key in _BLOCKS if key.startswith("timm.")} == tested


def test_the_root_may_be_a_block_and_a_block_may_be_registered_twice() -> None:
    torch.manual_seed(0)
    root, x = ready(of_timm("repvit", "RepVggDw")(8, 3), IMAGE), random_numbers(IMAGE)
    plain = sf.fold(root, fuse=True, example=x)
    assert type(plain) is nn.Conv2d
    block = ready(byobnet.RepVggBlock(8, 8), IMAGE)
    twice = nn.Sequential(block, nn.Tanh(), block)
    plain, report = sf.fold(twice, fuse=True, example=x, report=True)
    assert plain[0] is plain[2]
    assert [note.name for note in report.folded] == ["0"]
    assert norms_in(plain) == 0


def test_modes_flags_and_hooks_stay() -> None:
    torch.manual_seed(0)
    block = ready(byobnet.RepVggBlock(8, 8), IMAGE)
    model, x, seen = nn.Sequential(block, nn.Conv2d(8, 8, 1).double()).train(), random_numbers(IMAGE), []
    block.requires_grad_(False)
    block.act.eval()
    handle = block.register_forward_hook(lambda module, args, output: seen.append(output))
    plain = sf.fold_(model, fuse=True, example=x, check=False)
    assert plain is model
    assert type(plain[0]) is byobnet.RepVggBlock
    assert plain[0].training
    assert not plain[0].act.training
    assert not any(p.requires_grad for p in plain[0].parameters())
    assert all(p.requires_grad for p in plain[1].parameters())
    assert not [value for value in vars(plain[0]).values() if isinstance(value, Tensor)]  # no scratch tensors
    seen.clear()
    plain(x)
    handle.remove()
    plain(x)
    assert len(seen) == 1


class Own(nn.Module):
    """A block of the user's, whose methods are right, wrong, failing, or something else altogether."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.merged: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.merged(x) if self.merged is not None else self.first(x) + self.second(x)

    def switch_to_deploy(self) -> None:
        self.merged = nn.Conv2d(8, 8, 3, padding=1)
        self.merged.weight.data = self.first.weight.data + self.second.weight.data
        self.merged.bias.data = self.first.bias.data + self.second.bias.data
        del self.first, self.second

    def wrong(self) -> None:
        self.switch_to_deploy()
        self.merged.bias.data += 1e-3

    def failing(self) -> None:
        raise RuntimeError("not today")

    def text(self) -> str:
        return "done"

    def another_shape(self) -> nn.Module:
        return nn.Conv2d(8, 4, 1)

    def with_argument(self, how: str) -> None:
        """Not callable without it."""


class Kept(Own):
    """Of another exact type."""


@pytest.fixture
def own() -> Own:
    """The block, registered with the right method; forgotten afterwards."""
    torch.manual_seed(0)
    yield Own().double()
    _BLOCKS.pop(type_key(Own), None)


def test_a_registered_block(own: Own) -> None:
    x = random_numbers(IMAGE)
    assert unknown_offer(own) == "switch_to_deploy"
    _, report = sf.fold(nn.Sequential(own), fuse=True, example=x, report=True)
    assert "register_block(Own, 'switch_to_deploy')" in why(report)["0"]
    sf.register_block(Own, "switch_to_deploy")
    assert offered(own) == "switch_to_deploy"
    assert offered(Kept()) is None
    plain, report = sf.fold(nn.Sequential(own), fuse=True, example=x, report=True)
    assert why(report) == {"0": "re-parameterized by its own switch_to_deploy"}
    assert sorted(plain.state_dict()) == ["0.merged.bias", "0.merged.weight"]
    assert sorted(own.state_dict()) == ["first.bias", "first.weight", "second.bias", "second.weight"]


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("wrong", r"its wrong changes what it computes \(relative error [0-9.e-]+ in float64\)"),
        ("another_shape", "its another_shape changes what it computes"),
        ("failing", "its failing fails: RuntimeError: not today"),
        ("text", "its text fails: TypeError: it returned str, not a module"),
    ],
)
def test_what_is_wrong_is_kept_and_named(own: Own, method: str, reason: str) -> None:
    sf.register_block(Own, method)
    model, x = nn.Sequential(own), random_numbers(IMAGE)
    plain, report = sf.fold(model, fuse=True, example=x, report=True)
    (note,) = report.left
    assert note.name == "0"
    assert re.search(reason, note.why)
    assert torch.equal(plain(x), model(x))
    assert sorted(plain.state_dict()) == sorted(model.state_dict())


@pytest.mark.parametrize("method", ["no_such", "with_argument", "merged"])
def test_register_block_refuses_what_cannot_be_called(own: Own, method: str) -> None:
    with pytest.raises(sf.errors.FoldError, match="has no method .* that can be called without arguments"):
        sf.register_block(Own, method)


def test_register_block_needs_a_type(own: Own) -> None:
    with pytest.raises(sf.errors.FoldError, match="needs an nn.Module type"):
        sf.register_block(own, "switch_to_deploy")


class TwoInputs(nn.Module):
    """Calls the block with a keyword, or not at all."""

    def __init__(self, block: nn.Module, called: bool) -> None:
        super().__init__()
        self.block, self.called, self.head = block, called, nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x=x) if self.called else x)


@pytest.mark.parametrize("called", [True, False])
def test_a_block_that_cannot_be_checked_stays(own: Own, called: bool) -> None:
    sf.register_block(Own, "switch_to_deploy")
    model = TwoInputs(own, called).double()
    _, report = sf.fold(model, fuse=True, example=random_numbers(IMAGE), report=True)
    assert "the result could not be checked" in why(report)["block"]


def test_hooks_inside_a_block_are_not_lost(own: Own) -> None:
    sf.register_block(Own, "switch_to_deploy")
    own.first.register_forward_hook(lambda module, args, output: None)
    _, report = sf.fold(nn.Sequential(own), fuse=True, example=random_numbers(IMAGE), report=True)
    assert why(report)["0"] == "first in it has hooks that would be lost"


def test_a_site_inside_a_block_stays(own: Own) -> None:
    sf.register_block(Own, "switch_to_deploy")
    model = sf.attach(nn.Sequential(own), "eca", where="0.first", form="dynamic")
    report = sf.fold(model, fuse=True, example=random_numbers(IMAGE), report=True)[1]
    assert why(report)["0"] == "first in it stays as it is"


def test_numbers_that_overflow_stay(own: Own) -> None:
    sf.register_block(Own, "switch_to_deploy")
    with torch.no_grad():
        own.first.bias.fill_(60000.0)
        own.second.bias.fill_(60000.0)
    model = nn.Sequential(own.half())
    _, report = sf.fold(model, fuse=True, example=random_numbers(IMAGE, torch.float16), check=False, report=True)
    assert why(report)["0"] == "the merged bias overflows torch.float16"


class Reads(nn.Module):
    """Reads what is inside a block while it runs."""

    def __init__(self, block: Own) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) + self.block.first.bias.mean()


def test_a_model_that_reads_inside_its_blocks_gets_them_back(own: Own) -> None:
    sf.register_block(Own, "switch_to_deploy")
    model, x, seen = Reads(own), random_numbers(IMAGE), []
    own.register_forward_hook(lambda module, args, output: seen.append(output))
    expected = model(x)
    plain, report = sf.fold_(model, fuse=True, example=x, check=False, report=True)
    assert plain is model
    assert plain.block is own
    seen.clear()
    assert torch.equal(plain(x), expected)
    assert len(seen) == 1
    assert "the model reads what is inside its blocks" in why(report)["block"]
    assert report.folded == ()


def test_an_example_that_does_not_fit_changes_nothing(own: Own) -> None:
    sf.register_block(Own, "switch_to_deploy")
    model = nn.Sequential(own)
    assert_refused(
        model,
        lambda: sf.fold_(model, fuse=True, example=torch.zeros(2, 5, 4, 4).double(), check=False),
        sf.errors.TraceError,
        "cannot trace",
    )


def test_gates_and_blocks_together() -> None:
    torch.manual_seed(0)
    backbone = ready(nn.Sequential(byobnet.MobileOneBlock(8, 8), nn.Conv2d(8, 8, 1)), IMAGE)
    model, x = sf.attach(backbone, where=["0.conv_kxk.0.bn", "1"]), random_numbers(IMAGE)
    plain, report = sf.fold(model, fuse=True, example=x, report=True)
    assert norms_in(plain) == 0
    assert {note.kind for note in report.folded} >= {"MobileOneBlock"}
    assert error(plain.eval()(x), backbone(x)) > 1e-3  # the control: the gates count
