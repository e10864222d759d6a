"""Networks of other people with every kind of block: back to their own keys, in float64 and through `fuse=True`."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import stripefold as sf
from stripefold.branches.block import BranchBlock
from tests.branches.blocks import KINDS
from tests.lifecycle import prepared, scatter_

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:the gate on .* has no effect")]
# How many convolutions of ResNet-18 each kind can stand for: 16 of 3x3, the stem of 7x7; not the three of 1x1.
COUNTS = {"acnet": 17, "dbb": 17, "dilated": 1, "doconv": 17, "large_kernel": 1, "mobileone": 17, "repvgg": 17}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=10).double()


@pytest.mark.parametrize("kind", KINDS)
def test_resnet18_folds_to_its_own_keys(kind: str) -> None:
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    stock = network("resnet18")
    model = sf.branch(stock, kind)
    blocks = [name for name, module in model.named_modules() if isinstance(module, BranchBlock)]
    assert len(blocks) == COUNTS[kind]
    inside = [] if kind == "doconv" else [f"{blocks[-1]}.branches.*bn"]
    sf.attach_(model, "se", where=["layer*.bn2", blocks[0], *inside])
    model = scatter_(prepared(model, x)).eval()
    plain, report = sf.fold(model, example=x, report=True)  # compares: 1e-10
    assert list(plain.state_dict()) == list(stock.state_dict())
    assert report.new_keys == ()
    stock.load_state_dict(plain.state_dict(), strict=True)
    assert sf.verify(model, stock, x).passed
    spread = stock.eval()(x).detach()
    assert float((spread - spread.mean(0)).abs().max()) > 1e-2 * float(spread.abs().max())


@pytest.mark.parametrize(
    ("name", "kind"),
    [("mobilenetv3_small_050", "repvgg"), ("convnext_atto", "large_kernel"), ("regnetx_002", "dbb"),
     ("efficientvit_m0", "acnet")],
)  # fmt: skip
def test_depthwise_and_grouped_networks_fold(name: str, kind: str) -> None:
    """Other shapes of network: depthwise 3x3 and 5x5 with stride, 7x7 without BatchNorm, groups."""
    model = network(name)
    side = 64 if name != "efficientvit_m0" else 224
    x = torch.randn(2, 3, side, side, dtype=torch.float64)
    found = sf.branch(model, kind)
    blocks = [module for module in found.modules() if isinstance(module, BranchBlock)]
    assert len(blocks) > 2
    prepared(found, x).eval()
    plain, report = sf.fold(found, example=x, report=True)
    assert not report.new_keys
    assert list(plain.state_dict()) == list(model.state_dict())
    assert not any(isinstance(module, BranchBlock) for module in plain.modules())
