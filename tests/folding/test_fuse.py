"""``fuse=True``: every BatchNorm that runs directly behind a convolution or linear layer; the rest stays, with why."""

from __future__ import annotations

import functools
import warnings
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import byobnet, convnext
from torch import Tensor, nn

import stripefold as sf
from stripefold.folding import biases, fuse, missed_norms
from stripefold.layers.rule import Along, rule_for_type
from stripefold_lab import create_model
from tests.lifecycle import attached, error, images, prepared, scatter_, step_, tiny

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fused(model: nn.Module, x: Tensor, *, bound: float = 1e-10) -> tuple[nn.Module, sf.FoldReport]:
    """Fuse in eval mode and compare; the control is a model whose BatchNorms are simply left out."""
    prepared(model, x)
    plain, report = sf.fold(model, fuse=True, example=x, report=True)
    with torch.no_grad():
        expected = model.eval()(x)
        assert error(plain.eval()(x), expected) < bound
    assert report.fused
    return plain, report


def norms_in(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, NORMS)]


def why(report: sf.FoldReport) -> dict[str, str]:
    return {note.name: note.why for note in report.notes}


def test_resnet20_with_gates() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    backbone = prepared(create_model("resnet20").double(), x)
    model = step_(scatter_(sf.attach(backbone)), x, lr=0.01)
    plain, report = sf.fold(model, fuse=True, report=True)
    assert norms_in(plain) == []
    assert len(report.folded) == 9 + 21
    assert error(plain.eval()(x), model.eval()(x)) < 1e-10
    assert error(sf.fold(sf.detach(model), fuse=True).eval()(x), model(x)) > 1e-2  # the control
    again = sf.fold(create_model("resnet20").double(), fuse=True)
    again.load_state_dict(plain.state_dict())  # how its file is loaded again
    assert error(again.eval()(x), plain(x)) == 0


def test_a_timm_model_with_activations_inside_its_norms() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    model = timm.create_model("mobilenetv3_small_050", num_classes=5).double()
    count = len([m for m in model.modules() if type(m).__name__ == "BatchNormAct2d"])
    plain, report = fused(model, x)
    assert norms_in(plain) == []
    assert len(report.folded) == count > 20
    assert any(isinstance(m, (nn.Hardswish, nn.ReLU)) or "Hardswish" in type(m).__name__ for m in plain.modules())


class Twice(nn.Module):
    """One convolution, two calls, a BatchNorm behind each or one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(3)
        self.bn2 = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv(F.relu(self.bn1(self.conv(x)))))


class Branching(Twice):
    """The convolution's output is also used elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn2(F.relu(self.bn1(y))) + y


class Between(Twice):
    """Conv-ReLU-BN, in the order in which Conv-BN is defined (mmcv fuses it)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.bn1(F.relu(self.conv(x))))


class Swapped(nn.Module):
    """Defined bn, conv; called conv, bn."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(5)
        self.conv = nn.Conv2d(3, 5, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


@pytest.mark.parametrize("network", [Twice, Branching])
def test_what_cannot_be_fused_is_left_and_says_why(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    plain, report = fused(network().double(), images())
    assert norms_in(plain) == ["bn1", "bn2"]
    assert [note.folded for note in report.notes] == [False, False]
    assert all(note.why for note in report.left)
    assert "- bn1  BatchNorm2d" in str(report)


def test_the_reasons() -> None:
    torch.manual_seed(0)
    _, report = fused(Twice().double(), images())
    assert "conv" in why(report)["bn1"]
    _, report = fused(Between().double(), images())
    assert why(report) == {
        "bn1": "'relu' in the model itself does not pass on what is added to its operand; behind it: what is shifted "
        "is returned by the model",
        "bn2": "merged into bn1",  # a norm takes a norm
    }


def test_the_report_says_how_a_fused_file_is_loaded() -> None:
    said = "a file of these weights is loaded into fold(create(), fuse=True)"
    torch.manual_seed(0)
    model = Swapped().double()
    assert said in str(fused(model, images())[1])
    assert said not in str(sf.fold(model, example=images(), report=True)[1])


def test_call_order_counts_not_definition_order() -> None:
    torch.manual_seed(0)
    plain, report = fused(Swapped().double(), images())
    assert norms_in(plain) == []
    assert plain.conv.bias is not None
    assert why(report) == {"bn": "merged into conv"}


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_transposed_convolutions_with_groups(groups: int, bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 8, 3, stride=2, groups=groups, bias=bias), nn.BatchNorm2d(8)
    ).double()
    plain, _ = fused(model, images())
    assert norms_in(plain) == []


LAYERS = {
    "Conv1d": (lambda: (nn.Conv1d(3, 5, 3, dilation=2), nn.BatchNorm1d(5)), (4, 3, 9)),
    "Conv3d": (lambda: (nn.Conv3d(3, 6, 2, groups=3), nn.BatchNorm3d(6)), (2, 3, 4, 4, 4)),
    "Linear": (lambda: (nn.Linear(6, 5), nn.BatchNorm1d(5)), (8, 6)),
    "padding": (lambda: (nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(5)), (4, 3, 6, 6)),
    "no affine part": (lambda: (nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, affine=False)), (4, 3, 6, 6)),
    "dropout between": (lambda: (nn.Conv2d(3, 5, 3), nn.Dropout(0.5), nn.BatchNorm2d(5)), (4, 3, 6, 6)),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYERS)
def test_pairs(case: str) -> None:
    build, shape = LAYERS[case]
    torch.manual_seed(0)
    model = nn.Sequential(*build()).double()
    x = torch.randn(shape, dtype=torch.float64)
    for norm in (m for m in model if isinstance(m, NORMS) and not m.affine):
        norm.momentum = 1.0
    if case == "no affine part":
        model.train()(x)
        plain = sf.fold(model, fuse=True, example=x)
        assert error(plain.eval()(x), model.eval()(x)) < 1e-10
    else:
        plain, _ = fused(model, x)
    assert norms_in(plain) == []


def test_kept_with_a_reason() -> None:
    torch.manual_seed(0)
    tracked = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).double()
    _, report = sf.fold(tracked, fuse=True, example=images(), report=True)
    assert why(report) == {"1": "it keeps no running statistics"}
    a, b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
    b.weight = a.weight
    tied = nn.Sequential(a, nn.BatchNorm2d(3), b, nn.BatchNorm2d(3)).double()
    plain, report = fused(tied, images())
    assert norms_in(plain) == ["1", "3"]
    assert "'0': its 'weight' is tied to '2.weight'" in why(report)["1"]
    transposed = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(3)).double()  # (N, L, C): L is its channel axis
    x = torch.randn(4, 3, 6, dtype=torch.float64)
    plain, report = fused(transposed, x)
    assert norms_in(plain) == ["1"]
    assert "are not the channels at the output of '0'" in why(report)["1"]


def test_the_mode_and_the_training_model_are_kept() -> None:
    model = tiny().train()
    plain = sf.fold(model, fuse=True)
    assert plain.training
    assert plain.blocks[0].bn1.training
    assert isinstance(model.blocks[0].bn1, nn.BatchNorm2d)
    assert model.blocks[0].conv1.bias is None


def test_a_norm_under_dynamic_attention_stays_and_the_others_merge() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    backbone = prepared(create_model("resnet8").double(), x)
    model = sf.attach(sf.attach(backbone), "eca", form="dynamic")
    plain, report = sf.fold(model, fuse=True, report=True)
    with torch.no_grad():
        assert error(plain.eval()(x), model.eval()(x)) < 1e-10
    assert norms_in(plain) == [f"layer{stage}.0.bn2.base" for stage in (1, 2, 3)]
    assert {note.kind for note in report.left} == {"dynamic eca"}


def old_weight_norm(layer: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.nn.utils.weight_norm(layer)


def test_a_weight_that_a_hook_recomputes_takes_no_norm() -> None:
    model, x = tiny(), images()
    old_weight_norm(model.blocks[0].conv1)
    expected = model.eval()(x)
    plain, report = sf.fold_(model, fuse=True, example=x, check=False, report=True)
    assert "weight_norm recomputes its 'weight'" in why(report)["blocks.0.bn1"]
    assert error(plain(x), expected) <= 1e-10


def test_hooks_of_a_merged_norm_stay() -> None:
    model, seen = tiny().eval(), []
    model.blocks[0].bn1.register_forward_hook(lambda module, args, output: seen.append(output))
    expected = model(images())
    plain = sf.fold(model, fuse=True)
    assert error(plain(images()), expected) <= 1e-10
    assert error(seen[-1], seen[0]) <= 1e-10


@pytest.mark.parametrize(
    ("variance", "reason"), [(0.0, "the merged weight overflows torch.float16"), (float("nan"), "are not finite")]
)
def test_numbers_that_do_not_fit_stay_apart(variance: float, reason: str) -> None:
    model = tiny(torch.float16)
    norm = model.blocks[0].bn1
    norm.eps, norm.running_var[0] = 1e-12, variance
    report = sf.fold(model, fuse=True, check=False, report=True)[1]
    assert reason in why(report)["blocks.0.bn1"]


def test_the_root_is_a_site_that_stays() -> None:
    model = sf.attach(nn.BatchNorm2d(3).double(), where="", form="dynamic")
    assert sf.fold(model, fuse=True, example=images(), check=False, report=True)[1].folded == ()


class Composite(nn.Sequential):
    """A layer with a rule that holds another layer with a rule."""


def test_layers_inside_a_layer_are_left_alone() -> None:
    rule = rule_for_type(nn.Linear)
    assert rule is not None
    sf.register_rule(Composite, rule=replace(rule, required="gain", output={"gain": Along(0)}))
    model = nn.Sequential(Composite(nn.Linear(4, 4)), nn.BatchNorm1d(4)).double()
    notes = sf.fold(model, fuse=True, example=torch.randn(3, 4), check=False, report=True)[1].notes
    assert [note.folded for note in notes] == [False]


@pytest.mark.parametrize("how", ["call", "partial"])
def test_a_norm_that_a_function_holds_stays(how: str) -> None:
    """Its place would be empty, and the function go on running it."""

    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.run = self.norm.__call__ if how == "call" else functools.partial(self.norm)

        def forward(self, x: Tensor) -> Tensor:
            return self.run(self.conv(x)).mean((2, 3))

    model = prepared(Held().double(), images(8)).eval()
    plain, report = sf.fold(model, fuse=True, example=images(), report=True)
    assert error(plain(images()), model(images())) == 0
    assert [(row.name, row.folded) for row in report.notes] == [("norm", False)]
    assert "'run' holds it inside a function" in report.notes[0].why


EIGHT = torch.randn(2, 8, 9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
TRACES = {
    # Planned on one trace; where modules went, the examples run once more, to see that the model's code does not mind.
    "norms": (tiny, [1, 1]),
    "constants of blocks": (lambda: convnext.ConvNeXtBlock(8).double(), [1, 0]),
    "nothing to merge": (lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()).double(), [1, 0]),
    # Blocks that merge their own branches are called on inputs of the shapes that they met, which a trace shows.
    "blocks of timm": (lambda: nn.Sequential(byobnet.RepVggBlock(8, 8), nn.ReLU()).double(), [2, 0]),
    "gates and norms": (lambda: attached(where=["blocks.0.bn1", "blocks.1.bn2"]), [1, 1]),
}


@pytest.mark.parametrize("case", TRACES)
def test_one_trace_is_planned_on(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, expected = TRACES[case]
    counts = []
    for module in (fuse, missed_norms):
        calls: list[object] = []
        counts.append(calls)
        real = module.trace
        monkeypatch.setattr(module, "trace", lambda *a, real=real, calls=calls, **k: calls.append(a) or real(*a, **k))
    monkeypatch.setattr(biases, "trace", None)  # what gates add stays where it is made
    model = build().eval()
    x = images() if any(part.in_channels == 3 for part in model.modules() if isinstance(part, nn.Conv2d)) else EIGHT
    sf.fold(model, fuse=True, example=x, check=False)
    assert [len(calls) for calls in counts] == expected
