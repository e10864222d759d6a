"""Copies of an attached model: deepcopy, pickle, state dicts, averages. Each trains on and folds like the original."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path

import pytest
import timm.utils
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import stripefold as sf
from tests.lifecycle import SITES, assert_folds, attached, error, images, scatter_, step_, tiny

KEYS = list(tiny().state_dict())


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def saved_whole(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved_whole], ids=["deepcopy", "pickle", "torch.save"])
@pytest.mark.parametrize("attention", ["se", "srm", "dia"])
def test_a_copy_is_independent_and_folds(copied, attention: str) -> None:
    model = step_(attached(attention), images())
    other = copied(model)
    before = model.state_dict()["blocks.0.bn2.gates.0.psi"].clone()
    assert error(other(images()), model(images())) == 0
    step_(other, images())
    assert_folds(other, images(), keys=KEYS)
    assert torch.equal(model.state_dict()["blocks.0.bn2.gates.0.psi"], before)  # nothing shared
    assert error(other(images()), model(images())) > 1e-6  # the copy did move


def test_a_copied_chain_is_chained_to_its_own_gates() -> None:
    model = attached("dia")
    other = copy.deepcopy(model)
    first, second = (other.get_submodule(name).gates[0] for name in SITES)
    assert second._previous[0] is first
    assert second.attention is first.attention
    v = sf.scales(other)[SITES[1]]
    with torch.no_grad():
        first.psi += 1
    assert not torch.equal(sf.scales(other)[SITES[1]], v)
    assert torch.equal(sf.scales(model)[SITES[1]], v)


def test_state_dict_round_trip_with_weights_only(tmp_path: Path) -> None:
    model = step_(attached(init="identity"), images())
    torch.save(model.state_dict(), tmp_path / "training.pt")
    other = sf.attach(tiny(seed=5), init="identity")
    assert error(other(images()), model(images())) > 1e-3  # control
    other.load_state_dict(torch.load(tmp_path / "training.pt", weights_only=True))
    assert error(other(images()), model(images())) < 1e-12
    assert_folds(other, images(), keys=KEYS)


def test_assigned_state_dict() -> None:
    model, other = step_(attached(), images()), attached("se")
    other.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    assert error(other.eval()(images()), model.eval()(images())) == 0
    assert_folds(step_(other, images()), images(), keys=KEYS)


def test_averaged_model() -> None:
    model = attached()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    for _ in range(3):
        average.update_parameters(step_(model, images()))
    assert error(average.module.eval()(images()), model.eval()(images())) > 1e-6
    assert_folds(average.module, images(), keys=KEYS)


def test_timm_ema() -> None:
    model = attached()
    average = timm.utils.ModelEmaV3(model, decay=0.5)
    for _ in range(3):
        average.update(step_(model, images()))
    assert error(average.module.eval()(images()), model.eval()(images())) > 1e-6
    assert_folds(average.module, images(), keys=KEYS)


def test_a_backbone_checkpoint_loads_strictly_and_leaves_the_gates() -> None:
    backbone, model = tiny(seed=7), attached()
    gates = {k: v.clone() for k, v in model.state_dict().items() if ".gates." in k}
    assert model.load_state_dict(backbone.state_dict()) == ([], [])
    for key, tensor in model.state_dict().items():
        expected = gates[key] if key in gates else backbone.state_dict()[key.replace(".base.", ".")]
        assert torch.equal(tensor, expected)
    assert_folds(model, images(), keys=KEYS)


def test_a_backbone_checkpoint_loads_non_strictly() -> None:
    backbone, model = tiny(seed=7), attached()
    partial = {k: v for k, v in backbone.state_dict().items() if not k.startswith("head")}
    result = model.load_state_dict({**partial, "other": torch.ones(1)}, strict=False)
    assert result.missing_keys == ["head.weight", "head.bias"]
    assert result.unexpected_keys == ["other"]
    assert torch.equal(model.blocks[0].bn2.base.weight, backbone.blocks[0].bn2.weight)
    with pytest.raises(RuntimeError, match="head.weight"):
        model.load_state_dict(partial)


def test_a_missing_or_unknown_key_of_a_site_is_reported() -> None:
    model = attached()
    state = model.state_dict()
    del state["blocks.0.bn2.gates.0.psi"]
    with pytest.raises(RuntimeError, match=r"Missing.*blocks\.0\.bn2\.gates\.0\.psi"):
        model.load_state_dict(state)
    backbone = tiny().state_dict()
    del backbone["blocks.0.bn2.weight"]
    with pytest.raises(RuntimeError, match=r"Missing.*blocks\.0\.bn2\.base\.weight"):
        model.load_state_dict(backbone)


def test_a_site_as_root_copies_loads_and_folds() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(6).double()
    site = scatter_(sf.attach(norm, where="norm"))
    x = torch.randn(5, 6, dtype=torch.float64)
    assert list(sf.scales(site)) == [""]
    site.load_state_dict(norm.state_dict())
    step_(pickled(site), x)
    plain = assert_folds(step_(site, x), x, keys=list(norm.state_dict()))
    assert type(plain) is nn.BatchNorm1d
    with pytest.raises(sf.errors.AttachError, match="use model = attach"):
        sf.attach_(norm, where="norm")
    assert type(sf.fold_(site, check=False)) is nn.BatchNorm1d
