"""Every kind of block on every kind of convolution: the training form, the folded form, and torch's own convolution."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from torch import nn

from stripefold.branches.dbb import SequenceBranch
from stripefold.branches.geometry import ConvGeometry
from stripefold.errors import BranchError
from tests.branches.blocks import (
    EXACT,
    KINDS,
    PROPERTY,
    SMALL,
    block_for,
    convolutions,
    error,
    example_for,
    folded_,
    options_for,
    randomised,
)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")  # torch's own convolution
@pytest.mark.parametrize("kind", KINDS)
@PROPERTY
@given(convolution=convolutions())
@torch.no_grad()
def test_a_block_folds_to_the_convolution_it_stands_for(kind: str, convolution: Any) -> None:
    options = options_for(kind, convolution)
    assume(options is not None)
    torch.manual_seed(0)
    x = example_for(convolution)
    block = randomised(block_for(kind, convolution, options), x)
    output = block(x)
    kernel, bias = block.merged()
    assert kernel.dtype == torch.float64
    assert torch.equal(block.weight, kernel)
    block.check_fold("block", {})
    folded: Any = folded_(block)

    assert type(folded) is type(convolution)
    assert folded.extra_repr() == convolution.extra_repr() or convolution.bias is None
    assert folded.weight.shape == convolution.weight.shape
    assert (folded.bias is None) == (bias is None)
    assert error(folded(x), output) < EXACT
    # The output depends on the image, and on the block: neither a constant nor the convolution as it was.
    assert float((output - output.mean(0, keepdim=True)).abs().max()) > 1e-2 * float(output.abs().max())
    assert error(convolution(x), output) > 1e-2


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")  # torch's own convolution
@pytest.mark.parametrize("kind", KINDS)
@PROPERTY
@given(convolution=convolutions())
@torch.no_grad()
def test_identity_is_the_convolution_itself(kind: str, convolution: Any) -> None:
    """The geometry against torch's own: no stride, dilation, group, padding or padding mode is dropped."""
    options = options_for(kind, convolution)
    assume(options is not None)
    x = example_for(convolution)
    expected = convolution(x)
    block = block_for(kind, convolution, options, identity=True)
    assert error(block.eval()(x), expected) < EXACT
    assert error(folded_(block)(x), expected) < EXACT


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axis", ["stride", "dilation", "groups", "padding", "padding_mode"])
@torch.no_grad()
def test_an_option_that_is_dropped_is_seen(kind: str, axis: str) -> None:
    """The control of the above: each option changes what the block computes (others' blocks drop some of them)."""
    options: dict[str, Any] = {"stride": 1, "dilation": 1, "groups": 1, "padding": 2, "padding_mode": "zeros"}
    changed = {"stride": 2, "dilation": 2, "groups": 2, "padding": 1, "padding_mode": "circular"}
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    outputs = []
    for each in (options, {**options, axis: changed[axis]}):
        torch.manual_seed(0)
        convolution = nn.Conv2d(4, 4, 3, dtype=torch.float64, **each)
        block = randomised(block_for(kind, convolution, SMALL.get(kind, {})), x)
        assert block(x).shape == convolution(x).shape
        assert error(folded_(block)(x), outputs[-1] if outputs else block(x)) > 1e-3 if outputs else True
        outputs.append(convolution(x))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_every_branch_counts(kind: str) -> None:
    """Without any one branch the block computes something else, so that none can be lost in folding."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 4, 3, padding=1, dtype=torch.float64)
    x = example_for(convolution)
    block = randomised(block_for(kind, convolution, SMALL.get(kind, {})), x)
    expected = block(x)
    for name in list(block.branches) if len(block.branches) > 1 else []:
        smaller = copy.deepcopy(block)
        del smaller.branches[name]
        assert error(smaller(x), expected) > 1e-2, name
    names = {
        "acnet": ["main", "vertical", "horizontal"], "dbb": ["main", "average", "point", "sequence"],
        "dilated": ["main", "size1_dilation1", "size2_dilation2"], "doconv": ["main"],
        "large_kernel": ["main", "small"], "repvgg": ["main", "point", "identity"],
        "mobileone": ["main", "copy1", "copy2", "copy3", "point", "identity"],
    }  # fmt: skip
    assert list(block.branches) == names[kind]


@torch.no_grad()
def test_the_border_of_the_sequence_is_what_its_norm_makes_of_zeros() -> None:
    """Padding the map between by zeros, as a plain Sequential does, is another function at the border."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 6, 3, padding=1, dtype=torch.float64)
    x = example_for(convolution)
    block = randomised(block_for("dbb", convolution, {}), x)
    sequence: Any = block.branches["sequence"]
    right = sequence(x)
    between = sequence.inner_bn(sequence.pointwise(x))
    naive = sequence.bn(F.conv2d(between, sequence.conv.weight, padding=1))
    assert torch.allclose(right[..., 1:-1, 1:-1], naive[..., 1:-1, 1:-1])
    assert error(naive, right) > 1e-2


@pytest.mark.parametrize("convolution", [nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=4)])
@torch.no_grad()
def test_dbb_is_the_papers(convolution: nn.Conv2d) -> None:
    """Which branches there are, and the width between: C_in, or twice that for a depthwise convolution."""
    block = block_for("dbb", convolution, {})
    sequence: Any = block.branches["sequence"]
    depthwise = convolution.groups > 1
    assert ("point" in block.branches) == (not depthwise)
    assert isinstance(block.branches["average"], SequenceBranch) == (not depthwise)
    assert sequence.conv.in_channels == (8 if depthwise else 4)
    if not depthwise:  # it starts as the identity
        x = torch.randn(2, 4, 5, 5)
        assert torch.equal(sequence.pointwise(x), x)


@pytest.mark.parametrize(
    ("options", "width"), [({"middle": 3}, 3), ({"middle": 4}, 4), ({"concatenation": True}, 4)]
)  # fmt: skip
@torch.no_grad()
def test_options_of_dbb_fold(options: dict[str, Any], width: int) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 5, 3, stride=2, padding=1, dtype=torch.float64)
    x = example_for(convolution)
    block = randomised(block_for("dbb", convolution, options), x)
    assert block.branches["sequence"].conv.in_channels == width
    assert ("concatenation" in block.branches) == ("concatenation" in options)
    expected = block(x)
    assert error(folded_(block)(x), expected) < EXACT


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")  # torch's own convolution
@pytest.mark.parametrize(("size", "count"), [(5, 3), (6, 3), (7, 4), (9, 5), (11, 6), (13, 6), (15, 6), (17, 6)])
@torch.no_grad()
def test_dilated_kernels_of_the_paper_fold(size: int, count: int) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 3, size, padding="same", groups=3, dtype=torch.float64)
    x = example_for(convolution, batch=2)
    block = randomised(block_for("dilated", convolution, {}), x)
    assert len(block.branches) == count
    expected = block(x)
    assert error(folded_(block)(x), expected) < EXACT


@pytest.mark.parametrize("depth", [9, 14])
def test_doconv_trains_both_factors(depth: int) -> None:
    convolution = nn.Conv2d(4, 6, 3, groups=2, dtype=torch.float64)
    x = example_for(convolution)
    block = block_for("doconv", convolution, {"depth": depth})
    assert error(block(x).detach(), convolution(x).detach()) < EXACT
    block(x).square().mean().backward()
    assert {name: tuple(p.shape) for name, p in block.named_parameters()} == {
        "branches.main.depthwise": (2, 2, 9, depth),
        "branches.main.pointwise": (2, 3, 2, depth),
        "branches.main.bias": (6,),
    }
    assert all(bool(parameter.grad.abs().max() > 0) for parameter in block.parameters())


def test_grids_read_the_padding_as_torch_does() -> None:
    for convolution in (
        nn.Conv2d(1, 1, (4, 3), padding="same", dilation=(1, 2)),
        nn.Conv1d(1, 1, 4, padding="valid"),
        nn.Conv2d(1, 1, 3, padding=(2, 0)),
    ):
        grid, amounts = ConvGeometry.of(convolution), list(convolution._reversed_padding_repeated_twice)
        if isinstance(convolution.padding, str):
            own = [amount for pair in reversed(list(zip(grid.before, grid.after, strict=True))) for amount in pair]
            assert own == amounts
        else:
            assert grid.before == grid.after == convolution.padding
    with pytest.raises(ValueError, match=r"a kernel of \(4, 4\) taps in steps of 1 is larger than one of \(3, 3\)"):
        ConvGeometry.of(nn.Conv2d(1, 1, 3)).centred(4)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "acnet"])  # which is for maps of two axes
def test_a_map_without_a_batch_axis_is_refused(kind: str) -> None:
    """With as many positions as channels a BatchNorm1d would take the one for the other, in silence."""
    convolution = nn.Conv1d(8, 8, 3, padding=1)
    block = block_for(kind, convolution, options_for(kind, convolution) or {})
    assert block(torch.randn(1, 8, 8)).shape == (1, 8, 8)
    with pytest.raises(BranchError, match=rf"the {kind} block takes maps with a batch axis, 3 axes.*\(8, 8\).*x\[None"):
        block(torch.randn(8, 8))
