"""A baked model's structure, kept in its file: a new model made to match takes the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stripefold as sf
from stripefold.baking.modules import ConstantScale
from stripefold.baking.rebuild import KEY, rebuild_, structure
from stripefold.errors import BakeError
from tests.lifecycle import TinyNet, images, prepared


class SE(nn.Module):
    """x -> x * v(x)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc(x.mean((2, 3))))[:, :, None, None]


class Mixed(TinyNet):
    """Three gates: behind a convolution; between two nonlinearities, where nothing takes one; before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = SE(8), SE(8), SE(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks(self.first(self.stem(x)))
        return self.head(self.third(F.gelu(self.second(F.gelu(y)))).mean((2, 3)))


def mixed(seed: int = 0) -> Mixed:
    torch.manual_seed(seed)
    return prepared(Mixed().double(), images(8)).eval()


@pytest.mark.parametrize("where", [None, ["first", "second"], "third"])
def test_a_file_and_back(where: list[str] | str | None, tmp_path: Path) -> None:
    model, path = mixed(), tmp_path / "baked.safetensors"
    baked, report = sf.bake(model, images(16, seed=4), where=where)
    kept = structure(report)
    sf.save_model(baked, path, kind="baked", extra={KEY: kept})
    again = rebuild_(mixed(seed=7), kept, images())
    info = sf.load_model_(again, path)
    assert info.extra[KEY] == kept
    assert [type(m) for m in again.modules()] == [type(m) for m in baked.modules()]
    with torch.no_grad():
        assert torch.equal(again(images()), baked(images()))
        assert not torch.allclose(again(images()), mixed()(images()))


def test_the_structure() -> None:
    baked, report = sf.bake(mixed(), images(16, seed=4), where=["first", "second"])
    assert structure(report) == {"folded": ["first"], "multiply": ["second"], "dynamic": ["third"]}
    assert isinstance(baked.second, ConstantScale)
    assert report.sites[1].place == "second"


def test_other_gates_are_refused() -> None:
    kept = {"folded": ["first"], "multiply": [], "dynamic": ["second"]}
    with pytest.raises(BakeError, match="baked from a model with 2 gates, this one has 3"):
        rebuild_(mixed(), kept, images())


def test_trainable_gates_are_no_baked_file() -> None:
    _, report = sf.bake(mixed(), images(16, seed=4), to="asr")
    with pytest.raises(BakeError, match="still to be trained"):
        structure(report)


@pytest.mark.parametrize(
    ("gates", "match"),
    [
        (None, "bake is None; it must be a mapping"),
        ({"folded": [], "multiply": []}, "bake lacks dynamic"),
        ({"folded": "first", "multiply": [], "dynamic": []}, "folded of bake is 'first'; it must be a list"),
        ({"folded": [None], "multiply": [], "dynamic": []}, "entry 0 of folded of bake is None; it must be a text"),
    ],
)
def test_a_damaged_structure_is_refused(gates: object, match: str) -> None:
    with pytest.raises(BakeError, match=f"the structure of the baked model is damaged: {match}"):
        rebuild_(mixed(), gates, images())
