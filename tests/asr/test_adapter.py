"""Adapter files: only what attaching added, back onto the same backbone with the same numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

import stripefold as sf
from stripefold.asr.adapter import backbone_fingerprint
from stripefold.errors import AdapterError
from stripefold.folding.weight_files import file_info, load_tensors, save_tensors
from tests.lifecycle import SITES, assert_folds, attached, error, images, scatter_, step_, tiny

WAYS = {
    "se": {},
    "options": {"attention": "se", "attention_options": {"reduction": 2}},
    "repeats": {"repeats": 3},
    "identity": {"init": "identity"},
    "chained": {"attention": "dia", "repeats": 2},
    "descriptor": {"attention": "spa", "where": "norm"},
    "scale": {"attention": "scale", "init": "identity"},
    "places": {"where": {"blocks.0.bn2": {"attention": "ie"}, "head": {"attention": "eca", "repeats": 2}}},
    "frozen": {"freeze": ("psi",)},
    "dynamic": {"form": "dynamic", "attention": "srm"},
    "dynamic chain": {"form": "dynamic", "attention": "dia"},
}


@pytest.mark.parametrize("way", WAYS)
def test_round_trip(tmp_path: Path, way: str) -> None:
    backbone = tiny()
    model = scatter_(sf.attach(backbone, **WAYS[way])).eval()
    sf.save_adapter(model, tmp_path / "adapter.safetensors")
    other = sf.load_adapter(backbone, tmp_path / "adapter.safetensors").eval()
    assert error(other(images()), model(images())) == 0
    assert error(other(images()), backbone.eval()(images())) > 1e-4  # the control
    assert list(other.state_dict()) == list(model.state_dict())
    assert [p.requires_grad for p in other.parameters()] == [p.requires_grad for p in model.parameters()]
    if not way.startswith("dynamic"):
        assert_folds(step_(other, images()), images())


def test_asr_beside_dynamic(tmp_path: Path) -> None:
    backbone = tiny().eval()
    model = scatter_(sf.attach(sf.attach(backbone, "ie"), "se", form="dynamic")).eval()
    sf.save_adapter(model, tmp_path / "adapter")
    other = sf.load_adapter(backbone, tmp_path / "adapter")
    assert error(other(images()), model(images())) == 0


def test_the_file_holds_no_backbone(tmp_path: Path) -> None:
    model = attached()
    sf.save_adapter(model, tmp_path / "adapter")
    with safe_open(tmp_path / "adapter", framework="pt") as file:
        keys = set(file.keys())
    assert keys == {key for key in model.state_dict() if ".gates." in key}


def test_fingerprint() -> None:
    model = tiny()
    mark = backbone_fingerprint(model)
    assert backbone_fingerprint(attached()) == mark  # the gates are not part of it
    assert backbone_fingerprint(tiny(seed=5))["structure"] == mark["structure"]
    assert backbone_fingerprint(tiny(seed=5))["weights"] != mark["weights"]
    assert backbone_fingerprint(tiny().float())["structure"] == mark["structure"]  # a dtype is no structure
    swapped = tiny()
    weights = swapped.blocks[0].conv1.weight, swapped.blocks[0].conv2.weight
    swapped.blocks[0].conv1.weight, swapped.blocks[0].conv2.weight = reversed(weights)
    assert backbone_fingerprint(swapped)["weights"] != mark["weights"]


def test_a_site_as_root(tmp_path: Path) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(6)
    site = scatter_(sf.attach(norm, where="norm"))
    sf.save_adapter(site, tmp_path / "adapter")
    other = sf.load_adapter(norm, tmp_path / "adapter")
    assert torch.equal(sf.scales(other)[""], sf.scales(site)[""])


def test_sites_stay_sites(tmp_path: Path) -> None:
    sf.save_adapter(attached(), tmp_path / "adapter")
    assert sf.sites(sf.load_adapter(tiny(), tmp_path / "adapter")).names == SITES


def test_names_that_look_like_patterns(tmp_path: Path) -> None:
    backbone = nn.ModuleDict({"a[b]": nn.Linear(3, 3)})
    model = scatter_(sf.attach(backbone, where="a*"))
    sf.save_adapter(model, tmp_path / "adapter.safetensors")
    loaded = sf.load_adapter(backbone, tmp_path / "adapter.safetensors")
    assert torch.equal(loaded["a[b]"].weight, model["a[b]"].weight)


@pytest.mark.parametrize("change", [{"position": "first"}, {"position": None}])
def test_a_damaged_plan(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "adapter"
    sf.save_adapter(attached("dia"), path)
    about, tensors = file_info(path), load_tensors(path)
    for gates in about.extra["plan"].values():
        gates[0].update(change)
    save_tensors(tensors, path, kind="adapter", extra=about.extra)
    with pytest.raises(AdapterError, match="its plan of gates is damaged"):
        sf.load_adapter(tiny(), path)


def test_a_file_of_an_earlier_version_says_no_positions(tmp_path: Path) -> None:
    path, model = tmp_path / "adapter", attached("dia").eval()
    sf.save_adapter(model, path)
    about, tensors = file_info(path), load_tensors(path)
    for gates in about.extra["plan"].values():
        del gates[0]["position"]
    save_tensors(tensors, path, kind="adapter", extra=about.extra)
    assert error(sf.load_adapter(tiny(), path).eval()(images()), model(images())) == 0


def changed_adapter(path: Path, change) -> None:
    sf.save_adapter(attached("se"), path)
    about, tensors = file_info(path), load_tensors(path)
    change(about.extra["plan"], tensors)
    save_tensors(tensors, path, kind="adapter", extra=about.extra)


@pytest.mark.parametrize("key", ["head.weight", "nowhere.gates.0.psi", "stray"])
def test_a_tensor_outside_the_plan(tmp_path: Path, key: str) -> None:
    path = tmp_path / "adapter"
    changed_adapter(path, lambda plan, tensors: tensors.update({key: torch.ones(3)}))
    with pytest.raises(AdapterError, match=rf"holds '{key}', which is of no gate of its plan \(1 such tensors\)"):
        sf.load_adapter(tiny(), path)


@pytest.mark.parametrize("extra", ["0.other", "7.psi"])
def test_a_tensor_of_no_gate_of_a_site(tmp_path: Path, extra: str) -> None:
    path = tmp_path / "adapter"
    changed_adapter(path, lambda plan, tensors: tensors.update({f"{next(iter(plan))}.gates.{extra}": torch.ones(3)}))
    with pytest.raises(AdapterError, match="(?s)the adapter's gates do not fit: .*Unexpected key"):
        sf.load_adapter(tiny(), path)


def test_a_plan_whose_site_lost_its_gates(tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    changed_adapter(path, lambda plan, tensors: plan.update({next(iter(plan)): []}))
    with pytest.raises(AdapterError, match="its plan of gates names '.*', and no gate could be attached there"):
        sf.load_adapter(tiny(), path)


def test_a_plan_without_a_site(tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    changed_adapter(path, lambda plan, tensors: (plan.clear(), tensors.clear(), tensors.update(a=torch.ones(1))))
    with pytest.raises(AdapterError, match="its plan of gates names no site"):
        sf.load_adapter(tiny(), path)


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64])
def test_gates_of_another_type(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "adapter"
    key = f"{SITES[0]}.gates.0.psi"
    changed_adapter(path, lambda plan, tensors: tensors.update({key: tensors[key].to(dtype)}))
    with pytest.raises(AdapterError, match=f"the adapter's gates do not fit: .*psi' is {dtype}"):
        sf.load_adapter(tiny(), path)


def test_gates_with_values_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    key = f"{SITES[0]}.gates.0.psi"
    changed_adapter(path, lambda plan, tensors: tensors.update({key: tensors[key].double().fill_(1e300)}))
    with pytest.raises(AdapterError, match=r"psi' holds 1e\+300, which torch.float32 cannot hold"):
        sf.load_adapter(tiny().float(), path, same_weights=False)
