"""verify: what passes, what fails, where, and against which noise."""

from __future__ import annotations

import copy
import random
import threading
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stripefold as sf
from stripefold.errors import VerifyError
from stripefold.folding.outputs import relative_error
from stripefold.modules.tensors import tensors_of
from tests.lifecycle import SITES, attached, images, snapshot, tiny


def changed(model: nn.Module, name: str, factor: float) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_parameter(name).mul_(factor)
    return other


def test_a_report() -> None:
    model = attached()
    report = sf.verify(model, sf.fold(model), images())
    assert report.passed
    assert (report.dtype, report.tolerance, report.reference_error, report.agreement) == ("float64", 1e-10, 0.0, 1.0)
    assert report.error < 1e-14
    assert report.worst_output == "output"
    assert {name for name, _ in report.layers} >= set(SITES)
    text = str(report)
    assert text.startswith("equivalent in float64: relative error ")
    assert text.endswith("predictions agree 100.00 %")


def test_a_report_without_any_difference() -> None:
    model = attached()
    assert "every layer the same to the last bit" in str(sf.verify(model, copy.deepcopy(model), images()))
    assert "worst layer" in str(sf.verify(model, sf.detach(model), images(), raise_on_mismatch=False))


@pytest.mark.parametrize(("dtype", "floor"), [(torch.float32, 1e-6), (torch.float16, 2**-7), (torch.bfloat16, 2**-4)])
def test_below_float64_the_yardstick_is_the_models_own_noise(dtype: torch.dtype, floor: float) -> None:
    model = attached(dtype=dtype)
    report = sf.verify(model, sf.fold(model, check=False), images())
    assert report.reference_error > 0
    assert report.tolerance == max(4 * report.reference_error, floor)
    assert "(the reference's own rounding" in str(report)


class Noisy(nn.Module):
    """Scores, and beside them what rounding turns over completely."""

    def __init__(self, *, scores: bool) -> None:
        super().__init__()
        self.linear, self.scores = nn.Linear(8, 50), scores

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.linear(x)
        return [*([y] if self.scores else []), (y * 1e8).sin()]


def test_a_noisy_output_excuses_no_other() -> None:
    torch.manual_seed(0)
    model, x = Noisy(scores=True), torch.randn(16, 8)
    assert sf.verify(model, copy.deepcopy(model), x).passed
    report = sf.verify(model, changed(model, "linear.weight", 1.001), x, raise_on_mismatch=False)
    assert (report.passed, report.worst_output, report.tolerance) == (False, "output[0]", 1e-6)


def test_outputs_that_are_nothing_but_rounding_are_not_compared() -> None:
    torch.manual_seed(0)
    model, x = Noisy(scores=False), torch.randn(16, 8)
    with pytest.raises(VerifyError, match=r"rounding to float32 alone changes .* so that everything would pass"):
        sf.verify(model, changed(model, "linear.weight", 1.5), x)
    assert sf.verify(model.double(), copy.deepcopy(model), x).passed


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_small_change_is_seen_and_named(dtype: torch.dtype) -> None:
    model = tiny(dtype)
    other = changed(model, "blocks.1.bn2.weight", 1 + (1e-8 if dtype == torch.float64 else 1e-3))
    with pytest.raises(VerifyError, match=r"NOT equivalent in float.*Worst at output"):
        sf.verify(model, other, images())
    report = sf.verify(model, other, images(), raise_on_mismatch=False)
    assert not report.passed
    assert report.error > report.tolerance
    assert sf.verify(model, other, images(), tolerance=0.1).passed


def test_the_first_layer_that_differs() -> None:
    model = attached()
    plain = sf.fold(model)
    wrong = changed(plain, "blocks.0.bn2.weight", 1.5)
    with pytest.raises(VerifyError, match=r"First layer that differs: blocks\.0\.bn2 \("):
        sf.verify(model, wrong, images())


def test_nothing_is_left_behind() -> None:
    model, other = attached().train(), attached().eval()
    before, theirs, state = snapshot(model), snapshot(other), torch.get_rng_state()
    sf.verify(model, other, images())
    assert snapshot(model) == before
    assert snapshot(other) == theirs
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_is_off_and_statistics_are_fixed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.BatchNorm1d(4)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    assert sf.verify(model, copy.deepcopy(model), x).error == 0


class Normalising(nn.Module):
    """Writes into its input, as preprocessing inside a model does, perhaps after a look at the values."""

    def __init__(self, *, looks: bool) -> None:
        super().__init__()
        self.net, self.looks = tiny(), looks

    def forward(self, x: Tensor) -> Tensor:
        if self.looks and float(x.max()) > 100:
            raise ValueError("pixels above 100")
        return self.net(x.sub_(0.5).div_(0.25))


@pytest.mark.parametrize("looks", [False, True])
def test_a_model_that_writes_into_its_input(looks: bool) -> None:
    model, x = Normalising(looks=looks).eval(), images()
    assert sf.verify(model, copy.deepcopy(model), x).error == 0
    plain = sf.fold(sf.attach(model, where="norm", example=x), fuse=True, example=x)
    assert torch.equal(x, images())
    assert not sf.verify(model, plain, (x,), raise_on_mismatch=False).passed  # the gates
    assert torch.equal(x, images())


def test_a_tensor_given_twice_is_one_tensor() -> None:
    class Same(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a * (2 if a is b else 3)

    class Double(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + b

    assert sf.verify(Same(), Double(), (x := images(), x)).passed


@dataclass
class Result:
    scores: Tensor
    hidden: tuple[Tensor, ...]


class Structured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
        self.returned = "class"

    def forward(self, x: Tensor, *, shift: Tensor | None = None) -> object:
        hidden = self.a(x if shift is None else x + shift)
        scores = self.b(hidden)
        return {
            "class": Result(scores, (hidden, x)), "dict": {"scores": scores, "more": [hidden]}, "none": "text"
        }[self.returned]  # fmt: skip


def test_structured_outputs_and_inputs() -> None:
    torch.manual_seed(0)
    x, model = torch.randn(5, 3, dtype=torch.float64), Structured().double()
    other = changed(model, "a.weight", 1.01)
    for example in (x, (x,), {"x": x, "shift": x}):
        assert sf.verify(model, copy.deepcopy(model), example).error == 0
        report = sf.verify(model, other, example, raise_on_mismatch=False)
        assert report.worst_output in ("output.scores", "output.hidden[0]")
        assert report.agreement is not None
    model.returned = "dict"
    with pytest.raises(VerifyError, match=r"return different structures: output\['scores'\].* and output.scores"):
        sf.verify(model, other, x)
    model.returned = "none"
    with pytest.raises(VerifyError, match=r"the model returned no tensor \(a str\): nothing can be compared"):
        sf.verify(model, other, x)


def test_an_output_that_refers_to_itself() -> None:
    result = Result(torch.ones(2), (torch.zeros(1),))
    result.owner = [result]
    assert len(dict(tensors_of(result))) == 2


def test_what_cannot_be_compared() -> None:
    with pytest.raises(VerifyError, match="the models differ in dtype: torch.float32 and torch.float64"):
        sf.verify(tiny(torch.float32), tiny(), images())
    broken = changed(tiny(), "stem.weight", float("nan"))
    with pytest.raises(VerifyError, match="output of the reference model is NaN: nothing can be compared"):
        sf.verify(broken, tiny(), images())
    with pytest.raises(VerifyError, match="relative error inf"):
        sf.verify(tiny(), broken, images())
    with pytest.raises(VerifyError, match=r"TinyNet does not run on the example \(2, 5\) float64: .*Give an example"):
        sf.verify(tiny(), tiny(), torch.zeros(2, 5))
    with pytest.raises(VerifyError, match="relative error inf"):
        sf.verify(tiny(), type(tiny())(classes=7).double(), images())


def test_relative_error() -> None:
    a = torch.tensor([1.0, -4.0])
    assert relative_error(a, a) == 0
    assert relative_error(torch.tensor([1.0, -3.0]), a) == 0.25
    assert relative_error(torch.tensor([1.0, float("nan")]), a) == float("inf")
    assert relative_error(torch.tensor([1.0]), a) == float("inf")
    masked = torch.tensor([1.0, -float("inf")])
    assert relative_error(masked, masked) == 0
    assert relative_error(masked, a) == float("inf")
    assert relative_error(torch.tensor([1.0]), torch.tensor([0.0])) == 1.0
    assert relative_error(torch.empty(0), torch.empty(0)) == 0
    assert relative_error(torch.tensor([2 + 1j]), torch.tensor([2 + 2j])) == pytest.approx(1 / 8**0.5)


def test_a_reference_that_overflows_excuses_nothing() -> None:
    model = changed(tiny(torch.float16), "head.weight", 1e3)
    model.head.bias.data.fill_(6.5e4)
    model.head.weight.data.abs_()
    model.blocks.register_forward_hook(lambda module, args, output: output.abs() * 1e3)
    with pytest.raises(VerifyError, match="the reference model overflows in float16 on this example"):
        sf.verify(model, changed(model, "stem.weight", 2.0), images())


class Elsewhere(nn.Module):
    """Computes in float64 inside, counts its calls, draws from every generator, remembers what it drew."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.drawn = net, []
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        noise = float(torch.rand(())) + random.random() + float(np.random.rand())
        return self.net((x.double() * 2).to(x.dtype) + noise)


def test_a_run_leaves_no_mark_and_both_draw_alike() -> None:
    model = Elsewhere(tiny(torch.float32))
    states = [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()]
    assert sf.verify(model, copy.deepcopy(model), images(dtype=torch.float32)).passed
    assert model.calls == 0
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == [random.getstate(), np.random.get_state()[1].tolist()]


def test_the_outputs_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    every = sf.verify(model, copy.deepcopy(model), images()).layers
    monkeypatch.setattr("stripefold.folding.layer_by_layer.RECORD_LIMIT", 3 * 4 * 8 * 36 * 8)
    assert sf.verify(model, copy.deepcopy(model), images()).layers == every[:3]


def test_a_model_that_cannot_be_copied() -> None:
    model = tiny(torch.float32)
    model.lock = threading.Lock()
    with pytest.raises(VerifyError, match="cannot be copied .*, so there is no float64 reference"):
        sf.verify(model, tiny(torch.float32), images())
    assert sf.verify(model.double(), tiny(torch.float32).double(), images()).passed


class Finder(nn.Module):
    """Returns what is above a threshold, as a detector does."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"scores": x[x > 1] * self.gain}


def test_nothing_found_is_nothing_compared() -> None:
    with pytest.raises(VerifyError, match="return empty tensors only.*nothing was compared"):
        sf.verify(Finder(1.0), Finder(2.0), torch.zeros(4))
    assert sf.verify(Finder(1.0), Finder(1.0), torch.full((4,), 2.0)).passed
    with pytest.raises(VerifyError, match="scores"):
        sf.verify(Finder(1.0), Finder(2.0), torch.full((4,), 2.0))


def test_fold_says_that_nothing_was_compared() -> None:
    with pytest.warns(UserWarning, match="folding without a check: both models return empty tensors"):
        _, report = sf.fold(Finder(1.0), example=torch.zeros(4), report=True)
    assert report.verification == "not checked"
    with pytest.raises(VerifyError, match="nothing was compared"):
        sf.fold(Finder(1.0), example=torch.zeros(4), check=True)
    with pytest.warns(UserWarning, match="folding without a check"):
        sf.fold_(Finder(1.0), example=torch.zeros(4))


def test_outputs_that_no_sample_changes_say_little() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    nn.init.zeros_(model[3].weight)  # as many heads start
    report = sf.verify(model, changed(model, "1.weight", 2.0), torch.randn(4, 3, 2, 2, dtype=torch.float64))
    assert report.passed
    assert report.blind
    assert report.worst_layer is not None
    assert report.worst_layer[1] > 0.1
    assert str(report).endswith("the outputs are the same for every sample, so that only the layers say something")
    nn.init.normal_(model[3].weight)  # the control
    seeing = sf.verify(model, copy.deepcopy(model), torch.randn(4, 3, 2, 2, dtype=torch.float64))
    assert not seeing.blind
    assert "every sample" not in str(seeing)


class DoubleFirst(nn.Module):
    """Casts as its forward has them, and a float64 layer before a float32 one."""

    def __init__(self) -> None:
        super().__init__()
        self.double_layer = nn.Conv2d(3, 4, 1).double()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.double_layer(x.double()).float())


class PlainTensor(nn.Module):
    """Keeps a tensor that ``double()`` does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.mix = torch.randn(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x).mean((2, 3)) @ self.mix


def test_a_dtype_fixed_in_the_forward_is_what_is_named() -> None:
    x = torch.randn(4, 3, 5, 5)
    model = DoubleFirst().eval()
    report = sf.verify(model, copy.deepcopy(model), x)
    assert (report.passed, report.dtype) == (True, "float32")  # its narrowest part rounds
    assert sf.verify(copy.deepcopy(model).double(), copy.deepcopy(model).double(), x).dtype == "float64"
    model = PlainTensor().eval()
    with pytest.raises(
        VerifyError, match="copy in float64.*by which float32 rounding is judged.*as a buffer"
    ) as caught:
        sf.verify(model, copy.deepcopy(model), x)
    assert "Give an example" not in str(caught.value)
    mix = model.mix
    del model.mix
    model.register_buffer("mix", mix)
    assert sf.verify(model, copy.deepcopy(model), x).passed  # the way out
