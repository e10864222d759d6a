"""Blocks in a network: folded with the gates inside and on them, to stock keys, rounded once."""

from __future__ import annotations

import copy
import re
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stripefold as sf
from stripefold.asr.site import Site
from stripefold.branches.block import BranchBlock
from stripefold.errors import AttachError, FoldError, TraceError
from stripefold.layers.rule import rule_for
from tests.branches.blocks import KINDS, SMALL
from tests.lifecycle import EXACT, TinyNet, assert_refused, error, images, prepared, scatter_, snapshot, step_, tiny

ON_BLOCKS = ["blocks.*.conv2", "blocks.*.bn1"]
INSIDE = ["stem.branches.*bn", "blocks.0.conv*.branches.*.bn"]


pytestmark = pytest.mark.filterwarnings("ignore:the gate on .* has no effect")  # in training; in eval mode it has


def with_blocks(kind: str = "acnet", model: nn.Module | None = None, **options: Any) -> nn.Module:
    """A prepared network with blocks everywhere, in training mode."""
    x = images(8)
    model = sf.branch(tiny() if model is None else model, kind, options=SMALL.get(kind, {}), **options)
    return prepared(model, x).train()


def gated(kind: str = "dbb") -> nn.Module:
    """Gates inside some blocks, on others, and on the norms behind them; all away from their start."""
    model = with_blocks(kind)
    sf.attach_(model, "se", where=[*ON_BLOCKS, *([] if kind == "doconv" else INSIDE)])
    return scatter_(prepared(model, images(8))).train()


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_and_gates_fold_to_stock_keys(kind: str) -> None:
    model, x = gated(kind), images(4, seed=5)
    before = snapshot(model)
    plain, report = sf.fold(model, example=x, report=True)
    assert snapshot(model) == before
    assert sf.verify(model, plain, x).passed
    assert list(plain.state_dict()) == list(tiny().state_dict())
    assert [type(m) for m in plain.modules()] == [type(m) for m in tiny().modules()]
    assert sum(note.kind == kind for note in report.notes) == 5
    assert report.new_keys == ()
    # The controls: without the gates, and without the branches, it is another network.
    with pytest.raises(sf.errors.VerifyError, match="NOT equivalent"):
        sf.verify(model, sf.detach(model), x)
    with pytest.raises(sf.errors.VerifyError, match="NOT equivalent"):
        sf.verify(model, tiny(), x)
    again = sf.fold(plain, example=x)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), plain.state_dict().values(), strict=True))


def test_gates_inside_on_top_and_behind_are_one_product() -> None:
    """DBB with ASR inside, ASR on top, and ASR on the norm behind: one ``fold`` call, each named."""
    model = gated("dbb")
    report = sf.fold(model, example=images(), report=True)[1]
    rows = {note.name: note for note in report.notes}
    assert rows["blocks.0.conv1"].why == "4 branches into Conv2d; its bias into the running mean of blocks.0.bn1"
    assert rows["blocks.0.conv1.branches.sequence.bn"].why == "into BatchNorm2d"
    assert rows["blocks.0.conv2.base"].kind == "dbb"
    assert rows["blocks.0.conv2"].why.startswith("into ")
    assert rows["blocks.0.bn1"].kind == "se"
    assert isinstance(model.get_submodule("blocks.0.conv2"), Site)


def test_a_gate_on_the_inner_norm_of_a_sequence_scales_the_border_too() -> None:
    model = with_blocks("dbb")
    sf.attach_(model, "se", where="blocks.*.branches.sequence.inner_bn")
    model = scatter_(prepared(model, images(8))).train()
    assert sf.verify(model, sf.fold(model, example=images()), images()).passed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_the_float64_fold_rounded_once(dtype: torch.dtype) -> None:
    model = gated("dbb").to(dtype)
    x = images(4, dtype)
    plain = sf.fold(model, example=x, check=dtype == torch.float32)
    exact = sf.fold(copy.deepcopy(model).double(), example=x.double(), check=False)
    for (key, found), truth in zip(plain.state_dict().items(), exact.state_dict().values(), strict=True):
        assert found.dtype == (dtype if found.is_floating_point() else torch.int64), key
        assert torch.equal(found, truth.to(found.dtype)), key


class Following(nn.Module):
    """A convolution without a bias, and what follows it."""

    def __init__(self, behind: str) -> None:
        super().__init__()
        self.behind = behind
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        if behind not in ("group", "nothing"):
            self.bn = nn.BatchNorm2d(4)
        if behind == "group":
            self.gn = nn.GroupNorm(2, 4)
        if behind in ("twice", "choice"):
            self.other = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.behind == "relu":
            return self.bn(F.relu(y))
        if self.behind == "group":
            return self.gn(y)
        if self.behind == "twice":
            return self.bn(y) + self.other(y)
        if self.behind == "again":
            return self.bn(self.conv(x)) + self.bn(y)
        if self.behind == "choice":
            return self.bn(y) if x.sum() > 0 else self.other(y)
        return self.bn(y) if self.behind == "norm" else y


class Reading(Following):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) + self.bn.running_mean.sum()


def following(behind: str) -> Any:
    torch.manual_seed(0)
    kind = Reading if behind == "read" else Following
    return prepared(sf.branch(kind(behind).double(), "repvgg"), images(8))


@pytest.mark.parametrize(
    ("behind", "why"),
    [
        ("relu", r"\('relu' in the model itself does not pass on what is added to its operand\)"),
        ("group", r"\('gn': GroupNorm takes no shift of its input\)"),
        ("again", r"\('conv' is called 2 times\)"),
        ("nothing", r"\(what is shifted is returned by the model\)"),
        ("read", r"\(a tensor of 'bn' is read outside its call\)"),
    ],
)
def test_a_bias_without_a_batchnorm_is_announced(behind: str, why: str) -> None:
    model, x = following(behind), images()
    with pytest.warns(UserWarning, match=r"1 folded layers have a bias .* could take it: conv\.bias\."):
        plain, report = sf.fold(model, example=x, report=True)
    assert report.new_keys == ("conv.bias",)
    (row,) = report.notes
    assert re.search(rf"^2 branches into Conv2d; new key 'conv\.bias': .*{why}$", row.why)
    assert sf.verify(model, plain, x).passed
    assert set(plain.state_dict()) - set(Following(behind).state_dict()) == {"conv.bias"}


def test_a_bias_goes_into_the_running_mean() -> None:
    model, x = following("norm"), images()
    plain: Any = sf.fold(model, example=x)
    assert plain.conv.bias is None
    moved = plain.bn.running_mean - model.bn.running_mean
    assert torch.allclose(moved, -model.conv.bias, rtol=1e-12)
    assert float(moved.abs().max()) > 1e-2
    # In training mode the BatchNorm takes any shift away.
    plain.bn.running_mean.zero_()
    assert error(plain.train()(x), sf.fold(model, example=x).train()(x)) < EXACT


def test_a_bias_goes_into_every_norm_behind() -> None:
    model, x = following("twice"), images()
    plain, report = sf.fold(model, example=x, report=True)
    assert report.notes[0].why.endswith("its bias into the running mean of bn, the running mean of other")
    assert plain.conv.bias is None
    assert error(plain.eval()(x), model.eval()(x)) < EXACT


def test_a_bias_goes_into_the_bias_of_a_layer_behind() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.AvgPool2d(2), nn.Conv2d(4, 2, 1)).double()
    branched, x = prepared(sf.branch(model, "repvgg", where=["0"]), images(8)), images()
    plain, report = sf.fold(branched, example=x, report=True)
    assert report.notes[0].why.endswith("its bias into the bias of 2")
    assert sorted(plain.state_dict()) == sorted(model.state_dict())
    assert error(plain.train()(x), branched.eval()(x)) < EXACT


def test_a_bias_in_the_norm_of_one_of_two_paths_is_announced() -> None:
    model, x = following("choice"), images().abs()
    with (
        pytest.warns(UserWarning, match="'other' did not run on the example"),
        pytest.warns(UserWarning, match="have a bias"),
    ):
        plain = sf.fold(model, example=x)
    for each in (x, -x):
        assert error(plain.eval()(each), model.eval()(each)) < EXACT
    with pytest.warns(UserWarning, match=r"have a bias .* could take it: conv\.bias"):
        plain, report = sf.fold(model, example=[x, -x], report=True)
    assert "'bn' would take it on one example and 'other' on another" in report.notes[0].why


def test_without_an_example_the_bias_is_announced() -> None:
    model = following("norm")
    with pytest.warns(UserWarning, match=r"have a bias .*conv\.bias"):
        plain, report = sf.fold(model, check=False, report=True)
    assert "without an example= no trace shows which BatchNorm follows" in report.notes[0].why
    assert sf.verify(model, plain, images()).passed
    with pytest.raises(TraceError, match="cannot trace Following"):
        sf.fold(model, check=False, example=torch.zeros(1, 5, 6, 6))


def test_an_inferred_example_that_fails_is_no_example() -> None:
    model: Any = following("norm")
    model.input_size = (7, 6, 6)
    with pytest.warns(UserWarning, match="have a bias"):
        plain = sf.fold(model, check=False)
    assert plain.conv.bias is not None


def test_a_batchnorm_that_cannot_take_a_bias() -> None:
    x = images()
    for change in ("tied", "patched", "untracked", "hooked"):
        model = following("norm")
        if change == "tied":
            model.spare = nn.BatchNorm2d(4).double()
            model.spare.running_mean = model.bn.running_mean
        if change == "patched":
            model.bn.forward = type(model.bn).forward.__get__(model.bn)
        if change == "untracked":
            model.bn.running_mean = model.bn.running_var = None
        if change == "hooked":
            model.bn.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
        with pytest.warns(UserWarning, match="have a bias"):
            plain = sf.fold(model, example=x, check=False)
        assert error(plain.eval()(x), model.eval()(x)) < EXACT


def test_fusing_merges_what_folding_left() -> None:
    """With ``fuse=True`` keys change anyway: nothing is announced, and no BatchNorm is left."""
    model, x = gated("repvgg"), images()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = sf.fold(model, fuse=True, example=x)
    assert sf.verify(model, plain, x).passed
    assert not any(isinstance(module, nn.BatchNorm2d) for module in plain.modules())


def test_dynamic_attention_on_a_block_stays_and_keeps_the_bias_with_it() -> None:
    model, x = with_blocks("repvgg"), images()
    sf.attach_(model, "se", where="blocks.0.conv1", form="dynamic")
    sf.attach_(model, "se", where=["blocks.0.conv1", "blocks.1.bn1"])
    sf.attach_(model, "se", where="blocks.1.bn1", form="dynamic")
    model = scatter_(prepared(model, images(8))).train()
    with pytest.warns(UserWarning, match=r"have a bias .*blocks\.0\.conv1\.base\.bias"):
        plain, report = sf.fold(model, example=x, report=True)
    row = next(note for note in report.notes if note.name == "blocks.0.conv1.base")
    assert row.why.endswith("the dynamic attention on 'blocks.0.conv1' stands behind it")
    assert next(n for n in report.notes if n.name == "blocks.1.conv1").why.endswith("running mean of blocks.1.bn1.base")
    assert sf.verify(model, plain, x).passed
    assert not any(isinstance(module, BranchBlock) for module in plain.modules())


def test_dynamic_attention_inside_a_block_is_refused() -> None:
    model = with_blocks("repvgg")
    call = lambda: sf.attach_(model, "se", where="stem.branches.*.bn", form="dynamic")  # noqa: E731
    assert_refused(model, call, AttachError, "dynamic attention inside the branch block 'stem' would keep its branches")
    site = Site(model.stem.branches["main"].bn, rule_for(model.stem.branches["main"].bn))
    inner: Any = sf.attach(nn.Sequential(nn.BatchNorm2d(8)).double(), "se", where="0", form="dynamic")[0]
    assert type(inner) is type(site)
    model.stem.branches["main"].bn = inner
    match = r"cannot fold the repvgg block on 'stem': dynamic se on 'stem.branches.main.bn' inside it depends on the"
    assert_refused(model, lambda: sf.fold_(model, check=False), FoldError, match)


def overflowing(model: Any) -> None:
    model.half().stem.branches["main"].bn.weight.data.fill_(6e4)
    model.stem.branches["main"].conv.weight.data.fill_(6e4)


def diverged(model: Any) -> None:
    model.stem.branches["main"].bn.bias.data[1] = float("nan")


def replaced(model: Any) -> None:
    model.stem.branches["main"].bn = nn.GroupNorm(2, 8).double()


def untracked(model: Any) -> None:
    model.stem.branches["main"].bn = nn.BatchNorm2d(8, track_running_stats=False).double()


def reshaped(model: Any) -> None:
    model.stem.branches["main"].conv = nn.Conv2d(3, 8, 5, padding=2).double()


def widened(model: Any) -> None:
    for branch in model.stem.branches.values():
        branch.conv.weight.data = torch.zeros(8, 4, *branch.conv.kernel_size, dtype=torch.float64)


def parametrized(model: Any) -> None:
    nn.utils.parametrizations.weight_norm(model.stem.branches["main"].conv)


def no_branch(model: Any) -> None:
    model.stem.branches["point"] = nn.Conv2d(3, 8, 1)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (overflowing, r"its kernel overflows torch.float16\. Fold in a wider dtype: model.float\(\)"),
        (diverged, "its kernel is not finite. Training diverged"),
        (replaced, "GroupNorm stands where a BatchNorm was, and does not merge"),
        (untracked, "a BatchNorm in it keeps no running statistics"),
        (reshaped, "its branches do not fit together any more .* Undo what was changed"),
        (widened, r"its branches give a kernel of shape \(8, 4, 3, 3\), not \(8, 3, 3, 3\)"),
        (parametrized, "'stem.branches.main.conv': it is parametrized .*remove_parametrizations"),
        (no_branch, "Conv2d in it is no branch"),
    ],
)
def test_what_cannot_fold_is_refused_in_words(damage: Any, match: str) -> None:
    model = with_blocks("repvgg")
    damage(model)
    match = f"cannot fold the repvgg block on 'stem': {match}"
    assert_refused(model, lambda: sf.fold_(model, check=False), FoldError, match)


def test_a_model_without_numbers_is_refused() -> None:
    with torch.device("meta"):
        model = sf.branch(TinyNet(), "repvgg")
    with pytest.raises(FoldError, match="'stem': it is on the meta device and has no numbers"):
        sf.fold_(model, check=False)


def test_the_layer_itself_comes_back() -> None:
    """Its class, attributes, flags, hooks, memory format: as before."""
    model = tiny()
    model.stem.note = {"kept": 1}
    model.stem.weight.requires_grad_(False)
    model.blocks[0].conv1.weight.requires_grad_(False)
    model.to(memory_format=torch.channels_last)
    calls: list[str] = []
    handle = model.stem.register_forward_hook(lambda module, args, output: calls.append(type(module).__name__))
    sf.branch_(model, "dbb")
    assert model.stem.in_channels == 3
    assert model.stem.padding == (1, 1)
    block = model.stem
    prepared(model, images(8)).eval()
    model.blocks[0].conv2.train()
    calls.clear()
    plain = sf.fold_(model, example=images(), check=False)
    stem = plain.stem
    assert type(stem) is nn.Conv2d
    assert stem.note == {"kept": 1}
    assert (stem.weight.requires_grad, stem.bias.requires_grad) == (False, True)
    assert not plain.blocks[0].conv1.weight.requires_grad
    assert plain.blocks[0].conv2.weight.requires_grad
    assert (stem.training, plain.blocks[0].conv2.training) == (False, True)
    assert stem.weight.is_contiguous(memory_format=torch.channels_last)
    assert set(vars(stem)) == set(vars(nn.Conv2d(3, 8, 3, padding=1))) | {"note"}
    calls.clear()
    plain(images())
    assert calls == ["Conv2d"]
    handle.remove()
    plain(images())
    assert calls == ["Conv2d"]
    assert not block._forward_hooks


def test_a_root_that_is_a_convolution_folds() -> None:
    x = images()
    block = prepared(sf.branch(nn.Conv2d(3, 4, 3, padding=1).double(), "acnet"), images(8))
    plain = sf.fold(block, example=x)
    assert type(plain) is nn.Conv2d
    assert sf.verify(block, plain, x).passed
    with pytest.warns(UserWarning, match="a bias that the stock ones do not have"):
        sf.fold(
            prepared(sf.branch(nn.Conv2d(3, 4, 3, bias=False), "acnet"), images(8, torch.float32)), example=x.float()
        )


def test_a_block_used_in_two_places_folds_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 3, 3, padding=1)
            self.again = self.first

        def forward(self, x: Tensor) -> Tensor:
            return self.again(F.relu(self.first(x)))

    model = prepared(sf.branch(Twice().double(), "repvgg"), images(8))
    assert model.first is model.again
    plain = sf.fold(model, example=images())
    assert plain.first is plain.again
    assert sf.verify(model, plain, images()).passed


def test_reading_weight_and_bias_gives_the_folded_ones_and_writing_is_refused() -> None:
    model = with_blocks("repvgg").eval()
    x = images()
    plain = sf.fold(model, example=x)
    assert torch.allclose(model.stem.weight, plain.stem.weight)
    assert torch.allclose(model.stem.bias, plain.stem.bias)
    assert error(F.conv2d(x, model.stem.weight, model.stem.bias, padding=1), model.stem(x)) < EXACT
    with pytest.raises(AttachError, match="that tensor is computed"):
        nn.init.zeros_(model.stem.weight)
    model.stem.weight.square().sum().backward()  # RepVGG's own weight decay is on the equivalent kernel
    assert all(branch.conv.weight.grad is not None for name, branch in model.stem.branches.items())


def test_attach_sees_a_block_as_the_layer_it_will_be() -> None:
    model = with_blocks("acnet")
    table = sf.sites(model, where=["stem", "blocks.0.conv1"])
    assert [(row.layer, row.channels) for row in table] == [("BranchBlock", 8)] * 2
    assert sf.sites(model).names == ["blocks.0.bn2", "blocks.1.bn2"]  # the trace sees a block as one layer
    with pytest.warns(UserWarning, match=r"'blocks\.0\.bn1' right behind it normalises its scale away"):
        sf.attach(model, "se", where="blocks.0.conv1")
    assert type(sf.detach(sf.attach(model, "se", where="stem")).stem) is BranchBlock
    model = step_(model, images(8))
    assert sf.verify(model, sf.fold(model, example=images()), images()).passed


BEHIND: dict[str, Any] = {
    "1d": lambda: (nn.Conv1d(8, 8, 3, padding=1, bias=False), nn.BatchNorm1d(8), (3, 8, 9)),
    "1d strided": lambda: (nn.Conv1d(4, 8, 5, stride=2, bias=False), nn.BatchNorm1d(8), (3, 4, 19)),
    "1d depthwise": lambda: (nn.Conv1d(8, 8, 3, groups=8, dilation=2, bias=False), nn.BatchNorm1d(8), (3, 8, 9)),
    "1d as many samples as channels": lambda: (nn.Conv1d(8, 8, 3, bias=False), nn.SyncBatchNorm(8), (8, 8, 8)),
    "2d": lambda: (nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), (3, 8, 5, 5)),
    "3d": lambda: (nn.Conv3d(8, 8, 3, padding=1, bias=False), nn.BatchNorm3d(8), (3, 8, 3, 3, 3)),
}


@pytest.mark.parametrize("kind", ["dbb", "repvgg", "acnet"])
@pytest.mark.parametrize("case", BEHIND)
def test_stock_keys_in_every_dimension(case: str, kind: str) -> None:
    convolution, norm, shape = BEHIND[case]()
    if kind == "acnet" and convolution.weight.dim() != 4:
        pytest.skip("acnet is for two axes")
    torch.manual_seed(0)
    net = nn.Sequential(convolution, norm).double()
    x = torch.randn(shape, dtype=torch.float64)
    model = sf.branch(net, kind, where="0")
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.running_mean, module.weight.data, module.bias.data):
                tensor.normal_()
    model.eval()
    plain = sf.fold(model, example=x)
    assert list(plain.state_dict()) == list(net.state_dict())
    assert error(plain(x), model(x)) < EXACT
