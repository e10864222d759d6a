"""Gates that add: y = v (.) B(x) + a folds into the bias of B, or of what stands behind it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import stripefold as sf
from stripefold.errors import AttachError, FoldError, VerifyError
from stripefold.layers import rule as rules
from stripefold.layers.rule import Along, Rule
from stripefold.layers.rules_torch import maps, numel
from tests.lifecycle import (
    EXACT,
    SITES,
    TinyNet,
    assert_folds,
    assert_refused,
    error,
    images,
    prepared,
    scatter_,
    step_,
    tiny,
)

KEYS = list(tiny().state_dict())

LAYERS = {
    "BatchNorm1d": (lambda: nn.BatchNorm1d(12), (5, 12), 1),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(12), (4, 12, 5, 5), 1),
    "GroupNorm": (lambda: nn.GroupNorm(3, 12), (2, 12, 5, 5), 1),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(12, affine=True), (2, 12, 5, 5), 1),
    "LayerNorm": (lambda: nn.LayerNorm(12), (2, 5, 12), -1),
    "Linear": (lambda: nn.Linear(6, 12), (2, 5, 6), -1),
    "Conv1d": (lambda: nn.Conv1d(6, 12, 3, stride=2), (2, 6, 9), 1),
    "small map": (lambda: nn.Conv2d(6, 12, 3), (2, 6, 4, 4), 1),  # weight the larger side
    "large map": (lambda: nn.Conv2d(6, 12, 3), (3, 6, 16, 16), 1),  # output the larger side
    "grouped": (lambda: nn.Conv2d(6, 12, 3, groups=3, padding=1, padding_mode="reflect"), (2, 6, 8, 8), 1),
    "strided": (lambda: nn.Conv2d(6, 12, 3, stride=2, dilation=2), (2, 6, 12, 12), 1),
    "transposed": (lambda: nn.ConvTranspose2d(6, 12, 3, groups=2, stride=2), (2, 6, 4, 4), 1),
}
WITHOUT_BIAS = {
    "Linear": (lambda: nn.Linear(6, 12, bias=False), (2, 5, 6), -1),
    "Conv2d": (lambda: nn.Conv2d(6, 12, 3, groups=2, bias=False), (2, 6, 9, 9), 1),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(6, 12, 3, bias=False), (2, 6, 4, 4), 1),
    "LayerNorm": (lambda: nn.LayerNorm(12, bias=False), (2, 5, 12), -1),
}
ORDERS = {
    "added": [("gc", {})],
    "twice": [("gc", {"repeats": 2})],
    "scaled, then added": [("se", {"attention_options": {"reduction": 2}}), ("shift", {})],
    "added, then scaled": [("shift", {}), ("se", {"attention_options": {"reduction": 2}})],
}


def gated(layer: nn.Module, order: str) -> nn.Module:
    model: nn.Module = nn.Sequential(layer).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    for attention, options in ORDERS[order]:
        model = sf.attach(model, attention, where="0", **options)
    return scatter_(model)


def on_axis(a: Tensor, output: Tensor, axis: int) -> Tensor:
    return a if axis == -1 else a.reshape(-1, *(1,) * (output.dim() - 2))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", LAYERS)
def test_values_and_gradients_are_those_of_the_formula(case: str, order: str, training: bool) -> None:
    """Whatever was attached first: the scale comes first, what is added last."""
    build, shape, axis = LAYERS[case]
    torch.manual_seed(0)
    model = gated(build(), order).train(training)
    site, x = model[0], torch.randn(shape, dtype=torch.float64)
    results = []
    for by_hand in (False, True):
        inputs = x.clone().requires_grad_()
        if by_hand:
            output = site.base(inputs)
            v = site.scale()
            output = output if v is None else output * on_axis(v, output, axis)
            output = output + on_axis(site.shift(), output, axis)
        else:
            output = model(inputs)
        model.zero_grad()
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        (output * weights).sum().backward()
        results.append((output, inputs.grad, [p.grad.clone() for p in model.parameters()]))
    (ours, ours_x, ours_p), (theirs, theirs_x, theirs_p) = results
    assert error(ours, theirs) <= 1e-12
    assert error(ours_x, theirs_x) <= 1e-12
    largest = max(float(gradient.abs().max()) for gradient in theirs_p)
    for mine, its in zip(ours_p, theirs_p, strict=True):
        assert float((mine - its).abs().max()) <= 1e-12 * max(float(its.abs().max()), 1e-3 * largest)
    assert error(sf.detach(model)(x), theirs) > 1e-2


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", LAYERS)
def test_folds_into_the_bias(case: str, order: str) -> None:
    build, shape, _ = LAYERS[case]
    torch.manual_seed(0)
    model, x = gated(build(), order), torch.randn(shape, dtype=torch.float64)
    prepared(model, x)
    plain = assert_folds(model, x, keys=list(nn.Sequential(build()).state_dict()))
    assert torch.equal(sf.fold(plain, check=False).eval()(x), plain.eval()(x))
    assert sf.fold(model, example=x, report=True)[1].notes[0].kind == {
        "added": "gc", "twice": "gc + gc", "scaled, then added": "se + shift", "added, then scaled": "se + shift"
    }[order]  # fmt: skip


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", WITHOUT_BIAS)
def test_a_layer_without_bias_gets_one_and_the_fold_says_so(case: str, order: str) -> None:
    build, shape, _ = WITHOUT_BIAS[case]
    torch.manual_seed(0)
    model, x = gated(build(), order).eval(), torch.randn(shape, dtype=torch.float64)
    assert error(model[0].bias, model[0].shift()) <= 1e-15  # the effective bias is seen
    with pytest.warns(UserWarning, match=r"1 folded layers have a bias that the stock ones do not have.*: 0\.bias\."):
        plain, report = sf.fold(model, example=x, report=True)
    assert error(plain(x), model(x)) <= EXACT
    assert error(sf.detach(model)(x), plain(x)) > 1e-2
    assert report.new_keys == ("0.bias",)
    assert "new key '0.bias'" in report.notes[0].why
    assert plain[0].bias.dtype == torch.float64
    with pytest.warns(UserWarning, match="have a bias"):
        assert sf.fold(model.bfloat16(), check=False)[0].bias.dtype == torch.bfloat16


class Behind(TinyNet):
    """A convolution without bias, a BatchNorm right behind it."""

    def __init__(self) -> None:
        super().__init__()
        pair, first = nn.Module(), self.blocks[0]
        pair.conv1, pair.bn1 = first.conv1, first.bn1
        self.blocks = nn.ModuleList([pair])

    def forward(self, x: Tensor) -> Tensor:
        block = self.blocks[0]
        return self.head(torch.relu(block.bn1(block.conv1(self.stem(x)))).mean((2, 3)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.filterwarnings("ignore:the gate on .* has no effect")
def test_a_batchnorm_behind_takes_what_is_added(dtype: torch.dtype) -> None:
    """In eval mode: b goes from its input into its running mean, so that the keys stay."""
    torch.manual_seed(0)
    backbone = prepared(Behind().double(), images(8))
    model = scatter_(sf.attach(backbone, "shift", where="blocks.0.conv1")).to(dtype).eval()
    with torch.no_grad():
        model.blocks[0].conv1.gates[0].psi.mul_(3)
    plain, report = sf.fold(model, report=True)
    assert list(plain.state_dict()) == list(backbone.state_dict())
    assert "running mean of blocks.0.bn1" in report.notes[0].why
    assert report.new_keys == ()
    mean, a = backbone.to(dtype).blocks[0].bn1.running_mean, sf.shifts(model, torch.float64)["blocks.0.conv1"]
    assert torch.equal(plain.blocks[0].bn1.running_mean, (mean.double() - a).to(dtype))
    if dtype == torch.float64:
        assert sf.verify(model, plain, images()).error <= EXACT
        with pytest.raises(VerifyError, match="NOT equivalent"):
            sf.verify(model, sf.detach(model), images())


def test_a_batchnorm_over_another_axis_takes_nothing() -> None:
    """A linear layer's channels come last, those of BatchNorm1d second: equal in number, not the same."""
    torch.manual_seed(0)
    x = torch.randn(4, 8, 8, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = sf.attach(nn.Sequential(nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8)).double(), "shift", where="0")
        plain, report = sf.fold(scatter_(model).eval(), example=x, report=True)
    assert "what is shifted are not the channels at the input of '1'" in report.notes[0].why
    assert error(plain(x), model(x)) <= EXACT < error(sf.detach(model)(x), model(x))
    by_sample, report = sf.fold(model, example=x[:, 0], report=True)
    assert report.new_keys == ()  # (N, C): here they are the same
    assert error(by_sample(x[:, 0]), model(x[:, 0])) <= EXACT


def test_a_batchnorm_behind_takes_it_away_while_training() -> None:
    model = Behind()
    with pytest.warns(UserWarning, match=r"'blocks\.0\.bn1' right behind it normalises what it adds away"):
        sf.attach(model, "shift", where="blocks.0.conv1")
    with pytest.warns(UserWarning, match=r"'blocks\.0\.bn1' right behind it normalises its scale away"):
        sf.attach(model, "se", where="blocks.0.conv1")


class Rectified(TinyNet):
    """A ReLU between: a positive scale is normalised away, what is added is not."""

    def forward(self, x: Tensor) -> Tensor:
        block = self.blocks[0]
        return self.head(block.bn1(torch.relu(self.stem(x))).mean((2, 3)))


def test_behind_a_relu_what_is_added_stays() -> None:
    with pytest.warns(UserWarning, match="normalises its scale away"):
        sf.attach(Rectified(), "se", where="stem")
    sf.attach(Rectified(), "shift", where="stem")  # no warning: they are errors here


def test_a_scale_and_a_shift_round_once() -> None:
    model = scatter_(sf.attach(sf.attach(tiny(), "se"), "gc")).bfloat16()
    site = model.blocks[0].bn2
    exact = site.scale(torch.float64) * site.base.bias.double() + site.shift(torch.float64)
    assert torch.equal(sf.fold(model, check=False).blocks[0].bn2.bias, exact.to(torch.bfloat16))
    assert sf.verify(model, sf.fold(model, check=False), images(dtype=torch.bfloat16)).passed


def test_identity_start_of_what_is_added() -> None:
    backbone = tiny()
    model = sf.attach(backbone, "shift", psi=0.7, init="identity")
    assert torch.equal(model(images()), backbone(images()))
    assert all(bool((a == 0).all()) for a in sf.shifts(model).values())
    with torch.no_grad():
        model.blocks[0].bn2.gates[0].psi.add_(1)
    assert bool((sf.shifts(model)[SITES[0]] == 1).all())


def test_what_the_gates_give() -> None:
    model = sf.attach(sf.attach(tiny(), "shift", psi=0.5), "scale", where=SITES[0], psi=3.0)
    assert list(sf.shifts(model)) == SITES
    assert list(sf.scales(model)) == SITES[:1]
    assert bool((sf.shifts(model)[SITES[1]] == 0.5).all())
    assert sf.shifts(model, torch.float32)[SITES[0]].dtype == torch.float32
    assert sf.sites(model, SITES)[0].gates == "shift + scale"


@pytest.mark.parametrize("first", ["static", "dynamic"])
def test_beside_dynamic_attention(first: str) -> None:
    calls = {"static": ("shift", {}), "dynamic": ("se", {"form": "dynamic"})}
    model = tiny()
    for attention, options in sorted(calls.values(), key=lambda call: (call[0] == "se") == (first == "static")):
        model = sf.attach(model, attention, **options)
    model = scatter_(model).eval()
    site, x = model.blocks[0].bn2, torch.randn(2, 8, 6, 6, dtype=torch.float64)
    dynamic = site.dynamic_gates[0]
    assert error(site(x), dynamic(site.base(x) + site.shift().reshape(8, 1, 1))) <= 1e-12
    plain, report = sf.fold(model, report=True)
    assert error(plain(images()), model(images())) <= EXACT
    assert [note.folded for note in report.notes[:2]] == [True, False]


def test_dynamic_global_context_adds_to_every_position() -> None:
    model = scatter_(sf.attach(tiny(), "gc", form="dynamic")).eval()
    site, x = model.blocks[0].bn2, torch.randn(2, 8, 6, 6, dtype=torch.float64)
    added = (site(x) - site.base(x)).detach()
    assert error(added, added[:, :, :1, :1].expand_as(added)) <= 1e-12
    assert float((added[0] - added[1]).abs().max()) > 1e-3  # it depends on the image


@pytest.mark.parametrize("bias", [True, False])
def test_multihead_attention_reads_the_bias_without_calling(bias: bool) -> None:
    torch.manual_seed(0)
    backbone = nn.MultiheadAttention(8, 2, bias=bias, batch_first=True).double().eval()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    model = scatter_(sf.attach(sf.attach(backbone, "se", where="out_proj"), "shift", where="out_proj"))
    weight, own = backbone.out_proj.weight, backbone.out_proj.bias
    v, a = sf.scales(model)["out_proj"], sf.shifts(model)["out_proj"]
    with torch.no_grad():
        inner = backbone(x, x, x)[0]
        mixed = torch.linalg.solve(weight, (inner - (0 if own is None else own)).flatten(0, 1).t()).t()
        expected = (mixed @ weight.t() + (0 if own is None else own)) * v + a
        assert error(model(x, x, x)[0].flatten(0, 1), expected) <= 1e-10
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = sf.fold(model, check=False)
    assert error(plain(x, x, x)[0], model(x, x, x)[0]) <= EXACT


def test_on_a_branch_block() -> None:
    torch.manual_seed(0)
    model = sf.branch(tiny(), "acnet", where="blocks.0.conv1")
    with pytest.warns(UserWarning, match="normalises what it adds away"):
        model = sf.attach(model, "shift", where="blocks.0.conv1")
    model = scatter_(prepared(model, images(8))).eval()
    plain = sf.fold(model, example=images())
    assert list(plain.state_dict()) == KEYS
    assert error(plain(images()), model(images())) <= EXACT


@pytest.mark.parametrize("beside", [None, "se"])
def test_inside_a_branch_block_only_the_normalisations_add(beside: str | None) -> None:
    model = sf.branch(tiny(), "repvgg", where="blocks.0.conv1")
    inside = "blocks.0.conv1.branches.main"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = model if beside is None else sf.attach(model, beside, where=f"{inside}.*")
        with pytest.raises(AttachError, match="what is added inside the branch block 'blocks.0.conv1' would be lost"):
            sf.attach(model, "shift", where=f"{inside}.conv")
        model = sf.attach(model, "shift", where=f"{inside}.bn")
    model = scatter_(prepared(model, images(8))).eval()
    plain = sf.fold(model, example=images())
    control = sf.fold(sf.attach(sf.detach(model), "shift", where=f"{inside}.bn"), example=images())
    assert list(plain.state_dict()) == KEYS
    assert error(plain(images()), model(images())) <= EXACT < error(control(images()), model(images()))


@pytest.mark.parametrize("attention", ["gc", "shift"])
def test_adapters_keep_scales_and_shifts(attention: str, tmp_path: Path) -> None:
    backbone = tiny().eval()
    model = sf.attach(sf.attach(backbone, attention, repeats=2), "se", where=SITES)
    model = scatter_(sf.attach(model, "ie", where="head")).eval()
    sf.save_adapter(model, tmp_path / "adapter")
    other = sf.load_adapter(backbone, tmp_path / "adapter").eval()
    assert error(other(images()), model(images())) == 0
    assert list(other.state_dict()) == list(model.state_dict())
    assert error(backbone(images()), model(images())) > 1e-3
    assert_folds(step_(other, images()), images(), keys=KEYS)


REFUSED = {
    "no bias at all": (lambda: nn.Sequential(nn.Linear(4, 4), nn.RMSNorm(4)), "1", "no place for a bias, so that"),
    "a second one": (lambda: sf.attach(nn.Sequential(nn.Linear(4, 4)), "gc", where="0"), "0", r"static gate \(gc\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    build, where, message = REFUSED[case]
    model = build()
    assert_refused(model, lambda: sf.attach_(model, "shift", where=where), AttachError, message)


class Shifty(nn.Linear):
    """Scales as its parent does, but its bias is used twice."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input) + self.bias


def test_a_bias_that_does_not_simply_add_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from stripefold.layers import rule

    monkeypatch.setattr(rule, "_rules", dict(rule.known_rules()))
    sf.register_rule(Shifty, like=nn.Linear)
    model = nn.Sequential(Shifty(4, 4))
    sf.attach(model, "se", where="0")  # a scale is exact
    with pytest.raises(AttachError, match="adding to its bias is not adding to its output"):
        sf.attach(model, "shift", where="0")


def test_what_is_added_is_not_finite() -> None:
    model = sf.attach(tiny(), "shift")
    with torch.no_grad():
        model.blocks[1].bn2.gates[0].psi[3] = float("inf")
    message = rf"the gate on '{SITES[1]}': its shift is not finite in 1 of 8 channels \(first: 3\)"
    assert_refused(model, lambda: sf.fold_(model, check=False), FoldError, message)


@pytest.mark.parametrize("bias", [True, False])
def test_what_is_added_overflows(bias: bool) -> None:
    model = sf.attach(sf.attach(nn.Sequential(nn.Linear(4, 4, bias=bias)), "shift", where="0"), "scale", where="0")
    model = model.half()
    with torch.no_grad():
        for gate in model[0].gates:
            gate.psi.fill_(60000 if gate.adds else 1)
        for _ in range(3):
            model[0].gates.append(model[0].gates[0])  # the sum is what does not fit
    message = r"the gate on '0': bias overflows torch.float16 \(largest scale 2.4e\+05\)"
    assert_refused(model, lambda: sf.fold_(model, check=False), FoldError, message)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tracers() -> None:
    model = scatter_(sf.attach(sf.attach(tiny(), "se"), "gc")).eval()
    expected = model(images())
    assert error(torch.jit.trace(model, images())(images()), expected) <= 1e-12
    assert error(torch.export.export(model, (images(),)).module()(images()), expected) <= 1e-12
    assert error(torch.fx.symbolic_trace(model)(images()), expected) <= 1e-12


@pytest.mark.parametrize("behind", [False, True], ids=["alone", "a BatchNorm behind"])
@pytest.mark.filterwarnings("ignore:the gate on .* has no effect")
def test_beside_dynamic_attention_a_new_bias_stays_with_its_layer(behind: bool) -> None:
    layers = [nn.Conv2d(3, 4, 1, bias=False), *([nn.BatchNorm2d(4)] if behind else [])]
    model = sf.attach(nn.Sequential(*layers).double(), "se", form="dynamic", where="0", example=images())
    model = scatter_(sf.attach(model, "shift", where="0", example=images())).eval()
    with pytest.warns(UserWarning, match=r"have a bias .*: 0\.base\.bias\."):
        plain, report = sf.fold(model, example=images(), report=True)
    assert error(plain(images()), model(images())) <= EXACT
    assert "the dynamic attention on '0' stands behind it" in report.notes[0].why


class Offset(nn.Module):
    """A gain and an offset of every channel, under names of its own; built without the offset."""

    def __init__(self, channels: int, *, offset: bool = False) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.rand(channels) + 0.5)
        self.register_parameter("beta", nn.Parameter(torch.rand(channels)) if offset else None)

    def forward(self, x: Tensor) -> Tensor:
        y = self.alpha.view(-1, 1, 1) * x
        return y if self.beta is None else y + self.beta.view(-1, 1, 1)


class Inner(nn.Module):
    """The layer is a part of another one, so that its key has a path."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Offset(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)


OFFSET = Rule(
    key="Offset", norm=False, axis=1, channels=numel("alpha"), output={"alpha": Along(0), "beta": Along(0)},
    required="alpha", example=maps(numel("alpha"), 2, 3),
)  # fmt: skip


@pytest.mark.parametrize(
    ("make", "where", "new_keys"),
    [
        (lambda: nn.Sequential(Offset(6), nn.Tanh()), "0", ("0.beta",)),
        (lambda: nn.Sequential(Inner(), nn.Tanh()), "0.part", ("0.part.beta",)),
        (lambda: nn.Sequential(Offset(6), nn.BatchNorm2d(6)), "0", ()),
        (lambda: nn.Sequential(Offset(6, offset=True), nn.BatchNorm2d(6)), "0", ()),
        (lambda: Offset(6), "", ("beta",)),
    ],
    ids=["stays", "inside", "a BatchNorm takes it", "has one", "the model itself"],
)
@pytest.mark.filterwarnings("ignore:the gate on .* has no effect", "ignore:.* folded layers have a bias")
@pytest.mark.parametrize("given", [True, False], ids=["example", "no example"])
def test_a_bias_under_another_name(
    make: Callable[[], nn.Module], where: str, new_keys: tuple[str, ...], given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A taught layer gains the tensor that its own rule names."""
    monkeypatch.setattr(rules, "_rules", dict(rules.known_rules()))
    sf.register_rule(Offset, rule=OFFSET)
    torch.manual_seed(0)
    x = torch.randn(3, 6, 4, 4, dtype=torch.float64)
    model = scatter_(sf.attach(make().double(), "shift", where=where)).eval()
    plain, report = sf.fold(model, example=x if given else None, check=given, report=True)
    if given:
        assert report.new_keys == new_keys
    assert error(plain(x), model(x)) <= EXACT < error(sf.detach(model)(x), model(x))
