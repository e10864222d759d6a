"""Paths that an example does not take: named, left alone, and merged where a list of examples takes them all."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stripefold as sf
from tests.lifecycle import EXACT, error, prepared

Forward = Callable[..., Any]


def images(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(n), dtype=torch.float64)


class Net(nn.Module):
    """A convolution, two norms, and a forward of the test's own that chooses between them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])


class ByArgument(Net):
    def forward(self, x: Tensor, domain: int = 0) -> Tensor:
        return self.norms[domain](self.conv(x)).relu().mean((2, 3))


class ByAttribute(Net):
    domain = 0

    def forward(self, x: Tensor, domain: int | None = None) -> Tensor:
        self.domain = self.domain if domain is None else domain
        return self.norms[self.domain](self.conv(x)).relu().mean((2, 3))


class ByBatch(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return (self.norms[0](y) if len(x) > 1 else self.norms[1](y)).relu().mean((2, 3))


class ByValue(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return (self.norms[0](y) if float(x.mean()) > 0 else self.norms[1](y)).relu().mean((2, 3))


class ByKey(Net):
    """The layer is shared with a branch that the example does not enter."""

    def __init__(self) -> None:
        super().__init__()
        self.ways = nn.ModuleDict({"a": nn.Sequential(self.conv, self.norms[0]), "b": nn.Sequential(self.conv)})
        self.ways["b"].append(nn.Conv2d(4, 4, 1))

    def forward(self, x: Tensor, way: str = "a") -> Tensor:
        return self.ways[way](x).relu().mean((2, 3))


WAYS: dict[str, tuple[type[Net], list[Any]]] = {
    "argument": (ByArgument, [images(), (images(), 1)]),
    "attribute": (ByAttribute, [(images(), 0), (images(), 1)]),
    "batch size": (ByBatch, [images(2), images(1)]),
    "value": (ByValue, [images().abs(), -images().abs()]),
    "key": (ByKey, [images(), (images(), "b")]),
}


def run(model: nn.Module, inputs: Any) -> Tensor:
    with torch.no_grad():
        return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_one_example_leaves_what_another_path_shares(way: str, check: bool) -> None:
    torch.manual_seed(0)
    kind, inputs = WAYS[way]
    model = prepared(kind().double(), images()).eval()
    with pytest.warns(UserWarning, match="did not run on the example: what such a layer may meet was left as it is"):
        plain, report = sf.fold(model, fuse=True, example=inputs[0], check=check, report=True)
    assert report.unseen
    assert "did not run on the example" in str(report)
    for each in inputs:
        assert error(run(plain, each), run(model, each)) <= 1e-10
    assert error(run(model, inputs[0]), run(model, inputs[1])) > 1e-2  # the control: the paths differ


@pytest.mark.parametrize("way", WAYS)
def test_all_examples_together_are_exact_on_all(way: str) -> None:
    torch.manual_seed(0)
    kind, inputs = WAYS[way]
    model = prepared(kind().double(), images()).eval()
    plain, report = sf.fold(model, fuse=True, example=inputs, report=True)
    for each in inputs:
        assert error(run(plain, each), run(model, each)) <= 1e-10
    why = {note.name: note.why for note in report.notes}
    assert "on one example and" in why["norms.0"] or "called" in why["norms.0"] or "runs without" in why["norms.0"]


class Both(Net):
    def __init__(self) -> None:
        super().__init__()
        self.last, self.final = nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5)

    def forward(self, x: Tensor, domain: int = 0, features: bool = False) -> Any:
        y = self.norms[domain](self.conv(x)).relu()
        return y if features else self.final(self.last(y)).mean((2, 3))


def test_what_is_behind_the_fork_is_merged_once_all_ways_were_shown() -> None:
    torch.manual_seed(0)
    model = prepared(Both().double(), images()).eval()
    ways = [images(), (images(), 1), (images(), 0, True)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain, report = sf.fold(model, fuse=True, example=ways, report=True)
    assert {note.name for note in report.folded} == {"final"}
    assert "on the worst of 3 inputs" in report.verification
    for each in ways:
        assert error(run(plain, each), run(model, each)) <= 1e-10


def test_a_layer_that_no_code_mentions_is_in_nobodys_way() -> None:
    class Leftover(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.forgotten = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)).relu()

    model = prepared(Leftover().double(), images()).eval()
    plain, report = sf.fold(model, fuse=True, example=images(), report=True)
    assert "norm" in {note.name for note in report.folded}
    assert report.unseen == ()
    assert error(plain(images()), model(images())) <= 1e-10


def test_verify_runs_every_input_and_reports_the_worst() -> None:
    torch.manual_seed(0)
    model = prepared(ByArgument().double(), images()).eval()
    other = sf.fold(model, check=False, example=images())
    with torch.no_grad():
        other.norms[1].bias.add_(1)
    assert sf.verify(model, other, images()).passed
    report = sf.verify(model, other, [images(), (images(), 1)], raise_on_mismatch=False)
    assert (report.passed, report.inputs, report.worst_input) == (False, 2, 1)
    with pytest.raises(sf.errors.VerifyError, match=r"NOT equivalent .* on the worst of 2 inputs \(number 2\)"):
        sf.verify(model, other, [images(), (images(), 1)])
    with pytest.raises(sf.errors.StripefoldError, match=r"example=\[\] holds no input"):
        sf.verify(model, other, [])


def test_sites_and_gates_over_several_examples() -> None:
    torch.manual_seed(0)
    model = prepared(ByArgument().double(), images()).eval()
    ways = [images(), (images(), 1)]
    attached = sf.attach(model, "shift", where="conv", example=ways)
    with torch.no_grad():
        attached.conv.gates[0].psi.normal_()
    with pytest.warns(UserWarning, match=r"have a bias .*conv\.bias"):
        plain = sf.fold(attached.eval(), example=ways)
    for each in ways:
        assert error(run(plain, each), run(attached, each)) <= 1e-10
        assert error(run(plain, each), run(model, each)) > 1e-3  # the control


class Number(nn.Module):
    """A parameter that the code also reads as a number."""

    def __init__(self, read: Callable[[Tensor], float]) -> None:
        super().__init__()
        self.conv, self.gain, self.read = nn.Conv2d(3, 4, 1), nn.Parameter(torch.tensor([1.7])), read

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv(x) * self.gain).clamp(max=self.read(self.gain))


@pytest.mark.parametrize(
    "read",
    [
        lambda g: g.item(),
        lambda g: float(g.detach()),
        lambda g: g.tolist()[0],
        lambda g: g.detach().numpy()[0],
        lambda g: float(g.detach().sum() * 2),
    ],
    ids=["item", "float", "tolist", "numpy", "computed"],
)
@pytest.mark.parametrize("check", [True, False])
def test_a_parameter_that_is_read_as_a_number_stays(read: Callable[[Tensor], float], check: bool) -> None:
    torch.manual_seed(0)
    model = Number(read).double().eval()
    plain = sf.fold(model, fuse=True, example=images(), check=check)
    for scale in (0.1, 10.0):
        assert error(plain(scale * images()), model(scale * images())) <= 1e-10


class Elsewhere(nn.Module):
    """Takes another layer where the values are large; what it meets is moved nowhere in any case."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(x) if x.mean() > 10 else 2 * x


def test_the_warning_asks_for_the_reason_and_not_for_its_words() -> None:
    """A layer whose path reads like the reason: it stays because it is called twice."""
    name = "did not run on the example"
    model: Any = nn.Sequential()
    model.add_module(name, nn.Conv2d(3, 3, 1))
    model.add_module("again", model.get_submodule(name))
    parts = {"bn": nn.BatchNorm2d(3), "last": nn.Conv2d(3, 4, 1), "act": nn.ReLU(), "end": Elsewhere()}
    for key, module in parts.items():
        model.add_module(key, module)
    model = prepared(model.double(), images(8)).eval()
    model.last.register_forward_pre_hook(lambda module, args: (args[0].relu(),))
    plain, report = sf.fold(model, fuse=True, example=images(), report=True)
    assert report.unseen == ("end.other",)
    (row,) = report.left
    assert name in row.why
    assert not row.unseen
    assert error(plain(images()), model(images())) < EXACT
