"""attach and detach: forms, repeats, starts, chains, and different gates at different places."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stripefold as sf
from stripefold.asr.gate import DynamicGate, StaticGate
from stripefold.asr.site import Site
from stripefold.errors import AttachError, BranchError
from stripefold_lab import create_model
from tests.lifecycle import (
    SITES,
    assert_folds,
    assert_refused,
    attached,
    error,
    images,
    scatter_,
    snapshot,
    step_,
    tiny,
)

KEYS = list(tiny().state_dict())


def test_a_copy_or_in_place() -> None:
    model = tiny()
    before = snapshot(model)
    other = sf.attach(model)
    assert snapshot(model) == before
    assert other is not model
    assert sf.attach_(model) is model
    assert type(model) is type(other)
    shared = {t.data_ptr() for t in model.state_dict().values()} & {t.data_ptr() for t in other.state_dict().values()}
    assert not shared


@pytest.mark.parametrize("attention", sf.attention_names(acts="channels"))
def test_every_attention_trains_and_folds(attention: str) -> None:
    model = step_(sf.attach(tiny(), attention), images(), lr=0.5)
    gates = [p for name, p in model.named_parameters() if ".gates." in name]
    assert any(bool((p.grad != 0).any()) for p in gates)
    assert_folds(scatter_(model), images(), keys=KEYS)


@pytest.mark.parametrize("repeats", [1, 2, 4])
def test_repeats_multiply(repeats: int) -> None:
    model = step_(attached(repeats=repeats), images())
    site = model.blocks[0].bn2
    assert len(site.static_gates) == repeats
    product = torch.ones(8, dtype=torch.float64)
    for gate in site.gates:
        product = product * gate.attention.excite_static(gate.psi)
    assert error(sf.scales(model)[SITES[0]], product) < 1e-12
    assert_folds(model, images(), keys=KEYS)


def test_default_start_is_the_reference_codes() -> None:
    model = sf.attach(tiny())
    assert all(bool((gate.psi == 0.1).all()) for gate in model.modules() if isinstance(gate, StaticGate))
    assert bool((sf.attach(tiny(), "scale").blocks[0].bn2.gates[0].psi == 1).all())
    given = torch.linspace(-1, 1, 8)
    model = sf.attach(tiny(), psi=given)
    assert torch.equal(model.blocks[0].bn2.gates[0].psi, given.double())
    assert not torch.equal(*(sf.attach(tiny(), psi="random").get_submodule(name).gates[0].psi for name in SITES))


@pytest.mark.parametrize("attention", sf.attention_names(acts="channels"))
def test_identity_start_is_exact(attention: str) -> None:
    backbone = tiny()
    model = sf.attach(backbone, attention, init="identity")
    assert torch.equal(model(images()), backbone(images()))
    assert all(bool((v == 1).all()) for v in sf.scales(model).values())
    assert_folds(scatter_(step_(model, images())), images(), keys=KEYS)


def test_identity_of_the_plain_scale_can_move() -> None:
    """It gives psi itself: its reference must not be psi, or the gate would be 1 for ever."""
    model = sf.attach(tiny(), "scale", init="identity", psi=0.5)
    names = [name for name, _ in model.named_parameters() if ".gates." in name]
    assert names == [f"{name}.gates.0.psi" for name in SITES]
    with torch.no_grad():
        model.blocks[0].bn2.gates[0].psi.mul_(3)
    assert bool((sf.scales(model)[SITES[0]] == 3).all())


def test_freeze() -> None:
    flags = {}
    for freeze in ((), "psi", ("theta",), ("psi", "theta")):
        model = sf.attach(tiny(), freeze=freeze)
        gate = model.blocks[0].bn2.gates[0]
        flags[freeze] = (gate.psi.requires_grad, all(p.requires_grad for p in gate.attention.parameters()))
    assert flags == {
        (): (True, True), "psi": (False, True), ("theta",): (True, False), ("psi", "theta"): (False, False)
    }  # fmt: skip


def test_different_gates_at_different_places() -> None:
    model = sf.attach(
        tiny(),
        where={
            "blocks.*.bn2": {"attention": "ie", "psi": 0.3},
            "blocks.1.bn2": {"attention": "se", "repeats": 2, "attention_options": {"reduction": 4}},
            "head": {"attention": "scale", "freeze": "psi"},
        },
    )
    kinds = {name: [g.attention.name for g in model.get_submodule(name).gates] for name in [*SITES, "head"]}
    assert kinds == {SITES[0]: ["ie"], SITES[1]: ["se", "se"], "head": ["scale"]}
    assert model.blocks[1].bn2.gates[0].attention.mlp.reduce.out_features == 2
    assert bool((model.blocks[0].bn2.gates[0].psi == 0.3).all())
    assert not model.head.gates[0].psi.requires_grad
    assert_folds(scatter_(step_(model, images())), images(), keys=KEYS)


@pytest.mark.parametrize("order", [("static", "dynamic"), ("dynamic", "static")])
def test_asr_beside_a_dynamic_attention(order: tuple[str, str]) -> None:
    model = tiny()
    for form in order:
        sf.attach_(model, "se", form=form)
    scatter_(model)
    site = model.blocks[0].bn2
    assert {type(gate) for gate in site.gates} == {StaticGate, DynamicGate}
    site.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    seen: list = []
    step_(model, images())
    model.eval()(images())
    x, output = seen[-1]
    scaled = site.base(x) * site.scale()[:, None, None]
    assert error(output, site.dynamic_gates[0].attention(scaled)) < 1e-12
    folded, report = sf.fold(model, report=True)
    assert error(folded(images()), model(images())) < 1e-10
    assert [note.name for note in report.folded] == SITES
    assert [(note.name, note.kind, note.why) for note in report.left] == [
        (name, "dynamic se", "depends on the input and stays") for name in SITES
    ]
    assert not any(isinstance(m, StaticGate) for m in folded.modules())
    assert error(folded(images()), sf.detach(model)(images())) > 1e-3
    assert list(sf.detach(folded).state_dict()) == KEYS


def test_dynamic_form_only() -> None:
    model = sf.attach(tiny(), "eca", form="dynamic")
    step_(model, images())
    assert sf.scales(model) == {}
    folded, report = sf.fold(model, report=True)
    assert len(report.left) == 2
    assert not report.folded
    assert error(folded.eval()(images()), model.eval()(images())) == 0


def test_a_chain_is_one_module_in_call_order() -> None:
    model = attached("dia", repeats=2)
    for k in range(2):
        first, second = (model.get_submodule(name).gates[k] for name in SITES)
        assert first.attention is second.attention
        assert (first._previous, second._previous) == ((), (first,))
    chains = {id(g.attention) for g in model.modules() if isinstance(g, StaticGate)}
    assert len(chains) == 2
    a, b = (model.get_submodule(name).gates[0] for name in SITES)
    v, state = a.attention.step(a.psi)
    w, _ = a.attention.step(b.psi, state)
    assert error(a(), v) < 1e-12
    assert error(b(), w) < 1e-12
    assert error(b(), a.attention.step(b.psi)[0]) > 1e-6  # the control: the site before matters
    expected = sf.scales(model)
    plain = assert_folds(step_(model, images()), images(), keys=KEYS)
    assert error(plain.blocks[1].bn2.weight, model.blocks[1].bn2.base.weight * sf.scales(model)[SITES[1]]) < 1e-12
    assert error(sf.scales(model)[SITES[1]], expected[SITES[1]]) > 0


def test_a_chain_keeps_the_start_of_its_first_gate() -> None:
    """A later site must not turn hidden units of the attention it shares: the first one's start is measured already."""
    for seed in range(8):
        backbone = tiny(seed=seed)
        model = sf.attach(backbone, "dia", where="norm", init="identity", psi="random")
        assert torch.equal(model(images()), backbone(images()))


def test_chains_of_other_widths_or_options_are_apart() -> None:
    torch.manual_seed(0)
    model = sf.attach(create_model("resnet20"), "dia")
    chains = {id(g.attention): g.attention.channels for g in model.modules() if isinstance(g, StaticGate)}
    assert sorted(chains.values()) == [16, 32, 64]


def test_detach() -> None:
    backbone = tiny()
    model = step_(attached(), images())
    before = snapshot(model)
    bare = sf.detach(model)
    assert snapshot(model) == before
    assert not any(isinstance(m, Site) for m in bare.modules())
    assert list(bare.state_dict()) == KEYS
    for key, tensor in bare.state_dict().items():
        assert torch.equal(
            tensor, model.state_dict().get(key, model.state_dict().get(".base.".join(key.rsplit(".", 1))))
        )
    again = sf.attach(backbone)
    assert sf.detach_(again) is again
    assert torch.equal(again(images()), backbone(images()))
    assert type(sf.detach(sf.attach(nn.BatchNorm1d(4), where="norm"))) is nn.BatchNorm1d
    assert snapshot(sf.detach_(backbone)) == snapshot(backbone)


def test_a_cancelled_gate_is_named() -> None:
    """A BatchNorm right behind undoes the scale; an explicit ``where`` keeps the site."""
    with pytest.warns(UserWarning, match=r"the gate on 'blocks.0.conv1' has no effect: 'blocks.0.bn1' right behind it"):
        model = sf.attach(tiny(), where=["blocks.0.conv1"])
    assert list(sf.scales(model)) == ["blocks.0.conv1"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.manual_seed(0)
        sf.attach(create_model("resnet20"), where="*.conv*")
    assert len(caught) == 3
    assert all("(and 15 more such sites)" in str(warning.message) for warning in caught)
    assert {warning.filename for warning in caught} == {__file__}  # points at the caller


def test_a_frozen_backbone_trains_only_the_gates() -> None:
    model = scatter_(sf.attach(tiny().requires_grad_(False), init="identity"))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all(".gates." in name for name in trained)
    assert_folds(step_(model, images()), images(), keys=KEYS)


def test_another_default_device_changes_nothing() -> None:
    backbone = tiny()
    with torch.device("meta"):  # stands for any device that is not the model's
        model = sf.attach(backbone, psi=0.5)
        plain = sf.fold(model)
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *plain.parameters()))


def test_a_layer_that_is_read_and_never_called_takes_no_dynamic_attention() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert_refused(
        model,
        lambda: sf.attach_(model, where="self_attn.out_proj", form="dynamic"),
        AttachError,
        "reads its weight and never calls it",
    )
    sf.attach_(model, where="self_attn.out_proj")


class DistributedDataParallel(nn.Module):
    """Stands for torch's, which needs a process group."""

    def __init__(self) -> None:
        super().__init__()
        self.module = tiny()


def test_a_wrapped_part_is_refused() -> None:
    model = nn.ModuleDict({"part": DistributedDataParallel()})
    assert_refused(
        model, lambda: sf.attach_(model, where="norm"), AttachError, "'part' is wrapped in DistributedDataParallel"
    )


def test_detach_of_what_cannot_be_copied() -> None:
    model = attached()
    model.lock = threading.Lock()
    with pytest.raises(AttachError, match="cannot be copied .*use detach_"):
        sf.detach(model)
    assert sf.detach_(model) is model


POOLS: dict[str, Any] = {
    "MaxPool2d": lambda: (nn.Conv2d, nn.MaxPool2d(2), nn.BatchNorm2d),
    "AvgPool2d": lambda: (nn.Conv2d, nn.AvgPool2d(2), nn.BatchNorm2d),
    "AdaptiveMaxPool2d": lambda: (nn.Conv2d, nn.AdaptiveMaxPool2d(3), nn.BatchNorm2d),
    "MaxPool1d": lambda: (nn.Conv1d, nn.MaxPool1d(3, stride=1), nn.BatchNorm1d),
    "MaxPool3d": lambda: (nn.Conv3d, nn.MaxPool3d(2), nn.BatchNorm3d),
    "ReLU and MaxPool2d": lambda: (nn.Conv2d, nn.Sequential(nn.ReLU(), nn.MaxPool2d(2, padding=1)), nn.BatchNorm2d),
}


@pytest.mark.parametrize("case", POOLS)
def test_a_gate_cancelled_behind_a_pooling_is_named(case: str) -> None:
    convolution, pool, norm = POOLS[case]()
    x = torch.randn(2, 3, *(9,) * int(norm.__name__[-2]))
    model = nn.Sequential(convolution(3, 8, 3), pool, norm(8))
    assert sf.sites(model, "0", example=x).notes == ("no effect: '2' right behind '0' cancels its scale",)
    with pytest.warns(UserWarning, match="the gate on '0' has no effect: '2' right behind it"):
        sf.attach(model, where="0", example=x)


def test_a_pooling_whose_places_are_used_cancels_nothing_there() -> None:
    class Unpooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
            self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            y, places = self.pool(self.conv(x))
            return self.unpool(self.norm(y), places)

    assert sf.sites(Unpooled(), "conv", example=torch.randn(2, 3, 8, 8)).notes == ()


class Activated(nn.BatchNorm2d):
    """A norm with a part of its own, as timm has them."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.Identity()

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return self.act(super().forward(input))


@pytest.mark.parametrize("where", ["1.act", ["0", "1.a*"], {"*.act": {}}])
def test_a_path_that_attaching_has_renamed_is_named(where: Any) -> None:
    sf.register_rule(Activated, like=nn.BatchNorm2d)
    model = sf.attach(nn.Sequential(nn.Conv2d(3, 8, 3), Activated(8)), where="1")
    with pytest.raises(AttachError, match=r"renamed '1\.act': it is '1\.base\.act' now, a part of '1'"):
        sf.attach(model, where=where)
    with pytest.raises(BranchError, match=r"renamed '1\.act'"):
        sf.branch(model, "repvgg", where="1.act")
    with pytest.raises(AttachError, match="no affine part"):  # the control: nothing was renamed here
        sf.attach(nn.Sequential(nn.Conv2d(3, 8, 3), Activated(8)), where="1.act")
