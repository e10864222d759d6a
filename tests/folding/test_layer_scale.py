"""Static per-channel scales that a model carries: folded into the layers that make what they scale, or named."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import stripefold as sf
from tests.lifecycle import error
from tests.zoo.prepare import Randomness, randomise_

C = 6


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


MAPS, ROWS = numbers(2, C, 5, 5), numbers(2, 5, C)


class Scale(nn.Module):
    """A LayerScale that no library knows, written to take the scaled value over or not."""

    def __init__(self, *shape: int, in_place: bool = False) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(shape))
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(self.factor) if self.in_place else x * self.factor


class Residual(nn.Module):
    """x + scaled(branch(x)), the scale a parameter of this very block."""

    def __init__(self, branch: nn.Module, *shape: int, view: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.branch, self.gamma, self.view = branch, nn.Parameter(torch.ones(shape)), view

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * (self.view(self.gamma) if self.view else self.gamma)


def folded(model: nn.Module, x: Tensor, *, positive: bool = False) -> tuple[nn.Module, dict[str, str]]:
    """The fused model, equal to the model with scales of both signs; a control without the scales differs."""
    randomise_(model.double().eval(), Randomness(0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.rpartition(".")[2] in ("factor", "gamma"):
                signs = torch.tensor([1.0 if positive else -1.0, 1.0]).repeat(parameter.numel())[: parameter.numel()]
                parameter.mul_(signs.view(parameter.shape))
    plain, report = sf.fold(model, fuse=True, example=x, check=False, report=True)
    bare = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in bare.named_parameters():
            if name.rpartition(".")[2] in ("factor", "gamma"):
                parameter.fill_(1.0)
        expected = model(x.clone())
        assert error(plain(x.clone()), expected) <= 1e-10
        assert error(bare(x.clone()), expected) > 1e-2
    return plain, {note.name: note.why for note in report.notes}


MODULES: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "convolution": (lambda: nn.Sequential(nn.Conv2d(C, C, 3), Scale(C, 1, 1)), MAPS),
    "in place": (lambda: nn.Sequential(nn.Conv2d(C, C, 3), Scale(C, 1, 1, in_place=True)), MAPS),
    "grouped, transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(C, C, 3, groups=2), Scale(1, C, 1, 1)), MAPS
    ),
    "linear": (lambda: nn.Sequential(nn.Linear(C, C, bias=False), Scale(C)), ROWS),
    "dropout between": (lambda: nn.Sequential(nn.Linear(C, C), nn.Dropout(0.5), Scale(C)), ROWS),
    "layer norm": (lambda: nn.Sequential(nn.LayerNorm(C), Scale(C)), ROWS),
    "batch norm": (lambda: nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), Scale(C, 1, 1)), MAPS),
    "two of them": (lambda: nn.Sequential(nn.Linear(C, C), Scale(C), Scale(1, 1, C)), ROWS),
    "one number": (lambda: nn.Sequential(nn.Conv2d(C, C, 1), Scale(1)), MAPS),
    "no dimension": (lambda: nn.Sequential(nn.Conv2d(C, C, 1), Scale()), MAPS),
    "average between": (lambda: nn.Sequential(nn.Conv2d(C, C, 1), nn.AvgPool2d(2), Scale(C, 1, 1)), MAPS),
    "in front": (lambda: nn.Sequential(nn.Tanh(), Scale(C, 1, 1), nn.Conv2d(C, 4, 3, padding=1)), MAPS),
    "in front, depthwise": (lambda: nn.Sequential(nn.Tanh(), Scale(C, 1, 1), nn.Conv2d(C, C, 3, groups=C)), MAPS),
}  # fmt: skip


class Cropped(nn.Module):
    """Windows: padded, computed on, cut back, as in Hiera's detector."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(C, C), Scale(C)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(self.linear(F.pad(x, (0, 0, 0, 3)))[:, : x.shape[1]])


MODULES["cut off"] = (Cropped, ROWS)
MODULES["norm without its activation"] = (
    lambda: nn.Sequential(timm.layers.LayerNormAct2d(C, apply_act=False), Scale(C, 1, 1)),
    MAPS,
)


@pytest.mark.parametrize("case", MODULES)
def test_a_module_that_only_scales_is_gone(case: str) -> None:
    build, x = MODULES[case]
    plain, why = folded(build(), x)
    assert not any(isinstance(module, Scale) for module in plain.modules())
    assert all("folded into" in reason or "merged into" in reason for reason in why.values())
    assert not any("factor" in key for key in plain.state_dict())
    again, report = sf.fold(plain, fuse=True, example=x, report=True)
    assert report.folded == ()
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in plain.state_dict().items())


def test_a_parameter_of_a_block_becomes_ones() -> None:
    model = Residual(nn.Sequential(nn.Conv2d(C, C, 3, padding=1)), C, view=lambda gamma: gamma.view(1, -1, 1, 1))
    plain, why = folded(model, MAPS)
    assert why == {"gamma": "folded into branch.0"}
    assert torch.equal(plain.gamma, torch.ones(C, dtype=torch.float64))
    assert plain.gamma.requires_grad
    assert not torch.equal(model.gamma, plain.gamma)


def test_a_rectifier_lets_only_positive_scales_pass() -> None:
    model = Residual(nn.Sequential(nn.Conv2d(C, C, 1), nn.ReLU()), C, 1, 1)
    plain, why = folded(copy.deepcopy(model), MAPS)
    assert "it has negative entries, and a rectifier or a maximum lies between" in why["gamma"]
    assert not torch.equal(plain.gamma, torch.ones_like(plain.gamma))
    plain, why = folded(model, MAPS, positive=True)
    assert why == {"gamma": "folded into branch.0"}


class Other(Residual):
    """The scaled value, or the scale itself, is used once more."""

    def __init__(self, how: str) -> None:
        super().__init__(nn.Linear(C, C), C)
        self.how, self.again = how, nn.Linear(C, C)
        if how == "tied":
            self.again.bias = self.gamma

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        if self.how == "used unscaled":
            return y * self.gamma + torch.tanh(y)
        if self.how == "used twice":
            return y * self.gamma + torch.tanh(self.again(x)) * self.gamma
        if self.how == "positions":
            return self.again((self.branch(x.transpose(1, 2)[..., :C]) * 1.0).transpose(1, 2)) * self.gamma
        if self.how == "nothing in front":
            return torch.tanh(x) * self.gamma + self.again(x)
        return self.again(torch.tanh(y * self.gamma))


@pytest.mark.filterwarnings("ignore:.again. did not run on the example:UserWarning")
@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("used unscaled", "is used unscaled, too, by 'tanh'"),
        ("used twice", "gamma is used 2 times"),
        ("tied", "gamma is tied to again.bias"),
        ("nothing in front", "'tanh' in the model itself does not commute"),
    ],
)
def test_what_stays_and_why(how: str, reason: str) -> None:
    model = Other(how)
    plain, why = folded(model, ROWS)
    assert reason in why["gamma"]
    assert torch.equal(plain.gamma, model.gamma)


class Tokens(nn.Module):
    """ResMLP's patch axis: a scale of the channels behind a linear layer over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.gamma = nn.Linear(5, 5), nn.Parameter(torch.ones(C))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.tokens(x.transpose(1, 2)).transpose(1, 2)


def test_a_scale_over_the_other_axis_is_left_and_says_so() -> None:
    _, why = folded(Tokens(), ROWS)
    assert re.search("not the channels .*'tokens'", why["gamma"])


def test_scales_that_are_not_finite_or_do_not_fit_stay() -> None:
    model = Residual(nn.Linear(C, C), C).double()
    with torch.no_grad():
        model.gamma[0] = float("inf")
    _, report = sf.fold(model, fuse=True, example=ROWS, check=False, report=True)
    assert report.left[0].why == "it is not finite"
    with torch.no_grad():
        model.gamma.fill_(60000.0)
        model.branch.weight.fill_(2.0)
    narrow = model.half()
    _, report = sf.fold(narrow, fuse=True, example=ROWS.half(), check=False, report=True)
    assert report.left[0].why == "the merged weight overflows torch.float16"


class OwnNorm(nn.Module):
    """A normalisation that has no rule, or a fixed standardisation of images; linear layers behind it."""

    def __init__(self, learned: bool) -> None:
        super().__init__()
        gain = 0.5 + torch.rand(C)
        self.gain, self.head = nn.Parameter(gain) if learned else nn.Buffer(gain), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        x = x * x.square().mean(-1, keepdim=True).rsqrt() if isinstance(self.gain, nn.Parameter) else x
        return self.head(x * self.gain)


@pytest.mark.parametrize("learned", [True, False])
def test_a_gain_that_would_stay_as_ones_is_not_moved_into_the_layers_behind(learned: bool) -> None:
    model = OwnNorm(learned).double()
    plain, report = sf.fold(model, fuse=True, example=ROWS, report=True)
    assert torch.equal(plain.gain, model.gain)
    assert torch.equal(plain.head.weight, model.head.weight)
    assert [note.name for note in report.left] == (["gain"] if learned else [])


def test_a_tied_layer_and_a_parametrized_one_take_no_scale() -> None:
    model = nn.Sequential(nn.Linear(C, C), Scale(C), nn.Tanh(), nn.Linear(C, C))
    model[3].weight = model[0].weight
    _, why = folded(model, ROWS)
    assert "tied to '3.weight'" in why["1"]
    model = nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(C, C)), Scale(C), nn.Tanh())
    _, why = folded(model, ROWS)
    assert "does not commute" in why["1"]


def test_hooks_flags_and_the_training_model_stay() -> None:
    seen: list[Tensor] = []
    model = nn.Sequential(nn.Linear(C, C), Scale(C)).double().train()
    randomise_(model, Randomness(0))
    model[1].register_forward_hook(lambda module, args, output: seen.append(output))
    expected = model(ROWS)
    plain = sf.fold(model, fuse=True, example=ROWS)
    seen.clear()
    assert error(plain(ROWS), expected) <= 1e-10
    assert len(seen) == 1
    assert plain[1].training
    assert isinstance(model[1], Scale)


@pytest.mark.parametrize(("dtype", "folds"), [(torch.float16, False), (torch.bfloat16, True), (torch.float32, True)])
def test_a_scale_too_small_for_the_dtype_stays(dtype: torch.dtype, folds: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(C, C), timm.layers.LayerScale(C, 1e-5)).to(dtype)
    plain, report = sf.fold(model, fuse=True, example=ROWS.to(dtype), check=False, report=True)
    assert report.notes[0].folded is folds
    if not folds:
        assert report.notes[0].why.startswith("the merged weight underflows torch.float16; behind it: ")
        assert torch.equal(plain[0].weight, model[0].weight)


def test_a_site_on_a_scale_stays_when_it_is_dynamic() -> None:
    model = nn.Sequential(nn.Conv2d(C, C, 1), timm.layers.LayerScale2d(C, 0.5)).double().eval()
    model = sf.attach(model, "eca", where="1", form="dynamic")
    plain = sf.fold(model, fuse=True, example=MAPS)
    assert error(plain(MAPS), model(MAPS)) <= 1e-10
    assert "1.base.gamma" in plain.state_dict()


def test_gates_and_scales_together() -> None:
    model = nn.Sequential(nn.Conv2d(C, C, 1), timm.layers.LayerScale2d(C, 0.5)).double().eval()
    gated = sf.attach(model, where=["0", "1"])
    plain = sf.fold(gated, fuse=True, example=MAPS)
    assert sorted(plain.state_dict()) == ["0.bias", "0.weight"]
    assert error(plain(MAPS), model(MAPS)) > 1e-2  # the control: the gates count


def library(name: str) -> tuple[nn.Module, Tensor]:
    if name == "torchvision":
        model: nn.Module = torchvision.models.convnext_tiny(num_classes=5)
        model.features = model.features[:2]
        model.avgpool, model.classifier = nn.AdaptiveAvgPool2d(1), nn.Flatten(1)
        return model, numbers(2, 3, 32, 32)
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    options = {"img_size": 32} if name.startswith(("beit", "vit", "cait")) else {}
    if not name.startswith(("convnext", "edgenext", "inception")):
        options["depth"] = 1
    return timm.create_model(name, num_classes=5, **options), numbers(
        2, 3, 32 if options else 64, 32 if options else 64
    )


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("torchvision", "layer_scale"),
        ("convnext_atto", "gamma"),
        ("inception_next_atto", "gamma"),
        ("edgenext_xx_small", "gamma"),
        ("beit_base_patch16_224", "gamma_1"),
        ("cait_xxs24_224", "gamma_1"),
        ("vit_tiny_patch16_dinov3_qkvb", "gamma_1"),
        ("xcit_nano_12_p16_224", "gamma3"),
    ],
)
def test_parameters_of_library_blocks(name: str, key: str) -> None:
    torch.manual_seed(0)
    model, x = library(name)
    if not any(path.endswith(key) for path, _ in model.named_parameters()):
        pytest.skip(f"this version's {name} has no {key}")
    randomise_(model.double().eval(), Randomness(0))
    plain, report = sf.fold(model, fuse=True, example=x, check=False, report=True)
    with torch.no_grad():
        assert error(plain(x), model(x)) <= 1e-10
    left = [path for path, tensor in plain.named_parameters() if path.endswith(key) and not bool((tensor == 1).all())]
    assert left == []
    assert any(note.name.endswith(key) for note in report.folded)
    if not name.startswith(("torchvision", "cait", "xcit")):  # their code multiplies whatever it is
        assert not any(path.endswith(key) for path, _ in plain.named_parameters())


def test_transformers_layer_scale() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    torch.manual_seed(0)
    model = transformers.Dinov2Model(config).double().eval()
    randomise_(model, Randomness(0))
    x = {"pixel_values": numbers(2, 3, 28, 28)}
    plain, report = sf.fold(model, fuse=True, example=x, report=True)
    assert [note.kind for note in report.folded] == ["Dinov2LayerScale"] * 4
    (left,) = report.left
    assert left.name == "embeddings.position_embeddings"
    assert left.why == "it differs along 2 axes: (1, 5, 16)"
    with torch.no_grad():
        assert error(plain(**x).last_hidden_state, model(**x).last_hidden_state) <= 1e-10
    assert not any("lambda1" in key for key in plain.state_dict())


def test_one_number_behind_a_convolution_of_a_functional_block() -> None:
    class Gained(nn.Module):
        """NFNet's skip-init gain."""

        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.gamma = nn.Conv2d(C, C, 3, padding=1), nn.Parameter(torch.tensor(0.3))

        def forward(self, x: Tensor) -> Tensor:
            return F.silu(x) + self.convolution(x).mul_(self.gamma)

    plain, why = folded(Gained(), MAPS)
    assert why == {"gamma": "folded into convolution"}
    assert plain.gamma.item() == 1.0
