"""What training loops do to a model: SyncBatchNorm, checkpointing, frozen layers, initialisers, optimiser groups."""

from __future__ import annotations

import copy
import functools
import operator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import stripefold as sf
from stripefold.errors import AttachError
from tests.lifecycle import SITES, TinyNet, assert_folds, assert_refused, attached, error, images, scatter_, step_, tiny

KEYS = list(tiny().state_dict())


def stepped_in_eval(model: nn.Module) -> nn.Module:
    """SyncBatchNorm trains on accelerators only; its eval mode and the gates work everywhere."""
    before = sf.scales(model)
    step_(model.eval(), images())
    assert any(not torch.equal(v, before[name]) for name, v in sf.scales(model).items())
    return model


def test_sync_batchnorm_before_attaching() -> None:
    backbone = nn.SyncBatchNorm.convert_sync_batchnorm(tiny())
    model = stepped_in_eval(scatter_(sf.attach(backbone)))
    plain = assert_folds(model, images(), keys=KEYS)
    assert type(plain.blocks[0].bn2) is nn.SyncBatchNorm


def test_sync_batchnorm_after_attaching() -> None:
    model = attached()
    expected = model.eval()(images())
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert type(model.blocks[0].bn2.base) is nn.SyncBatchNorm
    assert error(model.eval()(images()), expected) == 0
    plain = assert_folds(stepped_in_eval(model), images(), keys=KEYS)
    assert type(plain.blocks[0].bn2) is nn.SyncBatchNorm


class Checkpointed(TinyNet):
    """TinyNet with one of the ways in which activations are recomputed."""

    way = "off"

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.way == "sequential":
            x = checkpoint_sequential(self.blocks, 2, x, use_reentrant=False)
        elif self.way == "sequential reentrant":
            x = checkpoint_sequential(self.blocks, 2, x, use_reentrant=True)
        else:
            for block in self.blocks:
                x = block(x) if self.way == "off" else checkpoint(block, x, use_reentrant=self.way == "reentrant")
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("way", ["reentrant", "not reentrant", "sequential", "sequential reentrant"])
@pytest.mark.parametrize("attention", ["se", "dia"])
def test_gradient_checkpointing(attention: str, way: str) -> None:
    torch.manual_seed(0)
    model = scatter_(sf.attach(Checkpointed().double(), attention)).train()
    plain = copy.deepcopy(model)
    model.way = way
    calls = []
    model.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    # Not two steps: the recomputed forward pass moves BatchNorm statistics a second time, gates or not.
    step_(model, images())
    step_(plain, images())
    assert len(calls) == 2  # the control: it was recomputed
    for (name, parameter), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert float((parameter - other).detach().abs().max()) < 1e-12, name
    model.way = "off"
    assert_folds(model, images(), keys=KEYS)


def test_a_module_at_two_places() -> None:
    class Twice(TinyNet):
        def __init__(self) -> None:
            super().__init__()
            self.blocks.append(self.blocks[1])

    torch.manual_seed(0)
    backbone = Twice().double()
    model = scatter_(sf.attach(backbone, where=["blocks.*.bn2", "blocks.*.bn1"]))
    assert model.blocks[1].bn2 is model.blocks[2].bn2
    assert len(sf.scales(model)) == 4
    plain = assert_folds(step_(model, images()), images(), keys=list(backbone.state_dict()))
    assert plain.blocks[1] is plain.blocks[2]
    assert plain.blocks[1].bn2 is plain.blocks[2].bn2


def test_one_layer_registered_under_two_names() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3)
    backbone = nn.Sequential(norm, nn.ReLU(), norm).double()
    model = scatter_(sf.attach(backbone, where="norm"))
    assert model[0] is model[2]
    plain = assert_folds(step_(model, images()), images(), keys=list(backbone.state_dict()))
    assert plain[0] is plain[2]


def test_flags_are_kept() -> None:
    backbone = tiny()
    backbone.train()
    backbone.blocks[0].eval()  # a frozen BatchNorm
    backbone.blocks[0].bn2.weight.requires_grad_(False)
    backbone.stem.requires_grad_(False)
    model = sf.attach(backbone)
    assert [m.training for m in model.blocks[0].bn2.modules()] == [False] * len(list(model.blocks[0].bn2.modules()))
    assert all(m.training for m in model.blocks[1].modules())
    mean = model.blocks[0].bn2.base.running_mean.clone()
    step_(model, images())
    assert torch.equal(model.blocks[0].bn2.base.running_mean, mean)
    assert torch.equal(model.blocks[0].bn2.base.weight, backbone.blocks[0].bn2.weight)
    assert torch.equal(model.stem.weight, backbone.stem.weight)
    plain = assert_folds(scatter_(model), images(), keys=KEYS)
    for other in (plain, sf.detach(model)):
        assert [m.training for m in other.modules()] == [m.training for m in backbone.modules()]
        assert [p.requires_grad for p in other.parameters()] == [p.requires_grad for p in backbone.parameters()]
    assert model.training  # folding and verifying restore the mode of the training model
    assert not model.blocks[0].training


def test_a_dynamic_gate_follows_the_mode_of_its_layer() -> None:
    model = sf.attach(tiny().eval(), "srm", form="dynamic")
    assert not any(module.training for module in model.modules())
    assert error(model(images()[:1]), model(images())[:1]) < 1e-12  # its own norm uses no batch


def test_frozen_gates_do_not_move() -> None:
    for part, kept in (("psi", "psi"), ("theta", "attention")):
        model = sf.attach(tiny(), freeze=(part,))
        before = {k: v.clone() for k, v in model.state_dict().items() if f".gates.0.{kept}" in k}
        step_(model, images(), lr=1.0)
        assert before
        assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
        assert_folds(model, images(), keys=KEYS)


@pytest.mark.parametrize(
    "write",
    [
        nn.init.zeros_,
        nn.init.normal_,
        functools.partial(nn.init.constant_, val=1.0),
        lambda tensor: tensor.data.fill_(1),
        lambda tensor: tensor.mul_(2),
        lambda tensor: tensor.__setitem__(0, 1.0),
        lambda tensor: torch.mul(tensor, 2, out=tensor),
        lambda tensor: tensor.copy_(torch.ones(8)),
    ],
)
def test_writing_to_the_effective_weight_is_refused(write) -> None:
    model = attached()
    with torch.no_grad():
        assert_refused(
            model,
            lambda: write(model.blocks[0].bn2.weight),
            AttachError,
            r"that tensor is computed, and the write would be lost.*site\.base\.weight",
        )


def test_in_place_operators_on_the_effective_weight_are_refused() -> None:
    site = attached().blocks[0].bn2
    before = site.base.weight.clone()
    with torch.no_grad(), pytest.raises(AttachError, match="would be lost"):
        operator.iadd(site.weight, 1)
    assert torch.equal(site.base.weight, before)


def test_apply_initialises_the_layer_inside() -> None:
    def initialise(module: nn.Module) -> None:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 2.0)

    model = attached().apply(initialise)
    assert bool((model.blocks[0].bn2.base.weight == 2).all())
    assert_folds(model, images(), keys=KEYS)


def test_a_site_reads_and_writes_as_its_layer() -> None:
    model = attached(where=["blocks.*.bn2", "head"])
    norm, head = model.blocks[0].bn2, model.head
    assert (norm.eps, norm.num_features, norm.affine) == (1e-5, 8, True)
    assert (head.in_features, head.out_features) == (8, 4)
    norm.momentum, norm.eps = 0.5, 1e-3
    assert (norm.base.momentum, norm.base.eps) == (0.5, 1e-3)
    assert "momentum" not in vars(norm)
    v = norm.scale()
    assert torch.equal(torch.Tensor(norm.weight.detach()), (norm.base.weight * v).detach())
    assert norm.weight.requires_grad
    norm.weight = nn.Parameter(torch.full((8,), 3.0, dtype=torch.float64))
    assert bool((norm.base.weight == 3).all())
    norm.something_new = 1
    assert vars(norm)["something_new"] == 1
    with pytest.raises(AttributeError, match="no_such_name"):
        norm.no_such_name  # noqa: B018
    assert_folds(step_(model, images()), images(), keys=KEYS)


def test_a_failing_gate_is_not_hidden_behind_the_raw_weight() -> None:
    """An AttributeError inside a property would make nn.Module fall through to the layer's own weight."""
    model = attached()
    del model.blocks[0].bn2.gates[0].attention.mlp
    with pytest.raises(AttributeError, match="mlp"):
        model.blocks[0].bn2.weight  # noqa: B018


def test_parameter_names() -> None:
    model = sf.attach(tiny(), repeats=2)
    names = [name.removeprefix(f"{SITES[0]}.") for name, _ in model.named_parameters() if name.startswith(SITES[0])]
    assert names[:2] == ["base.weight", "base.bias"]
    assert {name.split(".attention.")[0] for name in names[2:]} == {"gates.0.psi", "gates.1.psi", "gates.0", "gates.1"}
    rest = [name for name, _ in model.named_parameters() if not name.startswith(tuple(SITES))]
    assert rest == [name for name, _ in tiny().named_parameters() if not name.startswith(tuple(SITES))]


def test_optimiser_groups() -> None:
    model = attached("dia")  # a shared attention must not be listed twice
    groups = sf.param_groups(
        model, weight_decay=0.1, gate_weight_decay=0.01, gate_lr=0.5, no_decay=lambda name, p: p.ndim <= 1
    )
    assert [(g["name"], g["weight_decay"], g.get("lr")) for g in groups] == [
        ("backbone", 0.1, None),
        ("backbone_no_decay", 0.0, None),
        ("gates", 0.01, 0.5),
    ]
    grouped = [id(p) for g in groups for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    assert {id(p) for p in groups[2]["params"]} == {id(p) for n, p in model.named_parameters() if ".gates." in n}
    optimizer = torch.optim.SGD(groups, lr=0.1)
    model(images()).square().mean().backward()
    optimizer.step()
    assert_folds(model, images(), keys=KEYS)


def test_groups_leave_out_what_is_frozen_and_empty() -> None:
    model = sf.attach(tiny().requires_grad_(False))
    assert [g["name"] for g in sf.param_groups(model)] == ["gates"]
    assert [g["name"] for g in sf.param_groups(tiny())] == ["backbone"]
