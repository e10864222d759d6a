"""``to="asr"``: trainable gates that start where the trained attention meets the average image."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import stripefold as sf
from stripefold.asr.site import Site
from stripefold.asr.sites import attached_sites
from stripefold.baking.apply import verify_baked
from stripefold.baking.constants import constants_of
from stripefold.baking.excite import ExciteChain, excite_chain
from stripefold.baking.scale_site import ScaleSite
from stripefold.baking.sites import BakeSite
from stripefold.baking.warm import warm_
from stripefold.errors import AdapterError, BakeError, FoldError
from stripefold.stripe.discover import Discovery, discover
from stripefold.stripe.observe import observe
from stripefold.stripe.report import StripeReport
from tests.baking import nets
from tests.baking.exact import prepare, prepared
from tests.baking.nets import SE, C, GateOnly, InPlace
from tests.baking.test_sites import activated, images, net
from tests.lifecycle import EXACT, assert_refused, error


def data() -> Tensor:
    return torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def observed(model: nn.Module, x: Tensor, inputs: Tensor | None = None) -> tuple[Discovery, StripeReport]:
    return discover(model, x), observe(model, data() if inputs is None else inputs, example=x)


def descriptors(report: StripeReport) -> dict[str, Tensor]:
    return {layer.name: layer.descriptor_mean for layer in report.layers if layer.descriptor_mean is not None}


def warmed(model: nn.Module, x: Tensor) -> tuple[nn.Module, list[BakeSite]]:
    discovery, report = observed(model, x)
    return warm_(copy.deepcopy(model), discovery, descriptors(report))


def step_(model: nn.Module, x: Tensor) -> None:
    """One optimiser step in training mode; everything that trains gets a gradient."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.05)
    model.train()
    model(x).square().mean().backward()
    assert [name for name, p in trained.items() if p.grad is None] == []
    optimizer.step()
    model.eval()


CASES = {
    "before a convolution": (nets.before_conv, "forward", ScaleSite),
    "before a sum": (nets.before_sum, "backward", Site),
    "behind a ReLU": (nets.behind_relu, "backward", Site),
}


@pytest.mark.parametrize("case", CASES)
def test_starts_at_the_constant_trains_and_folds(case: str) -> None:
    body, how, kind = CASES[case]
    model, x = net(body, {"se": SE})
    discovery, report = observed(model, x)
    warm, (site,) = warm_(copy.deepcopy(model), discovery, descriptors(report))
    assert site.how == how
    constants, reasons = constants_of(model, discovery, report.layers, "descriptor")
    assert not reasons
    (scale,) = sf.scales(warm, torch.float64).values()
    assert error(scale, constants["se"]) < 1e-12
    assert verify_baked(model, discovery.gates, warm, constants, x).error <= EXACT
    with torch.no_grad():
        assert error(warm(x), model(x)) > 1e-4  # the control: the dynamic network is another one
    (held,) = attached_sites(warm).values()
    assert type(held) is kind
    assert type(held.static_gates[0].attention) is ExciteChain
    before = held.static_gates[0].psi.detach().clone()
    step_(warm, data())
    assert not torch.equal(before, held.static_gates[0].psi)
    plain, folds = sf.fold(warm, example=x, report=True)
    assert len(folds.folded) == 1
    assert type(plain.se) is nn.Identity
    assert not any(type(m).__module__.startswith("stripefold") for m in plain.modules())
    with torch.no_grad():
        assert error(plain(x), sf.detach(warm)(x)) > 1e-3
    sf.verify(pickle.loads(pickle.dumps(warm)), plain, x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mobilenetv3_small_050", {"forward": 9}),
        ("legacy_seresnet18", {"backward": 8}),
        ("ecaresnet26t", {"backward": 8}),
        ("ese_vovnet19b_dw", {"backward": 3, "forward": 1}),
        ("regnety_002", {"forward": 13}),
    ],
)
def test_architectures(name: str, expected: dict[str, int]) -> None:
    model, x = prepared(lambda: timm.create_model(name), 64)
    inputs = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    discovery, report = observed(model, x, inputs)
    constants, reasons = constants_of(model, discovery, report.layers, "descriptor")
    means, _ = constants_of(model, discovery, report.layers, "mean")
    assert not reasons
    assert any(error(constants[key], means[key]) > 1e-4 for key in means)
    warm, sites = warm_(copy.deepcopy(model), discovery, descriptors(report))
    assert Counter(site.how for site in sites) == expected
    assert verify_baked(model, discovery.gates, warm, constants, x).error <= EXACT
    step_(warm, inputs)
    plain = sf.fold(warm, example=x)  # verified there
    assert not any(type(m).__module__.startswith("stripefold") for m in plain.modules())
    with torch.no_grad():
        assert error(plain(x), sf.detach(warm)(x)) > 1e-3


def test_the_descriptor_is_what_excite_is_given() -> None:
    """The chain, run on one image's own squeezed value, gives that image's own gate."""
    model, x = net(nets.before_conv, {"se": SE})
    discovery = discover(model, x)
    (gate,) = discovery.gates
    chain = excite_chain(model, discovery.trace.graph, gate)
    assert isinstance(chain, ExciteChain)
    report = observe(model, x[:1], example=x)
    assert report.layers[0].descriptor_mean is not None
    with torch.no_grad():
        v = chain.excite_static(report.layers[0].descriptor_mean.flatten())
    assert error(v, report.layers[0].mean) < 1e-12
    with pytest.raises(BakeError, match="no dynamic form"):
        chain.squeeze(x)


@pytest.mark.parametrize("attention", ["se", "ie", "eca", "ese", "cbam", "gct", "spa", "fca"])
def test_dynamic_attention_of_our_own_becomes_static(attention: str) -> None:
    bare, x = net(lambda net, x: net.conv(x) + x, {})
    model = sf.attach(bare, attention, where=["conv"], form="dynamic")
    prepare(model, images())
    discovery, report = observed(model, x)
    warm, (site,) = warm_(copy.deepcopy(model), discovery, descriptors(report))
    assert site.how == "backward", site.why
    constants, reasons = constants_of(model, discovery, report.layers, "descriptor")
    assert not reasons
    assert verify_baked(model, discovery.gates, warm, constants, x).error <= EXACT
    assert [gate.attention.name for gate in attached_sites(warm)["conv"].static_gates] == [attention]
    plain = sf.fold(warm, example=x)
    assert list(plain.state_dict()) == list(bare.state_dict())
    with torch.no_grad():
        assert error(plain(x), sf.detach(warm)(x)) > 1e4 * EXACT  # the random gate of cbam is nearly open


def test_an_attention_whose_static_form_is_another_stays() -> None:
    bare, x = net(lambda net, x: net.conv(x) + x, {})
    model = sf.attach(bare, "srm", where=["conv"], form="dynamic")
    prepare(model, images())
    discovery, report = observed(model, x)
    _, (site,) = warm_(copy.deepcopy(model), discovery, descriptors(report))
    assert site.how == "keep"
    assert "the static form of 'srm' leaves out its normalisation" in site.why
    _, reasons = constants_of(model, discovery, report.layers, "descriptor")
    assert reasons == {site.name: f"{site.why}: the mean of v was taken"}


def test_our_own_attention_is_kept_whole_and_makes_an_adapter(tmp_path: Path) -> None:
    bare, x = net(lambda net, x: net.conv(x) + x, {})
    model = sf.attach(bare, "se", where=["conv"], form="dynamic", attention_options={"reduction": 3})
    prepare(model, images())
    warm, (site,) = warmed(model, x)
    assert site.how == "backward"
    (held,) = attached_sites(warm).values()
    assert held.static_gates[0].attention.name == "se"
    sf.save_adapter(warm, tmp_path / "gates")
    again = sf.load_adapter(sf.detach(warm), tmp_path / "gates")
    sf.verify(warm, again, x)


def test_what_attach_cannot_build_makes_no_adapter(tmp_path: Path) -> None:
    for body, why in ((nets.before_conv, "'se' is of kind 'excite'"), (nets.before_sum, "'conv' is of kind 'excite'")):
        model, x = net(body, {"se": SE})
        with pytest.raises(AdapterError, match=f"the gate on {why}.*save the whole model"):
            sf.save_adapter(warmed(model, x)[0], tmp_path / "gates")


def test_half_precision_gates_are_computed_in_float32() -> None:
    model, x = net(nets.before_sum, {"se": SE})
    discovery, report = observed(model, x)
    warm, _ = warm_(copy.deepcopy(model).bfloat16(), discovery, descriptors(report))
    (gate,) = [site.static_gates[0] for site in attached_sites(warm).values()]
    assert {p.dtype for p in gate.parameters()} == {torch.bfloat16}
    scale = gate()
    assert scale.dtype == torch.float32
    exact = copy.deepcopy(gate).double()(torch.float64)
    assert error(scale, exact) < 1e-6  # far below what bfloat16 keeps
    scale.sum().backward()
    assert all(p.grad is not None for p in gate.parameters())


def test_a_normalisation_in_excite_keeps_its_statistics() -> None:
    class Normed(SE):
        def __init__(self) -> None:
            super().__init__()
            self.fc1 = nn.Sequential(nn.Linear(C, 4), nn.BatchNorm1d(4))  # type: ignore[assignment]

    model, x = net(nets.before_sum, {"se": Normed})
    discovery, report = observed(model, x)
    warm, (site,) = warm_(copy.deepcopy(model), discovery, descriptors(report))
    assert site.how == "backward"
    constants, _ = constants_of(model, discovery, report.layers, "descriptor")
    assert verify_baked(model, discovery.gates, warm, constants, x).error <= EXACT
    (held,) = attached_sites(warm).values()
    before = copy.deepcopy(held.static_gates[0].attention).state_dict()["parts.0.1.running_mean"]
    step_(warm, data())
    assert torch.equal(held.static_gates[0].attention.state_dict()["parts.0.1.running_mean"], before)


def test_what_stays_dynamic_says_why_and_the_rest_is_planned_again() -> None:
    model, x = net(nets.in_a_row, {"se": SE, "second": SE})
    discovery, report = observed(model, x)
    given = descriptors(report)
    both, sites = warm_(copy.deepcopy(model), discovery, given)
    assert [site.how for site in sites] == ["backward", "backward"]
    assert len(attached_sites(both)) == 2
    sf.fold(both, example=x)  # verified there
    # Without the first gate's descriptor that gate stays, and it is in the way of the second one's.
    one, sites = warm_(copy.deepcopy(model), discovery, {"second": given["second"]})
    assert [site.how for site in sites] == ["keep", "keep"]
    assert "descriptor was not observed" in sites[0].why
    assert "used unscaled, too" in sites[1].why
    with torch.no_grad():
        assert torch.equal(one(x), model(x))
    # Asked for by name: the other one stays as it is and is not spoken of.
    named, sites = warm_(copy.deepcopy(model), discovery, given, ["se"])
    assert [(site.name, site.how) for site in sites] == [("se", "backward")]
    assert type(named.second) is SE


@pytest.mark.parametrize(
    ("body", "parts", "why"),
    [
        (nets.nowhere, {"se": SE}, "backward: 'silu'"),
        (nets.own_product, {"gate": GateOnly}, "the product stands in the forward of"),
        (nets.twice, {"se": SE}, "is called 2 times"),
    ],
)
def test_reasons(body: object, parts: dict[str, type[nn.Module]], why: str) -> None:
    model, x = net(body, parts)
    warm, sites = warmed(model, x)
    assert all(site.how == "keep" and why in site.why for site in sites)
    with torch.no_grad():
        assert torch.equal(warm(x), model(x))


def test_our_attention_behind_an_activation_stays() -> None:
    bare, x = net(lambda net, x: net.act(net.conv(x)) + x, {"act": activated})
    model = sf.attach(bare, "se", where=["act"], form="dynamic")
    prepare(model, images())
    _, (site,) = warmed(model, x)
    assert site.how == "keep"
    assert "'silu' in 'act.base' does not commute" in site.why


class TwoWays(nn.Module):
    """Two squeezed values, as in CBAM."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        v = torch.sigmoid(self.fc(x.mean((2, 3))) + self.fc(x.amax((2, 3))))
        return x * v[:, :, None, None]


class Strange(SE):
    """Something between squeeze and gate that is neither a module nor a known function."""

    def forward(self, x: Tensor) -> Tensor:
        v = torch.sigmoid(self.fc2(torch.erf(self.fc1(x.mean((2, 3))))))
        return x * v[:, :, None, None]


class Branching(SE):
    """The squeezed value is used twice."""

    def forward(self, x: Tensor) -> Tensor:
        d = x.mean((2, 3))
        v = torch.sigmoid(self.fc2(torch.relu(self.fc1(d))) + d)
        return x * v[:, :, None, None]


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (TwoWays, "not computed from one squeezed value|descriptor was not observed"),
        (Strange, "'erf' in 'se' stands between"),
        (Branching, "'add' in 'se' stands between"),
    ],
)
def test_an_excite_that_cannot_be_cut_out_takes_the_mean_and_stays_dynamic(kind: type[nn.Module], why: str) -> None:
    model, x = net(nets.before_conv, {"se": kind})
    discovery, report = observed(model, x)
    constants, reasons = constants_of(model, discovery, report.layers, "descriptor")
    means, none = constants_of(model, discovery, report.layers, "mean")
    assert not none
    assert torch.equal(constants["se"], means["se"])
    with pytest.raises(ValueError, match=why):
        raise ValueError(reasons["se"])
    _, (site,) = warm_(copy.deepcopy(model), discovery, {**descriptors(report)})
    with pytest.raises(ValueError, match=why):
        raise ValueError(site.why)


def test_a_descriptor_that_does_not_fit() -> None:
    model, x = net(nets.before_conv, {"se": SE})
    discovery = discover(model, x)
    for bad in (torch.ones(3), torch.full((C,), float("nan"))):
        assert_refused(
            model, lambda bad=bad: warm_(model, discovery, {"se": bad}), BakeError, r"the descriptor of 'se' has shape"
        )
    assert_refused(model, lambda: warm_(model, discovery, {}, ["none"]), BakeError, "no channel gate is called 'none'")


# Folding what multiplies elsewhere.


def forward_site() -> tuple[nn.Module, Tensor, ScaleSite]:
    model, x = net(nets.before_conv, {"se": InPlace})
    warm, _ = warmed(model, x)
    assert isinstance(warm.se, ScaleSite)
    return warm, x, warm.se


def test_a_copy_folds_into_its_own_layers() -> None:
    warm, x, _ = forward_site()
    other = copy.deepcopy(warm)
    before = warm.conv.weight.detach().clone()
    sf.fold_(other, example=x)
    assert torch.equal(warm.conv.weight, before)
    assert error(other.conv.weight, before) > 1e-3


def test_a_layer_behind_that_has_gone_or_is_tied_is_refused() -> None:
    warm, _, _ = forward_site()
    warm.conv = nn.Conv2d(C, C, 1).double()
    assert_refused(warm, lambda: sf.fold_(warm, check=False), FoldError, "of 'conv'.* no longer part of the model")
    warm, _, _ = forward_site()
    warm.twin = nn.Conv2d(C, C, 1)
    warm.twin.weight = warm.conv.weight
    assert_refused(warm, lambda: sf.fold_(warm, check=False), FoldError, "tied to")


def test_a_scale_that_overflows_the_layer_behind_is_refused() -> None:
    warm, _, site = forward_site()
    warm.half()
    with torch.no_grad():
        site.base.weight.fill_(60000.0)
        warm.conv.weight.fill_(60000.0)
    assert_refused(warm, lambda: sf.fold_(warm, check=False), FoldError, "cannot fold the gate on 'se'.*overflows")


def test_a_negative_scale_before_a_relu_is_refused() -> None:
    model, x = net(lambda net, x: net.conv(nn.functional.relu(net.se(nn.functional.silu(x)))), {"se": SE})
    warm, (site,) = warmed(model, x)
    assert site.how == "forward"
    assert site.needs_nonnegative
    sf.fold(warm, example=x)
    with torch.no_grad():
        warm.se.base.weight.neg_()
    assert_refused(warm, lambda: sf.fold_(warm, check=False), FoldError, "6 of its scales are negative")


def test_a_later_site_on_the_layer_behind_folds_with_it() -> None:
    warm, x, _ = forward_site()
    both = sf.attach(warm, "se", where=["conv"], example=x)
    assert list(sf.scales(both)) == ["se", "conv"]
    sf.verify(both, sf.fold(both, example=x), x)


def test_a_block_on_the_layer_behind_is_refused() -> None:
    warm, _, _ = forward_site()
    blocks = sf.branch(warm, "mobileone", where=["conv"])
    assert_refused(blocks, lambda: sf.fold_(blocks, check=False), FoldError, "a block stands in the place of 'conv'")
