"""Scaling parameters is the reference formulation: values, every gradient, and training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import stripefold as sf
from stripefold_lab import create_model
from tests.asr.reference import matched, reference_of
from tests.lifecycle import prepared, scatter_


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().abs().max() / expected.detach().abs().max().clamp_min(1e-30))


def assert_equivalent(model: nn.Module, x: Tensor, tolerance: float) -> None:
    """Values and every gradient, also that of the input; and the control: the bare backbone differs."""
    reference = reference_of(model)
    outputs, inputs = [], []
    for network in (model, reference):
        inputs.append(x.clone().requires_grad_())
        outputs.append(network(inputs[-1]))
        weights = torch.randn(outputs[-1].shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        network.zero_grad()
        (outputs[-1] * weights).sum().backward()
    assert relative(outputs[0], outputs[1]) <= tolerance
    assert relative(inputs[0].grad, inputs[1].grad) <= tolerance
    scale = max(float(theirs.grad.abs().max()) for _, _, theirs in matched(model, reference))
    for name, ours, theirs in matched(model, reference):
        error = float((ours.grad.reshape(theirs.shape) - theirs.grad).abs().max())
        # Relative to its own size, or, where a gradient is all cancellation, to 1e-3 of the largest one.
        assert error <= tolerance * max(float(theirs.grad.abs().max()), 1e-3 * scale), name
    assert relative(sf.detach(model)(x), outputs[1]) > 1e-3


LAYERS = {
    "BatchNorm1d": (lambda: nn.BatchNorm1d(12), (5, 12)),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(12), (4, 12, 5, 5)),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(12), (2, 12, 3, 3, 3)),
    "GroupNorm": (lambda: nn.GroupNorm(3, 12), (2, 12, 5, 5)),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(12, affine=True), (2, 12, 5, 5)),
    "small map": (lambda: nn.Conv2d(6, 12, 3), (1, 6, 4, 4)),  # weight the larger side
    "large map": (lambda: nn.Conv2d(6, 12, 3), (3, 6, 16, 16)),  # output the larger side
    "grouped": (lambda: nn.Conv2d(6, 12, 3, groups=3, padding=1, padding_mode="reflect"), (2, 6, 8, 8)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 12, 3, groups=2, stride=2), (2, 6, 4, 4)),
    "without bias": (lambda: nn.Conv2d(6, 12, 1, bias=False), (2, 6, 4, 4)),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("case", LAYERS)
def test_one_layer(case: str, repeats: int, training: bool) -> None:
    build, shape = LAYERS[case]
    torch.manual_seed(0)
    network = nn.Sequential(build()).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter))
    model = scatter_(sf.attach(network, where="0", repeats=repeats, attention_options={"reduction": 2})).train(training)
    assert_equivalent(model, torch.randn(shape, dtype=torch.float64), 1e-12)


def network(name: str, side: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(4, 3, side, side, dtype=torch.float64)
    backbone = prepared(create_model(name).double(), x)
    return scatter_(sf.attach(backbone)), x


@pytest.mark.parametrize(("name", "side", "tolerance"), [("resnet20", 16, 1e-12), ("resnet164", 8, 1e-10)])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_networks(name: str, side: int, tolerance: float, training: bool) -> None:
    model, x = network(name, side)
    assert_equivalent(model.train(training), x, tolerance)


def test_five_steps_of_training() -> None:
    model, x = network("resnet20", 16)
    reference = reference_of(model)
    start = {name: parameter.detach().clone() for name, parameter, _ in matched(model, reference)}
    for other in (model.train(), reference.train()):
        optimizer = torch.optim.SGD(other.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
        for step in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(other(x + 0.1 * step), torch.arange(4)).backward()
            optimizer.step()
    for name, ours, theirs in matched(model, reference):
        assert relative(ours.reshape(theirs.shape), theirs) <= 1e-10, name
    moved = [name for name, parameter, _ in matched(model, reference) if not torch.equal(parameter, start[name])]
    assert len(moved) == len(start)
    assert relative(model.eval()(x), reference.eval()(x)) <= 1e-10
    plain = sf.fold(model)
    assert relative(plain(x), reference(x)) <= 1e-10
    for name, buffer in plain.named_buffers():  # the running statistics, too
        key = next(k for k in (name, ".base.".join(name.rsplit(".", 1))) if k in dict(reference.named_buffers()))
        assert torch.allclose(buffer.double(), dict(reference.named_buffers())[key].double(), rtol=1e-10, atol=1e-12)


def test_a_linear_site_keeps_no_scaled_copy_of_its_weight() -> None:
    torch.manual_seed(0)
    site = sf.attach(nn.Linear(6, 8).double(), where="*")
    x = torch.randn(64, 6, dtype=torch.float64)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        site(x).sum()
    copies = [t for t in kept if t.numel() == site.base.weight.numel() and t.data_ptr() != site.base.weight.data_ptr()]
    assert not copies
    assert any(t.data_ptr() == site.base.weight.data_ptr() for t in kept)  # the control: what is kept is seen
