"""Gates over positions: they fold exactly where positions meet a linear map, at one resolution."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import stripefold as sf
from stripefold.asr.position_site import InputSite, PoolSite
from stripefold.asr.site import Site
from stripefold.errors import AdapterError, AttachError, FoldError, ResolutionError, VerifyError
from tests.asr.position_nets import NETS, POOLS, Adaptive, ByHand, LeNet, Mixer, Pooled, Stem, built, gated, pictures
from tests.lifecycle import EXACT, assert_folds, assert_refused, error, scatter_, snapshot, step_

ALL = {**NETS, **POOLS}
GATES = {
    "spatial": ("spatial", {}),
    "spatial-k3-tanh": ("spatial", {"attention_options": {"kernel_size": 3, "gate": "one_plus_tanh"}}),
    "repeats": ("spatial", {"repeats": 2}),
    "position": ("position", {}),
}


def scale_at(model: nn.Module, name: str) -> Tensor:
    scale = model.get_submodule(name).scale()
    assert scale is not None
    return scale


def by_hand(model: nn.Module, name: str, grid: tuple[int, ...], kind: str) -> nn.Module:
    """The detached network with the same gate, the product taken where the algebra says."""
    other = sf.detach(model)
    parent, _, key = name.rpartition(".")

    def scale() -> Tensor:
        s = scale_at(model, name)
        if kind in ("lenet", "lenet without bias", "vgg"):
            return s.repeat(6)
        if kind == "channels last":
            return s.repeat_interleave(6)
        if kind == "conv":
            return s.unsqueeze(-1)
        return s.reshape(grid) if kind in POOLS else s

    behind = kind in ("mlp", "linear", "linear without bias", "conv")
    setattr(other.get_submodule(parent), key, ByHand(other.get_submodule(name), scale, behind=behind))
    return other


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("case", NETS)
def test_folds_and_the_keys_stay(case: str, gate: str) -> None:
    build, name, grid = NETS[case]
    attention, options = GATES[gate]
    model = gated(build, attention, **options).eval()
    assert list(sf.scales(model)) == [name]
    assert model.get_submodule(name).gates[0].attention.grid == grid
    plain = assert_folds(model, pictures(), keys=list(build().state_dict()), dependence=1e-3)
    assert error(sf.fold(plain, example=pictures())(pictures()), plain(pictures())) == 0


@pytest.mark.parametrize("gate", ["spatial", "position"])
@pytest.mark.parametrize("case", POOLS)
def test_a_pooling_folds_into_a_convolution(case: str, gate: str) -> None:
    build, name, grid = POOLS[case]
    if case == "three axes" and gate == "spatial":
        with pytest.raises(AttachError, match=r"takes maps of H x W, not \(3, 12, 12\): use 'position'"):
            gated(build, gate)
        return
    model = gated(build, gate).eval()
    plain, report = sf.fold(model, fuse=True, example=pictures(), report=True)
    assert error(plain(pictures()), model(pictures())) <= EXACT
    with pytest.raises(VerifyError, match="NOT equivalent"):
        sf.verify(model, sf.detach(model), pictures())
    kernel = plain.get_submodule(f"{name}.weights")
    assert tuple(kernel.kernel_size) == grid
    note = next(note for note in report.notes if note.name == name)
    assert note.folded
    assert f"new key '{name}.weights.weight'" in note.why
    assert "at this resolution only" in str(report)
    assert error(sf.fold(plain, fuse=True, example=pictures())(pictures()), plain(pictures())) <= EXACT


@pytest.mark.parametrize("case", POOLS)
def test_without_fuse_a_pooling_is_refused_before_anything_changes(case: str) -> None:
    build, name, _ = POOLS[case]
    model = gated(build, "position")
    message = rf"cannot fold the gate on '{name}' and keep the backbone's keys: .*'{name}\.weights\.weight'.*fuse=True"
    assert_refused(model, lambda: sf.fold_(model, example=pictures(), check=False), FoldError, message)
    with pytest.raises(FoldError, match=message):
        sf.fold(model, example=pictures())


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("case", ALL)
def test_values_and_gradients_are_those_of_the_product_on_the_map(case: str, training: bool) -> None:
    build, name, grid = ALL[case]
    model = gated(build, "position" if case == "three axes" else "spatial", repeats=2).train(training)
    reference = by_hand(model, name, grid, case).train(training)
    outputs, inputs = [], []
    gates = [parameter for key, parameter in model.named_parameters() if ".gates." in f".{key}"]
    gradients = []
    for network in (model, reference):
        torch.manual_seed(7)  # dropout
        inputs.append(pictures().requires_grad_())
        outputs.append(network(inputs[-1]))
        model.zero_grad()
        outputs[-1].square().sum().backward()
        gradients.append([gate.grad.clone() for gate in gates])
    assert error(outputs[0], outputs[1]) <= 1e-12
    assert error(inputs[0].grad, inputs[1].grad) <= 1e-12
    largest = max(float(gradient.abs().max()) for gradient in gradients[1])
    assert largest > 1e-6
    for ours, theirs in zip(*gradients, strict=True):
        assert float((ours - theirs).abs().max()) <= 1e-12 * largest
    torch.manual_seed(7)
    assert error(sf.detach(model).train(training)(pictures()), outputs[1]) > 1e-3  # the control


@pytest.mark.parametrize("case", ["lenet", "channels last", "adaptive"])
def test_a_scale_of_each_channels_positions(case: str) -> None:
    build, name, grid = ALL[case]
    options = {"attention_options": {"per_channel": True}}
    model = gated(build, "position", **options).eval()
    channels = 8 if case == "adaptive" else 6
    assert tuple(sf.scales(model)[name].shape) == (channels, 16)
    assert tuple(model.get_submodule(name).gates[0].psi.shape) == (channels, *grid)
    plain = sf.fold(model, fuse=case in POOLS, example=pictures())
    assert error(plain(pictures()), model(pictures())) <= EXACT
    assert error(sf.detach(model)(pictures()), plain(pictures())) > 1e-3
    flat = sf.attach(built(build), "position", where="positions", example=pictures(), attention_options={})
    with torch.no_grad():
        flat.get_submodule(name).gates[0].psi.copy_(model.get_submodule(name).gates[0].psi.mean(0))
    assert error(flat.eval()(pictures()), plain(pictures())) > 1e-3  # the channels do matter


def test_per_channel_does_not_fold_into_token_mixing() -> None:
    with pytest.raises(AttachError, match="'mix.2': it mixes the positions of every channel alike"):
        gated(Mixer, "position", attention_options={"per_channel": True})


def test_identity_start_computes_the_same() -> None:
    for build in (LeNet, Pooled, Mixer):
        backbone = built(build).eval()
        for attention in ("spatial", "position"):
            model = sf.attach(backbone, attention, where="positions", init="identity", example=pictures())
            assert torch.equal(model(pictures()), backbone(pictures()))


def test_training_moves_the_gate_and_it_still_folds() -> None:
    model = sf.attach(built(LeNet), "spatial", where="positions", example=pictures())
    _, report = sf.fold(model, example=pictures(), report=True)
    assert report.unmoved == ("fc1",)
    step_(model, pictures(), steps=2)
    _, report = sf.fold(model, example=pictures(), report=True)
    assert report.unmoved == ()
    assert_folds(model, pictures())


# Another resolution.


def test_a_pooling_refuses_another_resolution_unfolded_and_folded() -> None:
    model = gated(Pooled).eval()
    plain = sf.fold(model, fuse=True, example=pictures())
    for side, size in ((15, 5), (9, 3)):
        with pytest.raises(ResolutionError, match=rf"'pool' was attached.* 4x4 positions, but found .*{size}x{size}"):
            model(pictures(side=side))
        with pytest.raises(RuntimeError, match=rf"Provided sizes \[4\] don't multiply .*dim 2 \({size}\)"):
            plain(pictures(side=side))
    wide = torch.randn(2, 3, 6, 24, dtype=torch.float64)  # as many positions, elsewhere
    with pytest.raises(ResolutionError, match="found a map of 2x8 positions"):
        model(wide)
    with pytest.raises(RuntimeError, match=r"dim 2 \(2\)"):
        plain(wide)
    assert sf.detach(model)(wide).shape == (2, 4)  # the control: the plain network takes any


def test_a_linear_layer_refuses_another_resolution() -> None:
    model = gated(LeNet).eval()
    with pytest.raises(ResolutionError, match=r"'fc1' .* 4x4 positions, but found 54 features .* 96 .*, 9 positions"):
        model(pictures(side=9))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        sf.fold(model, example=pictures())(pictures(side=9))


def test_behind_an_adaptive_pooling_every_resolution_is_the_trained_one() -> None:
    model = gated(Adaptive).eval()
    plain = sf.fold(model, example=pictures())
    for side in (12, 15, 24):
        assert error(plain(pictures(side=side)), model(pictures(side=side))) <= EXACT


def test_token_mixing_refuses_by_itself() -> None:
    model = gated(Mixer).eval()
    for network in (model, sf.fold(model, example=pictures())):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            network(pictures(side=15))


# Choosing.


def test_sites_lists_the_places() -> None:
    model = built(LeNet)
    before = snapshot(model)
    table = sf.sites(model, "positions", example=pictures())
    assert snapshot(model) == before
    row = table[0]
    assert (row.name, row.layer, row.channels, row.why) == ("fc1", "Linear", 16, "linear on 4x4 flattened positions")
    assert sf.sites(gated(Mixer), "positions", example=pictures())[0].gates == "spatial"


def test_sites_of_a_model_that_has_them() -> None:
    for build, name in ((LeNet, "fc1"), (Pooled, "pool")):
        table = sf.sites(gated(build), "positions", example=pictures())
        assert table.names == []
        assert table.refused[0].name == name
        assert "already has a gate over positions" in table.refused[0].why


@pytest.mark.parametrize("where", ["fc1", ["fc*"], lambda name, module: isinstance(module, nn.Linear), {"fc1": {}}])
def test_every_way_of_where(where: object) -> None:
    assert list(sf.scales(gated(LeNet, where=where))) == ["fc1"]


def test_channels_and_positions_in_one_call() -> None:
    where = {"stem.1": {"attention": "se"}, "fc1": {"attention": "spatial", "repeats": 2}}
    model = gated(LeNet, where=where)
    assert [(name, len(site.gates)) for name, site in model.named_modules() if isinstance(site, (Site, InputSite))] == [
        ("stem.1", 1),
        ("fc1", 2),
    ]
    assert_folds(model, pictures(), keys=list(LeNet().state_dict()), dependence=1e-3)


@pytest.mark.parametrize("channels_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_gates_on_both_sides_of_one_layer(channels_first: bool, bias: bool) -> None:
    """y = v (.) L(s (.) x) + a, in whichever order the three were attached."""
    model = built(lambda: LeNet(bias=bias))
    calls = [("se", "fc1", None), ("shift", "fc1", None), ("spatial", "positions", pictures())]
    for attention, where, example in calls if channels_first else reversed(calls):
        if not channels_first and where == "fc1":
            where = "fc1.base"
        model = sf.attach(model, attention, where=where, example=example)
    scatter_(model)
    assert type(model.fc1) is InputSite
    assert type(model.fc1.base) is Site
    x = model.stem(pictures()).flatten(1)
    inner, base = model.fc1.base, model.fc1.base.base
    expected = inner.scale() * base(x * model.fc1.scale().repeat(6)) + inner.shift()
    assert error(model.fc1(x), expected) <= 1e-12
    if bias:
        assert_folds(model, pictures(), keys=list(LeNet().state_dict()), dependence=1e-3)
    else:
        with pytest.warns(UserWarning, match=r"1 folded layers have a bias .*: fc1\.bias"):
            plain = sf.fold(model, example=pictures())
        assert sf.verify(model, plain, pictures()).error <= EXACT
    bare = sf.detach(model)
    assert not any(isinstance(module, (Site, InputSite)) for module in bare.modules())
    assert list(bare.state_dict()) == list(LeNet(bias=bias).state_dict())


def test_the_effective_weight_is_seen() -> None:
    model = gated(LeNet)
    assert error(model.fc1.weight, model.fc1.base.weight * model.fc1.scale().repeat(6)) <= 1e-15
    assert model.fc1.bias is model.fc1.base.bias
    assert model.fc1.in_features == 96
    with pytest.raises(AttachError, match="that tensor is computed"):
        model.fc1.weight.mul_(2)


REFUSED = {
    "a channel attention": (LeNet, {"attention": "se", "where": "positions"}, "static 'se' is none of them"),
    "a dynamic one": (
        LeNet, {"form": "dynamic", "where": "positions"}, "are for static|for static gates over positions"
    ),
    "residual": (LeNet, {"where": "residual"}, "say where='positions'"),
    "norm": (LeNet, {"where": "norm"}, "chooses layers for gates on their channels"),
    "a convolution": (LeNet, {"where": "stem.0"}, "'stem.0' names nothing that can hold a weight .* are 'fc1'"),
    "hidden features": (Mixer, {"where": "mix.0"}, "'mix.0' names nothing that can hold .* are 'mix.2'"),
    "a misspelling": (LeNet, {"where": "fc11"}, "matches no module. Did you mean 'fc1'.*are 'fc1'"),
    "a type": (LeNet, {"where": 7}, "where=7: give"),
    "no options": (LeNet, {"where": {"fc1": 3}}, r"where\['fc1'\] = 3: expected a mapping of options"),
    "no glob": (LeNet, {"where": {3: {}}}, r"where\[3\] = {}: expected a mapping of options"),
    "another grid": (LeNet, {"attention_options": {"grid": (3, 5)}}, r"grid=\(3, 5\) does not give the 4x4 positions"),
    "no grid": (LeNet, {"attention_options": {"grid": "all"}}, "grid='all' does not give the 4x4 positions"),
    "both at once": (
        Mixer, {"where": {"mix.2": {"attention": "se"}, "mix.*": {"attention": "spatial"}}},
        "channels and for one over the positions of 'mix.2'",
    ),
    "nothing there": (Stem, {}, "finds nothing in this model that can hold a weight for each position"),
    "psi of another shape": (LeNet, {"psi": torch.ones(3)}, r"takes a descriptor of shape \(2, 4, 4\)"),
    "at its zero": (LeNet, {"attention": "position", "psi": 0.0, "init": "identity"}, "divides by the starting scale"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    build, options, message = REFUSED[case]
    model = built(build)
    call = {"attention": "spatial", "where": "positions", "example": pictures()} | options
    assert_refused(model, lambda: sf.attach_(model, **call), AttachError, message)


def test_another_grid_of_as_many_positions() -> None:
    model = gated(Mixer, attention_options={"grid": (2, 8)})
    assert model.mix[2].gates[0].attention.grid == (2, 8)
    assert_folds(model, pictures(), dependence=1e-3)


def test_an_example_is_needed() -> None:
    with pytest.raises(AttachError, match="a gate over positions is for one resolution: give example="):
        sf.attach(built(LeNet), "spatial", where="positions")


def test_twice() -> None:
    with pytest.raises(AttachError, match="already has a gate over positions: use repeats="):
        sf.attach(gated(LeNet), "spatial", where="positions", example=pictures())
    with pytest.raises(AttachError, match="'mix.2' already has a static gate"):
        sf.attach(gated(Mixer), "position", where="positions", example=pictures())


class Functional(Pooled):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bn(self.conv(self.stem(x))).mean((2, 3)))


class Squeezed(Pooled):
    """The pooled value is a gate: what it pools is used beside it."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(self.stem(x)))
        return self.head((x * torch.sigmoid(self.pool(x))).amax((2, 3)))


class Twice(Pooled):
    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(self.stem(x)))
        return self.head((self.pool(x) + self.pool(x.tanh())).flatten(1))


class Scaled(nn.Module):
    """Looks like a mean to a trace."""

    def __init__(self) -> None:
        super().__init__()
        self.window = 3

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : self.window].mean((2, 3))


def test_a_mean_in_the_forward_has_no_place_for_weights() -> None:
    model = built(Functional)
    table = sf.sites(model, "positions", example=pictures())
    assert table.names == []
    assert "'mean' is called in the forward of the model" in table.refused[0].why
    with pytest.raises(AttachError, match=r"cannot be sites:\n.*pool with nn.AdaptiveAvgPool2d\(1\) there"):
        sf.attach(model, "spatial", where="positions", example=pictures())


def test_channels_last_means_have_no_place() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    model.forward = lambda x: nn.Sequential.forward(model, x.movedim(1, -1)).mean((1, 2))  # type: ignore[method-assign]
    table = sf.sites(model, "positions", example=pictures().float())
    assert "averages a map whose channels come last" in table.refused[0].why


def test_an_attentions_squeeze_is_gated_only_by_name() -> None:
    model = built(Squeezed)
    table = sf.sites(model, "positions", example=pictures())
    assert table.names == []
    assert "has other users as well" in table.refused[0].why
    named = scatter_(sf.attach(model, "spatial", where="pool", example=pictures())).eval()
    plain = sf.fold(named, fuse=True, example=pictures())
    assert error(plain(pictures()), named(pictures())) <= EXACT


def test_a_pooling_called_twice_is_no_place() -> None:
    assert sf.sites(built(Twice), "positions", example=pictures()).names == []


def test_what_is_no_mean_after_all_is_refused() -> None:
    with pytest.raises(AttachError, match="Scaled does not compute the mean over its positions"):
        gated(lambda: Pooled(Scaled()))


def test_a_pooling_with_a_forward_of_its_own_is_refused() -> None:
    model = built(Pooled)
    model.pool.forward = lambda x: x.mean((2, 3), keepdim=True)  # type: ignore[method-assign]
    with pytest.raises(AttachError, match="its forward is replaced on the instance"):
        sf.attach(model, "spatial", where="positions", example=pictures())


def test_a_tied_weight_is_refused() -> None:
    model = built(LeNet)
    model.other = nn.Linear(96, 10).double()
    model.other.weight = model.fc1.weight
    with pytest.raises(AttachError, match="its 'weight' is tied to 'other.weight'"):
        sf.attach(model, "spatial", where="positions", example=pictures())
    late = gated(LeNet)
    late.other = nn.Linear(96, 10).double()
    late.other.weight = late.fc1.base.weight
    with pytest.raises(FoldError, match="gate on 'fc1': its 'weight' is tied to 'other.weight'"):
        sf.fold(late, check=False)


class Summed(nn.Linear):
    """A layer with a rule that has no input side."""


def test_a_layer_without_an_input_side_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from stripefold.layers import rule

    monkeypatch.setattr(rule, "_rules", dict(rule.known_rules()))
    linear = rule.rule_for_type(nn.Linear)
    assert linear is not None
    sf.register_rule(Summed, rule=replace(linear, input=None))
    model = built(LeNet)
    model.fc1 = Summed(96, 10).double()
    with pytest.raises(AttachError, match="Summed has no input side"):
        sf.attach(model, "spatial", where="positions", example=pictures())


@pytest.mark.parametrize(("build", "name"), [(LeNet, "fc1"), (Pooled, "pool")])
def test_a_scale_that_is_not_finite(build: type[nn.Module], name: str) -> None:
    model = gated(build, "position")
    with torch.no_grad():
        model.get_submodule(name).gates[0].psi[1, 2] = float("nan")
    message = rf"'{name}': its scale is not finite in 1 of 16 positions \(first: 6\)"
    assert_refused(model, lambda: sf.fold_(model, fuse=True, example=pictures(), check=False), FoldError, message)


def test_a_scale_that_overflows() -> None:
    model = gated(LeNet, "position").half()
    with torch.no_grad():
        model.fc1.gates[0].psi.fill_(60000)
        model.fc1.base.weight.fill_(3)
    message = r"'fc1': weight overflows torch.float16 \(largest scale 6e\+04\)"
    assert_refused(model, lambda: sf.fold_(model, check=False), FoldError, message)
    with torch.no_grad():
        model.fc1.gates[0].psi.fill_(6e-8)
        model.fc1.base.weight.fill_(0.01)
    message = r"'fc1': weight underflows torch.float16 \(largest scale 5.96e-08\)"
    assert_refused(model, lambda: sf.fold_(model, check=False), FoldError, message)


# The rest of the lifecycle.


@pytest.mark.parametrize("case", ["lenet", "vgg", "mlp", "adaptive", "own"])
def test_copies_and_files(case: str, tmp_path: Path) -> None:
    build, name, _ = ALL[case]
    model = gated(build, repeats=2, init="identity", freeze="psi").eval()
    output = model(pictures())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(pictures()), output)
    sf.save_adapter(model, tmp_path / "adapter")
    loaded = sf.load_adapter(built(build), tmp_path / "adapter").eval()
    assert torch.equal(loaded(pictures()), output)
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
    assert error(built(build).eval()(pictures()), output) > 1e-3  # the control
    sf.save_model(model, tmp_path / "model")
    other = gated(build, repeats=2, init="identity", freeze="psi").eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert sf.load_model_(other, tmp_path / "model").kind == "attached"
    assert torch.equal(other(pictures()), output)
    sf.save_model(built(build), tmp_path / "plain")
    sf.load_model_(other, tmp_path / "plain")  # a plain backbone's file loads too, the gates stay
    assert torch.equal(other(pictures()), output)
    assert torch.equal(sf.detach(model)(pictures()), built(build).eval()(pictures()))
    groups = sf.param_groups(model, gate_lr=0.5)
    assert any(group["name"] == "gates" for group in groups)
    assert name in sf.scales(model)


def test_the_adapter_of_gates_on_both_sides(tmp_path: Path) -> None:
    model = sf.attach(sf.attach(built(LeNet), "se", where="fc1"), "spatial", where="positions", example=pictures())
    model = scatter_(sf.attach(model, "gc", where=["fc1.base", "stem.1"])).eval()
    sf.save_adapter(model, tmp_path / "adapter")
    loaded = sf.load_adapter(built(LeNet), tmp_path / "adapter").eval()
    assert torch.equal(loaded(pictures()), model(pictures()))


def test_a_damaged_place_in_an_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stripefold.asr import adapter

    model = gated(LeNet)
    monkeypatch.setattr(adapter, "_place", lambda gate, site: {"kind": "flatten", "height": 3})
    sf.save_adapter(model, tmp_path / "adapter")
    with pytest.raises(AdapterError, match="the place of the gate on 'fc1' is damaged"):
        sf.load_adapter(built(LeNet), tmp_path / "adapter")


def test_hooks_move_along() -> None:
    backbone = built(Pooled)
    calls: list[str] = []
    handle = backbone.pool.register_forward_hook(lambda *_: calls.append("pool"))
    model = sf.attach(backbone, "spatial", where="positions", example=pictures())
    plain = sf.fold(model, fuse=True, check=False, example=pictures())
    for network in (model, plain):
        calls.clear()  # a trace runs the user's hooks, too
        network(pictures())
        assert calls == ["pool"]
    handle.remove()


@pytest.mark.parametrize("build", [LeNet, Pooled, Mixer])
def test_dtypes(build: type[nn.Module]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = gated(build).to(dtype)
        plain = sf.fold(model, fuse=build is Pooled, example=pictures().to(dtype))
        assert all(t.dtype == dtype for t in plain.state_dict().values() if t.is_floating_point())
        assert sf.verify(model, plain, pictures().to(dtype)).passed


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("build", [LeNet, Pooled, Mixer])
def test_tracers(build: type[nn.Module]) -> None:
    model = gated(build).eval()
    expected = model(pictures())
    assert error(torch.jit.trace(model, pictures())(pictures()), expected) <= 1e-12
    assert error(torch.export.export(model, (pictures(),)).module()(pictures()), expected) <= 1e-12
    assert error(torch.fx.symbolic_trace(model)(pictures()), expected) <= 1e-12
    plain = sf.fold(model, fuse=build is Pooled, example=pictures())
    assert error(torch.export.export(plain, (pictures(),)).module()(pictures()), expected) <= 1e-12


def test_dynamic_spatial_attention_stands_on_feature_maps() -> None:
    model = scatter_(sf.attach(built(Pooled), "spatial", form="dynamic", where="bn")).eval()
    gate = model.bn.gates[0]
    x = torch.randn(2, 8, 4, 4, dtype=torch.float64)
    assert error(model.bn(x), gate.attention(model.bn.base(x))) == 0
    _, report = sf.fold(model, example=pictures(), report=True)
    assert report.left[0].kind == "dynamic spatial"


def test_pool_sites_are_pool_sites() -> None:
    assert type(gated(Pooled).pool) is PoolSite
    assert gated(Pooled).pool.output_size == 1
    assert "4x4 positions, 8 channels" in str(gated(Pooled))


def test_dynamic_attention_behind_a_gate_over_positions() -> None:
    model = sf.attach(gated(LeNet), "se", form="dynamic", where="fc1.base")
    model = scatter_(sf.attach(model, "se", where="fc1.base")).eval()
    plain, report = sf.fold(model, example=pictures(), report=True)
    assert error(plain(pictures()), model(pictures())) <= EXACT
    assert type(plain.fc1) is Site
    assert plain.fc1.static_gates == []
    assert [(note.name, note.folded) for note in report.notes] == [
        ("fc1", True), ("fc1.base", True), ("fc1.base", False)
    ]  # fmt: skip


def test_a_site_of_positions_is_no_layer_for_gates_on_channels() -> None:
    with pytest.raises(AttachError, match=r"'fc1': it carries a gate over positions: .* inside it, 'fc1\.base'"):
        sf.attach(gated(LeNet), "se", where="fc1")
    assert "fc1.base" in sf.sites(gated(LeNet), "affine", example=pictures()).names
    assert not any(".gates." in name for name in sf.sites(gated(LeNet), "affine", example=pictures()).names)


@pytest.mark.parametrize("freeze", [(), ("psi",), ("psi", "theta")])
@pytest.mark.parametrize("training", [True, False])
def test_the_weights_of_a_pooling_train_as_their_gate_did(freeze: tuple[str, ...], training: bool) -> None:
    model = gated(Pooled, freeze=freeze).train(training)
    plain = sf.fold(model, fuse=True, example=pictures(), check=False)
    assert plain.pool.weights.weight.requires_grad == (len(freeze) < 2)
    assert {module.training for module in plain.pool.modules()} == {training}
