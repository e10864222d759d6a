"""Figures must not depend on how a user's model, metric or data are written."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import MethodType

import pytest
import torch
from torch import Tensor, nn

import stripefold as sf
from stripefold.errors import BakeError
from stripefold.layers.accepts import is_affine_map
from tests.baking.nets import SE, C, Net, before_conv, before_norm, in_a_row
from tests.lifecycle import assert_refused, images, prepared, snapshot


class Counting(Net):
    """Writes into buffers of its own whenever it runs."""

    def __init__(self) -> None:
        super().__init__(before_conv, se=SE())
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return super().forward(x)


class WithMask(Net):
    """Takes a second input, which it can do without."""

    def __init__(self) -> None:
        super().__init__(before_conv, se=SE(), norm=nn.BatchNorm2d(3))
        self.body = lambda net, x: net.norm(net.conv(net.se(x))[:, :3])
        self.out = nn.Linear(3, 4)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x if mask is None else x * mask)


def made(model: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    return prepared(model.double(), images(8, seed=30)).eval()


def labelled() -> list[tuple[Tensor, Tensor]]:
    return [(images(6, seed=k), torch.arange(6) % 4) for k in range(3)]


def spread(run: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[nn.Module], float]:
    """A metric over several batches, whichever entry of the model it calls."""

    def metric(model: nn.Module) -> float:
        with torch.no_grad():
            return sum(float(run(model, x).abs().sum()) for x, _ in labelled())

    return metric


def test_a_metric_may_call_any_part_of_the_model() -> None:
    model = made(Net(before_conv, se=SE()))
    entries = {
        "call": lambda m, x: m(x),
        "forward": lambda m, x: m.forward(x),
        "parts": lambda m, x: m.out(nn.functional.silu(m.body(m, m.bn(m.stem(x)))).mean((2, 3))),
    }
    reports = [
        sf.bake(model, labelled(), metric=spread(run), max_drop=1e9, recalibrate=False)[1] for run in entries.values()
    ]
    for report in reports:
        assert report.constant == pytest.approx(reports[0].constant, rel=1e-12)
        assert report.sites[0].alone == pytest.approx(reports[0].sites[0].alone, rel=1e-12)
        assert report.after == pytest.approx(report.constant, rel=1e-10)
        assert abs(report.constant - report.before) > 1e-6


def test_a_metric_may_leave_the_model_in_training_mode() -> None:
    def score(model: nn.Module, after: bool) -> float:
        model.eval()
        with torch.no_grad():
            value = sum(float(model(x).softmax(1)[range(6), labels].sum()) for x, labels in labelled())
        model.train(after)
        return value

    baked = []
    for after in (False, True):
        torch.manual_seed(0)
        net = Net(before_norm, se=SE(), norm=nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(C)))
        options = {"recalibrate": True, "finetune": sf.FineTune(steps=3)}
        baked.append(sf.bake(made(net), labelled(), metric=lambda m, after=after: score(m, after), **options))
    (model, report), (other, other_report) = baked
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert report.after == other_report.after
    assert report.recalibrated != report.constant


def test_each_gate_is_measured_on_the_same_random_numbers() -> None:
    drawn: list[float] = []

    def metric(model: nn.Module) -> float:
        drawn.append(float(torch.rand(())))
        return 0.0

    sf.bake(made(Net(before_conv, se=SE())), labelled(), metric=metric, max_drop=1)
    assert len(drawn) > 3
    assert len(set(drawn[:-1])) == 1  # the last one is of the baked model


@pytest.mark.parametrize("in_place", [False, True])
def test_buffers_that_a_model_writes_to_stay(in_place: bool) -> None:
    model = made(Counting())
    model.runs.fill_(7)
    before = snapshot(model)
    if in_place:
        sf.bake_(model, labelled(), max_drop=100)
        baked = model
    else:
        baked, _ = sf.bake(model, labelled(), max_drop=100)
        assert snapshot(model) == before
    assert float(baked.runs) == 7


def test_all_arguments_of_the_example_are_given_in_every_pass() -> None:
    model = made(WithMask())
    masks = [(images(6, seed=20 + k)[:, :1] > 0).double() for k in range(3)]
    data = [(x, mask, labels) for (x, labels), mask in zip(labelled(), masks, strict=True)]
    baked, report = sf.bake(model, data, example=(data[0][0], masks[0]), validation=data, recalibrate=True)
    with torch.no_grad():
        outputs = torch.cat([copy.deepcopy(model).eval()(x, mask) for x, mask, _ in data])
        seen: list[Tensor] = []
        norm = next(m for n, m in baked.named_modules() if is_affine_map(m) and n == "norm")
        norm.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
        for x, mask, _ in data:
            baked.eval()(x, mask)
    right = outputs.argmax(1) == torch.cat([labels for *_, labels in data])
    assert report.before == pytest.approx(100 * float(right.double().mean()))
    assert torch.allclose(norm.running_mean, torch.cat(seen).mean((0, 2, 3)), rtol=1e-9)


class BatchSE(SE):
    """With a BatchNorm over one value per image."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(C)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.norm(x.mean((2, 3))))[:, :, None, None]


def test_a_last_batch_of_one_image_does_not_stop_auto() -> None:
    model = made(Net(in_a_row, se=SE(), second=BatchSE()))
    data = [*labelled(), (images(1), torch.zeros(1, dtype=torch.long))]
    _, report = sf.bake(model, data)
    assert report.norms == ()
    assert any("BatchNorm statistics were not re-estimated: data has batches of a single" in n for n in report.notes)
    with pytest.raises(BakeError, match="give larger batches"):
        sf.bake(model, data, recalibrate=True)


class Auxiliary(Net):
    """A second classifier that training reads."""

    def __init__(self) -> None:
        super().__init__(before_conv, se=SE(), aux=nn.Linear(C, 4))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return super().forward(x) + self.aux(self.se(self.bn(self.stem(x))).mean((2, 3)))


def test_layers_that_only_training_runs_are_named() -> None:
    with pytest.warns(UserWarning, match="'aux' did not run on the example: constants .* were not folded"):
        _, report = sf.bake(made(Auxiliary()), labelled())
    assert report.folded == ()  # into 'conv', which would be wrong where training reads what was gated
    assert any(note.startswith("'aux' did not run on the example") for note in report.notes)
    _, other = sf.bake(made(Net(before_conv, se=SE())), labelled())
    assert not any("did not run" in note for note in other.notes)


def test_a_copy_that_would_run_the_modules_of_the_model_is_refused() -> None:
    model = made(Net(before_conv, se=SE()))
    se, fc = model.se, model.se.fc2
    se.forward = MethodType(lambda self, x: SE.forward(self, x), se)  # goes with the copy
    assert len(sf.bake(model, labelled())[1].baked) == 1
    model.forward = lambda x: Net.forward(model, x)
    for call in (sf.bake, sf.bake_):
        assert_refused(
            model, lambda call=call: call(model, labelled()), BakeError, "still runs 'stem' of the model itself"
        )
    del model.forward
    model.conv.register_forward_hook(
        lambda module, args, output: output + fc(output[:, :4].mean((2, 3)))[..., None, None]
    )
    assert_refused(model, lambda: sf.bake(model, labelled()), BakeError, "still runs 'se.fc2' of the model itself")


def test_a_label_that_is_no_class() -> None:
    data = [(images(4), torch.tensor([0, 1, -100, 2]))]
    with pytest.raises(BakeError, match="4 labels from -100 to 2 for logits"):
        sf.bake(made(Net(before_conv, se=SE())), data, max_drop=100)
