"""A shift of a convolution's input goes into its bias where no padding stands in the way."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.std_conv import ScaledStdConv2d
from torch import Tensor, nn
from torchvision.models.video.resnet import Conv3DNoTemporal, Conv3DSimple
from transformers.models.align.modeling_align import AlignVisionDepthwiseConv2d
from transformers.models.perceiver.modeling_perceiver import Conv2dSamePadding

from stripefold.errors import FoldError
from stripefold.graph.absorption import Accepts
from stripefold.layers.accepts import Acceptance
from stripefold.layers.probe import probe
from stripefold.layers.substitute import forward_with
from tests.layers.layers import EXACT, absorbed, noise, randomised, relative, rule_of

Make = Callable[[], nn.Module]
TAKES: dict[str, tuple[Make, tuple[int, ...]]] = {
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3, groups=2), (9,)),
    "Conv2d without bias": (lambda: nn.Conv2d(4, 6, 3, bias=False, stride=2), (7, 8)),
    "Conv2d that repeats its border": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="replicate"), (7, 8)),
    "Conv3DSimple": (lambda: Conv3DSimple(4, 6, padding=0), (4, 5, 6)),
    "Conv3DNoTemporal": (lambda: Conv3DNoTemporal(4, 6, padding=0), (2, 5, 6)),
    "Conv2dSame": (lambda: Conv2dSame(4, 6, 1), (5, 6)),
    "Conv2dSamePadding": (lambda: Conv2dSamePadding(4, 6, 1), (5, 6)),
    "AlignVisionDepthwiseConv2d": (lambda: AlignVisionDepthwiseConv2d(4, depth_multiplier=2), (5, 6)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 6, 1, groups=2), (5,)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 6, 1), (5, 6)),
    "ConvTranspose3d without bias": (lambda: nn.ConvTranspose3d(4, 6, 1, bias=False, groups=2), (2, 3, 4)),
}
PADDED = "its zero padding would have to become the shift"
PATTERN = "its kernel lays a shift of its input down in a pattern"
REFUSES: dict[str, tuple[Make, tuple[int, ...], str]] = {
    "Conv3DSimple": (lambda: Conv3DSimple(4, 6), (4, 5, 6), PADDED),
    "Conv3DNoTemporal": (lambda: Conv3DNoTemporal(4, 6), (2, 5, 6), PADDED),
    "Conv2dSame": (lambda: Conv2dSame(4, 6, 3), (5, 6), PADDED),
    "Conv2dSame with steps": (lambda: Conv2dSame(4, 6, 3, stride=2), (5, 6), PADDED),
    "Conv2dSamePadding": (lambda: Conv2dSamePadding(4, 6, 3), (5, 6), PADDED),
    "AlignVisionDepthwiseConv2d": (lambda: AlignVisionDepthwiseConv2d(4, padding=1), (5, 6), PADDED),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 6, 2, stride=2), (5, 6), PATTERN),
    "ConvTranspose1d with gaps": (lambda: nn.ConvTranspose1d(4, 6, 1, stride=2), (5,), PATTERN),
}


def shift_error(layer: nn.Module, size: tuple[int, ...]) -> tuple[float, float]:
    """The error of the layer with the shift in its bias, and (the control) of the layer as it is."""
    layer = randomised(layer).eval()
    rule = rule_of(layer)
    t, x = noise(rule.channels_on("input", layer), seed=3), noise(2, rule.channels_on("input", layer), *size)
    expected: Tensor = copy.deepcopy(layer)(x + t.view(-1, *(1 for _ in size)))
    return relative(forward_with(layer, absorbed(layer, t, "input", "shift"), (x,), {}), expected), relative(
        layer(x), expected
    )


@pytest.mark.parametrize("name", TAKES)
def test_a_convolution_takes_a_shift_of_its_input(name: str) -> None:
    make, size = TAKES[name]
    assert isinstance(Acceptance(make())("", "input", "shift"), Accepts)
    error, control = shift_error(make(), size)
    assert error <= EXACT
    assert control > 0.1


@pytest.mark.parametrize("name", REFUSES)
def test_a_convolution_with_zeros_around_its_input_refuses(name: str) -> None:
    make, size, reason = REFUSES[name]
    assert Acceptance(make())("", "input", "shift") == reason
    assert shift_error(make(), size)[0] > 1e-3  # and it is right to: the border sees no shift


def test_a_standardised_weight_takes_none() -> None:
    layer = ScaledStdConv2d(4, 6, 3)
    assert Acceptance(layer)("", "input", "shift") == "ScaledStdConv2d takes no shift of its input"
    with pytest.raises(FoldError, match="takes no shift of its input"):
        absorbed(layer, torch.ones(4, dtype=torch.float64), "input", "shift")
    with pytest.raises(FoldError, match="cannot be probed on .*takes no shift of its input"):
        probe(layer, rule_of(layer), "input shift")


def test_a_weight_that_is_computed_takes_no_scale_of_its_input() -> None:
    """Written once, it would be computed anew: as on the output side."""
    layer = nn.Linear(4, 6)
    weight = layer.weight.detach()
    del layer.weight
    layer.weight = weight
    for side in ("output", "input"):
        assert "'weight' is not one of its own parameters" in str(Acceptance(layer)("", side))
