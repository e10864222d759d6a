"""One gate by itself: its start, its precision, what it remembers."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import stripefold as sf
from stripefold.asr.gate import StaticGate
from stripefold.attention import build_attention
from tests.lifecycle import attached, error, images, step_, tiny


def gate(attention: str = "se", **options) -> StaticGate:
    torch.manual_seed(0)
    built = build_attention(attention, 8, 1, **options)
    psi = torch.full(built.descriptor_shape, 0.1)
    built.reactivate_dead_units_(psi)
    return StaticGate(built, psi, options=options)


def test_a_gate_computes_in_float32_at_least() -> None:
    made = gate()
    assert made().dtype == torch.float32
    assert made(torch.float64).dtype == torch.float64
    assert made.bfloat16()().dtype == torch.float32
    assert made.double()().dtype == torch.float64


def test_no_cache_of_v() -> None:
    made = gate()
    before = made()
    with torch.no_grad():
        made.psi.add_(0.5)
    assert not torch.equal(made(), before)


def test_identity_divides_by_the_start() -> None:
    made = gate()
    start = made.normalize_to_identity_()
    assert bool((made() == 1).all())
    with torch.no_grad():
        made.attention.mlp.expand.bias.add_(0.5)
    assert error(made(), made.attention.excite_static(made.psi) / start) < 1e-7
    assert "start" in made.state_dict()
    assert "start" not in gate().state_dict()
    assert not made.start.requires_grad


def test_a_plain_scale_that_moved_is_not_at_its_start() -> None:
    made = gate("scale")  # gives psi itself: what is remembered must not move with it
    made.record_initial_scale_()
    assert made.is_at_start()
    with torch.no_grad():
        made.psi.add_(0.5)
    assert not made.is_at_start()


def test_is_at_start() -> None:
    made = gate()
    assert not made.is_at_start()  # nothing remembered, nothing to say
    made.record_initial_scale_()
    assert made.is_at_start()
    assert "_born" not in "".join(made.state_dict())
    assert copy.deepcopy(made).is_at_start()
    assert pickle.loads(pickle.dumps(made)).is_at_start()
    with torch.no_grad():
        made.psi.add_(0.1)
    assert not made.is_at_start()
    frozen = gate()
    frozen.record_initial_scale_()
    nn.Module.requires_grad_(frozen, False)
    assert not frozen.is_at_start()  # it was not meant to move


def test_gates_the_optimiser_never_saw_are_named() -> None:
    backbone = tiny()
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
    model = sf.attach_(backbone)  # too late
    model(images()).square().mean().backward()
    optimizer.step()
    _, report = sf.fold(model, report=True)
    assert report.unmoved == ("blocks.0.bn2", "blocks.1.bn2")
    assert "gates that never moved from their start: blocks.0.bn2, blocks.1.bn2" in str(report)
    _, report = sf.fold(step_(attached(), images()), report=True)
    assert report.unmoved == ()


@pytest.mark.parametrize("attention", sf.attention_names(acts="channels"))
def test_every_gate_parameter_gets_a_gradient_at_the_start(attention: str) -> None:
    torch.manual_seed(0)
    model = sf.attach(tiny(), attention, attention_options=None)
    step_(model, images(), lr=0.5)
    step_(model, images(), lr=0.5)  # ie starts at g = 0: psi moves from the second step on
    for name, parameter in model.named_parameters():
        if ".gates." in name and "from_state" not in name:
            assert bool((parameter.grad != 0).any()), name
