"""Everything that can stop a fold is found before the first write, in every path, with the check and without."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stripefold as sf
from stripefold.errors import FoldError, StripefoldError
from stripefold.folding import fuse as fusing
from stripefold.folding.trial_changes import Changes
from stripefold.modules.float64_weights import Float64Weights
from stripefold.modules.writable import why_not_writable
from tests.lifecycle import error, snapshot

EXACT = 1e-10


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs() -> nn.Sequential:
    """Two convolutions with a BatchNorm behind each."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    for norm in (model[1], model[4]):
        for tensor in (norm.running_mean, norm.weight.data, norm.bias.data):
            tensor.normal_()
        norm.running_var.uniform_(0.5, 2)
    return model.double().eval()


def expanded(path: Path) -> nn.Parameter:
    return nn.Parameter(noise(1, 8, 1, 1).expand(8, 8, 1, 1))


def overlapping(path: Path) -> nn.Parameter:
    return nn.Parameter(noise(15).as_strided((8, 8, 1, 1), (1, 1, 1, 1)))


def inference(path: Path) -> nn.Parameter:
    with torch.inference_mode():
        return nn.Parameter(noise(8, 8, 1, 1))


def mapped(path: Path) -> nn.Parameter:
    noise(64).numpy().tofile(path / "weights")
    array = np.memmap(path / "weights", dtype=np.float64, mode="r", shape=(8, 8, 1, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch: the array is not writable
        return nn.Parameter(torch.from_numpy(array))


UNWRITABLE: dict[str, tuple[Callable[[Path], nn.Parameter], str]] = {
    "expanded": (expanded, "is an expanded tensor"),
    "overlapping": (overlapping, "share memory with one another"),
    "inference": (inference, "made under torch.inference_mode"),
    "mapped": (mapped, "mapped read-only"),
}
if not Path("/proc/self/maps").exists():
    del UNWRITABLE["mapped"]


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("case", UNWRITABLE)
def test_what_cannot_be_written_is_left_out_of_fuse(case: str, check: bool, tmp_path: Path) -> None:
    make, why = UNWRITABLE[case]
    model, x = pairs(), noise(2, 3, 5, 5)
    model[3].weight = make(tmp_path)
    with torch.no_grad():
        before = model(x)
        plain, report = sf.fold_(model, fuse=True, example=x, check=check, report=True)
        assert error(plain(x), before) < EXACT
    assert [note.name for note in report.folded] == ["1"]  # the rest is fused
    assert why in report.left[0].why


@pytest.mark.parametrize("case", UNWRITABLE)
def test_a_gate_on_what_cannot_be_written_is_refused(case: str, tmp_path: Path) -> None:
    make, why = UNWRITABLE[case]
    x = noise(2, 3, 5, 5)
    model = sf.attach_(pairs()[:4], where=["1", "3"], psi=0.7, example=x)
    model[3].base.weight = make(tmp_path)
    before = snapshot(model)
    with pytest.raises(FoldError, match=f"cannot fold the gate on '3': .*{why}"):
        sf.fold_(model, check=False)
    assert snapshot(model) == before


class Scaled(nn.Module):
    def __init__(self, gamma: Tensor) -> None:
        super().__init__()
        self.conv, self.gamma = nn.Conv2d(3, 8, 1), nn.Parameter(gamma)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.gamma


@pytest.mark.parametrize("case", ["expanded", "inference", "its own"])
def test_a_constant_that_cannot_be_written_stays(case: str) -> None:
    """A static scale folds into a layer and is then ones itself."""
    with torch.inference_mode(case == "inference"):
        gamma = noise(1, 1, 1).expand(8, 1, 1) if case == "expanded" else noise(8, 1, 1)
        model = Scaled(gamma)
    model.conv, x = nn.Conv2d(3, 8, 1).double(), noise(2, 3, 5, 5)
    with torch.no_grad():
        before = model(x)
        plain, report = sf.fold_(model, fuse=True, example=x, check=False, report=True)
        assert error(plain(x), before) < EXACT
    assert len(report.folded) == (case == "its own")


def test_what_can_be_written() -> None:
    strided = (noise(3, 4).T, noise(4, 6)[::2, 1::2], noise(2, 3, 4, 4).to(memory_format=torch.channels_last))
    for tensor in (noise(3, 4), noise(1)[0], noise(0, 3), noise(1, 1).expand(1, 1), *strided):
        assert why_not_writable(tensor) is None
    assert "meta device" in str(why_not_writable(torch.empty(3, device="meta")))
    assert "no shape yet" in str(why_not_writable(nn.LazyLinear(3).weight))


@pytest.mark.parametrize("moment", ["plan", "stand-ins", "commit"])
@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_fuse_that_fails_on_the_way_leaves_the_model_as_it_was(
    moment: str, failure: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = pairs(), noise(2, 3, 5, 5)
    model.append(nn.Conv2d(8, 4, 1).double())
    model.insert(2, nn.Conv2d(8, 8, 3, padding=1).double())
    handle = model[1].register_forward_hook(lambda module, args, output: None)
    expected, before = model(x).detach(), snapshot(model)

    def fail(*args: object) -> None:
        raise failure("in the middle")

    if moment == "commit":
        monkeypatch.setattr(Changes, "commit_", fail)
    else:
        monkeypatch.setattr(fusing, {"plan": "plan_merges", "stand-ins": "missed_by_the_code"}[moment], fail)
    with pytest.raises(failure, match="in the middle"):
        sf.fold_(model, fuse=True, example=x, check=False)
    assert snapshot(model) == before
    assert torch.equal(model(x).detach(), expected)
    monkeypatch.undo()
    handle.remove()
    assert error(sf.fold_(model, fuse=True, example=x, check=False)(x), expected) < EXACT


def test_fusing_in_place_writes_into_the_models_own_tensors() -> None:
    """Whoever holds a parameter goes on holding the model's."""
    model, x = pairs(), noise(2, 3, 5, 5)
    held = {name: (tensor, tensor.data_ptr()) for name, tensor in model.named_parameters() if ".bn" not in name}
    sf.fold_(model, fuse=True, example=x, check=False)
    for name in ("0.weight", "0.bias", "3.weight", "3.bias"):
        tensor, address = held[name]
        assert model.get_parameter(name) is tensor
        assert tensor.data_ptr() == address


def test_a_tie_with_a_buffer_is_a_tie() -> None:
    model, x = pairs(), noise(2, 3, 5, 5)
    model.register_buffer("held", model[3].weight.data)  # of the same memory
    expected = model(x).detach()
    plain, report = sf.fold_(model, fuse=True, example=x, check=False, report=True)
    assert error(plain(x), expected) < EXACT
    assert [note.name for note in report.folded] == ["1"]
    assert "tied" in report.left[0].why


def test_an_overflow_is_found_before_anything_is_written() -> None:
    model, x = pairs().half(), noise(2, 3, 5, 5).half()
    model[4].weight.data.fill_(60000)
    model[3].weight.data.fill_(200)
    weights = model[3].weight.detach().clone()
    _, report = sf.fold_(model, fuse=True, example=x, check=False, report=True)
    assert "overflow" in report.left[0].why
    assert torch.equal(model[3].weight, weights)


def test_a_commit_looks_at_everything_first() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = nn.Parameter(torch.ones(1, 3).expand(3, 3))
    model, weights, changes = nn.Sequential(first, second), Float64Weights(), Changes()
    before = snapshot(model)
    for layer in (first, second):
        weights.set(layer, {"weight": torch.full((3, 3), 2.0, dtype=torch.float64)})
    changes.install_(weights)
    assert bool((first.weight == 2).all())  # the model runs with the merged numbers
    with pytest.raises(FoldError, match="cannot write the folded numbers: Linear.weight is an expanded tensor"):
        changes.commit_(weights)
    changes.undo_(model)
    assert snapshot(model) == before
    assert issubclass(FoldError, StripefoldError)
