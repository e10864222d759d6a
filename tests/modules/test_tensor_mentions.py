"""Code that names a layer's tensors on a path that no example took: what it names stays as it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import stripefold as sf
from stripefold.modules.tensor_mentions import tensors_named


def clamp_(layer: nn.Module) -> None:
    with torch.no_grad():
        layer.weight.clamp_(-0.01, 0.01)


class Block(nn.Module):
    """conv, norm and what a subclass does to them from the second call on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        if self.count > 1:
            self.later()
        return self.norm(self.conv(x))

    def later(self) -> None: ...


class WritesWeight(Block):
    def later(self) -> None:
        clamp_(self.conv)


class WritesData(Block):
    def later(self) -> None:
        self.conv.weight.data = self.conv.weight.data * 0.01


class WritesStatistics(Block):
    def later(self) -> None:
        self.norm.running_mean.fill_(3.0)


class ByName(Block):
    def later(self) -> None:
        getattr(self.norm, "bias").data.add_(3.0)  # noqa: B009


class FromAList(Block):
    def later(self) -> None:
        layers = [self.norm, self.conv]
        layers[1].weight.data.mul_(0.01)


class ReadsWeight(Block):
    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        y = self.norm(self.conv(x))
        return y * self.conv.weight.sum() if self.count > 1 else y


class AsksForTheType(Block):
    def later(self) -> None:
        if self.conv.weight.dtype == torch.int8 or self.conv.bias is None:
            raise TypeError


class HasBuilders(Block):
    def reset(self) -> None:
        self.conv.weight.data.zero_()
        self.norm.running_mean.zero_()


TOUCHING = (WritesWeight, WritesData, WritesStatistics, ByName, FromAList, ReadsWeight)


def random_(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    return model.eval()


@pytest.mark.parametrize("kind", TOUCHING)
def test_what_code_names_on_another_path_is_not_merged(kind: type[Block]) -> None:
    model, x = random_(kind()).double(), torch.randn(2, 3, 8, 8).double()
    fused = sf.fold(model, fuse=True, example=x, check=False)
    assert isinstance(fused.norm, nn.BatchNorm2d)
    for _ in range(3):
        torch.testing.assert_close(fused(x), model(x), rtol=1e-10, atol=1e-10)
    assert model.count == 3


@pytest.mark.parametrize("kind", [Block, AsksForTheType, HasBuilders])
def test_what_code_does_not_touch_is_merged(kind: type[Block]) -> None:
    model, x = random_(kind()).double(), torch.randn(2, 3, 8, 8).double()
    fused = sf.fold(model, fuse=True, example=x)
    assert isinstance(fused.norm, nn.Identity)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-10, atol=1e-10)


def test_a_tensor_is_named_with_its_layer() -> None:
    model = WritesStatistics()
    assert set(tensors_named(model, {})) == {(model.norm, "running_mean")}
    assert not set(tensors_named(Block(), {}))
