"""What fold promises: the backbone's own structure, nothing shared, idempotent, one rounding, a report."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

import stripefold as sf
from stripefold.modules.foldable import Foldable
from tests.lifecycle import SITES, assert_folds, attached, error, images, prepared, scatter_, snapshot, step_, tiny

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def assert_same_structure(plain: nn.Module, backbone: nn.Module) -> None:
    """Class, module tree, keys, shapes, dtypes, flags, attributes."""
    assert [(n, type(m), m.training) for n, m in plain.named_modules()] == [
        (n, type(m), m.training) for n, m in backbone.named_modules()
    ]
    for kind in ("named_parameters", "named_buffers"):
        assert [(n, t.shape, t.dtype, t.device, t.requires_grad, t.stride()) for n, t in getattr(plain, kind)()] == [
            (n, t.shape, t.dtype, t.device, t.requires_grad, t.stride()) for n, t in getattr(backbone, kind)()
        ]
    assert list(plain.state_dict()) == list(backbone.state_dict())
    assert plain.state_dict()._metadata == backbone.state_dict()._metadata
    for (name, mine), its in zip(plain.named_modules(), backbone.modules(), strict=True):
        assert vars(mine).keys() == vars(its).keys(), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_place", [False, True])
def test_the_backbone_is_back(dtype: torch.dtype, in_place: bool) -> None:
    backbone = tiny(dtype)
    backbone.stem.requires_grad_(False)
    backbone.blocks[1].eval()
    model = scatter_(sf.attach(backbone))
    plain = sf.fold_(model) if in_place else sf.fold(model)
    assert (plain is model) == in_place
    assert_same_structure(plain, backbone)
    backbone.load_state_dict(plain.state_dict())
    assert error(plain.eval()(images(dtype=dtype)), backbone.eval()(images(dtype=dtype))) == 0


def test_fold_leaves_the_training_model_alone_and_shares_nothing() -> None:
    model = step_(attached(), images())
    before = snapshot(model)
    plain = sf.fold(model)
    assert snapshot(model) == before
    mine = {t.untyped_storage().data_ptr() for t in model.state_dict().values()}
    assert not mine & {t.untyped_storage().data_ptr() for t in plain.state_dict().values()}
    step_(plain, images())  # moves its weights and statistics
    assert snapshot(model) == before


@pytest.mark.parametrize("fuse", [False, True])
def test_folding_is_idempotent(fuse: bool) -> None:
    once = sf.fold(step_(attached(), images()), fuse=fuse)
    twice, report = sf.fold(once, fuse=fuse, report=True)
    assert report.folded == ()
    assert twice is not once
    assert once.state_dict().keys() == twice.state_dict().keys()
    assert all(torch.equal(tensor, twice.state_dict()[key]) for key, tensor in once.state_dict().items())
    again = copy.deepcopy(once)
    before = snapshot(again)
    assert sf.fold_(again, fuse=fuse) is again
    assert snapshot(again) == before


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("where", ["residual", "affine"])
@pytest.mark.filterwarnings("ignore:the gate on .* has no effect")
def test_products_in_float64_rounded_once(dtype: torch.dtype, where: str) -> None:
    model = step_(attached(dtype=torch.float32, where=where, repeats=2), images(dtype=torch.float32)).to(dtype)
    found = sf.fold(model, check=False).state_dict()
    exact = sf.scales(model, torch.float64)
    for name, v in exact.items():
        base = model.get_submodule(name).base
        for key in ("weight", "bias"):
            tensor = getattr(base, key)
            if tensor is not None:
                product = tensor.double() * v.reshape(-1, *(1,) * (tensor.dim() - 1))
                assert torch.equal(found[f"{name}.{key}"], product.to(dtype))


def test_running_statistics_are_copied_not_shared() -> None:
    model = attached()
    plain = sf.fold(model)
    for name in SITES:
        base, norm = model.get_submodule(name).base, plain.get_submodule(name)
        for key in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(getattr(norm, key), getattr(base, key))
            assert getattr(norm, key).data_ptr() != getattr(base, key).data_ptr()


def test_no_forgotten_eval() -> None:
    """Folding and its check need no mode, and leave the mode they find."""
    for mode in (True, False):
        model = attached().train(mode)
        plain = sf.fold(model)
        assert model.training == plain.training == mode


def test_the_report() -> None:
    _, report = sf.fold(step_(attached(repeats=2), images()), report=True)
    assert [(n.name, n.kind, n.why) for n in report.folded] == [(name, "se x se", "into BatchNorm2d") for name in SITES]
    assert (report.left, report.unmoved, report.fused) == ((), (), False)
    assert "equivalent in float64" in report.verification
    text = str(report)
    assert text.startswith("folded 2, left 0\n  + blocks.0.bn2  se x se  into BatchNorm2d")
    _, report = sf.fold(attached(), report=True, check=False)
    assert report.verification == "not checked"


def test_folding_a_plain_model_is_a_copy() -> None:
    backbone = tiny()
    plain, report = sf.fold(backbone, report=True)
    assert plain is not backbone
    assert_same_structure(plain, backbone)
    assert report.notes == ()


def test_the_check_finds_a_wrong_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a site that folds wrongly is caught, and ``fold_`` has not touched the model."""
    from stripefold.asr.site import Site

    def wrong(self: Site, weights: object) -> nn.Module:
        return self.without_static_gates_()

    model = attached()
    before = snapshot(model)
    monkeypatch.setattr(Site, "folded_", wrong)
    for call in (sf.fold, sf.fold_):
        with pytest.raises(sf.errors.VerifyError, match=r"NOT equivalent.*First layer that differs: blocks\.0\.bn2"):
            call(model)
        assert snapshot(model) == before
    assert not any(isinstance(m, Foldable) for m in sf.fold(model, check=False).modules())


def test_a_timm_model_with_drop_path() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    backbone = prepared(timm.create_model("resnet10t", num_classes=5, drop_path_rate=0.2).double(), x)
    model = step_(scatter_(sf.attach(backbone, example=x)), x)
    plain = assert_folds(model, x, keys=list(backbone.state_dict()))
    assert_same_structure(plain, backbone)


def test_gates_on_norms_with_an_activation_inside() -> None:
    """act(v B(x)): the gate stands before the activation, in training as in the fold."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    backbone = prepared(timm.create_model("mobilenetv3_small_050", num_classes=5).double(), x)
    model = step_(scatter_(sf.attach(backbone, where="*.bn1", init="identity")), x, lr=0.01).eval()
    assert {type(m.base).__name__ for m in model.modules() if isinstance(m, Foldable)} >= {"BatchNormAct2d"}
    plain = sf.fold(model, example=x)
    assert error(plain.eval()(x), model(x)) < 1e-10
    assert error(sf.detach(model)(x), model(x)) > 1e-3
    assert_same_structure(plain, sf.detach(model))
