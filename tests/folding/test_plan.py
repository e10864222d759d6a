"""The plan: what ``fold`` would do, said without doing it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import stripefold as sf
from stripefold.errors import FoldError, TraceError
from tests.lifecycle import images, prepared, scatter_, snapshot, tiny


class Mixed(nn.Module):
    """A norm that merges, a constant that merges, a norm that stays."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.gamma, self.last = nn.Parameter(torch.rand(4, 1, 1) + 0.5), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.conv(x)) * self.gamma))


def mixed() -> nn.Module:
    torch.manual_seed(0)
    return prepared(Mixed().double(), images())


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("build", [mixed, lambda: scatter_(sf.attach(tiny(), where=["blocks.*.bn*"])), tiny])
def test_it_is_what_fold_carries_out(build: object, fuse: bool) -> None:
    model = build()  # type: ignore[operator]
    before = snapshot(model)
    plan = sf.plan(model, fuse=fuse, example=images())
    assert snapshot(model) == before
    assert type(plan) is sf.FoldPlan
    _, report = sf.fold(model, fuse=fuse, example=images(), report=True)
    assert plan == report.as_plan()
    assert isinstance(report, sf.FoldPlan)


def test_it_prints_what_would_go_where_and_what_would_stay() -> None:
    text = str(sf.plan(mixed(), fuse=True, example=images()))
    assert text.splitlines()[:4] == [
        "would fold 2, would leave 1",
        "  + gamma  scale of Mixed  folded into norm",
        "  + norm  BatchNorm2d  merged into conv",
        "  - last  BatchNorm2d  'relu' in the model itself does not pass on what is added to its operand; "
        "behind it: what is shifted is returned by the model",
    ]


def test_it_raises_as_fold_does() -> None:
    with pytest.raises(FoldError, match="plan needs an nn.Module|fold needs an nn.Module"):
        sf.plan("model")  # type: ignore[arg-type]
    with pytest.raises(FoldError, match="fuse=True needs an example input"):
        sf.plan(mixed(), fuse=True)
    with pytest.raises(TraceError, match="cannot trace Mixed"):
        sf.plan(mixed(), fuse=True, example=torch.randn(2, 5, 4, 4, dtype=torch.float64))
