"""``branch``: which convolutions it takes, how it starts, and what it refuses without touching the model."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stripefold as sf
from stripefold.branches.block import BranchBlock
from stripefold.branches.calibrate import _Moments
from stripefold.branches.registry import branch_kinds
from stripefold.errors import BranchError
from tests.branches.blocks import KINDS, SMALL
from tests.lifecycle import EXACT, TinyNet, assert_refused, error, images, prepared, snapshot, tiny


class Mixed(nn.Module):
    """Convolutions of every sort that may or may not become a block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 7, stride=2, padding=3)
        self.point = nn.Conv2d(4, 4, 1)
        self.bar = nn.Conv2d(4, 4, (1, 3), padding=(0, 1))
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.tied = nn.Conv2d(4, 4, 3, padding=1)
        self.other = nn.Conv2d(4, 4, 3, padding=1)
        self.other.weight = self.tied.weight
        self.own = Padded(4, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.own(self.other(self.tied(self.up(self.bar(self.point(self.stem(x))))))))


class Padded(nn.Conv2d):
    """As timm's Conv2dSame: pads by the size of what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 2, 0, 2)))


def chosen(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, BranchBlock)]


@pytest.mark.parametrize(
    ("kind", "where", "expected"),
    [
        ("repvgg", "spatial", ["stem", "bar"]),
        ("acnet", "spatial", ["stem"]),
        ("large_kernel", "spatial", ["stem"]),
        ("dilated", "spatial", ["stem"]),
        ("mobileone", ["point", "s*"], ["stem", "point"]),
        ("dbb", "b*", ["bar"]),
        ("doconv", lambda name, module: name == "bar", ["bar"]),
    ],
)
def test_where_chooses(kind: str, where: Any, expected: list[str]) -> None:
    assert chosen(sf.branch(Mixed(), kind, where=where)) == expected


@pytest.mark.parametrize(
    ("where", "match"),
    [
        ("own", r"cannot put a repvgg block on 'own': Padded \(exact type\) does more than a convolution"),
        ("up", "on 'up': ConvTranspose2d is a transposed convolution: no block has a form for it"),
        ("norm", "on 'norm': BatchNorm2d is no convolution"),
        ("tied", "on 'tied': its 'weight' is tied to 'other.weight'"),
        ("point", "on 'point': its kernel has one tap, in which a 1x1 branch adds nothing"),
        (["point", "bar"], "on 'point': its kernel has one tap"),
        ("steam", r"where='steam' matches no module. Did you mean 'stem'.*\? Give 'spatial' or a glob"),
        ("p*", r"where='p\*' selects only layers that cannot become repvgg blocks:\n  point: its kernel"),
        (lambda name, module: False, "the predicate given as where selects no convolution of this model"),
        (7, "where=7: give 'spatial', a glob, a list of globs, or a predicate"),
        ([], r"where=\[\]: give 'spatial'"),
        (nn.Linear(1, 1), r"where=Linear\(.*: give 'spatial'"),
    ],
)
def test_where_refuses_in_words(where: Any, match: str) -> None:
    model = Mixed()
    assert_refused(model, lambda: sf.branch_(model, "repvgg", where=where), BranchError, match)


@pytest.mark.parametrize(
    ("kind", "options", "match"),
    [
        ("repvg", {}, r"no branch block 'repvg'; known are acnet, .*, repvgg, .* Did you mean 'repvgg'\?"),
        (3, {}, "no branch block 3; known are acnet"),
        ("dbb", {"midle": 3}, r"block 'dbb' has no option 'midle'; its options are: middle, concatenation\. Did you"),
        ("acnet", {"copies": 3}, r"block 'acnet' has no option 'copies'; its options are: none\."),
        ("acnet", 3, "options is 3: give a mapping of names to values"),
        ("acnet", {}, r"  bar: its kernel \(1, 3\) is itself a bar: there is nothing asymmetric to add"),
        ("mobileone", {"copies": 0}, "copies is 0: give a whole number from 1 on"),
        ("mobileone", {"copies": 10**9}, "copies is 1000000000: give a whole number from 1 on, at most 256"),
        ("doconv", {"depth": 10**9}, "depth is 1000000000: give at most 256 times the 3 taps of the kernel"),
        ("mobileone", {"copies": True}, "copies is True: give a whole number"),
        ("large_kernel", {"small": 0}, "small is 0: give a whole number"),
        ("large_kernel", {"small": 3}, r"bar: its kernel \(1, 3\) is not larger than the small one of 3: give options"),
        ("dilated", {}, r"bar: no dilated kernels are published for a kernel of \(1, 3\): give options"),
        ("dilated", {"kernels": [(3, 2)]}, r"bar: a kernel of 3 with dilation 2 is larger than its own \(1, 3\)"),
        ("dilated", {"kernels": []}, r"kernels is \[\]: give a list of \(size, dilation\)"),
        ("dilated", {"kernels": [(3, 0)]}, r"kernels is \[\(3, 0\)\]: give a list"),
        ("dilated", {"kernels": [3]}, r"kernels is \[3\]: give a list"),
        ("dilated", {"kernels": [(1, 1), (1, 1)]}, r"one \(size, dilation\) stands there twice"),
        ("dbb", {"middle": 0}, "middle is 0: give a whole number from 1 on, or None"),
        ("doconv", {"depth": 2.5}, "depth is 2.5: give a whole number, or None"),
        ("doconv", {"depth": 2}, "bar: depth 2 is less than the 3 taps of its kernel"),
    ],
)
def test_kinds_and_options_are_refused_in_words(kind: Any, options: Any, match: str) -> None:
    model = Mixed()
    call = lambda: sf.branch_(model, kind, where="b*", options=options)  # noqa: E731
    assert_refused(model, call, BranchError, match)


@pytest.mark.parametrize(
    ("convolution", "kind", "options", "match"),
    [
        (nn.Conv2d(4, 4, 1), "doconv", {}, "its kernel has one tap: a depthwise factor would be one number"),
        (nn.Conv2d(4, 4, 1), "dbb", {}, "its kernel has one tap, in which the branches are all the same"),
        (nn.Conv2d(4, 4, 1), "dilated", {}, "no dilated kernels are published"),
        (nn.Conv2d(4, 4, 1), "large_kernel", {}, "is not larger than the small one"),
        (
            nn.Conv2d(4, 4, 3, groups=2),
            "dbb",
            {"middle": 3},
            "3 channels in the middle do not divide into its 2 groups",
        ),
        (nn.Conv2d(4, 4, 3, groups=2), "dbb", {"concatenation": True}, "concatenated branches need one group"),
    ],
)
def test_a_grid_is_refused_in_words(convolution: nn.Module, kind: str, options: Any, match: str) -> None:
    model = nn.Sequential(convolution)
    assert_refused(model, lambda: sf.branch_(model, kind, where="0", options=options), BranchError, match)


def test_models_are_refused_in_words() -> None:
    with pytest.raises(BranchError, match="branch needs an nn.Module, got str"):
        sf.branch("resnet18", "acnet")  # type: ignore[arg-type]
    with pytest.raises(BranchError, match="the model itself is the convolution and cannot be replaced in place"):
        sf.branch_(nn.Conv2d(1, 1, 3), "acnet")
    with pytest.raises(
        BranchError, match="the model is wrapped in OptimizedModule: put the blocks into the bare model"
    ):
        sf.branch(torch.compile(tiny()), "acnet")
    wrapped = tiny()
    wrapped.head = type("DistributedDataParallel", (nn.Module,), {})()
    with pytest.raises(BranchError, match="'head' is wrapped in DistributedDataParallel"):
        sf.branch_(wrapped, "acnet")
    uncopied = tiny()
    uncopied.kept = torch.ones(1, requires_grad=True) * 2  # only leaves can be copied
    with pytest.raises(BranchError, match=r"TinyNet cannot be copied .* use branch_, which works in place"):
        sf.branch(uncopied, "acnet")
    model = sf.branch(tiny(), "acnet", where="stem")
    with pytest.raises(BranchError, match="on 'stem': it is a block already, of kind 'acnet'"):
        sf.branch(model, "repvgg", where="stem")
    model = sf.attach(tiny(), "se", where="stem")
    with pytest.raises(BranchError, match="on 'stem': it carries a gate: put the blocks in first, then attach"):
        sf.branch(model, "repvgg", where="stem")
    assert chosen(sf.branch(model, "repvgg", where="blocks.0.*"))
    parametrized = tiny()
    nn.utils.parametrizations.weight_norm(parametrized.stem)
    with pytest.raises(BranchError, match="on 'stem': it is parametrized"):
        sf.branch_(parametrized, "repvgg", where="stem")


def test_a_copy_is_made_and_in_place_means_in_place() -> None:
    model = tiny()
    before = snapshot(model)
    other = sf.branch(model, "acnet")
    assert snapshot(model) == before
    stem = model.stem.weight
    assert sf.branch_(model, "acnet") is model
    assert model.stem.branches["main"].conv.weight is stem
    memory = {parameter.data_ptr() for parameter in model.parameters()}
    assert not memory & {parameter.data_ptr() for parameter in other.parameters()}
    assert sf.branch_names() == KINDS == tuple(row.name for row in branch_kinds())


@pytest.mark.parametrize("kind", KINDS)
def test_the_paper_start_keeps_the_convolutions_own_numbers(kind: str) -> None:
    model = tiny()
    torch.manual_seed(0)
    found = sf.branch(model, kind, options=SMALL.get(kind, {}))
    main: Any = found.stem.branches["main"]
    if kind == "doconv":
        assert torch.equal(main.pointwise.reshape(model.stem.weight.shape), model.stem.weight)
        assert torch.equal(main.bias, model.stem.bias)
        return
    assert torch.equal(main.conv.weight, model.stem.weight)
    assert torch.equal(main.bn.bias, model.stem.bias)
    for name, module in found.stem.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight)), name
    assert error(found.eval()(images()), model.eval()(images())) > 1e-3 or kind == "doconv"


@pytest.mark.parametrize("kind", KINDS)
def test_identity_keeps_the_function_and_with_data_in_training_mode_too(kind: str) -> None:
    """Inner BatchNorms on data: gain sqrt(var + eps), shift mean; then training starts from the same function."""
    x, options = images(16), SMALL.get(kind, {})
    model = tiny()
    for module in model.modules():  # so that training mode is a function of the images alone
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    before = snapshot(model)
    expected = model(x).detach()
    found = sf.branch(model, kind, init="identity", data=x, options=options)
    assert snapshot(model) == before
    assert all(module.training for module in found.stem.modules())
    assert error(found.eval()(x).detach(), expected) < EXACT
    for module in found.modules():
        if isinstance(module, BranchBlock):
            module.train()
    assert error(found(x).detach(), expected) < EXACT
    if kind == "doconv":
        return
    with pytest.warns(
        UserWarning, match="init='identity' without data=: the model computes the same as before in eval"
    ):
        blind = sf.branch(model, kind, init="identity", options=options)
    assert error(blind.eval()(x).detach(), expected) < EXACT
    assert error(blind.train()(x).detach(), expected) > 1e-3  # what the warning says
    # Every branch learns from the first step on, or from the second where its gain is 0.
    blind.train()(x).square().mean().backward()
    assert all(bool(p.grad.isfinite().all()) for p in blind.parameters())
    gains = [m.bn.weight for n, m in blind.stem.branches.items() if hasattr(m, "bn")]
    assert all(float(gain.grad.abs().max()) > 0 for gain in gains)


def test_a_pretrained_torchvision_style_bias_survives() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)).double()
    x = images()
    found = sf.branch(model, "dbb", init="identity", data=[x])
    assert error(found.eval()(x).detach(), model(x).detach()) < EXACT
    assert error(found.train()(x).detach(), model(x).detach()) < EXACT


@pytest.mark.parametrize("form", ["list", "generator", "pairs", "mapping", "one"])
def test_data_of_every_form_gives_the_same_statistics(form: str) -> None:
    x = images(12)
    forms: dict[str, Any] = {
        "list": [x[:5], x[5:6], x[6:]],
        "generator": (part for part in x.split(3)),
        "pairs": [(part, torch.zeros(len(part))) for part in x.split(4)],
        "mapping": [{"x": part.float()} for part in x.split(6)],
        "one": x,
    }
    found = sf.branch(tiny(), "acnet", init="identity", data=forms[form])
    reference = sf.branch(tiny(), "acnet", init="identity", data=[x])
    for name, buffer in found.named_buffers():
        if "branches.main" in name:  # the others are random
            assert torch.allclose(buffer, dict(reference.named_buffers())[name], rtol=1e-6), name


def test_moments_do_not_depend_on_the_batches() -> None:
    x = 1e4 + torch.randn(10, 3, 4, 4, dtype=torch.float64)
    whole, parts = _Moments(), _Moments()
    whole.add(x)
    for part in x.split(3):
        parts.add(part)
    assert whole.count == parts.count == 160
    assert torch.allclose(whole.mean, x.mean((0, 2, 3)))
    assert torch.allclose(parts.squares / 160, x.var((0, 2, 3), unbiased=False), rtol=1e-9)
    assert torch.allclose(parts.squares, whole.squares, rtol=1e-9)


class Unreached(TinyNet):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Conv2d(3, 3, 3)


@pytest.mark.parametrize(
    ("make", "data", "match"),
    [
        (TinyNet, [], "data= gave no batch"),
        (TinyNet, 3, "data= is int: give an iterable of batches, or one tensor"),
        (TinyNet, [torch.zeros(2, 7, 6, 6)], r"TinyNet does not run on batch 1 of data= \(RuntimeError"),
        (TinyNet, [torch.zeros(2, 3, 6, 6), "x"], r"TinyNet does not run on batch 2 of data="),
        (Unreached, [torch.zeros(2, 3, 6, 6)], "no batch of data= reached 'spare': leave it out with where="),
        (TinyNet, [torch.full((2, 3, 6, 6), float("nan"))], "data= gives values at 'stem' that are not finite"),
    ],
)
def test_bad_data_changes_nothing(make: Any, data: Any, match: str) -> None:
    model = make()
    call = lambda: sf.branch_(model, "repvgg", init="identity", data=data)  # noqa: E731
    assert_refused(model, call, BranchError, match)


def test_a_bad_start_is_refused() -> None:
    model = tiny()
    assert_refused(
        model,
        lambda: sf.branch_(model, "acnet", init="zero"),
        BranchError,
        "init='zero': expected 'paper' or 'identity'",
    )
    match = re.escape("data= measures the BatchNorms of init='identity'; init='paper' takes none")
    assert_refused(model, lambda: sf.branch_(model, "acnet", data=images()), BranchError, match)


def test_hooks_and_modes_go_with_the_convolution() -> None:
    model = tiny()
    seen: list[str] = []
    model.stem.register_forward_pre_hook(lambda module, args: seen.append(type(module).__name__))
    model.stem.eval()
    sf.branch_(model, "repvgg")
    model(images())
    assert seen == ["BranchBlock"]
    assert not model.stem.training
    assert not model.stem.branches["main"].bn.training
    assert model.blocks[0].conv1.branches["main"].bn.training


def test_a_compiled_module_forgets_its_code() -> None:
    model = tiny()
    model.compile(backend="eager")
    sf.branch_(model, "acnet")
    assert model._compiled_call_impl is None


def test_files_say_what_they_are(tmp_path: Any) -> None:
    model = prepared(sf.branch(tiny(), "acnet"), images(8))
    path = sf.save_model(model, tmp_path / "training.safetensors")
    with pytest.raises(
        sf.errors.CheckpointError, match="with its gates or branch blocks, but the model has none: .*branch"
    ):
        sf.load_model_(tiny(), path)
    other = sf.branch(tiny(seed=4), "acnet")
    sf.load_model_(other, path)
    assert error(other.eval()(images()), model.eval()(images())) == 0
    plain = sf.save_model(tiny(), tmp_path / "plain.safetensors")
    with pytest.raises(
        sf.errors.CheckpointError, match=r"branch blocks, whose keys no plain file has: load such a file"
    ):
        sf.load_model_(other, plain)
    folded = sf.save_model(sf.fold(model, example=images()), tmp_path / "folded.safetensors", kind="folded")
    with pytest.raises(sf.errors.CheckpointError, match="still has gates or branch blocks"):
        sf.load_model_(other, folded)
    stock = TinyNet().double()
    sf.load_model_(stock, folded)
    assert error(stock.eval()(images()), model.eval()(images())) < EXACT


class Walks(nn.Module):
    """Its forward meets every module by what it has, so also those inside a block."""

    def __init__(self, stacked: bool) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))
        self.stacked = stacked

    def forward(self, x: Tensor) -> Tensor:
        found = self.part.modules() if self.stacked else [m for _, m in self.part.named_modules()]
        for layer in found:
            if hasattr(layer, "stride") or isinstance(layer, nn.BatchNorm2d):
                x = layer(x)
        return x


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("example", [torch.ones(2, 3, 6, 6), [(torch.ones(1, 3, 4, 4),), (torch.ones(2, 3, 6, 6),)]])
def test_a_walk_that_meets_the_branches_is_refused_on_an_example(stacked: bool, example: Any) -> None:
    model = Walks(stacked)
    keys = list(model.state_dict())
    with pytest.raises(BranchError, match="another path once its convolutions are blocks|does not run"):
        sf.branch_(model, "acnet", example=example)
    assert list(model.state_dict()) == keys
