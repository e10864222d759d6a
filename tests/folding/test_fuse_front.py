"""BatchNorms, and other affine maps of single channels, in front of the layers that take their output."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.mlp_mixer import Affine
from torch import Tensor, nn

import stripefold as sf
from stripefold.layers import rule
from stripefold.layers.rule import known_rules, type_key
from stripefold.layers.rules_timm import gain_rule
from tests.lifecycle import error, prepared

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, Affine)


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def fused(model: nn.Module, x: Tensor) -> tuple[nn.Module, dict[str, str]]:
    """The fused model, equal to the model by itself in eval mode; and the reasons by name."""
    torch.manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Affine):
                module.alpha.uniform_(-1.5, 1.5)
                module.beta.uniform_(-1.0, 1.0)
    prepared(model.double(), x)
    plain, report = sf.fold(model, fuse=True, example=x, check=False, report=True)
    with torch.no_grad():
        assert error(plain.eval()(x), model.eval()(x)) <= 1e-10
    return plain, {note.name: note.why for note in report.notes}


def norms_in(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, NORMS)]


MERGED = {
    "Linear": (lambda: (nn.BatchNorm1d(6), nn.Linear(6, 5)), (4, 6)),
    "Linear without bias": (lambda: (nn.BatchNorm1d(6), nn.Linear(6, 5, bias=False)), (4, 6)),
    "1x1": (lambda: (nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1, bias=False)), (2, 6, 5, 5)),
    "unpadded": (lambda: (nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, stride=2)), (2, 6, 7, 7)),
    "groups": (lambda: (nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, groups=2)), (2, 6, 7, 7)),
    "depthwise": (lambda: (nn.BatchNorm2d(6), nn.Conv2d(6, 12, 3, groups=6)), (2, 6, 7, 7)),
    "reflected": (lambda: (nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect")), (2, 6, 7, 7)),
    "circular": (lambda: (nn.BatchNorm1d(6), nn.Conv1d(6, 4, 3, padding=1, padding_mode="circular")), (2, 6, 7)),
    "valid": (lambda: (nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, padding="valid")), (2, 6, 7, 7)),
    "same 1x1": (lambda: (nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1, padding="same")), (2, 6, 7, 7)),
    "3d": (lambda: (nn.BatchNorm3d(4), nn.Conv3d(4, 4, 2)), (2, 4, 3, 4, 4)),
    "dropout between": (lambda: (nn.BatchNorm2d(6), nn.Dropout(0.5), nn.Conv2d(6, 4, 1)), (2, 6, 5, 5)),
    "pooled head": (lambda: (nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(6, 3)), (4, 6, 5, 5)),
    "norm behind, too": (lambda: (nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4)), (2, 6, 5, 5)),
    "norm in front of a norm": (
        lambda: (nn.BatchNorm2d(6), nn.AvgPool2d(2), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1)),
        (2, 6, 6, 6),
    ),
    "flattened map": (lambda: (nn.BatchNorm2d(6), nn.Flatten(1), nn.Linear(54, 3)), (4, 6, 3, 3)),
    "affine": (lambda: (Affine(6), nn.Linear(6, 5)), (2, 3, 6)),
    "affine behind": (lambda: (nn.Linear(6, 5, bias=False), Affine(5)), (2, 3, 6)),
}  # fmt: skip


@pytest.mark.parametrize("case", MERGED)
def test_merged(case: str) -> None:
    build, shape = MERGED[case]
    plain, why = fused(nn.Sequential(*build()), numbers(*shape))
    assert norms_in(plain) == []
    assert all("merged into" in reason for reason in why.values())


KEPT = {
    "zero padding": (
        lambda: (nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, padding=1)), (2, 6, 5, 5),
        "'1': its zero padding would have to become the shift",
    ),
    "same": (
        lambda: (nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, padding="same")), (2, 6, 5, 5), "its zero padding",
    ),
    "transposed": (
        lambda: (nn.BatchNorm2d(6), nn.ConvTranspose2d(6, 4, 3, groups=2)), (2, 6, 5, 5),
        "its kernel lays a shift of its input down in a pattern",
    ),
    "another axis": (lambda: (nn.BatchNorm1d(6), nn.Linear(6, 3)), (4, 6, 6), "not the channels at the input of '1'"),
    "returned": (lambda: (nn.Sigmoid(), nn.BatchNorm2d(6)), (4, 6, 3, 3), "is shifted is returned by the model"),
}  # fmt: skip


@pytest.mark.parametrize("case", KEPT)
def test_kept_and_why(case: str) -> None:
    build, shape, reason = KEPT[case]
    plain, why = fused(nn.Sequential(*build()), numbers(*shape))
    assert len(norms_in(plain)) == 1
    assert any(reason in text for text in why.values())


class Several(nn.Module):
    """One norm, several layers behind it, as before an attention."""

    def __init__(self, other: str) -> None:
        super().__init__()
        self.norm, self.q, self.k = nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1, bias=False), nn.Conv2d(6, 4, 1)
        self.other = other

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        first = self.q(y)
        if self.other == "added":
            return first + self.k(y) + y[:, :4]
        if self.other == "twice":
            return first + self.k(y) + self.k(y * 1.0)
        return first * self.k(y)


class ReadsWeight(Several):
    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.q(y) + F.conv2d(y, self.k.weight)


def test_several_layers_behind_one_norm() -> None:
    plain, why = fused(Several("none"), numbers(2, 6, 5, 5))
    assert norms_in(plain) == []
    assert why == {"norm": "merged into q, k behind it"}
    assert plain.q.bias is not None


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ("added", "what is shifted is returned by the model"),
        ("twice", "'k' is called 2 times"),
        ("weight", "the weight of 'k' is used without calling the layer"),
    ],
)
def test_every_layer_behind_must_take_it(other: str, reason: str) -> None:
    plain, why = fused((ReadsWeight if other == "weight" else Several)(other), numbers(2, 6, 5, 5))
    assert norms_in(plain) == ["norm"]
    assert reason in why["norm"]


class OwnAffine(nn.Module):
    """An affine map of channels of the user's, channels second."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.offset = nn.Parameter(torch.rand(6, 1, 1)), nn.Parameter(torch.rand(6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain + self.offset


def test_an_affine_map_that_a_rule_describes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule, "_rules", dict(known_rules()))
    mine = gain_rule(type_key(OwnAffine), "gain", axis=1, bias="offset")
    sf.register_rule(OwnAffine, rule=mine)
    plain, why = fused(nn.Sequential(OwnAffine(), nn.Conv2d(6, 4, 3)), numbers(2, 6, 5, 5))
    assert why == {"0": "merged into 1 behind it"}
    plain, why = fused(nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), OwnAffine()), numbers(2, 6, 5, 5))
    assert why == {"1": "merged into 0"}
    assert not any(isinstance(module, OwnAffine) for module in plain.modules())


@pytest.mark.parametrize("name", ["detr.DetrFrozenBatchNorm2d", "rt_detr.RTDetrFrozenBatchNorm2d"])
def test_frozen_norms_of_transformers(name: str) -> None:
    room, cls = name.split(".")
    module = pytest.importorskip(f"transformers.models.{room}.modeling_{room}")
    norm = getattr(module, cls)(6)
    for key, buffer in norm.named_buffers():
        buffer.uniform_(0.01, 0.02) if key == "running_var" else buffer.normal_()  # so small that eps matters
    x = numbers(2, 6, 5, 5)
    model = nn.Sequential(nn.Conv2d(6, 6, 3), norm, nn.ReLU()).double()
    plain, report = sf.fold(model, fuse=True, example=x, report=True)
    assert [note.why for note in report.notes] == ["merged into 0"]
    assert error(plain(x), model(x)) <= 1e-10


def test_a_frozen_norm_with_another_epsilon_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    detr = pytest.importorskip("transformers.models.detr.modeling_detr")

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        shape = (1, -1, 1, 1)
        scale = self.weight.view(shape) * (self.running_var.view(shape) + 1e-2).rsqrt()
        return x * scale + self.bias.view(shape) - self.running_mean.view(shape) * scale

    monkeypatch.setattr(detr.DetrFrozenBatchNorm2d, "forward", forward)
    model = nn.Sequential(nn.Conv2d(6, 6, 3), detr.DetrFrozenBatchNorm2d(6)).double()
    _, report = sf.fold(model, fuse=True, example=numbers(2, 6, 5, 5), report=True)
    assert "is wrong for" in report.left[0].why


class ByWeight(nn.Module):
    """Uses a layer's weight without calling it: its bias would never be added."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(6, 5), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.linear(x, self.linear.weight))


def test_a_weight_used_without_its_layer_takes_no_norm() -> None:
    plain, why = fused(ByWeight(), numbers(4, 6))
    assert norms_in(plain) == ["norm"]
    assert "the weight of 'linear' is used without calling the layer" in why["norm"]


class ResMLP(nn.Module):
    """The patch axis of a ResMLP block: an affine map of channels in front of a linear layer over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.tokens = Affine(6), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)


def test_an_affine_map_over_the_other_axis_is_left_and_says_so() -> None:
    plain, why = fused(ResMLP(), numbers(2, 5, 6))
    assert norms_in(plain) == ["norm"]
    assert "what is shifted are not the channels at the input of 'tokens'" in why["norm"]


def test_tied_layers_and_sites_behind_a_norm_stay() -> None:
    x = numbers(4, 6)
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    plain, why = fused(nn.Sequential(nn.BatchNorm1d(6), first, nn.Tanh(), second), x)
    assert norms_in(plain) == ["0"]
    assert "'1': its 'weight' is tied to '3.weight'" in why["0"]
    x = numbers(2, 6, 5, 5)
    model = prepared(nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 6, 1)).double(), x)
    model = sf.attach(model, "eca", where="1", form="dynamic")
    _, report = sf.fold(model, fuse=True, example=x, report=True)
    assert "'1': it carries gates of its own" in {note.name: note.why for note in report.notes}["0"]


@settings(max_examples=25, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 3]),
    per_group=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    eps=st.sampled_from([1e-5, 1e-3, 0.1]),
    mode=st.sampled_from(["none", "reflect", "circular", "replicate"]),
)
def test_any_unpadded_convolution(
    groups: int, per_group: int, kernel: int, stride: int, dilation: int, bias: bool, eps: float, mode: str
) -> None:
    channels = groups * per_group
    options = {} if mode == "none" else {"padding": 1, "padding_mode": mode}
    layer = nn.Conv2d(
        channels, 2 * groups, kernel, stride=stride, dilation=dilation, groups=groups, bias=bias, **options
    )
    plain, _ = fused(nn.Sequential(nn.BatchNorm2d(channels, eps=eps), layer), numbers(2, channels, 8, 9))
    assert norms_in(plain) == []
    assert plain[1].bias.shape == (2 * groups,)
