"""Branch blocks of a user's own: they train, fold and verify like the others, and wrong ones are refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stripefold as sf
from stripefold.algebra.kernels import Merged, identity_kernel
from stripefold.branches import Branch, ConvGeometry, ConvolutionBranch, IdentityBranch, registry
from stripefold.branches.registry import branch_kinds
from stripefold.errors import BranchError
from tests.branches.blocks import example_for
from tests.lifecycle import EXACT, error, images, tiny


class Skip(Branch):
    """The input itself, times one learned number per channel."""

    def __init__(self, grid: ConvGeometry) -> None:
        super().__init__()
        self.grid, self.factor = grid, nn.Parameter(torch.ones(grid.outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.grid.subsample(x) * self.factor.reshape(-1, *(1,) * self.grid.axes)

    def merged(self) -> Merged:
        grid, factor = self.grid, self.factor.double().reshape(-1, *(1,) * (self.grid.axes + 1))
        middle = grid.centred(1).offset
        return identity_kernel(grid.outputs, grid.groups, grid.size, middle, device=factor.device) * factor, None

    @torch.no_grad()
    def zero_init_(self) -> None:
        self.factor.zero_()


def skip(grid: ConvGeometry, *, point: bool = True) -> dict[str, Branch]:
    branches: dict[str, Branch] = {"main": ConvolutionBranch(grid), "skip": Skip(grid)}
    return branches | ({"point": ConvolutionBranch(grid, grid.centred(1))} if point else {})


def no_skip(grid: ConvGeometry, *, point: bool = True) -> str | None:
    return None if grid.keeps_map else "its output has another shape than its input"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_KINDS", dict(registry._KINDS))


@pytest.mark.parametrize("init", ["paper", "identity"])
def test_a_block_of_ones_own_trains_folds_and_verifies(init: Any) -> None:
    assert sf.register_branch("skip", skip, refuse=no_skip, branches="k x k, the input", source="here") is skip
    assert "skip" in sf.branch_names()
    assert branch_kinds()[-1].options == ("point",)
    start, x = tiny(), images()
    model = sf.branch(start, "skip", init=init, data=images(16) if init == "identity" else None)
    assert [name for name, module in model.named_modules() if module.__class__.__name__ == "BranchBlock"] == [
        f"blocks.{block}.conv{conv}" for block in (0, 1) for conv in (1, 2)
    ]  # not the stem, which `refuse` leaves out
    if init == "identity":
        assert error(model.eval()(x), start.eval()(x)) < EXACT
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    before = model.blocks[0].conv1.branches["skip"].factor.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        model.train()(x).square().mean().backward()
        optimizer.step()
    assert not torch.equal(model.blocks[0].conv1.branches["skip"].factor, before)
    plain = sf.fold(model.eval(), example=x)
    assert list(plain.state_dict()) == list(tiny().state_dict())
    assert sf.verify(model, plain, x).error < EXACT
    with torch.no_grad():  # the control: a block without its own branch computes something else
        for block in model.blocks:
            block.conv1.branches["skip"].zero_init_()
    assert error(model(x), plain(x)) > 1e-3


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv1d(4, 4, 5, padding=2, groups=2),
        nn.Conv2d(6, 6, (3, 1), padding="same", dilation=2, padding_mode="reflect"),
        nn.Conv3d(2, 2, 3),
    ],
    ids=["1d", "2d", "3d"],
)
def test_on_convolutions_of_every_kind(convolution: nn.Module) -> None:
    sf.register_branch("skip", skip, refuse=no_skip)
    x = example_for(convolution)
    model = sf.branch(nn.Sequential(convolution).double(), "skip", where="0", options={"point": False}).eval()
    assert sf.verify(model, sf.fold(model, example=x), x).error < EXACT


def test_the_decorator_with_options_and_a_random_state_that_stays() -> None:
    @sf.register_branch("twice")
    def twice(grid: ConvGeometry, *, copies: int = 2) -> dict[str, Branch]:
        return {f"copy{index}": ConvolutionBranch(grid) for index in range(copies)}

    torch.manual_seed(0)
    own = sf.branch(tiny(), "twice", where="stem")
    torch.manual_seed(0)
    builtin = sf.branch(tiny(), "mobileone", where="stem", options={"copies": 2, "identity": False})
    kernels = [model.stem.branches[name].conv.weight for model, name in ((own, "copy1"), (builtin, "copy1"))]
    assert torch.equal(*kernels)  # the probe draws from no one's generator
    assert len(sf.branch(tiny(), "twice", where="stem", options={"copies": 3}).stem.branches) == 3
    with pytest.raises(BranchError, match="block 'twice' has no option 'copie'"):
        sf.branch(tiny(), "twice", options={"copie": 3})
    sf.register_branch("twice", twice)  # once more is no fault
    with pytest.raises(BranchError, match=r"no branch block 'twic'; known are .* your own by register_branch"):
        sf.branch(tiny(), "twic")


def positional(grid: ConvGeometry, point: bool = True) -> dict[str, Branch]:
    return {}


def without_default(grid: ConvGeometry, *, point: bool) -> dict[str, Branch]:
    return {}


def anything(*grids: ConvGeometry, **options: Any) -> dict[str, Branch]:
    return {}


def nothing() -> dict[str, Branch]:
    return {}


@pytest.mark.parametrize(
    ("name", "build", "refuse", "message"),
    [
        ("a b", skip, None, "a block's name must be an identifier such as 'repvgg', got 'a b'"),
        (3, skip, None, "a block's name must be an identifier .* got 3"),
        ("own", 3, None, "cannot register the block 'own': build is 3; give a function"),
        ("own", Skip, None, "build is <class .*Skip'>; give a function"),
        ("own", positional, None, r"build takes \(grid: .*; it must take \(grid, \*, option=default ...\)"),
        ("own", without_default, None, "it must take"),
        ("own", anything, None, "it must take"),
        ("own", nothing, None, r"build takes \(\) -> .*; it must take"),
        ("own", skip, "no", "refuse is 'no'; give a function"),
        ("own", skip, lambda grid: None, "build and refuse must take the same options"),
        ("repvgg", skip, None, "cannot register the block 'repvgg': the name is taken by stripefold.branches.repvgg"),
    ],
)
def test_bad_registrations_are_refused_in_one_line(name: Any, build: Any, refuse: Any, message: str) -> None:
    known = sf.branch_names()
    with pytest.raises(BranchError, match=message) as caught:
        sf.register_branch(name, build, refuse=refuse)
    assert "\n" not in str(caught.value)
    assert sf.branch_names() == known


class WrongKernel(Skip):
    def merged(self) -> Merged:
        kernel, _ = super().merged()
        return 2 * kernel, None


class Curved(Skip):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


class Loud(Skip):
    @torch.no_grad()
    def zero_init_(self) -> None:
        self.factor.fill_(1e-3)


class Narrow(Skip):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[..., 1:]


class Broken(Skip):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("gone")


class NeverMatches(ConvolutionBranch):
    @torch.no_grad()
    def init_identity_(self) -> None:
        pass


def blocks_with(make: Callable[[ConvGeometry], Any]) -> Callable[[ConvGeometry], Any]:
    def build(grid: ConvGeometry) -> Mapping[str, Any]:
        return {"main": ConvolutionBranch(grid), "own": make(grid)}

    return build


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (blocks_with(WrongKernel), r"branch 'own' computes something else than its merged kernel \(relative error"),
        (blocks_with(Curved), "branch 'own' computes something else than its merged kernel"),
        (blocks_with(Loud), "branch 'own' gives other numbers than zeros after zero_init_"),
        (blocks_with(Narrow), r"branch 'own' gives the shape \(2, 8, 5, 4\), and its merged kernel \(2, 8, 5, 5\)"),
        (blocks_with(Broken), r"it cannot be tried \(KeyError: 'gone'\)"),
        (blocks_with(lambda grid: nn.Identity()), "'own' is Identity, which is no Branch"),
        (lambda grid: {"a.b": ConvolutionBranch(grid)}, r"it cannot be tried \(KeyError: .*a\.b"),
        (lambda grid: {}, "it gives dict where a mapping of names to branches is due"),
        (lambda grid: [ConvolutionBranch(grid)], "it gives list where a mapping"),
        (lambda grid: {"input": IdentityBranch(grid)}, "its first branch 'input' is no PrimaryBranch"),
        (
            lambda grid: {"main": NeverMatches(grid)},
            "branch 'main' after init_identity_ computes something else than the conv",
        ),
    ],
)
def test_a_wrong_block_is_refused_where_it_is_used(build: Any, message: str) -> None:
    sf.register_branch("own", build)
    model = tiny()
    with pytest.raises(BranchError, match=message) as caught:
        sf.branch_(model, "own", where="blocks.0.conv1")
    assert re.match(
        r"the block 'own' is wrong for Conv2d\(8, 8.*\. Mend what register_branch\('own'\)", str(caught.value)
    )
    assert set(model.state_dict()) == set(tiny().state_dict())


@pytest.mark.parametrize("reason", [True, "", 0])
def test_a_refusal_is_a_reason_or_none(reason: Any) -> None:
    sf.register_branch("own", lambda grid: {"main": ConvolutionBranch(grid)}, refuse=lambda grid: reason)
    with pytest.raises(
        BranchError, match=r"refuse of block 'own' returned .* for Conv2d.*; it must return a reason or None"
    ):
        sf.branch(tiny(), "own")
