"""Dtypes: half, bfloat16, double, autocast. Gates are computed in at least float32; fold rounds once."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import stripefold as sf
from tests.lifecycle import SITES, assert_folds, attached, error, images, scatter_, step_, tiny

KEYS = list(tiny().state_dict())
NARROW = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", [*NARROW, torch.float32, torch.float64])
@pytest.mark.parametrize("init", ["paper", "identity"])
def test_attach_step_fold_in_every_dtype(dtype: torch.dtype, init: str) -> None:
    model = attached(dtype=dtype, init=init)
    step_(model, images(dtype=dtype), lr=0.01)
    plain = assert_folds(model, images(dtype=dtype), keys=KEYS)
    assert {p.dtype for p in plain.parameters()} == {dtype}


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("moved", ["half", "to"])
def test_cast_after_attaching(dtype: torch.dtype, moved: str) -> None:
    model = attached(dtype=torch.float32, init="identity")
    cast = model.to(dtype) if moved == "to" else model.half() if dtype == torch.float16 else model.bfloat16()
    assert all(p.dtype == dtype for p in cast.parameters())
    assert_folds(step_(cast, images(dtype=dtype), lr=0.01), images(dtype=dtype), keys=KEYS)


@pytest.mark.parametrize("dtype", NARROW)
def test_narrow_fold_is_the_float64_fold_rounded_once(dtype: torch.dtype) -> None:
    model = step_(attached(dtype=torch.float32), images(dtype=torch.float32)).to(dtype)
    expected = sf.fold(copy.deepcopy(model).double(), check=False).state_dict()
    found = sf.fold(model, check=False).state_dict()
    for key, tensor in found.items():
        assert torch.equal(tensor, expected[key].to(tensor.dtype)), key
    # The control: rounding the scale first gives other numbers somewhere.
    scales = sf.scales(model)
    assert any(
        not torch.equal(found[f"{name}.{key}"], tensor * scales[name].to(dtype))
        for name in SITES
        for key, tensor in model.get_submodule(name).base.named_parameters()
    )


def test_the_identity_reference_stays_float32() -> None:
    model = sf.attach(tiny(torch.float32), init="identity")
    gate = model.blocks[0].bn2.gates[0]
    start = gate.start.clone()
    for cast in (model.half, model.bfloat16, lambda: model.to(torch.float16), model.float):
        cast()
        assert gate.start.dtype == torch.float32
        assert torch.equal(gate.start, start)
    assert model.double().blocks[0].bn2.gates[0].start.dtype == torch.float64


@pytest.mark.parametrize("dtype", [*NARROW, torch.float32, torch.float64])
@pytest.mark.parametrize("attention", ["se", "ie", "eca", "cbam", "dia"])
def test_identity_is_exact_in_every_dtype(attention: str, dtype: torch.dtype) -> None:
    backbone = tiny(dtype)
    model = sf.attach(backbone, attention, init="identity", repeats=2)
    assert torch.equal(model(images(dtype=dtype)), backbone(images(dtype=dtype)))
    assert not torch.equal(sf.attach(backbone, attention)(images(dtype=dtype)), backbone(images(dtype=dtype)))


@pytest.mark.parametrize("dtype", NARROW)
def test_gates_are_computed_in_float32(dtype: torch.dtype) -> None:
    model = attached(dtype=dtype)
    exact = sf.scales(model, torch.float64)
    for name, v in sf.scales(model).items():
        assert v.dtype == torch.float32
        assert error(v, exact[name]) < 1e-6


@pytest.mark.parametrize("attention", ["se", "srm", "fca", "dia"])
def test_autocast_leaves_the_gates_alone_and_the_fold_agrees(attention: str) -> None:
    model = attached(attention, dtype=torch.float32)
    x = images(dtype=torch.float32)
    free = sf.scales(model)
    with torch.autocast("cpu", torch.bfloat16):
        step_(copy.deepcopy(model), x)
        for name, v in sf.scales(model).items():
            assert v.dtype == torch.float32
            assert torch.equal(v, free[name])
        psi = model.blocks[0].bn2.gates[0].psi.flatten()
        assert (psi @ psi).dtype == torch.bfloat16  # the control: autocast is on
    step_(model, x)
    plain = assert_folds(model, x, keys=KEYS)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        trained, folded = model.eval()(x), plain.eval()(x)
    assert trained.dtype == folded.dtype == torch.bfloat16
    assert error(folded, trained) < 2 * 2**-7  # bfloat16 convolutions; the gate adds nothing


def test_autocast_does_not_turn_a_linear_layer_to_float32() -> None:
    torch.manual_seed(0)
    layer = scatter_(sf.attach(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), where="0"))
    with torch.autocast("cpu", torch.bfloat16):
        for batch in (1, 64):  # either side is scaled, by which is the smaller
            assert layer(torch.randn(batch, 8)).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:the gate on .* has no effect")
def test_channels_last() -> None:
    model = attached().to(memory_format=torch.channels_last)
    x = images().to(memory_format=torch.channels_last)
    step_(model, x)
    plain = assert_folds(model, x, keys=KEYS)
    assert plain.blocks[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert plain(x).shape == model(x).shape
    gated = attached(where=["blocks.*.conv1"]).to(memory_format=torch.channels_last)
    folded = sf.fold(gated, check=False)
    assert folded.blocks[0].conv1.weight.stride() == gated.blocks[0].conv1.base.weight.stride()


def test_meta_device() -> None:
    with torch.device("meta"):
        empty = type(tiny())()
    model = sf.attach(empty)
    assert all(p.is_meta for p in model.parameters())
    with pytest.raises(sf.errors.FoldError, match="on the meta device and has no numbers"):
        sf.fold(model, check=False)
    with pytest.raises(sf.errors.AttachError, match="identity' needs real weights"):
        sf.attach(empty, init="identity")
    source = attached()
    moved = copy.deepcopy(source).to("meta")
    assert all(t.is_meta for t in moved.state_dict().values())
    filled = model.double().to_empty(device="cpu")
    filled.load_state_dict(source.state_dict())
    assert_folds(step_(filled, images()), images(), keys=KEYS)
