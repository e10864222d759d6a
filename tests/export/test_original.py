"""A written file is compared with the model that was given, on every input that was given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stripefold as sf
from stripefold.errors import ExportError, StripefoldError, VerifyError
from stripefold.export import export_model
from tests.lifecycle import attached, error, images

FLOAT32 = torch.float32


@pytest.mark.parametrize("name", ["net.pt2", "net.onnx"])
def test_the_reference_is_what_was_given(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fold that goes wrong, and that nobody else has checked, is seen at the file."""
    namespace, model = export_model.__globals__, attached(dtype=FLOAT32)
    right = namespace["fold"]

    def wrong(*args: Any, **options: Any) -> Any:
        plain, report = right(*args, **options)
        with torch.no_grad():
            plain.head.bias.add_(0.01)
        return plain, report

    monkeypatch.setitem(namespace, "fold", wrong)
    with pytest.raises(VerifyError, match="computes something else than the model: on noise, batch 1"):
        export_model(model, tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert export_model(model, tmp_path / name).outcome.checked


def test_every_input_is_compared_at_its_batch_and_at_one(tmp_path: Path) -> None:
    several = [images(3, FLOAT32), images(2, FLOAT32, seed=5)]
    report = export_model(attached(dtype=FLOAT32), tmp_path / "net.pt2", example=several, inputs=several[::-1])
    assert [check.inputs for check in report.outcome.examples] == [
        "example 1, batch 1", "example 1, batch 3", "example 2, batch 1", "example 2, batch 2",
    ]  # fmt: skip
    assert [check.inputs for check in report.outcome.checks[2:]] == [
        "given input 1, batch 1", "given input 1, batch 2", "given input 2, batch 1", "given input 2, batch 3",
    ]  # fmt: skip
    assert all(check.error <= check.tolerance for check in (*report.outcome.checks, *report.outcome.examples))
    assert "checked on example 2, batch 1" in str(report)


class Numbered(nn.Module):
    """Another head where an input says so: what a captured program does not do."""

    def __init__(self, asks: str) -> None:
        super().__init__()
        self.body, self.heads = nn.Conv2d(3, 8, 3), nn.ModuleList([nn.Linear(8, 4), nn.Linear(8, 4)])
        self.asks = asks

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x).mean((2, 3))
        other = x.shape[0] == 1 if self.asks == "batch" else x.shape[-1] > 8
        return self.heads[int(other)](y)


def test_a_batch_of_one_that_goes_another_way(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Numbered("batch").eval()
    with pytest.raises((ExportError, VerifyError), match=r"torch.export cannot capture|on (noise|example), batch 1"):
        export_model(model, tmp_path / "net.pt2", example=torch.randn(4, 3, 8, 8))
    assert list(tmp_path.iterdir()) == []
    report = export_model(model, tmp_path / "net.pt2", example=torch.randn(4, 3, 8, 8), dynamic_batch=False)
    assert [check.inputs for check in report.outcome.examples] == ["example, batch 4"]


def test_an_example_that_the_program_cannot_take(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Numbered("size").eval()
    with pytest.raises(VerifyError, match="the file does not take example 2, batch 1, which the model does"):
        export_model(model, tmp_path / "net.pt2", example=[torch.randn(2, 3, 8, 8), torch.randn(2, 3, 9, 9)])
    assert list(tmp_path.iterdir()) == []


class Signed(nn.Module):
    """Scales what is negative by another number than what is positive, if anything is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.extra = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).mean((2, 3))


def test_modes_are_those_in_which_the_model_is_used(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Signed().eval()
    model.norm.running_mean.normal_()
    model.norm.train()
    x = torch.randn(4, 3, 8, 8)
    try:
        export_model(model, tmp_path / "net.pt2", example=x, dynamic_batch=False)
    except StripefoldError:
        assert list(tmp_path.iterdir()) == []
    else:
        program = torch.export.load(tmp_path / "net.pt2").module()
        assert error(program(x), model(x)) < 1e-5
    assert model.norm.training
    model.eval()
    export_model(model, tmp_path / "eval.pt2", example=x)
    assert error(torch.export.load(tmp_path / "eval.pt2").module()(x), model(x)) < 1e-5


def test_a_wrapped_model_is_compared_without_its_wrapper(tmp_path: Path) -> None:
    model = attached(dtype=FLOAT32).eval()
    report = export_model(nn.DataParallel(model), tmp_path / "net.pt2", example=images(2, FLOAT32))
    assert report.outcome.checked
    assert error(torch.export.load(tmp_path / "net.pt2").module()(images(3, FLOAT32)), model(images(3, FLOAT32))) < 1e-5
    assert error(sf.detach(model)(images()[:1].float()), model(images()[:1].float())) > 1e-3  # the control
